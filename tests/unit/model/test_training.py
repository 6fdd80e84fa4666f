import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn

from ml_backend.config import ProjectOptions
from ml_backend.errors import RoundError, SettingsError
from ml_backend.model.data import DropoutMasks, FeatureExamples
from ml_backend.model.hardware import Precision
from ml_backend.model.network import DropoutHead
from ml_backend.model.training import (
    EarlyStopping,
    OptimizerConfig,
    TrainingResult,
    WeightedCrossEntropy,
    accuracy,
    auroc,
    average_over_epochs,
    class_weights,
    head_problem,
    recalls,
    train,
)

CLASSES = ("normal", "moderate", "severe")
CPU = Precision(torch.device("cpu"))
CONFIG = OptimizerConfig(epochs=30, patience=5, batch=16, learning_rate=1e-3, weight_decay=1e-4)


def clouds(count: int, seed: int, classes: int = 3) -> FeatureExamples:
    """Overlapping clouds of points, one a class."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % classes
    centres = torch.randn(classes, 20, generator=torch.Generator().manual_seed(99))
    return FeatureExamples(centres[targets] + torch.randn(count, 20, generator=generator), targets)


def zeros(count: int) -> FeatureExamples:
    return FeatureExamples(torch.zeros(count, 20), torch.zeros(count, dtype=torch.int64))


def head(seed: int = 0, dropout: float = 0.5) -> DropoutHead:
    torch.manual_seed(seed)
    return DropoutHead(20, 3, dropout)


def fit(
    network: nn.Module,
    training: FeatureExamples,
    validation: FeatureExamples,
    precision: Precision = CPU,
    progress: Any = lambda done, total: None,  # noqa: ARG005
    **changes: Any,
) -> TrainingResult:
    problem = (network, training, validation)
    if type(network) is DropoutHead:
        problem = head_problem(network, training, validation)
    config = replace(CONFIG, **changes)
    result = train(*problem, CLASSES, config=config, precision=precision, seed=0, progress=progress)
    network.eval()
    return result


class Scripted(nn.Module):
    """Follows a script of validation losses for images of class 0, and counts its training steps as a weight."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.steps = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.pull = nn.Parameter(torch.zeros(()))
        self.losses = iter(losses)

    def forward(self, features: Tensor) -> Tensor:
        right = torch.tensor([1.0, 0.0, 0.0]).expand(len(features), 3)
        if self.training:
            self.steps.add_(1)
            return right * 9 + self.pull
        # With a logit of a for the right class and of 0 for two others the loss is log(1 + 2 exp(-a)): solved for a.
        return right * -torch.log((torch.tensor(next(self.losses)).exp() - 1) / 2)


class TestClassWeights:
    def test_the_papers_imbalance(self) -> None:
        """14 / 36 / 50 % gives 2.38 / 0.93 / 0.67."""
        targets = torch.tensor([0] * 14 + [1] * 36 + [2] * 50)

        weights = class_weights(targets, CLASSES)

        assert weights.tolist() == pytest.approx([100 / 42, 100 / 108, 100 / 150])
        assert weights.tolist() == pytest.approx(
            compute_class_weight("balanced", classes=np.arange(3), y=targets.numpy()).tolist()
        )
        assert float(weights[targets].mean()) == pytest.approx(1.0)

    def test_absent_class_has_weight_zero_and_is_named(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            weights = class_weights(torch.tensor([0, 2, 2]), CLASSES)

        assert weights.tolist() == pytest.approx([1.0, 0.0, 0.5])
        assert "no training label yet of moderate" in caplog.text


class TestChanceLevel:
    def test_hand_computed(self) -> None:
        """Balanced weights make it log C; unweighted it is the entropy of the classes; a single class has none."""
        targets = torch.tensor([0] * 7 + [1] * 18 + [2] * 25)
        balanced = WeightedCrossEntropy(len(targets) / (3 * torch.bincount(targets)))

        assert balanced.chance_level(targets) == pytest.approx(math.log(3.0))
        rare = torch.tensor([1] * 5 + [0] * 95)
        assert WeightedCrossEntropy(torch.ones(2)).chance_level(rare) == pytest.approx(0.1985, abs=1e-4)
        single = WeightedCrossEntropy(torch.tensor([1.0, 0.0, 0.0]))
        assert single.chance_level(torch.zeros(4, dtype=torch.int64)) == 0.0

    @given(
        targets=st.lists(st.integers(0, 3), min_size=1, max_size=40),
        weights=st.lists(st.floats(0.1, 5.0), min_size=4, max_size=4),
        logits=st.lists(st.floats(-3.0, 3.0), min_size=4, max_size=4),
    )
    def test_no_constant_prediction_has_a_lower_loss(
        self, targets: list[int], weights: list[float], logits: list[float]
    ) -> None:
        """And predicting the weighted shares reaches it."""
        loss, rows = WeightedCrossEntropy(torch.tensor(weights)), torch.tensor(targets)
        least = loss.chance_level(rows)
        shares = torch.bincount(rows, minlength=4) * loss.weights

        assert float(loss.training(torch.tensor(logits).repeat(len(rows), 1), rows)) >= least - 1e-5
        assert float(loss.training(shares.log().clamp_min(-50.0).repeat(len(rows), 1), rows)) == pytest.approx(
            least, abs=1e-5
        )


class TestSoftTargets:
    SOFT = torch.tensor([[0.6, 0.4, 0.0], [0.0, 0.5, 0.5], [0.2, 0.2, 0.6], [1.0, 0.0, 0.0]])
    TARGETS = torch.tensor([0, 1, 2, 0])
    WEIGHTED = WeightedCrossEntropy(torch.tensor([0.5, 2.0, 1.5]))

    def test_of_one_class_are_the_targets(self) -> None:
        logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
        one_hot = nn.functional.one_hot(self.TARGETS).float()

        hard, soft = (float(self.WEIGHTED.training(logits, self.TARGETS, each)) for each in (None, one_hot))
        assert soft == pytest.approx(hard)
        assert self.WEIGHTED.chance_level(self.TARGETS, one_hot) == pytest.approx(
            self.WEIGHTED.chance_level(self.TARGETS)
        )

    def test_predicting_them_is_the_least_loss(self) -> None:
        """It is 0, as with targets of one class, so that early stopping knows when the network has learned."""
        weighted = self.SOFT * self.WEIGHTED.weights
        logits = weighted.log().clamp_min(-50.0)

        assert float(self.WEIGHTED.training(logits, self.TARGETS, self.SOFT)) == pytest.approx(0.0, abs=1e-6)
        assert float(self.WEIGHTED.training(logits * 0.5, self.TARGETS, self.SOFT)) > 0.01

    def test_hand_worked(self) -> None:
        """Without weights it is the mean divergence from the targets: of a uniform prediction, ln 3 - their entropy."""
        plain = WeightedCrossEntropy(torch.ones(3))
        entropy = float(torch.special.entr(self.SOFT).sum(dim=1).mean())

        assert float(plain.training(torch.zeros(4, 3), self.TARGETS, self.SOFT)) == pytest.approx(
            math.log(3.0) - entropy
        )
        shares = self.SOFT.mean(dim=0)
        chance = plain.chance_level(self.TARGETS, self.SOFT)
        assert chance == pytest.approx(float(torch.special.entr(shares).sum()) - entropy)
        assert chance == pytest.approx(float(plain.training(shares.log().repeat(4, 1), self.TARGETS, self.SOFT)))

    def test_a_network_learns_them(self) -> None:
        """Its mean prediction for a class is theirs; validation and class weights stay on the targets."""
        data, validation = clouds(300, seed=0), clouds(60, seed=1)
        soft = torch.full((300, 3), 0.2) + 0.4 * nn.functional.one_hot(data.targets)
        networks = [head(), head()]

        hard, result = (
            fit(network, replace(data, soft=each), validation, epochs=20)
            for network, each in zip(networks, (None, soft), strict=True)
        )

        confident, calibrated = (
            float(network(data.features).detach().softmax(1).amax(1).mean()) for network in networks
        )
        assert calibrated == pytest.approx(0.6, abs=0.08)
        assert confident > 0.8
        assert result.class_weights == hard.class_weights


class TestEarlyStopping:
    """Chance level is 1: training losses below 0.6 count as learned."""

    @pytest.mark.parametrize(
        ("validation", "training", "config", "epochs", "best"),
        [
            pytest.param([1.0, 0.9, 0.5, 0.8, 0.5, 0.6, 0.1], [0.1] * 7, {}, 6, 3, id="patience after the best"),
            pytest.param([1.05, *[1.1] * 11, 0.9, 0.6, *[0.7] * 3, 0.1], [0.61] * 12 + [0.5] * 6, {}, 17, 14, id="17"),
            pytest.param([1.0, *[1.1] * 10], [1.0] * 4 + [0.59] + [0.7] * 6, {}, 8, 5, id="patience from learning"),
            pytest.param([1.0, 1.1, 1.6, 1.5, 1.55, 1.6, 1.7], [1.0] * 2 + [0.5] * 5, {}, 7, 4, id="no guess"),
            pytest.param([1.2, 1.1, 1.15], [1.0] * 3, {"epochs": 3}, 3, 2, id="the best guess if nothing is learned"),
            pytest.param([1.0, *[math.nan] * 6], [1.0, *[0.5] * 6], {}, 5, 1, id="NaN is no candidate"),
            pytest.param([1.0, 0.9, 0.8], [0.1] * 3, {"epochs": 3}, 3, 3, id="last epoch"),
            pytest.param([1.0, 0.9], [math.nan] * 5, {"epochs": 2}, 2, 2, id="a NaN training loss counts as learned"),
            pytest.param([1.0, 0.5, 0.8, 0.8, 0.6, 0.6, 0.1], [0.1] * 7, {"min_epochs": 5}, 5, 2, id="min 5"),
            pytest.param([1.0, 0.5, 0.8, 0.8, 0.6, 0.6, 0.1], [0.1] * 7, {"min_epochs": 6}, 6, 2, id="min 6"),
            pytest.param([1.0, 0.5, 0.8, 0.8, 0.6, 0.6, 0.1], [0.1] * 7, {"epochs": 7, "min_epochs": 7}, 7, 7, id="7"),
        ],
    )  # fmt: skip
    def test_stops_and_chooses(
        self, validation: list[float], training: list[float], config: dict[str, Any], epochs: int, best: int
    ) -> None:
        stopping = EarlyStopping(replace(CONFIG, patience=3, **config), chance_level=1.0)
        kept = 0
        for losses in zip(training, validation, strict=False):
            if stopping.stopped:
                break
            if stopping.update(*losses):
                kept = stopping.epoch

        assert stopping.stopped
        assert (stopping.epoch, stopping.best_epoch, kept) == (epochs, best, best)
        assert stopping.best_loss == validation[best - 1]


class TestAverageOverEpochs:
    PATHS = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20)

    @staticmethod
    def means(path: Sequence[float], decay: float) -> list[float]:
        """The mean after every epoch of a network of one number, which takes these values."""
        network = nn.BatchNorm1d(1).double()
        averaged = average_over_epochs(network, decay)
        found = []
        for value in path:
            nn.init.constant_(network.weight, value)
            network.running_mean.fill_(value)  # type: ignore[union-attr]
            network.num_batches_tracked.add_(5)  # type: ignore[union-attr]
            averaged.update_parameters(network)
            state = averaged.module.state_dict()
            found.append(float(state["weight"]))
            assert float(state["running_mean"]) == found[-1]
            assert state["num_batches_tracked"] == network.num_batches_tracked
        return found

    def test_hand_computed(self) -> None:
        """4, (4 + 8) / 2, (6 + 6 + 0) / 3; from then on a quarter of the new one: 0.75 * 4 + 0.25 * 8, ..."""
        assert self.means([4, 8, 0, 8, 1], decay=0.75) == pytest.approx([4, 6, 4, 5, 4])

    @given(path=PATHS, decay=st.floats(0.0, 1.0, exclude_max=True))
    @settings(deadline=None, max_examples=30)
    def test_lies_within_the_path(self, path: list[float], decay: float) -> None:
        for number, mean in enumerate(self.means(path, decay), start=1):
            assert min(path[:number]) - 1e-9 <= mean <= max(path[:number]) + 1e-9

    @given(path=PATHS)
    @settings(deadline=None, max_examples=30)
    def test_slow_decay_is_the_plain_mean(self, path: list[float]) -> None:
        assert self.means(path, decay=0.999)[-1] == pytest.approx(sum(path) / len(path), abs=1e-6)


class TestHeadProblem:
    @pytest.mark.parametrize("dropout", [0.0, 0.3, 0.5])
    def test_equals_training_the_head_itself(self, dropout: float) -> None:
        """To rounding, with the same masks; standardised by other constants than the identity."""

        class RecordedMasks(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.p = dropout
                self.masks = DropoutMasks(20, dropout, seed=0)

            def forward(self, features: Tensor) -> Tensor:
                if not self.training:
                    return features
                return features * torch.from_numpy(self.masks.draw(len(features))) / (1.0 - self.p)

        data, validation = clouds(41, seed=0), clouds(20, seed=1)
        ours, reference = head(dropout=dropout), head(dropout=dropout)
        for network in (ours, reference):
            network.fit_standardisation(clouds(50, seed=2).features * 3 + 1)
        reference.dropout = RecordedMasks()  # type: ignore[assignment]
        settings: dict[str, Any] = {"epochs": 12, "min_epochs": 12, "averaging_decay": 0.75}

        result = fit(ours, data, validation, **settings)
        config = replace(CONFIG, **settings)
        expected = train(
            reference, data, validation, CLASSES, config=config, precision=CPU, seed=0, progress=lambda *_: None
        )

        assert result.best_epoch == expected.best_epoch
        assert result.validation_loss == pytest.approx(expected.validation_loss, abs=1e-4)
        for name, tensor in ours.state_dict().items():
            if name != "hidden.bias":  # has no effect: the normalisation subtracts it again
                assert torch.allclose(tensor, reference.state_dict()[name], atol=2e-3), name
        assert not torch.equal(ours.hidden.weight, head(dropout=dropout).hidden.weight)


class TestTrain:
    def test_learns(self) -> None:
        network, data, test = head(), clouds(90, seed=0), clouds(300, seed=2)
        features = data.features.clone()
        before = float((network.eval()(test.features).argmax(1) == test.targets).float().mean())

        result = fit(network, data, clouds(30, seed=1))

        after = float((network(test.features).argmax(1) == test.targets).float().mean())
        assert before < 0.6
        assert after > 0.9
        assert result.class_weights == pytest.approx((1.0, 1.0, 1.0))
        assert torch.equal(data.features, features)

    def test_best_epoch_is_restored(self) -> None:
        """The third of six epochs, of two steps each."""
        network = Scripted([1.0, 0.9, 0.5, 0.8, 0.5, 0.6, 0.1])

        result = fit(network, zeros(8), zeros(3), patience=3, batch=4)

        assert (result.epochs, result.best_epoch, float(network.steps)) == (6, 3, 6)
        assert result.validation_loss == pytest.approx(0.5)
        assert not network.training

    def test_mean_over_the_epochs_is_kept(self) -> None:
        """After one epoch it is the network itself, after two another network; its loss is the reported one."""
        weights = {}
        for epochs in (1, 2):
            for decay in (0.0, 0.9):
                network, validation = head(), clouds(9, seed=1)
                result = fit(network, clouds(20, seed=0), validation, epochs=epochs, averaging_decay=decay)
                weights[epochs, decay] = network.hidden.weight
                logits = network(validation.features).detach()
                loss = nn.functional.cross_entropy(
                    logits, validation.targets, weight=torch.tensor(result.class_weights)
                )
                assert loss.item() == pytest.approx(result.validation_loss, abs=1e-5)

        assert torch.equal(weights[1, 0.0], weights[1, 0.9])
        assert not torch.equal(weights[2, 0.0], weights[2, 0.9])

    def test_initial_weights_are_never_the_best(self) -> None:
        """Training on wrong labels makes a fitted network worse; still its first epoch is kept."""
        network, validation, data = head(), clouds(30, seed=1), clouds(90, seed=0)
        start = fit(network, data, validation).validation_loss
        before = network.hidden.weight.clone()

        result = fit(network, FeatureExamples(data.features, (data.targets + 1) % 3), validation, epochs=1)

        assert result.best_epoch == 1
        assert result.validation_loss > start
        assert not torch.equal(network.hidden.weight, before)

    def test_bfloat16(self) -> None:
        """Coarser, but the same training; the weights stay in float32."""
        plain, coarse = head(), head()
        for network, dtype in ((plain, torch.float32), (coarse, torch.bfloat16)):
            fit(network, clouds(60, seed=0), clouds(30, seed=1), replace(CPU, dtype=dtype), epochs=3)

        assert coarse.hidden.weight.dtype == torch.float32
        assert not torch.equal(plain.hidden.weight, coarse.hidden.weight)
        assert torch.allclose(plain.hidden.weight, coarse.hidden.weight, atol=0.02)

    def test_same_seed_same_weights_to_the_bit(self) -> None:
        networks = [head(), head()]
        for network in networks:
            torch.rand(7)  # the global generator's state has no effect
            fit(network, clouds(50, seed=0), clouds(20, seed=1), epochs=4)

        first, other = (network.state_dict() for network in networks)
        assert all(torch.equal(first[name], other[name]) for name in first)

    def test_weighted_loss_raises_the_recall_of_a_rare_class(self) -> None:
        """Of class 0 there are 4 among 100 labels."""
        many, test = clouds(300, seed=0), clouds(300, seed=2)
        rows = torch.cat([(many.targets == 0).nonzero()[:4, 0], (many.targets > 0).nonzero()[:96, 0]])
        rare = FeatureExamples(many.features[rows] * 0.6, many.targets[rows])
        recall = {}
        for weighted in (True, False):
            network = head()
            fit(network, rare, clouds(60, seed=1), weighted=weighted, epochs=8)
            hits = network(test.features * 0.6).argmax(1)[test.targets == 0] == 0
            recall[weighted] = float(hits.float().mean())

        assert recall[True] > recall[False] + 0.1

    @pytest.mark.parametrize("count", [2, 17, 33])
    def test_last_batch_of_one_image(self, count: int) -> None:
        """BatchNorm refuses a single image."""
        assert fit(head(), clouds(count, seed=0), clouds(9, seed=1), epochs=2).epochs == 2

    def test_validation_holds_only_a_class_without_training_labels(self) -> None:
        only_severe = FeatureExamples(torch.randn(4, 20), torch.full((4,), 2))

        result = fit(head(), clouds(20, seed=0, classes=2), only_severe, epochs=2)

        assert result.class_weights[2] == 0.0
        assert result.validation_loss > 0

    def test_divergence_names_the_learning_rate(self) -> None:
        with pytest.raises(RoundError, match=r"diverged.*learning_rate=0\.001"):
            fit(head(), FeatureExamples(torch.full((8, 20), float("nan")), torch.arange(8) % 3), clouds(9, seed=1))

    def test_full_gpu_halves_the_batch_and_starts_over(self) -> None:
        class Small(DropoutHead):
            """Runs out of memory on its second step with more than ``room`` images."""

            def __init__(self, room: int) -> None:
                torch.manual_seed(0)
                super().__init__(20, 3, 0.5)
                self.room = room
                self.sizes: list[int] = []

            def forward(self, features: Tensor) -> Tensor:
                if self.training:
                    self.sizes.append(len(features))
                    if len(features) > self.room and len(self.sizes) > 1:
                        raise torch.OutOfMemoryError("CUDA out of memory")
                return super().forward(features)

        small, roomy = Small(8), Small(100)
        fit(small, clouds(32, seed=0), clouds(9, seed=1), epochs=2)
        fit(roomy, clouds(32, seed=0), clouds(9, seed=1), epochs=2, batch=8)

        assert small.sizes[:3] == [16, 16, 8]
        assert torch.equal(small.hidden.weight, roomy.hidden.weight)

    def test_progress_comes_after_every_step_and_ends_at_the_end(self) -> None:
        """Within an epoch of images, a GPU-less worker that is asked to stop would not hear of it for minutes."""
        seen: list[tuple[int, int]] = []
        data = clouds(20, seed=0), clouds(9, seed=1)
        fit(head(), *data, epochs=3, batch=10, progress=lambda *done: seen.append(done))

        assert seen[:6] == [(0, 3), (0, 3), (1, 3), (1, 3), (1, 3), (2, 3)]
        assert seen[-1] == (3, 3)


class TestOptimizerConfig:
    def test_from_options(self) -> None:
        options = ProjectOptions(
            epochs=20, min_epochs=2, patience=4, train_batch=8, learning_rate=0.01, loss="unweighted"
        )

        plain = OptimizerConfig(20, 4, 8, 0.01, 1e-4, weighted=False, min_epochs=2)
        assert OptimizerConfig.from_options(options, head_only=False) == plain
        of_head = replace(plain, epochs=60, min_epochs=10, averaging_decay=0.9)
        assert OptimizerConfig.from_options(options, head_only=True) == of_head

    @pytest.mark.parametrize(("epochs", "least", "expected"), [(50, 1, 10), (50, 4, 12), (3, 1, 9)])
    def test_a_head_trains_until_its_mean_has_settled(self, epochs: int, least: int, expected: int) -> None:
        """Ten epochs, unless three times the maximum are fewer, or three times the minimum are more."""
        options = ProjectOptions(epochs=epochs, min_epochs=least)

        assert OptimizerConfig.from_options(options, head_only=True).min_epochs == expected
        assert OptimizerConfig.from_options(options, head_only=False).min_epochs == least

    @pytest.mark.parametrize(("head_only", "rate"), [(False, 1e-4), (True, 3e-4)])
    def test_learning_rate(self, *, head_only: bool, rate: float) -> None:
        chosen = ProjectOptions(learning_rate=1e-5)
        assert OptimizerConfig.from_options(ProjectOptions(), head_only=head_only).learning_rate == rate
        assert OptimizerConfig.from_options(chosen, head_only=head_only).learning_rate == 1e-5

    def test_more_min_epochs_than_epochs(self) -> None:
        with pytest.raises(SettingsError, match="min_epochs=9 is more than epochs=8: set min_epochs"):
            replace(CONFIG, epochs=8, min_epochs=9)
        assert replace(CONFIG, epochs=8, min_epochs=8).min_epochs == 8


def array(rows: list[list[float]]) -> npt.NDArray[np.float32]:
    return np.array(rows, dtype=np.float32)


PROBS = array([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.1, 0.3, 0.6], [0.2, 0.5, 0.3]])


def test_accuracy() -> None:
    assert accuracy(PROBS, np.array([0, 1, 2, 1])) == 0.75
    with pytest.raises(ValueError, match="no image"):
        accuracy(PROBS[:0], np.array([], dtype=np.int64))


class TestAuroc:
    def test_hand_computed(self) -> None:
        """Class 0: 0.6 beats all three: 1. Class 1: 0.4 and 0.5 against 0.3 and 0.3: 1. Class 2: 1."""
        assert auroc(PROBS, np.array([0, 1, 2, 1])) == 1.0
        # Class 0 (images 0, 1): 1. Class 1 (image 2, at 0.3, ties with one of 0.3, 0.4, 0.5): 0.5 / 3. Class 2: 2 / 3.
        assert auroc(PROBS, np.array([0, 0, 1, 2])) == pytest.approx((1 + 0.5 / 3 + 2 / 3) / 3)

    def test_two_classes_as_scikit_learn(self) -> None:
        """Image 2 ranks above image 1 although it is of the other class."""
        probs = array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]])
        targets = np.array([0, 1, 0, 1])

        assert auroc(probs, targets) == pytest.approx(roc_auc_score(targets, probs[:, 1])) == 0.75

    def test_absent_classes(self) -> None:
        assert auroc(PROBS, np.array([0, 0, 2, 2])) == pytest.approx((1.0 + 1.0) / 2)
        assert auroc(PROBS, np.array([1, 1, 1, 1])) is None


def test_recalls() -> None:
    """Images 0 and 1 are classified as a, image 2 as c, image 3 as b."""
    assert recalls(PROBS, np.array([0, 1, 1, 2]), ("a", "b", "c")) == {"a": 1.0, "b": 0.0, "c": 0.0}
    assert recalls(PROBS, np.array([0, 0, 1, 1]), ("a", "b", "c")) == {"a": 1.0, "b": 0.5, "c": None}
