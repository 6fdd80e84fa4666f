"""The counts of an import, as a table and as lines of a file."""

import io

import pytest
from rich.console import Console

from ml_backend.imports.table import Tally, open_tally


@pytest.fixture
def tally() -> Tally:
    found = Tally()
    for number in range(4):
        found.add("refused", f"a/{number}.png", f"image a/{number}.png cannot be decoded: {number} bytes 'x{number}'")
    found.add("refused", "[/b].png", "[Errno 5] [/red]")
    found.add("taken", "1")
    return found


def test_reasons_that_differ_in_values_are_one_group(tally):
    assert [(one.outcome, one.count, one.first) for one in tally.groups()] == [
        ("taken", 1, ["1"]),
        ("refused", 4, ["a/0.png", "a/1.png", "a/2.png"]),
        ("refused", 1, ["[/b].png"]),
    ]
    assert tally.groups()[1].reason == "cannot be decoded: 0 bytes 'x0'"
    assert (tally["refused"], tally["skipped"]) == (5, 0)


def test_a_short_name_stays_out_of_a_reason():
    tally = Tally()
    tally.add("refused", "1", "image 1 holds 12 frames")
    tally.add("refused", "a", "a damaged file")
    tally.add("refused", "b", "b: <io 0x7f6eab>")
    tally.add("refused", "c", "b: <io 0x7f6eac>")

    assert [one.reason for one in tally.groups()] == ["b: <io 0x7f6eab>", "holds 12 frames", "damaged file"]


def test_a_path_that_is_no_text(tmp_path):
    with open_tally(tmp_path / "files.csv") as found:
        found.add("refused", "M?ller", "/in/M\udcfcller is a folder")

    assert "/in/M\\udcfcller" in (tmp_path / "files.csv").read_text()
    assert found.groups()[0].reason.isascii()


def test_brackets_are_printed_as_they_are(tally):
    out = io.StringIO()
    Console(file=out, width=120).print(tally.table())

    assert "[Errno 5] [/red]" in out.getvalue()
    assert "[/b].png" in out.getvalue()


def test_every_file_is_a_line(tmp_path):
    with open_tally(tmp_path / "files.csv") as found:
        found.add("refused", "a.png", "empty, and more")
        found.add("taken", "b.png")

    assert (tmp_path / "files.csv").read_text().splitlines() == [
        *("file,outcome,reason", 'a.png,refused,"empty, and more"', "b.png,taken,")
    ]
    assert (tmp_path / "files.csv").stat().st_mode & 0o777 == 0o600
