"""The pages, tables, JSON and metrics of a kept data folder show the figures that they have always shown.

``tests/data/golden/project.tar.xz`` was written by commit b5c99bf: project 7 has learned for nine rounds, with images
drawn at random among the chosen ones; project 8 has no network yet, and is paused.
"""

import csv
import io
import json
import re
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.golden_entry import Settings, create_app
from tests.golden_figures import check, digest, figures, plain, words
from tests.golden_services import unpack, valkey

LEARNED, COLD = "/projects/7.1795000000", "/projects/8.1795000100"
BROWSER = {"Accept": "text/html"}
QUEUE: dict[str, dict[str, Any]] = {
    "al:7.1795000000": {
        "changes": 13,
        "threshold": 20,
        "annotations": 471,
        "generation": 12,
        "rounds_finished": 11,
        "rounds_failed": 1,
    },
    "al:8.1795000100": {
        "changes": 2,
        "threshold": 20,
        "failures": 2,
        "not_before": 4102444800.5,
        "retry_reason": "labels",
        "rounds_finished": 2,
        "rounds_failed": 2,
        "error_reason": "labels",
        "last_error": json.dumps({"kind": "RoundError", "message": "the disk is full", "at": 1796000000.25}),
    },
}
JSON = {
    "index": "/",
    "learned": LEARNED,
    "cold": COLD,
    "round": f"{LEARNED}/rounds/r000012",
    "random round": f"{LEARNED}/rounds/r000002",
    "versions": "/versions",
    "health": "/health",
}
PAGES = [name for name in JSON if name not in ("versions", "health")]
TABLES = {
    "rounds": f"{LEARNED}/rounds.csv",
    "cold rounds": f"{COLD}/rounds.csv",
    "ranking": f"{LEARNED}/rounds/r000012.csv",
    "random ranking": f"{LEARNED}/rounds/r000002.csv",
}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    data = unpack("project", tmp_path_factory.mktemp("data"))
    with valkey() as (redis, url):
        for key, state in QUEUE.items():
            for field, value in state.items():
                redis.hset(key, field, value)
            redis.sadd("al:projects", key.removeprefix("al:"))
        yield create_app(Settings(data_dir=data, redis_url=url)).test_client()


def get(client: FlaskClient, path: str, **headers: str) -> str:
    response = client.get(path, headers=headers)
    assert response.status_code == 200, response.text
    return response.text


def test_json(client):
    check("json", {name: plain(json.loads(get(client, path))) for name, path in JSON.items()})


def sentences(page: str) -> list[str]:
    """The answers of a page, as they are read."""
    found = re.findall(r'<p class="(?:answer|verdict)">(.*?)</p>', page, re.DOTALL)
    return [" ".join(words(one).split()) for one in found]


def test_pages(client):
    pages = {name: get(client, JSON[name], **BROWSER) for name in PAGES}
    # Of a heading and what is below it; a token is drawn anew by every server.
    sections = {name: [figures(part) for part in re.split("<h[12]", page)[1:]] for name, page in pages.items()}
    links = {name: sorted(set(re.findall(r' (?:href|src|action)="([^"]+)"', page))) for name, page in pages.items()}

    answers = {name: sentences(page) for name, page in pages.items()}

    check("pages", {"answers": answers, "figures": sections, "links": links})


def test_tables(client):
    tables = {name: get(client, path) for name, path in TABLES.items()}
    rows = {name: list(csv.reader(io.StringIO(text.removeprefix("\ufeff")))) for name, text in tables.items()}

    check("tables", {name: {"digest": digest(found), "rows": found[:16]} for name, found in rows.items()})


def test_metrics(client):
    """Every sample and the type of its family, without which Python and which version answers."""
    get(client, "/")  # which compares the readers, as the reconciler does
    text = re.sub(r"(al_build_info)\{.*\}", r"\1", get(client, "/metrics"))
    types = [line.removeprefix("# TYPE ") for line in text.splitlines() if line.startswith("# TYPE ")]

    check("metrics", {"types": types, "samples": [line for line in text.splitlines() if line[0] != "#"]})


def test_addresses(client):
    described = json.loads(get(client, "/openapi.json"))["paths"]

    check("addresses", {path: sorted(methods) for path, methods in sorted(described.items())})
