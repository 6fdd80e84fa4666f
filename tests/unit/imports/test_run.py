"""What becomes of each file, without Label Studio; ``tests/system/test_import.py`` has the rest."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from tests.command_line import run_cli
from tests.unit.images.files import encode, film


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def outcomes(folder: Path, *words: str) -> dict[str, list[str]]:
    """Outcome -> names of files, by a dry run."""
    ended = run_cli(["import", str(folder), "--dry-run", "--json", *words], {"PATH": ""}, folder.parent)
    found = json.loads(ended.stdout)
    assert ended.returncode == (1 if found["refused"] else 0)
    assert list(folder.parent.iterdir()) == [folder]  # nothing was written
    return {
        one: sorted(name for group in found["groups"] if group["outcome"] == one for name in group["first"])
        for one in ("taken", "skipped", "refused", "noted")
    }


def test_what_was_never_an_image_is_skipped_and_a_bad_image_refused(folder):
    files = {
        "good.png": encode(Image.fromarray(film(90, 70))),
        "cut.png": encode(Image.fromarray(film(90, 70)))[:900],
        "page.png": b"<html>login</html>",
        "empty.dcm": b"",
        "1.2.840.10008": bytes(range(1, 256)) * 8,  # what an encrypted file of a PACS looks like
        "IM0001": bytes(range(1, 256)) * 8,
    }
    no_images = {
        "README": b"Read me first",
        "notes.txt": b"notes",
        "letter.pdf": b"%PDF-1.4",
        "._good.png": b"\0\5\x16\7" + bytes(99),
        "DICOMDIR": Path(str(get_testdata_file("DICOMDIR"))).read_bytes(),
        "report": Path(str(get_testdata_file("reportsi.dcm"))).read_bytes(),
    }
    for name, content in (files | no_images).items():
        (folder / name).write_bytes(content)

    found = outcomes(folder)

    assert found["taken"] == ["good.png"]
    assert found["refused"] == sorted(files.keys() - {"good.png"})
    assert len(found["skipped"]) >= 4
    assert not set(found["skipped"]) - no_images.keys()


def test_equal_pixels_are_one_task_and_similar_ones_of_a_patient_noted(folder):
    image = Image.fromarray(film(300, 200))
    (folder / "a.png").write_bytes(encode(image))
    (folder / "b.webp").write_bytes(encode(image, "WEBP", lossless=True))
    (folder / "c.jpg").write_bytes(encode(image, "JPEG"))
    (folder / "d.png").write_bytes(encode(image.resize((100, 150))))
    (folder / "t.csv").write_text("path,Patient ID\na.png,1\nb.webp,1\nc.jpg,1\nd.png,2\n")

    by_table = outcomes(folder.joinpath(), "--views", "PA")
    ended = run_cli(["import", str(folder / "t.csv"), "--dry-run", "--json"], {"PATH": ""}, folder)

    assert by_table["skipped"] == ["b.webp", "t.csv"]
    found = json.loads(ended.stdout)
    assert [(one["outcome"], one["first"]) for one in found["groups"]] == [
        ("taken", ["a.png", "c.jpg", "d.png"]),
        ("skipped", ["b.webp"]),
        ("noted", ["c.jpg"]),
    ]


@pytest.mark.parametrize(
    ("words", "taken"),
    [
        ((), ["none", "odd", "pa"]),
        (("--views", "pa"), ["none", "pa"]),
        (("--views", "AP,LL"), ["lateral", "none", "side"]),
        (("--views", "UNKNOWN"), ["none", "odd"]),
        (("--modalities", "ct"), ["ct", "none"]),
        (("--modalities", "any"), ["ct", "none", "pa"]),
    ],
)
def test_views_and_modalities(folder, words, taken):
    rows = [("pa", "PA", "DX"), ("lateral", "LL", "DX"), ("ct", "", "CT"), ("none", "", "")]
    rows += [("side", "L LAT", "DX"), ("odd", "Jane Doe", "DX")]
    for number, (name, _, _) in enumerate(rows):
        (folder / name).write_bytes(encode(Image.fromarray(np.full((9, 9), number, np.uint8))))
    (folder / "t.csv").write_text("path,View,modality\n" + "\n".join(map(",".join, rows)))

    ended = run_cli(["import", str(folder / "t.csv"), "--dry-run", "--json", *words], {"PATH": ""}, folder)

    groups = json.loads(ended.stdout)["groups"]
    assert [sorted(one["first"]) for one in groups if one["outcome"] == "taken"] == [taken]
    noted = [one["first"] for one in groups if one["outcome"] == "noted"]
    assert noted == [["odd"]] * ("odd" in taken or "any" in words)  # of a group, three are listed
    assert "Doe" not in ended.stdout


def test_settings_are_missed_before_a_file_is_read(folder):
    ended = run_cli(["import", str(folder / "nothing"), "--title", "x"], {"PATH": ""}, folder)

    assert ended.returncode == 1
    assert "AL_LABEL_STUDIO_URL" in ended.stderr
