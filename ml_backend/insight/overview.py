"""Everything that one project's page tells, gathered from the store. What cannot be told is None, and hides nothing."""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import structlog

from ml_backend.consensus import RULES
from ml_backend.errors import BackendError
from ml_backend.insight.agreement import stored_marks, stored_noise
from ml_backend.insight.answers import Answer, answers_of
from ml_backend.insight.control import labels_by_origin
from ml_backend.insight.fidelity import OrderFidelity, order_fidelity
from ml_backend.insight.ground_truths import GroundTruths, ground_truths
from ml_backend.insight.history import StrategyChange, strategy_history
from ml_backend.insight.lines import Remembered, RoundLine, RoundLines
from ml_backend.insight.network import KnownNetwork, known_network
from ml_backend.insight.proof import PROOF_FILE, ActiveAgainstRandom, ControlEstimate, control_estimate
from ml_backend.insight.records import INSIGHT, ImageInsight, RoundInsight
from ml_backend.insight.standing import Standing, project_standing
from ml_backend.insight.start import StartEstimate
from ml_backend.insight.stopping import StopAdvice, stop_advice
from ml_backend.label_studio.duplicates import Duplicates, TaskImages
from ml_backend.label_studio.formats import LabelConfig, training_classes
from ml_backend.label_studio.labels import annotations_in
from ml_backend.label_studio.mirror import Mirror
from ml_backend.records import Record, RoundReport
from ml_backend.settings import ProjectOptions
from ml_backend.storage import ProjectStore
from ml_backend.storage.annotations import ReadingStore
from ml_backend.storage.briefs import RoundBrief
from ml_backend.storage.files import read_record
from ml_backend.storage.quarantine import Quarantine

__all__ = [
    "BatchImage",
    "Chosen",
    "KeptReading",
    "Memory",
    "Overview",
    "Question",
    "chosen",
    "control_so_far",
    "network_of",
    "overview",
    "standing_of",
]

SHOWN_IMAGES = 200  # of a batch
KEPT_PROJECTS = 200  # whose figures are remembered

T = TypeVar("T")
log = structlog.get_logger()


class BatchImage(Record):
    """An image of a batch, or one that stands in the order by chance.

    Attributes:
        place: in the ranking, from 1.
        said: what the network said of it; None where there was none, or that is not kept.
    """

    image_id: str
    place: int
    control: bool = False
    said: ImageInsight | None = None


class Chosen(Record):
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


class Overview(Record):
    """One project.

    Attributes:
        rounds: that can be read, oldest first.
        damaged: what is wrong with each of the others.
        changes: of the strategy, oldest first.
        chosen: by the round that is served; else by the last one.
        ground_truths: None where the project was not read yet; likewise ``duplicates``, the images in several tasks.
        start: what the next training waits for; see ``Standing``.
    """

    rounds: tuple[RoundLine, ...] = ()
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
    def mirror(self) -> Mirror | None:
        return self._store.mirror(Mirror)

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


def network_of(lines: Sequence[RoundLine]) -> KnownNetwork | None:
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
    lines: Sequence[RoundLine],
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
    project: ProjectStore, memory: Memory, reading: KeptReading, lines: Sequence[RoundLine]
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
