"""Training and validation of a network: weighted loss, early stopping, the best epoch's weights restored."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self, cast

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Float32, Int, Int64
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ml_backend.config import ProjectOptions
from ml_backend.errors import RoundError, SettingsError
from ml_backend.model.data import Examples, FeatureExamples, SoftTargets
from ml_backend.model.hardware import Precision, find_executable_batch_size, generator, seeded
from ml_backend.model.network import DropoutHead

_LOG = logging.getLogger(__name__)

# An epoch on cached features costs a thousandth of one on images: three count as one (not in the paper).
_HEAD_EPOCHS_PER_EPOCH = 3
_LEARNING_RATE = 1e-4
# A head alone learns faster, and is validated as its mean over about the last ten epochs (not in the paper);
# docs/researchers.md#training gives the measurements.
_HEAD_LEARNING_RATE = 3e-4
_HEAD_AVERAGING_DECAY = 0.9
# Before, the mean has not settled, and training may stop for good.
_HEAD_MIN_EPOCHS = 10
# Early stopping ignores epochs before the training loss falls below 60 % of chance level (not in the paper);
# see docs/researchers.md#early-stopping.
_LEARNED_FRACTION = 0.6


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """Length and speed of a training with Adam.

    Attributes:
        epochs: at most.
        patience: epochs without a lower validation loss after which training stops.
        batch: images of a step.
        learning_rate: of Adam.
        weight_decay: added to the gradient.
        weighted: weight the loss by inverse class frequency.
        min_epochs: epochs before which training does not stop.
        averaging_decay: weight of the past in the mean over the epochs that is validated and kept, 0 to below 1; at 0
            the weights themselves are.

    Raises:
        SettingsError: ``min_epochs`` above ``epochs``.
    """

    epochs: int
    patience: int
    batch: int
    learning_rate: float
    weight_decay: float
    weighted: bool = True
    min_epochs: int = 1
    averaging_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.min_epochs > self.epochs:
            raise SettingsError(
                f"min_epochs={self.min_epochs} is more than epochs={self.epochs}: set min_epochs to at most the epochs"
            )

    @classmethod
    def from_options(cls, options: ProjectOptions, *, head_only: bool) -> Self:
        """Read a project's options.

        For a head alone, both numbers of epochs count threefold, at least ten are trained, and the mean is kept.

        Raises:
            SettingsError: see ``OptimizerConfig``.
        """
        factor = _HEAD_EPOCHS_PER_EPOCH if head_only else 1
        epochs, min_epochs = options.epochs * factor, options.min_epochs * factor
        return cls(
            epochs=epochs,
            patience=options.patience,
            min_epochs=max(min_epochs, min(_HEAD_MIN_EPOCHS, epochs)) if head_only else min_epochs,
            batch=options.train_batch,
            learning_rate=options.learning_rate or (_HEAD_LEARNING_RATE if head_only else _LEARNING_RATE),
            weight_decay=options.weight_decay,
            weighted=options.loss == "weighted",
            averaging_decay=_HEAD_AVERAGING_DECAY if head_only else 0.0,
        )


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """Outcome of a training; the weights of ``best_epoch``, counted from 1, were restored."""

    epochs: int
    best_epoch: int
    validation_loss: float
    class_weights: tuple[float, ...]


def train(
    network: nn.Module,
    training: Examples,
    validation: Examples,
    classes: Sequence[str],
    *,
    config: OptimizerConfig,
    precision: Precision,
    seed: int,
    progress: Callable[[int, int], None],
) -> TrainingResult:
    """Train in place until the validation loss no longer falls, and restore the best epoch's weights.

    The same seed, data and thread count give the same weights to the bit on a CPU. The initial weights are never the
    best, not even those of a warm start: they were chosen on another validation set.

    Args:
        network: input -> logits [images, classes]; left in eval mode.
        training: augmented; at least 2 images, which BatchNorm needs.
        validation: not augmented; at least 1 image.
        classes: in the order of the targets.
        config: its batch is halved if the GPU's memory is full.
        precision: of the forward passes; the network is already on its device.
        seed: of order, dropout and augmentation.
        progress: called after every step, with the epochs done and their highest number; it may raise, to stop.

    Raises:
        RoundError: the loss is never a number, or the GPU's memory holds not even 2 images.
    """
    weights = class_weights(training.targets, classes) if config.weighted else torch.ones(len(classes))
    loss = WeightedCrossEntropy(weights.to(training.targets.device))
    start = _copy_state(network)

    def attempt(batch: int) -> TrainingResult:
        network.load_state_dict(start)
        with seeded(seed, "training"):
            trainer = _Trainer(
                network, training, validation, loss, config=config, precision=precision, batch=batch, seed=seed
            )
            return trainer.run(progress)

    advice = "halve image_side, which takes a quarter of the memory, set a smaller backbone, or set finetune=head"
    return find_executable_batch_size(attempt, config.batch, advice, setting="train_batch")


def head_problem(
    head: DropoutHead, training: FeatureExamples, validation: FeatureExamples
) -> tuple[nn.Sequential, FeatureExamples, FeatureExamples]:
    """The head's layers after dropout, and their inputs, for ``train``.

    Standardisation and the scaling of dropout are applied once instead of at every step; dropout itself becomes the
    augmentation of the training features. The layers share their weights with the head.
    """
    layers = nn.Sequential(head.hidden, head.norm, nn.ReLU(), head.output)
    scaled = head.standardise(training.features).div_(1.0 - head.dropout.p)
    return (
        layers,
        FeatureExamples(scaled, training.targets, head.dropout.p, training.soft),
        FeatureExamples(head.standardise(validation.features), validation.targets),
    )


def class_weights(targets: Int64[Tensor, " images"], classes: Sequence[str]) -> Float32[Tensor, " classes"]:
    """Inverse class frequency, ``w_c = n / (C n_c)``: the classes have equal total weight.

    Args:
        targets: class index of every training image.
        classes: all classes of the project, with or without a label.

    Returns:
        Weights whose mean over the images is 1 if every class has a label; 0, with a warning in the log, for a class
        without one.

    Source:
        scikit-learn's "balanced"; King & Zeng 2001.
    """
    counts = torch.bincount(targets.cpu(), minlength=len(classes))
    absent = [name for name, count in zip(classes, counts.tolist(), strict=True) if count == 0]
    if absent:
        _LOG.warning("no training label yet of %s: the network cannot learn it this round", ", ".join(absent))
    weights = len(targets) / (len(classes) * counts.clamp_min(1).to(torch.float32))
    return torch.where(counts > 0, weights, 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class WeightedCrossEntropy:
    """Cross-entropy in nats, averaged over the images with the weights of their classes."""

    weights: Float32[Tensor, " classes"]

    def training(
        self,
        logits: Float32[Tensor, "images classes"],
        targets: Int64[Tensor, " images"],
        soft: SoftTargets | None = None,
    ) -> Tensor:
        """With soft targets, less what no prediction could avoid: 0 is the least, as with targets of one class."""
        if soft is None:
            return nn.functional.cross_entropy(logits, targets, weight=self.weights)
        weighted = soft * self.weights
        losses = -(weighted * nn.functional.log_softmax(logits, dim=1)).sum()
        return losses / weighted.sum() - self._least(weighted)

    def validation(self, logits: Float32[Tensor, "images classes"], targets: Int64[Tensor, " images"]) -> float:
        # All weights are 0 if no class of validation has a training label.
        weights = self.weights if bool(self.weights[targets].any()) else None
        return float(nn.functional.cross_entropy(logits, targets, weight=weights))

    def chance_level(self, targets: Int64[Tensor, " images"], soft: SoftTargets | None = None) -> float:
        """Lowest ``training`` loss of a constant prediction for these images."""
        if soft is not None:
            weighted = soft * self.weights
            return float(self._least(weighted.sum(dim=0, keepdim=True)) - self._least(weighted))
        shares = torch.bincount(targets, minlength=len(self.weights)) * self.weights
        return float(torch.special.entr(shares / shares.sum()).sum())

    @staticmethod
    def _least(weighted: Float32[Tensor, "images classes"]) -> Tensor:
        """Lowest cross-entropy of any prediction: the entropy of the weighted targets, averaged over the images."""
        of_image = weighted.sum(dim=1, keepdim=True)
        shares = weighted / of_image.clamp_min(torch.finfo(weighted.dtype).tiny)
        least: Tensor = (torch.special.entr(shares) * of_image).sum() / weighted.sum()
        return least


class EarlyStopping:
    """Finds the best epoch and the end of a training from its losses.

    Patience counts from the first epoch in which the network has learned: its training loss fell below 60 % of chance
    level. From then on only epochs since that one are candidates: a network that still guesses can have a lower
    validation loss than one that is confident and sometimes wrong.

    Args:
        config: epochs, min_epochs and patience.
        chance_level: training loss of a constant prediction; 0 counts every epoch as learned.
    """

    def __init__(self, config: OptimizerConfig, chance_level: float) -> None:
        self._config = config
        self._threshold = _LEARNED_FRACTION * chance_level or math.inf
        self._learned_epoch = 0
        self.epoch = 0
        self.best_epoch = 0
        self.best_loss = math.inf

    @property
    def stopped(self) -> bool:
        waited = self.epoch - max(self.best_epoch, self._learned_epoch)
        may_stop = self.epoch >= self._config.min_epochs and self._learned_epoch > 0
        return self.epoch >= self._config.epochs or (may_stop and waited >= self._config.patience)

    def update(self, training_loss: float, validation_loss: float) -> bool:
        """Record the losses of an epoch, which may be NaN.

        Returns:
            Whether its weights are the best so far.
        """
        self.epoch += 1
        if not self._learned_epoch and not training_loss > self._threshold:
            self._learned_epoch = self.epoch
        first_learned = self.epoch == self._learned_epoch and math.isfinite(validation_loss)
        if not (validation_loss < self.best_loss or first_learned):
            return False
        self.best_loss, self.best_epoch = validation_loss, self.epoch
        return True


class _Trainer:
    """One training."""

    def __init__(
        self,
        network: nn.Module,
        training: Examples,
        validation: Examples,
        loss: WeightedCrossEntropy,
        *,
        config: OptimizerConfig,
        precision: Precision,
        batch: int,
        seed: int,
    ) -> None:
        self._network = network
        self._training = training
        self._validation = validation
        self._loss = loss
        self._config = config
        self._precision = precision
        self._batch = batch
        self._order = generator(seed, "order")
        self._augmentation = training.augmentation(seed)
        self._optimizer = torch.optim.Adam(
            network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self._mean = average_over_epochs(network, config.averaging_decay) if config.averaging_decay else None

    def run(self, progress: Callable[[int, int], None]) -> TrainingResult:
        """Train until early stopping, and load the best weights; see ``train``."""
        config = self._config
        stopping = EarlyStopping(config, self._loss.chance_level(self._training.targets, self._training.soft))
        best: dict[str, Tensor] = {}
        while not stopping.stopped:
            training_loss = self._train_epoch(lambda: progress(stopping.epoch, config.epochs))
            if stopping.update(training_loss, self._validation_loss()):
                best = _copy_state(self._evaluated)
            progress(stopping.epoch, config.epochs)
        if not best:
            raise RoundError(
                f"training diverged: the validation loss was never a finite number with "
                f"learning_rate={config.learning_rate}: set a smaller one"
            )
        self._network.load_state_dict(best)
        self._network.eval()
        progress(config.epochs, config.epochs)
        weights = tuple(self._loss.weights.tolist())
        return TrainingResult(stopping.epoch, stopping.best_epoch, stopping.best_loss, weights)

    def _train_epoch(self, after_step: Callable[[], None]) -> float:
        """Take one step a batch; returns the mean of their losses, with dropout, which may be NaN."""
        self._network.train()
        targets, soft = self._training.targets, self._training.soft
        batches = _split_into_batches(torch.randperm(len(targets), generator=self._order), self._batch)
        total = torch.zeros((), device=targets.device)
        for rows in batches:
            self._optimizer.zero_grad()
            logits = self._logits(self._network, self._training.inputs(rows, self._augmentation))
            loss = self._loss.training(logits, targets[rows], None if soft is None else soft[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            total += loss.detach()
            after_step()
        if self._mean is not None:
            self._mean.update_parameters(self._network)
        return total.item() / len(batches)

    def _validation_loss(self) -> float:
        """Loss without dropout and with fixed normalisations; may be NaN."""
        network = self._evaluated.eval()
        targets = self._validation.targets
        with torch.inference_mode():
            rows = torch.split(torch.arange(len(targets)), self._batch)
            logits = torch.cat([self._logits(network, self._validation.inputs(part, None)) for part in rows])
            return self._loss.validation(logits, targets)

    @property
    def _evaluated(self) -> nn.Module:
        return self._network if self._mean is None else self._mean.module

    def _logits(self, network: nn.Module, inputs: Tensor) -> Float32[Tensor, "images classes"]:
        images = self._precision.format_images(inputs) if inputs.ndim == 4 else inputs
        with self._precision.autocast():
            return cast("Tensor", network(images)).float()


def average_over_epochs(network: nn.Module, decay: float) -> AveragedModel:
    """A copy of a network that holds the mean of its weights and running statistics over the epochs.

    Epoch n has weight 1 / n, at least ``1 - decay``, in the mean of the epochs so far. Averaging reduces the noise of a
    high learning rate, so that fewer epochs suffice.

    Source:
        Polyak & Juditsky 1992, doi:10.1137/0330046; epoch by epoch Izmailov et al. 2018, arXiv:1803.05407.
    """

    def update(means: list[Tensor], current: list[Tensor], epochs: Tensor | int) -> None:
        if means[0].is_floating_point():
            torch._foreach_lerp_(means, current, max(1.0 - decay, 1.0 / (int(epochs) + 1)))
        else:
            torch._foreach_copy_(means, current)

    return AveragedModel(network, multi_avg_fn=update, use_buffers=True)  # type: ignore[arg-type]


def _copy_state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def _split_into_batches(rows: Int64[Tensor, " images"], batch: int) -> list[Int64[Tensor, " batch"]]:
    """Split into batches; a last one of a single image joins the one before it, because BatchNorm needs 2."""
    parts = list(torch.split(rows, batch))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def accuracy(
    probs: Float[npt.NDArray[np.float32], "images classes"], targets: Int[npt.NDArray[np.int64], " images"]
) -> float:
    """Fraction of the images whose most probable class is correct, 0 to 1.

    Raises:
        ValueError: no image.
    """
    if not len(targets):
        raise ValueError("the accuracy of no image is not defined")
    return float((probs.argmax(axis=1) == targets).mean())


def auroc(
    probs: Float[npt.NDArray[np.float32], "images classes"], targets: Int[npt.NDArray[np.int64], " images"]
) -> float | None:
    """Area under the ROC curve, one class against the rest, averaged over the classes that occur.

    Returns:
        0 to 1, 0.5 for chance; None if fewer than two classes occur.

    Source:
        Hand & Till 2001 discuss the alternatives; this is scikit-learn's ``ovr`` with ``macro``.
    """
    from sklearn.metrics import roc_auc_score  # noqa: PLC0415 - slow to import

    present = np.unique(targets)
    if len(present) < 2:
        return None
    return float(np.mean([roc_auc_score(targets == index, probs[:, index]) for index in present]))


def recalls(
    probs: Float[npt.NDArray[np.float32], "images classes"],
    targets: Int[npt.NDArray[np.int64], " images"],
    classes: Sequence[str],
) -> dict[str, float | None]:
    """Recall of every class, 0 to 1; None for a class without images."""
    predicted = probs.argmax(axis=1)
    return {
        name: float((predicted[targets == index] == index).mean()) if (targets == index).any() else None
        for index, name in enumerate(classes)
    }
