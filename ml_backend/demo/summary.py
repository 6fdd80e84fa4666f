"""What the demo shows: its progress, whether images were served in the chosen order, and a table of the rounds."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Self

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

from ml_backend.demo.readers import ServedImage, Submission
from ml_backend.schemas import FrozenModel, PublishedRanking, RoundReport


class View:
    """Progress of the demo: bars that are redrawn in place on a terminal, elsewhere a line per event.

    Attributes:
        is_live: whether the output is a terminal.
    """

    def __init__(self, console: Console) -> None:
        self.is_live = console.is_terminal
        self._console = console
        whole = Column(no_wrap=True)  # on a narrow terminal the bars give way, not the figures
        self._bars = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(table_column=whole),
            TimeElapsedColumn(table_column=whole),
            TimeRemainingColumn(table_column=whole),
            console=console,
            disable=not self.is_live,
        )
        self._tasks: dict[str, TaskID] = {}

    def print(self, what: RenderableType) -> None:
        """Print a line or a table that stays."""
        # Without markup: an error or a path may hold square brackets. In a log, a line is not wrapped.
        whole = isinstance(what, str) and not self.is_live
        self._console.print(what, markup=False, highlight=False, soft_wrap=whole)

    def step(self, name: str, done: int, total: int | None) -> None:
        """Show the progress of a step; it ends when ``done`` reaches ``total``, which is None while it is unknown."""
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total)
            if not self.is_live:
                self.print(f"{name} ...")
        task = next(task for task in self._bars.tasks if task.id == self._tasks[name])
        if task.finished and not self.is_live:
            return
        if done < task.completed:  # it began anew
            self._bars.reset(task.id, total=total)
        self._bars.update(task.id, completed=done, total=total)
        if task.finished and not self.is_live:
            self.print(f"{name}: done ({task.finished_time or 0.0:.1f} s)")

    def clear(self) -> None:
        """Remove all steps."""
        for task in self._tasks.values():
            self._bars.remove_task(task)
        self._tasks.clear()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()


@dataclass(slots=True)
class OrderCheck:
    """How the images served under a ranking compare with it.

    Attributes:
        served: images served under this ranking, without those of ``held``.
        in_order: those that were the first of the ranking that no reader had been served before.
        held: images that were on a reader's screen when the ranking came.
        deviations: a sentence for each of the others.
    """

    served: int = 0
    in_order: int = 0
    held: int = 0
    deviations: list[str] = field(default_factory=list)


def check_order(
    served: Sequence[ServedImage],
    rankings: Mapping[str, Sequence[str]],
    rereads: Mapping[str, Collection[str]] = {},
) -> dict[str, OrderCheck]:
    """Compare the served images with the published rankings.

    This observes what was served. ``analytics.order_audit`` infers it from stored annotations, and ``tests/system``
    compares the two.

    Args:
        served: all readers' images in the order in which Label Studio served them, from the first ranking on.
        rankings: version -> image ids in the order in which they should be served, oldest version first.
        rereads: version -> those of them that wait for another reader: once, for one who has not had them. They can be
            served just before the version is, since the tasks are opened first.

    Returns:
        One entry for each published version, and for each version that served without being published.

    Raises:
        ValueError: an image was served under no version.
    """
    checks = {version: OrderCheck() for version in rankings}
    taken: set[str] = set()
    again: set[tuple[str, str]] = set()  # (version or reader, image): served under it, or to them

    later = dict(pairwise(rankings))

    def front(version: str, opened: str, reader: str) -> str | None:
        def is_free(image: str) -> bool:
            if image in rereads.get(opened, ()):
                return again.isdisjoint({(opened, image), (reader, image)})
            return image not in taken

        return next(filter(is_free, rankings.get(version, ())), None)

    for event in served:
        if not event.versions:
            raise ValueError(f"image {event.image_id} was served to {event.reader} under no version: expected 1 or 2")
        # Around a publish either ranking may have served; the later one is tried first.
        expected = {
            version: event.holding or front(version, version, event.reader) for version in reversed(event.versions)
        }
        matching = [version for version, image in expected.items() if image == event.image_id]
        opened = later.get(event.versions[-1], "")
        if not matching and event.image_id in rereads.get(opened, ()):
            by_either = (front(one, opened, event.reader) for one in (event.versions[-1], opened))
            matching = [opened] * (event.image_id in by_either)
            again.add((opened, event.image_id))
        version = event.versions[-1] if event.holding or not matching else matching[0]
        taken.add(event.image_id)
        again.update((by, event.image_id) for by in (*event.versions, event.reader))
        check = checks.setdefault(version, OrderCheck())
        if event.holding and matching:
            check.held += 1
            continue
        check.served += 1
        if matching:
            check.in_order += 1
        else:
            first = expected[version]
            wanted = "no image of that ranking was left" if first is None else f"image {first} was first"
            check.deviations.append(
                f"{event.reader} was served image {event.image_id} under {' or '.join(event.versions)}, where {wanted}"
            )
    return checks


class Delay(FrozenModel):
    """Seconds from the label that started a round until Label Studio served its ranking.

    Attributes:
        submit_s: until Label Studio had answered the reader, including the webhook to the backend.
        queue_s: until the worker took the round; it may have to finish another one first.
        start_s: until the round began: a new process imports what it needs.
        stages_s: stages of the round, then the steps of its publishing for which readers wait.
        other_s: the rest, including the time until the demo saw the new version.
    """

    total_s: float
    submit_s: float
    queue_s: float
    start_s: float
    stages_s: dict[str, float]
    other_s: float


class RoundRow(FrozenModel):
    """A published round; values of the network are None where none was trained.

    Attributes:
        delay: None for a round that no label started: the project was connected, say.
    """

    round_id: str
    version: str
    strategy: str
    labels_per_class: dict[str, int]
    validation_images: int | None
    validation_accuracy: float | None
    validation_auroc: float | None
    training_s: float | None
    acquisition_s: float
    served: int
    in_order: int
    held: int
    deviations: tuple[str, ...]
    delay: Delay | None

    @classmethod
    def of(cls, report: RoundReport, published: PublishedRanking, order: OrderCheck, delay: Delay | None) -> "RoundRow":
        fit = report.fit
        return cls(
            round_id=report.request.round_id,
            version=published.version,
            strategy=report.ranking.strategy,
            labels_per_class=report.labels_per_class,
            validation_images=fit.validation_images if fit else None,
            validation_accuracy=fit.validation_accuracy if fit else None,
            validation_auroc=fit.validation_auroc if fit else None,
            training_s=report.seconds.get("train") if fit else None,
            acquisition_s=report.seconds.get("score", 0.0) + report.seconds.get("rank", 0.0),
            served=order.served,
            in_order=order.in_order,
            held=order.held,
            deviations=tuple(order.deviations),
            delay=delay,
        )


class Summary(FrozenModel):
    """Result of the demo; ``seconds`` is stage of the demo -> wall time."""

    address: str
    project: int
    images: int
    readers: int
    weights: str
    strategy: str
    seed: int
    seconds: dict[str, float]
    rounds: tuple[RoundRow, ...]

    @property
    def exact(self) -> bool:
        """Whether images were served, each being the first of the ranking in force."""
        return all(row.in_order == row.served for row in self.rounds) and any(row.served for row in self.rounds)


def measure_delay(
    submissions: Sequence[Submission],
    *,
    retrain_after: int,
    previous_claim: datetime | None,
    claim: datetime,
    report: RoundReport,
    published: PublishedRanking,
    visible_at: datetime,
) -> Delay | None:
    """Measure how long readers waited for a round.

    Args:
        submissions: all labels, oldest first.
        retrain_after: number of labels since the previous claim that starts a round.
        previous_claim: when the worker took the round before; None for the first.
        claim: when the worker took this one.
        report: of this round.
        published: of this round.
        visible_at: when Label Studio was first seen to serve its ranking.

    Returns:
        None where the round began with fewer labels.
    """
    since = [one for one in submissions if previous_claim is None or one.answered_at > previous_claim]
    if len(since) < retrain_after or since[retrain_after - 1].sent_at > claim:
        return None
    trigger = since[retrain_after - 1]
    # Label Studio answers the reader after the webhook: a free worker may have been faster.
    answered_at = min(trigger.answered_at, claim)
    submit_s = (answered_at - trigger.sent_at).total_seconds()
    queue_s = (claim - answered_at).total_seconds()
    start_s = (report.started_at - claim).total_seconds()
    total_s = (visible_at - trigger.sent_at).total_seconds()
    # Expired versions are deleted after readers see the new order.
    steps = {f"publish: {name}": s for name, s in published.seconds.items() if name != "delete"}
    stages_s = {name: s for name, s in report.seconds.items() if name != "publish"} | steps
    return Delay(
        total_s=total_s,
        submit_s=submit_s,
        queue_s=queue_s,
        start_s=start_s,
        stages_s=stages_s,
        other_s=total_s - submit_s - queue_s - start_s - sum(stages_s.values()),
    )


def summary_table(rows: Sequence[RoundRow], classes: Sequence[str]) -> Table:
    """The rounds as a table that fits into 80 columns."""
    table = Table(
        title="Rounds",
        caption="–: nothing was trained: random order, until two classes have the labels that a\n"
        "network needs, or ranked again by an earlier network\n"
        "(n): number of validation images, for AU ROC too\n"
        "+n: images that readers had on the screen when the ranking came",
        box=SIMPLE_HEAD,
    )
    headings = ("round", "labels\n" + "/\n".join(classes), "valid.\naccuracy", "valid.\nAU ROC", "training")
    for heading in (*headings, "acquisition", "served in\nthe order"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.round_id.lstrip("r0"),
            "/".join(str(row.labels_per_class[name]) for name in classes),
            "–" if row.validation_accuracy is None else f"{row.validation_accuracy:.2f} ({row.validation_images})",
            "–" if row.validation_auroc is None else f"{row.validation_auroc:.2f}",
            "–" if row.training_s is None else f"{row.training_s:.1f} s",
            "–" if row.training_s is None else f"{row.acquisition_s:.1f} s",
            f"{row.in_order}/{row.served}" + (f" +{row.held}" if row.held else ""),
            style=None if row.in_order == row.served else "red",
        )
    return table
