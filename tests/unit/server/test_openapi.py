"""The published document is the app: every route, and the models that it really reads and writes."""

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from ml_backend.server.openapi import OPEN, VARIABLE, describe
from tests.unit.server.memory import PAYLOADS, payload


def document(client):
    return client.get("/openapi.json").json


def body_schema(found, path):
    """The schema of a path's body, with the parts that it refers to."""
    schema = found["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return schema | {"components": found["components"]}


class TestDocument:
    def test_has_every_route_and_method(self, app, client):
        published = {(path, method.upper()) for path, ways in document(client)["paths"].items() for method in ways}

        assert published == {
            (VARIABLE.sub(r"{\1}", rule.rule), method)
            for rule in app.url_map.iter_rules()
            for method in rule.methods - {"HEAD", "OPTIONS"}
        }

    def test_is_openapi_3_1_and_the_same_every_time(self, app, client):
        assert document(client)["openapi"] == "3.1.0"
        assert describe(app) == describe(app)

    def test_every_recorded_body_is_one_that_it_allows(self, client):
        found = document(client)

        for file in PAYLOADS.glob("*.json"):
            path = f"/{file.stem}" if file.stem in {"setup", "predict"} else "/webhook"
            Draft202012Validator(body_schema(found, path)).validate(payload(file.stem))

    def test_says_who_needs_no_password(self, client):
        found = document(client)

        assert found["security"] == [{"password": []}]
        free = [path for path, ways in found["paths"].items() for way in ways.values() if way.get("security") == []]
        assert free == [f"/{OPEN.removeprefix('routes.')}"]
