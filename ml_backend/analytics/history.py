"""What is kept beside a round, so that nobody who looks at it has to read the passes again.

What is remembered of each round: all of its report but the images. A page of 200 rounds reads each file once.
Which strategy ranked when: every change of it, from the rounds.
When readers answered, how long it took them, and what they said: Label Studio's annotations as they were read.
Whether a project has a network: a fact of its rounds, whichever of them was the last.
How many labels are ground truths, and how many readers' answers they override. Pure.
A round's outputs -> what the page shows of it, and what later rounds are held against.
"""

import threading
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from math import isfinite
from typing import Annotated, Any, Final, Generic, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import structlog
from jaxtyping import Float
from pydantic import AwareDatetime, Field
from scipy.special import entr

from ml_backend.config import ProjectOptions
from ml_backend.consensus import RULES
from ml_backend.consensus.rules import gather
from ml_backend.errors import PayloadError, StorageError
from ml_backend.label_studio.formats import LabelConfig, read_annotation, read_image, training_classes
from ml_backend.label_studio.sync import TaskCache, TaskImages, annotations_in
from ml_backend.predictions import PoolPredictions
from ml_backend.schemas import Annotation, FitReport, FrozenModel, Ranking, RoundReport, RoundTrigger
from ml_backend.storage import ProjectStore
from ml_backend.storage.rounds import RoundBrief

INSIGHT: Final = "insight"
"""The name under which a round's insight stands in its folder."""

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class ImageInsight(FrozenModel):
    """What the network said of one image when the round ranked it, before anybody had labelled it.

    Attributes:
        place: in the ranking, from 1.
        probs: softmax output averaged over the passes, by class.
        score: acquisition value, in the unit of the round's strategy.
        aleatoric: mean entropy of the passes, in nats: what every network doubts.
        epistemic: mutual information of answer and network, in nats: what the networks disagree about.
        control: it stands there by chance, and not by its score.
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
        images: of the pool, that could be read.
        expected: mean over the pool of the probabilities of each class: the model's estimate of its class balance.
        predicted: images of the pool by their most probable class.
        batch: the images of the batch, in the order of the ranking.
        control: those that stand in the ranking by chance, wherever in it.
    """

    images: Annotated[int, Field(ge=0)]
    expected: dict[str, Share]
    predicted: dict[str, int]
    batch: tuple[ImageInsight, ...]
    control: tuple[ImageInsight, ...] = ()


KEPT_LINES = 20_000  # over all projects; about a kilobyte each

T = TypeVar("T")


class RoundSummary(FrozenModel):
    """One round without its images.

    Attributes:
        strategy: that ordered the images; ``asked`` is the owner's, which waits until every class has its labels.
        classes: ordinal, least severe first.
        images: that it ranked.
        control: of them, those that stand in the order by chance.
        excluded: images that it could not use.
        started_at: ISO 8601, UTC.
        seconds: stage -> wall time.
        base: the earlier round whose network ranked, where this one only ranked anew.
        report: without what grows with the pool.
    """

    round_id: str
    reason: RoundTrigger
    strategy: str
    asked: str
    classes: tuple[str, ...]
    batch_size: int
    min_labels_per_class: int
    images: int
    control: int
    labels_per_class: dict[str, int]
    disputed: int
    excluded: int
    fit: FitReport | None
    seconds: dict[str, float]
    started_at: str
    base: str | None = None
    report: Annotated[RoundReport, Field(exclude=True, repr=False)]

    @property
    def labels(self) -> int:
        """Images with a label when the round began."""
        return sum(self.labels_per_class.values())

    @property
    def trained(self) -> bool:
        """Whether the round trained a network of its own."""
        return self.report.trained

    @property
    def by_network(self) -> bool:
        """Whether a network made the order; see ``RoundReport.by_network``."""
        return self.report.by_network

    @classmethod
    def of(cls, report: RoundReport) -> "RoundSummary":
        """The line of a report."""
        request, ranking = report.request, report.ranking
        fit = None if report.fit is None else report.fit.model_copy(update={"exclusions": ()})
        short = Ranking(strategy=ranking.strategy, image_ids=(), scores=(), batch_size=ranking.batch_size)
        return cls(
            round_id=request.round_id,
            reason=request.reason,
            strategy=ranking.strategy,
            asked=request.strategy,
            classes=request.classes,
            batch_size=ranking.batch_size,
            min_labels_per_class=request.min_labels_per_class,
            images=len(ranking.image_ids),
            control=len(ranking.control),
            labels_per_class=report.labels_per_class,
            disputed=len(report.disputed),
            excluded=len(report.exclusions),
            fit=fit,
            seconds=dict(report.seconds),
            started_at=report.started_at.isoformat(timespec="seconds"),
            base=report.base,
            report=report.model_copy(
                update={"ranking": short, "disputed": (), "exclusions": (), "fit": fit},
            ),
        )


class Remembered(Generic[T]):
    """Values by key, each as long as what it was made from stays the same. Safe for several threads.

    Args:
        limit: of keys; all are forgotten where there are more.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: dict[Hashable, tuple[Hashable, T]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, state: Hashable) -> T | None:
        """The value that was made in this state; None where none was."""
        with self._lock:
            found = self._known.get(key)
        return found[1] if found is not None and found[0] == state else None

    def put(self, key: Hashable, state: Hashable, value: T) -> T:
        """Keep a value, in the place of one of another state."""
        with self._lock:
            if len(self._known) >= self._limit:
                self._known.clear()
            self._known[key] = (state, value)
        return value


class RoundLines:
    """The lines of any project's rounds; one set a process."""

    def __init__(self) -> None:
        self._lines: Remembered[RoundSummary | str] = Remembered(KEPT_LINES)

    def of(self, project: ProjectStore) -> tuple[list[RoundSummary], list[str]]:
        """Every round that can be read, oldest first; and what is wrong with each of the others."""
        lines: list[RoundSummary] = []
        damaged: list[str] = []
        for round_id in project.round_ids():
            found = self._line(project, round_id)
            if isinstance(found, RoundSummary):
                lines.append(found)
            else:
                damaged.append(f"Round {round_id} cannot be told: {found}")
        return lines, damaged

    def _line(self, project: ProjectStore, round_id: str) -> RoundSummary | str:
        path = project.folder / "rounds" / round_id / "report.json"
        try:
            status = path.stat()
        except OSError as error:
            return f"{path.name} could not be read: {error.strerror}"
        state = (status.st_mtime_ns, status.st_size)
        if (known := self._lines.get(path, state)) is not None:
            return known
        try:
            line: RoundSummary | str = RoundSummary.of(project.report(round_id))
        except StorageError as error:
            line = str(error)
        return self._lines.put(path, state, line)


How = Literal["connected", "at once", "with the next round"]


class StrategyChange(FrozenModel):
    """The owner chose a strategy, and a round ranked by it.

    Attributes:
        round_id: the first round that ranked by it.
        at: when that round began.
        before: the strategy until then; None for the first.
        after: the strategy from then on.
        how: with the first round; by ranking anew what the last network had said; or with the next training.
        sentence: the same for the owner.
    """

    round_id: str
    at: datetime
    before: str | None
    after: str
    how: How
    sentence: str


def strategy_history(reports: Iterable[RoundReport]) -> tuple[StrategyChange, ...]:
    """Every change of the strategy, the first choice first.

    A round of the cold start counts with the strategy that the owner had chosen by then.

    Args:
        reports: of the project's rounds, oldest first.
    """
    changes: list[StrategyChange] = []
    for report in reports:
        request = report.request
        before = changes[-1].after if changes else None
        if request.strategy == before:
            continue
        how: How = "with the next round" if request.reason != "rerank" else "at once"
        changes.append(
            StrategyChange(
                round_id=request.round_id,
                at=report.started_at,
                before=before,
                after=request.strategy,
                how="connected" if before is None else how,
                sentence=_sentence(request.round_id, before, request.strategy, how),
            )
        )
    return tuple(changes)


def _sentence(round_id: str, before: str | None, after: str, how: How) -> str:
    if before is None:
        return f"{after} from the first round on ({round_id})."
    network = "by what the last network had said" if how == "at once" else "by a new network"
    return f"{after} instead of {before} since {round_id}: {how}, {network}."


log = structlog.get_logger(__name__)


class Answer(FrozenModel):
    """One reader's answer about one image.

    Attributes:
        created_at: when it was submitted first; an edit leaves it as it is.
        lead_time_s: seconds that the image was open, as the reader's browser measured them; edits add to it. None where
            it was not measured.
        skipped: by the button of that name.
        value: the class; None where the reader skipped or called the image unreadable.
    """

    image_id: str
    rater: str
    created_at: AwareDatetime
    lead_time_s: Annotated[float, Field(ge=0.0)] | None = None
    skipped: bool = False
    value: str | None = None


def answers_of(mirror: TaskCache, config: LabelConfig, options: ProjectOptions) -> list[Answer]:
    """Every answer of a project, oldest first.

    Never raises: annotations that cannot be read are left out, and the log counts them.

    Args:
        mirror: of the last reading.
        config: the project's question.
        options: its owner's, that say which choice means unreadable.
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
        log.warning("some annotations cannot be read, and are left out of what is told", count=left_out)
    return sorted(found, key=lambda answer: answer.created_at)  # stable: of one moment, by task


def _answer(
    item: Mapping[str, Any], task: Mapping[str, Any], config: LabelConfig, options: ProjectOptions
) -> Answer | None:
    try:
        said = read_annotation(item, read_image(task, config), config, options)
        created_at = datetime.fromisoformat(item["created_at"])
    except (PayloadError, KeyError, TypeError, ValueError):
        return None
    return Answer(
        image_id=said.image.id,
        rater=said.rater,
        created_at=created_at if created_at.tzinfo else created_at.replace(tzinfo=UTC),
        lead_time_s=_seconds(item.get("lead_time")),
        skipped=bool(item["was_cancelled"]),
        value=said.value,
    )


def _seconds(value: object) -> float | None:
    """A measured time; what no clock can have measured is None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if isfinite(value) and value >= 0 else None


class KnownNetwork(FrozenModel):
    """The newest network of a project. Its file may be deleted by now: what it has taught the order stays.

    Attributes:
        round_id: of the round that trained it.
        classes: that it tells apart.
        ranks: whether the newest order was made by a network. Not so where labels were deleted or a class was added
            since, so that a class lacks its minimum.
    """

    round_id: str
    classes: tuple[str, ...]
    ranks: bool

    def knows(self, classes: Sequence[str]) -> bool:
        """Whether these are the classes that it tells apart."""
        return self.classes == tuple(classes)


def known_network(briefs: Iterable[RoundBrief]) -> KnownNetwork | None:
    """The newest network; None before the first training.

    Args:
        briefs: of all rounds, oldest first.
    """
    found: RoundBrief | None = None
    ranks = False
    for brief in briefs:
        ranks = brief.by_network
        if brief.trained:
            found = brief
    if found is None:
        return None
    return KnownNetwork(round_id=found.request.round_id, classes=found.request.classes, ranks=ranks)


Count = Annotated[int, Field(ge=0)]


class GroundTruths(FrozenModel):
    """Annotations marked as ground truth, and what they do.

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
        config: the project's question.
        options: its owner's.
        images: of the mirror; by default as the addresses tell them apart.

    Raises:
        SettingsError: fewer than two classes are left.
    """
    marked = sum(bool(item.get("ground_truth")) for task in mirror.tasks.values() for item in task.annotations)
    if not marked:
        return GroundTruths(annotations=0, labels=0, overridden=0, sentence="")
    if options.ground_truth != "override":
        does = {"reader": "count as answers of readers", "ignore": "are left out"}[options.ground_truth]
        sentence = f"{marked} annotations are marked as ground truth and {does} (ground_truth={options.ground_truth})."
        return GroundTruths(annotations=marked, labels=0, overridden=0, sentence=sentence)
    annotations, _ = annotations_in(mirror, config, options, images)
    labels, overridden = _counted(annotations, training_classes(config, options), options)
    are = f"{labels} label{' is a ground truth; it overrides' if labels == 1 else 's are ground truths; they override'}"
    sentence = f"{are} {overridden} differing answer{'' if overridden == 1 else 's'} of readers."
    return GroundTruths(annotations=marked, labels=labels, overridden=overridden, sentence=sentence)


def _counted(annotations: Sequence[Annotation], classes: Sequence[str], options: ProjectOptions) -> tuple[int, int]:
    answers, _ = gather(annotations, classes)
    value_of = {label.image.id: label.value for label in RULES[options.consensus](annotations, classes).labels}
    decided = [one for one in answers if one.ground_truth]
    return len(decided), sum(one.disputes(value_of[one.image.id]) for one in decided)


Floats: TypeAlias = npt.NDArray[np.float64]


def uncertainties(
    probs: Float[npt.NDArray[np.float32], "images passes classes"],
) -> tuple[Float[Floats, " images"], Float[Floats, " images"]]:
    """The two parts of the entropy of the mean prediction.

    Args:
        probs: softmax outputs of the stochastic passes; each row sums to 1.

    Returns:
        Aleatoric part, the mean entropy of the passes, and epistemic part, the mutual information that is left; both
        in nats, 0 to log C, never negative.

    Source:
        Depeweg et al. 2018, arXiv:1710.07283.
    """
    exact = probs.astype(np.float64)
    aleatoric = entr(exact).sum(axis=2).mean(axis=1)
    total = entr(exact.mean(axis=1)).sum(axis=1)
    return aleatoric, np.maximum(total - aleatoric, 0.0)


def round_insight(report: RoundReport, outputs: PoolPredictions) -> RoundInsight:
    """What is kept of a round beside its report.

    Args:
        report: with the ranking.
        outputs: that it ranked; images of the ranking that are not among them are left out.
    """
    ranking, row_of = report.ranking, {name: row for row, name in enumerate(outputs.image_ids)}
    control = set(ranking.control)
    shown = [
        (place, image_id)
        for place, image_id in enumerate(ranking.image_ids, start=1)
        if image_id in row_of and (place <= ranking.batch_size or image_id in control)
    ]
    chosen = outputs.probs[[row_of[image_id] for _, image_id in shown]]
    aleatoric, epistemic = uncertainties(chosen)
    means = chosen.mean(axis=1, dtype=np.float64).clip(0.0, 1.0)
    told = [
        ImageInsight(
            image_id=image_id,
            place=place,
            probs=dict(zip(outputs.classes, means[row].tolist(), strict=True)),
            score=ranking.scores[place - 1],
            aleatoric=float(aleatoric[row]),
            epistemic=float(epistemic[row]),
            control=image_id in control,
        )
        for row, (place, image_id) in enumerate(shown)
    ]
    pool = outputs.probs.mean(axis=1, dtype=np.float64)
    expected = pool.mean(axis=0).clip(0.0, 1.0) if len(pool) else np.zeros(len(outputs.classes))
    predicted = Counter(outputs.classes[index] for index in pool.argmax(axis=1).tolist())
    return RoundInsight(
        images=len(outputs.image_ids),
        expected=dict(zip(outputs.classes, expected.tolist(), strict=True)),
        predicted={name: predicted[name] for name in outputs.classes},
        batch=tuple(one for one in told if one.place <= ranking.batch_size),
        control=tuple(one for one in told if one.control),
    )
