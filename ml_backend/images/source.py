"""Where the bytes of an image come from."""

from typing import Protocol

from ml_backend.records import ImageRef

__all__ = ["ImageSource"]


class ImageSource(Protocol):
    """Fetches images. Called from several threads at once."""

    def fetch(self, image: ImageRef) -> bytes:
        """The image file, as it is stored.

        Raises:
            ImageError: it cannot be had; the message names it.
        """
        ...

    def cache_key(self, image: ImageRef) -> str:
        """What stands for the file in a cache: equal keys promise equal bytes, for any project and any task id.

        Raises:
            ImageError: there is no such image, where that can be told without fetching it.
        """
        ...
