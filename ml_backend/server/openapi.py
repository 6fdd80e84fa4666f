"""``/openapi.json``: OpenAPI 3.1, generated from the routes and the models that they read and write."""

import re
from collections.abc import Callable
from importlib.metadata import version
from inspect import getdoc, signature, unwrap
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from flask import Flask
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ml_backend.label_studio.formats import PROJECT_KEY, ErrorAnswer, Form

OPEN = "routes.health"
"""The one endpoint without credentials."""

NAME = "label-studio-active-learning"
VARIABLE = re.compile(r"<(?:[^<>:]*:)?([^<>:]+)>")
PARAMETERS = {"key": PROJECT_KEY, "round_id": "^[a-z0-9-]+$", "image_id": "^[A-Za-z0-9_-]+$"}
Json = dict[str, Any]


def types_of(view: Callable[..., Any]) -> tuple[type[BaseModel] | None, tuple[type, ...]]:
    """The model of a view's body (None if it reads none), and the types that it may return."""
    view = unwrap(view)
    hints = get_type_hints(view)
    returned = hints.pop("return")
    answers = get_args(returned) if get_origin(returned) is UnionType else (returned,)
    given = (hints[name] for name in signature(view).parameters)
    return next((hint for hint in given if isinstance(hint, type) and issubclass(hint, BaseModel)), None), answers


def describe(app: Flask) -> Json:
    """The document of an app."""
    routes = [(rule, app.view_functions[rule.endpoint]) for rule in app.url_map.iter_rules()]
    used: set[tuple[type[BaseModel], Literal["validation", "serialization"]]] = {(ErrorAnswer, "serialization")}
    for _, view in routes:
        body, answers = types_of(view)
        used |= {(body, "validation")} if body else set()
        used |= {(answer, "serialization") for answer in answers if issubclass(answer, BaseModel)}
    # By name: the order of a set differs from run to run.
    schemas, definitions = models_json_schema(
        sorted(used, key=lambda one: one[0].__name__), ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, Json] = {}
    for rule, view in sorted(routes, key=lambda one: one[0].rule):
        operation = _operation(view, schemas) | {
            "operationId": rule.endpoint.rpartition(".")[2],
            "parameters": [
                {
                    "name": name,
                    "in": "path",
                    "required": True,
                    "schema": {"type": "string", "pattern": PARAMETERS[name]},
                }
                for name in VARIABLE.findall(rule.rule)
            ],
        }
        if rule.endpoint == OPEN:
            operation["security"] = []
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            paths.setdefault(VARIABLE.sub(r"{\1}", rule.rule), {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": NAME, "version": version(NAME)},
        "servers": [{"url": "."}],  # relative to this document, which may lie behind a path
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {"password": {"type": "http", "scheme": "basic"}},
        },
        "security": [{"password": []}],
    }


def _operation(view: Callable[..., Any], schemas: Any) -> Json:
    body, answers = types_of(view)
    content: Json = {}
    for answer in answers:
        if issubclass(answer, BaseModel):
            content["application/json"] = {"schema": schemas[answer, "serialization"]}
        else:  # a page, metrics for Prometheus, this document
            content["*/*"] = {}
    error = {"application/json": {"schema": schemas[ErrorAnswer, "serialization"]}}
    operation: Json = {
        "summary": (getdoc(unwrap(view)) or "").partition("\n")[0],
        "responses": {"200": {"description": "done", "content": content}},
    }
    if body is not None:
        form = issubclass(body, Form)
        media = "application/x-www-form-urlencoded" if form else "application/json"
        operation["requestBody"] = {"required": True, "content": {media: {"schema": schemas[body, "validation"]}}}
        if form:
            operation["responses"] = {"303": {"description": "done; leads back to the page, which shows the outcome"}}
    operation["responses"]["default"] = {"description": "refused, with the reason", "content": error}
    return operation
