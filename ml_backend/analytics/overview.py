"""Why an image was chosen, in one plain line that depends on the strategy. Torch-free.

Everything that one project's page tells, gathered from the store. What cannot be told is None, and hides nothing.
"""

import math
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import structlog

from ml_backend.analytics.agreement import stored_marks, stored_noise
from ml_backend.analytics.evaluation import (
    PROOF_FILE,
    ActiveAgainstRandom,
    ControlEstimate,
    control_estimate,
    labels_by_origin,
)
from ml_backend.analytics.history import (
    INSIGHT,
    Answer,
    GroundTruths,
    ImageInsight,
    KnownNetwork,
    Remembered,
    RoundInsight,
    RoundLines,
    RoundSummary,
    StrategyChange,
    answers_of,
    ground_truths,
    known_network,
    strategy_history,
)
from ml_backend.analytics.order_audit import OrderFidelity, order_fidelity
from ml_backend.analytics.standing import Standing, StartEstimate, project_standing
from ml_backend.analytics.stopping import StopAdvice, stop_advice
from ml_backend.config import ProjectOptions
from ml_backend.consensus import RULES
from ml_backend.errors import BackendError
from ml_backend.label_studio.formats import LabelConfig, training_classes
from ml_backend.label_studio.sync import Duplicates, TaskCache, TaskImages, annotations_in
from ml_backend.registry import STRATEGIES
from ml_backend.schemas import FrozenModel, RoundReport
from ml_backend.storage import ProjectStore
from ml_backend.storage.annotations import ReadingStore
from ml_backend.storage.atomic import read_record
from ml_backend.storage.quarantine import Quarantine
from ml_backend.storage.rounds import RoundBrief

CONTROL: Final = "by chance, to measure what the rest gains"

_UNSEEN: Final[dict[str, str]] = {
    "random": "by chance",
    "typiclust": "typical of a group of images that has no label yet",
    "core_set": "unlike every image that has a label",
}


def reason(strategy: str, image: ImageInsight) -> str:
    """Why a strategy put an image into its batch.

    Args:
        strategy: of the catalogue; of any other the score is told.
        image: what the network said of it.
    """
    if image.control:
        return CONTROL
    return _SEEN[strategy](image) if strategy in _SEEN else f"score {image.score:.3g}"


def reason_unseen(strategy: str, *, control: bool = False) -> str:
    """The same, where no network has looked at the image yet, or what it said is not kept."""
    if control:
        return CONTROL
    if strategy in _UNSEEN:
        return _UNSEEN[strategy]
    return STRATEGIES[strategy].summary if strategy in STRATEGIES else "what it said of it is not kept"


def _two_most_probable(image: ImageInsight) -> tuple[str, str]:
    # Stable: of equal classes the least severe comes first, as with ``suggestion``.
    ordered = sorted(image.probs.items(), key=lambda item: -item[1])
    told = [f"{name} {_percent(probability)}" for name, probability in ordered[:2]]
    return (told[0], told[1]) if len(told) > 1 else ("its classes", "none other")


def _disagreement(image: ImageInsight) -> str:
    return f"the passes disagree: {_of_the_most(image.epistemic, image)} of what is possible"


def _of_the_most(nats: float, image: ImageInsight) -> str:
    """Information in nats as a share of the most that a label can tell."""
    return _percent(nats / math.log(max(len(image.probs), 2)))


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


_ALIKE: Final = "differs from the others of its batch"
_SEEN: Final[dict[str, Callable[[ImageInsight], str]]] = {
    "badge": lambda _: f"{_ALIKE}: would teach the network something else than they do",
    "bald": _disagreement,
    "batch_bald": lambda image: f"{_ALIKE}: adds {_of_the_most(image.score, image)} of what a label can tell",
    "core_set": lambda image: f"{_ALIKE}: {image.score:.3g} from the nearest labelled or chosen image",
    "entropy": lambda image: "undecided between {} and {}".format(*_two_most_probable(image)),
    "least_confidence": lambda image: f"unsure of its own answer, {_two_most_probable(image)[0]}",
    "margin": lambda image: "hardly any margin between {} and {}".format(*_two_most_probable(image)),
    "mean_std": lambda image: f"the passes disagree: {100 * image.score:.0f} points about a class's probability",
    "power_bald": lambda image: f"{_disagreement(image)}; spread over the pool by chance",
    "random": lambda _: "by chance",
    "typiclust": lambda _: f"{_ALIKE}: typical of a group of images that has no label yet",
    "variation_ratios": lambda image: f"{_percent(image.score)} of the passes vote against the most voted class",
}

SHOWN_IMAGES = 200  # of a batch
KEPT_PROJECTS = 200  # whose figures are remembered

T = TypeVar("T")
log = structlog.get_logger()


class BatchImage(FrozenModel):
    """An image of a batch, or one that stands in the order by chance.

    Attributes:
        place: in the ranking, from 1.
        said: what the network said of it; None where there was none, or that is not kept.
    """

    image_id: str
    place: int
    control: bool = False
    said: ImageInsight | None = None


class Chosen(FrozenModel):
    """What one round chose.

    Attributes:
        strategy: that really ordered it: a round without a network is ordered by chance, say.
        batch: in the order of the ranking.
        control: those by chance that stand behind the batch.
        insight: what its network said of its pool; None where there was none.
    """

    round_id: str
    strategy: str
    batch: tuple[BatchImage, ...]
    control: tuple[BatchImage, ...] = ()
    insight: RoundInsight | None = None


class Overview(FrozenModel):
    """One project.

    Attributes:
        rounds: that can be read, oldest first.
        damaged: what is wrong with each of the others.
        changes: of the strategy, oldest first.
        chosen: by the round that is served; else by the last one.
        ground_truths: None where the project was not read yet; likewise ``duplicates``, the images in several tasks.
        start: what the next training waits for; see ``Standing``.
    """

    rounds: tuple[RoundSummary, ...] = ()
    damaged: tuple[str, ...] = ()
    changes: tuple[StrategyChange, ...] = ()
    chosen: Chosen | None = None
    fidelity: OrderFidelity | None = None
    start: StartEstimate | None = None
    stopping: StopAdvice | None = None
    control: ControlEstimate | None = None
    proof: ActiveAgainstRandom | None = None
    ground_truths: GroundTruths | None = None
    duplicates: Duplicates | None = None


class Question(NamedTuple):
    """How the project's annotations are read."""

    config: LabelConfig
    options: ProjectOptions


class Memory:
    """What one process remembers of any project, as long as the files that it was made from stay the same."""

    def __init__(self) -> None:
        self.lines = RoundLines()
        self.fidelity: Remembered[OrderFidelity | None] = Remembered(KEPT_PROJECTS)
        self.stopping: Remembered[StopAdvice] = Remembered(KEPT_PROJECTS)
        self.control: Remembered[ControlEstimate | None] = Remembered(KEPT_PROJECTS)
        self.labels: Remembered[tuple[GroundTruths, Duplicates]] = Remembered(KEPT_PROJECTS)
        self.standing: Remembered[Standing] = Remembered(KEPT_PROJECTS)


class KeptReading:
    """A project's tasks as they were last read: the file is opened once, by whoever needs it first, and never kept.

    Attributes:
        state: of what it tells; noted before the file is opened, so that what is written meanwhile counts as newer.
    """

    def __init__(self, folder: Path, question: Question) -> None:
        self.question = question
        self.state = (_changed(folder / "tasks.json"), _changed(folder / "same-content.json"), question)
        self._store = ReadingStore(folder)

    @cached_property
    def mirror(self) -> TaskCache | None:
        return self._store.mirror(TaskCache)

    @cached_property
    def images(self) -> TaskImages | None:
        """Of every task; None where nothing was read yet."""
        return None if self.mirror is None else TaskImages.of(self.mirror, self.question.config, self._store.digests())

    @cached_property
    def answers(self) -> list[Answer]:
        """Oldest first; none where nothing was read yet."""
        return [] if self.mirror is None else answers_of(self.mirror, *self.question)


def overview(
    project: ProjectStore,
    memory: Memory,
    question: Question | None = None,
    served: str | None = None,
    reading: KeptReading | None = None,
) -> Overview:
    """Gather what is known of a project. Never raises for a damaged round.

    Args:
        project: its store.
        memory: of this process.
        question: None where there is a mistake in the options, so that answers cannot be read.
        served: the round whose order is served; the last one where it is None or cannot be read.
        reading: by that question, where somebody needed it before.
    """
    found, damaged = memory.lines.of(project)
    shown = next((line for line in reversed(found) if line.round_id == served), found[-1] if found else None)
    # One for all parts, and no longer than for them: it may be megabytes.
    if reading is None and question is not None:
        reading = KeptReading(project.folder, question)
    standing = None if reading is None else standing_of(project, memory, reading)
    control = None if reading is None else _told(lambda: _control(project, memory, reading, found))
    labels = None if reading is None else _told(lambda: _labels(project, memory, reading))
    return Overview(
        rounds=tuple(found),
        damaged=tuple(damaged),
        changes=strategy_history(line.report for line in found),
        chosen=None if shown is None else _told(lambda: chosen(project, project.report(shown.round_id))),
        fidelity=None if reading is None else _told(lambda: _fidelity(project, memory, reading)),
        stopping=None if reading is None else _told(lambda: _stopping(project, memory, reading, found, control)),
        control=control,
        ground_truths=None if labels is None else labels[0],
        duplicates=None if labels is None else labels[1],
        proof=_told(lambda: read_record(project.folder / PROOF_FILE, ActiveAgainstRandom)),
        start=None if standing is None else standing.start,
    )


def chosen(project: ProjectStore, report: RoundReport) -> Chosen:
    """What a round chose, with what its network said of it as far as that is kept."""
    ranking, round_id = report.ranking, report.request.round_id
    insight = _told(lambda: project.record(round_id, INSIGHT, RoundInsight))
    said = {} if insight is None else {one.image_id: one for one in (*insight.control, *insight.batch)}
    control = set(ranking.control)
    images = [
        BatchImage(image_id=name, place=place, control=name in control, said=said.get(name))
        for place, name in enumerate(ranking.image_ids, start=1)
        if place <= min(ranking.batch_size, SHOWN_IMAGES) or name in control
    ]
    return Chosen(
        round_id=round_id,
        strategy=ranking.strategy,
        batch=tuple(one for one in images if one.place <= ranking.batch_size),
        control=tuple(one for one in images if one.place > ranking.batch_size)[:SHOWN_IMAGES],
        insight=insight,
    )


def control_so_far(project: ProjectStore, memory: Memory, question: Question) -> ControlEstimate | None:
    """What the images that came by chance say; None where there never were any, or that cannot be told."""
    lines, _ = memory.lines.of(project)
    return _told(lambda: _control(project, memory, KeptReading(project.folder, question), lines))


def _labels(project: ProjectStore, memory: Memory, reading: KeptReading) -> tuple[GroundTruths, Duplicates] | None:
    """What the owner must know of the labels and the images behind them."""
    if (known := memory.labels.get(project.folder, reading.state)) is not None:
        return known
    if reading.mirror is None or reading.images is None:
        return None
    counted = ground_truths(reading.mirror, *reading.question, reading.images), reading.images.count()
    return memory.labels.put(project.folder, reading.state, counted)


def network_of(lines: Sequence[RoundSummary]) -> KnownNetwork | None:
    """The newest network of these rounds, oldest first."""
    return known_network(RoundBrief.of(line.report) for line in lines)


def standing_of(project: ProjectStore, memory: Memory, reading: KeptReading) -> Standing | None:
    """How far the labelling is, by the last reading; None where there was none, or that cannot be told."""
    return _told(lambda: _standing(project, memory, reading))


def _standing(project: ProjectStore, memory: Memory, reading: KeptReading) -> Standing | None:
    network = network_of(memory.lines.of(project)[0])
    state = (_changed(project.folder / "quarantine.json"), reading.state, network)
    if (known := memory.standing.get(project.folder, state)) is not None:
        return known
    if reading.mirror is None:
        return None
    barred = {one.image_id: one.reason for one in Quarantine(project.folder).listed()}
    standing = project_standing(reading.mirror, *reading.question, reading.images, quarantined=barred, network=network)
    return memory.standing.put(project.folder, state, standing)


def _fidelity(project: ProjectStore, memory: Memory, reading: KeptReading) -> OrderFidelity | None:
    state = (_changed(project.folder / "orders"), reading.state)
    if (known := memory.fidelity.get(project.folder, state)) is not None:
        return known
    orders = project.orders()
    if not orders or reading.mirror is None:
        return None
    return memory.fidelity.put(project.folder, state, order_fidelity(orders, reading.answers))


def _stopping(
    project: ProjectStore,
    memory: Memory,
    reading: KeptReading,
    lines: Sequence[RoundSummary],
    control: ControlEstimate | None,
) -> StopAdvice | None:
    if all(line.fit is None for line in lines):
        return None
    newest = project.folder / "rounds" / lines[-1].round_id  # its noise is measured after it was published
    state = (len(lines), _changed(newest), reading.state, control)
    if (known := memory.stopping.get(project.folder, state)) is not None:
        return known
    marks = stored_marks(project)
    advice = stop_advice(
        marks,
        stored_noise(project, [one.round_id for one in marks]),
        batch_size=reading.question.options.batch_size,
        lead_times_s=[one.lead_time_s for one in reading.answers],
        control=control,
    )
    return memory.stopping.put(project.folder, state, advice)


def _control(
    project: ProjectStore, memory: Memory, reading: KeptReading, lines: Sequence[RoundSummary]
) -> ControlEstimate | None:
    if not any(line.report.request.control_share for line in lines):
        return None
    state = (len(lines), reading.state)
    if (known := memory.control.get(project.folder, state)) is not None:
        return known
    if reading.mirror is None:
        return None
    config, options = reading.question
    classes = training_classes(config, options)
    annotations, _ = annotations_in(reading.mirror, config, options, reading.images)
    found = ((line.round_id, _told(partial(project.record, line.round_id, INSIGHT, RoundInsight))) for line in lines)
    origin = labels_by_origin(
        [line.report for line in lines],
        {round_id: insight for round_id, insight in found if insight is not None},
        RULES[options.consensus](annotations, classes).labels,
        reading.answers,
    )
    return memory.control.put(project.folder, state, control_estimate(origin.control, classes, was_on=True))


def _changed(path: Path) -> int:
    """When something was last written there, in nanoseconds; 0: never."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _told(part: Callable[[], T]) -> T | None:
    """A part of the page; None where it cannot be told, which hides no other."""
    try:
        return part()
    except (BackendError, OSError, ValueError) as error:
        log.warning("a part of the page cannot be told", error=str(error))
        return None
