"""Labels -> a fitted network: weighted loss, early stopping, the best epoch restored."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from ml_backend.config import ProjectOptions
from ml_backend.errors import RoundError, SettingsError, TooFewLabels
from ml_backend.model.data import Examples, FeatureExamples
from ml_backend.model.generators import generator, seeded
from ml_backend.model.hardware import Arithmetic, halving
from ml_backend.model.head_steps import HeadSteps
from ml_backend.model.network import DropoutHead
from ml_backend.model.steps import AutogradSteps, Loss, Pace, Steps

_LOG = logging.getLogger(__name__)

# An epoch on cached features costs a thousandth of one on images, so that three count as one (ours).
_HEAD_EPOCHS_PER_EPOCH = 3
# A head alone learns faster, and is judged as its mean over the last ten epochs or so (ours). Against a third of the
# rate, threefold patience and no mean, on 23 folds of the training side of 2,232 chest films, 75 to 415 labels: 0.56 of
# the epochs, accuracy +0.001 and AU ROC +0.001 (standard errors 0.003 and 0.001); the rate alone -0.005 and 0.000.
_LEARNING_RATE = 1e-4
_HEAD_LEARNING_RATE = 3e-4
_HEAD_MEMORY = 0.9
# Before, the mean has not settled: 2 of 20 trainings on all labels of two classes stopped after 4 epochs for good.
_HEAD_LEAST_EPOCHS = 10
# Share of the loss of guessing below which that of training has to fall before patience counts (ours). With few
# batches an epoch, some networks guess for ten epochs and more before they learn, while their validation loss wavers.
# On 24 trainings of 50 to 140 drawn films, features of random weights: AU ROC 0.883 instead of 0.772; 0.822 at 0.75,
# 0.864 at 0.67, and 0.891 at 0.5, for a third more epochs. 24 trainings on real films: the same at 0.5 as without.
# Nor is an epoch before that the best while there is one after it. Of 17 trainings on 50 to 230 drawn films that bald,
# entropy and random had picked, 10 restored such a one, mostly a network that takes nearly all for the frequent class;
# without, AU ROC 0.858 instead of 0.783, balanced accuracy 0.769 instead of 0.663. Ten on real films: the same.
_BEGUN = 0.6


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        epochs: at most.
        patience: epochs without a better validation loss, after which training stops.
        batch: images in a step.
        min_epochs: before which training does not stop.
        memory: of the mean over the epochs that is judged and kept; see ``averaging.EpochMean``.

    Raises:
        SettingsError: more epochs at least than at most.
    """

    epochs: int
    patience: int
    batch: int
    learning_rate: float
    weight_decay: float
    weighted: bool = True
    min_epochs: int = 1
    memory: float = 0.0

    def __post_init__(self) -> None:
        if self.min_epochs > self.epochs:
            raise SettingsError(
                f"min_epochs={self.min_epochs} is more than epochs={self.epochs}: set min_epochs to at most the epochs"
            )

    @classmethod
    def of(cls, options: ProjectOptions, *, head_only: bool) -> Self:
        """From a project's options.

        On a head alone, epochs and least epochs count threefold, the latter are ten or more, and the mean is kept.

        Raises:
            SettingsError: see ``Schedule``.
        """
        factor = _HEAD_EPOCHS_PER_EPOCH if head_only else 1
        epochs, least = options.epochs * factor, options.min_epochs * factor
        return cls(
            epochs=epochs,
            patience=options.patience,
            min_epochs=max(least, min(_HEAD_LEAST_EPOCHS, epochs)) if head_only else least,
            batch=options.train_batch,
            learning_rate=options.learning_rate or (_HEAD_LEARNING_RATE if head_only else _LEARNING_RATE),
            weight_decay=options.weight_decay,
            weighted=options.loss == "weighted",
            memory=_HEAD_MEMORY if head_only else 0.0,
        )


@dataclass(frozen=True, slots=True)
class Fitted:
    """How a training went. ``best_epoch``, counted from 1, is the one whose weights were restored."""

    epochs: int
    best_epoch: int
    validation_loss: float
    class_weights: tuple[float, ...]


def class_weights(targets: Int64[Tensor, " images"], classes: Sequence[str]) -> Float32[Tensor, " classes"]:
    """Inverse class frequency, ``w_c = n / (C n_c)``: every class weighs the same in all.

    Args:
        targets: index of the class of every training image.
        classes: all classes of the project, labelled yet or not.

    Returns:
        Weights whose mean over the images is 1 when every class has a label; 0, and a warning in the log, for a
        class that has none.

    Source:
        scikit-learn's "balanced"; King & Zeng 2001.
    """
    counts = torch.bincount(targets.cpu(), minlength=len(classes))
    absent = [name for name, count in zip(classes, counts.tolist(), strict=True) if count == 0]
    if absent:
        _LOG.warning("no training label yet of %s: the network cannot learn it this round", ", ".join(absent))
    weights = len(targets) / (len(classes) * counts.clamp_min(1).to(torch.float32))
    return torch.where(counts > 0, weights, 0.0)


def train(
    network: nn.Module,
    training: Examples,
    validation: Examples,
    classes: Sequence[str],
    *,
    schedule: Schedule,
    arithmetic: Arithmetic,
    seed: int,
    progress: Callable[[int, int], None],
) -> Fitted:
    """Train in place, until the validation loss no longer falls; the best epoch's weights are restored.

    A network that still guesses is not stopped, whatever its validation loss does: nothing can be overfitted yet.

    The same seed, data and thread count give the same weights to the bit on a CPU. The weights that training begins
    with are never the best, not even those of a warm start: they know nothing of the labels that are new, and were
    chosen on a validation set that was another.

    Args:
        network: input -> logits [images, classes]; left in eval mode.
        training: augmented where that is possible.
        validation: never augmented; decides when to stop.
        classes: in the order of the targets.
        schedule: see ``Schedule``; its batch is halved when the GPU's memory is full.
        arithmetic: of the forward passes; the network is already there.
        seed: of order, dropout and augmentation.
        progress: called with the epochs done and their highest number.

    Raises:
        TooFewLabels: fewer than 2 training images (BatchNorm needs 2), or no validation image.
        RoundError: the loss is never a number, or the GPU's memory holds not even 2 images.
    """
    if len(training.targets) < 2 or len(validation.targets) < 1:
        raise TooFewLabels(
            f"{len(training.targets)} readable images to train on and {len(validation.targets)} to validate on: "
            "at least 2 and 1 are needed: label more images"
        )
    device = training.targets.device
    weights = class_weights(training.targets, classes) if schedule.weighted else torch.ones(len(classes))
    run = _Run(network, training, validation, Loss(weights.to(device)), schedule, arithmetic, seed, progress)
    start = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}

    def attempt(batch: int) -> Fitted:
        network.load_state_dict(start)
        with seeded(seed, "training"):
            return run.to_the_end(batch)

    way_out = "halve image_side, which takes a quarter of the memory, set a smaller backbone, or set finetune=head"
    return halving(schedule.batch, attempt, way_out, setting="train_batch")


@dataclass(frozen=True, slots=True)
class _Run:
    network: nn.Module
    training: Examples
    validation: Examples
    loss: Loss
    schedule: Schedule
    arithmetic: Arithmetic
    seed: int
    progress: Callable[[int, int], None]

    def to_the_end(self, batch: int) -> Fitted:
        schedule, steps = self.schedule, self._steps(batch)
        order = generator(self.seed, "order")
        best_loss, best_epoch, epoch = math.inf, 0, 0
        # While it knows little more than how frequent the classes are, it cannot have learnt too much.
        begun, ignorant = 0, _BEGUN * self.loss.of_guessing(self.training.targets) or math.inf
        while epoch < schedule.epochs and (
            epoch < schedule.min_epochs or not begun or epoch - max(best_epoch, begun) < schedule.patience
        ):
            epoch += 1
            told = steps.epoch(_batches(torch.randperm(len(self.training.targets), generator=order), batch))
            begun = begun or (epoch if not told > ignorant else 0)
            loss = steps.validation_loss()
            # The first that has learnt takes the place of all that guessed: sure of nothing, these may lose less.
            if loss < best_loss or (epoch == begun and math.isfinite(loss)):
                best_loss, best_epoch = loss, epoch
                steps.keep()
            self.progress(epoch, schedule.epochs)
        if not best_epoch:
            raise RoundError(
                f"training diverged: the validation loss was never a finite number with "
                f"learning_rate={schedule.learning_rate}: set a smaller one"
            )
        steps.restore()
        self.progress(schedule.epochs, schedule.epochs)
        return Fitted(epoch, best_epoch, best_loss, tuple(self.loss.weights.tolist()))

    def _steps(self, batch: int) -> Steps:
        network, training, validation = self.network, self.training, self.validation
        pace = Pace(self.schedule.learning_rate, self.schedule.weight_decay, self.schedule.memory)
        on_cpu = self.arithmetic.device.type == "cpu" and self.arithmetic.dtype == torch.float32
        if (
            on_cpu
            # Not of a class that was derived from it, which may have changed anything.
            and type(network) is DropoutHead
            and isinstance(training, FeatureExamples)
            and isinstance(validation, FeatureExamples)
        ):
            return HeadSteps(network, training, validation, self.loss, pace, seed=self.seed)
        return AutogradSteps(
            network, training, validation, self.loss, pace, batch=batch, arithmetic=self.arithmetic, seed=self.seed
        )


def _batches(rows: Int64[Tensor, " images"], batch: int) -> list[Int64[Tensor, " batch"]]:
    """Split into batches; a last one of a single image joins the one before it, because BatchNorm needs 2."""
    parts = list(torch.split(rows, batch))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts
