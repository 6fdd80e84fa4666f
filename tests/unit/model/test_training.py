import logging
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn

from ml_backend.config import ProjectOptions
from ml_backend.errors import RoundError, SettingsError, TooFewLabels
from ml_backend.model.data import FeatureExamples
from ml_backend.model.hardware import Arithmetic
from ml_backend.model.network import DropoutHead
from ml_backend.model.training import Fitted, Schedule, class_weights, train

CLASSES = ("normal", "moderate", "severe")
CPU = Arithmetic(torch.device("cpu"))
SCHEDULE = Schedule(epochs=30, patience=5, batch=16, learning_rate=1e-3, weight_decay=1e-4)


def clouds(count: int, seed: int, classes: int = 3) -> FeatureExamples:
    """Overlapping clouds of points, one a class."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % classes
    centres = torch.randn(classes, 20, generator=torch.Generator().manual_seed(99))
    return FeatureExamples(centres[targets] + torch.randn(count, 20, generator=generator), targets)


def head(seed: int = 0) -> DropoutHead:
    torch.manual_seed(seed)
    return DropoutHead(20, 3, 0.5)


def fit(network: nn.Module, training: FeatureExamples, validation: FeatureExamples, **changes: Any) -> Fitted:
    return train(
        network,
        training,
        validation,
        CLASSES,
        schedule=replace(SCHEDULE, **changes),
        arithmetic=CPU,
        seed=0,
        progress=lambda done, total: None,  # noqa: ARG005
    )


class Scripted(nn.Module):
    """Its losses follow a script, whatever it is trained on; its weight counts the training steps.

    Images are of the class that their first feature names.

    Args:
        losses: of validation, epoch by epoch.
        training: of training, likewise; by default those of guessing among three.
    """

    def __init__(self, losses: list[float], training: list[float] | None = None) -> None:
        super().__init__()
        self.steps = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.pull = nn.Parameter(torch.zeros(()))
        self.losses = losses
        self.training_losses = training or [math.log(3.0)] * len(losses)
        self.validations = 0

    def forward(self, features: Tensor) -> Tensor:
        if self.training:
            self.steps.add_(1)
            return self._answers(features, self.training_losses[self.validations]) + self.pull
        self.validations += 1
        return self._answers(features, self.losses[self.validations - 1])

    @staticmethod
    def _answers(features: Tensor, loss: float) -> Tensor:
        # With a logit of a for the right class and of 0 for two others the loss is log(1 + 2 exp(-a)): solved for a.
        right = nn.functional.one_hot(features[:, 0].long(), 3)
        return right * -torch.log((torch.tensor(loss).exp() - 1) / 2)


def one_a_class() -> FeatureExamples:
    targets = torch.arange(3)
    return FeatureExamples(targets[:, None].repeat(1, 20).float(), targets)


class TestClassWeights:
    def test_the_papers_imbalance(self) -> None:
        """14 / 36 / 50 % gives 2.38 / 0.93 / 0.67 (method of the paper)."""
        targets = torch.tensor([0] * 14 + [1] * 36 + [2] * 50)

        weights = class_weights(targets, CLASSES)

        assert weights.tolist() == pytest.approx([100 / 42, 100 / 108, 100 / 150])
        assert weights.tolist() == pytest.approx(
            compute_class_weight("balanced", classes=np.arange(3), y=targets.numpy()).tolist()
        )
        assert float(weights[targets].mean()) == pytest.approx(1.0)

    def test_absent_class_weighs_nothing_and_is_named(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            weights = class_weights(torch.tensor([0, 2, 2]), CLASSES)

        assert weights.tolist() == pytest.approx([1.0, 0.0, 0.5])
        assert "no training label yet of moderate" in caplog.text


class TestTrain:
    def test_learns(self) -> None:
        network = head()
        test = clouds(300, seed=2)
        before = float((network.eval()(test.features).argmax(1) == test.targets).float().mean())

        fitted = fit(network, clouds(90, seed=0), clouds(30, seed=1))

        after = float((network(test.features).argmax(1) == test.targets).float().mean())
        assert before < 0.6
        assert after > 0.9
        assert not network.training
        assert fitted.class_weights == pytest.approx((1.0, 1.0, 1.0))

    def test_memory_reaches_the_steps(self) -> None:
        """One epoch is its own mean; of two it is another network than the second."""
        weights = {}
        for epochs in (1, 2):
            for memory in (0.0, 0.9):
                network = head()
                fit(network, clouds(20, seed=0), clouds(9, seed=1), epochs=epochs, memory=memory)
                weights[epochs, memory] = network.hidden.weight

        assert torch.equal(weights[1, 0.0], weights[1, 0.9])
        assert not torch.equal(weights[2, 0.0], weights[2, 0.9])

    def test_best_epoch_is_restored_after_patience(self) -> None:
        """Falls until epoch 3, then three worse ones; two steps an epoch."""
        network = Scripted([1.0, 0.9, 0.5, 0.8, 0.5, 0.6, 0.1])
        examples = FeatureExamples(torch.zeros(8, 20), torch.zeros(8, dtype=torch.int64))

        fitted = fit(
            network,
            examples,
            FeatureExamples(torch.zeros(3, 20), torch.zeros(3, dtype=torch.int64)),
            patience=3,
            batch=4,
        )

        assert (fitted.epochs, fitted.best_epoch) == (6, 3)
        assert fitted.validation_loss == pytest.approx(0.5)
        assert float(network.steps) == 6

    def test_a_network_that_guesses_is_not_stopped(self) -> None:
        """Its validation loss rises for ten epochs before it learns: that is no sign of learning too much."""
        guessing, learning = math.log(3.0), 0.61 * math.log(3.0)
        network = Scripted(
            [1.05, *[1.1] * 11, 0.9, 0.6, 0.7, 0.7, 0.7, 0.1],
            [*[guessing] * 6, *[learning] * 6, *[0.5] * 6],
        )
        examples = one_a_class()

        fitted = fit(network, examples, examples, patience=3)

        assert (fitted.epochs, fitted.best_epoch) == (17, 14)

    def test_patience_counts_from_when_it_no_longer_guesses(self) -> None:
        """Learning from epoch 5 on, its training loss back and forth after that."""
        network = Scripted([1.0, *[1.1] * 10], [*[1.0986] * 4, 0.65, *[0.7] * 6])
        examples = one_a_class()

        fitted = fit(network, examples, examples, patience=3)

        assert (fitted.epochs, fitted.best_epoch) == (8, 5)

    def test_what_guesses_is_no_candidate_once_it_has_learned(self) -> None:
        """Sure of nothing, it may lose less on validation images than what knows and errs now and then."""
        network = Scripted([1.0, 1.0986, 1.6, 1.5, 1.55, 1.6, 1.7], [*[1.0986] * 2, *[0.5] * 5])
        examples = one_a_class()

        fitted = fit(network, examples, examples, patience=3)

        assert (fitted.epochs, fitted.best_epoch) == (7, 4)
        assert fitted.validation_loss == pytest.approx(1.5)
        assert float(network.steps) == 4

    def test_of_a_network_that_guesses_to_the_end_the_best_guess_is_kept(self) -> None:
        network = Scripted([1.2, 1.1, 1.15], [1.0986] * 3)
        examples = one_a_class()

        assert fit(network, examples, examples, epochs=3).best_epoch == 2

    def test_what_learned_and_is_no_number_takes_no_place(self) -> None:
        network = Scripted([1.0, math.nan, math.nan], [1.0986, 0.5, 0.5])
        examples = one_a_class()

        assert fit(network, examples, examples, epochs=3).best_epoch == 1

    def test_few_that_are_rare_are_soon_guessed(self) -> None:
        """Unweighted, knowing how rare a class is makes the loss small: it has to fall below a part of that."""
        targets = torch.tensor([0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
        examples = FeatureExamples(targets[:, None].repeat(1, 20).float(), targets)
        guessing = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
        epochs = {}
        for name, loss in (("guesses", 0.61 * guessing), ("knows", 0.59 * guessing)):
            network = Scripted([0.3, *[0.4] * 29], [loss] * 30)
            epochs[name] = fit(network, examples, examples, patience=3, weighted=False).epochs

        assert epochs == {"guesses": SCHEDULE.epochs, "knows": 4}

    def test_stops_at_the_last_epoch(self) -> None:
        network = Scripted([1.0, 0.9, 0.8])
        examples = FeatureExamples(torch.zeros(4, 20), torch.zeros(4, dtype=torch.int64))

        assert fit(network, examples, FeatureExamples(torch.zeros(4, 20), examples.targets), epochs=3).best_epoch == 3

    @pytest.mark.parametrize(
        ("least", "epochs", "best"),
        [
            (1, 5, 2),  # patience 3 after the second
            (5, 5, 2),
            (6, 6, 2),
            (7, 7, 7),  # which the better one at the end is worth
        ],
    )
    def test_least_epochs(self, least: int, epochs: int, best: int) -> None:
        network = Scripted([1.0, 0.5, 0.8, 0.8, 0.6, 0.6, 0.1])
        examples = FeatureExamples(torch.zeros(4, 20), torch.zeros(4, dtype=torch.int64))

        fitted = fit(network, examples, examples, patience=3, min_epochs=least, epochs=7)

        assert (fitted.epochs, fitted.best_epoch) == (epochs, best)

    def test_start_is_never_the_best(self) -> None:
        """Training makes a network worse that fits already; all the same the first epoch is kept, not the start."""
        network = head()
        fit(network, clouds(90, seed=0), clouds(30, seed=1))
        before = network.hidden.weight.clone()
        validation = clouds(30, seed=1)

        def loss() -> float:
            with torch.inference_mode():
                return float(nn.functional.cross_entropy(network.eval()(validation.features), validation.targets))

        start = loss()
        others = clouds(90, seed=0)
        misleading = FeatureExamples(others.features, (others.targets + 1) % 3)
        fitted = fit(network, misleading, validation, epochs=1)

        assert fitted.best_epoch == 1
        assert fitted.validation_loss > start
        assert not torch.equal(network.hidden.weight, before)

    def test_bfloat16(self) -> None:
        """Coarser, but the same training; the weights stay in float32."""
        networks = [head(), head()]
        for network, dtype in zip(networks, (torch.float32, torch.bfloat16), strict=True):
            train(
                network,
                clouds(60, seed=0),
                clouds(30, seed=1),
                CLASSES,
                schedule=replace(SCHEDULE, epochs=3),
                arithmetic=replace(CPU, dtype=dtype),
                seed=0,
                progress=lambda done, total: None,  # noqa: ARG005
            )

        plain, coarse = (network.hidden.weight for network in networks)
        assert coarse.dtype == torch.float32
        assert not torch.equal(plain, coarse)
        assert torch.allclose(plain, coarse, atol=0.02)

    def test_same_seed_same_weights_to_the_bit(self) -> None:
        networks = [head(), head()]
        for network in networks:
            torch.rand(7)  # whatever was drawn in between
            fit(network, clouds(50, seed=0), clouds(20, seed=1), epochs=4)

        first, other = (network.state_dict() for network in networks)
        assert all(torch.equal(first[name], other[name]) for name in first)

    def test_weighted_loss_lifts_the_rare_class(self) -> None:
        """Of class 0 there are 4 among 100 labels; weighted, it is found more often."""
        many = clouds(300, seed=0)
        rows = torch.cat([(many.targets == 0).nonzero()[:4, 0], (many.targets > 0).nonzero()[:96, 0]])
        rare = FeatureExamples(many.features[rows] * 0.6, many.targets[rows])
        test = clouds(300, seed=2)
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

        fitted = fit(head(), clouds(20, seed=0, classes=2), only_severe, epochs=2)

        assert fitted.class_weights[2] == 0.0
        assert fitted.validation_loss > 0

    @pytest.mark.parametrize(("training", "validation"), [(1, 5), (5, 0), (0, 0)])
    def test_too_few_images(self, training: int, validation: int) -> None:
        with pytest.raises(TooFewLabels, match="at least 2 and 1 are needed"):
            fit(head(), clouds(training, seed=0), clouds(validation, seed=1))

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

    def test_progress_ends_at_the_end(self) -> None:
        seen: list[tuple[int, int]] = []
        train(
            head(),
            clouds(20, seed=0),
            clouds(9, seed=1),
            CLASSES,
            schedule=Schedule(epochs=3, patience=3, batch=8, learning_rate=1e-3, weight_decay=0.0),
            arithmetic=CPU,
            seed=0,
            progress=lambda done, total: seen.append((done, total)),
        )

        assert seen[0] == (1, 3)
        assert seen[-1] == (3, 3)


class TestSchedule:
    def test_of_options(self) -> None:
        options = ProjectOptions(
            epochs=20, min_epochs=2, patience=4, train_batch=8, learning_rate=0.01, loss="unweighted"
        )

        plain = Schedule(20, 4, 8, 0.01, 1e-4, weighted=False, min_epochs=2)
        assert Schedule.of(options, head_only=False) == plain
        assert Schedule.of(options, head_only=True) == replace(plain, epochs=60, min_epochs=10, memory=0.9)

    @pytest.mark.parametrize(("epochs", "least", "expected"), [(50, 1, 10), (50, 4, 12), (3, 1, 9)])
    def test_a_head_alone_trains_until_its_mean_has_settled(self, epochs: int, least: int, expected: int) -> None:
        """Ten epochs, unless three times the most are fewer, or three times the least are more."""
        options = ProjectOptions(epochs=epochs, min_epochs=least)

        assert Schedule.of(options, head_only=True).min_epochs == expected
        assert Schedule.of(options, head_only=False).min_epochs == least

    @pytest.mark.parametrize(("head_only", "rate"), [(False, 1e-4), (True, 3e-4)])
    def test_a_head_alone_learns_faster_unless_told(self, head_only: bool, rate: float) -> None:
        assert Schedule.of(ProjectOptions(), head_only=head_only).learning_rate == rate
        assert Schedule.of(ProjectOptions(learning_rate=1e-5), head_only=head_only).learning_rate == 1e-5

    def test_more_epochs_at_least_than_at_most(self) -> None:
        with pytest.raises(SettingsError, match="min_epochs=9 is more than epochs=8: set min_epochs"):
            replace(SCHEDULE, epochs=8, min_epochs=9)
        assert replace(SCHEDULE, epochs=8, min_epochs=8).min_epochs == 8
