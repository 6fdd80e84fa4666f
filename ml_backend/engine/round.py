"""One round: learn from the labels so far, then say which images to label next.

The live loop, the simulation and the replay run this one function; only the parts differ.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

import structlog

from ml_backend.engine.clock import Clock
from ml_backend.engine.control import mixed
from ml_backend.engine.ports import RoundParts
from ml_backend.engine.resume import inputs_digest
from ml_backend.engine.start import random_order, typical_order
from ml_backend.errors import EmptyPool, UnusablePool
from ml_backend.pool_outputs import PoolOutputs
from ml_backend.records import (
    Annotation,
    Exclusion,
    FitReport,
    ImageRef,
    Label,
    Published,
    Ranking,
    RoundReport,
    RoundRequest,
)

__all__ = ["empty_pool", "run_round"]

log = structlog.get_logger(__name__)


def run_round(request: RoundRequest, parts: RoundParts) -> tuple[RoundReport, Published]:
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

    still_growing = min(counts.values()) < request.min_labels_per_class
    inputs = inputs_digest(request, consensus.labels, pool)
    if request.reason == "labels" and not still_growing and (served := parts.served(inputs)) is not None:
        log.info("no label has changed since the round that is served: its order stays", served=served[1].round_id)
        return served
    if (report := parts.unpublished(inputs)) is None:
        fit: FitReport | None = None
        outputs: PoolOutputs | None = None
        if still_growing:
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
    if still_growing:
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
) -> tuple[FitReport, PoolOutputs, Ranking]:
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
