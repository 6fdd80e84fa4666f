"""A file is there whole, or as it was."""

import errno
import os
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from ml_backend.errors import StorageError
from ml_backend.schemas import ImageRef
from ml_backend.storage import atomic
from ml_backend.storage.atomic import (
    ABANDONED_AFTER_S,
    CACHED_RECORDS,
    check_writable,
    new_folder,
    read_cached,
    remove_half_written,
    write_atomically,
    write_record,
)
from tests.fakes import make_image


class PowerCut(BaseException):
    """The process ends here: not an Exception, so that nothing catches it by accident."""


def power_cut(*args: object, **kwargs: object) -> NoReturn:
    raise PowerCut


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestWriteAtomically:
    def test_a_crash_before_the_rename_keeps_the_old_file(self, tmp_path, monkeypatch):
        path = tmp_path / "folder" / "file.json"
        write_atomically(path, b"old")
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", power_cut)
            with pytest.raises(PowerCut):
                write_atomically(path, b"new")

        assert path.read_bytes() == b"old"
        assert names_in(path.parent) == ["file.json"]


class TestWithoutParents:
    def test_does_not_make_a_folder_again_that_was_removed(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            write_atomically(tmp_path / "gone" / "file", b"late", parents=False)

        assert names_in(tmp_path) == []


class TestFolderBeside:
    def test_takes_its_name_when_it_is_whole(self, tmp_path):
        with new_folder(tmp_path / "a" / "b") as folder:
            (folder / "file").write_text("x")
            assert not (tmp_path / "a" / "b").exists()

        assert names_in(tmp_path / "a" / "b") == ["file"]

    def test_is_gone_when_the_block_fails(self, tmp_path):
        with pytest.raises(PowerCut), new_folder(tmp_path / "a" / "b"):
            raise PowerCut

        assert names_in(tmp_path / "a") == []


class TestReadCached:
    def test_is_parsed_again_only_after_a_change(self, tmp_path):
        path = tmp_path / "image.json"
        write_record(path, make_image(1))
        first = read_cached(path, ImageRef)

        assert first == make_image(1)
        assert read_cached(path, ImageRef) is first

        write_record(path, make_image(12))
        assert read_cached(path, ImageRef) == make_image(12)
        path.unlink()
        assert read_cached(path, ImageRef) is None

    def test_holds_the_last_records_and_of_each_file_the_newest(self, tmp_path):
        for number in range(CACHED_RECORDS + 5):
            write_record(tmp_path / f"{number}.json", make_image(1))
            read_cached(tmp_path / f"{number}.json", ImageRef)
        for number in range(CACHED_RECORDS):
            write_record(tmp_path / "often.json", make_image(number))
            read_cached(tmp_path / "often.json", ImageRef)
        last = tmp_path / f"{CACHED_RECORDS + 4}.json"

        assert len(atomic._CACHE) == CACHED_RECORDS
        assert read_cached(last, ImageRef) is read_cached(last, ImageRef)
        assert (tmp_path / "5.json", ImageRef) not in atomic._CACHE

    def test_of_large_files_fewer(self, tmp_path, monkeypatch):
        monkeypatch.setattr(atomic, "CACHED_BYTES", 1000)
        for number in range(3):
            write_record(tmp_path / f"{number}.json", ImageRef(id="1", uri="x" * 600))
            read_cached(tmp_path / f"{number}.json", ImageRef)

        assert [path.name for path, _ in atomic._CACHE] == ["2.json"]


class TestRemoveHalfWritten:
    def test_what_was_not_touched_for_long_and_only_that(self, tmp_path):
        """Younger ones may be the server's, which writes beside us."""
        for name in (".published.json.ab12", ".connection.json.cd34", "published.json"):
            (tmp_path / name).write_text("x")
        (tmp_path / ".folder").mkdir()
        old = time.time() - ABANDONED_AFTER_S - 1
        for name in (".published.json.ab12", "published.json", ".folder"):
            os.utime(tmp_path / name, (old, old))

        remove_half_written(tmp_path)

        assert names_in(tmp_path) == [".connection.json.cd34", ".folder", "published.json"]

    def test_a_folder_that_is_not_there(self, tmp_path):
        remove_half_written(tmp_path / "none")


class TestCheckWritable:
    def test_leaves_nothing_and_makes_the_folder_where_it_may(self, tmp_path):
        with pytest.raises(StorageError, match="No such file or directory"):
            check_writable(tmp_path / "a" / "b")
        check_writable(tmp_path / "a" / "b", make=True)
        check_writable(tmp_path / "a" / "b")

        assert list(tmp_path.rglob("*")) == [tmp_path / "a", tmp_path / "a" / "b"]

    @pytest.mark.parametrize(
        ("number", "way_out"),
        [
            (errno.EACCES, f"`chown -R {os.geteuid()}:{os.getegid()} "),
            (errno.EROFS, "mount it for writing"),
            (errno.ENOSPC, "make room on its disk"),
            (errno.ENOENT, "make it"),
        ],
    )
    def test_names_the_way_out(self, tmp_path, monkeypatch, number, way_out):
        """As the system refuses; root may write anywhere."""

        def refuse(**_: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("ml_backend.storage.atomic.tempfile.TemporaryFile", refuse)

        with pytest.raises(StorageError) as refused:
            check_writable(tmp_path)

        assert f"the data folder {tmp_path} cannot be written by user {os.geteuid()}:" in str(refused.value)
        assert way_out in str(refused.value)
        assert "AL_DATA_DIR" in str(refused.value)

    def test_names_a_folder_of_a_project_that_cannot_be_written(self, tmp_path, monkeypatch):
        """As the system refuses; root may write anywhere. A file that lies among the projects is none of them."""
        place, write = tmp_path / "projects" / "2.1", tempfile.TemporaryFile
        place.mkdir(parents=True)
        (tmp_path / "projects" / "notes.txt").touch()
        check_writable(tmp_path)

        def refuse(**given: Any) -> Any:
            if given["dir"] == place:
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))
            return write(**given)

        monkeypatch.setattr("ml_backend.storage.atomic.tempfile", SimpleNamespace(TemporaryFile=refuse))
        monkeypatch.setattr("ml_backend.storage.atomic.os.access", lambda path, _: path != place)

        with pytest.raises(StorageError, match=rf"^{place} in the data folder {tmp_path} cannot be .* `chown -R "):
            check_writable(tmp_path)
