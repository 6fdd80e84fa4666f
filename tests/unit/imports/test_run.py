"""What becomes of each file, without Label Studio; ``tests/system/test_import.py`` has the rest."""

import io
import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from rich.console import Console

from ml_backend.demo.summary import View
from ml_backend.errors import SettingsError
from ml_backend.imports import pictures, run
from ml_backend.imports.ledger import Ledger, open_ledger
from ml_backend.imports.run import ImportOptions, run_import, wait_for_order
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.connect import read_label_config
from ml_backend.scheduling.policy import QueueStatus
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


class Studio:
    """What an import sees of one project of Label Studio."""

    url, status, last = "http://studio", QueueStatus(), ""

    def __init__(self) -> None:
        self.tasks: list[dict[str, dict[str, str]]] = []
        self.folders: list[str] = []

    def project(self, _: int) -> dict[str, str]:
        return {"label_config": read_label_config("severity"), "model_version": self.last}

    def task_metas(self, _: int) -> Iterator[dict[str, str]]:
        return iter([task["meta"] for task in self.tasks])

    def upload(self, _: int, files: dict[str, bytes]) -> dict[str, str]:
        return {name: f"/data/{name}" for name in files}

    def import_tasks(self, _: int, tasks: list[dict[str, dict[str, str]]]) -> None:
        self.tasks += tasks

    def storages(self, _kind: str, _: int) -> list[dict[str, str]]:
        return [{"path": folder} for folder in self.folders]

    def add_storage(self, _kind: str, _: int, fields: dict[str, str]) -> None:
        self.folders.append(fields["path"])


@pytest.fixture
def studio(monkeypatch) -> Studio:
    """Takes Label Studio's place, and leaves out what comes after the tasks."""
    found = Studio()
    monkeypatch.setattr(LabelStudioClient, "from_settings", lambda _: nullcontext(found))
    monkeypatch.setattr(run, "label_studio_version", lambda _: "1.22.0")
    monkeypatch.setattr(run, "_first_order", lambda *_: "")
    monkeypatch.setattr(run, "choose_project", lambda *_: (7, ""))
    monkeypatch.setenv("AL_LABEL_STUDIO_URL", found.url)
    monkeypatch.setenv("AL_LABEL_STUDIO_API_KEY", "key")
    return found


def imported(source: Path, out: Path, **options: Any) -> dict[tuple[str, str], list[str]]:
    """(outcome, reason) -> files, by an import into project 7."""
    with redirect_stdout(io.StringIO()) as printed:
        run_import(ImportOptions(source=str(source), project=7, out=out, json=True, **options))
    return {(one["outcome"], one["reason"]): one["first"] for one in json.loads(printed.getvalue())["groups"]}


def test_an_import_that_began_during_another_doubles_nothing(folder, studio, monkeypatch):
    (folder / "a.png").write_bytes(encode(Image.fromarray(film(60, 50))))
    real, out = open_ledger, folder.parent / "out"

    def late(path: Path) -> AbstractContextManager[Ledger]:
        monkeypatch.setattr(run, "open_ledger", real)
        imported(folder, out)  # the other one ends just before this one may begin
        return real(path)

    monkeypatch.setattr(run, "open_ledger", late)

    assert imported(folder, out) == {("skipped", "in the project already"): ["a.png"]}
    assert len(studio.tasks) == 1


def test_what_was_noted_is_noted_again(folder, studio, monkeypatch):
    monkeypatch.setattr(pictures, "text_at_borders", lambda _: "may show text")
    (folder / "a.png").write_bytes(encode(Image.fromarray(film(60, 50))))
    out = folder / "state"  # whose own files are no part of the source

    first, second = imported(folder, out), imported(folder, out)
    (out / "ledger.sqlite3").unlink()
    third, strict = imported(folder, out), imported(folder, out, refuse_burned_in=True)

    assert first == {("taken", ""): ["a.png"], ("noted", "may show text"): ["a.png"]}
    assert second == third == {("skipped", "in the project already"): ["a.png"], ("noted", "may show text"): ["a.png"]}
    assert strict == {("refused", "may show text; it is in the project already: delete its task"): ["a.png"]}
    assert len(studio.tasks) == 1


def test_of_what_stays_in_place_no_more_than_the_source_is_shown(folder, studio):
    root, out = folder.parent, folder.parent / "out"
    images = folder / "anon" / "png"
    images.mkdir(parents=True)
    for number, name in enumerate((b"a b.png", b"M\xfcller.png")):
        image = encode(Image.fromarray(film(60 + number, 50)))
        (images / os.fsdecode(name)).write_bytes(image)
        (folder / f"{number}.png").write_bytes(image)
    (folder / "t.csv").write_text("path\n0.png\n/elsewhere.png\n")
    here: dict[str, Any] = {"leave_in_place": True, "document_root": root}

    found = imported(images, out, **here)

    assert [task["data"]["image"] for task in studio.tasks] == ["/data/local-files/?d=in/anon/png/a%20b.png"]
    assert studio.folders == [str(images)]
    assert found.keys() == {
        ("taken", ""),
        ("refused", "its name is no UTF-8, so that Label Studio cannot show it: rename it"),
    }
    studio.tasks.clear()
    by_table = imported(folder / "t.csv", out, **here)
    assert by_table["taken", ""] == ["0.png"]
    assert [names for (outcome, _), names in by_table.items() if outcome == "refused"] == [["/elsewhere.png"]]
    assert studio.folders == [str(images), str(folder)]
    for words, reason in [
        ({"source": root}, "below its document root"),
        ({"source": images, "document_root": images}, "below its document root"),
        ({"source": images, "document_root": None}, "not given"),
        ({"source": images, "out": images / "out"}, "shown to all readers"),
        ({"source": images, "key_file": images / "key"}, "shown to all readers"),
    ]:
        with pytest.raises(SettingsError, match=reason):
            imported(**({"out": out} | here | words))
    assert not (images / "out").exists()


def test_waits_no_longer_than_a_round_may_begin():
    studio, view = Studio(), View(Console(file=io.StringIO()))
    queue = SimpleNamespace(status=lambda _: studio.status, workers=lambda: 1)
    context: Any = SimpleNamespace(client=studio, queue=queue, key="7", project_id=7)

    assert "`ml-backend doctor` says why" in wait_for_order(context, view, round_within_s=0.0)


def test_settings_are_missed_before_a_file_is_read(folder):
    ended = run_cli(["import", str(folder / "nothing"), "--title", "x"], {"PATH": ""}, folder)

    assert ended.returncode == 1
    assert "AL_LABEL_STUDIO_URL" in ended.stderr
