"""Pictures of what a round chose: the batch and what stands by chance, and never a reason for a round to fail."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ml_backend.images import FolderSource, ImageCache
from ml_backend.images.thumbnail import SIDE, thumbnail
from ml_backend.label_studio.mirror import KeptTask, Mirror
from ml_backend.records import Connection, ImageRef, Ranking
from ml_backend.settings import Settings
from ml_backend.storage import RoundStore
from ml_backend.storage.annotations import ReadingStore
from ml_backend.storage.thumbnails import Thumbnails
from ml_backend.worker.thumbnails import chosen_images, draw_thumbnails, pictures
from tests.fakes import NOON, make_report
from tests.unit.server.memory import PROJECT, payload


def film(path: Path, side: int = 300) -> bytes:
    levels = np.linspace(0, 255, side * side).reshape(side, side).astype(np.uint8)
    Image.fromarray(levels).save(path, "PNG")
    return path.read_bytes()


class TestThumbnail:
    def test_is_a_small_grey_jpeg(self):
        picture = Image.open(io.BytesIO(thumbnail(np.full((224, 224), 90, np.uint8))))

        assert (picture.format, picture.mode, picture.size) == ("JPEG", "L", (SIDE, SIDE))
        assert abs(int(picture.getpixel((5, 5)) or 0) - 90) <= 2  # type: ignore[arg-type] # of one channel


class TestDrawing:
    def test_the_batch_and_what_stands_by_chance(self):
        names = ("5", "4", "3", "2", "1")
        ranking = Ranking(strategy="x", image_ids=names, scores=(5, 4, 3, 2, 1), batch_size=2, control=("4", "2"))

        assert chosen_images(make_report().model_copy(update={"ranking": ranking})) == ["5", "4", "2"]

    def test_what_cannot_be_read_is_left_out(self, tmp_path):
        film(tmp_path / "1.png")
        cache = ImageCache(FolderSource(tmp_path), tmp_path / "cache", 224)
        images = [ImageRef(id="1", uri="1.png"), ImageRef(id="2", uri="missing.png")]

        assert [name for name, _ in pictures(images, cache)] == ["1"]

    @pytest.fixture
    def store(self, tmp_path):
        store, setup = RoundStore(tmp_path), payload("setup")
        store.connect(Connection(project=PROJECT, hostname="http://ls", label_config=setup["schema"]))
        store.project(PROJECT).save(make_report(), None, None)
        return store

    def test_of_a_saved_round(self, store, tmp_path):
        """An image that stands in its task needs no service."""
        import base64

        data = {"image": f"data:image/png;base64,{base64.b64encode(film(tmp_path / 'x.png')).decode()}"}
        tasks = {2: KeptTask(data=data), 1: KeptTask(data={})}
        project = store.project(PROJECT)
        ReadingStore(project.folder).keep_mirror(Mirror(read_at=NOON, whole_at=NOON, tasks=tasks))
        settings = Settings(data_dir=tmp_path, label_studio_url="http://127.0.0.1:1", label_studio_api_key="k")

        assert draw_thumbnails(settings, PROJECT, make_report()) == 1
        assert Thumbnails(project.folder).of_round("r000001") == {"2"}

    def test_nothing_was_read_yet(self, store, tmp_path):
        assert draw_thumbnails(Settings(data_dir=tmp_path), PROJECT, make_report()) == 0
