"""Does choosing pay? Two networks with equally many labels, chosen or by chance, asked about the same unseen images.

A live proof: the labels of a project, told apart by how their images came, and networks of its own kind.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from ml_backend.analytics import INSIGHT, RoundInsight
from ml_backend.analytics.evaluation import (
    MIN_HOLDOUT_IMAGES,
    PROOF_FILE,
    ActiveAgainstRandom,
    LabelsByOrigin,
    labels_by_origin,
)
from ml_backend.analytics.history import Answer, answers_of
from ml_backend.config import Settings
from ml_backend.consensus.rules import RULES
from ml_backend.errors import PayloadError, StorageError, TooFewLabels
from ml_backend.grouping import groups_of
from ml_backend.label_studio.formats import training_classes
from ml_backend.label_studio.sync import TaskCache
from ml_backend.registry import Need
from ml_backend.rounds.interfaces import Learner, Progress, no_guard, no_progress
from ml_backend.rounds.live import live_of, open_project
from ml_backend.rounds.split import fold_split, stable_split
from ml_backend.schemas import Label, ProjectKey, RoundReport
from ml_backend.storage import ProjectStore
from ml_backend.storage.atomic import write_record

FOLDS: Final = 5
RESAMPLES: Final = 9_999
_PROBS: Final[frozenset[Need]] = frozenset({"probs"})

Right: TypeAlias = dict[str, bool]


@dataclass(frozen=True, slots=True)
class _Fold:
    """What one pair of networks learns from and is asked about."""

    asked: tuple[Label, ...]
    by_chance: tuple[Label, ...]
    chosen: tuple[Label, ...]
    extra: int  # labels beyond the start set, on either side


def _silent(done: int, total: int) -> None:
    del done, total


def active_against_random(
    labels: LabelsByOrigin,
    make: Callable[[], Learner],
    classes: Sequence[str],
    *,
    validation_share: float,
    seed: int,
    control_share: float,
    progress: Callable[[int, int], None] = _silent,
) -> ActiveAgainstRandom:
    """Fit pairs of networks on equally many labels, and compare their answers about control images of other patients.

    The control images are torn into folds by patient. For each fold one network learns the start set and the control
    images outside it, the other the start set and as many of the labels that the strategy chose first; nobody whose
    images are in the fold is learned from. Both have the project's options, and learners made alike.

    Args:
        labels: of the project.
        make: makes a learner; every one with the same seed.
        classes: least severe first.
        validation_share: of the labels of each network.
        seed: of folds, splits and the bootstrap.
        control_share: as it is now, to say how long it takes until there are enough.
        progress: called with the networks fitted and all.

    Raises:
        TooFewLabels: fewer than 30 control images have a label, or too few were chosen; says how many more are needed.
        BackendError: see ``Learner``.
    """
    _require_enough(labels, control_share)
    right: tuple[Right, Right] = ({}, {})
    folds = [_fold(asked, labels) for _, asked in fold_split([one.label for one in labels.control], FOLDS, seed)]
    for number, fold in enumerate(folds):
        for side, learned in enumerate((fold.chosen, fold.by_chance)):
            train, validation = stable_split(learned, validation_share, seed)
            learner = make()
            learner.fit(train, validation, classes)
            answers = learner.outputs([label.image for label in fold.asked], _PROBS).suggestions()
            right[side].update(
                {one.image.id: answers[one.image.id] == one.value for one in fold.asked if one.image.id in answers}
            )
            progress(2 * number + side + 1, 2 * len(folds))
    return _compared(right, folds, labels, seed)


def table(found: ActiveAgainstRandom) -> str:
    """The figures behind the sentence, as lines for a terminal."""
    rows = (
        ("labels learned from", _span(found.labels), _span(found.labels)),
        ("beyond the start set", _span(found.chosen), _span(found.chosen)),
        (f"right about {found.images} unseen images", str(found.active_correct), str(found.random_correct)),
        ("right where the other was wrong", str(found.only_active), str(found.only_random)),
    )
    lines = [("", "chosen", "by chance"), *rows]
    return "\n".join(f"{name:<32}{active:>12}{random:>12}" for name, active, random in lines)


def _require_enough(labels: LabelsByOrigin, control_share: float) -> None:
    if labels.random and not (labels.chosen or labels.control):
        raise TooFewLabels(
            f"all {len(labels.random)} labels since the first network came by chance (strategy=random): there is no "
            "choice to hold against it; set a strategy that chooses, strategy=entropy, say, and control_share=0.1"
        )
    if (there := len(labels.control)) < MIN_HOLDOUT_IMAGES:
        missing = MIN_HOLDOUT_IMAGES - there
        wait = (
            f"at control_share={control_share:g} that takes about {round(missing / control_share)} more labels"
            if control_share > 0
            else "set control_share=0.1, say, so that some images come by chance"
        )
        raise TooFewLabels(
            f"{there} images that came by chance have a label, and {MIN_HOLDOUT_IMAGES} are needed: {missing} more; "
            f"{wait} "
            f"(so far {len(labels.start)} labels from before the first network, {len(labels.chosen)} chosen by it"
            f"{f', {len(labels.random)} under strategy=random' if labels.random else ''})"
        )
    if not labels.chosen:
        raise TooFewLabels("no image that the strategy chose has a label yet: there is nothing to compare chance with")


def _fold(asked: Sequence[Label], labels: LabelsByOrigin) -> _Fold:
    controls = [one.label for one in labels.control]
    group = groups_of(label.image for label in (*asked, *labels.start, *controls, *labels.chosen))
    unseen = {group[label.image.id] for label in asked}
    start = [label for label in labels.start if group[label.image.id] not in unseen]
    by_chance = [label for label in controls if group[label.image.id] not in unseen]
    chosen = [label for label in labels.chosen if group[label.image.id] not in unseen]
    extra = min(len(by_chance), len(chosen))
    return _Fold(tuple(asked), (*start, *by_chance[:extra]), (*start, *chosen[:extra]), extra)


def _compared(
    right: tuple[Right, Right], folds: Sequence[_Fold], labels: LabelsByOrigin, seed: int
) -> ActiveAgainstRandom:
    active, random = right
    group = groups_of(one.label.image for one in labels.control)
    both = sorted(active.keys() & random.keys())
    if not both:
        raise TooFewLabels("none of the images that came by chance could be read: nothing was compared")
    gains = np.array([int(active[image_id]) - int(random[image_id]) for image_id in both])
    only_active, only_random = int((gains > 0).sum()), int((gains < 0).sum())
    different = only_active + only_random
    p = float(binomtest(only_active, different).pvalue) if different else 1.0
    low, high = _interval(gains, [group[image_id] for image_id in both], seed)
    difference, extra = float(gains.mean()), [fold.extra for fold in folds]
    return ActiveAgainstRandom(
        images=len(both),
        labels=tuple(len(fold.chosen) for fold in folds),
        chosen=tuple(extra),
        active_correct=sum(active[image_id] for image_id in both),
        random_correct=sum(random[image_id] for image_id in both),
        only_active=only_active,
        only_random=only_random,
        difference=difference,
        low=low,
        high=high,
        p=p,
        seed=seed,
        made_at=datetime.now(UTC),
        sentence=_sentence(len(both), difference, (low, high), p, extra),
    )


def _interval(gains: npt.NDArray[np.int64], groups: Sequence[str], seed: int) -> tuple[float, float]:
    """The 95 % percentile interval of the mean, from patients drawn with replacement."""
    patients = sorted(set(groups))
    sums = np.array([sum(int(g) for g, name in zip(gains, groups, strict=True) if name == one) for one in patients])
    sizes = np.array([groups.count(one) for one in patients])
    draws = np.random.default_rng(seed).integers(len(patients), size=(RESAMPLES, len(patients)))
    means = sums[draws].sum(axis=1) / sizes[draws].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _sentence(images: int, difference: float, interval: tuple[float, float], p: float, extra: Sequence[int]) -> str:
    low, high = interval
    told = (
        f"With {_span(extra)} labels beyond the start set, chosen by the strategy instead of by chance, the accuracy "
        f"on {images} unseen images was {100 * difference:+.1f} points (95 % interval {100 * low:+.1f} to "
        f"{100 * high:+.1f}; McNemar's p = {p:.2f})"
    )
    if low > 0:
        return f"{told}: choosing pays."
    if high < 0:
        return f"{told}: choosing has cost accuracy here."
    return f"{told}: no difference can be told from chance yet."


def _span(counts: Sequence[int]) -> str:
    """Of all folds."""
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def prove(settings: Settings, key: ProjectKey, progress: Progress = no_progress) -> ActiveAgainstRandom:
    """Compare active with random at equal label counts, and keep the result in the project's folder.

    Nothing else of the project is changed, so that a worker may run its rounds meanwhile.

    Args:
        settings: of the installation.
        key: of the project.
        progress: told when the labels are read, and then of each network that was trained.

    Raises:
        UnknownProject, SettingsError, LabelStudioError: the project cannot be read.
        TooFewLabels: too little to compare; says how many labels more.
        BackendError: see ``Learner``.
    """
    # Somebody waits for the answer: a Label Studio that is away is told of at once.
    with open_project(settings, key, patience_s=0.0) as world:
        progress("labels", 0, 1)
        live = live_of(world, no_guard)
        classes = training_classes(live.config, live.options)
        labels = RULES[live.options.consensus](live.labels.annotations(), classes).labels
        mirror = live.readings.mirror(TaskCache)
        if mirror is None:
            raise PayloadError(f"the reading of project {key.id} could not be kept: is the data folder writable?")
        origin = _origin(world.project, labels, answers_of(mirror, live.config, live.options))
        # The quarantine bars images here, and is not settled: who looks at labelled images only would strike all others
        # off its list.
        found = active_against_random(
            origin,
            lambda: world.learner(live.options, no_progress),
            classes,
            validation_share=live.options.validation_share,
            seed=live.options.seed,
            control_share=live.options.control_share,
            progress=lambda done, total: progress("train", done, total),
        )
        write_record(world.project.folder / PROOF_FILE, found)
        return found


def _origin(project: ProjectStore, labels: tuple[Label, ...], answers: list[Answer]) -> LabelsByOrigin:
    reports: list[RoundReport] = []
    insights: dict[str, RoundInsight] = {}
    for round_id in project.round_ids():
        # A damaged round's images count as of the round before: it cannot say which came by chance.
        with suppress(StorageError):
            report = project.report(round_id)
            reports.append(report)
            if (insight := project.record(round_id, INSIGHT, RoundInsight)) is not None:
                insights[round_id] = insight
    return labels_by_origin(reports, insights, labels, answers)
