"""What the owner's pages show, in the words and figures that their templates put into place."""

from dataclasses import dataclass
from datetime import datetime

from markupsafe import Markup

from ml_backend.insight.lines import RoundLine
from ml_backend.insight.overview import BatchImage, Chosen, Overview
from ml_backend.insight.proof import ENOUGH
from ml_backend.insight.reasons import reason, reason_unseen
from ml_backend.label_studio.connect import ONE_CONNECTION
from ml_backend.label_studio.serving import ONE_INSTALLATION
from ml_backend.records import Connection, RoundReport
from ml_backend.server.figures import balance_figure, learning_series, legend, line_figure, recall_series
from ml_backend.server.now import REASONS, running, usual_seconds
from ml_backend.server.status import ProjectStatus
from ml_backend.storage.thumbnails import Thumbnails
from ml_backend.strategies import STRATEGIES

__all__ = ["Tile", "project_view", "round_view"]

NEWEST_ROUNDS = 12  # that stand open in the table
LISTED_EXCLUSIONS = 200


@dataclass(frozen=True, slots=True)
class Tile:
    """One image of a batch, as it is shown."""

    image_id: str
    place: int
    why: str
    control: bool
    predicted: str | None
    confidence: str | None
    picture: bool


def project_view(status: ProjectStatus, found: Overview, thumbnails: Thumbnails, now: float) -> dict[str, object]:
    """By the names that ``project.html`` uses.

    Args:
        status: what runs and what is served.
        found: what the rounds say.
        thumbnails: of the project.
        now: unix seconds.
    """
    queue, rounds = status.queue, found.rounds
    last = rounds[-1] if rounds else None
    progress = queue.progress
    learning, recall = learning_series(rounds, found.control), recall_series(rounds)
    insight = found.chosen.insight if found.chosen else None
    return {
        "status": status,
        "found": found,
        "state": status.state,
        "running": running(progress, usual_seconds(rounds), now) if queue.running and progress else None,
        "reasons": REASONS,
        "one_connection": ONE_CONNECTION,
        "one_installation": ONE_INSTALLATION,
        "threshold": _threshold(status),
        "last": last,
        "unlike": _knows_other_classes(status),
        "cold": _cold_start(status, last),
        "learning": line_figure("learning", "Accuracy and AU ROC over the labels", learning) if learning else None,
        "legend": legend(learning),
        "enough": ENOUGH,
        "recall": line_figure("recall", "Recall of each class over the labels", recall) if recall else None,
        "balance": _balance(last, insight.expected if insight else None),
        "insight": insight,
        "tiles": _tiles(found.chosen, thumbnails) if found.chosen else [],
        "control_tiles": _tiles(found.chosen, thumbnails, behind=True) if found.chosen else [],
        "strategies": STRATEGIES,
        "by_chance": {one.round_id: one for one in found.control.running} if found.control else {},
        "newest": list(reversed(rounds))[:NEWEST_ROUNDS],
        "older": list(reversed(rounds))[NEWEST_ROUNDS:],
        "moment": _moment,
    }


def round_view(
    connection: Connection, report: RoundReport, picked: Chosen, thumbnails: Thumbnails
) -> dict[str, object]:
    """By the names that ``round.html`` uses."""
    fit = report.fit
    return {
        "connection": connection,
        "report": report,
        "line": RoundLine.of(report),
        "fit": fit,
        "reasons": REASONS,
        "strategies": STRATEGIES,
        "tiles": _tiles(picked, thumbnails),
        "control_tiles": _tiles(picked, thumbnails, behind=True),
        "insight": picked.insight,
        "balance": _balance(RoundLine.of(report), picked.insight.expected if picked.insight else None),
        "exclusions": report.exclusions[:LISTED_EXCLUSIONS],
        "more_exclusions": max(len(report.exclusions) - LISTED_EXCLUSIONS, 0),
        "moment": _moment,
    }


def _threshold(status: ProjectStatus) -> int:
    """Changes that start the next round; 0 where none starts by itself."""
    if status.paused:
        return status.options.retrain_after if status.options and status.paused.threshold else status.paused.threshold
    if not status.queue.threshold:
        return 0
    # Redis learns of another number with the next event only.
    return status.options.retrain_after if status.options else status.queue.threshold


def _cold_start(status: ProjectStatus, last: RoundLine | None) -> list[tuple[str, int, int]] | None:
    """Class, labels, and how many are wanted; None where the next training waits for none."""
    standing, options = status.standing, status.options
    if standing is not None and options is not None:
        if standing.start is None:
            return None
        return [(name, count, options.min_labels_per_class) for name, count in standing.labels_per_class.items()]
    # Nothing was read yet, or there is a mistake in the question: as of the last round.
    if last is None or last.by_network:
        return None
    wanted = options.min_labels_per_class if options else last.min_labels_per_class
    return [(name, last.labels_per_class.get(name, 0), wanted) for name in last.classes]


def _knows_other_classes(status: ProjectStatus) -> bool:
    """Whether the question has changed since the newest network was trained."""
    if status.network is None or status.standing is None:
        return False
    return not status.network.knows(tuple(status.standing.labels_per_class))


def _balance(line: RoundLine | None, expected: dict[str, float] | None) -> Markup | None:
    if line is None or expected is None:
        return None
    return balance_figure("balance", line.labels_per_class, expected)


def _tiles(picked: Chosen, thumbnails: Thumbnails, *, behind: bool = False) -> list[Tile]:
    drawn = thumbnails.of_round(picked.round_id)
    return [_tile(one, picked.strategy, drawn) for one in (picked.control if behind else picked.batch)]


def _tile(image: BatchImage, strategy: str, drawn: frozenset[str]) -> Tile:
    said = image.said
    return Tile(
        image_id=image.image_id,
        place=image.place,
        why=reason_unseen(strategy, control=image.control) if said is None else reason(strategy, said),
        control=image.control,
        predicted=None if said is None else said.suggestion,
        confidence=None if said is None else f"{100 * said.confidence:.0f} %",
        picture=image.image_id in drawn,
    )


def _moment(value: datetime | str) -> str:
    """A moment to the minute, in UTC, as it stands in a sentence."""
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    return f"{moment:%Y-%m-%d %H:%M} UTC"
