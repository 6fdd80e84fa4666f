"""A trained network in one safetensors file, with everything needed to use it again. Never a pickle.

A head on a frozen backbone is saved without the backbone (4 MB instead of 100): the backbone's weights are identified
by setting and digest, loaded again and compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ml_backend.config import ProjectOptions
from ml_backend.errors import WeightsError
from ml_backend.images.decode import PREPROCESSING
from ml_backend.images.transforms import Normalisation
from ml_backend.model.backbones import Backbone, input_side, load_backbone
from ml_backend.model.data import TABLE, TableBackbone
from ml_backend.model.network import McDropoutClassifier

FILE_NAME = "model.safetensors"

_VERSION = 1


class _Metadata(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    version: int
    classes: tuple[str, ...]
    backbone: str
    backbone_weights: str
    backbone_digest: str | None  # None if the file holds the backbone itself
    dropout: float
    preprocessing: str
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    seed: int
    options: ProjectOptions


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """Content of a file. ``network`` is in eval mode on the CPU; with ``frozen_backbone`` only the head was trained."""

    network: McDropoutClassifier
    classes: tuple[str, ...]
    options: ProjectOptions
    seed: int
    frozen_backbone: bool


def save_checkpoint(
    path: Path,
    network: McDropoutClassifier,
    classes: Sequence[str],
    options: ProjectOptions,
    seed: int,
    *,
    frozen_backbone: bool,
) -> None:
    """Write a network, replacing an older file.

    Args:
        path: of the file.
        network: trained for these classes.
        classes: in the order of the network's outputs.
        options: of the training.
        seed: of the training.
        frozen_backbone: the backbone has the weights that it was loaded with, and is left out.

    Raises:
        OSError: the file cannot be written.
    """
    metadata = _Metadata(
        version=_VERSION,
        classes=tuple(classes),
        backbone=network.backbone.name,
        backbone_weights=network.backbone.weights,
        backbone_digest=network.backbone.digest() if frozen_backbone else None,
        dropout=network.head.dropout.p,
        preprocessing=PREPROCESSING,
        side=input_side(network.backbone.name, options.image_side),
        mean=network.backbone.normalisation.mean,
        std=network.backbone.normalisation.std,
        seed=seed,
        options=options,
    )
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in network.state_dict().items()
        if not (frozen_backbone and name.startswith("backbone."))
    }
    try:
        save_file(tensors, path, metadata={"ml_backend": metadata.model_dump_json()})
    except SafetensorError as error:  # for example a full disk
        raise OSError(str(error)) from error


def load_checkpoint(
    path: Path, classes: Sequence[str] | None = None, backbone: str | Backbone | None = None
) -> Checkpoint:
    """Read a network.

    Args:
        path: of the file.
        classes: expected classes, in order; None accepts any.
        backbone: expected backbone, by name; or a loaded one, to which a saved head is attached; None accepts any.

    Raises:
        WeightsError: the file cannot be read, or was made for other classes, another backbone or another
            preprocessing; or the frozen backbone that it names is unavailable or has changed.
    """
    try:
        with safe_open(path, framework="pt") as file:
            stored = (file.metadata() or {}).get("ml_backend", "{}")
        metadata = _Metadata.model_validate_json(stored)
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"the checkpoint {path} cannot be read: {error}: train again") from error
    except ValidationError as error:
        raise WeightsError(f"{path} is not a checkpoint of this backend ({error.error_count()} errors)") from error
    loaded = backbone if isinstance(backbone, Backbone) else None
    name = metadata.backbone if backbone is None else backbone if isinstance(backbone, str) else backbone.name
    _require(path, "version", metadata.version, _VERSION)
    _require(path, "classes", metadata.classes, metadata.classes if classes is None else tuple(classes))
    _require(path, "backbone", metadata.backbone, name)
    _require(path, "preprocessing", metadata.preprocessing, PREPROCESSING)
    network = McDropoutClassifier(len(metadata.classes), _backbone(path, metadata, loaded), dropout=metadata.dropout)
    trained_with = Normalisation(metadata.mean, metadata.std)
    _require(path, "normalisation", trained_with, network.backbone.normalisation)
    if metadata.backbone_digest is not None:
        tensors |= {name: t for name, t in network.state_dict().items() if name.startswith("backbone.")}
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise WeightsError(f"{path} does not hold what it says: the file is damaged, train again: {error}") from error
    if broken := [name for name, t in tensors.items() if t.is_floating_point() and not bool(t.isfinite().all())]:
        raise WeightsError(f"{path} holds NaN or infinity in {broken[0]}: the file is damaged, train again")
    network.eval()
    frozen_backbone = metadata.backbone_digest is not None
    return Checkpoint(network, metadata.classes, metadata.options, metadata.seed, frozen_backbone)


def load_compatible(
    folder: Path,
    options: ProjectOptions,
    *,
    head_only: bool,
    classes: Sequence[str] | None = None,
    table: TableBackbone | None = None,
) -> Checkpoint:
    """Read the network that ``McDropoutLearner.save`` wrote, if it fits a learner's options.

    Args:
        folder: that it was saved into.
        options: of the learner.
        head_only: whether the learner leaves the backbone frozen.
        classes: expected classes, in order; None accepts any.
        table: whose features the head was trained on; None for images.

    Raises:
        WeightsError: see ``load_checkpoint``; or it was made for another image side, from other weights, or with
            another part of it trained.
    """
    path = folder / FILE_NAME
    checkpoint = load_checkpoint(path, classes, options.backbone if table is None else table)
    trained_part = {True: "head", False: "full"}
    _require(path, "weights", checkpoint.options.weights, options.weights)
    backbone = checkpoint.network.backbone.name
    sides = [input_side(backbone, each.image_side) for each in (checkpoint.options, options)]
    _require(path, "image_side", *sides)
    _require(path, "finetune", trained_part[checkpoint.frozen_backbone], trained_part[head_only])
    return checkpoint


def _require(path: Path, name: str, found: object, expected: object) -> None:
    if found != expected:
        raise WeightsError(f"the checkpoint {path} was made for {name} {found!r}, not {expected!r}: train again")


def _backbone(path: Path, metadata: _Metadata, loaded: Backbone | None) -> Backbone:
    if metadata.backbone_digest is None:
        # The file's weights are loaded into it.
        backbone = Backbone(metadata.backbone, side=metadata.side)
        backbone.weights = metadata.backbone_weights
        return backbone
    if loaded is None and metadata.backbone == TABLE:
        raise WeightsError(f"the checkpoint {path} is a head for a table of features: give that table, or train again")
    backbone = load_backbone(metadata.backbone, metadata.backbone_weights, metadata.side) if loaded is None else loaded
    if backbone.digest() != metadata.backbone_digest:
        if metadata.backbone == TABLE:
            raise WeightsError(f"the checkpoint {path} is a head for another table of features: train again")
        raise WeightsError(
            f"the checkpoint {path} is a head for other weights of {metadata.backbone} than "
            f"weights={metadata.backbone_weights!r} holds now: restore those, or train again"
        )
    return backbone
