"""Training and validation of a network: weighted loss, early stopping, the best epoch's weights restored."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Self, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Float32, Int, Int64
from torch import Tensor, distributed, nn
from torch.distributed._functional_collectives import all_reduce
from torch.nn.modules._functions import SyncBatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.overrides import TorchFunctionMode

from ml_backend.config import ProjectOptions
from ml_backend.errors import ImageError, RoundError, SettingsError
from ml_backend.images.cache import DecodedImage
from ml_backend.images.dataset import read_ahead
from ml_backend.model.data import Examples, FeatureExamples, SoftTargets
from ml_backend.model.distributed import SINGLE, Group
from ml_backend.model.hardware import Precision, find_executable_batch_size, generator, is_out_of_memory, seeded
from ml_backend.model.network import DropoutHead
from ml_backend.schemas import Exclusion, ImageRef

T = TypeVar("T")

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
    group: Group = SINGLE,
) -> TrainingResult:
    """Train in place until the validation loss no longer falls, and restore the best epoch's weights.

    The same seed, data and thread count give the same weights to the bit on a CPU. The initial weights are never the
    best, not even those of a warm start: they were chosen on another validation set.

    In a group every process calls this with the same arguments; the weights are those of rank 0. Each takes its part of
    every batch. Batches, their order, augmentation, dropout, normalisation and loss are those of one process, and so is
    the result, up to the rounding of sums.

    Args:
        network: input -> logits [images, classes]; left in eval mode.
        training: augmented; at least 2 images, which BatchNorm needs.
        validation: not augmented; at least 1 image.
        classes: in the order of the targets.
        config: its batch is halved if the GPU's memory is full.
        precision: of the forward passes; the network is already on its device.
        seed: of order, dropout and augmentation.
        progress: called after every step, with the epochs done and their highest number; it may raise, to stop.
        group: the processes that train together, in torch.distributed's default group.

    Raises:
        RoundError: the loss is never a number, or the GPU's memory holds not even 2 images.
    """
    weights = class_weights(training.targets, classes) if config.weighted else torch.ones(len(classes))
    loss = WeightedCrossEntropy(weights.to(training.targets.device))
    start = _copy_state(network)

    def trainer(examples: Examples, batch: int, group: Group) -> _Trainer:
        return _Trainer(
            network, examples, validation, loss, config=config, precision=precision, batch=batch, seed=seed, group=group
        )

    def attempt(batch: int) -> TrainingResult:
        if group.size > 1:
            # Memory that is full on one process must not leave the others waiting for it.
            part = training.select(torch.arange(min(len(training.targets), max(2, -(-(batch + 1) // group.size)))))
            agree(group, trainer(part, batch, SINGLE).try_steps)
        network.load_state_dict(start)
        with seeded(seed, "training"):
            return trainer(training, batch, group).run(progress)

    advice = "halve image_side, which takes a quarter of the memory, set a smaller backbone, or set finetune=head"
    return find_executable_batch_size(attempt, config.batch, advice, setting="train_batch")


def agree(group: Group, call: Callable[[], T]) -> T:
    """Call a function on every process; an error on any of them is raised on all.

    Raises:
        Exception: this process's own error.
        torch.OutOfMemoryError, RoundError: another's; the message names the process.
    """
    error: Exception | None = None
    try:
        result = call()
    except Exception as caught:  # noqa: BLE001 - of whatever kind, the others must learn of it
        error = caught
    found = group.gather(None if error is None else (is_out_of_memory(error), f"{type(error).__name__}: {error}"))
    if error is not None:
        raise error
    for rank, other in enumerate(found):
        if other is not None:
            full, message = other
            raise (torch.OutOfMemoryError if full else RoundError)(f"process {rank} of {group.size}: {message}")
    return result


def read_together(
    group: Group, images: Sequence[ImageRef], read: Callable[[ImageRef], DecodedImage]
) -> Callable[[ImageRef], DecodedImage]:
    """Read images once in a group, each process some; returns what ``read`` is of them, the same on every process.

    One that its process could not read is unreadable for all.
    """
    if group.size == 1:
        return read
    part = images[_part(len(images), group)]
    own = agree(group, lambda: {image.id: _packed(result) for image, result in read_ahead(part, read)})
    found = {image_id: each for results in group.gather(own) for image_id, each in results.items()}

    def look_up(image: ImageRef) -> DecodedImage:
        text, pixels = found[image.id]
        if pixels is None:
            raise ImageError(text)
        return DecodedImage(text, pixels.numpy())

    return look_up


def _packed(result: DecodedImage | Exclusion) -> tuple[str, Tensor | None]:
    if isinstance(result, Exclusion):
        return result.reason, None
    return result.key, torch.tensor(result.pixels)  # a copy: cached pixels are read-only


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

    def weight(self, targets: Int64[Tensor, " images"], soft: SoftTargets | None) -> Tensor:
        """Weight of these images together in the mean of ``training``."""
        return self.weights[targets].sum() if soft is None else (soft * self.weights).sum()

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
        group: Group,
    ) -> None:
        self._network = network
        self._group = group
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
        self._parallel = network if group.size == 1 else DistributedDataParallel(network, gradient_as_bucket_view=True)

    def try_steps(self) -> None:
        """Take two steps, the second with the optimizer's own memory."""
        with seeded(0, "trial"):
            for _ in range(2):
                self._train_epoch(lambda: None)

    def run(self, progress: Callable[[int, int], None]) -> TrainingResult:
        """Train until early stopping, and load the best weights; see ``train``."""
        config = self._config
        stopping = EarlyStopping(config, self._loss.chance_level(self._training.targets, self._training.soft))
        best: dict[str, Tensor] = {}
        while not stopping.stopped:
            losses = self._group.gather(self._train_epoch(lambda: progress(stopping.epoch, config.epochs)))
            if stopping.update(fmean(losses), self._group.broadcast(self._validation_loss())):  # one decision of all
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
        """Take one step a batch; returns the mean of their losses, with dropout, which may be NaN.

        In a group it is this process's share of them: the loss is the mean over the processes.
        """
        self._network.train()
        targets = self._training.targets
        batches = _split_into_batches(torch.randperm(len(targets), generator=self._order), self._batch)
        total = torch.zeros((), device=targets.device)
        for rows in batches:
            self._optimizer.zero_grad()
            loss = self._batch_loss(rows)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            total += loss.detach()
            after_step()
        if self._mean is not None:
            self._mean.update_parameters(self._network)
        return total.item() / len(batches)

    def _batch_loss(self, rows: Int64[Tensor, " batch"]) -> Tensor:
        """The loss of a batch; in a group, a loss whose gradients have the batch's as their mean over the processes.

        Every process computes a batch of fewer images than processes as a whole: no layer takes 0 images.
        """
        examples, loss = self._training, self._loss
        inputs = examples.inputs(rows, self._augmentation)
        targets, soft = examples.targets[rows], None if examples.soft is None else examples.soft[rows]
        if (size := self._group.size) == 1 or len(rows) < size:
            return loss.training(self._logits(self._parallel, inputs), targets, soft)
        part = _part(len(rows), self._group)
        with WholeBatch(part, len(rows)):
            logits = self._logits(self._parallel, inputs[part])
        own = targets[part], None if soft is None else soft[part]
        return loss.training(logits, *own) * (size * loss.weight(*own) / loss.weight(targets, soft))

    def _validation_loss(self) -> float:
        """Loss without dropout and with fixed normalisations; may be NaN. Each process computes some of the batches."""
        network = self._evaluated.eval()
        targets = self._validation.targets
        batches = torch.split(torch.arange(len(targets)), self._batch)
        with torch.inference_mode():
            own = batches[_part(len(batches), self._group)]
            parts = [self._logits(network, self._validation.inputs(rows, None)) for rows in own]
            none = torch.empty(0, len(self._loss.weights), device=targets.device)
            logits = torch.cat(self._group.gather(torch.cat([none, *parts]).cpu()))
            return self._loss.validation(logits.to(targets.device), targets)

    @property
    def _evaluated(self) -> nn.Module:
        return self._network if self._mean is None else self._mean.module

    def _logits(self, network: nn.Module, inputs: Tensor) -> Float32[Tensor, "images classes"]:
        images = self._precision.format_images(inputs) if inputs.ndim == 4 else inputs
        with self._precision.autocast():
            return cast("Tensor", network(images)).float()


def _part(count: int, group: Group) -> slice:
    """The consecutive part of this process; it has at most one more than the others'."""
    return slice(count * group.rank // group.size, count * (group.rank + 1) // group.size)


class WholeBatch(TorchFunctionMode):
    """Context in which the layers of a network treat this process's part of a batch as one process treats the batch.

    Dropout, of features and of paths, is drawn for all images. Normalisation uses the mean and the variance of all of
    them: by ``torch.nn.SyncBatchNorm``'s function on a GPU, which a CPU lacks.

    Args:
        part: images of this process.
        images: of the batch.
    """

    def __init__(self, part: slice, images: int) -> None:
        super().__init__()
        self._part = part
        self._images = images

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See ``torch.overrides``."""
        del types
        kwargs = kwargs or {}
        if func is nn.functional.batch_norm:
            return self._batch_norm(*args, **kwargs)
        if func is nn.functional.dropout:
            return self._dropout(*args, **kwargs)
        if func is Tensor.bernoulli_:
            tensor, *rest = args
            return tensor.copy_(self._draw(tensor, lambda noise: noise.bernoulli_(*rest, **kwargs)))
        return func(*args, **kwargs)

    def _draw(self, like: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
        """Noise of this process's images, of which each has some rows; all of it where rows are not of images."""
        rows, other = divmod(len(like), self._part.stop - self._part.start)
        if other:
            return draw(torch.ones_like(like))
        noise = draw(like.new_ones(rows * self._images, *like.shape[1:]))
        return noise[rows * self._part.start : rows * self._part.stop]

    def _dropout(self, inputs: Tensor, *, p: float, training: bool, inplace: bool) -> Tensor:
        if not training or p == 0.0:
            return inputs
        noise = self._draw(inputs, lambda ones: nn.functional.dropout(ones, p))
        return inputs.mul_(noise) if inplace else inputs * noise

    def _batch_norm(
        self,
        inputs: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        *,
        weight: Tensor | None,
        bias: Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
    ) -> Tensor:
        if not training:
            return nn.functional.batch_norm(inputs, running_mean, running_var, weight, bias, False, momentum, eps)
        world = cast("distributed.ProcessGroup", distributed.group.WORLD)
        if inputs.is_cuda:
            arguments = inputs, weight, bias, running_mean, running_var, eps, momentum, world, world.size()
            return cast("Tensor", SyncBatchNorm.apply(*arguments))
        axes, shape = [axis for axis in range(inputs.ndim) if axis != 1], [1, -1] + [1] * (inputs.ndim - 2)
        count = self._images * math.prod(inputs.shape[2:])
        # Moments about the running mean, which lies near the mean: those about 0 would cancel.
        values = inputs.float() if running_mean is None else inputs.float() - running_mean.view(shape)
        sums = torch.stack([values.sum(axes), values.square().sum(axes)])
        mean, square = cast("Tensor", all_reduce(sums, "sum", world)) / count
        variance = (square - mean.square()).clamp_min(0.0)
        normal = (values - mean.view(shape)) * torch.rsqrt(variance + eps).view(shape)
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.add_(mean, alpha=momentum)
                running_var.lerp_(variance * (count / (count - 1)), momentum)
        if weight is not None and bias is not None:
            normal = normal * weight.view(shape) + bias.view(shape)
        return cast("Tensor", normal.to(inputs.dtype))


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
