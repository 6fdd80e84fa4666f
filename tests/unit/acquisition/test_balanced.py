"""Class-stratified entropy by hand-worked batches, a second selection written out, and its laws."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ml_backend.acquisition import rank
from ml_backend.acquisition.batch import class_balanced
from ml_backend.acquisition.pointwise import entropy


def certain(*probs: float) -> Tensor:
    """One pass an image, of two classes."""
    first = torch.tensor(probs, dtype=torch.float64)
    return torch.stack([first, 1 - first], dim=-1)[:, None]


def pool(images: int, classes: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(2 * torch.randn(images, 4, classes, generator=generator), dim=-1)


class TestHandWorked:
    def test_a_third_by_entropy_and_the_rest_by_class(self) -> None:
        """``p H(p)`` is largest near p = 0.703, for either class: places of class 0, of class 1, of none, in turn."""
        probs = certain(0.51, 0.485, 0.7, 0.3, 0.72, 0.28, 0.999, 0.001)

        found = class_balanced(probs, 6, ties=np.arange(8))

        # 0.330 + 0.330 + 0.34: the part by entropy is due first, then class 0, whose images are a little less sure.
        assert found.picks.tolist() == [0, 2, 3, 1, 4, 5]
        nats = entropy(probs).numpy()
        wanted = [nats[0], nats[1], 0.7 * nats[2], 0.7 * nats[3], 0.72 * nats[4], 0.72 * nats[5], nats[6], nats[7]]
        assert found.scores.tolist() == pytest.approx(wanted)

    def test_an_easy_class_gets_few_places(self) -> None:
        """Class 0 is predicted with certainty, class 1 with doubt: it fills the part that is divided."""
        doubtful = np.linspace(0.2, 0.4, 40)
        probs = certain(*[1.0] * 60, *doubtful)

        picks = class_balanced(probs, 20, ties=np.arange(100)).picks.numpy()

        best = 60 + np.argsort(-entropy(probs[60:]).numpy())[:7]  # 0.34 of 20, for the mean entropy of class 0 is 0
        of_class_1 = set(picks) - set(best)
        assert set(best) <= set(picks)
        score = (1 - doubtful) * entropy(probs[60:]).numpy()
        assert min(score[i - 60] for i in of_class_1) >= max(np.delete(score, np.array(sorted(picks)) - 60))

    def test_a_class_that_is_predicted_nowhere_gets_places(self) -> None:
        """No image is more likely of class 0; the most likely of it is picked all the same."""
        picks = class_balanced(certain(0.4, 0.1, 0.1, 0.1, 0.05, 0.01), 3, ties=np.arange(6)).picks

        assert 0 in picks

    def test_a_sure_network_leaves_the_order_of_ties(self) -> None:
        probs = torch.eye(3)[[0, 1, 2, 0, 1, 2]][:, None]
        ties = np.array([3, 5, 0, 1, 4, 2])

        assert class_balanced(probs, 6, ties=ties).picks.tolist() == [2, 3, 5, 0, 4, 1]


class TestWrittenOut:
    @pytest.mark.parametrize("classes", [2, 3, 6])
    def test_the_same_batch_from_sorted_lists(self, classes: int) -> None:
        """Each kind of place takes the next of its own sorted list that is not taken; quotas by largest remainders."""
        probs = pool(80, classes, seed=classes).double()
        mean = probs.mean(dim=1).numpy()
        nats = -(mean * np.log(mean)).sum(axis=1)
        doubt = np.array([nats[mean.argmax(axis=1) == c].mean() for c in range(classes)])
        quotas = [*(0.66 * doubt / doubt.sum()), 0.34]
        lists = [np.argsort(-score).tolist() for score in [*(mean.T * nats), nats]]

        picks = class_balanced(probs, 20, ties=np.arange(80)).picks.tolist()

        filled = [0] * (classes + 1)
        by_hand: list[int] = []
        for step in range(1, 21):
            kind = max(range(classes + 1), key=lambda k: quotas[k] * step - filled[k])
            filled[kind] += 1
            by_hand.append(next(i for i in lists[kind] if i not in by_hand))
        assert picks == by_hand
        assert all(abs(count - 20 * quota) < 1 + 1e-9 for count, quota in zip(filled, quotas, strict=True))


class TestLaws:
    @settings(deadline=None, max_examples=20)
    @given(images=st.integers(0, 15), classes=st.integers(2, 5), batch_size=st.integers(1, 18), seed=st.integers(0, 99))
    def test_any_pool(self, images: int, classes: int, batch_size: int, seed: int) -> None:
        probs = pool(images, classes, seed)

        found = class_balanced(probs, batch_size, ties=np.arange(images))

        assert len(set(found.picks.tolist())) == len(found.picks) == min(batch_size, images)
        assert (found.scores >= 0).all()
        assert (found.scores <= math.log(classes) + 1e-9).all()

    def test_the_rest_follows_by_entropy(self) -> None:
        probs = pool(60, 3)

        ranking = rank("class_balanced", probs, 12)

        rest = ranking.order[12:].tolist()
        assert rest == [i for i in rank("entropy", probs, 12).order.tolist() if i in rest]
        assert ranking.scores[rest].tolist() == entropy(probs)[rest].tolist()

    @settings(deadline=None, max_examples=10)
    @given(order=st.permutations(range(3)), seed=st.integers(0, 99))
    def test_the_order_of_the_classes_decides_nothing(self, order: list[int], seed: int) -> None:
        probs = pool(40, 3, seed)

        picks, moved = (rank("class_balanced", rows, 10).order[:10].tolist() for rows in (probs, probs[..., order]))

        assert sorted(picks) == sorted(moved)
