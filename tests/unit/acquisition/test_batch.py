"""BatchBALD against the exact joint, with every labelling enumerated. PowerBALD: its picks follow the BALD scores."""

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ml_backend.acquisition import batch as module
from ml_backend.acquisition import rank
from ml_backend.acquisition.batch import batch_bald, power_bald
from ml_backend.acquisition.pointwise import bald
from ml_backend.seeding import seeded_draws, seeded_order

LOG2 = math.log(2)


def pool(images: int, passes: int, classes: int, seed: int = 0, doubt: float = 1.0) -> Tensor:
    """Softmax outputs of linear networks that differ from one another, and every third image is near a twin."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(images, 6, generator=generator)
    inputs[2::3] = inputs[1 : 1 + len(inputs[2::3])] + 0.02 * inputs[2::3]
    networks = torch.randn(1, 6, classes, generator=generator) + doubt * torch.randn(
        passes, 6, classes, generator=generator
    )
    return torch.softmax(torch.einsum("nd,tdk->ntk", inputs, networks), dim=-1)


def information(probs: Tensor, batch: list[int]) -> float:
    """I(y_1 .. y_b; w) in nats, all C^b labellings enumerated one by one."""
    p = probs[batch].double().numpy()
    joint = 0.0
    for labelling in itertools.product(range(p.shape[2]), repeat=len(batch)):
        under_mask = np.prod([p[i, :, y] for i, y in enumerate(labelling)], axis=0)
        q = under_mask.mean()
        joint -= q * math.log(q) if q > 0 else 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        noise = -np.where(p > 0, p * np.log(p), 0).sum(axis=-1).mean(axis=1).sum()
    return joint - float(noise)


def sampled_information(probs: Tensor, batch: list[int], draws: int, seed: int = 1) -> float:
    """The same from labellings drawn mask by mask: an estimator of its own, for batches too large to enumerate."""
    p = probs[batch].double().numpy()
    generator = np.random.default_rng(seed)
    mask = np.arange(draws) % p.shape[1]
    log_joint: npt.NDArray[np.float64] = np.zeros((draws, p.shape[1]))
    noise = 0.0
    for image in p:
        label = (generator.random(draws)[:, None] > image.cumsum(axis=-1)[mask, :-1]).sum(axis=-1)
        log_joint += np.log(image).T[label]
        noise -= (image * np.log(image)).sum(axis=-1).mean()
    return float(-np.log(np.exp(log_joint).mean(axis=1)).mean() - noise)


class TestHandWorked:
    def test_a_copy_adds_nothing(self) -> None:
        """Images 0 and 1 are one image that splits the masks in two; 2 splits them the other way, not as cleanly."""
        clean = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
        other = [[0.9, 0.1], [0.1, 0.9], [0.9, 0.1], [0.1, 0.9]]
        probs = torch.tensor([clean, clean, other])
        of_other = LOG2 + 0.9 * math.log(0.9) + 0.1 * math.log(0.1)

        picks = batch_bald(probs, 3, ties=np.array([0, 1, 2]))

        assert picks.images.tolist() == [0, 2, 1]
        assert picks.gains.tolist() == pytest.approx([LOG2, of_other, 0.0], abs=1e-6)

    def test_the_first_pick_is_the_best_alone(self) -> None:
        """In the reverse order, as published code has it, the best image would come last."""
        probs = pool(40, 30, 3)

        picks = batch_bald(probs, 5)

        assert picks.images[0] == bald(probs).argmax()
        assert picks.gains[0] == bald(probs).max()

    def test_level_images_go_by_their_place_in_the_order_of_ties(self) -> None:
        probs = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]).repeat(6, 1, 1)
        ties = np.array([3, 5, 0, 1, 4, 2])

        assert batch_bald(probs, 6, ties=ties).images.tolist() == [2, 3, 5, 0, 4, 1]

    def test_level_up_to_rounding_is_level(self) -> None:
        """After the first pick images 1 to 12 add the same, but half of them name the classes the other way round."""
        strong = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]])
        first_class = torch.tensor([[0.85, 0.64, 0.51, 0.27, 0.31, 0.05]])
        weak = torch.stack([first_class, 1 - first_class], dim=-1)
        probs = torch.cat([strong, *[weak, weak.flip(-1)] * 6])

        for first in range(1, 13):
            ties = (np.arange(13) - first) % 13
            assert batch_bald(probs, 2, ties=ties).images.tolist() == [0, first]

    def test_ties_are_seeded_by_default(self) -> None:
        probs = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]).repeat(30, 1, 1)
        places = [str(i) for i in range(30)]

        for seed in range(3):
            assert batch_bald(probs, 30, seed=seed).images.tolist() == seeded_order(places, seed).tolist()

    def test_looks_behind_a_crowd_of_copies(self) -> None:
        """All 200 copies still look best by what they said before the first pick."""
        clean = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
        other = [[0.9, 0.1], [0.1, 0.9], [0.9, 0.1], [0.1, 0.9]]
        probs = torch.tensor([clean] * 200 + [other])

        assert batch_bald(probs, 2).images[1] == 200


class TestExactJoint:
    @pytest.mark.parametrize(("classes", "batch_size"), [(2, 6), (3, 4), (4, 3)])
    @pytest.mark.parametrize("seed", range(3))
    def test_every_pick_is_the_one_that_enumeration_finds(self, classes: int, batch_size: int, seed: int) -> None:
        """Greedy over the exact joint, from scratch at each step, finds no image that adds more."""
        probs = pool(12, 8, classes, seed)

        picks = batch_bald(probs, batch_size)

        for step, gain in enumerate(picks.gains.tolist()):
            before = picks.images[:step].tolist()
            known = information(probs, before)
            adds = {i: information(probs, [*before, i]) - known for i in range(len(probs)) if i not in before}
            assert gain == pytest.approx(adds[int(picks.images[step])], abs=2e-6)
            assert gain == pytest.approx(max(adds.values()), abs=2e-6)

    def test_drawn_labellings_come_close_to_the_enumerated(self) -> None:
        """The same pool and batch with 64 labellings at most, although 3^5 = 243 exist at the last step."""
        probs = pool(60, 20, 3, seed=5)
        exact = batch_bald(probs, 6, configurations=3**6)
        known = information(probs, exact.images.tolist())

        for seed in range(3):
            drawn = batch_bald(probs, 6, seed=seed, configurations=64)

            assert information(probs, drawn.images.tolist()) >= 0.97 * known
            assert drawn.gains.sum().item() == pytest.approx(known, rel=0.1)

    def test_zeros_and_ones_never_become_nan(self) -> None:
        """Masks that are all sure make most labellings impossible."""
        generator = torch.Generator().manual_seed(0)
        probs = torch.eye(3)[torch.randint(0, 3, (20, 9), generator=generator)]

        picks = batch_bald(probs, 12, configurations=30)

        assert picks.gains.isfinite().all()
        assert len(set(picks.images.tolist())) == 12
        # Nine masks that any label tells apart: log 9 nats are all there is.
        assert picks.gains.sum().item() == pytest.approx(math.log(9), abs=1e-4)


class TestLargeBatch:
    def test_information_of_twenty_picks_beats_the_best_twenty_alone(self) -> None:
        """Judged by an estimator of its own, of 40,000 labellings; near-twins fill the top by BALD."""
        probs = pool(300, 100, 2, doubt=0.5)

        picks = batch_bald(probs, 20)

        together = sampled_information(probs, picks.images.tolist(), 40_000)
        assert together > 1.02 * sampled_information(probs, bald(probs).topk(20).indices.tolist(), 40_000)
        assert picks.gains.sum().item() == pytest.approx(together, rel=0.05)

    def test_lazy_greedy_loses_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Against scoring every candidate in full at every step."""
        probs = pool(300, 100, 3, doubt=0.3)
        lazy = batch_bald(probs, 20)
        monkeypatch.setattr(module, "_SLACK_NATS", 1e9)
        monkeypatch.setattr(module, "_FINALISTS", 1_000)

        full = batch_bald(probs, 20)

        with_lazy = sampled_information(probs, lazy.images.tolist(), 40_000)
        assert with_lazy >= 0.998 * sampled_information(probs, full.images.tolist(), 40_000)

    def test_of_many_copies_the_seed_chooses(self) -> None:
        """More copies of the best image than are ever scored together: the first pick's draw decides, not the place."""
        copies = pool(1, 50, 2, doubt=0.9).expand(150, -1, -1)
        ids = [f"copy {number}" for number in range(150)]
        firsts = set()
        for seed in range(8):
            forwards = rank("batch_bald", copies, 12, seed, ids=ids).order.tolist()
            backwards = rank("batch_bald", copies, 12, seed, ids=ids[::-1]).order.tolist()
            assert [ids[place] for place in forwards] == [ids[::-1][place] for place in backwards]
            firsts.add(forwards[1])
        assert len(firsts) > 4

    def test_needs_no_gradient_and_leaves_none(self) -> None:
        """A researcher may hand over what a network in training has just said."""
        logits = pool(40, 30, 3, doubt=0.5).log().requires_grad_()

        picks = batch_bald(logits.softmax(dim=-1), 5)

        assert not picks.gains.requires_grad
        assert not picks.gains.is_inference()

    def test_the_same_whatever_the_thread_count(self) -> None:
        probs = pool(200, 50, 3, doubt=0.5)
        before = torch.get_num_threads()
        try:
            picks = []
            for threads in (1, 2):
                torch.set_num_threads(threads)
                picks.append(batch_bald(probs, 15, seed=3).images.tolist())
        finally:
            torch.set_num_threads(before)

        assert picks[0] == picks[1]


class TestLaws:
    @settings(deadline=None, max_examples=10)
    @given(
        images=st.integers(1, 15),
        passes=st.integers(2, 12),
        classes=st.integers(2, 4),
        batch_size=st.integers(1, 18),
        seed=st.integers(-5, 1000),
    )
    def test_any_pool(self, images: int, passes: int, classes: int, batch_size: int, seed: int) -> None:
        probs = pool(images, passes, classes, abs(seed), doubt=2.0)

        picks = batch_bald(probs, batch_size, seed=seed, configurations=100)
        again = batch_bald(probs, batch_size, seed=seed, configurations=100)

        assert picks.images.tolist() == again.images.tolist()
        assert len(set(picks.images.tolist())) == len(picks.images) == min(batch_size, images)
        assert (picks.gains >= 0).all()
        assert (picks.gains <= math.log(classes) + 1e-6).all()

    @settings(deadline=None, max_examples=10)
    @given(data=st.data(), seed=st.integers(0, 100))
    def test_the_order_of_arrival_decides_nothing(self, data: st.DataObject, seed: int) -> None:
        probs = pool(12, 6, 2, seed)
        order = data.draw(st.permutations(range(12)))
        ties = np.arange(12)

        picks = batch_bald(probs, 6, ties=ties)
        moved = batch_bald(probs[order], 6, ties=ties[order])

        assert [order[i] for i in moved.images.tolist()] == picks.images.tolist()


class TestBadInput:
    def test_one_pass(self) -> None:
        with pytest.raises(ValueError, match="at least 2 passes, got 1"):
            batch_bald(torch.full((3, 1, 2), 0.5), 2)

    @pytest.mark.parametrize(("batch_size", "configurations"), [(0, 500), (2, 0)])
    def test_nothing_to_pick_or_to_average(self, batch_size: int, configurations: int) -> None:
        with pytest.raises(ValueError, match=f"at least 1, got {batch_size} and {configurations}"):
            batch_bald(torch.full((3, 4, 2), 0.5), batch_size, configurations=configurations)


class TestPowerBald:
    def test_hand_computed(self) -> None:
        """Two passes that are sure and contradict each other hold log 2 nats; a uniform draw of 1/2 is -log log 2."""
        probs = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])

        score = power_bald(probs, np.array([2**63], dtype=np.uint64)).item()

        assert math.isclose(score, math.log(math.log(2)) - math.log(math.log(2)), abs_tol=1e-12)

    def test_nothing_to_learn_is_a_number_and_comes_last(self) -> None:
        probs = torch.tensor([[[0.5, 0.5], [0.5, 0.5]], [[0.6, 0.4], [0.4, 0.6]], [[1.0, 0.0], [1.0, 0.0]]])
        for seed in range(50):
            scores = power_bald(probs, seeded_draws(["a", "b", "c"], seed, "power_bald "))

            assert scores.isfinite().all()
            assert scores.argmax() == 1

    def test_the_first_pick_follows_bald(self) -> None:
        """4,000 seeds: an image of twice the score is picked twice as often."""
        generator = torch.Generator().manual_seed(1)
        probs = torch.softmax(2 * torch.randn(6, 8, 3, generator=generator), dim=-1)
        share = (bald(probs) / bald(probs).sum()).numpy()
        ids = [f"image {i}" for i in range(6)]

        picks = [int(power_bald(probs, seeded_draws(ids, seed, "power_bald ")).argmax()) for seed in range(4000)]

        counts = np.bincount(picks, minlength=6)
        assert ((counts - 4000 * share) ** 2 / (4000 * share)).sum() < 20.5  # chi-square, 5 degrees, 99.9 %
