"""Several networks instead of one, each validated on other labels, so that no label is spent on validation alone."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ml_backend.config import ProjectOptions
from ml_backend.errors import RoundError
from ml_backend.model.learner import LearnerStage, McDropoutLearner
from ml_backend.predictions import ImageFeatures, PoolPredictions
from ml_backend.registry import Need
from ml_backend.schemas import FitReport, ImageRef, Label
from ml_backend.seeding import derive

Sides: TypeAlias = tuple[Sequence[Label], Sequence[Label]]

Folds: TypeAlias = Callable[[Sequence[Label], int], Sequence[Sides]]
"""Labels, and how many networks there are -> training and validation labels of each."""

Tell: TypeAlias = Callable[[LearnerStage, int, int], None]


MakeMember: TypeAlias = Callable[[ProjectOptions, int, Tell], McDropoutLearner]
"""Options, seed, and whom to tell of the progress -> the learner of one network."""


class CommitteeLearner:
    """Learners side by side: the posterior's passes are drawn from all of their networks. Satisfies ``Learner``.

    An average of networks that were trained on different folds errs less than any one of them, and every label is
    trained on by all of them but one. What the networks disagree about is seen in the passes, as what they doubt is.

    Args:
        members: learners of equal options but for seed and passes.
        folds: tears the labels of a round, validation included; None where validation is a side of its own that
            nobody may train on: every network is then given the sides as they are.

    Source:
        Krogh & Vedelsby 1994 (a cross-validated ensemble, and its disagreement for active learning); Lakshminarayanan,
        Pritzel & Blundell 2017, arXiv:1612.01474.
    """

    def __init__(self, members: Sequence[McDropoutLearner], folds: Folds | None) -> None:
        if len(members) < 2:
            raise ValueError(f"a committee has 2 networks or more, got {len(members)}")
        self._members = tuple(members)
        self._folds = folds

    def fit(self, train: Sequence[Label], validation: Sequence[Label], classes: Sequence[str]) -> FitReport:
        """Fit every network; see ``engine.ports.Learner``.

        Returns:
            Of epochs and best epochs the medians; of the losses, accuracies and areas the means, weighted by the images
            that each network was validated on. With folds every readable label counts as trained and as validated on.

        Raises:
            TooFewLabels, SettingsError, WeightsError, RoundError: as of one network.
        """
        sides: Sequence[Sides] = [(train, validation)] * len(self._members)
        if self._folds is not None:
            sides = self._folds([*train, *validation], len(self._members))
        reports = [
            member.fit(mine, held_out, classes) for member, (mine, held_out) in zip(self._members, sides, strict=True)
        ]
        return _together(reports, folded=self._folds is not None)

    def outputs(self, pool: Sequence[ImageRef], needs: frozenset[Need]) -> PoolPredictions:
        """Draw everybody's passes; see ``engine.ports.Learner``. Features and gradients are the first network's.

        Raises:
            RoundError: an image could be read for one network and not for another; or see ``McDropoutLearner``.
        """
        first, *others = (
            member.outputs(pool, needs if number == 0 else frozenset({"probs"}))
            for number, member in enumerate(self._members)
        )
        if any(other.image_ids != first.image_ids for other in others):
            raise RoundError("an image could be read for one network of the committee and not for the next: try again")
        return replace(first, probs=np.concatenate([one.probs for one in (first, *others)], axis=1))

    def prepare(self, images: Sequence[ImageRef]) -> None:
        """See ``engine.ports.Learner``; the networks share their caches."""
        self._members[0].prepare(images)

    def embed(self, images: Sequence[ImageRef]) -> ImageFeatures:
        """See ``engine.ports.Learner``; as loaded, all networks have one backbone."""
        return self._members[0].embed(images)

    def save(self, folder: str) -> None:
        """Write every network into a folder of its own below this one."""
        for place, member in zip(self._places(folder), self._members, strict=True):
            place.mkdir(parents=True, exist_ok=True)
            member.save(str(place))

    def restore(self, folder: str) -> None:
        """Take up what ``save`` wrote.

        Raises:
            WeightsError: a network is missing, damaged, or does not fit the options.
        """
        for place, member in zip(self._places(folder), self._members, strict=True):
            member.restore(str(place))

    def _places(self, folder: str) -> list[Path]:
        return [Path(folder) / f"network-{number}" for number, _ in enumerate(self._members, start=1)]


def make_learner(
    make: MakeMember, options: ProjectOptions, folds: Folds | None, progress: Tell
) -> McDropoutLearner | CommitteeLearner:
    """What learns by these options: one network, or a committee of them.

    Args:
        make: makes the learner of a network.
        options: ``committee`` says how many; their ``passes`` are shared out as evenly as they can be.
        folds: see ``CommitteeLearner``.
        progress: told of all networks together.
    """
    networks = options.committee
    if networks == 1:
        return make(options, options.seed, progress)
    each, left = divmod(options.passes, networks)
    return CommitteeLearner(
        [
            make(
                options.model_copy(update={"committee": 1, "passes": each + (number < left)}),
                derive(options.seed, f"network {number}"),
                _share(progress, number, networks),
            )
            for number in range(networks)
        ],
        folds,
    )


def _share(progress: Tell, number: int, networks: int) -> Tell:
    """Tells the progress of one network as that of all."""

    def tell(stage: LearnerStage, done: int, total: int) -> None:
        progress(stage, number * total + done, networks * total)

    return tell


def _together(reports: Sequence[FitReport], *, folded: bool) -> FitReport:
    first = reports[0]
    images = [report.validation_images for report in reports]
    areas = [(report.validation_auroc, count) for report, count in zip(reports, images, strict=True)]
    known = [(area, count) for area, count in areas if area is not None]
    unread = {exclusion.image_id: exclusion for report in reports for exclusion in report.exclusions}
    everything = first.train_images + first.validation_images
    return first.model_copy(
        update={
            "epochs": int(np.median([report.epochs for report in reports])),
            "best_epoch": int(np.median([report.best_epoch for report in reports])),
            "train_images": everything if folded else first.train_images,
            "validation_images": everything if folded else first.validation_images,
            "validation_loss": float(np.average([report.validation_loss for report in reports], weights=images)),
            "validation_accuracy": float(
                np.average([report.validation_accuracy for report in reports], weights=images)
            ),
            "validation_auroc": (
                float(np.average([area for area, _ in known], weights=[count for _, count in known])) if known else None
            ),
            "validation_recall": {
                name: _mean_of_known([report.validation_recall[name] for report in reports])
                for name in first.validation_recall
            },
            "class_weights": {
                name: float(np.mean([report.class_weights[name] for report in reports])) for name in first.class_weights
            },
            "exclusions": tuple(unread.values()),
        }
    )


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
