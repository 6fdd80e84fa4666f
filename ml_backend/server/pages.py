"""The owner's pages: one project, one round, its pictures and tables; and the buttons."""

import time
from collections.abc import Callable
from functools import wraps
from typing import Any, Final

import structlog
from flask import Blueprint, Response, jsonify, render_template, request

from ml_backend.errors import UnknownProject, UnknownRound
from ml_backend.insight.overview import KeptReading, chosen, control_so_far, overview
from ml_backend.records import Connection, RoundReport
from ml_backend.server.connections import connection_of
from ml_backend.server.forms import ACTIONS, SAID, act
from ml_backend.server.owner import project_view, round_view
from ml_backend.server.parts import parts, refreshing, relative_url, wants_page
from ml_backend.server.payloads import Form, ProjectAnswer, RoundAnswer, parse_key
from ml_backend.server.status import as_json, question_of, status_of
from ml_backend.server.tables import ranking_csv, rounds_csv
from ml_backend.storage import ProjectStore
from ml_backend.storage.thumbnails import Thumbnails

__all__ = ["FORMS", "pages"]

FORMS: Final = frozenset(f"pages.{action}" for action in ACTIONS)
"""The only routes to which a page in a browser may post."""

HTML: Final = "text/html; charset=utf-8"
CSV: Final = "text/csv; charset=utf-8"

log = structlog.get_logger()
pages = Blueprint("pages", __name__)


def _answers(view: Callable[..., Any]) -> Callable[..., Response]:
    """Says to Flask that a view answers itself; to ``openapi`` its own types say what stands in the answer."""

    @wraps(view)
    def answer(**variables: str) -> Response:
        answered: Response = view(**variables)
        return answered

    return answer


def _with_form(view: Callable[[str, Form], Response]) -> Callable[[str], Response]:
    """Reads the form that a button sends; one without a token has an empty one, which is refused like a wrong one."""

    @wraps(view)
    def answer(key: str) -> Response:
        return view(key, Form(token=request.form.get("token", "")))

    return answer


@pages.get("/projects/<key>")
@_answers
def project(key: str) -> ProjectAnswer | Response:
    """What one project is doing, and what came of its rounds; a page for a browser, JSON for anybody else."""
    connection, rounds = _project(key)
    question, _ = question_of(connection)
    reading = None if question is None else KeptReading(rounds.folder, question)
    status = status_of(connection, parts().store, parts().queue, parts().memory, reading)
    served = None if status.published is None else status.published.round_id
    found = overview(rounds, parts().memory, question, served, reading)
    if not wants_page():
        return jsonify(as_json(status) | found.model_dump(mode="json"))
    tokens = {action: parts().tokens.of(key, action) for action in ACTIONS}
    view = project_view(status, found, Thumbnails(rounds.folder), time.time())
    said = SAID.get(request.args.get("done", ""))
    return _page("project.html", view | refreshing(busy=status.busy) | {"tokens": tokens, "said": said})


@pages.get("/projects/<key>/rounds.csv")
def rounds_table(key: str) -> Response:
    """Every round of a project, one a row."""
    connection, rounds = _project(key)
    memory, (question, _) = parts().memory, question_of(connection)
    control = None if question is None else control_so_far(rounds, memory, question)
    return _csv_response(connection, "rounds", rounds_csv(memory.lines.of(rounds)[0], control))


@pages.get("/projects/<key>/rounds/<round_id>")
@_answers
def one_round(key: str, round_id: str) -> RoundAnswer | Response:
    """One round: what was asked, what was learned, and what it chose."""
    connection, rounds, report = _round(key, round_id)
    picked = chosen(rounds, report)
    if not wants_page():
        told = report.model_dump(
            mode="json", exclude={"ranking": {"image_ids", "scores", "suggestions", "confidences"}}
        )
        return jsonify({"project": key, "round": round_id, "report": told, "chosen": picked.model_dump(mode="json")})
    return _page("round.html", round_view(connection, report, picked, Thumbnails(rounds.folder)))


@pages.get("/projects/<key>/rounds/<round_id>.csv")
def ranking_table(key: str, round_id: str) -> Response:
    """The whole order of a round, one image a row."""
    connection, rounds, report = _round(key, round_id)
    return _csv_response(connection, round_id, ranking_csv(report, rounds.outputs(round_id)))


@pages.get("/projects/<key>/rounds/<round_id>/thumbs/<image_id>.jpg")
def picture(key: str, round_id: str, image_id: str) -> Response:
    """A small picture of an image that a round chose."""
    _, rounds = _project(key)
    content = Thumbnails(rounds.folder).read(round_id, image_id)
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
    connection, _ = _project(key)
    parts().tokens.require(key, action, form.token)
    said = act(action, connection, parts().store, parts().queue)
    log.info("button pressed", action=action, said=said)
    # 303: a reload of what comes next must not press the button again.
    return Response(status=303, headers={"Location": relative_url("pages.project", key=key, done=said)})


def _project(key: str) -> tuple[Connection, ProjectStore]:
    try:
        known = parse_key(key)
    except ValueError as error:
        raise UnknownProject(str(error)) from None
    return connection_of(known, parts().store), parts().store.project(known)


def _round(key: str, round_id: str) -> tuple[Connection, ProjectStore, RoundReport]:
    connection, rounds = _project(key)
    if round_id not in rounds.round_ids():
        raise UnknownRound(f"the project has no round {round_id[:60]!r}: its page lists them")
    return connection, rounds, rounds.report(round_id)


def _page(template: str, view: dict[str, object]) -> Response:
    return Response(render_template(template, **view), content_type=HTML)


def _csv_response(connection: Connection, name: str, text: str) -> Response:
    # With a byte order mark: without it a spreadsheet reads umlauts wrong.
    response = Response(f"\ufeff{text}", content_type=CSV)
    response.headers["Content-Disposition"] = f'attachment; filename="project-{connection.project.id}-{name}.csv"'
    return response
