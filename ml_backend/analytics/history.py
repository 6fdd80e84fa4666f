"""What rounds and readers have left on record: insights of rounds, changes of the strategy, answers, ground truths."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from datetime import UTC, datetime
from itertools import takewhile
from typing import Annotated, Any, Final, Literal, Protocol, TypeAlias, TypeVar

import structlog
from pydantic import AwareDatetime, Field

from ml_backend.config import ProjectOptions
from ml_backend.consensus import rule
from ml_backend.consensus.rules import gather
from ml_backend.errors import PayloadError, StorageError
from ml_backend.label_studio.formats import LabelConfig, read_annotation, read_image, training_classes
from ml_backend.label_studio.sync import TaskCache, TaskImages, annotations_in
from ml_backend.schemas import FrozenModel, HeldOutImage, round_name
from ml_backend.storage import ProjectStore, RoundSummary

INSIGHT: Final = "insight"
"""Name of the record ``RoundInsight`` in a round's folder."""
HELD_OUT: Final = "held-out"
"""Name of the record ``HeldOutPredictions`` in a round's folder."""
PREVIEWS: Final = "previews"
"""Name of the record ``StrategyPreviews`` in a round's folder."""
SHOWN_PREVIEW: Final = 6
"""Images of a strategy's preview that a page shows; more are kept."""

_LONGEST_S = 1e12

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0)]
Confusion: TypeAlias = dict[str, dict[str, Count]]
"""Label -> predicted class -> images; classes least severe first."""
How = Literal["connected", "at once", "with the next round"]

log = structlog.get_logger(__name__)


class ImageInsight(FrozenModel):
    """The network's prediction for an image when the round ranked it, before it had a label.

    Attributes:
        place: in the ranking, from 1.
        probs: softmax output averaged over the passes, by class.
        score: acquisition value, in the unit of the round's strategy.
        aleatoric: mean entropy of the passes, in nats.
        epistemic: mutual information of label and weights, in nats.
        control: whether the image was drawn at random, as part of the holdout.
    """

    image_id: str
    place: Annotated[int, Field(ge=1)]
    probs: dict[str, Share]
    score: float
    aleatoric: Annotated[float, Field(ge=0.0)]
    epistemic: Annotated[float, Field(ge=0.0)]
    control: bool = False

    @property
    def suggestion(self) -> str:
        """The most probable class; of equal ones the least severe."""
        return max(self.probs, key=lambda name: self.probs[name])

    @property
    def confidence(self) -> float:
        """Its probability."""
        return self.probs[self.suggestion]


class RoundInsight(FrozenModel):
    """A round's network on its pool.

    Attributes:
        images: number of images of the pool that could be read.
        expected: mean over the pool of the probabilities of each class: the model's estimate of its class balance.
        predicted: number of images of the pool by their most probable class.
        batch: the images of the batch, in the order of the ranking.
        control: the randomly drawn images, anywhere in the ranking.
    """

    images: Count
    expected: dict[str, Share]
    predicted: dict[str, int]
    batch: tuple[ImageInsight, ...]
    control: tuple[ImageInsight, ...] = ()


def stored_insights(project: ProjectStore, image_ids: Set[str]) -> dict[str, RoundInsight]:
    """The insight of each round, oldest first, of its images only those asked for: a large holdout takes megabytes.

    Damaged ones are logged and left out.
    """
    found: dict[str, RoundInsight] = {}
    for round_id in project.rounds_with(INSIGHT):
        try:
            kept = project.raw_record(round_id, INSIGHT)
            shown = {name: [one for one in kept[name] if one["image_id"] in image_ids] for name in ("batch", "control")}
            found[round_id] = RoundInsight.model_validate(kept | shown)
        except (StorageError, ValueError, KeyError, TypeError) as error:
            log.warning("what a round's network predicted is left out", round=round_id, error=str(error))
    return found


class HeldOutPredictions(FrozenModel):
    """Predictions for every validation image of a round; of an ensemble, for every labelled image."""

    images: tuple[HeldOutImage, ...]

    def confusion(self) -> Confusion:
        """The confusion matrix of these images."""
        counts = Counter((one.label, one.predicted) for one in self.images)
        classes = self.images[0].probs if self.images else ()
        return {label: {name: counts[label, name] for name in classes} for label in classes}

    def disagreements(self) -> list[HeldOutImage]:
        """The images whose label is not the predicted class, most confident prediction first."""
        found = [one for one in self.images if one.predicted != one.label]
        return sorted(found, key=lambda one: -one.confidence)  # stable


class StrategyPreviews(FrozenModel):
    """The images that each strategy would have put first in a round's ranking, by the name of the strategy."""

    first: dict[str, tuple[ImageInsight, ...]]


class StrategyChange(FrozenModel):
    """The owner chose a strategy, and a round ranked by it.

    Attributes:
        round_id: the first round that ranked by it.
        at: when that round began.
        before: the strategy until then; None for the first.
        after: the strategy from then on.
        how: with the first round; by ranking the last network's predictions anew; or with the next training.
        sentence: the same for the owner.
    """

    round_id: str
    at: datetime
    before: str | None
    after: str
    how: How
    sentence: str


def strategy_history(rounds: Iterable[RoundSummary]) -> tuple[StrategyChange, ...]:
    """Every change of the strategy, the first choice first.

    A round of the cold start counts with the strategy that the owner had chosen by then.

    Args:
        rounds: of the project, oldest first.
    """
    changes: list[StrategyChange] = []
    for one in rounds:
        before = changes[-1].after if changes else None
        if one.asked == before:
            continue
        how: How = "with the next round"
        named = round_name(one.round_id)
        sentence = f"{one.asked} instead of {before} since {named}: with the next round, by a new network."
        if before is None:
            how, sentence = "connected", f"{one.asked} from the first round on ({named})."
        elif one.reason == "rerank":
            how = "at once"
            sentence = f"{one.asked} instead of {before} since {named}: at once, by the last network."
        changes.append(
            StrategyChange(
                round_id=one.round_id, at=one.began, before=before, after=one.asked, how=how, sentence=sentence
            )
        )
    return tuple(changes)


class Answer(FrozenModel):
    """One reader's answer about one image.

    Attributes:
        created_at: when it was first submitted; an edit does not change it.
        lead_time_s: seconds that the image was open, as the reader's browser measured them; edits add to it. None where
            it was not measured.
        skipped: by the button of that name.
        value: the class; None where the reader skipped or called the image unreadable.
        ground_truth: marked as such.
    """

    image_id: str
    rater: str
    created_at: AwareDatetime
    lead_time_s: Annotated[float, Field(ge=0.0)] | None = None
    skipped: bool = False
    value: str | None = None
    ground_truth: bool = False


def answers_of(mirror: TaskCache, config: LabelConfig, options: ProjectOptions) -> list[Answer]:
    """Every answer of a project, oldest first.

    Never raises: annotations that cannot be read are left out, and the log counts them.

    Args:
        mirror: of the last reading.
        config: of the project.
        options: of its owner, which name the choice that means unreadable.
    """
    found: list[Answer] = []
    left_out = 0
    for task in mirror.annotated():
        for item in task["annotations"]:
            answer = _answer(item, task, config, options)
            if answer is None:
                left_out += 1
            else:
                found.append(answer)
    if left_out:
        log.warning("annotations that cannot be read are left out of the pages", count=left_out)
    return sorted(found, key=lambda answer: answer.created_at)  # stable: of one moment, by task


def _answer(
    item: Mapping[str, Any], task: Mapping[str, Any], config: LabelConfig, options: ProjectOptions
) -> Answer | None:
    try:
        annotation = read_annotation(item, read_image(task, config), config, options)
        created_at = datetime.fromisoformat(item["created_at"])
    except (PayloadError, KeyError, TypeError, ValueError):
        return None
    lead_time: Any = item.get("lead_time")
    # What no clock can have measured is left out, NaN with it.
    measured = isinstance(lead_time, int | float) and not isinstance(lead_time, bool) and 0 <= lead_time < _LONGEST_S
    return Answer(
        image_id=annotation.image.id,
        rater=annotation.rater,
        created_at=created_at if created_at.tzinfo else created_at.replace(tzinfo=UTC),
        lead_time_s=float(lead_time) if measured else None,
        skipped=bool(item["was_cancelled"]),
        value=annotation.value,
        ground_truth=annotation.ground_truth,
    )


class KnownNetwork(FrozenModel):
    """The newest network of a project, whose file may be deleted by now.

    Attributes:
        round_id: of the round that trained it.
        classes: that it distinguishes.
        ranks: whether a network made the newest order. Not so where labels were deleted or a class was added since, so
            that a class lacks its minimum.
    """

    round_id: str
    classes: tuple[str, ...]
    ranks: bool

    def knows(self, classes: Sequence[str]) -> bool:
        """Whether these are the classes that it distinguishes."""
        return self.classes == tuple(classes)


def known_network(rounds: Sequence[RoundSummary]) -> KnownNetwork | None:
    """The newest network; None before the first training.

    Args:
        rounds: all of the project, oldest first.
    """
    trained = next((one for one in reversed(rounds) if one.trained), None)
    if trained is None:
        return None
    return KnownNetwork(round_id=trained.round_id, classes=trained.classes, ranks=rounds[-1].by_network)


class HasClasses(Protocol):
    """A round, or what is kept of one."""

    @property
    def classes(self) -> tuple[str, ...]: ...


R = TypeVar("R", bound=HasClasses)


def same_classes(rounds: Sequence[R]) -> list[R]:
    """The last rounds with the classes of the newest: networks of other classes cannot be compared with these.

    Args:
        rounds: oldest first.
    """
    return [*takewhile(lambda one: one.classes == rounds[-1].classes, reversed(rounds))][::-1]


class GroundTruths(FrozenModel):
    """Annotations marked as ground truth, and their effect.

    Attributes:
        annotations: that are marked.
        labels: images whose label they decide; 0 where they do not override.
        overridden: answers of readers that differ from these labels.
        sentence: for the owner; empty where no annotation is marked.
    """

    annotations: Count
    labels: Count
    overridden: Count
    sentence: str


def ground_truths(
    mirror: TaskCache, config: LabelConfig, options: ProjectOptions, images: TaskImages | None = None
) -> GroundTruths:
    """Count them.

    Args:
        mirror: of the last reading.
        config: of the project.
        options: of its owner.
        images: of the mirror; by default as the addresses distinguish them.

    Raises:
        SettingsError: fewer than two classes are left.
    """
    marked = sum(bool(item.get("ground_truth")) for task in mirror.tasks.values() for item in task.annotations)
    if not marked:
        return GroundTruths(annotations=0, labels=0, overridden=0, sentence="")
    if options.ground_truth != "override":
        effect = {"reader": "count as answers of readers", "ignore": "are left out"}[options.ground_truth]
        sentence = (
            f"{marked} annotations are marked as ground truth and {effect} (ground_truth={options.ground_truth})."
        )
        return GroundTruths(annotations=marked, labels=0, overridden=0, sentence=sentence)
    annotations, _ = annotations_in(mirror, config, options, images)
    classes = training_classes(config, options)
    value_of = {label.image.id: label.value for label in rule(options.consensus)(annotations, classes).labels}
    decided = [one for one in gather(annotations, classes)[0] if one.ground_truth]
    labels, overridden = len(decided), sum(one.disputes(value_of[one.image.id]) for one in decided)
    are = f"{labels} label{' is a ground truth; it overrides' if labels == 1 else 's are ground truths; they override'}"
    sentence = f"{are} {overridden} differing answer{'' if overridden == 1 else 's'} of readers."
    return GroundTruths(annotations=marked, labels=labels, overridden=overridden, sentence=sentence)
