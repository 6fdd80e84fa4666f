"""One function a URL: its body in, its answer out. The types of a function are what ``openapi`` publishes of it."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import structlog
from flask import Blueprint, Response, current_app, jsonify, render_template, request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from ml_backend.records import ProjectKey
from ml_backend.server.connections import connect, connection_of, version
from ml_backend.server.events import receive
from ml_backend.server.health import degraded
from ml_backend.server.openapi import describe, types_of
from ml_backend.server.parts import parts, refreshing, wants_page
from ml_backend.server.payloads import (
    Event,
    HealthAnswer,
    PredictAnswer,
    PredictRequest,
    ProjectRow,
    SetupAnswer,
    SetupRequest,
    StatusAnswer,
    VersionsAnswer,
    VersionsRequest,
    WebhookAnswer,
    parse_body,
)
from ml_backend.server.predictions import predict
from ml_backend.server.status import as_json, statuses

__all__ = ["LARGEST_BODIES", "routes"]

LARGEST_BODIES = {"routes.webhook": 256 * 2**20, "routes.predictions": 32 * 2**20, "routes.setup": 4 * 2**20}
"""Bytes, by route; other bodies are small. An import of many tasks comes in one event, and Label Studio's own limit
for it is 250 MB."""

log = structlog.get_logger()
routes = Blueprint("routes", __name__)


def _in_json(view: Callable[..., Any]) -> Callable[[], Response]:
    """Reads the body that the view's parameter asks for, and writes the model that it returns."""
    body, _ = types_of(view)

    @wraps(view)
    def answer() -> Response:
        given = () if body is None else (parse_body(body, request.get_data()),)
        for read in given:
            _name_project(getattr(read, "project", None))
        answered = view(*given)
        return answered if isinstance(answered, Response) else jsonify(answered.model_dump(mode="json"))

    return answer


def _name_project(project: ProjectKey | ProjectRow | None) -> None:
    """In every line that is logged for this request from now on."""
    known = (project.key or project.id) if isinstance(project, ProjectRow) else project
    if known is not None:
        structlog.contextvars.bind_contextvars(project=str(known))


@routes.get("/health")
@_in_json
def health() -> HealthAnswer:
    """Whether the server is up; the only route without credentials."""
    return HealthAnswer(degraded=degraded(parts().store, parts().queue))


@routes.get("/")
@_in_json
def index() -> StatusAnswer | Response:
    """What every project is doing; a page for a browser, JSON for anybody else."""
    found = statuses(parts().store, parts().queue, parts().memory)
    if wants_page():
        busy = any(status.busy for status in found)
        page = render_template("status.html", statuses=found, **refreshing(busy=busy))
        return Response(page, content_type="text/html; charset=utf-8")
    return StatusAnswer(projects=[as_json(status) for status in found])


@routes.post("/setup")
@_in_json
def setup(body: SetupRequest) -> SetupAnswer:
    """Connect a project, or connect it again: it costs nothing."""
    return SetupAnswer(model_version=connect(body, parts().store, parts().queue))


@routes.post("/predict")
@_in_json
def predictions(body: PredictRequest) -> PredictAnswer:
    """What the last round said about some tasks; never a ranking."""
    connection = connection_of(body.project, parts().store)
    return PredictAnswer(results=predict([str(task.id) for task in body.tasks], connection, parts().store))


@routes.post("/webhook")
@_in_json
def webhook(event: Event) -> WebhookAnswer:
    """Take note of an event; a round starts when enough labels have changed."""
    parts().metrics.count_webhook(event.action)
    answer = receive(event, parts().store, parts().queue, request.host)
    log.info("webhook", action=event.action, **answer)
    return WebhookAnswer.model_validate({"action": event.action, **answer})


@routes.get("/versions")
@_in_json
def all_versions() -> VersionsAnswer:
    """The version that each project is served; Label Studio asks without naming a project."""
    store = parts().store
    return VersionsAnswer(versions=[version(connection.project, store) for connection in store.connections()])


@routes.post("/versions")
@_in_json
def versions(body: VersionsRequest) -> VersionsAnswer:
    """The version that a project is served, as label-studio-ml asks for it."""
    return VersionsAnswer(versions=[version(body.project, parts().store)])


@routes.get("/metrics")
def metrics() -> Response:
    """Counters and gauges for Prometheus."""
    return Response(generate_latest(parts().metrics.registry), content_type=CONTENT_TYPE_LATEST)


@routes.get("/openapi.json")
def openapi() -> Response:
    """The description of this server that you are reading."""
    return jsonify(describe(current_app))
