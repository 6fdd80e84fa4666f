"""Networks without their last layer, of torchvision, timm or a package, and their weights: published, none, a file."""

import contextlib
import hashlib
import http.client
import pickle
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import cast
from urllib.parse import urlparse

import torch
from jaxtyping import Float32
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ml_backend.config.network import Server, environment_context, explain_failure, proxy_for
from ml_backend.errors import SettingsError, WeightsError
from ml_backend.images.transforms import IMAGENET, Normalisation
from ml_backend.model.hardware import seeded
from ml_backend.model.timm_networks import RADIOGRAPHS, TimmNetwork, find_network
from ml_backend.registry import build_plugin, plugins

# Family -> the layer after global average pooling (and flattening), replaced by the identity. Families without such
# pooling (vgg, alexnet), with several outputs (inception, googlenet) or without convolutions are left out.
LAST_LAYER = {
    "convnext": "classifier.2",
    "densenet": "classifier",
    "efficientnet": "classifier",
    "mnasnet": "classifier",
    "mobilenet": "classifier",
    "regnet": "fc",
    "resnet": "fc",
    "resnext": "fc",
    "shufflenet": "fc",
    "wide_resnet": "fc",
}

# Side of the input of torchvision's networks, which take any other as well, and of a package's.
_SIDE = 224

# An untrained backbone must be the same in every round and process, or cached features would be worthless.
_UNTRAINED_SEED = 0

_CONNECT_TIMEOUT_S = 5.0  # also the longest pause of a download
_DOWNLOAD_TIMEOUT_S = 600.0
_TORCH_FILE = (b"PK", b"\x80")  # a ZIP archive, before torch 1.6 a bare pickle
_HUB = Server("", "its address")
_ADVICE = (
    "put the file there as {path}, or name a file of your own "
    '(`weights: /path/file` in extra_params, model_weights="..." on the Choices tag, or AL_WEIGHTS), '
    "or set `weights: none` to continue with an untrained backbone"
)
_MISFIT = "the weights {path} do not fit backbone={name}: {why}: name the backbone that they were trained with"


class Backbone(nn.Module):
    """Images -> pooled features. Untrained when built, always with the same weights.

    Args:
        name: as torchvision spells it: ``resnet50``, ``mobilenet_v2``, ...; ``timm/`` and a name of timm's; a network
            for radiographs, see ``timm_networks.RADIOGRAPHS``; or of a backbone that an installed package adds
            through the entry-point group ``ml_backend.backbones``: a function that takes ``weights``, as the option
            spells it, and returns a module of images [images, 3, side, side] to features [images, dims].
        weights: of a package's backbone, which loads them itself.
        side: of the images in pixels; None for the network's own.

    Attributes:
        dims: length of a feature vector.
        normalisation: of the images, see ``images.transforms.to_input``; its channels are the network's.
        weights: which weights it was filled with, as the setting spells it.
        traceable: its convolutions and normalisations can be fused by ``torch.fx``.

    Raises:
        SettingsError: there is no such network, it is of no family in ``LAST_LAYER``, or it cannot be built for this
            side.
    """

    def __init__(self, name: str, weights: str = "none", side: int | None = None) -> None:
        super().__init__()
        self.name = name
        self.weights = "none"
        known = _timm_network(name)
        self.normalisation = normalisation_of(name)
        self.traceable = known is None
        with seeded(_UNTRAINED_SEED, "backbone"):
            self.network = build_network(name, weights, side)
        # Measured, because every family keeps the number in another attribute.
        self.network.eval()
        if known is None:
            with torch.inference_mode():
                features = self.network(torch.zeros(1, 3, 64, 64))
        else:
            features = _fake_features(known, self.network, side or known.side)
        if not isinstance(features, Tensor) or features.ndim != 2:
            shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise SettingsError(f"backbone={name!r} must return features [images, dims], got {shape}")
        self.dims = int(features.shape[1])
        self.network.train()

    def forward(self, images: Float32[Tensor, "images channels side side"]) -> Float32[Tensor, "images dims"]:
        return cast("Tensor", self.network(images))

    def digest(self) -> str:
        """Identifies these weights and their normalisation, in cache keys and checkpoints."""
        digest = hashlib.sha256(self.name.encode())
        if self.normalisation != IMAGENET:
            digest.update(repr(self.normalisation).encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(f"|{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().data)
        return digest.hexdigest()


def build_network(name: str, weights: str = "none", side: int | None = None) -> nn.Module:
    """The untrained network of a ``Backbone``, for its arguments.

    Raises:
        SettingsError: see ``Backbone``.
    """
    if name in plugins("backbones"):
        return _plugin_network(name, weights)
    if (known := _timm_network(name)) is not None:
        return known.build(side or known.side)
    return _headless_network(name)


def input_side(backbone: str, side: int | None) -> int:
    """Side of the images in pixels: the option ``image_side``, else the network's own, 224 for torchvision's.

    Raises:
        SettingsError: timm has no such network.
    """
    if side is not None:
        return side
    return _SIDE if (known := _timm_network(backbone)) is None else known.side


def normalisation_of(backbone: str) -> Normalisation:
    """Normalisation of the images; ImageNet's for torchvision's networks and a package's.

    Raises:
        SettingsError: timm has no such network.
    """
    return IMAGENET if (known := _timm_network(backbone)) is None else known.normalisation


def _timm_network(name: str) -> TimmNetwork | None:
    """None for a network of a package, even under a name of timm's, and of torchvision."""
    return None if name in plugins("backbones") else find_network(name)


def _fake_features(known: TimmNetwork, network: nn.Module, side: int) -> object:
    """Features without their values: a large network would take seconds to compute them."""
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
            return network(torch.zeros(1, known.normalisation.channels, side, side))
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise SettingsError(
            f"image_side={side}, but backbone={known.name!r} takes no such images: {error}: "
            f"leave image_side out for its own {known.side} pixels"
        ) from error


def _headless_network(name: str) -> nn.Module:
    from torchvision import models  # noqa: PLC0415 - takes a second

    parent_path, _, attribute = last_layer(name).rpartition(".")
    network = cast("nn.Module", models.get_model(name, weights=None))
    setattr(network.get_submodule(parent_path), attribute, nn.Identity())
    return network


def _plugin_network(name: str, weights: str) -> nn.Module:
    network = build_plugin("backbones", name, weights)
    if not isinstance(network, nn.Module):
        raise SettingsError(f"backbone={name!r} must be built as a torch module, got {type(network).__name__}")
    return network


def last_layer(name: str) -> str:
    """Path of the omitted layer in torchvision's network.

    Raises:
        SettingsError: see ``Backbone``.
    """
    from torchvision import models  # noqa: PLC0415

    known = [known for known in models.list_models(module=models) if known.startswith(tuple(LAST_LAYER))]
    if name not in known:
        listed = ", ".join(sorted([*known, *RADIOGRAPHS, *plugins("backbones")]))
        raise SettingsError(f"backbone={name!r} is not known; known are timm/ with a name of timm's, {listed}")
    return LAST_LAYER[next(family for family in LAST_LAYER if name.startswith(family))]


def load_backbone(name: str, weights: str, side: int | None = None) -> Backbone:
    """Build a backbone and fill it.

    Args:
        name: of the network; see ``Backbone``.
        weights: ``imagenet`` for the published ones (of torchvision's networks the first version, as in the paper's
            time; of timm's those of the name's tag, else of its default tag), downloaded once into torch.hub's folder
            unless the Hugging Face cache has them; ``none`` (untrained, the same every time); or the path of a file:
            safetensors, or a torch file that holds tensors alone. A last layer in it is ignored; see
            ``TimmNetwork.convert`` for the layouts that a network of timm takes.
        side: of the images in pixels; None for the network's own.

    Raises:
        SettingsError: no such backbone, or not for this side.
        WeightsError: the file is unavailable, unreadable, or belongs to another network.
    """
    path = None
    if weights != "none" and name not in plugins("backbones"):
        path = _published_file(name) if weights == "imagenet" else Path(weights).expanduser()
    backbone = Backbone(name, weights, side)
    backbone.weights = weights
    if path is not None:
        tensors = _strip_prefixes(_read(path))
        known = find_network(name)
        try:
            tensors = _without_last_layer(name, tensors) if known is None else known.convert(backbone.network, tensors)
        except ValueError as error:
            raise WeightsError(_MISFIT.format(path=path, name=name, why=error)) from error
        _fill(backbone, tensors, path)
    return backbone


def weights_file(backbone: str, weights: str) -> Path | None:
    """The file that ``load_backbone`` reads; None if it reads none or would download it first. Sends no request.

    Raises:
        SettingsError: no such backbone.
    """
    if weights == "none" or (weights == "imagenet" and backbone in plugins("backbones")):
        return None
    if weights == "imagenet":
        published = published_weights(backbone)
        path = None if published is None else published[1]
    else:
        path = Path(weights).expanduser()
    return path if path is not None and path.is_file() else None


def published_weights(backbone: str) -> tuple[str, Path] | None:
    """Address of the published weights, and the file that has or will have them; None if there are none.

    Raises:
        SettingsError: no such backbone.
    """
    if (known := find_network(backbone)) is None:
        url = _imagenet_url(backbone)
        return None if url is None else (url, hub_folder() / Path(urlparse(url).path).name)
    if known.published is None:
        return None
    from huggingface_hub import hf_hub_url, try_to_load_from_cache  # noqa: PLC0415 - timm brings it

    cached = try_to_load_from_cache(known.published.repository, known.published.name)
    name = backbone.replace("/", "-") + Path(known.published.name).suffix
    path = Path(cached) if isinstance(cached, str) else hub_folder() / name
    return hf_hub_url(known.published.repository, known.published.name), path


def _imagenet_url(backbone: str) -> str | None:
    from torchvision import models  # noqa: PLC0415

    last_layer(backbone)
    versions = {str(entry.name): str(entry.url) for entry in models.get_model_weights(backbone)}
    return versions.get("IMAGENET1K_V1") or next(iter(versions.values()), None)


def hub_folder() -> Path:
    """Folder of downloaded weights: torch.hub's."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def _published_file(name: str) -> Path:
    published = published_weights(name)
    if published is None:
        raise WeightsError(
            f"there are no published weights of {name} to load as `weights: imagenet`: name a file, or set "
            "`weights: none`"
        )
    url, path = published
    if downloaded := not path.is_file():
        _download(url, path)
    # torchvision's file names end in the first digits of their SHA-256.
    expected = path.stem.rpartition("-")[2] if find_network(name) is None else ""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(expected):
        if downloaded:
            path.unlink(missing_ok=True)
            raise WeightsError(
                f"the download from {url} is damaged: its sha256 begins with {found[:8]}, not {expected}: try again, "
                "or " + _ADVICE.format(path=path)
            )
        raise WeightsError(f"{path} is damaged: its sha256 begins with {found[:8]}, not {expected}: delete it")
    return path


def _download(url: str, path: Path) -> None:
    """Download in one attempt of bounded length: without a network, a worker must report so within seconds."""
    deadline = time.monotonic() + _DOWNLOAD_TIMEOUT_S
    partial: Path | None = None
    received = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            urllib.request.urlopen(  # noqa: S310 - torchvision's own https
                url, timeout=_CONNECT_TIMEOUT_S, context=environment_context()
            ) as response,
            tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file,
        ):
            partial = Path(file.name)
            while block := response.read(1 << 20):
                file.write(block)
                received += len(block)
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not complete after {_DOWNLOAD_TIMEOUT_S:.0f} s")
            if (expected := response.headers["Content-Length"]) is not None and received < int(expected):
                raise http.client.IncompleteRead(b"", int(expected) - received)
        partial.replace(path)
    except (OSError, http.client.HTTPException) as error:  # URLError, HTTPError, time-outs and a full disk alike
        if partial is not None:
            with contextlib.suppress(OSError):
                partial.unlink()
        why = explain_failure(error, url, _HUB, proxy_for(url)).what
        raise WeightsError(
            f"the published weights could not be downloaded from {url} ({why}): " + _ADVICE.format(path=path)
        ) from error


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        loaded = _load(path)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"the weights {path} hold more than tensors, which could run code: save the state_dict alone"
        ) from error
    except Exception as error:  # on a damaged file torch raises anything: RuntimeError, KeyError, EOFError, ...
        raise WeightsError(f"the weights {path} cannot be read: {error}: name a safetensors or torch file") from error
    if isinstance(loaded, Mapping):
        for wrapper in ("state_dict", "model"):  # as training scripts wrap it
            loaded = loaded[wrapper] if isinstance(loaded.get(wrapper), Mapping) else loaded
    if not isinstance(loaded, Mapping) or not all(isinstance(tensor, Tensor) for tensor in loaded.values()):
        raise WeightsError(f"the weights {path} are a {type(loaded).__name__}, not named tensors: save the state_dict")
    return loaded


def _load(path: Path) -> object:
    if path.suffix == ".safetensors":
        return load_file(path)
    with path.open("rb") as file:
        start = file.read(12)
    # torch would read an HTML page or a Git LFS pointer as a pickle, and complain about something else.
    if not start.startswith(_TORCH_FILE):
        raise ValueError("it does not begin as a torch file does")
    return torch.load(path, map_location="cpu", weights_only=True)


def _strip_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes of DataParallel and of our own checkpoints, and leave out the head of the latter."""
    plain = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    if any(name.startswith("backbone.") for name in plain):
        plain = {name: tensor for name, tensor in plain.items() if name.startswith("backbone.")}
    return {name.removeprefix("backbone.").removeprefix("network."): tensor for name, tensor in plain.items()}


def _without_last_layer(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    last = f"{last_layer(name)}."
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(last)}


def _fill(backbone: Backbone, tensors: Mapping[str, Tensor], path: Path) -> None:
    expected = backbone.network.state_dict()
    mismatches = [
        f"{name} is {list(tensors[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    # Inference ignores num_batches_tracked, and old files lack it.
    mismatches += [
        f"{name} is missing" for name in expected if name not in tensors and not name.endswith("num_batches_tracked")
    ]
    mismatches += [f"{name} is surplus" for name in tensors if name not in expected]
    if mismatches:
        why = f"{'; '.join(mismatches[:3])} ({len(mismatches)} mismatches in all)"
        raise WeightsError(_MISFIT.format(path=path, name=backbone.name, why=why))
    if broken := [name for name, t in tensors.items() if t.is_floating_point() and not bool(t.isfinite().all())]:
        raise WeightsError(f"the weights {path} hold NaN or infinity in {broken[0]}: choose another file")
    backbone.network.load_state_dict(dict(tensors), strict=False)
