"""Uncertainty Herding against its formula written out, the best batch of all, and its two limits."""

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from ml_backend.acquisition import rank
from ml_backend.acquisition.coverage import FIRST_WIDTH, facility_location, kernel_width, uherding
from ml_backend.acquisition.pointwise import margin

Rows = npt.NDArray[np.float64]


def drawn(images: int, labelled: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Passes of the pool, its features, and those of the labelled images."""
    generator = torch.Generator().manual_seed(seed)
    probs = torch.softmax(2 * torch.randn(images, 7, 3, generator=generator), dim=-1)
    features = torch.randn(images + labelled, 4, generator=generator)
    return probs, features[:images], features[images:]


def kernel(one: Tensor, other: Tensor, width: float) -> Rows:
    a, b = (torch.nn.functional.normalize(rows.double(), dim=1).numpy() for rows in (one, other))
    similar: Rows = np.exp(-((a[:, None] - b[None]) ** 2).sum(axis=-1) / width**2)
    return similar


def coverage(batch: tuple[int, ...], weights: Rows, similar: Rows, known: Rows) -> float:
    """``Σ_i u_i max over batch and labelled images of k``: the aim, of which the gains are the steps."""
    return float((weights * np.maximum(known, similar[:, list(batch)].max(axis=1, initial=0.0))).sum())


class TestFormula:
    @pytest.mark.parametrize("seed", range(4))
    def test_every_pick_adds_most(self, seed: int) -> None:
        """``Σ_i u_i max(0, k(x, i) - m_i)`` of every image at every step, in float64."""
        probs, features, labelled = drawn(30, 5, seed)
        width = min(
            float(torch.dist(a, b))
            for a, b in itertools.combinations(torch.nn.functional.normalize(labelled, dim=1), 2)
        )
        similar, known = kernel(features, features, width), kernel(features, labelled, width).max(axis=1)
        weights = margin(probs).numpy()

        found = uherding(probs, features, 6, ties=np.arange(30), labelled_features=labelled)

        for pick in found.picks.tolist():
            gains = (weights[:, None] * np.maximum(similar - known[:, None], 0)).sum(axis=0)
            assert found.scores[pick].item() == pytest.approx(gains[pick], rel=1e-4)
            assert gains[pick] == pytest.approx(gains.max(), rel=1e-4)
            known = np.maximum(known, similar[:, pick])
        rest = np.setdiff1d(np.arange(30), found.picks.numpy())
        gains = (weights[:, None] * np.maximum(similar - known[:, None], 0)).sum(axis=0)
        assert found.scores[rest].tolist() == pytest.approx(gains[rest].tolist(), rel=1e-3, abs=1e-5)

    def test_near_the_best_batch_of_all(self) -> None:
        """Greedy is promised 1 - 1/e of what the best three of 12 images add; on these pools it finds 97 % or more."""
        for seed in range(5):
            probs, features, labelled = drawn(12, 3, seed)
            width, weights = kernel_width(labelled), margin(probs).numpy()
            similar, known = kernel(features, features, width), kernel(features, labelled, width).max(axis=1)
            start = coverage((), weights, similar, known)
            best = max(coverage(batch, weights, similar, known) for batch in itertools.combinations(range(12), 3))

            picks = uherding(probs, features, 3, ties=np.arange(12), labelled_features=labelled).picks

            assert coverage(tuple(picks.tolist()), weights, similar, known) - start >= 0.97 * (best - start)


class TestLimits:
    def test_two_labelled_images_that_are_nearly_the_same_leave_the_uncertainty(self) -> None:
        """A kernel so narrow that an image covers itself alone: the order is that of ``margin``."""
        probs, features, labelled = drawn(30, 5)
        labelled[1] = labelled[0] * torch.tensor([1.0, 1.0, 1.0, 1.001])

        ranking = rank("uherding", probs, 10, features=features, labelled_features=labelled)

        assert ranking.order[:10].tolist() == rank("margin", probs, 10).order[:10].tolist()
        assert ranking.scores.tolist() == pytest.approx(margin(probs).tolist(), abs=1e-4)

    def test_level_uncertainties_leave_the_coverage(self) -> None:
        probs, features, labelled = drawn(30, 5)
        level = torch.full_like(probs, 1 / 3)

        found = uherding(level, features, 6, ties=np.arange(30), labelled_features=labelled)

        covered = facility_location(features, 6, ties=np.arange(30), width=kernel_width(labelled), covered=labelled)
        assert found.picks.tolist() == covered.picks.tolist()

    def test_sure_images_are_not_worth_covering(self) -> None:
        """A crowd of sure images around image 0, and one unsure image elsewhere."""
        probs = torch.tensor([[[1.0, 0.0]]] * 9 + [[[0.5, 0.5]]])
        features = torch.tensor([[1.0, 0.0]] * 9 + [[0.0, 1.0]])

        assert uherding(probs, features, 1, ties=np.arange(10)).picks.tolist() == [9]


class TestKernelWidth:
    def test_hand_computed(self) -> None:
        """At length 1 the angles are 0, 60 and 90 degrees: the nearest two lie 2 sin 15° apart."""
        rows = torch.tensor([[2.0, 0.0], [0.5, math.sqrt(0.75)], [0.0, 7.0]])

        assert kernel_width(rows) == pytest.approx(2 * math.sin(math.radians(15)))

    def test_copies_do_not_count(self) -> None:
        """At any length, and up to float32."""
        generator = torch.Generator().manual_seed(0)
        rows = torch.rand(600, 40, generator=generator)

        copied = torch.cat([rows, 3 * rows, rows * 1.1])
        assert kernel_width(copied) == pytest.approx(kernel_width(rows), rel=1e-5)
        assert kernel_width(rows.flip(0)) == kernel_width(rows)

    @pytest.mark.parametrize("rows", [torch.ones(0, 3), torch.ones(1, 3), torch.ones(4, 3)])
    def test_none_that_differ(self, rows: Tensor) -> None:
        assert kernel_width(rows) == FIRST_WIDTH
