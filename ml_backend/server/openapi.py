"""What the server publishes about itself, at ``/openapi.json``: OpenAPI 3.1, made from the routes and their types.

Nothing of it is written by hand: the paths are those of the app, the bodies and answers those models that the routes
read and write.
"""

import re
from collections.abc import Callable, Mapping
from importlib.metadata import version
from inspect import getdoc, signature, unwrap
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from flask import Flask, Response
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from werkzeug.routing import Rule

from ml_backend.label_studio.payloads import PROJECT_KEY, ErrorAnswer, Form

OPEN = "routes.health"
"""The one endpoint that asks for no credentials."""

NAME = "label-studio-active-learning"
FORM = "application/x-www-form-urlencoded"
VARIABLE = re.compile(r"<(?:[^<>:]*:)?([^<>:]+)>")
PARAMETERS = {
    "key": {"pattern": PROJECT_KEY, "description": "<id>.<unix seconds of its creation>"},
    "round_id": {"pattern": "^[a-z0-9-]+$", "description": "of a saved round, r000001 say"},
    "image_id": {"pattern": "^[A-Za-z0-9_-]+$", "description": "Label Studio's task id"},
}
REFUSALS = {
    "400": "the body is not what Label Studio sends, names each wrong place; or an option of the project is wrong",
    "401": "user and password are wanted",
    "403": "the request comes from a page in a browser that is not ours, or a form that is old",
    "404": "the project is not connected, or there is no such round or picture",
    "405": "another method is wanted",
    "413": "the body is too large",
    "500": "the store refuses, or an unexpected error; the log says which",
    "503": "Redis does not answer",
}
Json = dict[str, Any]
Used = tuple[type[BaseModel], Literal["validation", "serialization"]]
References = Mapping[Any, Json]  # by what is used


def types_of(view: Callable[..., Any]) -> tuple[type[BaseModel] | None, tuple[type, ...]]:
    """The model of a view's body (None where it takes none), and the types that it may answer with."""
    view = unwrap(view)
    hints = get_type_hints(view)
    returned = hints.pop("return")
    answers = get_args(returned) if get_origin(returned) is UnionType else (returned,)
    given = (hints[name] for name in signature(view).parameters)
    return next((hint for hint in given if isinstance(hint, type) and issubclass(hint, BaseModel)), None), answers


def path_of(rule: Rule) -> str:
    """A rule's path as OpenAPI writes it: ``/projects/{key}``."""
    return VARIABLE.sub(r"{\1}", rule.rule)


def describe(app: Flask) -> Json:
    """The document of an app, with a path for each of its routes."""
    views = [(rule, app.view_functions[rule.endpoint]) for rule in app.url_map.iter_rules()]
    bodies = {body for _, view in views if (body := types_of(view)[0])}
    answers = {answer for _, view in views for answer in types_of(view)[1] if issubclass(answer, BaseModel)}
    used: list[tuple[type[BaseModel], Literal["validation", "serialization"]]] = [
        (body, "validation") for body in bodies
    ]
    used += [(answer, "serialization") for answer in {ErrorAnswer} | answers]
    # By name: the order of a set differs from run to run.
    references, schemas = models_json_schema(
        sorted(used, key=lambda one: one[0].__name__), ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, Json] = {}
    for rule, view in sorted(views, key=lambda one: one[0].rule):
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            paths.setdefault(path_of(rule), {})[method.lower()] = _operation(rule, view, references)
    return {
        "openapi": "3.1.0",
        "info": {"title": NAME, "version": version(NAME), "summary": "The backend that Label Studio talks to."},
        "servers": [{"url": "."}],  # relative to this document, which may lie behind a path
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"password": {"type": "http", "scheme": "basic"}},
        },
        "security": [{"password": []}],
    }


def _operation(rule: Rule, view: Callable[..., Any], references: References) -> Json:
    body, answers = types_of(view)
    told: Json = {
        "operationId": rule.endpoint.rpartition(".")[2],
        "summary": (getdoc(unwrap(view)) or "").partition("\n")[0],
        "responses": {"200": {"description": "done", "content": _content(answers, references)}},
    }
    if rule.arguments:
        told["parameters"] = [_parameter(name) for name in VARIABLE.findall(rule.rule)]
    refusals = dict(REFUSALS)
    if rule.endpoint == OPEN:
        told["security"] = []
        refusals = {code: refusals[code] for code in ("405", "413", "500")}
    if body is not None and issubclass(body, Form):
        told["requestBody"] = {"required": True, "content": {FORM: {"schema": references[body, "validation"]}}}
        told["responses"] = {"303": {"description": "done; leads back to the page, which says what came of it"}}
    elif body is not None:
        told["requestBody"] = {"required": True, "content": _json(references[body, "validation"])}
    error = _json(references[ErrorAnswer, "serialization"])
    told["responses"] |= {code: {"description": why, "content": error} for code, why in refusals.items()}
    return told


def _parameter(name: str) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"} | PARAMETERS[name]}


def _content(answers: tuple[type, ...], references: References) -> Json:
    content: Json = {}
    for answer in answers:
        if issubclass(answer, BaseModel):
            content |= _json(references[answer, "serialization"])
        elif issubclass(answer, Response):  # a page, figures for Prometheus, this document
            content["*/*"] = {}
    return content


def _json(schema: Any) -> Json:
    return {"application/json": {"schema": schema}}
