"""Neighbours by the cosine, worked by hand."""

import time

import numpy as np
import pytest

from ml_backend.analytics.similar import nearest, neighbours_of
from ml_backend.storage.outputs import Embedding

# At 0, 0, 60, 90 and 180 degrees, of different lengths; cosines from a: 1, 1/2, 0, -1.
ROWS = [[2, 0], [1, 0], [1, 3**0.5], [0, 5], [-1, 0]]
EMBEDDING = Embedding("r000001", "", tuple("abcde"), np.array(ROWS, np.float16), 1.0)


def named(found):
    return [(one.image_id, round(one.likeness, 2), one.label) for one in found]


class TestNearest:
    def test_by_the_cosine_and_each_kind_for_itself(self):
        unlabelled, labelled = nearest(EMBEDDING, "a", {"c": "severe", "e": "normal"}, 5)

        assert named(unlabelled) == [("b", 1.0, None), ("d", 0.0, None)]
        assert named(labelled) == [("c", 0.5, "severe"), ("e", -1.0, "normal")]

    def test_at_most_so_many_of_each(self):
        unlabelled, labelled = nearest(EMBEDDING, "d", {"a": "severe", "c": "severe"}, 1)

        assert (named(unlabelled), named(labelled)) == ([("b", 0.0, None)], [("c", 0.87, "severe")])

    def test_an_image_like_the_mean_resembles_none(self):
        rows = np.array([[0, 0], [1, 0]], np.float16)

        assert named(nearest(Embedding("r000001", "", ("a", "b"), rows, 0.0), "b", {}, 2)[0]) == [("a", 0.0, None)]

    def test_an_image_that_is_not_in_it(self):
        with pytest.raises(ValueError, match="tuple"):
            nearest(EMBEDDING, "x", {}, 1)

    @pytest.mark.parametrize(("images", "seconds"), [(10_000, 0.2), (100_000, 1.0)])
    def test_takes_little_time(self, images, seconds):
        ids = tuple(map(str, range(images)))
        rows = np.random.default_rng(0).normal(size=(images, 64)).astype(np.float16)
        embedding = Embedding("r000001", "", ids, rows, 0.1)
        began = time.process_time()
        nearest(embedding, ids[-1], dict.fromkeys(ids[::9], "severe"), 12)

        assert time.process_time() - began < seconds


def test_neighbours_of_several_come_in_turn_and_once():
    """Nearest of a: b without, c with a label; of d: a and c. Image x is not in the embedding."""
    assert neighbours_of(EMBEDDING, ["a", "x", "d"], "abd", 1) == ["b", "c", "a"]


def test_neighbours_of_a_batch_are_those_of_each_image():
    """Equally near ones too, of which the earlier counts; an image that is left out is no neighbour."""
    ids, rows = tuple(map(str, range(300))), np.random.default_rng(0).integers(-2, 3, (300, 3)).astype(np.float16)
    embedding = Embedding("r000001", "", ids, rows, 0.1)
    sides = [[one.image_id for one in nearest(embedding, name, {}, 5)[0]] for name in ids[:9]]

    in_turn = dict.fromkeys(one for place in zip(*sides, strict=True) for one in place)
    assert neighbours_of(embedding, ids[:9], ids, 5) == [*in_turn]
    assert sides[0][0] not in [one.image_id for one in nearest(embedding, "0", {}, 5, {sides[0][0]})[0]]
