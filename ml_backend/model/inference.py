"""The exact, cheap posterior: the backbone once, the T passes on its features.

All dropout stands behind the global pooling, so that a pass differs from the next in its mask over the features
alone. Not an approximation: the same masks in T whole forward passes give the same probabilities.
"""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext

import torch
from jaxtyping import Bool, Float32
from torch import Tensor, nn

from ml_backend.model.randomness import generator
from ml_backend.model.threads import one_thread

__all__ = ["draw_masks", "fold_norm", "head_passes", "regroup"]

# Images that go through a pass together: their hidden layer stays in the processor's cache.
_CHUNK = 2048
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
        # Only the kept features are multiplied: half of the arithmetic at p = 0.5. They lie in rows, on both sides,
        # so that to gather them is to copy them: in columns it took longer than the product, for a few images.
        kept = [mask.nonzero().flatten().to(features.device) for mask in masks]
        matrix = weight.t().div(1.0 - dropout).contiguous()
        probs = features.new_empty(len(features), len(masks), output.out_features)
        for start in range(0, len(features), _CHUNK):
            chunk = features[start : start + _CHUNK].t().contiguous()
            for index, rows in enumerate(kept):
                seen, used = chunk.index_select(0, rows).t(), matrix.index_select(0, rows)
                probs[start : start + _CHUNK, index] = output(torch.addmm(bias, seen, used).relu_())
        return probs.softmax(dim=-1)


def regroup(
    parts: Iterable[Float32[Tensor, "part dims"]], rows: int = _CHUNK
) -> Iterator[Float32[Tensor, "chunk dims"]]:
    """The same rows in the same order, in chunks of at least ``rows`` (the last one of what is left).

    A pass gathers its part of the weights anew for every chunk: batches of a backbone are too small for that.
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
