"""Labels that came by chance, that the owner's strategy chose, or from before there was a network: told apart."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from ml_backend.insight.answers import Answer
from ml_backend.insight.records import RoundInsight
from ml_backend.records import Label, RoundReport

__all__ = ["ControlLabel", "LabelsByOrigin", "labels_by_origin"]


@dataclass(frozen=True, slots=True)
class ControlLabel:
    """An image that came by chance, and got a label.

    Attributes:
        round_id: of the round whose order it came in.
        probs: what that round's network said of it, when nobody had labelled it; in the order of the classes.
        at: of the image's first answer.
    """

    label: Label
    round_id: str
    probs: dict[str, float]
    at: datetime

    @property
    def correct(self) -> bool:
        """Whether the network's most probable class is the label."""
        return max(self.probs, key=lambda name: self.probs[name]) == self.label.value


@dataclass(frozen=True, slots=True)
class LabelsByOrigin:
    """Labels of a project, each group in the order in which they were made.

    Attributes:
        start: from before the first order that a network made.
        control: that came by chance in such an order.
        chosen: that the strategy chose.
        random: from orders of the strategy ``random``. They came by chance too, but nobody asked the network about
            them: they can neither be held against it nor be told from what others would have chosen.
    """

    start: tuple[Label, ...]
    control: tuple[ControlLabel, ...]
    chosen: tuple[Label, ...]
    random: tuple[Label, ...] = ()


def labels_by_origin(
    reports: Sequence[RoundReport],
    insights: Mapping[str, RoundInsight],
    labels: Sequence[Label],
    answers: Sequence[Answer],
) -> LabelsByOrigin:
    """Tell the labels apart by the order in which their images came.

    That is the order of the newest round with a network that had begun when the image got its first answer. An image
    that stood in it by chance counts as control, and under no other round: what once stood by chance and came by choice
    later has been selected. Around a switch an image may have come in the order before; of the fixed permutation that
    control images are drawn from most are the same in both.

    Args:
        reports: of a project, in any order.
        insights: by round; what is missing makes an image of that round one that was chosen.
        labels: that there are now.
        answers: of the project; a label without any is left out.
    """
    first: dict[str, datetime] = {}
    for answer in answers:
        if answer.value is not None:
            first[answer.image_id] = min(answer.created_at, first.get(answer.image_id, answer.created_at))
    ranked = sorted((r for r in reports if r.by_network), key=lambda r: r.started_at)
    begun = [report.started_at for report in ranked]
    control_of = {
        round_id: {image.image_id: image for image in insight.control} for round_id, insight in insights.items()
    }
    start: list[Label] = []
    control: list[ControlLabel] = []
    chosen: list[Label] = []
    random: list[Label] = []
    dated = [(at, label) for label in labels if (at := first.get(label.image.id)) is not None]
    for at, label in sorted(dated, key=lambda one: one[0]):
        place = bisect_left(begun, at)
        if place == 0:
            start.append(label)
            continue
        order = ranked[place - 1]
        if order.ranking.strategy == "random":
            random.append(label)
            continue
        round_id = order.request.round_id
        image = control_of.get(round_id, {}).get(label.image.id)
        if image is None:
            chosen.append(label)
        elif label.value in image.probs:
            control.append(ControlLabel(label, round_id, dict(image.probs), at))
    return LabelsByOrigin(tuple(start), tuple(control), tuple(chosen), tuple(random))
