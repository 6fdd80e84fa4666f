"""Limits on the size of an image, and on the memory that decoding takes."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

MAX_PIXELS = 80_000_000
"""The largest image is about 30 million pixels (mammography). Stays below Pillow's own limit of 89 million."""

MAX_BYTES = 256 * 2**20
"""Of a file. 80 million pixels of noise in 16 bits take 160 MB."""

MAX_SCANS = 100
"""Of a progressive JPEG, which usual encoders write in about ten. Each scan walks over the whole picture again, so that
a small file with thousands of them would keep a core busy for hours."""


class PixelBudget:
    """Lets images into memory as long as all of them together have no more than so many pixels."""

    def __init__(self, pixels: int) -> None:
        self._all = self._free = pixels
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        wanted = min(pixels, self._all)
        with self._changed:
            self._changed.wait_for(lambda: wanted <= self._free)
            self._free -= wanted
        try:
            yield
        finally:
            with self._changed:
                self._free += wanted
                self._changed.notify_all()


# Decoding takes up to 16 bytes a pixel (an AVIF up to 24, and counts twice; DICOM of 32 bits up to 56, and counts four
# times), 1.3 GB for the largest image: sixteen threads at once would fill any memory.
budget = PixelBudget(2 * MAX_PIXELS)
