"""Tables are read whole, or refused with line and column."""

from pathlib import Path

import numpy as np
import pytest

from ml_backend.errors import SettingsError
from ml_backend.simulation.tables import LabelRow, RatingRow, first_ten, read_features, read_labels, read_ratings


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "table.csv"


def labels(table: Path, text: str, *, rated: bool = False) -> list[LabelRow]:
    table.write_text(text, encoding="utf-8")
    return read_labels(table, rated=rated)


class TestReadLabels:
    def test_reads_the_columns_it_knows(self, table):
        """In any order, with others beside them, with a byte-order mark, spaces, and an empty patient."""
        rows = labels(
            table,
            "\ufefflabel , site , path,patient_id,split,source\n severe ,A,images/1.png,p1,train,X\n"
            "normal,B,./images//2.png,,test,\n",
        )

        assert rows == [
            LabelRow(2, "images/1.png", "severe", "p1", "train", "X"),
            LabelRow(3, "images/2.png", "normal", None, "test", None),
        ]

    def test_needs_only_path_and_label(self, table):
        assert labels(table, "path,label\na.png,x\n") == [LabelRow(2, "a.png", "x")]

    def test_a_quoted_cell_may_hold_commas_and_lines(self, table):
        """The line is where the row ends, as an editor counts."""
        assert labels(table, 'path,label,note\na.png,x,"one,\ntwo"\nb.png,y,\n') == [
            LabelRow(3, "a.png", "x"),
            LabelRow(4, "b.png", "y"),
        ]

    def test_what_a_spreadsheet_leaves_behind_is_passed_over(self, table):
        """Lines of commas only, and empty cells beyond the last column."""
        assert labels(table, "path,label\na.png,x,,\n,\n\n , ,\n") == [LabelRow(2, "a.png", "x")]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("path,patient_id\na.png,p\n", "no column label; line 1 holds 'path', 'patient_id'"),
            ("", "no column path and no column label; line 1 holds nothing"),
            ("path;label\na.png;x\n", "line 1 holds 'path;label': begin it with `path,label`"),
            ("path,label,label\na.png,x,y\n", "more than one column 'label'"),
            ("path,label\n", "has no rows"),
            ("path,label\na.png,x\n ,x\n", "line 3, column path: '' is no path"),
            ("path,label\na\0.png,x\n", r"line 2, column path: 'a\\x00.png' is no path"),
            ("path,label\n\na.png\n", "line 3, column label: '' is no label"),
            ("path,label\na.png,x\nb.png,x\na.png,y\n", "line 4, column path: 'a.png' stands in line 2 already"),
            ("path,label\na.png,x\n./a.png,y\n", "line 3, column path: 'a.png' stands in line 2 already"),
            ("path,label,split\na.png,x,dev\n", "line 2, column split: 'dev' is none of train, val, test"),
            ("path,label\na.png,mild, left\n", "line 2, after column 2: ' left' belongs to no column"),
            ("path,label,split\na.png,x,train\nb.png,x,\n", r"column split: empty in 1 of 2 rows \(line 3\)"),
            ('path,label\n"a.png,x\nb.png,y\n', "cannot be read: unexpected end of data"),
        ],
    )
    def test_a_wrong_table_names_row_and_column(self, table, text, message):
        with pytest.raises(SettingsError, match=message):
            labels(table, text)

    def test_bad_rows_are_named_at_once_but_not_a_thousand(self, table):
        with pytest.raises(SettingsError, match=r"line 2, .*line 3, .*line 11, .*; and 990 more$") as error:
            labels(table, "path,label\n" + "".join(f"{n}.png,\n" for n in range(1000)))

        assert "line 12" not in str(error.value)

    def test_another_encoding_is_refused(self, table):
        table.write_bytes("path,label\nbild-ä.png,severe\n".encode("latin-1"))

        with pytest.raises(SettingsError, match=r"table\.csv' cannot be read: .* expected a CSV file in UTF-8"):
            read_labels(table)

    def test_a_table_that_is_not_there_is_named(self, tmp_path):
        with pytest.raises(SettingsError, match=r"gone\.csv' cannot be read"):
            read_labels(tmp_path / "gone.csv")

    def test_a_rated_image_needs_no_label(self, table):
        assert labels(table, "path,label\na.png,\nb.png,x\n", rated=True)[0].label is None


class TestReadRatings:
    def ratings(self, table: Path, text: str) -> list[RatingRow]:
        table.write_text(text, encoding="utf-8")
        return read_ratings(table)

    def test_reads_every_readers_answer(self, table):
        rows = self.ratings(table, "rater,path,label\nann,a.png,x\nbob,a.png,y\nann,b.png,unreadable\nbob,b.png,\n")

        assert rows == [
            RatingRow(2, "a.png", "ann", "x"),
            RatingRow(3, "a.png", "bob", "y"),
            RatingRow(4, "b.png", "ann", None),
            RatingRow(5, "b.png", "bob", None),
        ]

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ("a.png,,x\n", "line 2, column rater: '' is nobody"),
            ("a.png,ann,x\na.png,ann,y\n", "line 3, column path: 'a.png' with 'ann' stands in line 2 already"),
        ],
    )
    def test_a_wrong_row_is_named(self, table, rows, message):
        with pytest.raises(SettingsError, match=message):
            self.ratings(table, "path,rater,label\n" + rows)


class TestReadFeatures:
    X = np.arange(6.0).reshape(3, 2)
    PATHS = np.array(["b.png", "a.png", "c.png"])

    def test_reads_both_arrays_in_their_order(self, tmp_path):
        np.savez(tmp_path / "f.npz", X=self.X, path=self.PATHS, label=self.PATHS)

        features = read_features(tmp_path / "f.npz")

        assert features.paths == ("b.png", "a.png", "c.png")
        assert features.values.tolist() == self.X.tolist()
        assert features.values.dtype == np.float32

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"path": PATHS}, "no array 'X"),
            ({"X": X}, "no array 'path"),
            ({"X": X[0], "path": PATHS}, r"X: wanted floats of shape \[images, dims\], got float64 \(2,\)"),
            ({"X": X.astype(int), "path": PATHS}, "X: wanted floats .* got int64"),
            ({"X": X, "path": PATHS[:2]}, r"path: wanted one text for each of the 3 rows of X, got <U5 \(2,\)"),
            ({"X": X, "path": np.arange(3)}, "path: wanted one text .* got int64"),
            ({"X": X, "path": PATHS.astype(object)}, "cannot be read: Object arrays cannot be loaded"),
            ({"X": X, "path": np.array(["a", "b", "./a"])}, "rows 0 and 2 are both of 'a'"),
            ({"X": X, "path": np.array(["a", "", "c"])}, "row 1 has an empty path"),
            ({"X": np.where(X == 3, np.nan, X), "path": PATHS}, r"row 1 \('a.png'\) has a feature that is no finite"),
            ({"X": np.where(X == 3, 1e300, X), "path": PATHS}, r"row 1 \('a.png'\) has a feature that is no finite"),
        ],
    )
    def test_wrong_arrays_are_named(self, tmp_path, arrays, message):
        np.savez(tmp_path / "f.npz", **arrays)

        with pytest.raises(SettingsError, match=message):
            read_features(tmp_path / "f.npz")

    @pytest.mark.parametrize("content", [b"PK\3\4 but no more", b"X,path", b""])
    def test_another_file_is_refused(self, tmp_path, content):
        (tmp_path / "f.npz").write_bytes(content)

        with pytest.raises(SettingsError, match=r"f\.npz' cannot be read: .*expected an npz file"):
            read_features(tmp_path / "f.npz")

    def test_a_single_array_and_no_file_are_refused(self, tmp_path):
        np.save(tmp_path / "one.npy", self.X)

        with pytest.raises(SettingsError, match="holds a single array: expected an npz file"):
            read_features(tmp_path / "one.npy")
        with pytest.raises(SettingsError, match=r"gone\.npz' cannot be read"):
            read_features(tmp_path / "gone.npz")


class TestFirstTen:
    def test_counts_the_rest(self):
        assert first_ten(["a", "b"]) == "a; b"
        assert first_ten([str(n) for n in range(10)], ", ") == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
        assert first_ten([str(n) for n in range(13)]).endswith("8; 9; and 3 more")
