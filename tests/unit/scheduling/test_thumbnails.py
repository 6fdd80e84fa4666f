"""Pictures of what a round chose: the batch and what stands by chance, and never a reason for a round to fail."""

import io
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ml_backend.analytics.history import HELD_OUT, PREVIEWS, HeldOutPredictions, ImageInsight, StrategyPreviews
from ml_backend.config import Settings
from ml_backend.images import FolderSource
from ml_backend.images.thumbnail import SIDE, thumbnail
from ml_backend.label_studio.images import LabelStudioImages
from ml_backend.label_studio.sync import CachedTask, TaskCache
from ml_backend.scheduling.queue import SHUTDOWN
from ml_backend.scheduling.worker import (
    DRAWN_LATER,
    MAX_THUMBNAILS,
    _more_images,
    chosen_images,
    draw_images,
    draw_thumbnails,
)
from ml_backend.schemas import Connection, HeldOutImage, ImageRef, Ranking
from ml_backend.storage import RoundStore
from ml_backend.storage.outputs import Embedding
from ml_backend.storage.project_state import SQUASHED, ReadingStore, Thumbnails
from tests.fakes import NOON, make_report
from tests.unit.server.memory import PROJECT, payload


def film(path: Path, width: int = 300, height: int = 300) -> bytes:
    levels = np.linspace(0, 255, width * height).reshape(height, width).astype(np.uint8)
    Image.fromarray(levels).save(path, "PNG")
    return path.read_bytes()


class TestThumbnail:
    def test_is_a_small_grey_jpeg(self):
        picture = Image.open(io.BytesIO(thumbnail(np.full((SIDE, SIDE), 90, np.uint8), (500, 500))))

        assert (picture.format, picture.mode, picture.size) == ("JPEG", "L", (SIDE, SIDE))
        assert abs(int(picture.getpixel((5, 5)) or 0) - 90) <= 2  # type: ignore[arg-type] # of one channel

    @pytest.mark.parametrize(
        ("film", "shown"),
        [((3000, 1500), (512, 256)), ((1500, 3000), (256, 512)), ((2048, 2500), (419, 512)), ((9000, 10), (512, 1))],
    )
    def test_has_the_proportions_of_its_film(self, film, shown):
        picture = Image.open(io.BytesIO(thumbnail(np.zeros((SIDE, SIDE), np.uint8), film)))

        assert picture.size == shown

    def test_a_wide_film_is_not_squashed_and_nothing_of_it_is_cut_off(self):
        """A bright stripe at the right edge of the square is there at the right edge of the picture."""
        square = np.zeros((SIDE, SIDE), np.uint8)
        square[:, 200:] = 250

        picture = np.asarray(Image.open(io.BytesIO(thumbnail(square, (2000, 1000)))))

        assert picture[:, 205:].mean() > 240
        assert picture[:, :190].mean() < 10

    def test_a_small_square_is_not_blown_up(self):
        assert Image.open(io.BytesIO(thumbnail(np.zeros((64, 64), np.uint8), (20, 10)))).size == (64, 32)


class TestDrawing:
    def test_the_batch_and_what_stands_by_chance(self):
        names = ("5", "4", "3", "2", "1")
        ranking = Ranking(strategy="x", image_ids=names, scores=(5, 4, 3, 2, 1), batch_size=2, control=("4", "2"))

        assert chosen_images(make_report().model_copy(update={"ranking": ranking})) == ["5", "4", "2"]
        report = make_report().model_copy(update={"ranking": ranking})
        assert chosen_images(report, ["1", "4"]) == ["5", "4", "2", "1"]

    def test_further_images_displace_no_image_of_the_holdout(self):
        names = tuple(str(number) for number in range(300))
        ranking = Ranking(
            strategy="x", image_ids=names, scores=(0.5,) * 300, batch_size=100, control=names[:10] + names[200:290]
        )
        report = make_report().model_copy(update={"ranking": ranking})

        found = chosen_images(report, (f"more-{number}" for number in range(MAX_THUMBNAILS)))

        assert len(found) == MAX_THUMBNAILS
        assert set(names[:100] + names[200:290]) <= set(found)

    def test_what_cannot_be_read_is_left_out(self, tmp_path):
        film(tmp_path / "1.png")
        images = [ImageRef(id="1", uri="1.png"), ImageRef(id="2", uri="missing.png")]

        assert [name for name, _ in draw_images(images, FolderSource(tmp_path))] == ["1"]

    def test_none_once_the_worker_is_asked_to_stop(self, tmp_path, monkeypatch):
        film(tmp_path / "1.png")
        monkeypatch.setattr(SHUTDOWN, "signal", signal.SIGTERM)

        assert list(draw_images([ImageRef(id="1", uri="1.png")], FolderSource(tmp_path))) == []

    def test_only_kept_pictures_while_a_round_waits(self, tmp_path):
        film(tmp_path / "1.png")
        images, kept = [ImageRef(id="1", uri="1.png"), ImageRef(id="2", uri="2.png")], {"2": b"kept"}

        found = list(draw_images(images, FolderSource(tmp_path), kept.get, lambda: True))

        assert found == [("2", b"kept")]

    def test_in_the_proportions_of_the_film(self, tmp_path):
        film(tmp_path / "1.png", 400, 200)
        [(_, content)] = draw_images([ImageRef(id="1", uri="1.png")], FolderSource(tmp_path))

        assert Image.open(io.BytesIO(content)).size == (SIDE, SIDE // 2)

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
        tasks = {2: CachedTask(data=data), 1: CachedTask(data={})}
        project = store.project(PROJECT)
        ReadingStore(project.folder).keep_mirror(TaskCache(read_at=NOON, whole_at=NOON, tasks=tasks))
        settings = Settings(data_dir=tmp_path, label_studio_url="http://127.0.0.1:1", label_studio_api_key="k")

        assert draw_thumbnails(settings, PROJECT, make_report()) == 1
        assert Thumbnails(project.folder).of_round("r000001") == {"2"}

        # And what network and reader disagree about, though no round has chosen it.
        project.readings.keep_mirror(TaskCache(read_at=NOON, whole_at=NOON, tasks=tasks | {9: CachedTask(data=data)}))
        found = HeldOutImage(image_id="9", label="severe", probs={"normal": 0.9, "severe": 0.1})
        project.set_record("r000001", HELD_OUT, HeldOutPredictions(images=(found,)))
        assert draw_thumbnails(settings, PROJECT, make_report()) == 2
        assert project.thumbnails.of_round("r000001") == {"2", "9"}

    def test_what_previews_show_first_is_drawn_before_what_they_show_later(self, store):
        def image(name):
            return ImageInsight(image_id=name, place=1, probs={"a": 1.0}, score=0, aleatoric=0, epistemic=0)

        first = {one: tuple(image(f"{one}{place}") for place in range(100)) for one in ("x", "y")}
        found = HeldOutImage(image_id="9", label="severe", probs={"normal": 0.9, "severe": 0.1})
        project = store.project(PROJECT)
        project.set_record("r000001", PREVIEWS, StrategyPreviews(first=first))
        project.set_record("r000001", HELD_OUT, HeldOutPredictions(images=(found,)))

        report = make_report()  # of images 2 and 1, in batches of 1
        for images, alike in (("21", ["1"]), ("2345", ["3", "4", "5"]), ("34", [])):
            near = np.ones((len(images), 3), np.float16)
            project.set_embedding(Embedding("r000001", "", tuple(images), near, 0.5))
            names = _more_images(project, report)

            assert names[:2] + names[12:-DRAWN_LATER] == ["x0", "y0", *alike, "9"]
            assert names[-DRAWN_LATER:][:2] == ["x6", "y6"]

    def test_a_picture_that_a_round_keeps_is_not_drawn_again(self, store, tmp_path, monkeypatch):
        """But for one of a version that drew them smaller. Nothing is added to the cache of pixels."""
        import base64

        source = f"data:image/png;base64,{base64.b64encode(film(tmp_path / 'x.png')).decode()}"
        project = store.project(PROJECT)
        tasks = {number: CachedTask(data={"image": source}) for number in (1, 2, 3)}
        project.readings.keep_mirror(TaskCache(read_at=NOON, whole_at=NOON, tasks=tasks))
        large, small = (thumbnail(np.zeros((side, side), np.uint8), (1, 1)) for side in (SIDE, SIDE // 2))
        Thumbnails(project.folder).keep("r000001", [("2", large), ("1", small)])
        report = make_report("r000002")
        ranking = Ranking(strategy="x", image_ids=("1", "2", "3"), scores=(0.5,) * 3, batch_size=3)
        report = report.model_copy(update={"ranking": ranking})
        project.save(report, None, None)
        fetched, fetch = list[str](), LabelStudioImages.fetch

        def noted(self: LabelStudioImages, image: ImageRef) -> bytes:
            fetched.append(image.id)
            return fetch(self, image)

        monkeypatch.setattr(LabelStudioImages, "fetch", noted)
        settings = Settings(data_dir=tmp_path, label_studio_url="http://127.0.0.1:1", label_studio_api_key="k")

        assert draw_thumbnails(settings, PROJECT, report) == 3
        assert fetched == ["1", "3"]
        assert Thumbnails(project.folder).read("r000002", "2") == large
        assert not list(store.cache.rglob("pixels/*/*"))

    def test_squares_are_kept_while_a_round_waits(self, store, tmp_path):
        """Rather than removed for pictures that nobody has drawn."""
        project = store.project(PROJECT)
        project.readings.keep_mirror(TaskCache(read_at=NOON, whole_at=NOON, tasks={2: CachedTask(data={"image": "x"})}))
        (project.folder / "rounds/r000001" / SQUASHED).mkdir()
        project.save(make_report("r000002"), None, None)
        settings = Settings(data_dir=tmp_path, label_studio_url="http://127.0.0.1:1", label_studio_api_key="k")

        assert draw_thumbnails(settings, PROJECT, make_report("r000002"), lambda: True) == 0
        assert Thumbnails(project.folder).squashed() == ["r000001"]

    def test_squares_of_an_earlier_version_are_drawn_again_a_few_at_a_time(self, store, tmp_path):
        """The newest first; one whose round is damaged keeps none of the others waiting."""
        import base64

        data = {"image": f"data:image/png;base64,{base64.b64encode(film(tmp_path / 'x.png', 400, 200)).decode()}"}
        project = store.project(PROJECT)
        ReadingStore(project.folder).keep_mirror(
            TaskCache(read_at=NOON, whole_at=NOON, tasks={2: CachedTask(data=data)})
        )
        for number in range(1, 6):
            if number > 1:
                project.save(make_report(f"r{number:06d}"), None, None)
            (project.folder / "rounds" / f"r{number:06d}" / SQUASHED).mkdir()
        (project.folder / "rounds/r000004/report.json").write_text("{")
        settings = Settings(data_dir=tmp_path, label_studio_url="http://127.0.0.1:1", label_studio_api_key="k")

        draw_thumbnails(settings, PROJECT, make_report("r000005"))

        thumbnails = Thumbnails(project.folder)
        assert thumbnails.squashed() == ["r000004", "r000001"]
        for round_id in ("r000005", "r000003", "r000002"):
            picture = thumbnails.read(round_id, "2")
            assert picture is not None
            assert Image.open(io.BytesIO(picture)).size == (SIDE, SIDE // 2)

    def test_nothing_was_read_yet(self, store, tmp_path):
        assert draw_thumbnails(Settings(data_dir=tmp_path), PROJECT, make_report()) == 0
