"""Whatever is sent, the answer is a clear refusal: never a 500, and never a stack trace."""

import io
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml_backend.server.app import LARGEST_BODIES
from tests.unit.server.memory import PAYLOADS, payload

GOOD = {"/setup": "setup", "/predict": "predict", "/webhook": "ANNOTATION_CREATED", "/versions": "setup"}
PATHS = st.sampled_from(sorted(GOOD))
KEYS = [
    "action",
    "project",
    "id",
    "created_at",
    "schema",
    "hostname",
    "extra_params",
    "tasks",
    "annotation",
    "label_config",
]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=2**60, max_value=2**70),
    st.floats(allow_nan=False),
    st.text(max_size=20),
    st.sampled_from(
        [
            "0001-01-01T00:00:00+14:00",
            "1970-01-01T00:00:00+14:00",
            "9999-12-31T23:59:59Z",
            "1.1",
            "9" * 5000,
            "\x00",
            "ANNOTATION_CREATED",
        ]
    ),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=8,
)
WORST = ["x" * 100_000, "\u202e\U0001f480\x00", 10**400, [[]] * 10_000, {"a" * 1000: {"b": {"c": {}}}}]
bounded = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def places(body, path=()):
    """Every place of a body, its containers included."""
    yield path
    items = body.items() if isinstance(body, dict) else enumerate(body) if isinstance(body, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def replaced(body, path, value):
    if not path:
        return value
    copy = body.copy()
    copy[path[0]] = replaced(body[path[0]], path[1:], value)
    return copy


def removed(body, path):
    if len(path) == 1:
        return (
            {key: value for key, value in body.items() if key != path[0]}
            if isinstance(body, dict)
            else [*body[: path[0]], *body[path[0] + 1 :]]
        )
    copy = body.copy()
    copy[path[0]] = removed(body[path[0]], path[1:])
    return copy


class TestMalformed:
    @given(path=PATHS, body=st.binary(max_size=200))
    @bounded
    def test_bytes(self, connected, path, body):
        assert connected.post(path, data=body).status_code == 400

    @given(path=PATHS, value=values)
    @bounded
    def test_any_json(self, connected, path, value):
        response = connected.post(path, data=json.dumps(value))

        assert response.status_code in {200, 400, 404}
        assert response.is_json

    @given(path=PATHS, data=st.data(), value=values)
    @bounded
    def test_a_good_body_with_one_wrong_place(self, connected, path, data, value):
        body = payload(GOOD[path])
        place = data.draw(st.sampled_from(list(places(body))))

        response = connected.post(path, data=json.dumps(replaced(body, place, value)))

        assert response.status_code in {200, 400, 404}
        assert response.is_json

    @pytest.mark.parametrize("path", sorted(GOOD))
    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"\xff\xfe",
            b'{"action": "\\ud800"}',
            b"[" * 100_000,
            b'{"action": NaN}',
            b"9" * 10_000,
            json.dumps({"project": "2." + "9" * 300, "schema": "<View/>", "hostname": "http://x"}).encode(),
        ],
    )
    def test_worst(self, connected, path, body):
        response = connected.post(path, data=body)

        assert response.status_code in ({400, 413} if len(body) > 65536 else {400})
        assert response.json["error"]

    @pytest.mark.parametrize(
        "extra",
        [
            "[" * 100_000,
            '{"a": "\\ud800"}',
            {"strategy": "\ud800"},
            {"\ud800": 1},
            {"passes": 10**400},
            {"passes": [[[{}]]]},
        ],
    )
    def test_worst_options(self, client, extra):
        response = client.post("/setup", data=json.dumps(payload("setup") | {"extra_params": extra}))

        assert response.status_code == 400

    def test_bombs_in_the_label_config(self, client):
        bomb = '<!DOCTYPE v [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><View>&b;</View>'

        assert client.post("/setup", json=payload("setup") | {"schema": bomb}).status_code == 400

    @pytest.mark.parametrize("chunked", [False, True])
    def test_too_large(self, client, monkeypatch, chunked):
        """Every route has its limit, whether the sender tells the length or not."""
        monkeypatch.setitem(LARGEST_BODIES, "routes.webhook", 1000)
        many = {"input_stream": io.BytesIO(b" " * 70_000), "environ_overrides": {"wsgi.input_terminated": True}}

        for path, limit in {"/webhook": 1000, "/versions": 65536}.items():
            response = client.post(path, **(many if chunked else {"data": b" " * 70_000}))

            assert response.status_code == 413
            assert f"larger than the {limit} bytes that {path} takes" in response.json["error"]

    @pytest.mark.parametrize("name", sorted(path.stem for path in PAYLOADS.glob("*.json")))
    @given(data=st.data(), value=values | st.just(None) | st.sampled_from(WORST))
    @settings(bounded, max_examples=40)
    def test_every_recorded_body_with_a_place_missing_or_wrong(self, connected, name, data, value):
        """Refused bodies are refused by the name of a field that is at, below or above the wrong place."""
        body = payload(name)
        place = data.draw(st.sampled_from([found for found in places(body) if found]))
        wrong = removed(body, place) if data.draw(st.booleans()) else replaced(body, place, value)

        response = connected.post(f"/{name}" if name in {"setup", "predict"} else "/webhook", data=json.dumps(wrong))

        assert response.status_code in {200, 400, 404}
        error = response.json.get("error", "")
        if "this is not what Label Studio sends" in error:
            assert str(place[0]) in error
