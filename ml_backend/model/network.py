"""The paper's classifier, and its exact MC-dropout posterior: the backbone once, T passes of the head on its features.

All dropout comes after the global pooling, so that passes differ only in their masks over the features. The result
equals T whole forward passes under the same masks.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Self, cast

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor, nn

from ml_backend.model.backbones import Backbone, load_backbone
from ml_backend.model.hardware import generator, one_thread

HIDDEN = 512
# Images that go through the backbone together: 1.3 GB of activations for a ResNet50 at 224 pixels.
_BACKBONE_CHUNK = 32
# Passes that share their products: 4 take 0.6 to 0.8 of the time of single passes, 3 and 5 a little more.
_GROUP_PASSES = 4
# Images that go through a group together, so that its intermediate results stay in the processor's cache.
_GROUP_IMAGES = {"cpu": 256, "cuda": 2048}
# With fewer images, a second thread costs more than it gains.
_MIN_IMAGES_FOR_THREADS = 512
# Batches of a backbone are too small for the head: each chunk gathers the weights anew.
_HEAD_CHUNK = 2048


class DropoutHead(nn.Module):
    """Features -> dropout -> Linear(dims, 512) -> BatchNorm -> ReLU -> Linear(512, classes): logits.

    Features are standardised first. The constants are the identity unless ``fit_standardisation`` sets them, which
    only training on an untrained frozen backbone does (not in the paper): with features that share a large mean,
    dropout noise hides the differences between images.

    Args:
        dims: length of a feature vector.
        classes: number of classes.
        dropout: rate, 0 to below 1.
    """

    def __init__(self, dims: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(dims, HIDDEN)
        self.norm = nn.BatchNorm1d(HIDDEN)
        self.output = nn.Linear(HIDDEN, classes)
        self.feature_mean: Tensor
        self.feature_scale: Tensor
        self.register_buffer("feature_mean", torch.zeros(dims))
        self.register_buffer("feature_scale", torch.ones(dims))

    def fit_standardisation(self, features: Float32[Tensor, "images dims"]) -> None:
        """Set the constants to the mean and the inverse standard deviation of these; a constant feature becomes 0."""
        spread = features.std(dim=0, correction=0)
        self.feature_mean.copy_(features.mean(dim=0))
        floor = 1e-6 * float(spread.max())
        self.feature_scale.copy_(torch.where(spread > floor, 1.0 / spread.clamp_min(1e-30), 0.0))

    def standardise(self, features: Float32[Tensor, "images dims"]) -> Float32[Tensor, "images dims"]:
        """The input of the dropout layer: a copy."""
        return (features - self.feature_mean) * self.feature_scale

    def forward(self, features: Float32[Tensor, "images dims"]) -> Float32[Tensor, "images classes"]:
        return cast("Tensor", self.output(self.hidden_activations(features)))

    def hidden_activations(self, features: Float32[Tensor, "images dims"]) -> Float32[Tensor, "images hidden"]:
        """The input of the last layer."""
        return torch.relu(self.norm(self.hidden(self.dropout(self.standardise(features)))))

    def masks(self, passes: int, seed: int) -> Bool[Tensor, "passes dims"]:
        """Draw the masks of a posterior; see ``draw_masks``."""
        return draw_masks(passes, self.hidden.in_features, self.dropout.p, seed)

    @torch.inference_mode()
    def passes(
        self, features: Float32[Tensor, "images dims"], masks: Bool[Tensor, "passes dims"]
    ) -> Float32[Tensor, "images passes classes"]:
        """Probabilities of every pass; see ``head_passes``."""
        hidden = fold_batch_norm(self.hidden, self.norm)
        return head_passes(self.standardise(features), masks, hidden, self.output, self.dropout.p)

    @torch.inference_mode()
    def gradient_factors(
        self, features: Float32[Tensor, "images dims"]
    ) -> tuple[Float32[Tensor, "images classes"], Float32[Tensor, "images hidden"]]:
        """Gradient of the loss in the last layer's weights, with the predicted class as label, as two factors.

        Without dropout. The gradient of an image is the outer product of its two rows.

        Returns:
            Softmax output minus 1 for the most probable class; and the input of the last layer.

        Source:
            Ash et al. 2020, arXiv:1906.03671.
        """
        with evaluating(self):
            hidden = self.hidden_activations(features)
            residuals = self.output(hidden).softmax(dim=-1)
        residuals[torch.arange(len(residuals)), residuals.argmax(dim=-1)] -= 1.0
        return residuals, hidden


class McDropoutClassifier(nn.Module):
    """A backbone with pooled features and a ``DropoutHead``.

    Args:
        classes: number of classes, at least 2.
        backbone: name of the network, see ``backbones.Backbone``; or a loaded backbone.
        weights: of the backbone: ``imagenet``, ``none`` (untrained, the same every time), or a file; ignored if the
            backbone is loaded.
        dropout: rate of the head.

    Raises:
        SettingsError: no such backbone.
        WeightsError: the weights are unavailable, or do not fit the backbone.
        ValueError: fewer than 2 classes.

    Source:
        Gabriel et al., arXiv:2508.21263.
    """

    def __init__(
        self, classes: int, backbone: str | Backbone = "resnet50", weights: str = "imagenet", dropout: float = 0.5
    ) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"a classifier needs at least 2 classes, got {classes}")
        self.backbone = load_backbone(backbone, weights) if isinstance(backbone, str) else backbone
        self.head = DropoutHead(self.backbone.dims, classes, dropout)

    def features(self, images: Float32[Tensor, "images channels side side"]) -> Float32[Tensor, "images dims"]:
        """Pooled backbone features: the input of the head."""
        return cast("Tensor", self.backbone(images)).float()

    def forward(self, images: Float32[Tensor, "images channels side side"]) -> Float32[Tensor, "images classes"]:
        """Logits."""
        return cast("Tensor", self.head(self.features(images)))

    def mc_probs(
        self, images: Tensor | Iterable[Tensor | tuple[Tensor, ...]], passes: int, seed: int = 0
    ) -> Float32[Tensor, "images passes classes"]:
        """Draw the stochastic passes, with one set of dropout masks for all images.

        Everything but the dropout runs in eval mode; the module's own mode is restored.

        Args:
            images: [images, channels, side, side], normalised (see ``images.transforms.to_input``), or a loader of such
                batches (the first element of a tuple counts).
            passes: T.
            seed: of the masks: the same for every batch size.

        Returns:
            Probabilities on the CPU; pass t is the same network for every image.
        """
        device = self.head.hidden.weight.device
        masks = self.head.masks(passes, seed)
        batches = torch.split(images, _BACKBONE_CHUNK) if isinstance(images, Tensor) else images
        tensors = (batch if isinstance(batch, Tensor) else batch[0] for batch in batches)
        probs = [torch.empty(0, passes, self.head.output.out_features)]
        # On a CPU convolutions take two thirds of the time on channels_last images, in either layout of the weights.
        memory_format = torch.preserve_format if device.type == "cuda" else torch.channels_last
        with evaluating(self), torch.inference_mode():
            features = (self.features(tensor.to(device, memory_format=memory_format)) for tensor in tensors)
            probs += [self.head.passes(chunk, masks).cpu() for chunk in rechunk(features)]
        return torch.cat(probs)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode, and restore the mode of each part afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def draw_masks(passes: int, dims: int, dropout: float, seed: int) -> Bool[Tensor, "passes dims"]:
    """Draw the features that each pass keeps: one set for a whole pool, so that a pass is one network for all images.

    Drawn on the CPU: the same masks on every device.

    Args:
        passes: T.
        dims: length of a feature vector.
        dropout: fraction of the features that a pass drops, 0 to below 1.
        seed: more passes with the same seed extend the set.

    Raises:
        ValueError: no pass, or a dropout rate outside its range.
    """
    if passes < 1:
        raise ValueError(f"the posterior needs at least 1 pass, got {passes}")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"the dropout rate must be at least 0 and below 1, got {dropout}")
    return torch.rand(passes, dims, generator=generator(seed, "masks")) >= dropout


def fold_batch_norm(
    hidden: nn.Linear, norm: nn.BatchNorm1d
) -> tuple[Float32[Tensor, "out dims"], Float32[Tensor, " out"]]:
    """Weight and bias of one linear layer that equals a linear layer and its normalisation in eval mode."""
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
        features: the head's input, before dropout.
        masks: features that each pass keeps.
        hidden: weight and bias of the first layer, with the normalisation folded in.
        output: the last layer.
        dropout: p; kept features are divided by 1 - p.

    Returns:
        Probabilities; each row over the classes sums to 1.

    Source:
        Gal & Ghahramani 2016, arXiv:1506.02142.
    """
    small = not features.is_cuda and len(features) < _MIN_IMAGES_FOR_THREADS
    weight, bias = hidden
    with one_thread() if small else nullcontext():
        # Features as rows on both sides, so that gathering some of them copies whole rows: for a few images,
        # gathering columns takes longer than the product.
        columns, matrix = features.t().contiguous(), weight.t().div(1.0 - dropout).contiguous()
        rows = _GROUP_IMAGES[features.device.type]
        probs = features.new_empty(len(features), len(masks), output.out_features)
        for start in range(0, len(masks), _GROUP_PASSES):
            group = _PassGroup.from_masks(masks[start : start + _GROUP_PASSES], matrix)
            for first in range(0, len(features), rows):
                hidden_layer = group.products(columns[:, first : first + rows]).add_(bias).relu_()
                part = probs[first : first + rows, start : start + _GROUP_PASSES]
                part.copy_(output(hidden_layer).transpose(0, 1))
        return probs.softmax(dim=-1)


@dataclass(frozen=True, slots=True, eq=False)
class _PassGroup:
    """A few passes computed together: features that several of them keep are multiplied once.

    Each feature belongs to the set of passes that keep it. Each set of passes is one product over its own features,
    and each pass is the sum of the products of its sets. At p = 0.5 and 4 passes that is 15 / 16 of the features
    instead of 4 halves: less than half of the arithmetic.

    Attributes:
        order: features that any of the passes keeps, set by set.
        sizes: features of each set.
        members: 1 if the pass keeps the features of the set, else 0.
        weights: of the features in ``order``.
    """

    order: Int64[Tensor, " kept"]
    sizes: list[int]
    members: Float32[Tensor, "passes sets"]
    weights: Float32[Tensor, "kept out"]

    @classmethod
    def from_masks(cls, masks: Bool[Tensor, "passes dims"], matrix: Float32[Tensor, "dims out"]) -> Self:
        """Number the sets from 1 to 2**passes - 1: bit t says whether pass t is a member."""
        bits = torch.arange(len(masks))[:, None]
        sets = (masks.to(torch.int64) << bits).sum(dim=0)
        dropped, *sizes = torch.bincount(sets, minlength=2 ** len(masks)).tolist()
        order = sets.argsort(stable=True)[dropped:].to(matrix.device)
        members = (torch.arange(1, 2 ** len(masks)) >> bits & 1).to(matrix)
        return cls(order, sizes, members, matrix.index_select(0, order))

    def products(self, columns: Float32[Tensor, "dims images"]) -> Float32[Tensor, "passes images out"]:
        """``(mask * x) W`` for every pass."""
        kept = columns.index_select(0, self.order)
        parts = kept.new_empty(len(self.sizes), columns.shape[1], self.weights.shape[1])
        pairs = zip(torch.split(kept, self.sizes), torch.split(self.weights, self.sizes), strict=True)
        for part, (features, weights) in zip(parts, pairs, strict=True):
            torch.mm(features.t(), weights, out=part)
        return (self.members @ parts.flatten(1)).view(-1, *parts.shape[1:])


def rechunk(
    parts: Iterable[Float32[Tensor, "part dims"]], rows: int = _HEAD_CHUNK
) -> Iterator[Float32[Tensor, "chunk dims"]]:
    """The same rows in the same order, in chunks of at least ``rows``, except for the last chunk."""
    pending: list[Tensor] = []
    count = 0
    for part in parts:
        pending.append(part)
        count += len(part)
        if count >= rows:
            yield torch.cat(pending)
            pending, count = [], 0
    if count:
        yield torch.cat(pending)
