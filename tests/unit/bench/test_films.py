"""The films that are decoded."""

import numpy as np
import pytest
from PIL import Image

from ml_backend.bench.films import draw_film, films_in, write_films, write_small_films
from ml_backend.bench.process import BenchError


class TestDraw:
    def test_size_and_seed(self):
        film = draw_film(60, 40, seed=1)

        assert film.shape == (60, 40)
        assert film.dtype == np.uint8
        assert np.array_equal(film, draw_film(60, 40, seed=1))
        assert not np.array_equal(film, draw_film(60, 40, seed=2))

    def test_has_grain(self):
        """Without it a film would compress, and decode, like a drawing."""
        film = draw_film(1024, 1024, seed=0).astype(float)
        rough = film[500:520, 500:520] - film[501:521, 500:520]

        assert 2.0 < rough.std() < 10.0


class TestFiles:
    @pytest.mark.parametrize(("kind", "ending"), [("jpeg", ".jpg"), ("png", ".png")])
    def test_are_gray_and_found_again(self, tmp_path, kind, ending):
        paths = write_films(tmp_path / "films", kind, 2, 50, 40)

        assert films_in(tmp_path, kind) == paths
        assert [path.suffix for path in paths] == [ending] * 2
        with Image.open(paths[0]) as image:
            assert (image.mode, image.size) == ("L", (40, 50))

    def test_small_ones_are_named_by_severity(self, tmp_path):
        folder = write_small_films(tmp_path / "small", 4, 64)

        assert sorted(path.name for path in folder.iterdir()) == [
            "0-0000.png",
            "0-0003.png",
            "1-0001.png",
            "2-0002.png",
        ]

    def test_a_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(BenchError, match="none: there is no such folder"):
            films_in(tmp_path / "none", "png")
