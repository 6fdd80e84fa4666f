"""What a learner hands to a strategy."""

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from ml_backend.predictions import ImageFeatures, LastLayerGradients, PoolPredictions, join


def outputs_of(rows: list[list[list[float]]], **changes: Any) -> PoolPredictions:
    fields: dict[str, Any] = {
        "image_ids": tuple("abcdef"[: len(rows)]),
        "classes": ("normal", "moderate", "severe"),
        "probs": np.array(rows, dtype=np.float32),
    }
    return PoolPredictions(**(fields | changes))


TWO_IMAGES = [[[0.6, 0.3, 0.1], [0.1, 0.3, 0.6], [0.2, 0.1, 0.7], [0.2, 0.1, 0.7]]] * 2
EMPTY = PoolPredictions(image_ids=(), classes=("normal", "diseased"), probs=np.zeros((0, 4, 2), np.float32))


class TestPoolOutputs:
    def test_suggestion_is_of_the_mean_not_of_the_first_pass(self):
        """The first pass says normal (0.6); the mean over the passes is 0.4 / 0.3 / 0.3, then 0.275 / 0.2 / 0.525."""
        outputs = outputs_of([[[0.6, 0.3, 0.1], [0.2, 0.3, 0.5]], [[0.45, 0.3, 0.25], [0.1, 0.1, 0.8]]])

        assert outputs.suggestions() == {"a": "normal", "b": "severe"}

    def test_confidence_is_the_mean_of_the_suggested_class(self):
        """Not the mean of the highest: pass by pass that would be 0.55 for the first image."""
        outputs = outputs_of([[[0.6, 0.3, 0.1], [0.2, 0.3, 0.5]], [[0.45, 0.3, 0.25], [0.1, 0.1, 0.8]]])

        assert outputs.confidences() == {"a": 0.4, "b": 0.525}

    def test_empty_pool_suggests_nothing(self):
        assert EMPTY.suggestions() == {}
        assert EMPTY.confidences() == {}

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"image_ids": ("a",)}, "1 image ids but probs of 2 images"),
            ({"classes": ("normal", "diseased")}, "2 classes but probs of 3 classes"),
            ({"features": np.zeros((3, 8), np.float32)}, "2 images but features of 3"),
        ],
    )
    def test_shapes_must_fit(self, changes, message):
        with pytest.raises(ValueError, match=message):
            outputs_of(TWO_IMAGES, **changes)


class TestArrays:
    """A learner of a researcher's own hands over what it has."""

    PROBS = np.array(TWO_IMAGES, np.float32)

    @pytest.mark.parametrize(
        "probs",
        [
            torch.from_numpy(PROBS).clone().requires_grad_(),
            torch.from_numpy(PROBS).double() * 1.0,
            np.asfortranarray(PROBS.astype(np.float64)),
            PROBS.astype(">f4"),
        ],
    )
    def test_any_floats_become_float32(self, probs):
        outputs = outputs_of(TWO_IMAGES, probs=probs)

        assert type(outputs.probs) is np.ndarray
        assert outputs.probs.dtype == np.float32
        assert outputs.probs.dtype.isnative
        assert outputs.probs.tolist() == self.PROBS.tolist()

    def test_the_caller_s_array_is_kept_where_it_fits(self):
        assert outputs_of(TWO_IMAGES, probs=self.PROBS).probs is self.PROBS

    def test_features_and_gradients(self):
        rows: Any = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)

        outputs = outputs_of(
            TWO_IMAGES, features=rows, labelled_features=rows[:1], gradients=LastLayerGradients(rows, rows)
        )

        assert outputs.gradients is not None
        assert outputs.features is not None
        assert outputs.features.tolist() == outputs.gradients.hidden.tolist() == [[1.0] * 3] * 2
        assert ImageFeatures(("a", "b"), rows).features.dtype == np.float32

    @pytest.mark.parametrize(
        ("probs", "message"),
        [
            (TWO_IMAGES, "probs must be .* got list"),
            (np.ones((2, 4, 3), np.int64), "probs must be .* got int64"),
            (np.ones((2, 3), np.float32), r"probs must be \[images, passes, classes\], got \[2, 3\]"),
        ],
    )
    def test_another_type_is_refused_by_name(self, probs, message):
        with pytest.raises(ValueError, match=message):
            outputs_of(TWO_IMAGES, probs=probs)


class TestImageFeatures:
    @pytest.mark.parametrize(("rows", "keys", "message"), [(1, (), "features of 1"), (2, ("k",), "keys of 1")])
    def test_rows_and_keys_must_fit(self, rows, keys, message):
        with pytest.raises(ValueError, match=f"2 image ids but {message} images"):
            ImageFeatures(("a", "b"), np.zeros((rows, 8), np.float32), keys=keys)


class TestJoin:
    def test_parts_are_taken_one_after_another_and_not_kept(self):
        """A million images in parts: none of them may wait for the last, and the room that is left is not shown."""
        alive: list[weakref.ref[Any]] = []

        def parts() -> Iterator[PoolPredictions]:
            for image in "abc":
                assert not any(one() is not None for one in alive[:-1])
                made = outputs_of(TWO_IMAGES[:1], image_ids=(image,), features=np.full((1, 2), ord(image), np.float32))
                alive.append(weakref.ref(made.probs))
                yield made
                del made

        joined = join(parts(), 5)

        assert joined.image_ids == ("a", "b", "c")
        assert joined.probs.tolist() == np.array(TWO_IMAGES[:1] * 3, np.float32).tolist()
        assert joined.features is not None
        assert joined.features[:, 0].tolist() == [97, 98, 99]

    def test_features_of_some(self):
        with pytest.raises(ValueError, match="features of some shards only"):
            join([outputs_of(TWO_IMAGES), outputs_of(TWO_IMAGES, features=np.zeros((2, 8), np.float32))])
