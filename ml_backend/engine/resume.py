"""No round is trained for nothing: what was saved is published, and what is served already stays.

Between saving and publishing lies everything that Label Studio can do to us: it is restarted, its disk is full, our
worker is killed while it deletes an old order. The saved ranking is still the best one as long as the next round would
see the same. And where a killed round is run once more, it learns from the very labels that the round waiting behind it
was asked for.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Protocol

import structlog

from ml_backend.errors import StorageError
from ml_backend.records import ImageRef, Label, Published, RoundReport, RoundRequest

__all__ = ["RoundArchive", "inputs_digest", "reranked_digest", "served_round", "unpublished_round"]

log = structlog.get_logger(__name__)


class RoundArchive(Protocol):
    """Where rounds and what is served of them are kept."""

    def latest(self) -> RoundReport | None: ...

    def published(self) -> Published | None: ...


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


def served_round(rounds: RoundArchive, inputs: str) -> tuple[RoundReport, Published] | None:
    """The last round and what is served of it, where it is wholly published and a new one would come to the same.

    Args:
        rounds: of the project.
        inputs: digest of what a new round would see.
    """
    report, published = _last(rounds, inputs)
    if report is None or published is None or not published.completes(report.request.round_id):
        return None
    return report, published


def _last(rounds: RoundArchive, inputs: str) -> tuple[RoundReport | None, Published | None]:
    """The last round, where it saw the same, and what is served of whichever round."""
    try:
        report, published = rounds.latest(), rounds.published()
    except StorageError as error:
        log.warning("the last round cannot be taken up", error=str(error))
        return None, None
    return (report if report is not None and report.inputs == inputs else None), published


def _told(image: ImageRef) -> tuple[str, str, str | None]:
    return image.id, image.uri, image.patient_id
