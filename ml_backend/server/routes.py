"""One function a URL: read the body, ask, answer."""

from dataclasses import dataclass

import structlog
from flask import Blueprint, Response, current_app, jsonify, render_template, request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from ml_backend.queueing import RoundQueue
from ml_backend.server.connections import connect, connection_of, version
from ml_backend.server.events import receive
from ml_backend.server.metrics import Metrics
from ml_backend.server.payloads import Event, PredictRequest, SetupRequest, VersionsRequest, parse_body
from ml_backend.server.predictions import predict
from ml_backend.server.status import as_json, statuses
from ml_backend.storage import RoundStore

__all__ = ["Parts", "routes"]

log = structlog.get_logger()
routes = Blueprint("routes", __name__)


@dataclass(frozen=True, slots=True)
class Parts:
    """What the routes work with, one set an app."""

    store: RoundStore
    queue: RoundQueue
    metrics: Metrics


def _parts() -> Parts:
    parts: Parts = current_app.extensions["active-learning"]
    return parts


@routes.get("/health")
def health() -> Response:
    return jsonify(status="UP")


@routes.get("/")
def index() -> Response | str:
    found = statuses(_parts().store, _parts().queue)
    if request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html":
        return render_template("status.html", statuses=found)
    return jsonify(status="UP", projects=[as_json(status) for status in found])


@routes.post("/setup")
def setup() -> Response:
    body = parse_body(SetupRequest, request.get_data())
    return jsonify(model_version=connect(body, _parts().store, _parts().queue))


@routes.post("/predict")
def predictions() -> Response:
    body = parse_body(PredictRequest, request.get_data())
    connection = connection_of(body.project, _parts().store)
    results = predict([str(task.id) for task in body.tasks], connection, _parts().store)
    return jsonify(results=results)


@routes.post("/webhook")
def webhook() -> Response:
    event = parse_body(Event, request.get_data())
    _parts().metrics.count_webhook(event.action)
    answer = receive(event, _parts().store, _parts().queue)
    log.info("webhook", action=event.action, project=event.project.id if event.project else None, **answer)
    return jsonify(action=event.action, **answer)


@routes.get("/versions")
def all_versions() -> Response:
    """Label Studio asks without naming a project."""
    store = _parts().store
    return jsonify(versions=[version(connection.project, store) for connection in store.connections()])


@routes.post("/versions")
def versions() -> Response:
    body = parse_body(VersionsRequest, request.get_data())
    return jsonify(versions=[version(body.project, _parts().store)])


@routes.get("/metrics")
def metrics() -> Response:
    return Response(generate_latest(_parts().metrics.registry), content_type=CONTENT_TYPE_LATEST)
