import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from ml_backend.config import ProjectOptions
from ml_backend.errors import RoundError, SettingsError, WeightsError
from ml_backend.images.cache import TABLE, DiskCache, ImageCache
from ml_backend.images.dataset import THREADS
from ml_backend.images.source import FolderSource
from ml_backend.images.transforms import to_input
from ml_backend.model import data
from ml_backend.model.backbones import Backbone
from ml_backend.model.checkpoint import load_checkpoint
from ml_backend.model.data import _TABLE_BATCH, FeatureExtractor, FeatureTable, TableBackbone, TableFeatures
from ml_backend.model.hardware import Precision
from ml_backend.model.inference import SHARD_IMAGES
from ml_backend.model.learner import McDropoutLearner
from ml_backend.registry import Need
from ml_backend.rounds.interfaces import Learner
from ml_backend.schemas import ImageRef, Label
from tests.unit.model.synthetic_images import CLASSES, RandomImages, random_refs

CPU = Precision(torch.device("cpu"))
ALL: frozenset[Need] = frozenset({"probs", "features", "gradients"})


def entries(folder: Path) -> int:
    with closing(sqlite3.connect(folder / TABLE)) as table:
        return int(table.execute("SELECT count(*) FROM entry").fetchone()[0])


class _Repeated(RandomImages):
    """Three images, again and again, each under an address of its own."""

    def fetch(self, image: ImageRef) -> bytes:
        return super().fetch(ImageRef(id=image.id, uri=str(int(image.uri) % 3)))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    backbone = Backbone("shufflenet_v2_x0_5")
    # Normalisations that are not the identity, so that folding them shows.
    for name, buffer in backbone.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0.0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
    return backbone.eval()


class TestFeatureExtractor:
    @pytest.fixture
    def images(self, tmp_path: Path) -> ImageCache:
        return ImageCache(RandomImages(), tmp_path / "images", 32)

    @staticmethod
    def features(
        folder: Path, backbone: Backbone, images: ImageCache, count: int = 3, precision: Precision = CPU
    ) -> torch.Tensor:
        """Of the first images, cached in a folder."""
        extractor = FeatureExtractor(backbone, images, precision, folder / "features")
        return extractor.all(random_refs(count), list[int]().append).features

    def test_readable_images_in_order(self, tmp_path: Path, backbone: Backbone, images: ImageCache) -> None:
        seen: list[int] = []

        batch = FeatureExtractor(backbone, images, CPU, tmp_path / "features").all(random_refs(20), seen.append)

        assert [image.uri for image in batch.images] == [str(index) for index in range(20) if index % 7 != 3]
        assert [exclusion.image_id for exclusion in batch.exclusions] == ["task 3", "task 10", "task 17"]
        assert batch.exclusions[0].reason == "image 3 is gone"
        assert seen[-1] == 20
        pixels = torch.stack([torch.from_numpy(images.read(image).pixels.copy()) for image in batch.images])
        with torch.inference_mode():
            expected = backbone(to_input(pixels))
        # Folded and channels_last: the same to rounding.
        assert torch.allclose(batch.features, expected, rtol=1e-3, atol=1e-5)

    def test_computed_once_an_image(self, tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
        """Under any id of the image, and without its pixels."""
        source = RandomImages()
        images = ImageCache(source, tmp_path / "images", 32)
        first = self.features(tmp_path, backbone, images)
        again = FeatureExtractor(backbone, images, CPU, tmp_path / "features")

        def refuse(pixels: object) -> None:
            raise AssertionError("the backbone ran again")

        monkeypatch.setattr(again, "run", refuse)
        shutil.rmtree(tmp_path / "images" / "pixels")
        renamed = [ImageRef(id=f"new {image.id}", uri=image.uri) for image in random_refs(3)]

        assert torch.equal(again.all(renamed, list[int]().append).features, first)
        assert sorted(source.fetched) == ["0", "1", "2"]

    def test_other_weights_have_other_features(self, tmp_path: Path, backbone: Backbone, images: ImageCache) -> None:
        first = self.features(tmp_path, backbone, images)

        assert not torch.allclose(self.features(tmp_path, Backbone("shufflenet_v2_x0_5"), images), first)

    @pytest.mark.parametrize("precision", [replace(CPU, channels_last=False), replace(CPU, dtype=torch.bfloat16)])
    def test_each_precision_is_cached_under_its_own_name(
        self, tmp_path: Path, backbone: Backbone, images: ImageCache, precision: Precision
    ) -> None:
        found = [self.features(tmp_path, backbone, images, 2, each) for each in (CPU, precision, CPU)]

        assert torch.equal(found[0], found[2])
        assert found[1].dtype == torch.float32
        assert torch.allclose(found[0], found[1], atol=0.1 * float(found[0].abs().max()))
        assert entries(tmp_path / "features") == 4

    def test_cached_features_are_bounded(
        self,
        tmp_path: Path,
        backbone: Backbone,
        images: ImageCache,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Of 4,100 bytes each, in a table that takes 28,000 itself; the log names the limit that is needed."""
        monkeypatch.setattr(data, "PAGE_BYTES", 4096)
        extractor = FeatureExtractor(backbone, images, CPU, tmp_path / "features", limit_bytes=70_000)

        extractor.all(random_refs(30), list[int]().append)
        extractor.trim()

        assert 5 <= entries(tmp_path / "features") <= 12
        for _ in range(2):
            extractor.all(random_refs(30), list[int]().append)
        assert caplog.text.count("AL_CACHE_GB=7e-05 holds the features of 15 of 30 images") == 1
        assert "again in each round: set AL_CACHE_GB=0.1 or more" in caplog.text

    def test_a_cache_that_is_too_small_for_the_pixels(
        self, tmp_path: Path, backbone: Backbone, caplog: pytest.LogCaptureFixture
    ) -> None:
        images = ImageCache(RandomImages(), tmp_path / "images", 32, limit_bytes=120_000)
        FeatureExtractor(backbone, images, CPU, None).all(random_refs(30), list[int]().append)

        assert "AL_CACHE_GB=0.00011 holds the pixels of 26 of 30 images" in caplog.text

    def test_damaged_entries_are_computed_again(self, tmp_path: Path, backbone: Backbone, images: ImageCache) -> None:
        first = self.features(tmp_path, backbone, images)
        with closing(sqlite3.connect(tmp_path / "features" / TABLE)) as table, table:
            assert table.execute("UPDATE entry SET value = substr(value, 1, 400)").rowcount == 3

        assert torch.allclose(self.features(tmp_path, backbone, images), first)

    def test_features_of_an_earlier_version_are_taken_over(
        self, tmp_path: Path, backbone: Backbone, images: ImageCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A file an image; those that are not asked for make room first."""
        batch = FeatureExtractor(backbone, images, CPU, tmp_path / "new").all(random_refs(3), list[int]().append)
        monkeypatch.setattr(data, "PAGE_BYTES", 4096)
        files = DiskCache(tmp_path / "features")
        for key, row in zip(batch.keys, batch.features.numpy(), strict=True):
            files.put(key, row.astype("<f4").tobytes())
        files.put("unused", bytes(4096))
        extractor = FeatureExtractor(backbone, images, CPU, tmp_path / "features", limit_bytes=40_000)
        monkeypatch.setattr(extractor, "run", None)

        for _ in range(2):
            assert torch.equal(extractor.all(random_refs(3), list[int]().append).features, batch.features)
        assert (entries(tmp_path / "features"), len(list((tmp_path / "features").glob("*/*")))) == (3, 1)
        extractor.trim()
        assert (entries(tmp_path / "features"), len(list((tmp_path / "features").glob("*/*")))) == (3, 0)

    def test_a_run_that_was_stopped_goes_on_where_it_was(
        self, tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What it has read ahead is in the cache too."""
        source = RandomImages()
        refs = [image for image in random_refs(170) if int(image.uri) % 7 != 3]
        images = ImageCache(source, tmp_path / "images", 32)
        batches = FeatureExtractor(backbone, images, CPU, tmp_path / "features").batches(refs)
        done = sum(next(batches).total for _ in range(3))
        del batches
        again = FeatureExtractor(backbone, ImageCache(source, tmp_path / "images", 32), CPU, tmp_path / "features")
        ran, run = list[int](), again.run

        def counting(pixels: torch.Tensor) -> torch.Tensor:
            ran.append(len(pixels))
            return run(pixels)

        monkeypatch.setattr(again, "run", counting)
        assert again.all(refs, list[int]().append).total == len(refs)

        assert sum(ran) == len(refs) - done
        assert {*source.fetched} == {image.uri for image in refs}
        assert len(source.fetched) <= len(refs) + THREADS  # those that were being fetched at the stop may come twice

    def test_equal_images_far_apart(self, tmp_path: Path, backbone: Backbone) -> None:
        """Each gets its own features, whether its content is known, or of an image before it."""
        images = ImageCache(_Repeated(), tmp_path / "images", 32)
        refs = [ImageRef(id=str(n), uri=str(n)) for n in range(40)]
        for image in refs[20:]:
            images.read(image)

        batch = FeatureExtractor(backbone, images, CPU, tmp_path / "features").all(refs, list[int]().append)

        assert [image.id for image in batch.images] == [image.id for image in refs]
        assert len({row.tobytes() for row in batch.features.numpy()}) == 3
        assert torch.equal(batch.features, batch.features[:3].repeat(14, 1)[:40])

    def test_without_a_folder_nothing_is_cached_and_the_backbone_is_left_alone(
        self, tmp_path: Path, images: ImageCache
    ) -> None:
        backbone = Backbone("shufflenet_v2_x0_5").train()
        before = backbone.digest()
        FeatureExtractor(backbone, images, CPU, None).all(random_refs(2), list[int]().append)

        assert [path.name for path in tmp_path.iterdir()] == ["images"]
        assert backbone.training
        assert backbone.digest() == before

    def test_no_image(self, backbone: Backbone, images: ImageCache) -> None:
        extractor = FeatureExtractor(backbone, images, CPU, None)

        assert extractor.all([], list[int]().append).features.shape == (0, 1024)
        assert extractor.all(random_refs(4)[3:], list[int]().append).features.shape == (0, 1024)


def refs(*numbers: int) -> list[ImageRef]:
    return [ImageRef(id=f"{number}.png", uri=f"{number}.png") for number in numbers]


def clouds(count: int, seed: int = 0) -> tuple[FeatureTable, list[Label]]:
    """A row an image, in overlapping clouds, one a class; image n.png is of class n % 3."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(3, 20))
    rows = (centres[np.arange(count) % 3] + rng.normal(size=(count, 20))).astype(np.float32)
    labels = [Label(image=image, value=CLASSES[n % 3], raters=1) for n, image in enumerate(refs(*range(count)))]
    return FeatureTable([label.image.id for label in labels], rows), labels


class TestFeatureTable:
    def test_finds_rows_by_id(self) -> None:
        rows = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], dtype=np.float32)
        table = FeatureTable(["0.png", "1.png", "2.png"], rows)
        rows[:] = 0.0  # the table has a copy

        batch = table.find(refs(2, 7, 0))

        assert batch.images == tuple(refs(2, 0))
        assert batch.features.tolist() == [[5.0, 6.0], [1.0, 2.0]]
        assert [each.image_id for each in batch.exclusions] == ["7.png"]
        assert batch.exclusions[0].reason == "image 7.png has no row in the table of features"
        assert table.find(refs(8)).features.shape == (0, 2)
        assert table.dims == 2

    def test_digest_covers_ids_and_values(self) -> None:
        rows = np.ones((2, 3), dtype=np.float32)
        digest = FeatureTable(["a", "b"], rows).digest

        assert FeatureTable(["a", "b"], rows.copy()).digest == digest
        assert FeatureTable(["b", "a"], rows).digest != digest
        rows[1, 2] = 2.0
        assert FeatureTable(["a", "b"], rows).digest != digest

    @pytest.mark.parametrize(
        ("ids", "rows", "message"),
        [
            ([], np.empty((0, 3)), r"not empty, got shape \(0, 3\)"),
            (["a"], np.ones(3), r"a table \[images, dims\].*got shape \(3,\)"),
            (["a"], np.ones((2, 3)), "1 image ids, but features of 2 images"),
            (["a", "b", "a"], np.ones((3, 1)), "image 'a' has two rows"),
            (["a", "b"], np.array([[1.0, 2.0], [1.0, np.nan]]), "features of image 'b' are not all finite"),
        ],
    )
    def test_invalid(self, ids: list[str], rows: np.ndarray[Any, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            FeatureTable(ids, rows.astype(np.float32))


class TestTableFeatures:
    def test_batches(self) -> None:
        table, _ = clouds(600)
        features, seen = TableFeatures(table, CPU.device), list[int]()
        images = refs(*range(700))

        batch = features.all(images, seen.append)

        assert torch.equal(batch.features, table.find(images).features)
        assert len(batch.exclusions) == 100
        assert seen == [256, 512, 700]
        assert features.all([], seen.append).features.shape == (0, 20)
        assert SHARD_IMAGES % _TABLE_BATCH == 0

    def test_there_is_no_backbone(self) -> None:
        table, _ = clouds(3)

        with pytest.raises(RoundError, match="no images to run a backbone over"):
            TableFeatures(table, CPU.device).run(torch.zeros(1, 8, 8, dtype=torch.uint8))
        with pytest.raises(RoundError, match="no images to run a backbone over"):
            TableBackbone(table)(torch.zeros(1, 3, 8, 8))


class TestLearnerOnATable:
    OPTIONS = ProjectOptions(passes=6, epochs=10, learning_rate=1e-3)

    def learner(
        self, table: FeatureTable | None, folder: Path, warm_from: Path | None = None, **changes: Any
    ) -> McDropoutLearner:
        options = self.OPTIONS.model_copy(update=changes)
        cache = folder / "cache"
        return McDropoutLearner(options, FolderSource(folder), cache, device="cpu", warm_from=warm_from, table=table)

    def test_a_whole_round(self, tmp_path: Path) -> None:
        table, labels = clouds(120)
        learner: Learner = self.learner(table, tmp_path)
        learner.prepare([label.image for label in labels])

        report = learner.fit(labels[:60], labels[60:90], CLASSES)
        outputs = learner.outputs([*(label.image for label in labels[90:]), *refs(500)], ALL)

        assert report.validation_accuracy > 0.8
        assert (report.train_images, report.validation_images) == (60, 30)
        assert outputs.probs.shape == (30, 6, 3)
        truth = [CLASSES.index(label.value) for label in labels[90:]]
        assert (outputs.probs.mean(axis=1).argmax(axis=1) == truth).mean() > 0.8
        assert [each.image_id for each in outputs.exclusions] == ["500.png"]
        assert outputs.features is not None
        assert np.array_equal(outputs.features, table.find([label.image for label in labels[90:]]).features.numpy())
        assert outputs.labelled_features is not None
        assert outputs.labelled_features.shape == (90, 20)
        assert outputs.gradients is not None
        assert list(tmp_path.iterdir()) == []  # no image is read, nothing is cached

    def test_a_label_without_a_row_is_named(self, tmp_path: Path) -> None:
        table, labels = clouds(40)
        unknown = Label(image=refs(900)[0], value="normal", raters=1)

        report = self.learner(table, tmp_path, epochs=1).fit([*labels[:20], unknown], labels[20:], CLASSES)

        assert [each.image_id for each in report.exclusions] == ["900.png"]

    def test_saved_network(self, tmp_path: Path) -> None:
        """Restored with the same bits, starting point of a warm start, and useless without its table."""
        table, labels = clouds(60)
        images = [label.image for label in labels[40:]]
        first, restored = self.learner(table, tmp_path), self.learner(table, tmp_path)
        first.fit(labels[:30], labels[30:40], CLASSES)
        first.save(str(tmp_path))
        path = tmp_path / "model.safetensors"

        restored.restore(str(tmp_path))
        warm = self.learner(table, tmp_path, warm_from=tmp_path, retrain="warm")

        assert np.array_equal(restored.outputs(images, ALL).probs, first.outputs(images, ALL).probs)
        assert warm.fit(labels[:35], labels[35:45], CLASSES).began == "warm"
        with pytest.raises(WeightsError, match="a head for another table of features"):
            self.learner(clouds(60, seed=1)[0], tmp_path).restore(str(tmp_path))
        with pytest.raises(WeightsError, match="made for backbone 'table', not 'resnet50'"):
            self.learner(None, tmp_path, finetune="head").restore(str(tmp_path))
        with pytest.raises(WeightsError, match="head for a table of features: give that table"):
            load_checkpoint(path)
        assert load_checkpoint(path, CLASSES, TableBackbone(table)).frozen_backbone

    @pytest.mark.parametrize("device", ["auto", "cpu"])
    def test_whole_network_is_refused(self, tmp_path: Path, device: Literal["auto", "cpu"]) -> None:
        table, _ = clouds(9)
        options = self.OPTIONS.model_copy(update={"finetune": "full"})

        with pytest.raises(SettingsError, match="finetune='full', but a table of features has no images"):
            McDropoutLearner(options, FolderSource(tmp_path), tmp_path, device=device, table=table)
