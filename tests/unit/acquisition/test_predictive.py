"""EPIG against the joint summed pair by pair, hand-worked values, and the laws of mutual information."""

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ml_backend.acquisition import predictive as module
from ml_backend.acquisition import rank
from ml_backend.acquisition.pointwise import bald
from ml_backend.acquisition.predictive import epig

LOG2 = math.log(2)
SURE, OTHER = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]


def pool(images: int, passes: int, classes: int, seed: int = 0, sharpness: float = 2.0) -> Tensor:
    """Softmax outputs of linear networks: similar images have similar predictions in every pass."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(images, 5, generator=generator)
    networks = torch.randn(1, 5, classes, generator=generator) + torch.randn(passes, 5, classes, generator=generator)
    return torch.softmax(sharpness * torch.einsum("nd,tdk->ntk", inputs, networks), dim=-1)


def pair_by_pair(probs: Tensor, targets: Tensor) -> list[float]:
    """Entropies of y, of y* and of both, of every pair in turn: I = H(y) + H(y*) - H(y, y*), in float64."""

    def entropy(distribution: npt.NDArray[np.float64]) -> float:
        found = distribution[distribution > 0]
        return float(-(found * np.log(found)).sum())

    scores = []
    for own in probs.double().numpy():
        gains = []
        for target in targets.double().numpy():
            joint = np.mean([np.outer(p, q) for p, q in zip(own, target, strict=True)], axis=0)
            gains.append(entropy(own.mean(axis=0)) + entropy(target.mean(axis=0)) - entropy(joint))
        scores.append(float(np.mean(gains)))
    return scores


class TestHandWorked:
    def test_a_label_that_decides_another_says_all_of_it(self) -> None:
        """The passes of 0 and 1 contradict each other in the same way; 2 splits them across, and is independent."""
        probs = torch.tensor([SURE, SURE, OTHER])

        assert epig(probs, probs[:1]).tolist() == pytest.approx([LOG2, LOG2, 0.0], abs=1e-7)
        assert epig(probs, probs).tolist() == pytest.approx([2 * LOG2 / 3, 2 * LOG2 / 3, LOG2 / 3], abs=1e-7)

    def test_half_a_correlation(self) -> None:
        """In 3 of 4 passes the two agree: 1.5 log 1.5 / 2 + 0.5 log 0.5 / 2 nats."""
        target = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]])
        image = 0.75 * target + 0.25 * (1 - target)

        wanted = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
        assert epig(image, target).tolist() == pytest.approx([wanted], abs=1e-7)

    def test_an_odd_image_of_a_crowd_scores_low(self) -> None:
        """By BALD all eleven are level; ten of them say something about one another."""
        probs = torch.tensor([SURE] * 10 + [OTHER])

        ranking = rank("epig", probs, 3)

        assert ranking.order[-1] == 10
        assert ranking.scores[-1].item() == pytest.approx(LOG2 / 11, abs=1e-7)


class TestPairByPair:
    @pytest.mark.parametrize("classes", [2, 3, 5])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_the_same_scores(self, classes: int, dtype: torch.dtype) -> None:
        probs = pool(40, 12, classes, seed=classes).to(dtype)

        scores = epig(probs, probs[:25])

        assert scores.tolist() == pytest.approx(pair_by_pair(probs, probs[:25]), abs=3e-7)

    def test_small_information_is_not_rounding(self) -> None:
        """Passes that hardly differ: 1e-8 nats, which entropies in float32 would lose."""
        generator = torch.Generator().manual_seed(0)
        probs = torch.softmax(0.02 * torch.randn(20, 30, 3, generator=generator).double(), dim=-1)
        wanted = pair_by_pair(probs, probs)

        assert max(wanted) < 1e-7
        assert epig(probs.float(), probs.float()).tolist() == pytest.approx(wanted, rel=0.02)

    def test_across_blocks_and_in_any_order(self, monkeypatch: pytest.MonkeyPatch) -> None:
        probs = pool(40, 12, 3)
        order = np.random.default_rng(0).permutation(40)
        whole = epig(probs, probs)
        monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 7 * 40)

        assert epig(probs, probs).tolist() == pytest.approx(whole.tolist(), abs=1e-8)
        assert epig(probs, probs, order=order).tolist() == pytest.approx(whole[order].tolist(), abs=1e-8)

    def test_a_sample_of_the_pool_ranks_as_all_of_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        probs = pool(400, 12, 3)
        monkeypatch.setattr(module, "_TARGETS", 200)

        sampled = rank("epig", probs, 5)

        assert np.corrcoef(sampled.scores, epig(probs, probs))[0, 1] > 0.99
        assert sampled.scores.tolist() != rank("epig", probs, 5, seed=1).scores.tolist()


class TestLaws:
    @settings(deadline=None, max_examples=30)
    @given(
        images=st.integers(2, 12),
        passes=st.integers(2, 12),
        classes=st.integers(2, 4),
        sharpness=st.sampled_from([0.01, 1.0, 30.0]),
        seed=st.integers(0, 1000),
    )
    def test_no_more_than_the_weights_hold(
        self, images: int, passes: int, classes: int, sharpness: float, seed: int
    ) -> None:
        """A target learns of an image only through the weights: 0 <= I(y; y*) <= I(y; w)."""
        probs = pool(images, passes, classes, seed, sharpness)

        scores = epig(probs, probs[: images // 2])

        assert (scores >= 0).all()
        assert (scores <= bald(probs) + 1e-6).all()

    @settings(deadline=None, max_examples=10)
    @given(passes=st.integers(2, 12), classes=st.integers(2, 4), seed=st.integers(0, 1000))
    def test_as_much_in_either_direction(self, passes: int, classes: int, seed: int) -> None:
        one, other = pool(2, passes, classes, seed).split(1)

        assert epig(one, other).item() == pytest.approx(epig(other, one).item(), abs=3e-7)

    def test_passes_that_agree_say_nothing(self) -> None:
        probs = torch.tensor([[[0.3, 0.7]] * 4, [[1.0, 0.0]] * 4, [[0.0, 1.0]] * 4])

        assert epig(probs, torch.tensor([SURE, OTHER])).tolist() == [0.0, 0.0, 0.0]

    def test_zeros_and_ones_never_become_nan(self) -> None:
        generator = torch.Generator().manual_seed(0)
        probs = torch.eye(3)[torch.randint(0, 3, (20, 9), generator=generator)]

        assert epig(probs, probs).tolist() == pytest.approx(pair_by_pair(probs, probs), abs=1e-6)


class TestBadInput:
    def test_one_pass(self) -> None:
        with pytest.raises(ValueError, match="epig needs at least 2 passes, got 1: draw more"):
            epig(torch.full((3, 1, 2), 0.5), torch.full((3, 1, 2), 0.5))

    @pytest.mark.parametrize("targets", [pool(0, 4, 2), pool(3, 5, 2), pool(3, 4, 3)])
    def test_targets_that_do_not_fit(self, targets: Tensor) -> None:
        with pytest.raises(ValueError, match=r"targets must be \[1 or more, 4 passes, 2 classes\] as probs, got \["):
            epig(pool(3, 4, 2), targets)
