import logging
import os
from pathlib import Path

import pytest

from ml_backend.images.blobs import BlobFolder


def entries(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*/*") if path.is_file()]


def test_gives_back_what_was_put(tmp_path: Path) -> None:
    blobs = BlobFolder(tmp_path)
    blobs.put("a", b"one")
    blobs.put("../b", b"")

    assert (blobs.get("a"), blobs.get("../b"), blobs.get("c")) == (b"one", b"", None)
    assert BlobFolder(tmp_path).get("a") == b"one"
    assert len(entries(tmp_path)) == 2


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 40])
def test_damaged_entry_is_not_there_until_it_is_put_again(tmp_path: Path, damage: bytes) -> None:
    blobs = BlobFolder(tmp_path)
    blobs.put("a", b"one")
    entries(tmp_path)[0].write_bytes(damage)

    assert blobs.get("a") is None
    blobs.put("a", b"one")
    assert blobs.get("a") == b"one"


def test_disk_that_refuses_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        BlobFolder(tmp_path / "file").put("a", b"one")

    assert "cannot be written" in caplog.text
    assert BlobFolder(tmp_path / "file").get("a") is None


def test_trim_drops_what_was_not_used_for_longest(tmp_path: Path) -> None:
    blobs = BlobFolder(tmp_path)
    for age, key in enumerate(["new", "middle", "old"]):
        blobs.put(key, b"x" * 68)  # with its checksum 100 bytes
        newest = max(entries(tmp_path), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (1e9 - age, 1e9 - age))
    assert blobs.get("old") is not None  # which makes it the most recently used

    assert blobs.trim(200) == 100
    assert [blobs.get(key) is None for key in ("new", "middle", "old")] == [False, True, False]
    assert blobs.trim(200) == 0


def test_trim_sweeps_up_after_a_process_that_died(tmp_path: Path) -> None:
    (tmp_path / "ab").mkdir()
    dead, running = tmp_path / "ab" / "1.beside", tmp_path / "ab" / "2.beside"
    for path in (dead, running):
        path.write_bytes(b"half")
    os.utime(dead, (1e9, 1e9))

    BlobFolder(tmp_path).trim(0)

    assert not dead.exists()
    assert running.exists()


def test_what_cannot_be_dropped_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blobs = BlobFolder(tmp_path)
    (tmp_path / "aa" / "a folder").mkdir(parents=True)
    blobs.put("a", b"xyz")

    blobs.trim(0)

    assert blobs.get("a") is None
    assert "a folder cannot be dropped" in caplog.text
