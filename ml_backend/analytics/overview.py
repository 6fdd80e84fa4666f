"""Everything that a project's page shows, gathered from the store. A part that cannot be read is None, hiding nothing.

What tasks, answers and rounds show together is an ``Analysis``. At 100,000 tasks it takes seconds, so that it is kept
in the project's folder until one of its inputs changes; the reconciler refreshes it. A page that finds it out of date
does as well, except in a large project: its pages show what was true a minute ago.
"""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import fields
from functools import cache, partial
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import structlog
from pydantic import Field

from ml_backend.analytics.agreement import NOISE, stored_noise, stored_snapshots
from ml_backend.analytics.evaluation import (
    PROOF,
    ActiveAgainstRandom,
    HoldoutEstimate,
    holdout_estimate,
    stored_labels_by_origin,
)
from ml_backend.analytics.history import (
    HELD_OUT,
    INSIGHT,
    PREVIEWS,
    Answer,
    Confusion,
    GroundTruths,
    HeldOutPredictions,
    ImageInsight,
    RoundInsight,
    StrategyChange,
    StrategyPreviews,
    answers_of,
    ground_truths,
    known_network,
    stored_insights,
    strategy_history,
)
from ml_backend.analytics.order_audit import OrderFidelity, stored_fidelity
from ml_backend.analytics.readers import ReaderAgreement, RoundForesight, reader_agreement
from ml_backend.analytics.reading import ReadingProgress, reading_progress
from ml_backend.analytics.standing import Standing, StartEstimate, project_standing
from ml_backend.analytics.stopping import StopAdvice, seconds_an_image, stop_advice
from ml_backend.config import ProjectOptions
from ml_backend.consensus import adjudication, rule
from ml_backend.errors import BackendError
from ml_backend.label_studio.formats import LabelConfig, parse_label_config, training_classes
from ml_backend.label_studio.sync import Duplicates, TaskCache, TaskImages, annotations_in, tasks_version
from ml_backend.registry import STRATEGIES
from ml_backend.schemas import Annotation, Exclusion, FrozenModel, Label
from ml_backend.storage import ProjectStore, RankingHead, RoundSummary
from ml_backend.storage.rounds import HAND_PICKS, RankedImage

CONFUSIONS: Final = 20
"""Last rounds whose predictions for labelled images are counted: each is a file of all labels."""
LARGE: Final = 5_000
"""Tasks from which on the analysis takes more than a second, in which a server's other threads would hardly run."""
BACKGROUND_S: Final = 1800.0
"""For the analysis of a large project: an hour's worth of patience would hold the other projects up."""
R = TypeVar("R", bound=FrozenModel)
T = TypeVar("T")
log = structlog.get_logger()


class ProjectConfig(NamedTuple):
    """How the annotations of a project are read."""

    label_config: LabelConfig
    options: ProjectOptions


class Analysis(FrozenModel):
    """What the tasks, answers and rounds of a project show together.

    Attributes:
        inputs: digest of the state of everything that it was computed from.
        standing: None where the tasks were not read yet; likewise ``ground_truths``, ``duplicates`` (the images in
            several tasks) and ``reading``.
        fidelity: None before the first order.
        control: accuracy on holdout images; None where no round had a holdout.
        stopping: None before the first training.
        seconds_an_image: median time of an answer; None where none was measured.
        confusions: round -> labels against predictions of networks that were not trained on them, of the last rounds.
        answered: of the images that the newest rounds chose or previewed, those that no longer wait for a reader.
        readers: whether they agree; None where the tasks were not read yet.
        labels: of every labelled image, by its id.
        closed: images without a label that no reader is asked for: answered otherwise, skipped, copies, unreadable.
        published_left: published images that still wait for their first reader; None before the first order.
        rereads_left: those that still wait for another reader.
    """

    inputs: str
    standing: Standing | None = None
    ground_truths: GroundTruths | None = None
    duplicates: Duplicates | None = None
    reading: ReadingProgress | None = None
    fidelity: OrderFidelity | None = None
    control: HoldoutEstimate | None = None
    stopping: StopAdvice | None = None
    seconds_an_image: float | None = None
    confusions: dict[str, Confusion] = Field(default={})
    answered: frozenset[str] = frozenset()
    readers: ReaderAgreement | None = None
    labels: dict[str, str] = Field(default={})
    closed: frozenset[str] = frozenset()
    published_left: int | None = None
    rereads_left: int = 0


def analyse(
    project: ProjectStore, label_config: LabelConfig, options: ProjectOptions, *, refresh: bool = False
) -> Analysis:
    """The analysis of a project as it is stored now, computed where the kept one is out of date.

    Never raises for a damaged part: the log says what is missing.

    Args:
        project: its store.
        label_config: of the project.
        options: of its owner.
        refresh: compute that of a large project too, in a process of its own, which takes a core for a while; otherwise
            an older one is returned, and an empty one before the first.
    """
    kept = project.readings.analysis(Analysis)
    configured = ProjectConfig(label_config, options)
    if kept is not None and kept.inputs == _digest_of_inputs(project, configured, project.summaries()[0]):
        return kept
    if tasks_version(project.folder)[1] < LARGE:
        return _compute(project.folder, configured)
    if refresh:
        # By the config and options of the stored connection, which are these. -P: no module of the working directory.
        call = f"compute_in_background({str(project.folder.absolute())!r})"
        command = [sys.executable, "-P", "-c", f"from {__name__} import compute_in_background; {call}"]
        try:
            subprocess.run(command, check=True, timeout=BACKGROUND_S)  # noqa: S603
        except subprocess.SubprocessError as error:
            log.warning("the figures of a large project could not be computed", error=str(error))
        kept = project.readings.analysis(Analysis)
    return kept or Analysis(inputs="")


def compute_in_background(folder: str) -> None:
    """Compute and keep the analysis of a project, in a process made for it."""
    os.nice(10)
    connection = ProjectStore(Path(folder)).connection()
    if connection is not None:
        config = parse_label_config(connection.label_config)
        options = ProjectOptions.resolve(connection.extra_params, config.attributes)
        _compute(Path(folder), ProjectConfig(config, options))


def _compute(folder: Path, configured: ProjectConfig) -> Analysis:
    project = ProjectStore(folder)
    rounds, _ = project.summaries()
    kept = project.readings.analysis(Analysis)
    # Digested before anything is read, so that what is written meanwhile makes the result out of date.
    inputs = _digest_of_inputs(project, configured, rounds)
    found = _analysis(project, configured, rounds, inputs, {} if kept is None else kept.confusions)
    project.readings.keep_analysis(found)
    return found


def _digest_of_inputs(project: ProjectStore, configured: ProjectConfig, rounds: Sequence[RoundSummary]) -> str:
    config = {one.name: getattr(configured.label_config, one.name) for one in fields(configured.label_config)}
    state = (
        _version(),
        # The order of a set differs from process to process.
        {name: sorted(value) if isinstance(value, frozenset) else value for name, value in config.items()},
        configured.options.model_dump_json(),
        tasks_version(project.folder),
        project.states(("same-content", "quarantine", "published", HAND_PICKS)),
        [(one.round_id, one.report_bytes) for one in rounds],
        # Measured after the round was published; those of earlier rounds change no more.
        project.states((NOISE, PREVIEWS), rounds[-1].round_id) if rounds else None,
    )
    return blake2b(repr(state).encode(), digest_size=16).hexdigest()


@cache
def _version() -> str:
    return version("label-studio-active-learning")


def _analysis(
    project: ProjectStore,
    configured: ProjectConfig,
    rounds: Sequence[RoundSummary],
    inputs: str,
    counted: Mapping[str, Confusion],
) -> Analysis:
    config, options = configured
    mirror = project.readings.mirror(TaskCache)
    images = None if mirror is None else TaskImages.of(mirror, config, project.readings.digests())
    answers = [] if mirror is None else answers_of(mirror, config, options)

    @cache
    def read() -> tuple[list[Annotation], list[Exclusion]]:
        return ([], []) if mirror is None else annotations_in(mirror, config, options, images)

    labels = _readable(lambda: rule(options.consensus)(read()[0], training_classes(config, options)).labels) or ()

    insights = cache(lambda: stored_insights(project, _answered_images(labels, answers, images)))

    def holdout() -> HoldoutEstimate | None:
        if mirror is None or not any(one.request.control_share for one in rounds):
            return None
        classes = training_classes(config, options)
        return holdout_estimate(stored_labels_by_origin(project, labels, answers, insights()).control, classes)

    def stopping() -> StopAdvice | None:
        if all(one.fit is None for one in rounds):
            return None
        snapshots = stored_snapshots(project)
        return stop_advice(
            snapshots,
            stored_noise(project, [one.round_id for one in snapshots]),
            labels=options.retrain_after,
            images={one.round_id: one.fit.validation_images for one in rounds if one.fit is not None},
            left=None if now is None else now.left,
            seconds=seconds,
            control=control,
        )

    def standing() -> Standing | None:
        if mirror is None:
            return None
        quarantined = {one.image_id: one.reason for one in project.quarantine().listed()}
        network = known_network(rounds)
        return project_standing(mirror, config, options, images, quarantined=quarantined, network=network, read=read())

    def confusions() -> dict[str, Confusion]:
        last = project.rounds_with(HELD_OUT)[-CONFUSIONS:]
        # A saved round changes no more, and 20 of 20,000 images each take three seconds to read.
        read = partial(project.record, name=HELD_OUT, kind=HeldOutPredictions)
        records = {one: _readable(partial(read, one)) for one in last if one not in counted}
        fresh = {one: found.confusion() for one, found in records.items() if found is not None and found.images}
        known = {**counted, **fresh}
        return {one: known[one] for one in last if one in known}

    control, now = _readable(holdout), _readable(standing)
    published_left, rereads_left = _readable(partial(_published_left, project, mirror, images, answers)) or (None, 0)
    seconds = seconds_an_image([one.lead_time_s for one in answers])
    return Analysis(
        inputs=inputs,
        standing=now,
        ground_truths=None if mirror is None else _readable(lambda: ground_truths(mirror, config, options, images)),
        duplicates=None if images is None else images.count(),
        reading=None if mirror is None else reading_progress(answers),
        fidelity=None if mirror is None else _readable(partial(stored_fidelity, project, answers)),
        control=control,
        stopping=_readable(stopping),
        seconds_an_image=seconds,
        confusions=_readable(confusions) or {},
        answered=_readable(partial(_answered, project, mirror, images)) or frozenset(),
        readers=_readable(partial(_readers, project, configured, images, answers, read=read, insights=insights)),
        labels={one.image.id: one.value for one in labels},
        closed=_readable(partial(_closed, project, mirror, images, {one.image.id for one in labels})) or frozenset(),
        published_left=published_left,
        rereads_left=rereads_left,
    )


def _answered_images(labels: Iterable[Label], answers: Iterable[Answer], images: TaskImages | None) -> set[str]:
    """Images with a label or an answer; of an image in several tasks, the answers count together."""
    found = {one.image.id for one in labels} | {one.image_id for one in answers}
    return found if images is None else found | {str(images.copies(int(one))) for one in found if one.isdecimal()}


def _readers(
    project: ProjectStore,
    configured: ProjectConfig,
    images: TaskImages | None,
    answers: Sequence[Answer],
    *,
    read: Callable[[], tuple[list[Annotation], list[Exclusion]]],
    insights: Callable[[], dict[str, RoundInsight]],
) -> ReaderAgreement | None:
    if images is None:
        return None
    config, options = configured
    classes = training_classes(config, options)
    ordered = options.ordered(classes)
    several = len({one.rater for one in answers}) > 1  # else nothing further is read
    annotations = read()[0] if several else []
    tested = newest_record(project, HELD_OUT, HeldOutPredictions) if several else None
    return reader_agreement(
        answers,
        classes,
        ordered=ordered,
        ground_truth=options.ground_truth,
        image_of=lambda task: str(images.copies(int(task))),
        disputed=adjudication(annotations, classes, ordered),
        asked=() if tested is None else [one.image_id for one in tested[1].disagreements()],
        insights=insights() if several else {},
    )


def served_round(project: ProjectStore) -> str | None:
    """The round whose images are shown as chosen next: the one that is served, else the last."""
    published, ids = project.published(), project.round_ids()
    return published.round_id if published is not None and published.round_id in ids else ids[-1] if ids else None


def newest_record(project: ProjectStore, name: str, kind: type[R]) -> tuple[str, R] | None:
    """The newest round with a record of this name that can be read, and the record; the log names damaged ones."""
    for round_id in reversed(project.rounds_with(name)):
        if (found := _readable(partial(project.cached_record, round_id, name, kind))) is not None:
            return round_id, found
    return None


def _answered(project: ProjectStore, mirror: TaskCache | None, images: TaskImages | None) -> frozenset[str]:
    """Those of the images that pages show as chosen next, or in a preview, which no longer wait for a reader."""
    if mirror is None or images is None:
        return frozenset()
    served, previews = served_round(project), newest_record(project, PREVIEWS, StrategyPreviews)
    head = None if served is None else project.head(served)
    shown = [] if head is None else [one.image_id for one in (*head.batch, *head.behind)]
    if previews is not None:
        shown += [one.image_id for images in previews[1].first.values() for one in images]
    tasks = {int(name) for name in shown if name.isdecimal()} & mirror.tasks.keys()
    return frozenset(map(str, tasks.difference(images.waiting(mirror)[0], images.refused)))


def _closed(
    project: ProjectStore, mirror: TaskCache | None, images: TaskImages | None, labelled: Set[str]
) -> frozenset[str]:
    if mirror is None or images is None:
        return frozenset()
    waiting = {number for number in images.waiting(mirror)[0] if not mirror.tasks[number].annotations}
    unreadable = (one.image_id for one in project.quarantine().listed())
    return frozenset(map(str, mirror.tasks.keys() - waiting)).union(unreadable) - labelled


def _published_left(
    project: ProjectStore, mirror: TaskCache | None, images: TaskImages | None, answers: Sequence[Answer]
) -> tuple[int, int] | None:
    if mirror is None or images is None or (published := project.published()) is None:
        return None
    since = published.imported_at or published.published_at
    read_again = {one.image_id for one in answers if one.created_at > since}
    waiting = {str(number) for number in images.waiting(mirror)[0]}
    return len(waiting.intersection(published.image_ids)), len({*published.rereads} - read_again)


class BatchImage(RankedImage):
    """An image of a batch, or a holdout image behind it.

    Attributes:
        said: the network's prediction; None where there was no network, or it is not kept.
    """

    said: ImageInsight | None = None


class ChosenImages(FrozenModel):
    """The images that one round chose.

    Attributes:
        strategy: that ordered them: ``random`` before the first training, say.
        batch: in the order of the ranking.
        control: randomly drawn images behind the batch.
        insight: of its network on its pool; None where there was none.
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
        start: what the next training waits for; see ``Standing``.
        proof: the last comparison with random images, where one was made.
        confusions: see ``Analysis``.
        foresight: by round, whether the network's uncertainty foretold disagreement of readers; see ``readers``.
    """

    rounds: tuple[RoundSummary, ...] = ()
    damaged: tuple[str, ...] = ()
    changes: tuple[StrategyChange, ...] = ()
    chosen: ChosenImages | None = None
    fidelity: OrderFidelity | None = None
    start: StartEstimate | None = None
    stopping: StopAdvice | None = None
    control: HoldoutEstimate | None = None
    proof: ActiveAgainstRandom | None = None
    ground_truths: GroundTruths | None = None
    duplicates: Duplicates | None = None
    confusions: dict[str, Confusion] = Field(default={})
    foresight: tuple[RoundForesight, ...] = ()

    def as_json(self) -> dict[str, object]:
        """The same for a program, without what only the store needs."""
        internal = {"request": True, "began": True, "report_bytes": True}
        return self.model_dump(mode="json", exclude={"rounds": {"__all__": internal}})


def overview(project: ProjectStore, analysis: Analysis | None = None, served: str | None = None) -> Overview:
    """Gather what is known of a project. Never raises for a damaged round.

    Args:
        project: its store.
        analysis: of the project; None where label config or options are wrong, so that answers cannot be read.
        served: the round whose order is served; the last one where it is None or cannot be read.
    """
    rounds, damaged = project.summaries()
    shown = next((one for one in reversed(rounds) if one.round_id == served), rounds[-1] if rounds else None)
    analysis = analysis or Analysis(inputs="")
    return Overview(
        rounds=tuple(rounds),
        damaged=tuple(damaged),
        changes=strategy_history(rounds),
        chosen=None if shown is None else _readable(lambda: chosen_images(project, shown.round_id)),
        fidelity=analysis.fidelity,
        stopping=analysis.stopping,
        control=analysis.control,
        ground_truths=analysis.ground_truths,
        duplicates=analysis.duplicates,
        confusions=analysis.confusions,
        foresight=() if analysis.readers is None else analysis.readers.foresight,
        proof=_readable(lambda: project.project_record(PROOF, ActiveAgainstRandom)),
        start=None if analysis.standing is None else analysis.standing.start,
    )


def chosen_images(project: ProjectStore, round_id: str) -> ChosenImages:
    """The images that a round chose, with its network's predictions as far as they are kept.

    Raises:
        StorageError: the round cannot be read.
    """
    head: RankingHead = project.head(round_id)
    insight = _readable(lambda: project.cached_record(round_id, INSIGHT, RoundInsight))
    shown = {one.image_id for one in (*head.batch, *head.behind)}
    kept = () if insight is None else (*insight.control, *insight.batch)
    said = {one.image_id: one for one in kept if one.image_id in shown}

    def with_predictions(images: Sequence[RankedImage]) -> tuple[BatchImage, ...]:
        return tuple(BatchImage(**one.model_dump(), said=said.get(one.image_id)) for one in images)

    return ChosenImages(
        round_id=round_id,
        strategy=head.strategy,
        batch=with_predictions(head.batch),
        control=with_predictions(head.behind),
        insight=insight,
    )


def _readable(part: Callable[[], T]) -> T | None:
    """A part of the page; None where it cannot be read or computed, which hides no other."""
    try:
        return part()
    except (BackendError, OSError, ValueError) as error:
        log.warning("a part of the page cannot be shown", error=str(error))
        return None


UNDECIDED: Final = 0.25
"""Difference of the two highest probabilities from which on an image is no longer called undecided."""
CONTROL: Final = "drawn at random, as part of the holdout"

_UNSEEN: Final[dict[str, str]] = {
    "random": "drawn at random",
    "typiclust": "typical of a group of images without a label",
    "core_set": "unlike every labelled image",
    "herding": "represents images that no labelled one represents",
}


def reason(strategy: str, image: ImageInsight) -> str:
    """Why a strategy put an image into its batch, in a line.

    Args:
        strategy: of the registry; for any other the score is given.
        image: with the network's prediction.
    """
    if image.control:
        return CONTROL
    return _SEEN[strategy](image) if strategy in _SEEN else f"score {image.score:.3g}"


def reason_unseen(strategy: str, *, control: bool = False) -> str:
    """The same without a prediction: there was no network yet, or its predictions are not kept."""
    if control:
        return CONTROL
    if strategy in _UNSEEN:
        return _UNSEEN[strategy]
    return STRATEGIES[strategy].summary if strategy in STRATEGIES else "its predictions are not kept"


def _most_probable(image: ImageInsight) -> list[str]:
    # Stable: of equal classes the least severe comes first, as with ``suggestion``.
    ordered = sorted(image.probs.items(), key=lambda item: -item[1])
    return [f"{name} {_percent(probability)}" for name, probability in ordered]


def _undecided(image: ImageInsight) -> str:
    return _two_classes(image, "undecided between", "among the least certain:")


def _two_classes(image: ImageInsight, close: str, apart: str) -> str:
    """The two most probable classes; a strategy also has to choose where no image is close any more."""
    second, first = sorted(image.probs.values())[-2:]
    return f"{close if first - second < UNDECIDED else apart} {' and '.join(_most_probable(image)[:2])}"


def _disagreement(image: ImageInsight) -> str:
    return f"its prediction varies from pass to pass, by {_of_maximum(image.epistemic, image)} of the maximum"


def _of_maximum(nats: float, image: ImageInsight) -> str:
    """Information in nats as a share of the most that a label can hold; below 10 % with a digit more."""
    share = nats / math.log(max(len(image.probs), 2))
    return _percent(share) if share >= 0.0995 else f"{100 * share:.1f} %"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


_UNLIKE: Final = "differs from the others of its batch"
_SEEN: Final[dict[str, Callable[[ImageInsight], str]]] = {
    "badge": lambda _: f"{_UNLIKE}: its label would change the network in another direction",
    "bald": _disagreement,
    "batch_bald": lambda image: f"{_UNLIKE}: adds {_of_maximum(image.score, image)} of what a label can hold",
    "class_balanced": lambda image: f"{_undecided(image)}, in a batch that is divided over the classes",
    "core_set": lambda image: f"{_UNLIKE}: {image.score:.3g} from the nearest labelled or chosen image",
    "entropy": _undecided,
    "epig": lambda image: f"tells about the other images: {_of_maximum(image.score, image)} of what a label can hold",
    "herding": lambda _: f"{_UNLIKE}: represents images that no labelled one represents",
    "least_confidence": lambda image: f"least sure prediction: {_most_probable(image)[0]}",
    "margin": lambda image: _two_classes(image, "small margin between", "among the smallest margins:"),
    "mean_std": lambda image: f"its prediction varies from pass to pass, by {100 * image.score:.0f} points a class",
    "power_bald": lambda image: f"{_disagreement(image)}; spread over the pool at random",
    "random": lambda _: "drawn at random",
    "typiclust": lambda _: f"{_UNLIKE}: typical of a group of images without a label",
    "uherding": lambda _: "stands for uncertain images near it that no labelled image represents",
    "variation_ratios": lambda image: f"{_percent(image.score)} of the passes vote against the most voted class",
}
