from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ml_backend.model.data import FeatureExamples
from ml_backend.model.hardware import Arithmetic
from ml_backend.model.head_steps import HeadSteps, KeptFeatures
from ml_backend.model.network import DropoutHead
from ml_backend.model.steps import AutogradSteps, Loss, Pace

CPU = Arithmetic(torch.device("cpu"))
PACE = Pace(learning_rate=1e-3, weight_decay=1e-4)
WEIGHTS = torch.tensor([0.5, 1.0, 2.5])


class SameMasks(nn.Module):
    """Dropout that keeps what ``HeadSteps`` keeps."""

    def __init__(self, dims: int, rate: float, seed: int) -> None:
        super().__init__()
        self.p = rate
        self.masks = KeptFeatures(dims, rate, seed)

    def forward(self, features: Tensor) -> Tensor:
        if not self.training:
            return features
        return features * torch.from_numpy(self.masks.draw(len(features))) / (1.0 - self.p)


def head(dims: int, rate: float, seed: int) -> DropoutHead:
    """Its normalisation, statistics and standardisation are not the identity."""
    torch.manual_seed(seed)
    it = DropoutHead(dims, 3, rate)
    with torch.no_grad():
        for tensor in it.norm.parameters():
            tensor.normal_(1.0, 0.3)
        it.norm.running_mean.normal_()  # type: ignore[union-attr]
        it.norm.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    it.standardise(torch.randn(30, dims) * 3 + 1)
    return it


def examples(count: int, dims: int, seed: int) -> FeatureExamples:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 3, (count,), generator=generator)
    return FeatureExamples(torch.randn(count, dims, generator=generator) + targets[:, None], targets)


def pair(dims: int = 12, rate: float = 0.5, seed: int = 0, pace: Pace = PACE) -> tuple[HeadSteps, AutogradSteps]:
    """The same head in both kinds of steps, with the same masks; they share nothing."""
    training, validation = examples(40, dims, seed), examples(15, dims, seed + 1)
    loss = Loss(WEIGHTS)
    by_hand = HeadSteps(head(dims, rate, seed), training, validation, loss, pace, seed=seed)
    reference = head(dims, rate, seed)
    reference.dropout = SameMasks(dims, rate, seed)  # type: ignore[assignment]
    return by_hand, AutogradSteps(reference, training, validation, loss, pace, batch=7, arithmetic=CPU, seed=seed)


def batches(count: int, size: int, epoch: int) -> list[Tensor]:
    return list(torch.split(torch.randperm(count, generator=torch.Generator().manual_seed(epoch)), size))


class TestKeptFeatures:
    @pytest.mark.parametrize("rate", [0.0, 0.1, 0.25, 0.5, 0.9])
    def test_share(self, rate: float) -> None:
        """In every column and every row: 400,000 draws, 500 a column."""
        kept = torch.from_numpy(KeptFeatures(800, rate, seed=1).draw(500)).float()

        assert float(kept.mean()) == pytest.approx(1.0 - rate, abs=0.003)
        assert float((kept.mean(dim=0) - (1.0 - rate)).abs().max()) < 0.12
        assert float((kept.mean(dim=1) - (1.0 - rate)).abs().max()) < 0.12

    def test_neighbours_are_independent(self) -> None:
        """Images, features, and features 8 bytes of raw bits apart: no pair of them agrees more than by chance."""
        kept = torch.from_numpy(KeptFeatures(800, 0.5, seed=1).draw(500)).float() - 0.5

        for a, b in ((kept[1:], kept[:-1]), (kept[:, 1:], kept[:, :-1]), (kept[:, 8:], kept[:, :-8])):
            assert float((a * b).mean()) == pytest.approx(0.0, abs=0.002)

    def test_seed(self) -> None:
        one, same, other = (KeptFeatures(33, 0.5, seed) for seed in (1, 1, 2))
        first = one.draw(5)

        assert (first == same.draw(5)).all()
        assert (first != other.draw(5)).any()
        assert (first != one.draw(5)).any()

    @pytest.mark.parametrize("rate", [0.001, 0.999999])
    def test_extreme_rates(self, rate: float) -> None:
        assert float(KeptFeatures(1000, rate, 0).draw(1000).mean()) == pytest.approx(1.0 - rate, abs=0.001)


class TestHeadSteps:
    @given(dims=st.integers(4, 20), rate=st.sampled_from([0.0, 0.3, 0.5, 0.75]), seed=st.integers(0, 99))
    @settings(deadline=None, max_examples=25)
    def test_gradients_are_autograds(self, dims: int, rate: float, seed: int) -> None:
        """Of every weight, after one step at so low a rate that none moves; but for the bias without effect."""
        by_hand, reference = pair(dims, rate, seed, replace(PACE, learning_rate=1e-12, weight_decay=0.0))
        rows = torch.arange(3, 14)

        by_hand.epoch([rows])
        reference.epoch([rows])

        gradients = by_hand._adam.first  # a tenth of them, after one step
        network = reference._network
        assert isinstance(network, DropoutHead)
        for ours, layer in (
            (gradients.hidden, network.hidden.weight),
            (gradients.scale, network.norm.weight),
            (gradients.shift, network.norm.bias),
            (gradients.output, network.output.weight),
            (gradients.output_bias, network.output.bias),
        ):
            assert layer.grad is not None
            assert torch.allclose(ours * 10, layer.grad, atol=1e-5, rtol=1e-4)
        # 0 but for rounding, which Adam would blow up to whole steps.
        assert network.hidden.bias.grad is not None
        assert float(network.hidden.bias.grad.abs().max()) < 1e-4
        assert not gradients.hidden_bias.any()

    @pytest.mark.parametrize("memory", [0.0, 0.75])
    def test_a_whole_training_is_torchs(self, memory: float) -> None:
        """40 epochs of 5 steps of Adam, the last batch shorter: weights, statistics and losses."""
        by_hand, reference = pair(pace=replace(PACE, memory=memory))

        for epoch in range(40):
            losses = [steps.epoch(batches(40, 9, epoch)) for steps in (by_hand, reference)]
            assert losses[0] == pytest.approx(losses[1], abs=1e-4)
            assert by_hand.validation_loss() == pytest.approx(reference.validation_loss(), abs=1e-4)
        for steps in (by_hand, reference):
            steps.keep()
            steps.restore()

        ours, theirs = by_hand._head.state_dict(), reference._network.state_dict()
        assert list(ours) == list(theirs)
        start = head(12, 0.5, 0).state_dict()
        for name in ours:
            if name != "hidden.bias":  # what rounding makes of it; the normalisation takes it away again
                assert torch.allclose(ours[name].float(), theirs[name].float(), atol=2e-3), name
        assert float((ours["hidden.weight"] - start["hidden.weight"]).abs().max()) > 0.02

    @pytest.mark.parametrize("memory", [0.0, 0.75])
    def test_what_was_kept_comes_back(self, memory: float) -> None:
        by_hand, _ = pair(pace=replace(PACE, memory=memory))
        by_hand.epoch(batches(40, 9, 0))
        kept_loss = by_hand.validation_loss()
        by_hand.keep()
        by_hand.epoch(batches(40, 9, 1))
        assert by_hand.validation_loss() != kept_loss

        by_hand.restore()

        it, validation = by_hand._head, examples(15, 12, 1)
        with torch.no_grad():
            loss = nn.functional.cross_entropy(it(validation.features), validation.targets, weight=WEIGHTS)
        assert float(loss) == pytest.approx(kept_loss, abs=1e-5)
        assert not it.training
        assert it.norm.num_batches_tracked is not None
        assert int(it.norm.num_batches_tracked) == 5

    @pytest.mark.parametrize("change", [lambda it: it.hidden.weight, lambda it: it.norm.running_mean])
    def test_head_changes_only_when_restored(self, change: Callable[[DropoutHead], Tensor]) -> None:
        by_hand, _ = pair()
        before = change(by_hand._head).clone()
        by_hand.epoch(batches(40, 9, 0))
        by_hand.keep()

        assert torch.equal(change(by_hand._head), before)
        by_hand.restore()
        assert not torch.equal(change(by_hand._head), before)

    def test_examples_are_left_alone(self) -> None:
        training = examples(20, 6, 0)
        before = training.features.clone()
        steps = HeadSteps(head(6, 0.5, 0), training, examples(4, 6, 1), Loss(WEIGHTS), PACE, seed=0)
        steps.epoch(batches(20, 32, 0))
        steps.validation_loss()

        assert torch.equal(training.features, before)
