"""The pointwise functions: values worked by hand, laws over any input, and a second implementation."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from ml_backend.acquisition import pointwise as module
from ml_backend.acquisition.pointwise import (
    bald,
    entropy,
    least_confidence,
    margin,
    mean_std,
    variation_ratios,
)

Score = Callable[[Tensor], Tensor]

ALL: list[Score] = [entropy, mean_std, bald, least_confidence, margin, variation_ratios]
OF_PASSES: list[Score] = [mean_std, bald, variation_ratios]

LOG2 = math.log(2)


def normalised(weights: npt.NDArray[np.int64]) -> Tensor:
    """Rows of small whole numbers as probabilities; exact zeros, ones and ties are common."""
    weights = np.where(weights.sum(axis=-1, keepdims=True) == 0, 1, weights)
    return torch.from_numpy((weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32))


@st.composite
def passes(draw: st.DrawFn, classes: int | None = None) -> Tensor:
    """Any softmax outputs: 1 to 6 images, 2 to 7 passes, 2 to 5 classes."""
    shape = (draw(st.integers(1, 6)), draw(st.integers(2, 7)), classes or draw(st.integers(2, 5)))
    return normalised(draw(hnp.arrays(np.int64, shape, elements=st.integers(0, 8))))


def reference(name: str, probs: Tensor) -> npt.NDArray[np.float64]:
    """The formulas of the papers, written down once more in NumPy and float64."""
    p = probs.double().numpy()
    mean = p.mean(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        h_mean = -np.where(mean > 0, mean * np.log(mean), 0).sum(axis=-1)
        h_each = -np.where(p > 0, p * np.log(p), 0).sum(axis=-1)
    ordered = np.sort(mean, axis=-1)
    winners = p == p.max(axis=-1, keepdims=True)
    votes = (winners / winners.sum(axis=-1, keepdims=True)).sum(axis=1)
    values: dict[str, npt.NDArray[np.float64]] = {
        "entropy": h_mean,
        "bald": h_mean - h_each.mean(axis=1),
        "mean_std": np.sqrt(((p - mean[:, None]) ** 2).mean(axis=1)).mean(axis=-1),
        "least_confidence": 1 - ordered[:, -1],
        "margin": 1 - ordered[:, -1] + ordered[:, -2],
        "variation_ratios": 1 - votes.max(axis=-1) / p.shape[1],
    }
    return values[name]


class TestEntropy:
    def test_hand_computed(self) -> None:
        """Over three passes the classes average 1/2, 1/4 and 1/4: 1/2 log 2 + 2 * 1/4 log 4."""
        probs = torch.tensor([[[0.6, 0.3, 0.1], [0.6, 0.3, 0.1], [0.3, 0.15, 0.55]]])

        assert entropy(probs).tolist() == pytest.approx([1.5 * LOG2], abs=1e-7)

    def test_of_the_mean_not_the_mean_of_entropies(self) -> None:
        """Two sure passes that contradict each other are as uncertain as two unsure ones."""
        probs = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5], [0.5, 0.5]]])

        assert entropy(probs).tolist() == pytest.approx([LOG2, LOG2])

    def test_tells_apart_what_float32_cannot(self) -> None:
        """About its maximum it falls by 2 d^2: from d = 2e-5 to 1e-5 by 6e-10, a hundredth of float32's last digit."""
        probs = torch.tensor([[[0.5 + 1e-5, 0.5 - 1e-5]], [[0.5 - 2e-5, 0.5 + 2e-5]]])
        closer, farther = entropy(probs).tolist()

        assert closer - farther == pytest.approx(6e-10, rel=0.02)


class TestBald:
    def test_hand_computed(self) -> None:
        """Three passes: mean (1/2, 1/4, 1/4), entropy 3/2 log 2; each pass has 0, log 2 and log 2."""
        probs = torch.tensor([[[1.0, 0.0, 0.0], [0.5, 0.0, 0.5], [0.0, 0.75, 0.25]]])
        of_third = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)

        assert bald(probs).tolist() == pytest.approx([1.5 * LOG2 - (0 + LOG2 + of_third) / 3])

    def test_disagreement_counts_and_doubt_does_not(self) -> None:
        """Sure and contradicting: log 2. Unsure in every pass: nothing to learn about the network."""
        probs = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5], [0.5, 0.5]]])

        assert bald(probs).tolist() == pytest.approx([LOG2, 0.0])

    def test_tells_apart_what_float32_cannot(self) -> None:
        """Two passes that differ by d about 1/2 hold 2 d^2 / 4 nats: here 5e-9, a twelfth of float32's last digit."""
        d = 1e-4
        probs = torch.tensor([[[0.5 + d / 2, 0.5 - d / 2], [0.5 - d / 2, 0.5 + d / 2]]])

        assert bald(probs).item() == pytest.approx(d * d / 2, rel=1e-2)


class TestMeanStd:
    def test_hand_computed(self) -> None:
        """Over the two passes the classes lie 0.2, 0 and 0.2 from their means."""
        probs = torch.tensor([[[0.6, 0.3, 0.1], [0.2, 0.3, 0.5]]])

        assert mean_std(probs).tolist() == pytest.approx([0.4 / 3])

    def test_measures_disagreement_not_entropy(self) -> None:
        """Twenty passes that agree score 0, sure or unsure."""
        probs = torch.tensor([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0]])[:, None].expand(-1, 20, -1)

        assert mean_std(probs).tolist() == [0.0, 0.0]

    @pytest.mark.parametrize("step", [1e-7, 1e-6, 1e-5, 1e-4])
    def test_small_disagreement_keeps_its_digits(self, step: float) -> None:
        """A mean rounded to float32 would be off by as much as the passes differ."""
        probs = torch.tensor([[[0.9, 0.1], [0.9 - step, 0.1 + step]]], dtype=torch.float32).repeat(1, 15, 1)
        by_hand = (probs[0, 0].double() - probs[0, 1].double()).abs().mean().item() / 2

        assert mean_std(probs).tolist() == pytest.approx([by_hand], rel=1e-4)

    def test_largest_where_each_pass_is_sure_of_another_class(self) -> None:
        """A class's std is sqrt(1/C (1 - 1/C)), which is sqrt(C - 1) / C."""
        assert mean_std(torch.eye(4)[None]).tolist() == pytest.approx([math.sqrt(3) / 4])


class TestLeastConfidence:
    def test_hand_computed(self) -> None:
        """Means 0.4, 0.3 and 0.3: the answer is wrong with 0.6, although one pass gave another class 0.8."""
        probs = torch.tensor([[[0.7, 0.1, 0.2], [0.4, 0.0, 0.6], [0.1, 0.8, 0.1]]])

        assert least_confidence(probs).tolist() == pytest.approx([0.6])


class TestMargin:
    def test_hand_computed(self) -> None:
        """Means 0.5, 0.3 and 0.2: 0.2 lie between the first two."""
        probs = torch.tensor([[[0.7, 0.2, 0.1], [0.3, 0.4, 0.3]]])

        assert margin(probs).tolist() == pytest.approx([0.8])


class TestVariationRatios:
    def test_hand_computed(self) -> None:
        """Three of five passes vote for class 1; by the mean prediction class 0 would win."""
        row_0, row_1 = [0.9, 0.1, 0.0], [0.2, 0.5, 0.3]
        probs = torch.tensor([[row_0, row_1, row_1, row_0, row_1]])

        assert variation_ratios(probs).tolist() == pytest.approx([0.4])

    def test_a_level_vote_is_shared(self) -> None:
        """1 vote for class 0, and a half each for 0 and 1: 1.5 of 2."""
        probs = torch.tensor([[[0.8, 0.1, 0.1], [0.4, 0.4, 0.2]]])

        assert variation_ratios(probs).tolist() == pytest.approx([0.25])


class TestLaws:
    @pytest.mark.parametrize("score", ALL, ids=lambda f: f.__name__)
    @settings(deadline=None, max_examples=60)
    @given(probs=passes())
    def test_agrees_with_the_formulas(self, score: Score, probs: Tensor) -> None:
        assert score(probs).numpy() == pytest.approx(reference(score.__name__, probs), abs=1e-6)

    @pytest.mark.parametrize("score", ALL, ids=lambda f: f.__name__)
    @pytest.mark.parametrize(("count", "classes"), [(10, 2), (23, 3), (40, 3), (101, 7)])
    def test_agrees_with_the_formulas_over_many_passes(self, score: Score, count: int, classes: int) -> None:
        """Passes are taken ten at a time, and those that are left over; sure images are among the unsure."""
        generator = torch.Generator().manual_seed(count)
        sure = torch.logspace(-7, 1, 300)[:, None, None]
        probs = torch.softmax(
            torch.randn(300, 1, classes, generator=generator)
            + sure * torch.randn(300, count, classes, generator=generator),
            dim=-1,
        )

        assert score(probs).numpy() == pytest.approx(reference(score.__name__, probs), abs=1e-6)

    @settings(deadline=None, max_examples=100)
    @given(probs=passes())
    def test_ranges_hold(self, probs: Tensor) -> None:
        classes = probs.shape[2]
        most = {
            entropy: math.log(classes),
            bald: math.log(min(classes, probs.shape[1])),
            mean_std: math.sqrt(classes - 1) / classes,
            least_confidence: 1 - 1 / classes,
            margin: 1.0,
            variation_ratios: 1 - 1 / classes,
        }
        for score, limit in most.items():
            values = score(probs)
            assert values.isfinite().all()
            assert values.min() >= -1e-12
            assert values.max() <= limit + 1e-6

    @settings(deadline=None, max_examples=60)
    @given(probs=passes(), data=st.data())
    def test_permuting_images_permutes_scores(self, probs: Tensor, data: st.DataObject) -> None:
        order = data.draw(st.permutations(range(len(probs))))
        for score in ALL:
            assert score(probs[order]).tolist() == score(probs)[order].tolist()

    @settings(deadline=None, max_examples=60)
    @given(probs=passes(), data=st.data())
    def test_permuting_passes_or_classes_changes_nothing(self, probs: Tensor, data: st.DataObject) -> None:
        of_passes = data.draw(st.permutations(range(probs.shape[1])))
        of_classes = data.draw(st.permutations(range(probs.shape[2])))
        for score in ALL:
            assert score(probs[:, of_passes][:, :, of_classes]).numpy() == pytest.approx(score(probs).numpy(), abs=1e-6)

    @settings(deadline=None, max_examples=60)
    @given(probs=passes())
    def test_passes_that_agree_say_nothing(self, probs: Tensor) -> None:
        alike = probs[:, :1].expand(-1, 20, -1)

        assert bald(alike).tolist() == [0.0] * len(probs)
        assert mean_std(alike).tolist() == [0.0] * len(probs)

    @settings(deadline=None, max_examples=100)
    @given(probs=passes(classes=2))
    def test_two_classes_rank_alike(self, probs: Tensor) -> None:
        by_margin = margin(probs)
        apart = by_margin[:, None] - by_margin[None] > 1e-6
        for score in (entropy, least_confidence):
            values = score(probs)
            assert ((values[:, None] > values[None]) | ~apart).all()

    @settings(deadline=None, max_examples=60)
    @given(probs=passes())
    def test_information_is_no_more_than_uncertainty(self, probs: Tensor) -> None:
        assert (bald(probs) <= entropy(probs) + 1e-6).all()


class TestAnyInput:
    @pytest.mark.parametrize("score", ALL, ids=lambda f: f.__name__)
    def test_an_image_scores_the_same_alone_and_anywhere_in_a_large_pool(self, score: Score) -> None:
        """Copies tie to the last digit, in whichever chunk they stand and whatever the thread count."""
        images = 3 * module._CHUNK_ELEMENTS // (50 * 3) + 1
        probs = torch.softmax(torch.randn(images, 50, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
        probs[[1, images // 2, images - 1]] = probs[0].clone()

        values = score(probs)

        assert len(set(values[[0, 1, images // 2, images - 1]].tolist()) | set(score(probs[:1]).tolist())) == 1

    @pytest.mark.parametrize("score", ALL, ids=lambda f: f.__name__)
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
    def test_any_floating_type(self, score: Score, dtype: torch.dtype) -> None:
        probs = torch.tensor([[[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]]])

        assert score(probs.to(dtype)).tolist() == pytest.approx(score(probs).tolist())

    @pytest.mark.parametrize("score", ALL, ids=lambda f: f.__name__)
    def test_leaves_its_input_alone_and_takes_an_empty_pool(self, score: Score) -> None:
        probs = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        before = probs.clone()

        score(probs)

        assert torch.equal(probs, before)
        assert score(torch.empty(0, 5, 3)).shape == (0,)

    @pytest.mark.parametrize("score", OF_PASSES, ids=lambda f: f.__name__)
    def test_one_pass_cannot_disagree(self, score: Score) -> None:
        with pytest.raises(ValueError, match=r"needs at least 2 passes, got 1"):
            score(torch.full((4, 1, 2), 0.5))

    @pytest.mark.parametrize("score", ALL, ids=lambda f: f.__name__)
    def test_one_pass_has_no_axis_to_lose(self, score: Score) -> None:
        with pytest.raises(ValueError, match=r"\[images, passes, classes\].* got \[4, 2\]"):
            score(torch.full((4, 2), 0.5))
