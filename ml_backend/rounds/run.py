"""How long each stage of a round takes, and which one it is in.

No round is trained for nothing: what was saved is published, and what is served already stays.
One round: learn from the labels so far, then say which images to label next.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Protocol

import structlog

from ml_backend.errors import EmptyPool, StorageError, UnusablePool
from ml_backend.predictions import PoolPredictions
from ml_backend.rounds.cold_start import random_order, typical_order
from ml_backend.rounds.holdout import mixed
from ml_backend.rounds.interfaces import Progress, RoundParts
from ml_backend.schemas import (
    Annotation,
    Exclusion,
    FitReport,
    ImageRef,
    Label,
    PublishedRanking,
    Ranking,
    RoundReport,
    RoundRequest,
    Stage,
)


class Clock:
    """Times the stages on their work only, and tells the progress where it is."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        self._progress(name, 0, 1)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        self._progress(name, 1, 1)


log = structlog.get_logger(__name__)


class RoundArchive(Protocol):
    """Where rounds and what is served of them are kept."""

    def latest(self) -> RoundReport | None: ...

    def published(self) -> PublishedRanking | None: ...


def inputs_digest(request: RoundRequest, labels: Sequence[Label], pool: Sequence[ImageRef]) -> str:
    """SHA-256 of everything that decides a round's result; neither its number nor what called for it is part of it.

    Args:
        request: with all options.
        labels: that the round would learn from, in any order.
        pool: that it would rank, in any order.
    """
    asked = json.dumps(request.model_dump(mode="json", exclude={"round_id", "reason"}), sort_keys=True)
    learned = sorted(repr((*_told(one.image), one.value, one.raters, one.disputed)) for one in labels)
    ranked = sorted(repr(_told(image)) for image in pool)
    text = "\n".join((asked, str(len(learned)), *learned, *ranked))
    return hashlib.sha256(text.encode()).hexdigest()


def reranked_digest(request: RoundRequest, base: RoundReport, labels: Sequence[Label], pool: Sequence[ImageRef]) -> str:
    """The same of a round that ranks anew what an earlier one's network said.

    Where nothing but the ranking differs from what that round saw, a round that learns would come to the same order,
    and it has its digest.

    Args:
        request: of the new ranking.
        base: the earlier round.
        labels: that there are now, in any order.
        pool: that is ranked, in any order.
    """
    now = inputs_digest(request, labels, pool)
    if inputs_digest(base.request, labels, pool) == base.inputs:
        return now
    return hashlib.sha256(f"{base.inputs} ranked anew as {now}".encode()).hexdigest()


def unpublished_round(rounds: RoundArchive, inputs: str) -> RoundReport | None:
    """The last round, where it is still to be published and a new one would come to the same.

    Args:
        rounds: of the project.
        inputs: digest of what a new round would see.
    """
    report, published = _last(rounds, inputs)
    if report is None or (published is not None and published.completes(report.request.round_id)):
        return None
    log.info("the last round was saved but not published: it is published now", round=report.request.round_id)
    return report


def served_round(rounds: RoundArchive, inputs: str) -> tuple[RoundReport, PublishedRanking] | None:
    """The last round and what is served of it, where it is wholly published and a new one would come to the same.

    Args:
        rounds: of the project.
        inputs: digest of what a new round would see.
    """
    report, published = _last(rounds, inputs)
    if report is None or published is None or not published.completes(report.request.round_id):
        return None
    return report, published


def _last(rounds: RoundArchive, inputs: str) -> tuple[RoundReport | None, PublishedRanking | None]:
    """The last round, where it saw the same, and what is served of whichever round."""
    try:
        report, published = rounds.latest(), rounds.published()
    except StorageError as error:
        log.warning("the last round cannot be taken up", error=str(error))
        return None, None
    return (report if report is not None and report.inputs == inputs else None), published


def _told(image: ImageRef) -> tuple[str, str, str | None]:
    return image.id, image.uri, image.patient_id


def run_round(request: RoundRequest, parts: RoundParts) -> tuple[RoundReport, PublishedRanking]:
    """Learn from the labels so far, rank the pool, save the round, publish the ranking.

    Where a round with the same labels, pool and options was saved and not published, it is published instead. Where it
    is served already, and nothing but changed labels called for this one, there is nothing to do.

    Until every class has ``request.min_labels_per_class`` labels no network is trained: the ranking is a seeded
    random order, which stays the same from round to round, and is published like any other; then the learner may
    fill its caches. With ``request.cold_start`` typiclust it is the most typical images first, once readers have an
    order that they need not wait for.

    Raises:
        EmptyPool: no image waits for a label.
        UnusablePool: images wait, and none of them can be read.
        TooFewLabels, WeightsError, SettingsError, RoundError: see ``Learner``. Of ``prepare``, they come after the
            random order was published: readers can work while the owner mends it.
        StaleRound: a newer run of the project has begun; nothing was published.
        LabelStudioError: labels could not be read or the ranking not published; the saved round stays.
    """
    started_at = datetime.now(UTC)
    clock = Clock(parts.progress)
    with clock.stage("labels"):
        annotations = parts.labels.annotations()
        consensus = parts.consensus(annotations, request.classes)
        pool, unusable = parts.labels.unlabelled()
        counts = _labels_per_class(consensus.labels, request.classes)
        trains = min(counts.values()) >= request.min_labels_per_class
        # Before they are split: the copies of an image are one label, and never on both sides.
        if pool and trains and parts.find_copies([label.image for label in consensus.labels]):
            annotations = parts.labels.annotations()
            consensus = parts.consensus(annotations, request.classes)
            pool, unusable = parts.labels.unlabelled()
            counts = _labels_per_class(consensus.labels, request.classes)
    if not pool:
        raise empty_pool(request, annotations, unusable)

    is_cold_start = min(counts.values()) < request.min_labels_per_class
    inputs = inputs_digest(request, consensus.labels, pool)
    if request.reason == "labels" and not is_cold_start and (served := parts.served(inputs)) is not None:
        log.info("no label has changed since the round that is served: its order stays", served=served[1].round_id)
        return served
    if (report := parts.unpublished(inputs)) is None:
        fit: FitReport | None = None
        outputs: PoolPredictions | None = None
        if is_cold_start:
            ranking = _start_order(request, parts, clock, consensus.labels, pool)
        else:
            fit, outputs, ranking = _learn_and_rank(request, parts, clock, consensus.labels, pool)
        ranking = mixed(ranking, request.control_share, request.seed, request.round_id)
        report = RoundReport(
            request=request,
            labels_per_class=counts,
            disputed=tuple(label.image.id for label in consensus.labels if label.disputed),
            fit=fit,
            ranking=ranking,
            exclusions=(*consensus.exclusions, *unusable, *ranking.exclusions, *(fit.exclusions if fit else ())),
            seconds=clock.seconds,
            started_at=started_at,
            inputs=inputs,
        )
        # Saved before it is published: whatever readers are served, its report is there, and after a crash in between
        # the publish is repeated and not the training.
        parts.guard()
        with clock.stage("save"):
            parts.store.save(report, outputs, parts.learner if fit else None)
    with clock.stage("publish"):
        published = parts.publisher.publish(report, parts.guard)
    if is_cold_start:
        # Readers have their order: the time until the start set is whole goes into the caches of the first training.
        with clock.stage("features"):
            parts.learner.prepare([*(label.image for label in consensus.labels), *pool])
    return report, published


def empty_pool(request: RoundRequest, annotations: Sequence[Annotation], unusable: Sequence[Exclusion]) -> EmptyPool:
    """The error of a round without an image to rank: no image is there, all are labelled, or none can be used.

    Args:
        request: of the round.
        annotations: of the project.
        unusable: the images and labels that were left out.
    """
    project = f"project {request.project.id}"
    if waiting := [one for one in unusable if one.kind == "no image"]:
        return UnusablePool(
            f"{project} has no image that can be used: {len(waiting)} {'was' if len(waiting) == 1 else 'were'} left "
            f"out, the first: {waiting[0].reason}"
        )
    if not annotations and not unusable:
        return EmptyPool(f"{project} has no images yet: import images to begin")
    return EmptyPool(f"no image of {project} waits for a label: all are labelled or skipped")


def _start_order(
    request: RoundRequest, parts: RoundParts, clock: Clock, labels: Sequence[Label], pool: Sequence[ImageRef]
) -> Ranking:
    if request.cold_start == "random" or not parts.serving():
        return random_order(pool, request.batch_size, request.seed)
    with clock.stage("features"):
        labelled = [label.image for label in labels]
        return typical_order(parts.learner, labelled, pool, request.batch_size, request.seed)


def _learn_and_rank(
    request: RoundRequest, parts: RoundParts, clock: Clock, labels: Sequence[Label], pool: Sequence[ImageRef]
) -> tuple[FitReport, PoolPredictions, Ranking]:
    train, validation = parts.split(labels, request.validation_share, request.seed)
    with clock.stage("train"):
        fit = parts.learner.fit(train, validation, request.classes)
    with clock.stage("score"):
        outputs = parts.learner.outputs(pool, parts.strategy.needs)
    if not outputs.image_ids:
        raise UnusablePool(
            f"none of the {len(pool)} unlabelled images could be read; the first: {outputs.exclusions[0].reason}"
        )
    with clock.stage("rank"):
        ranking = parts.strategy.rank(outputs, request.batch_size, request.seed)
    return fit, outputs, ranking


def _labels_per_class(labels: Sequence[Label], classes: Sequence[str]) -> dict[str, int]:
    counts = Counter(label.value for label in labels)
    return {name: counts[name] for name in classes}
