"""Tables are read whole, or refused with line and column."""

import re
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
        """In any order, among others, with a byte-order mark, spaces, and an empty patient."""
        rows = labels(
            table,
            "\ufefflabel , site , path,patient_id,split,source\n severe ,A,images/1.png,p1,train,X\n"
            "normal,B,./images//2.png,,test,\n",
        )

        assert rows == [
            LabelRow(2, "images/1.png", "severe", "p1", "train", "X"),
            LabelRow(3, "images/2.png", "normal", None, "test", None),
        ]

    @pytest.mark.parametrize(
        ("text", "rows"),
        [
            ("path,label\na.png,x\n", [LabelRow(2, "a.png", "x")]),
            # The line is where the row ends, as an editor counts.
            (
                'path,label,note\na.png,x,"one,\ntwo"\nb.png,y,\n',
                [LabelRow(3, "a.png", "x"), LabelRow(4, "b.png", "y")],
            ),
            # A spreadsheet leaves lines of commas only, and empty cells beyond the last column.
            ("path,label\na.png,x,,\n,\n\n , ,\n", [LabelRow(2, "a.png", "x")]),
            # ``nan`` of pandas would otherwise be one patient, and all its images on one side.
            ("path,label,patient_id,source\na.png,x,nan,None\n", [LabelRow(2, "a.png", "x")]),
        ],
    )
    def test_reads(self, table, text, rows):
        assert labels(table, text) == rows

    def test_a_rated_image_needs_no_label(self, table):
        assert labels(table, "path,label\na.png,\nb.png,x\n", rated=True)[0].label is None

    def test_a_label_that_the_task_names_may_read_none(self, table):
        table.write_text("path,label\na.png,None\nb.png,severe\n")

        assert [row.label for row in read_labels(table, meant={"None", "severe"})] == ["None", "severe"]
        with pytest.raises(SettingsError, match=r"line 2, column label: 'None' is not a label, .*if it is a class"):
            read_labels(table)

    @pytest.mark.parametrize("column", ["patient_id", "Patient ID", "PatientID", "patientId", "PATIENT_ID"])
    def test_patients_as_public_data_sets_name_them(self, table, column):
        assert [row.patient_id for row in labels(table, f"path,label,{column}\na.png,x,p1\n")] == ["p1"]

    def test_of_two_columns_of_patients_the_one_of_that_name_counts(self, table):
        assert labels(table, "path,label,PatientID,patient_id\na.png,x,1,2\n")[0].patient_id == "2"
        with pytest.raises(SettingsError, match="more than one column 'patient_id'"):
            labels(table, "path,label,PatientID,Patient ID\na.png,x,1,2\n")


ROWS = [("images/ä 1.png", "severe"), ("b.png", "normal, old"), ("c.png", 'a "healthy" one')]
TABLE = 'path,label\nimages/ä 1.png,severe\nb.png,"normal, old"\nc.png,"a ""healthy"" one"\n'


def written(separator: str) -> str:
    cells = [("path", "label"), *ROWS]
    quoted = [[f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in row] for row in cells]
    return "".join(f"{separator.join(row)}\n" for row in quoted)


SPELLINGS: dict[str, bytes] = {
    "commas": TABLE.encode(),
    "semicolons": written(";").encode(),
    "tabs": written("\t").encode(),
    "bars": written("|").encode(),
    "Excel's first line": ("sep=;\n" + written(";")).encode(),
    "a byte order mark": TABLE.encode("utf-8-sig"),
    "line ends of Windows": TABLE.replace("\n", "\r\n").encode(),
    "line ends of old Macs": TABLE.replace("\n", "\r").encode(),
    "UTF-16": TABLE.encode("utf-16"),
    "UTF-16, the other order": b"\xfe\xff" + TABLE.encode("utf-16-be"),
    "Excel's Unicode text": written("\t").replace("\n", "\r\n").encode("utf-16"),
    "names in capitals": TABLE.replace("path,label", "PATH, Label").encode(),
    "no line end at the end": TABLE.rstrip("\n").encode(),
    "empty lines before the header": b"\n\n" + TABLE.encode(),
    "more columns": TABLE.replace("\n", ",x,\n").replace("path,label,x", "path,label,note").encode(),
    "paths of Windows": TABLE.replace("images/", "images\\").encode(),
    "blanks around cells": TABLE.replace("severe", "  severe ").replace('old"', 'old "').encode(),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_program_s_spelling_gives_the_same_rows(table, spelling):
    table.write_bytes(SPELLINGS[spelling])

    rows = read_labels(table)

    assert [(row.path, row.label) for row in rows] == ROWS
    first = {"Excel's first line": 3, "empty lines before the header": 4}.get(spelling, 2)
    assert [row.line for row in rows] == [first, first + 1, first + 2]


class TestRefusals:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", r"no column path and no column label; line 1 holds nothing: begin it with `path,label`"),
            (b"\n \n", r"line 1 holds nothing"),
            (b"path,patient_id\na.png,p\n", "no column label; line 1 holds 'path', 'patient_id'"),
            (b"path,label,label\na.png,x,y\n", "more than one column 'label'"),
            (b"path;Path;label\n", "more than one column 'path'"),
            (b"path,label\n", "has no rows"),
            (b"image,class\na.png,x\n", "line 1 holds 'image', 'class': begin it with `path,label`, or give"),
            (b"PK\3\4xl/workbook.xml", "not a CSV file but an Excel file: save its sheet as `CSV UTF-8`"),
            (b'[{"id": 1, "data": {"image": "/data/upload/1/a.png"}}]', "JSON, such as Label Studio's export: write"),
            (b"path,label\na.png,x\n ,x\n", "line 3, column path: '' is not a path"),
            (b"path,label\na\0.png,x\n", r"line 2, column path: 'a\\x00.png' is not a path"),
            (b"path,label\nhttps://h.example/a.png?sig=1,x\n", r"line 2, .*a.png\?...' is an address; download it"),
            (b"path,label\na.png,NaN\n", "line 2, column label: 'NaN' is not a label, give the image's or remove"),
            (b"path,label\n\na.png\n", "line 3, column label: '' is not a label"),
            (b"path,label\na.png;x\nb.png,y\n", r"line 2, .* 1 of 2 cells: 'a.png;x'"),
            (b"path,label\na.png,mild, left\n", "line 2, after column 2: 'left' belongs to no column; put cells that"),
            (b"path,label,split\na.png,x,dev\n", "line 2, column split: 'dev' is none of train, val, test"),
            (b"path,label,split\na.png,x,train\nb.png,x,\n", r"column split: empty in 1 of 2 rows \(line 3\)"),
            (b"path,label\na.png,x\nb.png,x\na.png,x\n", "line 4, .*'a.png' .* with the same values"),
            (b"path,label\na.png,x\n./a.png,y\n", "line 3, .* in line 2 already, with label 'x', and here with 'y'"),
            (b"path,label\na\\b.png,x\na/c/../b.png,x\n", "line 3, .*'a/b.png' is in line 2 already"),
            (b'path,label\n"a.png,x\nb.png,y\n', "line 2: a quote is opened there and not closed"),
            (b'path,label\na.png,x\nb.png,"y\nc.png,z\n', "line 3: a quote is opened there and not closed"),
            (b'path,label\na.png,"x" y\n', "line 2: a quote is opened there and not closed, or not followed by ','"),
            ("path,label\nbild-ä.png,x\n".encode("latin-1"), r"csv, line 2: 'bild-ä.png,x' is not UTF-8 .*expected a"),
            ("path,label\nä.png,x\nb.png,y\nö.png,z\n".encode("cp1252"), "line 2, and 1 more lines: 'ä.png,x' is no"),
            *(
                (f"path,label\na.png,{error}\n".encode(), f"line 2, column label: '{re.escape(error)}' is not a label")
                for error in ("#REF!", "#VALUE!", "#DIV/0!", "#N/A", "#name?")
            ),
        ],
    )  # fmt: skip
    def test_name_the_line_and_the_way_out(self, table, content, message):
        table.write_bytes(content)

        with pytest.raises(SettingsError, match=message):
            read_labels(table)

    def test_of_no_file(self, tmp_path):
        with pytest.raises(SettingsError, match=r"gone\.csv' cannot be read"):
            read_labels(tmp_path / "gone.csv")

    def test_a_thousand_of_one_kind_do_not_hide_another(self, table):
        rows = "".join(f"{n}.png,\n" for n in range(1000))

        with pytest.raises(SettingsError, match=r"line 2, .*line 3, .*line 11, .*; and 990 more; line 1002, ") as error:
            labels(table, f"path,label\n{rows}0.png,x\n,x\ny.png,x,z\n")

        assert "line 12," not in str(error.value)
        assert "line 1002, column path: '0.png' is in line 2 already" in str(error.value)
        assert "line 1003, column path: '' is not a path" in str(error.value)
        assert "line 1004, after column 2: 'z' belongs to no column" in str(error.value)


class TestUnlikeSpellings:
    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("normal", "Normal"), ("mild  left", "mild left"), ("0", "0.0"), ("é", "e\u0301"), ("1", "01"),
            ("1", "1,0"), ("x", "x\u200b"), ("\ufeffx", "x"),
        ],
    )  # fmt: skip
    def test_one_class_in_two_spellings(self, table, one, other):
        text = f'path,label\na.png,"{one}"\nb.png,"{other}"\nc.png,"{one}"\nd.png,severe\n'

        with pytest.raises(SettingsError) as error:
            labels(table, text)

        assert f"{one!r} (2 rows: lines 2, 4) and {other!r} (1 row: line 3) differ only by case" in str(error.value)
        table.write_text(text)
        assert len(read_labels(table, meant={one, other, "severe"})) == 4

    def test_another_spelling_than_the_task_s(self, table):
        table.write_text("path,label\na.png,Normal\nb.png,severe\n")

        with pytest.raises(SettingsError, match=r"'Normal' \(1 row: line 2\) and 'normal' \(in --task\) differ only"):
            read_labels(table, meant={"normal", "severe"})

    def test_is_named_next_to_bad_rows(self, table):
        with pytest.raises(
            SettingsError, match=r"line 4, column label: '' is not a .*; column label: 'x' .* and 'X' .*d"
        ):
            labels(table, "path,label\na.png,x\nb.png,X\nc.png,\n")


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
            ("a.png,,x\n", "line 2, column rater: '' is not a reader"),
            ("a.png,ann,x\na.png,ann,y\n", "line 3, column path: 'a.png' with 'ann' is in line 2 already"),
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

        paths, values = read_features(tmp_path / "f.npz")

        assert paths == ("b.png", "a.png", "c.png")
        assert values.tolist() == self.X.tolist()
        assert values.dtype == np.float32

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"path": PATHS}, "no array 'X"),
            ({"X": X}, "no array 'path"),
            ({"X": X[0], "path": PATHS}, r"X: expected floats of shape \[images, dims\], got float64 \(2,\)"),
            ({"X": X.astype(int), "path": PATHS}, "X: expected floats .* got int64"),
            ({"X": X, "path": PATHS[:2]}, r"path: expected one text for each of the 3 rows of X, got <U5 \(2,\)"),
            ({"X": X, "path": np.arange(3)}, "path: expected one text .* got int64"),
            ({"X": X, "path": PATHS.astype(object)}, "cannot be read: Object arrays cannot be loaded"),
            ({"X": X, "path": np.array(["a", "b", "./a"])}, "rows 0 and 2 are both of 'a'"),
            ({"X": X, "path": np.array(["a", "", "c"])}, "row 1 has an empty path"),
            ({"X": np.where(X == 3, np.nan, X), "path": PATHS}, r"row 1 \('a.png'\) has a feature that is not finite"),
            ({"X": np.where(X == 3, 1e300, X), "path": PATHS}, r"row 1 \('a.png'\) has a feature that is not finite"),
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


def test_first_ten_counts_the_rest():
    assert first_ten(["a", "b"]) == "a; b"
    assert first_ten([str(n) for n in range(10)], ", ") == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert first_ten([str(n) for n in range(13)]).endswith("8; 9; and 3 more")
