"""A trained network, or an ensemble, as a folder that predicts without this installation: safetensors and ONNX.

``model.onnx`` turns grey levels into probabilities without dropout, and into features; ``head.onnx`` turns features and
dropout masks into the probabilities of every pass. With the masks in ``masks.npz`` these are the passes of the round.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float32, UInt8
from torch import Tensor, nn

from ml_backend.errors import RoundError
from ml_backend.images.cache import ImageCache
from ml_backend.images.source import ImageSource
from ml_backend.images.transforms import to_input
from ml_backend.model.backbones import Backbone, input_side
from ml_backend.model.checkpoint import FILE_NAME, Checkpoint, load_checkpoint, save_checkpoint
from ml_backend.model.data import FOLDER, FeatureExtractor
from ml_backend.model.hardware import Precision, choose_device
from ml_backend.model.inference import FittedNetwork
from ml_backend.model.learner import IMAGES
from ml_backend.model.network import DropoutHead
from ml_backend.predictions import PoolPredictions
from ml_backend.schemas import FrozenModel, ImageRef, natural_order

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

MODEL: Final = "model.onnx"
HEAD: Final = "head.onnx"
MASKS: Final = "masks.npz"
ONNX_TOLERANCE: Final = 1e-3
"""Largest difference of a probability between ONNX Runtime and PyTorch at which an export is accepted."""

_AT_ONCE = 16  # images in ONNX Runtime together


class OnnxCheck(FrozenModel):
    """An exported network against the one it was made from, in probabilities.

    Attributes:
        images: number of images compared.
        of: which images these were.
        onnx_difference: largest difference of a pass between ONNX Runtime and PyTorch.
        approximation_largest: largest difference between a probability without dropout and the mean over the passes.
        approximation_mean: mean of these differences.
        same_class: number of images of which both name the same class.
    """

    images: int
    of: Literal["pool", "synthetic"]
    onnx_difference: float
    approximation_largest: float
    approximation_mean: float
    same_class: int


def load_networks(folder: Path) -> tuple[Checkpoint, ...]:
    """The networks in a folder of a round or of an export: one, or those of an ensemble in their order.

    Heads on one frozen backbone share it.

    Raises:
        WeightsError: there is none, or see ``load_checkpoint``.
    """
    found = sorted(folder.glob(f"network-*/{FILE_NAME}"), key=lambda path: natural_order(path.parent.name))
    first, *others = found or [folder / FILE_NAME]
    loaded = load_checkpoint(first)
    return loaded, *(load_checkpoint(path, loaded.classes, loaded.network.backbone) for path in others)


def save_networks(folder: Path, networks: Sequence[Checkpoint]) -> None:
    """Write networks with their backbone, once where they share it: ``load_networks`` then needs no other file.

    Of a file of weights that training began with, its name alone is kept: where it lies concerns this machine.

    Raises:
        OSError: a file cannot be written.
    """
    for number, one in enumerate(networks, start=1):
        path = folder / FILE_NAME if len(networks) == 1 else folder / f"network-{number}" / FILE_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        shared = number > 1 and one.network.backbone is networks[0].network.backbone
        options = one.options.model_copy(update={"weights": Path(one.options.weights).name})
        one.network.backbone.weights = Path(one.network.backbone.weights).name
        save_checkpoint(path, one.network, one.classes, options, one.seed, frozen_backbone=shared)


class ExportedModel:
    """Predicts images with the networks of a folder.

    Args:
        networks: see ``load_networks``; moved to the device.
        source: of the images.
        cache: folder of pixels and features; that of an installation holds what its rounds have computed.
        device: ``auto`` is the GPU if there is one.
        cache_limit_bytes: disk space of the cached images, and again of the features.

    Raises:
        SettingsError: ``cuda`` on a machine without a usable GPU, or a precision that the device lacks.
    """

    def __init__(
        self,
        networks: Sequence[Checkpoint],
        source: ImageSource,
        cache: Path,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        cache_limit_bytes: int | None = None,
    ) -> None:
        options = networks[0].options
        self.classes = networks[0].classes
        precision = Precision.from_options(
            choose_device(device), options.precision, channels_last=options.channels_last
        )
        self.images = ImageCache(source, cache / IMAGES, input_side_of(networks), cache_limit_bytes)
        extractors: dict[int, FeatureExtractor] = {}
        self._fitted: list[FittedNetwork] = []
        for one in networks:
            precision.place(one.network)
            backbone = one.network.backbone
            if id(backbone) not in extractors:
                extractors[id(backbone)] = FeatureExtractor(
                    backbone, self.images, precision, cache / FOLDER, cache_limit_bytes
                )
            self._fitted.append(FittedNetwork(one.network, one.classes, extractors[id(backbone)], masks_of(one)))
        self._shared = len(extractors) == 1

    def outputs(self, images: Sequence[ImageRef], progress: Callable[[int], None]) -> PoolPredictions:
        """Draw the passes of all networks over the readable images, as the round did.

        Args:
            images: any number of images.
            progress: called with the number of images done.

        Raises:
            RoundError: the GPU's memory is too small; or an image was readable for one network and not for another.
        """
        first, *others = self._fitted
        if self._shared:
            return first.outputs(images, frozenset({"probs"}), progress, others)
        parts = [first.outputs(images, frozenset({"probs"}), progress)]
        parts += [one.outputs(images, frozenset({"probs"}), lambda _: None) for one in others]
        if any(part.image_ids != parts[0].image_ids for part in parts):
            raise RoundError("an image was readable for one network of the ensemble and not for another: try again")
        probs = np.concatenate([part.probs for part in parts], axis=1)
        return PoolPredictions(parts[0].image_ids, self.classes, probs, exclusions=parts[0].exclusions)


def input_side_of(networks: Sequence[Checkpoint]) -> int:
    """Side of the images that networks were trained on, in pixels."""
    first = networks[0]
    return input_side(first.network.backbone.name, first.options.image_side)


def masks_of(checkpoint: Checkpoint) -> Bool[Tensor, "passes dims"]:
    """The dropout masks of a network's passes in its round."""
    return checkpoint.network.head.masks(checkpoint.options.passes, checkpoint.seed)


class _Deterministic(nn.Module):
    """Grey levels [images, side, side] -> mean probabilities of the heads without dropout; features of all backbones.

    The features of several backbones lie behind one another.
    """

    def __init__(self, networks: Sequence[Checkpoint]) -> None:
        super().__init__()
        shared = all(one.network.backbone is networks[0].network.backbone for one in networks)
        self.backbones = nn.ModuleList(one.network.backbone for one in (networks[:1] if shared else networks))
        self.heads = nn.ModuleList(one.network.head for one in networks)

    def forward(self, pixels: UInt8[Tensor, "images side side"]) -> tuple[Tensor, Tensor]:
        features = [
            backbone(to_input(pixels, cast("Backbone", backbone).normalisation)).float() for backbone in self.backbones
        ]
        rows = features if len(features) > 1 else features * len(self.heads)
        probs = torch.stack([head(row).softmax(dim=-1) for head, row in zip(self.heads, rows, strict=True)])
        return probs.mean(dim=0), torch.cat(features, dim=1)


class _Passes(nn.Module):
    """Features, and masks [passes, dims] for each head -> probabilities [images, passes, classes]."""

    def __init__(self, heads: nn.ModuleList, backbones: int) -> None:
        super().__init__()
        self.heads = heads
        self._backbones = backbones

    def forward(self, features: Float32[Tensor, "images dims"], masks: tuple[Tensor, ...]) -> Tensor:
        parts = features.chunk(self._backbones, dim=1) if self._backbones > 1 else [features] * len(self.heads)
        return torch.cat(
            [
                self._draw(cast("DropoutHead", head), *each)
                for head, *each in zip(self.heads, parts, masks, strict=True)
            ],
            dim=1,
        )

    @staticmethod
    def _draw(head: DropoutHead, features: Tensor, masks: Tensor) -> Tensor:
        kept = head.standardise(features)[:, None] * (masks.float() / (1.0 - head.dropout.p))
        hidden = head.hidden(kept)
        scale = head.norm.weight / torch.sqrt(cast("Tensor", head.norm.running_var) + head.norm.eps)
        hidden = (hidden - head.norm.running_mean) * scale + head.norm.bias
        return cast("Tensor", head.output(torch.relu(hidden)).softmax(dim=-1))


def write_onnx(folder: Path, networks: Sequence[Checkpoint]) -> None:
    """Write ``model.onnx``, ``head.onnx`` and ``masks.npz``.

    Args:
        folder: of the files.
        networks: in eval mode on the CPU.

    Raises:
        RoundError: PyTorch cannot translate the backbone.
    """
    whole = _Deterministic(networks).eval()
    passes = _Passes(whole.heads, len(whole.backbones)).eval()
    side = input_side_of(networks)
    masks = {f"masks_{number}": masks_of(one) for number, one in enumerate(networks, start=1)}
    images = torch.export.Dim("images")
    features = torch.zeros(2, sum(cast("int", backbone.dims) for backbone in whole.backbones))
    dims = tuple({0: torch.export.Dim(name.replace("masks", "passes"))} for name in masks)
    # Different numbers of passes: equal ones would be taken for one dimension.
    examples = tuple(torch.ones(number, one.shape[1], dtype=torch.bool) for number, one in enumerate(masks.values(), 2))
    pixels = torch.zeros(2, side, side, dtype=torch.uint8)
    _translate(folder / MODEL, whole, {"pixels": pixels}, ["probabilities", "features"], {"pixels": {0: images}})
    passes_of = {"features": features, "masks": examples}
    _translate(folder / HEAD, passes, passes_of, ["probabilities"], {"features": {0: images}, "masks": dims})
    arrays: dict[str, Any] = {name: one.numpy() for name, one in masks.items()}
    np.savez_compressed(folder / MASKS, **arrays)


def _translate(
    path: Path, module: nn.Module, inputs: Mapping[str, Any], outputs: list[str], dynamic: dict[str, Any]
) -> None:
    names = [name for name, value in inputs.items() if isinstance(value, Tensor)]
    names += [
        f"{name}_{i}" for name, value in inputs.items() if isinstance(value, tuple) for i in range(1, 1 + len(value))
    ]
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # PyTorch's and onnxscript's, about their own code
            program = torch.onnx.export(
                module,
                tuple(inputs.values()),
                dynamo=True,
                input_names=names,
                output_names=outputs,
                dynamic_shapes=dynamic,
                verbose=False,
            )
        assert program is not None  # noqa: S101 - of the deprecated exporter alone
        program.save(path)
    except torch.onnx.errors.OnnxExporterError as error:
        first = next(iter(str(error).splitlines()), "")
        raise RoundError(f"the network cannot be written as ONNX: {first}: export it with --no-onnx") from error


def session(path: Path) -> "InferenceSession":
    """Open a network in ONNX Runtime, on the CPU."""
    from onnxruntime import InferenceSession, SessionOptions  # noqa: PLC0415 - of the extra `export`

    options = SessionOptions()
    options.log_severity_level = 3  # errors
    return InferenceSession(path, options, providers=["CPUExecutionProvider"])


def onnx_passes(
    folder: Path, pixels: UInt8[npt.NDArray[np.uint8], "images side side"]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Predict with the ONNX files of a folder.

    Returns:
        Probabilities without dropout [images, classes], and of the passes [images, passes, classes].
    """
    model, head = session(folder / MODEL), session(folder / HEAD)
    with np.load(folder / MASKS) as stored:
        masks = dict(stored)
    parts = []
    for start in range(0, len(pixels), _AT_ONCE):
        probs, features = model.run(None, {"pixels": pixels[start : start + _AT_ONCE]})
        parts.append((probs, head.run(None, {"features": features, **masks})[0]))
    return np.concatenate([one for one, _ in parts]), np.concatenate([one for _, one in parts])


def check_onnx(
    folder: Path,
    networks: Sequence[Checkpoint],
    pixels: UInt8[npt.NDArray[np.uint8], "images side side"],
    of: Literal["pool", "synthetic"],
) -> OnnxCheck:
    """Compare the ONNX files of a folder with the networks, which are on the CPU.

    Raises:
        RoundError: they differ by more than ``ONNX_TOLERANCE``.
    """
    without, passes = onnx_passes(folder, pixels)
    inputs = [to_input(torch.from_numpy(pixels), one.network.backbone.normalisation) for one in networks]
    exact = np.concatenate(
        [
            one.network.mc_probs(images, one.options.passes, one.seed).numpy()
            for one, images in zip(networks, inputs, strict=True)
        ],
        axis=1,
    )
    off = float(np.abs(passes - exact).max())
    if not off <= ONNX_TOLERANCE:
        raise RoundError(
            f"ONNX Runtime differs from PyTorch by {off:.2g} in a probability, more than {ONNX_TOLERANCE:g}: "
            "export with --no-onnx, and report the backbone"
        )
    mean = exact.mean(axis=1)
    apart = np.abs(without - mean)
    return OnnxCheck(
        images=len(pixels),
        of=of,
        onnx_difference=off,
        approximation_largest=float(apart.max()),
        approximation_mean=float(apart.mean()),
        same_class=int((without.argmax(axis=1) == mean.argmax(axis=1)).sum()),
    )
