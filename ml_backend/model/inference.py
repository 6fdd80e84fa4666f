"""The exact, cheap posterior: the backbone once, the T passes on its features.

All dropout stands behind the global pooling, so that a pass differs from the next in its mask over the features
alone. Not an approximation: the same masks in T whole forward passes give the same probabilities.
"""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor, nn

from ml_backend.model.generators import generator
from ml_backend.model.hardware import one_thread

# Passes that share their products: 4 take 0.6 to 0.8 of the time of one by one, 3 and 5 a little more.
_TOGETHER = 4
# Images that go through them together: what each set of passes adds stays in the processor's cache.
_ROWS = 256
_GPU_ROWS = 2048
# Below, a second thread costs more than it gives.
_WORTH_THREADS = 512


def draw_masks(passes: int, dims: int, dropout: float, seed: int) -> Bool[Tensor, "passes dims"]:
    """Draw which features every pass keeps: one set for a whole pool, so that a pass is one network for all images.

    Drawn on the CPU: the same masks on every device.

    Args:
        passes: T.
        dims: length of a feature vector.
        dropout: share of the features that a pass drops, 0 to below 1.
        seed: the same seed draws the same masks; more passes prolong them.

    Raises:
        ValueError: no pass, or a dropout rate outside its range.
    """
    if passes < 1:
        raise ValueError(f"the posterior needs at least 1 pass, got {passes}")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"the dropout rate must be at least 0 and below 1, got {dropout}")
    return torch.rand(passes, dims, generator=generator(seed, "masks")) >= dropout


def fold_norm(hidden: nn.Linear, norm: nn.BatchNorm1d) -> tuple[Float32[Tensor, "out dims"], Float32[Tensor, " out"]]:
    """One linear layer that does what the linear layer and the normalisation behind it do when scoring.

    Returns:
        Its weight and its bias.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("only a normalisation that keeps running statistics can be folded")
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return hidden.weight * scale[:, None], (hidden.bias - norm.running_mean) * scale + norm.bias


def head_passes(
    features: Float32[Tensor, "images dims"],
    masks: Bool[Tensor, "passes dims"],
    hidden: tuple[Float32[Tensor, "out dims"], Float32[Tensor, " out"]],
    output: nn.Linear,
    dropout: float,
) -> Float32[Tensor, "images passes classes"]:
    """Draw the passes: ``softmax(W2 relu(W1 (mask * x / (1 - p)) + b1) + b2)`` for every mask.

    Args:
        features: what the head sees, before dropout.
        masks: features that each pass keeps.
        hidden: weight and bias of the first layer, with the normalisation folded in.
        output: the last layer.
        dropout: p, by which what is kept is scaled up.

    Returns:
        Probabilities; each row over the classes sums to 1.

    Source:
        Gal & Ghahramani 2016, arXiv:1506.02142.
    """
    small = not features.is_cuda and len(features) < _WORTH_THREADS
    weight, bias = hidden
    with one_thread() if small else nullcontext():
        # Features lie in rows, on both sides, so that to gather some of them is to copy: in columns it took longer
        # than the product, for a few images.
        columns, matrix = features.t().contiguous(), weight.t().div(1.0 - dropout).contiguous()
        rows = _GPU_ROWS if features.is_cuda else _ROWS
        probs = features.new_empty(len(features), len(masks), output.out_features)
        for start in range(0, len(masks), _TOGETHER):
            group = _Group.of(masks[start : start + _TOGETHER], matrix)
            for first in range(0, len(features), rows):
                hidden_layer = group.products(columns[:, first : first + rows]).add_(bias).relu_()
                part = probs[first : first + rows, start : start + _TOGETHER]
                part.copy_(output(hidden_layer).transpose(0, 1))
        return probs.softmax(dim=-1)


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """A few passes, drawn together: what several of them keep is multiplied once.

    Each feature belongs to the set of passes that keep it. Every set of k passes is one product, over its own
    features, and every pass the sum of the products of its sets. At p = 0.5 and k = 4 that is 15 / 16 of the
    features instead of 4 halves: less than half of the arithmetic, and the sums are a small part of what is saved.

    Attributes:
        order: features that any of the passes keeps, set by set.
        sizes: features of each set.
        members: 1 where the pass keeps the features of the set, else 0.
        weights: of the features in ``order``.
    """

    order: Int64[Tensor, " kept"]
    sizes: list[int]
    members: Float32[Tensor, "passes sets"]
    weights: Float32[Tensor, "kept out"]

    @classmethod
    def of(cls, masks: Bool[Tensor, "passes dims"], matrix: Float32[Tensor, "dims out"]) -> Self:
        """The sets are the numbers from 1 to 2**passes - 1: bit t is set where pass t is in."""
        bits = torch.arange(len(masks))[:, None]
        sets = (masks.to(torch.int64) << bits).sum(dim=0)
        nobodys, *sizes = torch.bincount(sets, minlength=2 ** len(masks)).tolist()
        order = sets.argsort(stable=True)[nobodys:].to(matrix.device)
        members = (torch.arange(1, 2 ** len(masks)) >> bits & 1).to(matrix)
        return cls(order, sizes, members, matrix.index_select(0, order))

    def products(self, columns: Float32[Tensor, "dims images"]) -> Float32[Tensor, "passes images out"]:
        """``(mask * x) W`` for every pass."""
        seen = columns.index_select(0, self.order)
        parts = seen.new_empty(len(self.sizes), columns.shape[1], self.weights.shape[1])
        pairs = zip(torch.split(seen, self.sizes), torch.split(self.weights, self.sizes), strict=True)
        for part, (features, weights) in zip(parts, pairs, strict=True):
            torch.mm(features.t(), weights, out=part)
        return (self.members @ parts.flatten(1)).view(-1, *parts.shape[1:])


def regroup(parts: Iterable[Float32[Tensor, "part dims"]], rows: int = 2048) -> Iterator[Float32[Tensor, "chunk dims"]]:
    """The same rows in the same order, in chunks of at least ``rows`` (the last one of what is left).

    The passes gather their parts of the weights anew for every chunk: batches of a backbone are too small for that.
    """
    held: list[Tensor] = []
    count = 0
    for part in parts:
        held.append(part)
        count += len(part)
        if count >= rows:
            yield torch.cat(held)
            held, count = [], 0
    if count:
        yield torch.cat(held)
