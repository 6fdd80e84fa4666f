import os
from pathlib import Path

import pytest

from ml_backend.errors import ImageError
from ml_backend.images.source import FolderSource
from ml_backend.schemas import ImageRef


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "a.png").write_bytes(b"film")
    (tmp_path / "secret.txt").write_bytes(b"secret")
    return tmp_path / "films"


def ref(uri: str) -> ImageRef:
    return ImageRef(id="7", uri=uri)


def test_reads_a_file_of_the_folder(root: Path) -> None:
    assert FolderSource(root).fetch(ref("a.png")) == b"film"
    assert FolderSource(root).fetch(ref(str(root / "a.png"))) == b"film"


@pytest.mark.parametrize("uri", ["../secret.txt", "/etc/passwd", "x/../../secret.txt", "link"])
def test_refuses_what_lies_outside(root: Path, uri: str) -> None:
    (root / "link").symlink_to(root.parent / "secret.txt")

    with pytest.raises(ImageError, match=r"image 7: .* leads out of"):
        FolderSource(root).fetch(ref(uri))
    with pytest.raises(ImageError, match="leads out of"):
        FolderSource(root).cache_key(ref(uri))


@pytest.mark.parametrize("uri", ["missing.png", ".", "a\0b"])
def test_names_what_cannot_be_read(root: Path, uri: str) -> None:
    with pytest.raises(ImageError, match="image 7"):
        FolderSource(root).fetch(ref(uri))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError(), "missing"),
        (NotADirectoryError(), "missing"),
        (PermissionError(), "forbidden"),
        (TimeoutError(), "timed-out"),
        (OSError(5, "Input/output error"), "unreachable"),
    ],
)
def test_an_error_of_the_disk_has_its_kind(
    root: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, kind: str
) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr(os, "open", fail)

    with pytest.raises(ImageError) as found:
        FolderSource(root).fetch(ref("a.png"))

    assert found.value.kind == kind


def test_no_link_is_followed_that_takes_the_place_of_a_checked_path(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = FolderSource(root)
    checked = root / "a.png"
    monkeypatch.setattr(FolderSource, "_path", lambda *_: checked)
    checked.unlink()
    checked.symlink_to(root.parent / "secret.txt")

    with pytest.raises(ImageError, match=r"image 7: .* cannot be read"):
        source.fetch(ref("a.png"))


def test_a_pipe_is_not_waited_for_and_a_large_file_not_read(root: Path) -> None:
    os.mkfifo(root / "pipe")
    (root / "large.png").write_bytes(bytes(11))

    with pytest.raises(ImageError, match="a folder, a pipe or a device"):
        FolderSource(root).fetch(ref("pipe"))
    with pytest.raises(ImageError, match="has 11 bytes, more than 10"):
        FolderSource(root, max_bytes=10).fetch(ref("large.png"))


def test_key_follows_the_file_and_not_the_task(root: Path) -> None:
    source = FolderSource(root)
    before = source.cache_key(ref("a.png"))

    assert source.cache_key(ImageRef(id="8", uri="./a.png")) == before
    (root / "a.png").write_bytes(b"another film")
    assert source.cache_key(ref("a.png")) != before
