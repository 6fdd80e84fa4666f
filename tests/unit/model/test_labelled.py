from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from ml_backend.errors import TooFewLabels
from ml_backend.model.data import FeatureExamples, LabelledSet, PixelExamples, require_enough
from ml_backend.model.features import FeatureTable, TableFeatures
from ml_backend.schemas import Exclusion, ImageRef, Label

CLASSES = ("normal", "moderate", "severe")


def labels(*values: str) -> list[Label]:
    return [
        Label(image=ImageRef(id=f"{n}", uri=f"{n}"), value=value, raters=1) for n, value in enumerate(values, start=1)
    ]


def of_table(rows: Sequence[str], *values: str) -> LabelledSet:
    """Image n has the features (n, 10 n), if it has a row."""
    table = FeatureTable(rows, np.array([[float(row), 10.0 * float(row)] for row in rows], dtype=np.float32))
    features = TableFeatures(table, torch.device("cpu"))
    return LabelledSet.of_features(labels(*values), CLASSES, features, list[int]().append)


def test_targets_follow_the_images_that_were_read() -> None:
    """The second image has no row: its label must not slip to the third."""
    it = of_table(["3", "1", "9"], "severe", "normal", "moderate")

    assert [image.id for image in it.images] == ["1", "3"]
    assert it.examples.targets.tolist() == [2, 1]
    assert isinstance(it.examples, FeatureExamples)
    assert it.examples.features.tolist() == [[1.0, 10.0], [3.0, 30.0]]
    assert [one.image_id for one in it.exclusions] == ["2"]


def test_features_are_those_that_it_was_made_of() -> None:
    it = of_table(["1", "2"], "normal", "severe")
    other = TableFeatures(FeatureTable(["1"], np.zeros((1, 2), dtype=np.float32)), torch.device("cpu"))

    assert it.features(other).tolist() == [[1.0, 10.0], [2.0, 20.0]]


def test_features_of_pixels_are_computed() -> None:
    class Means(TableFeatures):
        """The mean grey level stands for a backbone."""

        def run(self, pixels: Tensor) -> Tensor:
            return pixels.float().mean(dim=(1, 2))[:, None]

    pixels = torch.stack([torch.full((4, 4), level, dtype=torch.uint8) for level in (7, 9)])
    it = LabelledSet((), PixelExamples(pixels, torch.tensor([0, 1])), ())
    means = Means(FeatureTable(["1"], np.zeros((1, 1), dtype=np.float32)), torch.device("cpu"))

    assert it.features(means).tolist() == [[7.0], [9.0]]


@pytest.mark.parametrize(("training", "validation", "enough"), [(2, 1, True), (1, 1, False), (2, 0, False)])
def test_require_enough(training: int, validation: int, *, enough: bool) -> None:
    sets = [
        of_table(["1", "2", "3"], *["normal"] * count)
        if count
        else LabelledSet((), FeatureExamples(torch.empty(0, 2), torch.empty(0, dtype=torch.int64)), ())
        for count in (training, validation)
    ]

    if enough:
        require_enough(*sets)
        return
    with pytest.raises(TooFewLabels, match=f"{training} readable labelled images to train on and {validation} to"):
        require_enough(*sets)


def test_require_enough_names_the_first_that_cannot_be_read() -> None:
    training = of_table(["1"], "normal", "severe", "severe")
    assert training.exclusions[0] == Exclusion(image_id="2", reason="image 2 has no row in the table of features")

    with pytest.raises(TooFewLabels, match="2 more cannot be read, the first: image 2 has no row"):
        require_enough(training, of_table(["1"], "normal"))
