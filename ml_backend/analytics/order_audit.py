"""Was what readers were served the chosen order? Told from what is stored: the orders and the answers.

How the newest order stands to what the owner has chosen: whether it can be made anew without a training.
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
from ml_backend.schemas import FrozenModel, PublishedRanking, RoundRequest
from ml_backend.storage import ProjectStore
from ml_backend.storage.outputs import OUTPUTS
from ml_backend.storage.rounds import RoundBrief

CLOCK_TOLERANCE: Final = timedelta(seconds=5)
"""Between our clock, which dates orders, and Label Studio's, which dates answers: around a switch either is right."""
LOCK: Final = timedelta(days=1)
"""How long Label Studio reserves an image for the reader who opened it (its TASK_LOCK_TTL)."""

ExceptionKind = Literal["held", "by hand", "not in order", "before any order", "again", "after a skip"]
InOrder = Literal["in order", "assumed held"]

_SHORT: Final[dict[ExceptionKind, str]] = {
    "held": "held from before a new order came",
    "by hand": 'opened by hand or labelled "As Displayed"',
    "not in order": "not in the published order",
    "before any order": "answered before any order was published",
    "again": "a further answer to an image that had one",
    "after a skip": "come back after a skip",
}

Count = Annotated[int, Field(ge=0)]


class OrderException(FrozenModel):
    """An answer whose image was not the first of the order in force.

    Attributes:
        at: when it was served, as far as can be told.
        why: a sentence for the owner.
    """

    image_id: str
    rater: str
    at: AwareDatetime
    kind: ExceptionKind
    why: str


class OrderFidelity(FrozenModel):
    """How the images that readers answered compare with the orders that were published.

    Attributes:
        answered: answers, skips among them; an edit is none.
        in_order: those whose image was the first of its order that nobody had taken.
        assumed_held: of ``in_order``, those that are so only if somebody held an image before them that has no answer.
        exceptions: the others, oldest first.
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
    """Hold every answer against the order in force when it was served; the module says what is inferred, and how.

    Args:
        orders: every order on record, in any order.
        answers: of the project, in any order.
        tolerance: between the two clocks.
    """
    walked = sorted(answers, key=lambda answer: answer.created_at)
    # An image opened by hand leaves the one that the reader holds where it is. So what is found to be opened by hand
    # does not tell when a reader's next image was served: judged once to find those, once more without them.
    by_hand = {
        id(answer)
        for answer, verdict in _judged(orders, walked, tolerance, frozenset())
        if isinstance(verdict, OrderException) and verdict.kind in ("by hand", "not in order")
    }
    verdicts = [verdict for _, verdict in _judged(orders, walked, tolerance, frozenset(by_hand))]
    exceptions = sorted((one for one in verdicts if isinstance(one, OrderException)), key=lambda one: one.at)
    assumed = sum(verdict == "assumed held" for verdict in verdicts)
    in_order = len(verdicts) - len(exceptions)
    return OrderFidelity(
        answered=len(verdicts),
        in_order=in_order,
        assumed_held=assumed,
        exceptions=tuple(exceptions),
        sentence=_sentence(len(verdicts), in_order, assumed, exceptions),
    )


@dataclass(frozen=True, slots=True)
class _Taken:
    """An answer with the span in which its image was served."""

    answer: Answer
    earliest: datetime
    served: datetime  # best guess, and the latest


class _Order:
    """A published order while it is walked through.

    Attributes:
        begins, ends: by our clock.
    """

    def __init__(self, published: PublishedRanking, ends: datetime | None) -> None:
        self.begins, self.ends = published.published_at, ends
        self.ids = published.image_ids
        self.place = {image_id: place for place, image_id in enumerate(self.ids)}
        self._front = 0

    def before(self, place: int, taken: Mapping[str, _Taken], moment: datetime) -> Iterator[str]:
        """The images ahead of a place whose turn was not certainly over by then; moments come in ascending order."""
        while self._front < len(self.ids) and _over(taken.get(self.ids[self._front]), moment):
            self._front += 1
        return (i for i in self.ids[self._front : place] if not _over(taken.get(i), moment))


def _over(taken: _Taken | None, moment: datetime) -> bool:
    return taken is not None and taken.served <= moment


def _judged(
    orders: Sequence[PublishedRanking], walked: Sequence[Answer], tolerance: timedelta, by_hand: frozenset[int]
) -> Iterator[tuple[Answer, OrderException | InOrder]]:
    spans = _spans(walked, by_hand)
    first: dict[str, _Taken] = {}
    for span in spans:
        if (known := first.get(span.answer.image_id)) is None or span.served < known.served:
            first[span.answer.image_id] = span
    in_time = sorted(orders, key=lambda order: order.published_at)
    ends: list[datetime | None] = [later.published_at for _, later in pairwise(in_time)]
    judge = _Judge([_Order(o, end) for o, end in zip(in_time, [*ends, None], strict=True)], first, spans, tolerance)
    for span in sorted(spans, key=lambda span: span.served):
        yield span.answer, judge.verdict(span)


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


class _Judge:
    """Says of one answer after the other, by the time it was served, whether it was in order."""

    def __init__(
        self, orders: Sequence[_Order], first: Mapping[str, _Taken], spans: Sequence[_Taken], tolerance: timedelta
    ) -> None:
        self._orders = orders
        self._first = first
        self._tolerance = tolerance
        self._answered: set[str] = set()  # images with an answer, a skip being none, among those walked through
        self._last: dict[str, datetime] = {}  # reader -> the latest answer of all
        for span in spans:
            self._last[span.answer.rater] = max(
                span.answer.created_at, self._last.get(span.answer.rater, span.earliest)
            )

    def verdict(self, span: _Taken) -> OrderException | InOrder:
        image_id = span.answer.image_id
        if image_id in self._answered:
            return self._exception(span, "again", "the image had an answer already: a further opinion")
        if not span.answer.skipped:
            self._answered.add(image_id)
        current = bisect_right(self._orders, span.served + self._tolerance, key=lambda order: order.begins) - 1
        if current < 0:
            return self._exception(span, "before any order", "it was answered before the first order that is on record")
        missing: list[list[str]] = []
        for order in self._in_force(span, current):
            gaps = self._gaps(order, span)
            if gaps is None:
                continue
            if len(gaps) > self._idle(span) or self._first.keys() & gaps:
                missing.append(gaps)
            elif order.ends is not None and order.ends + self._tolerance < span.served:
                return self._exception(
                    span, "held", "its reader had it on the screen when a new order came, and keeps it until the answer"
                )
            else:
                return "assumed held" if gaps else "in order"
        return self._out_of_order(span, missing)

    def _out_of_order(self, span: _Taken, missing: Sequence[Sequence[str]]) -> OrderException:
        """Why an image came although it was not the first.

        Args:
            span: of the image.
            missing: of every order that holds it, the newest first, what stood before it.
        """
        if self._first[span.answer.image_id] is not span:
            return self._exception(span, "after a skip", "it had been skipped, and Label Studio brought it back")
        if not missing:
            why = "no order published by then holds it: imported since, or beyond the images that were published"
            return self._exception(span, "not in order", why)
        ahead = missing[0]
        stood = f"image {ahead[0]} stood" if len(ahead) == 1 else f"image {ahead[0]} and {len(ahead) - 1} more stood"
        why = f'{stood} before it and waited: it was opened by hand, or by "Label Tasks As Displayed"'
        return self._exception(span, "by hand", why)

    def _in_force(self, span: _Taken, current: int) -> Iterator[_Order]:
        """The order in force when the image was served, then those before it under which it can have been served."""
        for order in reversed(self._orders[: current + 1]):
            if order.ends is not None and order.ends + self._tolerance < span.earliest:
                return
            yield order

    def _gaps(self, order: _Order, span: _Taken) -> list[str] | None:
        """Images that stood before it and that no reader is known to have had; None where the order lacks it."""
        place = order.place.get(span.answer.image_id)
        if place is None:
            return None
        moment = span.served if order.ends is None else min(span.served, order.ends + self._tolerance)
        return [i for i in order.before(place, self._first, moment) if not self._in_hand(i, span, moment)]

    def _in_hand(self, image_id: str, span: _Taken, moment: datetime) -> bool:
        """Whether the one who answered an image later can have had it on the screen at that moment."""
        taken = self._first.get(image_id)
        return taken is not None and taken.answer.rater != span.answer.rater and taken.earliest < moment

    def _idle(self, span: _Taken) -> int:
        """Readers who may hold an image that has no answer: those who answer nothing from then on, and one unknown."""
        idle = sum(last < span.served for rater, last in self._last.items() if rater != span.answer.rater)
        return idle + 1

    def _exception(self, span: _Taken, kind: ExceptionKind, why: str) -> OrderException:
        answer = span.answer
        return OrderException(image_id=answer.image_id, rater=answer.rater, at=span.served, kind=kind, why=why)


def _sentence(answered: int, in_order: int, assumed: int, exceptions: Sequence[OrderException]) -> str:
    if not answered:
        return "No reader has answered yet."
    told = f"{in_order} of {answered} answers came in the chosen order."
    if assumed:
        told += f" Before {assumed} of them stood an image without an answer: probably on somebody else's screen."
    if exceptions:
        kinds = Counter(one.kind for one in exceptions)
        listed = ", ".join(f"{number} {_SHORT[kind]}" for kind, number in kinds.most_common())
        told += f" The other{'s' if len(exceptions) > 1 else ''}: {listed}."
    return told


RANKING_OPTIONS: Final = ("strategy", "batch_size", "control_share")
"""Options that say how a network's outputs are ranked, and not what the network is."""

Verdict = Literal["as chosen", "saved", "passes", "network", "next round"]


@dataclass(frozen=True, slots=True)
class OrderStanding:
    """How the newest order stands to what the owner has chosen.

    Attributes:
        verdict: ``as chosen``: nothing is to be done; ``saved``: it is, but readers are not served it yet; ``passes``
            and ``network``: from them it can be ranked anew at once; ``next round``: not before the next training.
        why: of ``next round``, for the log.
        latest: the newest round, where there is one.
        base: the round whose network ranked it, where one did.
    """

    verdict: Verdict
    why: str = ""
    latest: RoundBrief | None = None
    base: RoundBrief | None = None

    @property
    def due(self) -> bool:
        """Whether a worker has something to do that no other round does anyway."""
        saved_anew = self.verdict == "saved" and self.latest is not None and self.latest.base is not None
        return saved_anew or self.verdict in ("passes", "network")


def as_chosen(request: RoundRequest, options: ProjectOptions) -> bool:
    """Whether a round ranked as these options want it."""
    return all(getattr(request, name) == getattr(options, name) for name in RANKING_OPTIONS)


def order_standing(project: ProjectStore, options: ProjectOptions, classes: Sequence[str]) -> OrderStanding:
    """Compare the newest round with what the owner has chosen since.

    Args:
        project: with its rounds.
        options: the owner's, as they are now.
        classes: that the project's question has now.

    Raises:
        StorageError: the newest round, or the one whose network ranked it, is damaged.
    """
    ids = project.round_ids()
    latest = project.brief(ids[-1]) if ids else None
    if latest is None or not latest.by_network:
        return OrderStanding("next round", "no network has ranked the images yet", latest)
    base = latest if latest.base is None else project.brief(latest.base)
    if base.request.classes != tuple(classes):
        return OrderStanding("next round", "the network knows other classes than the question has now", latest, base)
    if as_chosen(latest.request, options):
        published = project.published()
        done = published is not None and published.completes(latest.request.round_id)
        return OrderStanding("as chosen" if done else "saved", "", latest, base)
    round_id = base.request.round_id
    if (
        strategy_spec(options.strategy).needs <= {"probs"}
        and (project.folder / "rounds" / round_id / OUTPUTS).is_file()
    ):
        return OrderStanding("passes", "", latest, base)
    if project.network(round_id) is not None:
        return OrderStanding("network", "", latest, base)
    return OrderStanding("next round", f"neither passes nor network of round {round_id} are kept", latest, base)
