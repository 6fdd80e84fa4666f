"""The demo's images: drawn ones, and a visitor's with a table that may be wrong."""

import io
from pathlib import Path

import pytest
from PIL import Image

from ml_backend.demo.images import DRAWN_CLASSES, Film, draw_films, labels_in, read_films
from ml_backend.errors import SettingsError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "sub/b.jpg"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 100).save(path)
    (tmp_path / "images" / "page.png").write_text("<html>please log in</html>")
    (tmp_path / "outside.png").write_bytes((tmp_path / "images" / "a.png").read_bytes())
    return tmp_path / "images"


def read(folder: Path, table: str) -> list[Film]:
    path = folder.parent / "labels.csv"
    path.write_text(table, encoding="utf-8")
    return read_films(folder, path, DRAWN_CLASSES)


class TestDrawFilms:
    def test_draws_the_shares_of_a_hospital(self):
        films = draw_films(100, seed=1, side=32)

        counts = {name: sum(film.label == name for film in films) for name in DRAWN_CLASSES}
        assert counts == pytest.approx({"normal": 14, "moderate": 36, "severe": 50}, abs=1)

    def test_a_film_is_a_png_of_the_side_asked_for(self):
        film = draw_films(4, seed=1, side=40)[0]

        with Image.open(io.BytesIO(film.content)) as image:
            assert (image.format, image.size) == ("PNG", (40, 40))

    def test_the_name_is_unique_and_tells_no_label(self):
        names = [film.name for film in draw_films(12, seed=1, side=32)]

        assert names == [f"film-{i:05d}.png" for i in range(12)]

    def test_the_seed_decides(self):
        assert draw_films(6, seed=3, side=32) == draw_films(6, seed=3, side=32)
        assert draw_films(6, seed=3, side=32) != draw_films(6, seed=4, side=32)


class TestLabelsIn:
    def test_names_every_label_whatever_its_image(self, tmp_path):
        """A path that stands there twice is for ``read_films`` to refuse, when all bad rows are named."""
        table = tmp_path / "labels.csv"
        table.write_text("path,label\ngone.png,mild\ngone.png,severe\nb.png,mild\n")

        assert labels_in(table) == {"mild", "severe"}


class TestReadFilms:
    def test_reads_images_labels_and_patients(self, folder):
        films = read(folder, "path,label,patient_id\na.png,normal,p7\nsub/b.jpg,severe,\n")

        assert [(f.name, f.label, f.patient_id) for f in films] == [
            ("film-00000.png", "normal", "p7"),
            ("film-00001.jpg", "severe", None),
        ]
        assert films[0].content == (folder / "a.png").read_bytes()

    def test_takes_a_spreadsheets_byte_order_mark_and_spaces(self, folder):
        assert read(folder, "\ufeffpath, label\n a.png , normal\n")[0].label == "normal"

    @pytest.mark.parametrize(
        ("row", "column", "seen"),
        [
            ("a.png,mild", "label", "'mild'"),
            ("a.png,", "label", "''"),
            ("a.png", "label", "''"),
            ("gone.png,normal", "path", "'gone.png'"),
            ("../outside.png,normal", "path", "'../outside.png'"),
            ("page.png,normal", "path", "'page.png'"),
            ("labels.csv,normal", "path", "'labels.csv'"),
            (",normal", "path", "''"),
            ("sub/b.jpg,normal", "path", "'sub/b.jpg'"),
            ("./sub/b.jpg,normal", "path", "'sub/b.jpg' stands in line 2 already"),
        ],
    )
    def test_a_bad_row_is_named_by_line_column_and_value(self, folder, row, column, seen):
        with pytest.raises(SettingsError, match=f"line 3, column {column}: ") as error:
            read(folder, f"path,label\nsub/b.jpg,normal\n{row}\n")

        assert seen in str(error.value)

    def test_all_bad_rows_are_named_at_once_but_not_a_thousand(self, folder):
        with pytest.raises(SettingsError, match=r"line 2, .*line 3, .*and 989 more"):
            read(folder, "path,label\n" + "a.png,mild\n" * 1000)

    @pytest.mark.parametrize(
        ("table", "said"),
        [
            ("file;class\n", "no column path and no column label; line 1 holds 'file', 'class'"),
            ("path\na.png\n", "no column label"),
            ("", "line 1 holds nothing"),
            ("path,label\n", "has no rows"),
        ],
    )
    def test_a_table_of_another_form_is_refused(self, folder, table, said):
        with pytest.raises(SettingsError, match=said):
            read(folder, table)

    def test_a_table_in_another_encoding_is_refused(self, folder):
        path = folder.parent / "labels.csv"
        path.write_bytes("path,label\nü.png,normal".encode("latin-1"))

        with pytest.raises(SettingsError, match="expected a CSV file in UTF-8"):
            read_films(folder, path, DRAWN_CLASSES)

    def test_a_folder_that_is_none_is_refused(self, folder):
        with pytest.raises(SettingsError, match=r"IMAGES='.*a.png' is no folder"):
            read_films(folder / "a.png", folder / "labels.csv", DRAWN_CLASSES)
