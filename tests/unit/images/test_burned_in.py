import tracemalloc

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from ml_backend.images import burned_in
from ml_backend.images.burned_in import text_at_borders
from ml_backend.imports.pictures import read_picture
from tests.unit.images.files import encode, film


def labelled(text: str, place: tuple[float, float], *, size: int = 20, style: str = "white", side: int = 700):
    """A radiograph with a line of text at a place, in shares of its width and height."""
    image = Image.fromarray(film(side, side))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    corner = (place[0] * side, place[1] * side)
    if style == "box":
        left, top, right, bottom = draw.textbbox(corner, text, font)
        draw.rectangle((left - 4, top - 4, right + 4, bottom + 4), fill=255)
    draw.text(corner, text, 0 if style == "box" else 255, font, stroke_width=int(style == "outline"), stroke_fill=0)
    return np.asarray(image)


@pytest.mark.parametrize(
    ("text", "style", "place", "border"),
    [
        ("DOE^JANE 1961-03-17", "white", (0.02, 0.02), "top"),
        ("Erika Mustermann", "outline", (0.5, 0.94), "lower"),
        ("14:05:33", "box", (0.01, 0.5), "left"),
    ],
)
def test_a_name_or_a_time_is_found_at_its_border(text, style, place, border):
    assert f"text near its {border} border" in text_at_borders(labelled(text, place, style=style))


def test_letters_of_any_size():
    for size, side in ((14, 320), (80, 1200)):
        image = labelled("DOE^JANE 1961-03-17", (0.02, 0.05), size=size, side=side, style="outline")
        assert text_at_borders(image), size


def test_what_is_no_text():
    """The anatomy and its grain, a marker of the side, a grid, noise, nothing; and text where the lungs are."""
    plain = film(500, 500)
    noise = np.random.default_rng(0).integers(0, 256, (90, 90), np.uint8)
    grid = np.where((np.indices((500, 500)) % 40 < 3).any(axis=0), 255, plain).astype(np.uint8)
    marked = labelled("R", (0.05, 0.05), size=50, side=500)
    within = labelled("DOE^JANE", (0.4, 0.45), side=500)
    for pixels in (plain, marked, grid, noise, plain[:1, :1], within):
        assert text_at_borders(pixels) == ""


def test_thousands_of_shapes_do_not_fill_the_memory():
    down, across = np.indices((150, 2000))
    mask = (down % 10 < 7) & (across % 20 < 4)  # 1,500 strokes, farther from each other than letters are
    tracemalloc.start()
    try:
        assert burned_in._line_of_glyphs(mask) is None
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_of_what_is_imported_as_a_png():
    png = encode(Image.fromarray(labelled("DOE^JANE 1961", (0.02, 0.02))))

    assert read_picture(png, "a.png").burned_in == "bright text near its top border"
