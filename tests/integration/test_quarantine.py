"""Rounds over a folder with bad images in it: the real folder, cache, threads and list."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ml_backend.errors import ImageError
from ml_backend.images.cache import DecodedImage, ImageCache
from ml_backend.images.dataset import read_ahead
from ml_backend.images.quarantine import STREAK, QuarantinedSource
from ml_backend.images.source import FolderSource
from ml_backend.schemas import Exclusion, ImageRef
from ml_backend.storage.project_state import Quarantine

BAD = {"3": b"", "14": b"<html>log in", "15": b"\x89PNG\r\n\x1a\n half a film", "26": None}
POOL = [ImageRef(id=str(number), uri=f"{number}.png") for number in range(40)]


class CountingFolder(FolderSource):
    """Counts what is fetched, and can be unplugged."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.fetched: list[str] = []
        self.unplugged = False

    def fetch(self, image: ImageRef) -> bytes:
        self.fetched.append(image.id)
        if self.unplugged:
            raise ImageError(f"image {image.id}: no answer", "unreachable")
        return super().fetch(image)


class Project:
    """A pool in a folder, and rounds that read all of it."""

    def __init__(self, root: Path) -> None:
        self.films = root / "films"
        self.films.mkdir()
        for image in POOL:
            levels = np.full((40, 40), 5 * int(image.id), np.uint8)
            Image.fromarray(levels).save(self.films / image.uri)
        self.now = datetime(2026, 11, 23, tzinfo=UTC)
        self.folder = CountingFolder(self.films)
        self.quarantine = Quarantine(root / "project", lambda: self.now)
        self.cache_folder = root / "cache"

    def spoil(self) -> None:
        for number, content in BAD.items():
            path = self.films / f"{number}.png"
            if content is None:
                path.unlink()
            else:
                path.write_bytes(content)

    def round(self) -> dict[str, str]:
        """The images that were left out, with their reasons; the others have their pixels."""
        self.folder.fetched.clear()
        source = QuarantinedSource(self.folder, self.quarantine)
        cache = ImageCache(source, self.cache_folder, 32)
        left_out = {}
        with self.quarantine.settled():
            for image, result in read_ahead(POOL, cache.read):
                if isinstance(result, Exclusion):
                    left_out[image.id] = result.reason
                else:
                    assert isinstance(result, DecodedImage)
                    assert (result.pixels == 5 * int(image.id)).all()
        return left_out


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def test_bad_images_are_left_out_by_name_and_not_fetched_again(project):
    project.spoil()

    first = project.round()
    second = project.round()

    assert set(first) == set(second) == set(BAD)
    assert "the file is empty" in first["3"]
    assert "HTML" in first["14"]
    assert "not tried again before 2026-11-23 00:01 UTC" in second["15"]
    assert project.folder.fetched == []
    assert {entry.image_id: entry.trouble for entry in project.quarantine.listed()} == {
        "3": "empty",
        "14": "not-an-image",
        "15": "damaged",
        "26": "missing",
    }


def test_a_file_that_was_put_right_is_read_in_the_next_round(project):
    project.spoil()
    project.round()
    for number in BAD:
        Image.fromarray(np.full((40, 40), 5 * int(number), np.uint8)).save(project.films / f"{number}.png")

    assert project.round() == {}
    assert sorted(project.folder.fetched) == sorted(BAD)
    assert project.quarantine.listed() == ()


def test_a_source_that_is_down_costs_few_requests_and_fills_no_list(project):
    project.folder.unplugged = True

    left_out = project.round()

    assert len(left_out) == len(POOL)
    assert STREAK <= len(project.folder.fetched) < len(POOL)
    assert project.quarantine.listed() == ()

    project.folder.unplugged = False
    project.now += timedelta(seconds=1)
    assert project.round() == {}
