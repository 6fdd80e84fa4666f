"""What an experiment stands on: tables of the user's own, or drawn films with the features of an untrained network."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch

from ml_backend.errors import SettingsError
from ml_backend.images.cached import ImageCache
from ml_backend.images.folder import FolderSource
from ml_backend.model.features import FeatureExtractor
from ml_backend.model.precision import Arithmetic
from ml_backend.model.threads import one_thread
from ml_backend.model.weights import load_backbone
from ml_backend.records import ImageRef
from ml_backend.simulation.dataset import DataSet, load_dataset
from ml_backend.simulation.drawn import write_phantoms
from ml_backend.simulation.tables import read_labels
from ml_backend.simulation.task import parse_task
from ml_backend.storage.files import write_atomically
from ml_backend.study.options import SimulateOptions

__all__ = ["PAPER_SHARES", "Arm", "Ground", "Tables", "drawn_tables", "own_tables"]

PAPER_SHARES: Final = {"normal": 0.14, "moderate": 0.36, "severe": 0.50}
BINARY_TASK: Final = "normal=normal;diseased=moderate,severe"
# With it, and films of four centres, a network is right about two films of three after the start set, and about three
# of four with all labels.
DIFFICULTY: Final = 0.3
SIDE: Final = 64
QUICK_FILMS: Final = 400
QUICK_SIDE: Final = 32
QUICK_CENTRES: Final = 2
QUICK_INITIAL: Final = 3
QUICK_BATCH: Final = 4
QUICK_PASSES: Final = 10
QUICK_ROUNDS: Final = 2
BACKBONE: Final = "resnet18"


@dataclass(frozen=True, slots=True)
class Tables:
    """What is read.

    Attributes:
        task: classes, least severe first, as ``simulation.task.parse_task`` reads them.
        drawn: no patient's films.
    """

    labels: Path
    task: str
    images: Path | None = None
    ratings: Path | None = None
    features: Path | None = None
    drawn: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the task's classes."""
        return parse_task(self.task).classes

    def load(self) -> DataSet:
        """All of it, with its sides.

        Raises:
            SettingsError: see ``load_dataset``.
        """
        return load_dataset(
            self.images, self.labels, ratings=self.ratings, features=self.features, task=parse_task(self.task)
        )


@dataclass(frozen=True, slots=True)
class Arm:
    """One study of an experiment.

    Attributes:
        name: of its folder in the experiment's; empty where the experiment is this one study.
        title: as it is read.
        options: as ``ml-backend simulate`` takes them.
    """

    name: str
    title: str
    options: SimulateOptions


@dataclass(frozen=True, slots=True)
class Ground:
    """What all studies of an experiment have in common; where their options are made."""

    tables: Tables
    out: Path
    seeds: int
    quick: bool = False
    workers: int = 1
    device: str = "auto"
    backbone: str | None = None
    weights: str | None = None

    def initial(self, paper: int = 25, least: int = 1) -> int:
        """Labels of every class at the start; ``least`` however quick it is to be."""
        return max(QUICK_INITIAL, least) if self.quick else paper

    def paper_shares(self) -> str | None:
        """The imbalance of the paper for so many classes; None where the films are drawn so, or where it has none."""
        names = self.tables.classes
        if self.tables.drawn or len(names) not in {2, 3}:
            return None
        shares = PAPER_SHARES.values() if len(names) == 3 else [PAPER_SHARES["normal"]]
        return ",".join(f"{name}={share:g}" for name, share in zip(names, shares, strict=False))

    def arm(
        self,
        *,
        strategies: str,
        name: str = "",
        title: str = "",
        tables: Tables | None = None,
        initial: int = 25,
        least_initial: int = 1,
        one_round: bool = False,
        budget: str = "0.5",
        loss: str = "weighted",
        imbalance: str | None = None,
        profile: str = "paper",
    ) -> Arm:
        """A study; what is not said is as in the profile.

        Args:
            strategies: besides ``random``, with commas between them.
            name: see ``Arm``.
            title: see ``Arm``.
            tables: other than the experiment's.
            initial: labels of every class at the start.
            least_initial: of them, however quick it is to be.
            one_round: of the start set alone.
            budget: else, as ``SimulateOptions`` has it.
            loss: as ``SimulateOptions`` has it.
            imbalance: as ``SimulateOptions`` has it.
            profile: as ``SimulateOptions`` has it.
        """
        tables = tables or self.tables
        first = self.initial(initial, least_initial)
        start = first * len(tables.classes)
        if one_round or self.quick:
            budget = str(start if one_round else start + (QUICK_ROUNDS - 1) * QUICK_BATCH)
        options = SimulateOptions(
            labels=tables.labels,
            out=self.out / name,
            images=tables.images,
            ratings=tables.ratings,
            features=tables.features,
            strategies=strategies,
            seeds=str(self.seeds),
            profile=profile,
            task=tables.task,
            imbalance=imbalance,
            loss=loss,
            # Drawn films come as features, so that there is nothing else to train.
            finetune="head" if tables.drawn else None,
            backbone=self.backbone,
            weights=self.weights,
            passes=QUICK_PASSES if self.quick else None,
            batch_size=QUICK_BATCH if self.quick else None,
            initial=first,
            budget=budget,
            device=self.device,
            workers=self.workers,
        )
        return Arm(name, title, options)


def own_tables(name: str, given: Mapping[str, Path | None], task: str | None, classes: int | None) -> Tables | None:
    """The user's own tables; None where there are none, and films are to be drawn.

    Args:
        name: of the experiment.
        given: labels, images, ratings and features, as far as they were given.
        task: of the tables.
        classes: that the experiment is about; None where any number will do.

    Raises:
        SettingsError: something is missing; says what to give.
    """
    labels = given.get("labels")
    if labels is None:
        if lone := [option for option, value in {**given, "task": task}.items() if value is not None]:
            raise SettingsError(
                f"--{lone[0]} without --labels: give the table with path,label, or draw films by neither"
            )
        return None
    tables = Tables(labels, task or "", given.get("images"), given.get("ratings"), given.get("features"))
    if tables.images is None and tables.features is None:
        raise SettingsError("--labels without --images or --features: give one of them, or none of the three")
    example = "'normal=normal;diseased=bacterial,viral'" if classes == 2 else "'normal;moderate;severe'"
    if task is None:
        raise SettingsError(f"--labels without --task: give the classes, least severe first, such as {example}")
    if classes is not None and len(tables.classes) != classes:
        raise SettingsError(
            f"{name} is about {classes} classes, but --task {task!r} names {len(tables.classes)}: "
            f"give, for example, {example}"
        )
    return tables


def drawn_tables(
    folder: Path,
    *,
    films: int,
    centres: int,
    binary: bool,
    quick: bool,
    tell: Callable[[str], None],
) -> Tables:
    """Films in the paper's shares, eight simulated readers, and the features of a network that nobody has trained.

    What is there already is left as it is.

    Args:
        folder: where drawn films are kept.
        films: how many; with ``quick`` a few hundred tiny ones.
        centres: that they come from.
        binary: two classes, the more severe two of three together.
        quick: for a trial of the experiment itself.
        tell: told what takes a while.
    """
    side = SIDE
    if quick:  # the same films for every experiment
        films, side, centres = QUICK_FILMS, QUICK_SIDE, QUICK_CENTRES
    # All that varies stands in the name, so that features always belong to the films beside them.
    place = folder / f"films-{films}-side-{side}-centres-{centres}"
    tell(f"{films} films of {side} x {side} pixels are drawn in {place}, unless they are there")
    study = write_phantoms(
        place, count=films, shares=PAPER_SHARES, seed=0, side=side, difficulty=DIFFICULTY, centres=centres
    )
    features = place / "features.npz"
    if not features.exists():
        paths = [row.path for row in read_labels(study.labels, rated=True)]
        write_atomically(features, _untrained_features(place, paths, side))
    task = BINARY_TASK if binary else ";".join(PAPER_SHARES)
    return Tables(study.labels, task, ratings=study.ratings, features=features, drawn=True)


def _untrained_features(folder: Path, paths: Sequence[str], side: int) -> bytes:
    """A table of features, see ``simulation.tables.read_features``."""
    images = ImageCache(FolderSource(folder), folder / "cache", side)
    arithmetic = Arithmetic(torch.device("cpu"))
    with one_thread():  # the same bits on any number of cores
        extractor = FeatureExtractor(load_backbone(BACKBONE, "none"), images, arithmetic, None)
        batch = extractor.all([ImageRef(id=path, uri=path) for path in paths], lambda _done: None)
    content = io.BytesIO()
    np.savez(content, X=batch.features.numpy(), path=np.array([image.id for image in batch.images]))
    return content.getvalue()
