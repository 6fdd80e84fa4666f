"""The training steps of a head on cached features, on a CPU: the mathematics of ``AutogradSteps``, with less around it.

On 1,280 features at a batch of 32 the two products of a step take 0.9 ms, at the processor's peak, and Adam 0.3 ms, for
a root and a quotient a weight: no step can take less than 1.25 ms. With autograd it took 2.6 to 2.9, with its dropout,
its copies and its bookkeeping. Here it takes 1.7: dropout comes from raw random bits, every large array is written in
place, and Adam is called without its optimiser, on half of the gradients at a time, while they lie in the cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor, nn

from ml_backend.model.data import FeatureExamples
from ml_backend.model.network import DropoutHead
from ml_backend.model.steps import EpochMean, Loss, Pace
from ml_backend.seeding import derive

# Batches that are prepared together.
_AHEAD = 16
# Of the hidden layer, whose gradients are used up before those of the next rows are computed: 256 rows of 1,280 stay in
# the processor's cache. 128 and 512 take up to a twentieth more.
_ROWS = 256
# Less than any probability that float32 tells from 0.
_TINY = torch.finfo(torch.float32).tiny


class KeptFeatures:
    """Which features the dropout of training keeps, image by image: a stream of masks.

    Args:
        dims: length of a feature vector.
        dropout: share that is dropped, to one part in 65,536.
        seed: the same seed draws the same masks.
    """

    def __init__(self, dims: int, dropout: float, seed: int) -> None:
        self._dims = dims
        # 8 bits a feature where they say the rate exactly, as they do one half, else 16.
        self._dtype = np.dtype(np.uint8 if (256 * dropout).is_integer() else np.uint16)
        levels = 256**self._dtype.itemsize
        self._threshold = self._dtype.type(min(round(dropout * levels), levels - 1))
        # The one of NumPy's generators that hands out raw bits fastest.
        self._bits = np.random.PCG64DXSM(derive(seed, "dropout"))

    def draw(self, images: int) -> Bool[npt.NDArray[np.bool_], "images dims"]:
        """The masks of the next images."""
        count = images * self._dims
        raw = np.asarray(self._bits.random_raw(-(-count * self._dtype.itemsize // 8)))
        return raw.view(self._dtype)[:count].reshape(images, self._dims) >= self._threshold


@dataclass(frozen=True, slots=True, eq=False)
class _Weights:
    """All weights of a head, or what Adam keeps of each, as parts of one flat array."""

    flat: Float32[Tensor, " weights"]
    hidden: Float32[Tensor, "hidden dims"]
    hidden_bias: Float32[Tensor, " hidden"]
    scale: Float32[Tensor, " hidden"]
    shift: Float32[Tensor, " hidden"]
    output: Float32[Tensor, "classes hidden"]
    output_bias: Float32[Tensor, " classes"]

    @classmethod
    def of(cls, head: DropoutHead, flat: Float32[Tensor, " weights"]) -> Self:
        parameters = list(head.parameters())
        parts = torch.split(flat, [parameter.numel() for parameter in parameters])
        return cls(flat, *(part.view_as(parameter) for part, parameter in zip(parts, parameters, strict=True)))


class _Adam:
    """Adam, on parts of the weights one after the other: ``torch.optim`` knows whole steps only.

    Source:
        Kingma & Ba 2015, arXiv:1412.6980, with torch's defaults for what ``Pace`` does not say.
    """

    def __init__(self, head: DropoutHead, weights: _Weights, pace: Pace) -> None:
        self._pace = pace
        self._steps = torch.zeros(())
        self.first, self.second = (_Weights.of(head, torch.zeros_like(weights.flat)) for _ in range(2))
        arrays, count = (weights, self.first, self.second), weights.hidden.numel()
        self.hidden = list(zip(*(torch.split(array.hidden, _ROWS) for array in arrays), strict=True))
        weights_of_rest, first, second = (array.flat[count:] for array in arrays)
        self.rest = (weights_of_rest, first, second)

    def next_step(self) -> None:
        self._steps += 1

    def move(self, part: tuple[Tensor, Tensor, Tensor], gradient: Tensor) -> None:
        """Change a part of ``hidden``, or the ``rest``: weights, and the running means of gradient and square."""
        weights, first, second = part
        torch.ops.aten._fused_adam_(
            [weights],
            [gradient],
            [first],
            [second],
            [],
            [self._steps],
            lr=self._pace.learning_rate,
            beta1=0.9,
            beta2=0.999,
            weight_decay=self._pace.weight_decay,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )


class HeadSteps:
    """A head on features, in float32 on a CPU. Satisfies ``steps.Steps``.

    The head itself is changed by ``restore`` alone.

    Args:
        head: gives the first weights and takes the last; its standardisation stays.
        training: of images, what the backbone made of them.
        validation: likewise.
        loss: of both.
        pace: of Adam.
        seed: of the dropout.
    """

    def __init__(
        self,
        head: DropoutHead,
        training: FeatureExamples,
        validation: FeatureExamples,
        loss: Loss,
        pace: Pace,
        *,
        seed: int,
    ) -> None:
        self._head = head
        # What dropout keeps is scaled up: once for all steps.
        self._features = head.standard(training.features).div_(1.0 - head.dropout.p)
        self._validation = head.standard(validation.features)
        self._answers = nn.functional.one_hot(training.targets, len(loss.weights)).to(torch.float32)
        self._shares = loss.weights[training.targets][:, None]
        self._validation_targets = validation.targets
        self._loss = loss
        self._masks = KeptFeatures(self._features.shape[1], head.dropout.p, seed)
        first = nn.utils.parameters_to_vector(head.parameters()).detach()
        self._weights = _Weights.of(head, first)
        # That of the hidden bias stays 0: the normalisation takes away whatever the bias adds. Of those of the hidden
        # layer, only the rows that Adam is at are held.
        self._gradients = _Weights.of(head, torch.zeros_like(first))
        self._adam = _Adam(head, self._weights, pace)
        self._norm = {name: tensor.clone() for name, tensor in head.norm.named_buffers()}
        # What is validated and kept, as ``_judged`` has it in parts.
        self._mean = EpochMean([first, self._norm["running_mean"], self._norm["running_var"]], pace.memory)
        self._judged = _Weights.of(head, self._mean.tensors[0])
        self._validation_sums = torch.empty(len(self._validation), head.hidden.out_features)
        self._kept: tuple[Tensor, dict[str, Tensor]] = (torch.empty_like(first), {})

    def epoch(self, batches: Sequence[Int64[Tensor, " batch"]]) -> float:
        """See ``steps.Steps``."""
        total = torch.zeros(())
        for start in range(0, len(batches), _AHEAD):
            # Several batches ahead: a step sweeps the processor's caches clean, so that small things after it are slow.
            for batch in [self._prepare(rows) for rows in batches[start : start + _AHEAD]]:
                total += self._step(*batch)
        self._norm["num_batches_tracked"] += len(batches)
        self._mean.add()
        return total.item() / len(batches)

    def _prepare(self, rows: Int64[Tensor, " batch"]) -> tuple[Tensor, Tensor, Tensor]:
        """What ``_step`` is to be called with; the next masks are drawn for it."""
        seen = self._features[rows]
        kept = seen.numpy()
        np.multiply(kept, self._masks.draw(len(rows)), out=kept)
        shares = self._shares[rows]
        return seen, self._answers[rows], shares / shares.sum()

    @torch.no_grad()
    def _step(
        self,
        seen: Float32[Tensor, "batch dims"],
        answers: Float32[Tensor, "batch classes"],
        shares: Float32[Tensor, "batch 1"],
    ) -> Float32[Tensor, ""]:
        """Move the weights along the gradients of the batch's loss, and the normalisation's running statistics.

        Args:
            seen: features after dropout.
            answers: of the same images, 1 for the class that is right, else 0.
            shares: weight of that class, over their sum in the batch.

        Returns:
            The loss.
        """
        weights, gradients, norm = self._weights, self._gradients, self._head.norm
        mean, variance = self._norm["running_mean"], self._norm["running_var"]
        # With the weights on the left, where they need not be laid out anew for every product: two thirds of the time.
        sums = torch.mm(weights.hidden, seen.t()).t().contiguous().add_(weights.hidden_bias)
        normal, batch_mean, batch_scale = torch.native_batch_norm(
            sums, weights.scale, weights.shift, mean, variance, True, norm.momentum or 0.0, norm.eps
        )
        active = normal.relu_()
        residuals = torch.addmm(weights.output_bias, active, weights.output.t()).softmax(dim=1)
        right = torch.linalg.vecdot(residuals, answers).clamp_min_(_TINY).log_()
        loss = -torch.vdot(right, shares[:, 0])
        residuals.sub_(answers).mul_(shares)

        torch.mm(residuals.t(), active, out=gradients.output)
        torch.sum(residuals, dim=0, out=gradients.output_bias)
        back = torch.ops.aten.threshold_backward(torch.mm(residuals, weights.output), active, 0)
        back, scale, shift = torch.ops.aten.native_batch_norm_backward(
            back, sums, weights.scale, mean, variance, batch_mean, batch_scale, True, norm.eps, [True, True, True]
        )
        gradients.scale.copy_(scale)
        gradients.shift.copy_(shift)

        self._adam.next_step()
        for part, rows in zip(self._adam.hidden, torch.split(back.t(), _ROWS), strict=True):
            gradient = gradients.hidden[: len(rows)]
            self._adam.move(part, torch.mm(rows, seen, out=gradient))
        self._adam.move(self._adam.rest, gradients.flat[gradients.hidden.numel() :])
        return loss

    @torch.no_grad()
    def validation_loss(self) -> float:
        """See ``steps.Steps``."""
        weights, (_, mean, variance) = self._judged, self._mean.tensors
        scale = weights.scale / torch.sqrt(variance + self._head.norm.eps)
        shift = (weights.hidden_bias - mean) * scale + weights.shift
        sums = torch.mm(self._validation, weights.hidden.t(), out=self._validation_sums)
        active = torch.addcmul(shift, sums, scale, out=sums).relu_()
        logits = torch.addmm(weights.output_bias, active, weights.output.t())
        return self._loss.validation(logits, self._validation_targets)

    def keep(self) -> None:
        """See ``steps.Steps``."""
        flat, _ = self._kept
        weights, mean, variance = self._mean.tensors
        norm = self._norm | {"running_mean": mean, "running_var": variance}
        self._kept = (flat.copy_(weights), {name: tensor.clone() for name, tensor in norm.items()})

    def restore(self) -> None:
        """See ``steps.Steps``."""
        flat, norm = self._kept
        parts = torch.split(flat, [parameter.numel() for parameter in self._head.parameters()])
        with torch.no_grad():
            for parameter, part in zip(self._head.parameters(), parts, strict=True):
                parameter.copy_(part.view_as(parameter))
        self._head.norm.load_state_dict(norm, strict=False)
        self._head.eval()
