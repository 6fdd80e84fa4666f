"""Finds text that is burned into the border of an image, without reading it."""

from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from jaxtyping import UInt8
from PIL import Image

_Boxes: TypeAlias = npt.NDArray[np.float64]  # a row of top, bottom, left and right for each shape

SIDE: Final = 2048
"""Larger images are looked at in this size, in which ``ml-backend import`` uploads them."""

_BORDER: Final = 0.25  # of the height and of the width, on each side
_CONTRAST: Final = 60  # grey levels between a glyph and the mean of what is around it
_HEIGHTS: Final = (6, 80)  # of a glyph, in pixels
_MIN_GLYPHS: Final = 5
_MAX_SHAPES: Final = 3000  # more are texture


def text_at_borders(pixels: UInt8[npt.NDArray[np.uint8], "height width"]) -> str:
    """Where text seems to be burned into the outer quarter of an image; "" where none is found.

    Text is a line of at least five shapes that differ sharply from their surroundings, as high as each other, on one
    base line, and close together. A single letter, such as a marker of the side, is none.

    Returns:
        ``bright text near its top border``, ``dark text near its left border``, ...
    """
    image = Image.fromarray(pixels)
    largest = min(SIDE, max(min(SIDE // 2, 4 * max(image.size)), *image.size))
    # Large letters are found in the smaller picture, whose strokes are thin again.
    for side in (largest, largest // 2):
        scale = side / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        levels = np.asarray(image.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC))
        if found := _text(levels.astype(np.float32)):
            return found
    return ""


def _text(levels: npt.NDArray[np.float32]) -> str:
    from scipy.ndimage import uniform_filter  # noqa: PLC0415 - loads for a while, and only an import looks for text

    contrast = levels - uniform_filter(levels, 31)
    for tone, mask in (("bright", contrast > _CONTRAST), ("dark", contrast < -_CONTRAST)):
        if (line := _line_of_glyphs(mask)) is not None:
            return f"{tone} text near its {_side(line, mask.shape)} border"
    return ""


def _line_of_glyphs(mask: npt.NDArray[np.bool_]) -> tuple[float, float] | None:
    """The middle, down and across, of the longest line of glyphs near a border."""
    from scipy.ndimage import find_objects, label  # noqa: PLC0415 - as above
    from scipy.sparse import csr_array, vstack  # noqa: PLC0415
    from scipy.sparse.csgraph import connected_components  # noqa: PLC0415

    shapes, _ = label(mask)
    boxes = np.array([(y.start, y.stop, x.start, x.stop) for y, x in find_objects(shapes)], float).reshape(-1, 4)
    top, bottom, left, right = boxes.T
    tall, wide = bottom - top, right - left
    middle = np.stack((top + bottom, left + right)) / (2 * np.array(mask.shape)[:, None])
    near = (np.minimum(middle, 1 - middle) < _BORDER).any(axis=0)
    boxes = boxes[near & (tall >= _HEIGHTS[0]) & (tall <= _HEIGHTS[1]) & (wide <= 1.5 * tall)]
    if not _MIN_GLYPHS <= len(boxes) <= _MAX_SHAPES:
        return None
    # Some at a time, since a matrix of all is large.
    neighbours = vstack([csr_array(_are_neighbours(boxes[n : n + 64], boxes)) for n in range(0, len(boxes), 64)])
    _, lines = connected_components(neighbours, directed=False)
    sizes = np.bincount(lines)
    if sizes.max() < _MIN_GLYPHS:
        return None
    box = boxes[lines == sizes.argmax()]
    return float(box[:, :2].mean()), float(box[:, 2:].mean())


def _are_neighbours(some: _Boxes, boxes: _Boxes) -> npt.NDArray[np.bool_]:
    """Whether two shapes may be glyphs of one line, side by side."""
    (top, bottom, left, right), (tops, bottoms, lefts, rights) = some.T[..., None], boxes.T
    larger, smaller = np.maximum(bottom - top, bottoms - tops), np.minimum(bottom - top, bottoms - tops)
    gap = np.maximum(left, lefts) - np.minimum(right, rights)
    is_one_line = (smaller > 0.6 * larger) & (np.abs(bottom - bottoms) <= np.maximum(1, 0.12 * smaller))
    near: npt.NDArray[np.bool_] = is_one_line & (gap >= -1) & (gap <= 1.6 * smaller)
    return near


def _side(middle: tuple[float, float], shape: tuple[int, ...]) -> str:
    down, across = middle[0] / shape[0], middle[1] / shape[1]
    return min((down, "top"), (1 - down, "lower"), (across, "left"), (1 - across, "right"))[1]
