"""Several networks instead of one, each validated on other labels, so that no label is used for validation alone."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ml_backend.config import ProjectOptions
from ml_backend.errors import RoundError
from ml_backend.model.learner import LearnerProgress, LearnerStage, McDropoutLearner
from ml_backend.predictions import ImageFeatures, PoolPredictions
from ml_backend.registry import Need
from ml_backend.schemas import FitReport, HeldOutImage, ImageRef, Label
from ml_backend.seeding import derive

Fold: TypeAlias = tuple[Sequence[Label], Sequence[Label]]
"""Training and validation labels."""

FoldSplitter: TypeAlias = Callable[[Sequence[Label], int], Sequence[Fold]]
"""Labels and number of folds -> training and validation labels of each fold; fewer folds where labels are few."""

MemberFactory: TypeAlias = Callable[[ProjectOptions, int, LearnerProgress], McDropoutLearner]
"""Options, seed and progress callback -> the learner of one network."""


class EnsembleLearner:
    """Learners whose passes form one posterior. Satisfies ``rounds.interfaces.Learner``.

    The mean of networks that were trained on different folds has a lower error than any of them, and all of them but
    one are trained on each label. Their disagreement shows in the passes, as the uncertainty of each of them does.

    With labels of few patients there are fewer folds than networks: then several networks have the same fold, and
    differ by their initial weights and dropout. A fold that trains on fewer classes than another is not used: a class
    that is not trained on is lost, one that is not validated on only unmeasured.

    Args:
        members: learners with equal options except for seed and passes.
        folds: splits all labels of a round, validation included; None if the validation set must not be trained on:
            every network then gets the two sets as they are.

    Source:
        Krogh & Vedelsby 1994 (a cross-validated ensemble, and its disagreement for active learning); Lakshminarayanan,
        Pritzel & Blundell 2017, arXiv:1612.01474.
    """

    def __init__(self, members: Sequence[McDropoutLearner], folds: FoldSplitter | None) -> None:
        if len(members) < 2:
            raise ValueError(f"an ensemble has 2 networks or more, got {len(members)}")
        self._members = tuple(members)
        self._folds = folds

    def fit(self, train: Sequence[Label], validation: Sequence[Label], classes: Sequence[str]) -> FitReport:
        """Fit every network; see ``rounds.interfaces.Learner``.

        Returns:
            Medians of epochs and best epochs; means of losses, accuracies and areas, weighted by the images that each
            network was validated on. Counts of images are of those that any network was trained or validated on.

        Raises:
            TooFewLabels: not even 2 folds are possible; or as of one network.
            SettingsError, WeightsError, RoundError: as of one network.
        """
        # The images are read once: the networks share their backbone, as it was loaded.
        if self._folds is None:
            sets = [self._members[0].load(train, validation, classes)] * len(self._members)
        else:
            labels = [*train, *validation]
            folds = _assign(self._folds(labels, len(self._members)), len(self._members))
            data, _ = self._members[0].load(labels, [], classes)
            sets = [(data.select(training), data.select(held_out)) for training, held_out in folds]
        reports = [member.fit_loaded(*each, classes) for member, each in zip(self._members, sets, strict=True)]
        trained, validated = (
            len({image.id for each in side for image in each.images}) for side in zip(*sets, strict=True)
        )
        return _combine(reports).model_copy(update={"train_images": trained, "validation_images": validated})

    @property
    def head_only(self) -> bool:
        """Whether the networks' backbone is frozen."""
        return self._members[0].head_only

    def outputs(self, pool: Sequence[ImageRef], needs: frozenset[Need]) -> PoolPredictions:
        """Draw the passes of all networks; see ``rounds.interfaces.Learner``.

        Features and gradients are the first network's.

        Raises:
            RoundError: an image was readable for one network and not for another; or see ``McDropoutLearner``.
        """
        if self.head_only:
            return self._members[0].outputs(pool, needs, self._members[1:])
        first, *others = (
            member.outputs(pool, needs if number == 0 else frozenset({"probs"}))
            for number, member in enumerate(self._members)
        )
        if any(other.image_ids != first.image_ids for other in others):
            raise RoundError("an image was readable for one network of the ensemble and not for another: try again")
        return replace(first, probs=np.concatenate([each.probs for each in (first, *others)], axis=1))

    def prepare(self, images: Sequence[ImageRef]) -> None:
        """See ``rounds.interfaces.Learner``; the networks share their caches."""
        self._members[0].prepare(images)

    def embed(self, images: Sequence[ImageRef]) -> ImageFeatures:
        """See ``rounds.interfaces.Learner``; as loaded, all networks have the same backbone."""
        return self._members[0].embed(images)

    def save(self, folder: str) -> None:
        """Write each network into its own folder below this one."""
        for member, path in zip(self._members, self._folders(folder), strict=True):
            path.mkdir(parents=True, exist_ok=True)
            member.save(str(path))

    def restore(self, folder: str) -> None:
        """Load the networks that ``save`` wrote.

        Raises:
            WeightsError: a network is missing, damaged, or does not fit the options.
        """
        for member, path in zip(self._members, self._folders(folder), strict=True):
            member.restore(str(path))

    def _folders(self, folder: str) -> list[Path]:
        return [Path(folder) / f"network-{number}" for number, _ in enumerate(self._members, start=1)]


def make_learner(
    make_member: MemberFactory, options: ProjectOptions, folds: FoldSplitter | None, progress: LearnerProgress
) -> McDropoutLearner | EnsembleLearner:
    """Make the learner that a project's options describe: one network, or an ensemble.

    Args:
        make_member: makes the learner of a network.
        options: ``committee`` is the number of networks; their ``passes`` are divided as evenly as possible.
        folds: see ``EnsembleLearner``.
        progress: of all networks together.
    """
    networks = options.committee
    if networks == 1:
        return make_member(options, options.seed, progress)
    each, left = divmod(options.passes, networks)

    def member_progress(number: int, stage: LearnerStage, done: int, total: int) -> None:
        # Of a frozen backbone the features are read once, by the first network.
        once = stage == "features" or (stage == "score" and members[0].head_only)
        progress(stage, *((done, total) if once else (number * total + done, networks * total)))

    members = [
        make_member(
            options.model_copy(update={"committee": 1, "passes": each + (number < left)}),
            derive(options.seed, f"network {number}"),
            partial(member_progress, number),
        )
        for number in range(networks)
    ]
    return EnsembleLearner(members, folds)


def _assign(folds: Sequence[Fold], networks: int) -> list[Fold]:
    """The fold of every network; see ``EnsembleLearner``."""

    def worth(fold: Fold) -> tuple[int, bool]:
        train, _ = fold
        return len({label.value for label in train}), len(train) >= 2

    best = max(map(worth, folds))
    return list(islice(cycle(fold for fold in folds if worth(fold) == best), networks))


def _combine(reports: Sequence[FitReport]) -> FitReport:
    first = reports[0]
    images = [report.validation_images for report in reports]
    areas = [(report.validation_auroc, count) for report, count in zip(reports, images, strict=True)]
    known = [(area, count) for area, count in areas if area is not None]
    exclusions = {exclusion.image_id: exclusion for report in reports for exclusion in report.exclusions}
    return first.model_copy(
        update={
            "epochs": int(np.median([report.epochs for report in reports])),
            "best_epoch": int(np.median([report.best_epoch for report in reports])),
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
            "exclusions": tuple(exclusions.values()),
            "held_out": _mean_predictions(image for report in reports for image in report.held_out),
        }
    )


def _mean_predictions(predictions: Iterable[HeldOutImage]) -> tuple[HeldOutImage, ...]:
    """One prediction an image: where several networks have the same fold, their mean."""
    of_image: dict[str, list[HeldOutImage]] = {}
    for one in predictions:
        of_image.setdefault(one.image_id, []).append(one)
    return tuple(
        found[0].model_copy(
            update={"probs": {name: float(np.mean([one.probs[name] for one in found])) for name in found[0].probs}}
        )
        for found in of_image.values()
    )


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
