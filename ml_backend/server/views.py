"""The owner's pages: one project, one round, pictures and tables as CSV; and the buttons."""

import csv
import io
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from functools import wraps
from itertools import chain, islice
from statistics import median
from typing import Any, Final

import structlog
from flask import Blueprint, Response, abort, jsonify, redirect, render_template, request
from markupsafe import Markup

from ml_backend.analytics.answers import (
    calibration_answer,
    confusion_answer,
    learning_answer,
    pays_answer,
    share_words,
)
from ml_backend.analytics.evaluation import MIN_HOLDOUT_IMAGES, HoldoutEstimate
from ml_backend.analytics.overview import (
    Analysis,
    BatchImage,
    ChosenImages,
    Overview,
    analyse,
    chosen_images,
    overview,
    reason,
    reason_unseen,
)
from ml_backend.analytics.readers import RoundForesight, estimate_words, foresight_answer, pooled
from ml_backend.charts import Interval, interval_chart, legend
from ml_backend.errors import UnknownProject, UnknownRound
from ml_backend.label_studio.connect import ONE_CONNECTION
from ml_backend.label_studio.formats import Form, ProjectAnswer, RoundAnswer, parse_key
from ml_backend.label_studio.publisher import ONE_INSTALLATION, Serving
from ml_backend.predictions import PoolPredictions
from ml_backend.registry import STRATEGIES, few_passes
from ml_backend.scheduling import Progress
from ml_backend.scheduling.connections import connection_of
from ml_backend.schemas import AFTER_A_ROUND, STAGES, Connection, RoundReport, RoundTrigger, harmless_cell, round_name
from ml_backend.server.actions import ACTIONS, MESSAGES, perform
from ml_backend.server.context import context, refreshing, relative_url, wants_page
from ml_backend.server.figures import balance_chart, calibration_chart, learning_lines, recall_lines, shares_chart
from ml_backend.server.status import ProjectStatus, config_of, project_name, status_of
from ml_backend.storage import ProjectStore, RankingHead, RoundSummary, Thumbnails

TRIGGERS: Final[dict[RoundTrigger, str]] = {
    "connected": "the project was connected, or its set-up was corrected",
    "images": "new images were imported",
    "labels": "enough labels changed",
    "forced": "a training was requested by hand",
    "topup": "readers need more images; nothing is trained",
    "rerank": "another strategy was chosen; nothing is trained, unless the last network cannot be used",
}
USUAL_ROUNDS: Final = 5
"""Last trained rounds whose median times predict the time left."""
NEWEST_ROUNDS: Final = 12
"""Rounds that the table shows unfolded."""
FORMS: Final = frozenset({*(f"pages.{action}" for action in ACTIONS), "pages.change_options", "pages.put_next"})
"""The only routes to which a page in a browser may post."""
HTML: Final = "text/html; charset=utf-8"
CSV: Final = "text/csv; charset=utf-8"
CSV_ROWS: Final = 1000  # that are sent together

log = structlog.get_logger()
pages = Blueprint("pages", __name__)


@dataclass(frozen=True, slots=True)
class Running:
    """Where a round is.

    Attributes:
        does: the stage as what the round does.
        done: share of the stage, 0 to 1.
        left_s: seconds that the round may still take; None where that is not known.
        silent_s: seconds since the last sign of progress.
    """

    does: str
    done: float
    left_s: float | None
    silent_s: float

    @property
    def left(self) -> str:
        """The time left in words."""
        return "not known" if self.left_s is None else duration(self.left_s)


def usual_seconds(rounds: Sequence[RoundSummary]) -> dict[str, float]:
    """Seconds that each stage took, the median of the last rounds that trained."""
    trained = [one.seconds for one in rounds if one.trained][-USUAL_ROUNDS:]
    stages = {stage for seconds in trained for stage in seconds}
    return {stage: median(seconds[stage] for seconds in trained if stage in seconds) for stage in stages}


def running(progress: Progress, usual: Mapping[str, float], now: float) -> Running:
    """Estimate the time left of a round.

    The current stage goes on at its rate so far; the stages after it take as long as usual.

    Args:
        progress: as the round last reported it.
        usual: seconds by stage.
        now: unix seconds.
    """
    elapsed = max(now - progress.stage_started, 0.0)
    done = min(max(progress.done / progress.total, 0.0), 1.0) if progress.total > 0 else 0.0
    return Running(
        does=STAGES.get(progress.stage, progress.stage),
        done=done,
        left_s=_left(progress.stage, done, elapsed, usual),
        silent_s=max(now - progress.updated, 0.0),
    )


def running_of(status: ProjectStatus, rounds: Sequence[RoundSummary], now: float) -> Running | None:
    """Where the round of a project is; None where none runs, or it has not reported yet."""
    queue = status.queue
    return running(queue.progress, usual_seconds(rounds), now) if queue.running and queue.progress else None


def _left(stage: str, done: float, elapsed: float, usual: Mapping[str, float]) -> float | None:
    by_rate = elapsed * (1 - done) / done if done > 0 else math.inf
    by_habit = max(usual[stage] - elapsed, 0.0) if stage in usual else math.inf
    here = by_rate if done > 0 else by_habit
    if stage == "train" and by_habit > 0:
        # Early stopping usually ends a training long before its last epoch.
        here = min(by_rate, by_habit)
    order = [name for name in STAGES if name not in AFTER_A_ROUND]
    later = order[order.index(stage) + 1 :] if stage in order else []
    if math.isinf(here) or (stage in {"labels", "train"} and "score" not in usual):
        return None
    return here + sum(usual.get(name, 0.0) for name in later)


def duration(seconds: float) -> str:
    """A duration in the unit that suits it."""
    if seconds < 1:
        return "less than a second"
    for size, name in ((86400.0, "day"), (3600.0, "hour"), (60.0, "minute")):
        if seconds >= 1.5 * size:
            return f"about {round(seconds / size)} {name}s"
    whole = max(round(seconds), 1)
    return f"about {whole} second{'' if whole == 1 else 's'}"


def ranking_csv(report: RoundReport, outputs: PoolPredictions | None) -> Iterator[str]:
    """A row for each image of a round's ranking, see ``csv_text``.

    Args:
        report: of the round.
        outputs: of its network; the columns of its predictions stay empty without one.
    """
    ranking = report.ranking
    classes = report.request.classes if outputs is None else outputs.classes
    means = {} if outputs is None else dict(zip(outputs.image_ids, outputs.probs.mean(axis=1), strict=True))
    control = set(ranking.control)

    def row(place: int, name: str, score: float) -> Sequence[object]:
        mean = means.get(name)
        predicted = "" if mean is None else classes[int(mean.argmax())]
        return (
            place,
            name,
            f"{score:.6g}",
            "yes" if name in control else "no",
            ranking.suggestions.get(name, predicted),
            *([""] * len(classes) if mean is None else [f"{p:.4f}" for p in mean]),
        )

    head = ["place", "image", f"score_{ranking.strategy}", "by_chance", "predicted", *(f"p_{name}" for name in classes)]
    images = zip(ranking.image_ids, ranking.scores, strict=True)
    return csv_text(head, (row(place, name, score) for place, (name, score) in enumerate(images, start=1)))


def rounds_csv(rounds: Sequence[RoundSummary], control: HoldoutEstimate | None = None) -> Iterator[str]:
    """A row for each round, oldest first.

    Args:
        rounds: of the project.
        control: accuracy on holdout images; its columns stay empty at rounds where they were too few.
    """
    estimates = {} if control is None else {one.round_id: one for one in control.running}
    classes = list(dict.fromkeys(name for one in rounds for name in one.classes))
    stages = list(dict.fromkeys(stage for one in rounds for stage in one.seconds))
    head = [
        *("round", "started_at", "reason", "strategy", "labels", "images", "batch", "by_chance", "excluded"),
        *("trained_on", "validated_on", "epochs", "accuracy", "auroc", "validation_loss"),
        *("control_images", "control_accuracy", "control_low", "control_high"),
        *(f"labels_{name}" for name in classes),
        *(f"recall_{name}" for name in classes),
        *(f"seconds_{stage}" for stage in stages),
    ]

    def row(one: RoundSummary) -> list[object]:
        fit, estimate = one.fit, estimates.get(one.round_id)
        trained: Sequence[object] = [""] * 6
        if fit is not None:
            trained = [fit.train_images, fit.validation_images, fit.epochs]
            trained += [fit.validation_accuracy, fit.validation_auroc, fit.validation_loss]
        return [
            *(one.round_id, one.started_at, one.reason, one.strategy, one.labels, one.images),
            *(one.batch_size, one.control, one.excluded),
            *trained,
            *([""] * 4 if estimate is None else (estimate.n, estimate.accuracy, estimate.low, estimate.high)),
            *(one.labels_per_class.get(name, "") for name in classes),
            *("" if fit is None else fit.validation_recall.get(name) for name in classes),
            *(one.seconds.get(stage, "") for stage in stages),
        ]

    return csv_text(head, map(row, rounds))


def csv_text(head: Sequence[object], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """A table as CSV, some rows at a time, without cells that a spreadsheet takes for a formula."""
    table = chain([head], rows)
    while part := [*islice(table, CSV_ROWS)]:
        file = io.StringIO()
        csv.writer(file).writerows([harmless_cell(cell) for cell in row] for row in part)
        yield file.getvalue()


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
    """The variables of ``project.html``.

    Args:
        status: of the project.
        found: its rounds.
        thumbnails: of the project.
        now: unix seconds.
    """
    rounds = found.rounds
    last = rounds[-1] if rounds else None
    learning, recall = learning_lines(rounds, found.control, found.proof), recall_lines(rounds, found.confusions)
    insight = found.chosen.insight if found.chosen else None
    answered = frozenset[str]() if status.analysis is None else status.analysis.answered
    tiles = _tiles(found.chosen, thumbnails, answered) if found.chosen else []
    published = None if status.analysis is None else status.analysis.published_left
    return {
        "status": status,
        "found": found,
        "running": running_of(status, rounds, now),
        "learns": learning_answer(rounds, status.options.retrain_after) if status.options else learning_answer(rounds),
        "calibration": calibration_answer(found.control),
        "calibration_chart": calibration_chart(found.control.bins) if found.control and found.control.bins else None,
        "confusion": _confusion(found),
        "pays": _pays(status, found) if last and status.fit else "",
        "last": last,
        "cold": _cold_start(status, last),
        "learning": shares_chart("learning", "Accuracy and AU ROC over the labels", learning) if learning else None,
        "legend": legend(learning),
        "enough": MIN_HOLDOUT_IMAGES,
        "recall": shares_chart("recall", "Recall of each class over the labels", recall) if recall else None,
        "balance": class_balance(found.chosen, rounds),
        "foresight": foresight_answer(found.foresight),
        "foresight_chart": foresight_chart(found.foresight),
        "insight": insight,
        "tiles": tiles,
        "behind": max((published or 0) - len(tiles), 0),
        "answered": len(found.chosen.batch) - len(tiles) if found.chosen else 0,
        "control_tiles": _tiles(found.chosen, thumbnails, answered, behind=True) if found.chosen else [],
        "estimates": {one.round_id: one for one in found.control.running} if found.control else {},
        "newest": list(reversed(rounds))[:NEWEST_ROUNDS],
        "older": list(reversed(rounds))[NEWEST_ROUNDS:],
    }


def round_view(
    line: RoundSummary,
    head: RankingHead,
    chosen: ChosenImages,
    thumbnails: Thumbnails,
    foresight: RoundForesight | None,
) -> dict[str, object]:
    """The variables of ``round.html``."""
    return {
        "line": line,
        "head": head,
        "fit": line.fit,
        "tiles": _tiles(chosen, thumbnails),
        "control_tiles": _tiles(chosen, thumbnails, behind=True),
        "insight": chosen.insight,
        "balance": class_balance(chosen, [line]),
        "few_passes": few_passes(line.strategy, int(str(line.request.options.get("passes", "1000"))), line.batch_size),
        "foresight": foresight,
        "more_put_off": line.put_off - len({one.image_id for one in head.put_off}),  # an image may have two reasons
        "more_left_out": (head.left_out_images or 0) - len(head.left_out),
    }


def foresight_chart(rounds: Sequence[RoundForesight]) -> Markup | None:
    """How well each part of the uncertainty foretold disagreement, over all rounds."""
    rows = [
        Interval(style, part, one.low, one.value, one.high, f"{estimate_words(one)}, n = {one.n}")
        for style, part in enumerate(("aleatoric", "epistemic"), start=1)
        if (one := pooled(getattr(each, part) for each in rounds)) is not None
    ]
    words = "; ".join(f"{row.name}: {row.words}" for row in rows)
    title = "Rank correlation of uncertainty and later disagreement"
    return interval_chart("foresight", title, words, rows, x_label="rank correlation") if rows else None


@dataclass(frozen=True, slots=True)
class ConfusionTable:
    """The newest network's labels against predictions; a row's recall is in words, with its interval."""

    round_id: str
    answer: str
    images: int
    rows: list[tuple[str, dict[str, int], str]]


def _confusion(found: Overview) -> ConfusionTable | None:
    last = next((one.round_id for one in reversed(found.rounds) if one.trained), "")
    if last not in found.confusions:
        return None
    counts, rows = found.confusions[last], list[tuple[str, dict[str, int], str]]()
    for label, row in counts.items():
        n = sum(row.values())
        rows.append((label, row, f"{share_words(row[label] / n, n)} of {n}" if n else "no image"))
    images = sum(sum(row.values()) for row in counts.values())
    return ConfusionTable(round_id=last, answer=confusion_answer(counts), images=images, rows=rows)


def _pays(status: ProjectStatus, found: Overview) -> str:
    if status.options is None or (status.standing is None and found.proof is None):
        return ""
    return pays_answer(
        found.control,
        found.proof,
        control_share=status.options.control_share,
        strategy=status.options.strategy,
        left=None if status.standing is None else status.standing.waiting,
    )


def _cold_start(status: ProjectStatus, last: RoundSummary | None) -> list[tuple[str, int, int]] | None:
    """Class, labels, and labels needed; None where the next training waits for none."""
    standing, options = status.standing, status.options
    if standing is not None and options is not None:
        if standing.start is None:
            return None
        return [(name, count, options.min_labels_per_class) for name, count in standing.labels_per_class.items()]
    # Nothing was read yet, or the label config is wrong: as of the last round.
    if last is None or last.by_network:
        return None
    needed = options.min_labels_per_class if options else last.min_labels_per_class
    return [(name, last.labels_per_class.get(name, 0), needed) for name in last.classes]


def class_balance(chosen: ChosenImages | None, rounds: Iterable[RoundSummary]) -> Markup | None:
    """The labels of the round that chose the images, and its estimate for its pool; None where one is not known."""
    if chosen is None or chosen.insight is None:
        return None
    line = next((one for one in rounds if one.round_id == chosen.round_id), None)
    return None if line is None else balance_chart(line.labels_per_class, chosen.insight.expected)


def _tiles(
    chosen: ChosenImages, thumbnails: Thumbnails, without: Set[str] = frozenset(), *, behind: bool = False
) -> list[Tile]:
    drawn = thumbnails.of_round(chosen.round_id)
    images = chosen.control if behind else chosen.batch
    return [_tile(one, chosen.strategy, drawn) for one in images if one.image_id not in without]


def _tile(image: BatchImage, strategy: str, drawn: frozenset[str]) -> Tile:
    said = image.said
    why = reason_unseen(strategy, control=image.control) if said is None else reason(strategy, said)
    return Tile(
        image_id=image.image_id,
        place=image.place,
        why=f"resembles a labelled image of {image.sought}" if image.sought else why,
        control=image.control,
        predicted=None if said is None else said.suggestion,
        confidence=None if said is None else f"{100 * said.confidence:.0f} %",
        picture=image.image_id in drawn,
    )


def _moment(value: datetime | str) -> Markup:
    """A moment to the minute, in UTC; ``times.js`` writes it in the browser's time zone."""
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    return Markup('<time datetime="{}">{:%Y-%m-%d %H:%M} UTC</time>').format(moment.isoformat("T", "seconds"), moment)


def _answers(view: Callable[..., Any]) -> Callable[..., Response]:
    """Hide a view's types from Flask, which cannot read them; ``openapi`` documents the answer by them."""

    @wraps(view)
    def answer(**variables: str) -> Response:
        answered: Response = view(**variables)
        return answered

    return answer


def _with_form(view: Callable[[str, Form], Response]) -> Callable[[str], Response]:
    """Read the form that a button sends; one without a token is refused like a wrong one."""

    @wraps(view)
    def answer(key: str) -> Response:
        return view(key, Form(token=request.form.get("token", "")))

    return answer


def names() -> dict[str, object]:
    """What every template may use."""
    return {
        "url_for": relative_url,
        "moment": _moment,
        "round_name": round_name,
        "several_rounds": lambda key: len(context().store.project(key).round_ids()) > 1,
        "triggers": TRIGGERS,
        "strategies": STRATEGIES,
        "one_connection": ONE_CONNECTION,
        "one_installation": ONE_INSTALLATION,
        "estimate_words": estimate_words,
    }


@pages.get("/times.js")
def times() -> Response:
    """The only script of the pages: it writes moments in the browser's time zone."""
    return Response(render_template("times.js"), content_type="text/javascript; charset=utf-8")


@pages.get("/projects/<key>")
@_answers
def project(key: str) -> ProjectAnswer | Response:
    """The state of one project and its rounds; a page for a browser, JSON for a program."""
    connection, rounds = find_project(key)
    status = status_of(connection, context().store, context().queue)
    found = overview(rounds, status.analysis, None if status.published is None else status.published.round_id)
    if not wants_page():
        return jsonify(status.as_json() | found.as_json())
    tokens = {action: context().tokens.of(key, action) for action in ACTIONS}
    view = project_view(status, found, rounds.thumbnails, time.time())
    said = MESSAGES.get(request.args.get("done", ""))
    return render("project.html", view | refreshing(busy=status.busy) | {"tokens": tokens, "said": said})


@pages.get("/projects/<key>/rounds.csv")
def rounds_table(key: str) -> Response:
    """Every round of a project, one a row."""
    connection, rounds = find_project(key)
    configured, _ = config_of(connection)
    control = None if configured is None else analyse(rounds, *configured).control
    return csv_response(connection, "rounds", rounds_csv(rounds.summaries()[0], control))


@pages.get("/projects/<key>/rounds/<round_id>")
@_answers
def one_round(key: str, round_id: str) -> RoundAnswer | Response:
    """One round: its request, its training, and the images that it chose."""
    connection, rounds = find_round(key, round_id)
    chosen = chosen_images(rounds, round_id)
    if not wants_page():
        without = {"ranking": {"image_ids", "scores", "suggestions", "confidences"}}
        dumped = rounds.report(round_id).model_dump(mode="json", exclude=without)
        return jsonify({"project": key, "round": round_id, "report": dumped, "chosen": chosen.model_dump(mode="json")})
    known = analysis.readers if (analysis := rounds.readings.analysis(Analysis)) else None
    foresight = next((one for one in known.foresight if one.round_id == round_id), None) if known else None
    line, head = rounds.summary(round_id), rounds.head(round_id)
    if head.left_out_images is None:  # as an older version saved it
        head = RankingHead.of(rounds.report(round_id))
    return render(
        "round.html", round_view(line, head, chosen, rounds.thumbnails, foresight) | {"connection": connection}
    )


@pages.get("/projects/<key>/rounds/<round_id>.csv")
def ranking_table(key: str, round_id: str) -> Response:
    """The whole order of a round, one image a row."""
    connection, rounds = find_round(key, round_id)
    report = rounds.report(round_id)
    return csv_response(connection, round_id, ranking_csv(report, rounds.outputs(round_id)))


@pages.get("/projects/<key>/rounds/<round_id>/thumbs/<image_id>.jpg")
def picture(key: str, round_id: str, image_id: str) -> Response:
    """A small picture of an image that a round chose."""
    _, rounds = find_project(key)
    content = rounds.thumbnails.read(round_id, image_id)
    if content is None:
        raise UnknownRound("there is no picture of this image; pictures are kept of the last 20 rounds")
    return Response(content, content_type="image/jpeg")


@pages.post("/projects/<key>/train")
@_with_form
def train(key: str, form: Form) -> Response:
    """Ask for a round at once, paused or not."""
    return _press("train", key, form)


@pages.post("/projects/<key>/topup")
@_with_form
def topup(key: str, form: Form) -> Response:
    """Publish more of the last order."""
    return _press("topup", key, form)


@pages.post("/projects/<key>/pause")
@_with_form
def pause(key: str, form: Form) -> Response:
    """Let no round start by itself."""
    return _press("pause", key, form)


@pages.post("/projects/<key>/resume")
@_with_form
def resume(key: str, form: Form) -> Response:
    """Let rounds start by themselves again."""
    return _press("resume", key, form)


def _press(action: str, key: str, form: Form) -> Response:
    connection, _ = find_project(key)
    context().tokens.require(key, action, form.token)
    said = perform(action, connection, context().store, context().queue)
    log.info("button pressed", action=action, said=said)
    # 303: reloading the next page must not press the button again.
    return Response(status=303, headers={"Location": relative_url("pages.project", key=key, done=said)})


def find_project(key: str) -> tuple[Connection, ProjectStore]:
    """A connected project, and its store.

    The number of a project leads to its page, where only one connected project has it.

    Raises:
        UnknownProject: there is none of this key.
    """
    try:
        known = parse_key(key)
    except ValueError:
        same = [str(one.project) for one in context().store.connections() if str(one.project.id) == key]
        if len(same) == 1 and request.method == "GET" and request.endpoint:
            query = request.args.to_dict() | (request.view_args or {}) | {"key": same[0]}
            abort(redirect(relative_url(request.endpoint, **query)))
        raise UnknownProject(f"there is no project {key[:60]!r}: the list of all projects leads to each") from None
    return connection_of(known, context().store), context().store.project(known)


def find_round(key: str, round_id: str) -> tuple[Connection, ProjectStore]:
    """A connected project that has a round.

    Raises:
        UnknownProject, UnknownRound: there is none.
    """
    connection, rounds = find_project(key)
    if round_id not in rounds.round_ids():
        raise UnknownRound(f"the project has no round {round_id[:60]!r}: its page lists them")
    return connection, rounds


def render(template: str, view: dict[str, object]) -> Response:
    """A page; of a connected project with its title as ``title``."""
    if isinstance(connection := view.get("connection"), Connection):
        seen = context().store.project(connection.project).readings.serving(Serving)
        view = {"title": project_name(connection, seen.title if seen else ""), **view}
    return Response(render_template(template, **view), content_type=HTML)


def csv_response(connection: Connection, name: str, text: Iterable[str]) -> Response:
    """A table as a file named after the project, sent while it is written."""
    # With a byte order mark: without it a spreadsheet reads umlauts wrong.
    response = Response(chain(["\ufeff"], text), content_type=CSV)
    response.headers["Content-Disposition"] = f'attachment; filename="project-{connection.project.id}-{name}.csv"'
    return response
