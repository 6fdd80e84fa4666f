"""Whether readers were served the images in the published order, inferred from the stored orders and answers.

Label Studio records when an answer came and how long its image was open, not under which order the image was served.
Also here: the state of the newest order, and whether it can be ranked anew without a training.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, Field

from ml_backend.analytics.history import Answer
from ml_backend.config import ProjectOptions
from ml_backend.registry import strategy_spec
from ml_backend.schemas import FrozenModel, PublishedRanking
from ml_backend.storage import ProjectStore, RoundSummary

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
    orders: Sequence[PublishedRanking], answers: Sequence[Answer], tolerance: timedelta = CLOCK_TOLERANCE
) -> OrderFidelity:
    """Compare every answer with the order in force when its image was served.

    Args:
        orders: every order on record, in any order.
        answers: of the project, in any order.
        tolerance: between the two clocks.
    """
    walked = sorted(answers, key=lambda answer: answer.created_at)
    # An image opened by hand does not replace the one that its reader holds, so that its answer does not date when the
    # reader's next image was served: one pass finds those images, a second leaves them out.
    by_hand = {
        id(answer)
        for answer, verdict in _verdicts(orders, walked, tolerance, frozenset())
        if isinstance(verdict, OrderException) and verdict.kind in ("by hand", "not in order")
    }
    verdicts = [verdict for _, verdict in _verdicts(orders, walked, tolerance, frozenset(by_hand))]
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
        if picked := len({one for order in orders for one in order.by_hand} & {one.image_id for one in walked}):
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


@dataclass(frozen=True, slots=True)
class _Taken:
    """An answer with the span in which its image was served."""

    answer: Answer
    earliest: datetime
    served: datetime  # most likely time, and the latest


class _Order:
    """A published order while its answers are walked through.

    Attributes:
        begins, ends: by our clock.
    """

    def __init__(self, published: PublishedRanking, ends: datetime | None) -> None:
        self.begins, self.ends = published.published_at, ends
        self.ids, self.rereads = published.image_ids, frozenset(published.rereads)
        self.place = {image_id: place for place, image_id in enumerate(self.ids)}
        self._front = 0

    def before(self, place: int, taken: Mapping[str, _Taken], moment: datetime) -> Iterator[str]:
        """The images ahead of a place that may not have been served by then; moments come in ascending order."""

        def served(image_id: str) -> bool:
            return (found := taken.get(image_id)) is not None and found.served <= moment

        while self._front < len(self.ids) and served(self.ids[self._front]):
            self._front += 1
        return (image_id for image_id in self.ids[self._front : place] if not served(image_id))


def _verdicts(
    orders: Sequence[PublishedRanking], walked: Sequence[Answer], tolerance: timedelta, by_hand: frozenset[int]
) -> Iterator[tuple[Answer, OrderException | InOrder]]:
    spans = _spans(walked, by_hand)
    in_time = sorted(orders, key=lambda order: order.published_at)
    ends: list[datetime | None] = [later.published_at for _, later in pairwise(in_time)]
    auditor = _Auditor([_Order(o, end) for o, end in zip(in_time, [*ends, None], strict=True)], spans, tolerance)
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

    def verdict(self, span: _Taken) -> OrderException | InOrder:
        image_id = span.answer.image_id
        again = image_id in self._answered
        if not span.answer.skipped:
            self._answered.add(image_id)
        current = bisect_right(self._orders, span.served + self._tolerance, key=lambda order: order.begins) - 1
        if current < 0 and not again:
            return _exception(span, "before any order", "it was answered before the first order that is on record")
        missing: list[list[str]] = []
        # The order in force when the image was served, then those before it under which it can have been served.
        for order in reversed(self._orders[: current + 1]):
            if order.ends is not None and order.ends + self._tolerance < span.earliest:
                break
            gaps = self._gaps(order, span)
            if gaps is None or (again and image_id not in order.rereads):
                continue
            if len(gaps) > self._idle(span) or self._first.keys() & gaps:
                missing.append(gaps)
            elif order.ends is not None and order.ends + self._tolerance < span.served:
                return _exception(
                    span, "held", "its reader had it open when a new order came, and keeps it until the answer"
                )
            else:
                return "assumed held" if gaps else "in order"
        if again:
            return _exception(span, "again", "the image had an answer already: a further opinion")
        return self._out_of_order(span, missing)

    def _out_of_order(self, span: _Taken, missing: Sequence[Sequence[str]]) -> OrderException:
        """Explain an image that was served although it was not the first.

        Args:
            span: of the image.
            missing: of every order that holds it, the newest first, the images ahead of it.
        """
        if self._first[span.answer.image_id] is not span:
            return _exception(span, "after a skip", "it had been skipped, and Label Studio served it again")
        if not missing:
            why = "no order published by then holds it: imported since, or beyond the images that were published"
            return _exception(span, "not in order", why)
        ahead = missing[0]
        waited = f"image {ahead[0]} was" if len(ahead) == 1 else f"image {ahead[0]} and {len(ahead) - 1} more were"
        why = f'{waited} ahead of it and not labelled: it was opened by hand, or by "Label Tasks As Displayed"'
        return _exception(span, "by hand", why)

    def _gaps(self, order: _Order, span: _Taken) -> list[str] | None:
        """Images ahead of it that no reader is known to have had; None where the order lacks it."""
        place = order.place.get(span.answer.image_id)
        if place is None:
            return None
        moment = span.served if order.ends is None else min(span.served, order.ends + self._tolerance)
        return [one for one in order.before(place, self._first, moment) if not self._in_hand(one, span, moment)]

    def _in_hand(self, image_id: str, span: _Taken, moment: datetime) -> bool:
        """Whether the reader who answered an image later can have had it open at that moment."""
        taken = self._first.get(image_id)
        return taken is not None and taken.answer.rater != span.answer.rater and taken.earliest < moment

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
