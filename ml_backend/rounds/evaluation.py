"""Active learning against random selection: networks with equally many labels, compared on the same unseen images.

``ml-backend proof`` compares labels of one project, told apart by the order in which their images came.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from ml_backend.analytics.answers import sufficient_share
from ml_backend.analytics.evaluation import (
    MIN_HOLDOUT_IMAGES,
    PROOF,
    ActiveAgainstRandom,
    LabelsByOrigin,
    stored_labels_by_origin,
)
from ml_backend.analytics.history import answers_of
from ml_backend.config import Settings
from ml_backend.errors import PayloadError, TooFewLabels
from ml_backend.label_studio.sync import TaskCache, TaskImages
from ml_backend.rounds.interfaces import Learner, Progress, no_progress
from ml_backend.rounds.live import LiveProject, open_project
from ml_backend.rounds.split import fold_split, stable_split
from ml_backend.schemas import Label, ProjectKey, groups_of

FOLDS: Final = 5
RESAMPLES: Final = 9_999


@dataclass(frozen=True, slots=True)
class _Fold:
    """Training labels of one pair of networks, and the images to compare them on."""

    test: tuple[Label, ...]
    random: tuple[Label, ...]
    active: tuple[Label, ...]
    extra: int  # labels beyond the start set, the same for both


def prove(settings: Settings, key: ProjectKey, progress: Progress = no_progress) -> ActiveAgainstRandom:
    """Compare active with random selection at equal label counts, and keep the result in the project's folder.

    Nothing else of the project is changed: a worker may run its rounds meanwhile.

    Args:
        settings: of the installation.
        key: of the project.
        progress: receives ``labels`` when they are read, then ``train`` with the number of trained networks.

    Raises:
        UnknownProject, SettingsError, LabelStudioError: the project cannot be read.
        TooFewLabels: see ``active_vs_random``.
        BackendError: see ``Learner``.
    """
    # Without patience: the user waits for the answer.
    with open_project(settings, key, patience_s=0.0) as context:
        progress("labels", 0, 1)
        project = LiveProject(context)
        labels = project.consensus(project.labels.annotations(), project.classes).labels
        mirror = project.readings.mirror(TaskCache)
        if mirror is None:
            raise PayloadError(f"the tasks of project {key.id} could not be stored: is the data folder writable?")
        images = TaskImages.of(mirror, project.config, project.readings.digests())
        # The quarantine excludes images here too, but is not settled: that would release every image not looked at.
        result = active_vs_random(
            stored_labels_by_origin(project.store, labels, answers_of(mirror, project.config, project.options)),
            lambda: context.learner(project.options, no_progress),
            project.classes,
            validation_share=project.options.validation_share,
            seed=project.options.seed,
            control_share=project.options.control_share,
            left=len(images.waiting(mirror)[0]),
            progress=lambda done, total: progress("train", done, total),
        )
        context.store.set_project_record(PROOF, result)
        return result


def active_vs_random(
    labels: LabelsByOrigin,
    make: Callable[[], Learner],
    classes: Sequence[str],
    *,
    validation_share: float,
    seed: int,
    control_share: float,
    left: int,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> ActiveAgainstRandom:
    """Train pairs of networks on equally many labels, and compare them on holdout images of other patients.

    The holdout is split into folds by patient. For each fold one network is trained on the start set and the holdout
    images outside the fold, the other on the start set and as many of the labels that the strategy chose first; no
    patient of the fold is trained on. Both have the project's options.

    Args:
        labels: of the project.
        make: makes a learner; every one with the same seed.
        classes: least severe first.
        validation_share: of the labels of each network.
        seed: of folds, splits and the bootstrap.
        control_share: as it is now, to estimate how long it takes until there are enough labels.
        left: images without a label, likewise.
        progress: called with the networks trained and their total.

    Raises:
        TooFewLabels: fewer than 30 holdout images have a label, or none that the strategy chose; says how many are
            missing.
        BackendError: see ``Learner``.
    """
    _require_enough(labels, control_share, left)
    correct: tuple[dict[str, bool], dict[str, bool]] = ({}, {})
    folds = [_fold(test, labels) for _, test in fold_split([one.label for one in labels.control], FOLDS, seed)]
    for number, fold in enumerate(folds):
        for side, learned in enumerate((fold.active, fold.random)):
            train, validation = stable_split(learned, validation_share, seed)
            learner = make()
            learner.fit(train, validation, classes)
            answers = learner.outputs([one.image for one in fold.test], frozenset({"probs"})).suggestions()
            correct[side].update(
                {one.image.id: answers[one.image.id] == one.value for one in fold.test if one.image.id in answers}
            )
            progress(2 * number + side + 1, 2 * len(folds))
    return _compare(*correct, folds, labels, seed)


def table(result: ActiveAgainstRandom) -> str:
    """The figures of a comparison as lines for a terminal."""
    rows = (
        ("", "chosen", "random"),
        ("labels learned from", _span(result.labels), _span(result.labels)),
        ("beyond the start set", _span(result.chosen), _span(result.chosen)),
        (f"right about {result.images} unseen images", str(result.active_correct), str(result.random_correct)),
        ("right where the other was wrong", str(result.only_active), str(result.only_random)),
    )
    return "\n".join(f"{name:<32}{active:>12}{random:>12}" for name, active, random in rows)


def _require_enough(labels: LabelsByOrigin, control_share: float, left: int) -> None:
    if (missing := MIN_HOLDOUT_IMAGES - len(labels.control)) > 0:
        if (share := sufficient_share(missing, control_share, left)) is None:
            advice = f"of the {left} images left at most every second is drawn at random, too few: import more images"
        else:
            by = "at" if share == control_share else "with the option"
            advice = f"{by} control_share={share:g} that takes about {round(missing / share)} more labels"
        if labels.random and not (labels.chosen or labels.control):
            raise TooFewLabels(
                f"all {len(labels.random)} labels since the first network are of randomly selected images "
                "(strategy=random), with nothing to compare them with; set another strategy, for example "
                f"strategy=entropy, until {missing} holdout images have a label: {advice}"
            )
        random = f", {len(labels.random)} under strategy=random" if labels.random else ""
        raise TooFewLabels(
            f"{len(labels.control)} holdout images have a label, and {MIN_HOLDOUT_IMAGES} are needed: {missing} more; "
            f"{advice} (so far {len(labels.start)} labels from before the first network, {len(labels.chosen)} chosen "
            f"by it{random})"
        )
    if not labels.chosen:
        raise TooFewLabels("no image that the strategy chose has a label yet: there is nothing to compare")


def _fold(test: Sequence[Label], labels: LabelsByOrigin) -> _Fold:
    holdout = [one.label for one in labels.control]
    group = groups_of(label.image for label in (*test, *labels.start, *holdout, *labels.chosen))
    unseen = {group[label.image.id] for label in test}
    start, random, active = (
        [label for label in side if group[label.image.id] not in unseen]
        for side in (labels.start, holdout, labels.chosen)
    )
    extra = min(len(random), len(active))
    return _Fold(tuple(test), (*start, *random[:extra]), (*start, *active[:extra]), extra)


def _compare(
    active: dict[str, bool], random: dict[str, bool], folds: Sequence[_Fold], labels: LabelsByOrigin, seed: int
) -> ActiveAgainstRandom:
    group = groups_of(one.label.image for one in labels.control)
    both = sorted(active.keys() & random.keys())
    if not both:
        raise TooFewLabels("none of the holdout images could be read: nothing was compared")
    gains = np.array([int(active[image_id]) - int(random[image_id]) for image_id in both])
    only_active, only_random = int((gains > 0).sum()), int((gains < 0).sum())
    # McNemar's exact test.
    p = float(binomtest(only_active, only_active + only_random).pvalue) if gains.any() else 1.0
    low, high = _interval(gains, [group[image_id] for image_id in both], seed)
    difference, extra = float(gains.mean()), tuple(fold.extra for fold in folds)
    verdict = "no significant difference yet"
    if low > 0:
        verdict = "the strategy pays"
    elif high < 0:
        verdict = "the strategy has cost accuracy here"
    left_out = f" {len(labels.by_hand)} labels of images put next by hand are on neither side." * bool(labels.by_hand)
    return ActiveAgainstRandom(
        images=len(both),
        labels=tuple(len(fold.active) for fold in folds),
        chosen=extra,
        active_correct=sum(active[image_id] for image_id in both),
        random_correct=sum(random[image_id] for image_id in both),
        only_active=only_active,
        only_random=only_random,
        difference=difference,
        low=low,
        high=high,
        p=p,
        by_hand=len(labels.by_hand),
        seed=seed,
        made_at=datetime.now(UTC),
        sentence=(
            f"With {_span(extra)} labels beyond the start set, chosen by the strategy instead of randomly, the "
            f"accuracy on {len(both)} unseen images was {100 * difference:+.1f} points (95 % interval {100 * low:+.1f} "
            f"to {100 * high:+.1f}; McNemar's p = {p:.2f}): {verdict}." + left_out
        ),
    )


def _interval(gains: npt.NDArray[np.int64], groups: Sequence[str], seed: int) -> tuple[float, float]:
    """The 95 % percentile interval of the mean, by a bootstrap over patients."""
    _, patient, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    sums = np.bincount(patient, weights=gains)
    draws = np.random.default_rng(seed).integers(len(sizes), size=(RESAMPLES, len(sizes)))
    low, high = np.percentile(sums[draws].sum(axis=1) / sizes[draws].sum(axis=1), [2.5, 97.5])
    return float(low), float(high)


def _span(counts: Sequence[int]) -> str:
    """Least and most of all folds."""
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
