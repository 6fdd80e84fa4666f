"""A saved network is taken up again: to score a pool with it, or to go on training from it."""

import logging
from collections.abc import Sequence
from pathlib import Path

from ml_backend.errors import WeightsError
from ml_backend.model.checkpoint import FILE_NAME, Checkpoint, load_checkpoint
from ml_backend.model.feature_table import TableBackbone
from ml_backend.model.network import McDropoutClassifier
from ml_backend.settings import ProjectOptions

__all__ = ["earlier_network", "take_up"]

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
