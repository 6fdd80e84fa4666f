"""A fitted network in one safetensors file, with everything that is needed to use it again. Never a pickle.

A saved network is taken up again: to score a pool with it, or to go on training from it.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ml_backend.config import ProjectOptions
from ml_backend.errors import WeightsError
from ml_backend.images.decode import PREPROCESSING
from ml_backend.images.transforms import IMAGENET_MEAN, IMAGENET_STD
from ml_backend.model.backbones import Backbone, load_backbone
from ml_backend.model.features import TABLE, TableBackbone
from ml_backend.model.network import McDropoutClassifier

FILE_NAME = "model.safetensors"

_VERSION = 1


class _Metadata(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    version: int
    classes: tuple[str, ...]
    backbone: str
    backbone_weights: str
    backbone_digest: str | None  # None where the file holds the backbone itself
    dropout: float
    preprocessing: str
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    seed: int
    options: ProjectOptions


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """What a file held. ``network`` is in eval mode on the CPU; with ``frozen_backbone`` only its head was trained."""

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
    """Write a network; over an older file at that path.

    Args:
        path: of the file to write.
        network: fitted for these classes.
        classes: in the order of the network's outputs.
        options: that it was trained with.
        seed: that it was trained with.
        frozen_backbone: the backbone still has the weights that it was loaded with, and is left out.

    Raises:
        OSError: the disk refuses.
    """
    metadata = _Metadata(
        version=_VERSION,
        classes=tuple(classes),
        backbone=network.backbone.name,
        backbone_weights=network.backbone.weights,
        backbone_digest=network.backbone.digest() if frozen_backbone else None,
        dropout=network.head.dropout.p,
        preprocessing=PREPROCESSING,
        side=options.image_side,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
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
    except SafetensorError as error:  # of a full disk, say, which is told as such
        raise OSError(str(error)) from error


def load_checkpoint(
    path: Path, classes: Sequence[str] | None = None, backbone: str | Backbone | None = None
) -> Checkpoint:
    """Read a network.

    Args:
        path: of the file.
        classes: that the caller has, in order; None takes whatever the file was made for.
        backbone: likewise, by name; or one that is loaded already, which a head for it then gets.

    Raises:
        WeightsError: the file cannot be read, was made for other classes, another backbone or another
            preprocessing, or the frozen backbone that it names cannot be had or is no longer the same.
    """
    try:
        with safe_open(path, framework="pt") as file:
            stored = (file.metadata() or {}).get("ml_backend", "{}")
        metadata = _Metadata.model_validate_json(stored)
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"the checkpoint {path} cannot be read: {error}: train again") from error
    except ValidationError as error:
        raise WeightsError(f"{path} is no checkpoint of this backend ({error.error_count()} mistakes)") from error
    loaded = backbone if isinstance(backbone, Backbone) else None
    _check(path, metadata, classes, backbone.name if isinstance(backbone, Backbone) else backbone)
    network = McDropoutClassifier(len(metadata.classes), _backbone(path, metadata, loaded), dropout=metadata.dropout)
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


def _check(path: Path, metadata: _Metadata, classes: Sequence[str] | None, backbone: str | None) -> None:
    wanted = {
        "version": _VERSION,
        "classes": metadata.classes if classes is None else tuple(classes),
        "backbone": metadata.backbone if backbone is None else backbone,
        "preprocessing": PREPROCESSING,
    }
    for name, value in wanted.items():
        if (seen := getattr(metadata, name)) != value:
            raise WeightsError(f"the checkpoint {path} was made for {name} {seen!r}, not {value!r}: train again")


def _backbone(path: Path, metadata: _Metadata, loaded: Backbone | None) -> Backbone:
    if metadata.backbone_digest is None:
        # Its weights are in the file and follow.
        backbone = Backbone(metadata.backbone)
        backbone.weights = metadata.backbone_weights
        return backbone
    if loaded is None and metadata.backbone == TABLE:
        raise WeightsError(f"the checkpoint {path} is a head for a table of features: give that table, or train again")
    backbone = load_backbone(metadata.backbone, metadata.backbone_weights) if loaded is None else loaded
    if backbone.digest() != metadata.backbone_digest:
        if metadata.backbone == TABLE:
            raise WeightsError(f"the checkpoint {path} is a head for another table of features: train again")
        raise WeightsError(
            f"the checkpoint {path} is a head for other weights of {metadata.backbone} than "
            f"weights={metadata.backbone_weights!r} holds now: bring those back, or train again"
        )
    return backbone


_LOG = logging.getLogger(__name__)


def take_up(
    folder: Path,
    options: ProjectOptions,
    *,
    head_only: bool,
    classes: Sequence[str] | None = None,
    table: TableBackbone | None = None,
) -> Checkpoint:
    """Read what ``McDropoutLearner.save`` wrote, if it fits these options.

    Args:
        folder: that it was saved into.
        options: of the learner that takes it up.
        head_only: whether that learner leaves the backbone as it was loaded.
        classes: that the network must be for, in order; None takes whatever it was made for.
        table: that it must be a head for, instead of a network; None where there are images.

    Raises:
        WeightsError: see ``load_checkpoint``; or it was made for another image side, from other weights, or with
            another part of it trained.
    """
    path = folder / FILE_NAME
    checkpoint = load_checkpoint(path, classes, options.backbone if table is None else table)
    for name, seen, wanted in (
        ("weights", checkpoint.options.weights, options.weights),
        ("image_side", checkpoint.options.image_side, options.image_side),
        ("finetune", _finetune(checkpoint.frozen_backbone), _finetune(head_only)),
    ):
        if seen != wanted:
            raise WeightsError(f"the checkpoint {path} was made for {name} {seen!r}, not {wanted!r}: train again")
    return checkpoint


def earlier_network(
    last: tuple[McDropoutClassifier, Sequence[str]] | None,
    folder: Path | None,
    options: ProjectOptions,
    classes: Sequence[str],
    *,
    head_only: bool,
    table: TableBackbone | None = None,
) -> McDropoutClassifier | None:
    """The network that a warm start goes on from; None, with a warning that says why, where there is none that fits.

    Its dropout may have been another: the rate is no weight.

    Args:
        last: the network of this learner's last fit and its classes; it comes before the folder's.
        folder: where an earlier learner saved one.
        options: of this learner.
        classes: of the fit that begins.
        head_only: whether the backbone is left as it was loaded.
        table: of ``take_up``.
    """
    if last is not None:
        network, seen = last
        if tuple(seen) == tuple(classes):
            return network
        _LOG.warning("training begins from scratch: the last network was for %s, not %s", list(seen), list(classes))
    elif folder is not None:
        try:
            return take_up(folder, options, head_only=head_only, classes=classes, table=table).network
        except WeightsError as error:
            _LOG.warning("training begins from scratch: %s", error)
    return None


def _finetune(head_only: bool) -> str:
    return "head" if head_only else "full"
