"""Whether readers were served the images in the published order, inferred from the stored orders and answers.

Label Studio records when an answer came and how long its image was open, not under which order the image was served.
Also here: the state of the newest order, and whether it can be ranked anew without a training.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Annotated, Final, Literal, NamedTuple

import numpy as np
from pydantic import AwareDatetime, Field

from ml_backend.analytics.history import Answer
from ml_backend.config import ProjectOptions
from ml_backend.registry import strategy_spec
from ml_backend.schemas import FrozenModel
from ml_backend.storage import ProjectStore, RoundSummary
from ml_backend.storage.outputs import Ids, id_column
from ml_backend.storage.rounds import ServedOrder

CLOCK_TOLERANCE: Final = timedelta(seconds=5)
"""Between our clock, which dates orders, and Label Studio's, which dates answers: around a switch either order counts.
"""
LOCK: Final = timedelta(days=1)
"""How long Label Studio reserves an image for the reader who opened it (its TASK_LOCK_TTL)."""

LISTED_EXCEPTIONS: Final = 200
"""A list of all would be megabytes at every view where nobody keeps to the order."""

ExceptionKind = Literal["held", "by hand", "not in order", "before any order", "again", "after a skip"]
InOrder = Literal["in order", "assumed held"]

_SHORT: Final[dict[ExceptionKind, str]] = {
    "held": "held from before a new order came",
    "by hand": 'opened by hand or labelled "As Displayed"',
    "not in order": "not in the published order",
    "before any order": "answered before any order was published",
    "after a skip": "served again after a skip",
}

Count = Annotated[int, Field(ge=0)]


class OrderException(FrozenModel):
    """An answer whose image was not the first of the order in force.

    Attributes:
        at: when the image was served, as far as can be inferred.
        why: a sentence for the owner.
    """

    image_id: str
    rater: str
    at: AwareDatetime
    kind: ExceptionKind
    why: str


class OrderFidelity(FrozenModel):
    """How the images that readers answered compare with the published orders.

    Attributes:
        answered: answers, including skips; an edit is none.
        in_order: those whose image was the first free one of its order.
        assumed_held: of ``in_order``, those that are so only if another reader held an image without an answer.
        exceptions: the others but "again", oldest first; the last ``LISTED_EXCEPTIONS``, while ``sentence`` counts all.
        sentence: for the owner.
    """

    answered: Count
    in_order: Count
    assumed_held: Count
    exceptions: tuple[OrderException, ...]
    sentence: str


def order_fidelity(
    orders: Iterable[tuple[ServedOrder, Ids]], answers: Sequence[Answer], tolerance: timedelta = CLOCK_TOLERANCE
) -> OrderFidelity:
    """Compare every answer with the order in force when its image was served.

    Args:
        orders: every order on record with its images, in any order; of a generator, the images of one are held.
        answers: of the project, in any order.
        tolerance: between the two clocks.
    """
    walked = sorted(answers, key=lambda answer: answer.created_at)
    images = tuple(dict.fromkeys(answer.image_id for answer in walked))
    kept = sorted((_Order(order, ids, images) for order, ids in orders), key=lambda order: order.begins)
    for earlier, later in pairwise(kept):
        earlier.ends = later.begins
    # An image opened by hand does not replace the one that its reader holds, so that its answer does not date when the
    # reader's next image was served: one pass finds those images, a second leaves them out.
    by_hand = {
        id(answer)
        for answer, verdict in _verdicts(kept, walked, tolerance, frozenset())
        if isinstance(verdict, OrderException) and verdict.kind in ("by hand", "not in order")
    }
    verdicts = [verdict for _, verdict in _verdicts(kept, walked, tolerance, frozenset(by_hand))]
    exceptions = sorted((one for one in verdicts if isinstance(one, OrderException)), key=lambda one: one.at)
    assumed = sum(verdict == "assumed held" for verdict in verdicts)
    in_order = len(verdicts) - len(exceptions)
    kinds = Counter(one.kind for one in exceptions)
    # Where several readers read each image, Label Studio serves the further reads at random.
    further = kinds.pop("again", 0)
    sentence = "No reader has answered yet."
    if verdicts:
        sentence = f"{in_order} of {len(verdicts) - further} answers came in the chosen order."
        if assumed:
            sentence += (
                f" For {assumed} of these, an earlier image was still unanswered: another reader probably had it open."
            )
        if picked := len({one for order in kept for one in order.by_hand}.intersection(images)):
            sentence += f" {picked} of the images had been put next by hand."
        if kinds:
            listed = ", ".join(f"{number} {_SHORT[kind]}" for kind, number in kinds.most_common())
            sentence += f" The other{'s' if kinds.total() > 1 else ''}: {listed}."
        if further:
            sentence += f" Not counted: {further} further answer{'s' if further > 1 else ''} to images that had one."
    return OrderFidelity(
        answered=len(verdicts),
        in_order=in_order,
        assumed_held=assumed,
        exceptions=tuple([one for one in exceptions if one.kind != "again"][-LISTED_EXCEPTIONS:]),
        sentence=sentence,
    )


def stored_fidelity(project: ProjectStore, answers: Sequence[Answer]) -> OrderFidelity | None:
    """``order_fidelity`` for the stored orders of a project; None where there are none."""
    orders = project.orders()
    return order_fidelity(((one, project.order_ids(one)) for one in orders), answers) if orders else None


@dataclass(frozen=True, slots=True)
class _Taken:
    """An answer with the span in which its image was served."""

    answer: Answer
    earliest: datetime
    served: datetime  # most likely time, and the latest


class _Order:
    """Where a published order has the images with an answer; the others of its images are not kept.

    Attributes:
        begins, ends: by our clock; ``ends`` is None of the newest order.
        rows: of the images with an answer, in the order of their places; a row is an image's place in ``images``.
        places: of these rows in the order, from 0.
        index: of each row among ``rows``; -1 where the order lacks the image.
        first_open: place and id of the first image without an answer; past the end where there is none.
        front: the rows before it were served by the moment that was looked at last; moments come in ascending order.
    """

    def __init__(self, order: ServedOrder, ids: Ids, images: Sequence[str]) -> None:
        self.begins: datetime = order.published_at
        self.ends: datetime | None = None
        self.rereads, self.by_hand = frozenset(order.rereads), order.by_hand
        answered = id_column(images)
        if answered.dtype.kind != ids.dtype.kind:
            answered, ids = answered.astype(np.str_), ids.astype(np.str_)
        there = np.isin(ids, answered)
        self.places = np.flatnonzero(there)
        by_id = np.argsort(answered)
        self.rows = by_id[np.searchsorted(answered, ids[there], sorter=by_id)]
        self.index = np.full(len(answered), -1)
        self.index[self.rows] = np.arange(len(self.rows))
        first = len(ids) if there.all() else int(np.argmin(there))
        self.first_open = first, str(ids[first]) if first < len(ids) else ""
        self.front = 0


def _verdicts(
    orders: Sequence[_Order], walked: Sequence[Answer], tolerance: timedelta, by_hand: frozenset[int]
) -> Iterator[tuple[Answer, OrderException | InOrder]]:
    spans = _spans(walked, by_hand)
    auditor = _Auditor(orders, spans, tolerance)
    for span in sorted(spans, key=lambda span: span.served):
        yield span.answer, auditor.verdict(span)


def _spans(walked: Sequence[Answer], by_hand: frozenset[int]) -> list[_Taken]:
    last: dict[str, datetime] = {}
    found = []
    for answer in walked:
        floor = answer.created_at - LOCK
        earliest = max(floor, last.get(answer.rater, floor))
        lead = timedelta(seconds=min(answer.lead_time_s or 0.0, LOCK.total_seconds() + 1))
        served = answer.created_at if lead > LOCK else max(earliest, answer.created_at - lead)
        found.append(_Taken(answer, earliest, served))
        if id(answer) not in by_hand:
            last[answer.rater] = answer.created_at
    return found


class _Gaps(NamedTuple):
    """Images ahead of a place that no reader is known to have had: number, first, and whether one has an answer."""

    images: int
    first: str
    answered: bool


class _Auditor:
    """Decides of one answer after the other, by the time its image was served, whether it was in order."""

    def __init__(self, orders: Sequence[_Order], spans: Sequence[_Taken], tolerance: timedelta) -> None:
        self._orders = orders
        self._tolerance = tolerance
        self._answered: set[str] = set()  # images with an answer, skips excepted, among those walked through
        self._first: dict[str, _Taken] = {}  # image -> the answer that was served first
        self._last: dict[str, datetime] = {}  # reader -> the latest answer
        for span in spans:
            image_id, rater = span.answer.image_id, span.answer.rater
            if (known := self._first.get(image_id)) is None or span.served < known.served:
                self._first[image_id] = span
            self._last[rater] = max(span.answer.created_at, self._last.get(rater, span.earliest))
        self._row = {image_id: row for row, image_id in enumerate(self._first)}
        self._taken = [*self._first.values()]  # by row
        for order in orders:
            order.front = 0

    def verdict(self, span: _Taken) -> OrderException | InOrder:
        image_id = span.answer.image_id
        again = image_id in self._answered
        if not span.answer.skipped:
            self._answered.add(image_id)
        current = bisect_right(self._orders, span.served + self._tolerance, key=lambda order: order.begins) - 1
        if current < 0 and not again:
            return _exception(span, "before any order", "it was answered before the first order that is on record")
        missing: list[_Gaps] = []
        # The order in force when the image was served, then those before it under which it can have been served.
        for order in reversed(self._orders[: current + 1]):
            if order.ends is not None and order.ends + self._tolerance < span.earliest:
                break
            gaps = self._gaps(order, span)
            if gaps is None or (again and image_id not in order.rereads):
                continue
            if gaps.images > self._idle(span) or gaps.answered:
                missing.append(gaps)
            elif order.ends is not None and order.ends + self._tolerance < span.served:
                return _exception(
                    span, "held", "its reader had it open when a new order came, and keeps it until the answer"
                )
            else:
                return "assumed held" if gaps.images else "in order"
        if again:
            return _exception(span, "again", "the image had an answer already: a further opinion")
        return self._out_of_order(span, missing)

    def _out_of_order(self, span: _Taken, missing: Sequence[_Gaps]) -> OrderException:
        """Explain an image that was served although it was not the first.

        Args:
            span: of the image.
            missing: of every order that holds it, the newest first.
        """
        if self._first[span.answer.image_id] is not span:
            return _exception(span, "after a skip", "it had been skipped, and Label Studio served it again")
        if not missing:
            why = "no order published by then holds it: imported since, or beyond the images that were published"
            return _exception(span, "not in order", why)
        ahead = missing[0]
        more = f" and {ahead.images - 1} more were" if ahead.images > 1 else " was"
        ahead_of_it = f"image {ahead.first}{more} ahead of it and not labelled"
        why = f'{ahead_of_it}: it was opened by hand, or by "Label Tasks As Displayed"'
        return _exception(span, "by hand", why)

    def _gaps(self, order: _Order, span: _Taken) -> _Gaps | None:
        """Images ahead of it that no reader is known to have had; None where the order lacks it."""
        if (index := int(order.index[self._row[span.answer.image_id]])) < 0:
            return None
        moment = span.served if order.ends is None else min(span.served, order.ends + self._tolerance)
        while order.front < len(order.rows) and self._taken[order.rows[order.front]].served <= moment:
            order.front += 1
        ahead = slice(order.front, index)
        missing = [
            (place, self._taken[row].answer.image_id)
            for place, row in zip(order.places[ahead].tolist(), order.rows[ahead].tolist(), strict=True)
            if self._taken[row].served > moment and not self._in_hand(self._taken[row], span, moment)
        ]
        first = min((order.first_open, *missing[:1]))[1]
        return _Gaps(int(order.places[index]) - index + len(missing), first, answered=bool(missing))

    @staticmethod
    def _in_hand(taken: _Taken, span: _Taken, moment: datetime) -> bool:
        """Whether the reader who answered an image later can have had it open at that moment."""
        return taken.answer.rater != span.answer.rater and taken.earliest < moment

    def _idle(self, span: _Taken) -> int:
        """Readers who may hold an image without an answer: those who answer nothing from then on, and one unknown."""
        return 1 + sum(last < span.served for rater, last in self._last.items() if rater != span.answer.rater)


def _exception(span: _Taken, kind: ExceptionKind, why: str) -> OrderException:
    answer = span.answer
    return OrderException(image_id=answer.image_id, rater=answer.rater, at=span.served, kind=kind, why=why)


RANKING_OPTIONS: Final = ("strategy", "batch_size", "control_share", "per_patient")
"""Options that decide how a network's predictions are ranked, and not what the network is."""


@dataclass(frozen=True, slots=True)
class OrderState:
    """The newest order compared with the owner's options.

    Attributes:
        verdict: ``as chosen``: nothing to do; ``saved``: ranked as chosen, but not served yet; ``passes`` and
            ``network``: it can be ranked anew from them at once; ``next round``: not before the next training.
        why: of ``next round``, for the log.
        latest: the newest round, where there is one.
        base: the round whose network ranked it, where one did.
    """

    verdict: Literal["as chosen", "saved", "passes", "network", "next round"]
    why: str = ""
    latest: RoundSummary | None = None
    base: RoundSummary | None = None

    @property
    def due(self) -> bool:
        """Whether a worker has something to do that no other round does anyway."""
        saved_anew = self.verdict == "saved" and self.latest is not None and self.latest.base is not None
        return saved_anew or self.verdict in ("passes", "network")


def order_state(project: ProjectStore, options: ProjectOptions, classes: Sequence[str]) -> OrderState:
    """Compare the newest round with the owner's options.

    Args:
        project: with its rounds.
        options: the owner's, as they are now.
        classes: of the project's question now.

    Raises:
        StorageError: the newest round, or the one whose network ranked it, is damaged.
    """
    latest = project.latest_summary()
    if latest is None or not latest.by_network:
        return OrderState("next round", "no network has ranked the images yet", latest)
    base = latest if latest.base is None else project.summary(latest.base)
    if base.classes != tuple(classes):
        return OrderState("next round", "the network was trained on other classes", latest, base)
    # None: a version without the option ranked it, and an upgrade alone is no choice of the owner.
    if all(getattr(latest.request, name) in {None, getattr(options, name)} for name in RANKING_OPTIONS):
        published = project.published()
        done = published is not None and published.completes(latest.round_id)
        return OrderState("as chosen" if done else "saved", "", latest, base)
    if strategy_spec(options.strategy).needs <= {"probs"} and project.has_outputs(base.round_id):
        return OrderState("passes", "", latest, base)
    if project.network(base.round_id) is not None:
        return OrderState("network", "", latest, base)
    return OrderState("next round", f"neither passes nor network of round {base.round_id} are kept", latest, base)
