"""The mean of a network over its last epochs, in place of its weights of the moment.

How a network takes its training steps; ``training`` decides how many, and which weights are kept.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from ml_backend.model.data import Examples
from ml_backend.model.generators import generator
from ml_backend.model.hardware import Arithmetic


class EpochMean:
    """The mean of tensors over the epochs, later ones weighing more.

    It averages out what a high learning rate throws to and fro, so that fewer epochs lead as far. Epoch n weighs 1 / n,
    and ``1 - memory`` at least, in the mean of all so far.

    Args:
        sources: weights and running statistics, which training changes in place.
        memory: share of itself that the mean keeps at every epoch, 0 to below 1. At 0 it is the sources themselves.

    Source:
        Polyak & Juditsky 1992, doi:10.1137/0330046; epoch by epoch Izmailov et al. 2018, arXiv:1803.05407.
    """

    def __init__(self, sources: Sequence[Tensor], memory: float) -> None:
        if not 0.0 <= memory < 1.0:
            raise ValueError(f"memory must be at least 0 and below 1, got {memory}")
        self._sources = list(sources)
        self._memory = memory
        self._epochs = 0
        self.tensors = [tensor.clone() for tensor in sources] if memory else self._sources

    @torch.no_grad()
    def add(self) -> None:
        """Take in the sources, as they are at the end of an epoch."""
        self._epochs += 1
        if self._memory:
            torch._foreach_lerp_(self.tensors, self._sources, max(1.0 - self._memory, 1.0 / self._epochs))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The mean in place of the sources, for a while."""
        if not self._memory:
            yield
            return
        now = [tensor.clone() for tensor in self._sources]
        with torch.no_grad():
            torch._foreach_copy_(self._sources, self.tensors)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._sources, now)


@dataclass(frozen=True, slots=True)
class Pace:
    """Of Adam: its learning rate and its weight decay, which is added to the gradient.

    Attributes:
        memory: of the mean over the epochs that is validated and kept; see ``averaging.EpochMean``.
    """

    learning_rate: float
    weight_decay: float
    memory: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Loss:
    """Cross-entropy, weighted by class; the mean divides by the weights, of a batch or of the validation images."""

    weights: Float32[Tensor, " classes"]

    def of_guessing(self, targets: Int64[Tensor, " images"]) -> float:
        """Least loss over these images that one answer for all of them can have, in nats."""
        shares = torch.bincount(targets, minlength=len(self.weights)) * self.weights
        return float(torch.special.entr(shares / shares.sum()).sum())

    def training(self, logits: Float32[Tensor, "images classes"], targets: Int64[Tensor, " images"]) -> Tensor:
        return nn.functional.cross_entropy(logits, targets, weight=self.weights)

    def validation(self, logits: Float32[Tensor, "images classes"], targets: Int64[Tensor, " images"]) -> float:
        # The weights are all 0 where no class of validation is in training.
        weights = self.weights if bool(self.weights[targets].any()) else None
        return float(nn.functional.cross_entropy(logits, targets, weight=weights))


class Steps(Protocol):
    """A network in training."""

    def epoch(self, batches: Sequence[Int64[Tensor, " batch"]]) -> float:
        """One step a batch (rows of the training images, on the CPU, at least 2).

        Returns:
            Mean over the batches of the loss that each was trained on, with dropout on; may be NaN.
        """
        ...

    def validation_loss(self) -> float:
        """With dropout off and normalisations fixed; may be NaN."""
        ...

    def keep(self) -> None:
        """Remember the weights of now, and forget those kept before."""
        ...

    def restore(self) -> None:
        """Put the weights that were kept into the network, and leave it in eval mode."""
        ...


class AutogradSteps:
    """Any network, on any device.

    Dropout and augmentation draw from generators of their own and torch's global ones.

    Args:
        network: input -> logits [images, classes]; changed by every step.
        training: augmented where that is possible.
        validation: never augmented.
        loss: of both.
        pace: of Adam.
        batch: images that go through the network together in validation.
        arithmetic: of the forward passes; the network is already there.
        seed: of the augmentation.
    """

    def __init__(
        self,
        network: nn.Module,
        training: Examples,
        validation: Examples,
        loss: Loss,
        pace: Pace,
        *,
        batch: int,
        arithmetic: Arithmetic,
        seed: int,
    ) -> None:
        self._network = network
        self._training = training
        self._validation = validation
        self._loss = loss
        self._batch = batch
        self._arithmetic = arithmetic
        self._augmentation = generator(seed, "augmentation")
        self._optimizer = torch.optim.Adam(
            network.parameters(), lr=pace.learning_rate, weight_decay=pace.weight_decay, fused=True
        )
        state = network.state_dict().values()
        self._mean = EpochMean([tensor for tensor in state if tensor.is_floating_point()], pace.memory)
        self._kept: dict[str, Tensor] = {}

    def epoch(self, batches: Sequence[Int64[Tensor, " batch"]]) -> float:
        """See ``Steps``."""
        self._network.train()
        total = torch.zeros((), device=self._training.targets.device)
        for rows in batches:
            self._optimizer.zero_grad(set_to_none=True)
            logits = self._logits(self._training.inputs(rows, self._augmentation))
            loss = self._loss.training(logits, self._training.targets[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            total += loss.detach()
        self._mean.add()
        return total.item() / len(batches)

    def validation_loss(self) -> float:
        """See ``Steps``."""
        self._network.eval()
        targets = self._validation.targets
        with self._mean.in_place(), torch.inference_mode():
            rows = torch.split(torch.arange(len(targets)), self._batch)
            logits = torch.cat([self._logits(self._validation.inputs(part, None)) for part in rows])
            return self._loss.validation(logits, targets)

    def keep(self) -> None:
        """See ``Steps``."""
        with self._mean.in_place():
            self._kept = {name: tensor.detach().clone() for name, tensor in self._network.state_dict().items()}

    def restore(self) -> None:
        """See ``Steps``."""
        self._network.load_state_dict(self._kept)
        self._network.eval()

    def _logits(self, inputs: Tensor) -> Float32[Tensor, "images classes"]:
        images = self._arithmetic.lay_out(inputs) if inputs.ndim == 4 else inputs
        with self._arithmetic.autocast():
            return cast("Tensor", self._network(images)).float()
