"""What label-studio-ml 2.0.1dev0 (its repository at d02cedf, 20 August 2026) does with a model class, written anew.

2.x is in no registry. Here is what our adapter meets of it: how the class is made at each request, which of its methods
the three routes call with what, and that its memory takes strings only. ``test_adapter.py`` runs on the real one where
``AL_LABEL_STUDIO_ML`` names a checkout.
"""

from typing import Any

from flask import Flask, Response, jsonify, request

_memory: dict[tuple[str, str], str] = {}


class LabelStudioMLBase:
    """A model of one project."""

    def __init__(self, project_id: str | None = None, label_config: str | None = None) -> None:
        self.project_id = project_id or ""
        if label_config is not None:
            self.set("label_config", label_config)
        if not self.get("model_version"):
            self.set("model_version", "0.0.1")
        self.setup()

    def setup(self) -> None:
        """For subclasses."""

    def get(self, key: str) -> str | None:
        return _memory.get((self.project_id, key))

    def set(self, key: str, value: str) -> None:
        if not isinstance(value, str):
            raise ValueError("Value must be a string")  # noqa: TRY004 - as it is there
        _memory[self.project_id, key] = value

    def set_extra_params(self, extra_params: Any) -> None:
        self.set("extra_params", extra_params)


def init_app(model_class: type[Any]) -> Flask:
    """The app, whose errors are answers of status 500 that give the error."""
    app = Flask(__name__)

    @app.post("/predict")
    def predict() -> Response:
        body = request.get_json()
        model = model_class(project_id=str(body.get("project")).split(".", 1)[0], label_config=body.get("label_config"))
        params = body.get("params", {})
        context = params.pop("context", {})
        return jsonify(results=model.predict(body.get("tasks"), context=context, **params) or [])

    @app.post("/setup")
    def setup() -> Response:
        body = request.get_json()
        model = model_class(project_id=body["project"].split(".", 1)[0], label_config=body.get("schema"))
        if extra_params := body.get("extra_params"):
            model.set_extra_params(extra_params)
        return jsonify(model_version=model.get("model_version"))

    @app.post("/webhook")
    def webhook() -> tuple[Response, int]:
        body = request.get_json()
        event = body.pop("action")
        if event not in {"ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATION_DELETED", "START_TRAINING"}:
            return jsonify(status="Unknown event"), 200
        model = model_class(str(body["project"]["id"]), label_config=body["project"]["label_config"])
        return jsonify(result=model.fit(event, body), status="ok"), 201

    @app.errorhandler(Exception)
    def failed(error: Exception) -> tuple[Response, int]:
        return jsonify(detail=f"{type(error).__name__}: {error}"), 500

    return app
