"""torchvision networks without their last layer, and their weights: ImageNet's, none, or a file."""

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

from ml_backend.config.network import Server, environment_context, explain_failure, proxy_for
from ml_backend.errors import SettingsError, WeightsError
from ml_backend.model.hardware import seeded
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

# An untrained backbone must be the same in every round and process, or cached features would be worthless.
_UNTRAINED_SEED = 0

_CONNECT_TIMEOUT_S = 5.0  # also the longest pause of a download
_DOWNLOAD_TIMEOUT_S = 600.0
_TORCH_FILE = (b"PK", b"\x80")  # a ZIP archive, before torch 1.6 a bare pickle
_HUB = Server("", "its address")
_ADVICE = (
    "put the file into {folder}, or name a file of your own "
    '(`weights: /path/file` in extra_params, model_weights="..." on the Choices tag, or AL_WEIGHTS), '
    "or set `weights: none` to continue with an untrained backbone"
)


class Backbone(nn.Module):
    """Images -> pooled features. Untrained when built, always with the same weights.

    Args:
        name: as torchvision spells it: ``resnet50``, ``mobilenet_v2``, ...; or of a backbone that an installed package
            adds through the entry-point group ``ml_backend.backbones``: a function that takes ``weights``, as the
            option spells it, and returns a module of images [images, 3, side, side] to features [images, dims].
        weights: of a package's backbone, which loads them itself.

    Attributes:
        dims: length of a feature vector.
        weights: which weights it was filled with, as the setting spells it.

    Raises:
        SettingsError: torchvision has no such network, or it is of no family in ``LAST_LAYER``.
    """

    def __init__(self, name: str, weights: str = "none") -> None:
        super().__init__()
        self.name = name
        self.weights = "none"
        with seeded(_UNTRAINED_SEED, "backbone"):
            self.network = _plugin_network(name, weights) if name in plugins("backbones") else _headless_network(name)
        # Measured, because every family keeps the number in another attribute.
        self.network.eval()
        with torch.inference_mode():
            features = self.network(torch.zeros(1, 3, 64, 64))
        if not isinstance(features, Tensor) or features.ndim != 2:
            shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise SettingsError(f"backbone={name!r} must return features [images, dims], got {shape}")
        self.dims = int(features.shape[1])
        self.network.train()

    def forward(self, images: Float32[Tensor, "images 3 side side"]) -> Float32[Tensor, "images dims"]:
        return cast("Tensor", self.network(images))

    def digest(self) -> str:
        """Identifies these weights, in cache keys and checkpoints."""
        digest = hashlib.sha256(self.name.encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(f"|{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().data)
        return digest.hexdigest()


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
        listed = ", ".join(sorted([*known, *plugins("backbones")]))
        raise SettingsError(f"backbone={name!r} is not known; known are {listed}")
    return LAST_LAYER[next(family for family in LAST_LAYER if name.startswith(family))]


def load_backbone(name: str, weights: str) -> Backbone:
    """Build a backbone and fill it.

    Args:
        name: torchvision's name of the network, or a package's; see ``Backbone``.
        weights: ``imagenet`` (torchvision's first version for that network, as in the paper's time, downloaded once
            into torch.hub's folder), ``none`` (untrained, the same every time), or the path of a file: safetensors,
            or a torch file that holds tensors alone. A last layer in it is ignored.

    Raises:
        SettingsError: no such backbone.
        WeightsError: the file is unavailable, unreadable, or belongs to another network.
    """
    backbone = Backbone(name, weights)
    if name in plugins("backbones"):
        backbone.weights = weights
    elif weights != "none":
        path = _imagenet_file(name) if weights == "imagenet" else Path(weights).expanduser()
        _fill(backbone, _strip_names(_read(path), last_layer(name)), path)
        backbone.weights = weights
    return backbone


def weights_file(backbone: str, weights: str) -> Path | None:
    """The file that ``load_backbone`` reads; None if it reads none or would download it first. Sends no request.

    Raises:
        SettingsError: no such backbone.
    """
    if weights == "none" or (weights == "imagenet" and backbone in plugins("backbones")):
        return None
    if weights == "imagenet":
        url = _imagenet_url(backbone)
        path = None if url is None else _hub_path(url)
    else:
        path = Path(weights).expanduser()
    return path if path is not None and path.is_file() else None


def _imagenet_url(backbone: str) -> str | None:
    from torchvision import models  # noqa: PLC0415

    last_layer(backbone)
    versions = {str(entry.name): str(entry.url) for entry in models.get_model_weights(backbone)}
    return versions.get("IMAGENET1K_V1") or next(iter(versions.values()), None)


def _hub_path(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name


def _imagenet_file(backbone: str) -> Path:
    url = _imagenet_url(backbone)
    if url is None:
        raise WeightsError(f"torchvision has no ImageNet weights of {backbone}: name a file, or set `weights: none`")
    path = _hub_path(url)
    if downloaded := not path.is_file():
        _download(url, path)
    # torchvision's file names end in the first digits of their SHA-256.
    expected = path.stem.rpartition("-")[2]
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(expected):
        if downloaded:
            path.unlink(missing_ok=True)
            raise WeightsError(
                f"the download from {url} is damaged: its sha256 begins with {found[:8]}, not {expected}: try again, "
                "or " + _ADVICE.format(folder=path.parent)
            )
        raise WeightsError(f"{path} is damaged: its sha256 begins with {found[:8]}, not {expected}: delete it")
    return path


def _download(url: str, path: Path) -> None:
    """Download in one attempt of bounded length: without a network, a worker must report so within seconds."""
    deadline = time.monotonic() + _DOWNLOAD_TIMEOUT_S
    partial: Path | None = None
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
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not complete after {_DOWNLOAD_TIMEOUT_S:.0f} s")
        partial.replace(path)
    except (OSError, http.client.HTTPException) as error:  # URLError, HTTPError, time-outs and a full disk alike
        if partial is not None:
            with contextlib.suppress(OSError):
                partial.unlink()
        why = explain_failure(error, url, _HUB, proxy_for(url)).what
        raise WeightsError(
            f"the ImageNet weights could not be downloaded from {url} ({why}): " + _ADVICE.format(folder=path.parent)
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


def _strip_names(tensors: Mapping[str, Tensor], last: str) -> dict[str, Tensor]:
    """Remove the prefixes of DataParallel and of our own checkpoints, and leave out last layer and head."""
    plain = {}
    for name, tensor in tensors.items():
        bare = name.removeprefix("module.").removeprefix("backbone.").removeprefix("network.")
        if not bare.startswith((f"{last}.", "head.")):
            plain[bare] = tensor
    return plain


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
        raise WeightsError(
            f"the weights {path} do not fit backbone={backbone.name}: {'; '.join(mismatches[:3])} "
            f"({len(mismatches)} mismatches in all): name the backbone that they were trained with"
        )
    if broken := [name for name, t in tensors.items() if t.is_floating_point() and not bool(t.isfinite().all())]:
        raise WeightsError(f"the weights {path} hold NaN or infinity in {broken[0]}: choose another file")
    backbone.network.load_state_dict(dict(tensors), strict=False)
