from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from ml_backend.errors import TooFewLabels
from ml_backend.images.transforms import Normalisation, to_input
from ml_backend.model.data import (
    DropoutMasks,
    FeatureExamples,
    FeatureTable,
    LabelledDataset,
    PixelExamples,
    TableFeatures,
    require_enough,
)
from ml_backend.schemas import Exclusion, ImageRef, Label

CLASSES = ("normal", "moderate", "severe")


def labels(*values: str) -> list[Label]:
    return [
        Label(image=ImageRef(id=f"{n}", uri=f"{n}"), value=value, raters=1) for n, value in enumerate(values, start=1)
    ]


def from_table(rows: Sequence[str], *values: str) -> LabelledDataset:
    """Image n has the features (n, 10 n), if it has a row."""
    table = FeatureTable(rows, np.array([[float(row), 10.0 * float(row)] for row in rows], dtype=np.float32))
    features = TableFeatures(table, torch.device("cpu"))
    return LabelledDataset.from_features(labels(*values), CLASSES, features, list[int]().append)


class TestPixelExamples:
    def test_augmentation(self) -> None:
        pixels = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
        examples = PixelExamples(pixels, torch.zeros(3, dtype=torch.int64))
        rows = torch.tensor([2, 0])
        augmented = [examples.inputs(rows, examples.augmentation(seed)) for seed in (0, 0, 1)]

        assert torch.equal(examples.inputs(rows, None), to_input(pixels[rows]))
        assert not torch.equal(augmented[0], to_input(pixels[rows]))
        assert torch.equal(augmented[0], augmented[1])
        assert not torch.equal(augmented[0], augmented[2])

    def test_a_batch_at_a_time_moves_to_the_device_of_the_targets(self) -> None:
        pixels = torch.zeros((3, 16, 16), dtype=torch.uint8)
        examples = PixelExamples(pixels, torch.zeros(3, dtype=torch.int64, device="meta"))

        for augmentation in (None, examples.augmentation(0)):
            assert examples.inputs(torch.tensor([2, 0]), augmentation).device.type == "meta"
        assert examples.pixels.device.type == "cpu"


class TestFeatureExamples:
    def test_dropout_is_the_augmentation(self) -> None:
        features = torch.arange(1.0, 65.0).view(4, 16)
        examples = FeatureExamples(features, torch.zeros(4, dtype=torch.int64), dropout=0.5)
        rows = torch.tensor([3, 1])
        masks = torch.from_numpy(DropoutMasks(16, 0.5, seed=7).draw(4))
        augmentation = examples.augmentation(7)

        batches = [examples.inputs(rows, augmentation) for _ in range(2)]

        assert torch.equal(torch.cat(batches), features[rows].repeat(2, 1) * masks)
        assert torch.equal(examples.inputs(rows, None), features[rows])
        assert torch.equal(features, torch.arange(1.0, 65.0).view(4, 16))


class TestDropoutMasks:
    @pytest.mark.parametrize("rate", [0.0, 0.1, 0.25, 0.5, 0.9])
    def test_rate(self, rate: float) -> None:
        """In every column and every row: 400,000 draws, 500 a column."""
        kept = torch.from_numpy(DropoutMasks(800, rate, seed=1).draw(500)).float()

        assert float(kept.mean()) == pytest.approx(1.0 - rate, abs=0.003)
        for dim in (0, 1):
            assert float((kept.mean(dim=dim) - (1.0 - rate)).abs().max()) < 0.12

    def test_neighbours_are_independent(self) -> None:
        """Images, features, and features 8 bytes of raw bits apart are uncorrelated."""
        kept = torch.from_numpy(DropoutMasks(800, 0.5, seed=1).draw(500)).float() - 0.5

        for a, b in ((kept[1:], kept[:-1]), (kept[:, 1:], kept[:, :-1]), (kept[:, 8:], kept[:, :-8])):
            assert float((a * b).mean()) == pytest.approx(0.0, abs=0.002)

    def test_seed(self) -> None:
        one, same, other = (DropoutMasks(33, 0.5, seed) for seed in (1, 1, 2))
        first = one.draw(5)

        assert (first == same.draw(5)).all()
        assert (first != other.draw(5)).any()
        assert (first != one.draw(5)).any()

    @pytest.mark.parametrize("rate", [0.001, 0.999999])
    def test_extreme_rates(self, rate: float) -> None:
        assert float(DropoutMasks(1000, rate, 0).draw(1000).mean()) == pytest.approx(1.0 - rate, abs=0.001)


class TestLabelledDataset:
    def test_targets_follow_the_readable_images(self) -> None:
        """The second image has no row: its label must not move to the third."""
        dataset = from_table(["3", "1", "9"], "severe", "normal", "moderate")

        assert [image.id for image in dataset.images] == ["1", "3"]
        assert dataset.examples.targets.tolist() == [2, 1]
        assert isinstance(dataset.examples, FeatureExamples)
        assert dataset.examples.features.tolist() == [[1.0, 10.0], [3.0, 30.0]]
        assert [each.image_id for each in dataset.exclusions] == ["2"]

    def test_select(self) -> None:
        """In the order asked for; unreadable images of that part only."""
        dataset = from_table(["1", "3", "4"], "normal", "severe", "moderate", "severe", "normal")
        given = labels("normal", "severe", "moderate", "severe", "normal")

        part = dataset.select([given[3], given[1], given[0]])

        assert [image.id for image in part.images] == ["4", "1"]
        assert isinstance(part.examples, FeatureExamples)
        assert part.examples.features.tolist() == [[4.0, 40.0], [1.0, 10.0]]
        assert part.examples.targets.tolist() == [2, 0]
        assert [exclusion.image_id for exclusion in part.exclusions] == ["2"]

    @pytest.mark.parametrize("soft", [True, False])
    def test_soft_targets_follow_the_images(self, *, soft: bool) -> None:
        """A label without probabilities is of its class; the targets stay the classes."""
        first, *others = labels("severe", "normal", "moderate")
        first = first.model_copy(update={"probabilities": {"moderate": 0.25, "severe": 0.75}})
        table = FeatureTable(["1", "3"], np.ones((2, 2), dtype=np.float32))
        features = TableFeatures(table, torch.device("cpu"))
        given = [first, *others]

        dataset = LabelledDataset.from_features(given, CLASSES, features, list[int]().append, soft=soft)

        part = dataset.select([given[2], given[0]]).examples
        assert part.targets.tolist() == [1, 2]
        assert (None if part.soft is None else part.soft.tolist()) == (
            [[0.0, 1.0, 0.0], [0.0, 0.25, 0.75]] if soft else None
        )

    def test_a_part_of_pixels_keeps_the_normalisation(self) -> None:
        """That of a network other than torchvision's, of which each member of an ensemble trains on a part."""
        images = tuple(label.image for label in labels("normal", "severe"))
        own = Normalisation((0.5,), (0.25,))
        examples = PixelExamples(torch.zeros((2, 4, 4), dtype=torch.uint8), torch.tensor([0, 2]), own)

        part = LabelledDataset(images, examples, ()).select(labels("normal", "severe")[1:]).examples

        assert isinstance(part, PixelExamples)
        assert part.normalisation == own

    def test_features_are_not_computed_again(self) -> None:
        dataset = from_table(["1", "2"], "normal", "severe")
        other = TableFeatures(FeatureTable(["1"], np.zeros((1, 2), dtype=np.float32)), torch.device("cpu"))

        assert dataset.features(other).tolist() == [[1.0, 10.0], [2.0, 20.0]]

    def test_features_of_pixels_are_computed(self) -> None:
        class Means(TableFeatures):
            """The mean grey level is the only feature."""

            def run(self, pixels: Tensor) -> Tensor:
                return pixels.float().mean(dim=(1, 2))[:, None]

        pixels = torch.stack([torch.full((4, 4), level, dtype=torch.uint8) for level in (7, 9)])
        dataset = LabelledDataset((), PixelExamples(pixels, torch.tensor([0, 1])), ())
        means = Means(FeatureTable(["1"], np.zeros((1, 1), dtype=np.float32)), torch.device("cpu"))

        assert dataset.features(means).tolist() == [[7.0], [9.0]]


class TestRequireEnough:
    @pytest.mark.parametrize(("training", "validation", "enough"), [(2, 1, True), (1, 1, False), (2, 0, False)])
    def test_two_to_train_and_one_to_validate(self, training: int, validation: int, *, enough: bool) -> None:
        none = LabelledDataset((), FeatureExamples(torch.empty(0, 2), torch.empty(0, dtype=torch.int64)), ())
        sets = [from_table(["1", "2", "3"], *["normal"] * count) if count else none for count in (training, validation)]

        if enough:
            require_enough(*sets)
            return
        with pytest.raises(TooFewLabels, match=f"{training} readable labelled images to train on and {validation} to"):
            require_enough(*sets)

    def test_first_unreadable_image_is_named(self) -> None:
        training = from_table(["1"], "normal", "severe", "severe")
        assert training.exclusions[0] == Exclusion(image_id="2", reason="image 2 has no row in the table of features")

        with pytest.raises(TooFewLabels, match="2 more cannot be read, the first: image 2 has no row"):
            require_enough(training, from_table(["1"], "normal"))
