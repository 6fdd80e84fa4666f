from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from ml_backend.config import ProjectOptions
from ml_backend.errors import RoundError, SettingsError, WeightsError
from ml_backend.images.source import FolderSource
from ml_backend.model.checkpoint import load_checkpoint
from ml_backend.model.features import _BATCH, FeatureTable, TableBackbone, TableFeatures
from ml_backend.model.learner import McDropoutLearner
from ml_backend.model.scoring import SHARD_IMAGES
from ml_backend.registry import Need
from ml_backend.rounds.interfaces import Learner
from ml_backend.schemas import ImageRef, Label

CLASSES = ("normal", "moderate", "severe")
OPTIONS = ProjectOptions(passes=6, epochs=10, learning_rate=1e-3)
ALL: frozenset[Need] = frozenset({"probs", "features", "gradients"})
CPU = torch.device("cpu")


def refs(*numbers: int) -> list[ImageRef]:
    return [ImageRef(id=f"{number}.png", uri=f"{number}.png") for number in numbers]


def clouds(count: int, seed: int = 0) -> tuple[FeatureTable, list[Label]]:
    """A row an image, in overlapping clouds, one a class; image n.png is of class n % 3."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(3, 20))
    rows = (centres[np.arange(count) % 3] + rng.normal(size=(count, 20))).astype(np.float32)
    labels = [Label(image=image, value=CLASSES[n % 3], raters=1) for n, image in enumerate(refs(*range(count)))]
    return FeatureTable([label.image.id for label in labels], rows), labels


def learner(table: FeatureTable, folder: Path, **changes: Any) -> McDropoutLearner:
    options = OPTIONS.model_copy(update=changes)
    return McDropoutLearner(options, FolderSource(folder), folder / "cache", device="cpu", table=table)


class TestFeatureTable:
    def test_finds_rows_by_id_and_names_what_it_lacks(self) -> None:
        rows = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], dtype=np.float32)
        table = FeatureTable(["0.png", "1.png", "2.png"], rows)
        rows[:] = 0.0  # it has a copy

        batch = table.find(refs(2, 7, 0))

        assert batch.images == tuple(refs(2, 0))
        assert batch.features.tolist() == [[5.0, 6.0], [1.0, 2.0]]
        assert [one.image_id for one in batch.exclusions] == ["7.png"]
        assert batch.exclusions[0].reason == "image 7.png has no row in the table of features"
        assert table.find(refs(8)).features.shape == (0, 2)
        assert table.dims == 2

    def test_digest_is_of_ids_and_values(self) -> None:
        rows = np.ones((2, 3), dtype=np.float32)
        digest = FeatureTable(["a", "b"], rows).digest

        assert FeatureTable(["a", "b"], rows.copy()).digest == digest
        assert FeatureTable(["b", "a"], rows).digest != digest
        rows[1, 2] = 2.0
        assert FeatureTable(["a", "b"], rows).digest != digest

    @pytest.mark.parametrize(
        ("ids", "rows", "says"),
        [
            ([], np.empty((0, 3)), r"not empty, got shape \(0, 3\)"),
            (["a"], np.ones(3), r"a table \[images, dims\].*got shape \(3,\)"),
            (["a"], np.ones((2, 3)), "1 image ids, but features of 2 images"),
            (["a", "b", "a"], np.ones((3, 1)), "image 'a' has two rows"),
            (["a", "b"], np.array([[1.0, 2.0], [1.0, np.nan]]), "features of image 'b' are not all finite"),
        ],
    )
    def test_refuses(self, ids: list[str], rows: np.ndarray[Any, Any], says: str) -> None:
        with pytest.raises(ValueError, match=says):
            FeatureTable(ids, rows.astype(np.float32))


class TestTableFeatures:
    def test_batches_are_those_of_all(self) -> None:
        table, _ = clouds(600)
        features, seen = TableFeatures(table, CPU), list[int]()
        images = refs(*range(700))

        batch = features.all(images, seen.append)

        assert torch.equal(batch.features, table.find(images).features)
        assert len(batch.exclusions) == 100
        assert seen == [256, 512, 700]
        assert features.all([], seen.append).features.shape == (0, 20)
        assert SHARD_IMAGES % _BATCH == 0

    def test_there_is_nothing_to_run(self) -> None:
        table, _ = clouds(3)

        with pytest.raises(RoundError, match="no images to run a backbone over"):
            TableFeatures(table, CPU).run(torch.zeros(1, 8, 8, dtype=torch.uint8))
        with pytest.raises(RoundError, match="no images to run a backbone over"):
            TableBackbone(table)(torch.zeros(1, 3, 8, 8))


class TestLearner:
    def test_a_whole_round(self, tmp_path: Path) -> None:
        table, labels = clouds(120)
        it: Learner = learner(table, tmp_path)
        it.prepare([label.image for label in labels])

        report = it.fit(labels[:60], labels[60:90], CLASSES)
        outputs = it.outputs([*(label.image for label in labels[90:]), *refs(500)], ALL)

        assert report.validation_accuracy > 0.8
        assert (report.train_images, report.validation_images) == (60, 30)
        assert outputs.probs.shape == (30, 6, 3)
        truth = [CLASSES.index(label.value) for label in labels[90:]]
        assert (outputs.probs.mean(axis=1).argmax(axis=1) == truth).mean() > 0.8
        assert [one.image_id for one in outputs.exclusions] == ["500.png"]
        assert outputs.features is not None
        assert np.array_equal(outputs.features, table.find([label.image for label in labels[90:]]).features.numpy())
        assert outputs.labelled_features is not None
        assert outputs.labelled_features.shape == (90, 20)
        assert outputs.gradients is not None
        assert list(tmp_path.iterdir()) == []  # no image is looked for, nothing is kept

    def test_a_label_without_a_row_is_named(self, tmp_path: Path) -> None:
        table, labels = clouds(40)
        stranger = Label(image=refs(900)[0], value="normal", raters=1)

        report = learner(table, tmp_path, epochs=1).fit([*labels[:20], stranger], labels[20:], CLASSES)

        assert [one.image_id for one in report.exclusions] == ["900.png"]

    def test_same_bits_when_restored(self, tmp_path: Path) -> None:
        table, labels = clouds(60)
        images = [label.image for label in labels[40:]]
        it = learner(table, tmp_path)
        it.fit(labels[:30], labels[30:40], CLASSES)
        it.save(str(tmp_path))
        other = learner(table, tmp_path)

        other.restore(str(tmp_path))

        assert np.array_equal(other.outputs(images, ALL).probs, it.outputs(images, ALL).probs)

    def test_goes_on_from_what_was_saved(self, tmp_path: Path) -> None:
        table, labels = clouds(60)
        first = learner(table, tmp_path, retrain="warm")
        first.fit(labels[:30], labels[30:40], CLASSES)
        first.save(str(tmp_path))
        options = OPTIONS.model_copy(update={"retrain": "warm"})
        second = McDropoutLearner(
            options, FolderSource(tmp_path), tmp_path, device="cpu", warm_from=tmp_path, table=table
        )

        assert second.fit(labels[:35], labels[35:45], CLASSES).began == "warm"

    def test_checkpoint_of_a_table(self, tmp_path: Path) -> None:
        """Small, and of use with that table alone."""
        table, labels = clouds(60)
        it = learner(table, tmp_path)
        it.fit(labels[:30], labels[30:40], CLASSES)
        it.save(str(tmp_path))
        path = tmp_path / "model.safetensors"

        with pytest.raises(WeightsError, match="a head for another table of features"):
            learner(clouds(60, seed=1)[0], tmp_path).restore(str(tmp_path))
        with pytest.raises(WeightsError, match="made for backbone 'table', not 'resnet50'"):
            McDropoutLearner(
                OPTIONS.model_copy(update={"finetune": "head"}), FolderSource(tmp_path), tmp_path, device="cpu"
            ).restore(str(tmp_path))
        with pytest.raises(WeightsError, match="head for a table of features: give that table"):
            load_checkpoint(path)
        assert load_checkpoint(path, CLASSES, TableBackbone(table)).frozen_backbone

    @pytest.mark.parametrize("device", ["auto", "cpu"])
    def test_whole_network_is_refused(self, tmp_path: Path, device: Literal["auto", "cpu"]) -> None:
        table, _ = clouds(9)
        options = OPTIONS.model_copy(update={"finetune": "full"})

        with pytest.raises(SettingsError, match="finetune='full', but a table of features has no images"):
            McDropoutLearner(options, FolderSource(tmp_path), tmp_path, device=device, table=table)
