"""What a project's page tells, through the app as it is served: a real Valkey, and a data folder of some weeks."""

import csv
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from ml_backend.config import Settings
from ml_backend.scheduling import RoundQueue
from ml_backend.server.app import create_app
from ml_backend.storage import RoundStore
from tests.system.owner_data import KEY, prepare

PAGE = f"/projects/{KEY}"


@pytest.fixture
def store(tmp_path: Path) -> RoundStore:
    return prepare(tmp_path)


@pytest.fixture
def client(store: RoundStore, queue: RoundQueue) -> Iterator[FlaskClient]:
    with create_app(Settings.load(data_dir=store.root), queue).test_client() as client:
        yield client


def figures(client: FlaskClient) -> dict[str, Any]:
    """What the page is made of, as a program gets it."""
    found: dict[str, Any] = client.get(PAGE).get_json()
    return found


def sections(client: FlaskClient) -> dict[str, str]:
    """The text of every section of the page, by its heading."""
    page = client.get(PAGE, headers={"Accept": "text/html"}).text
    found = re.findall(r"<section[^>]*>\s*<h2>(.*?)</h2>(.*?)</section>", page, re.DOTALL)
    return {head: " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split()) for head, body in found}


class TestSentences:
    """Each is made by a part of its own; here each stands in its place, whole."""

    def test_of_a_project_that_has_learned(self, client):
        told, found = sections(client), figures(client)

        stop, order, control = found["stopping"], found["fidelity"], found["control"]
        assert stop["sentence"].startswith(("Go on labelling: ", "Could stop"))
        assert stop["sentence"] in told["When to stop?"]
        for one in stop["evidence"]:
            assert one in told["When to stop?"]
        assert order["sentence"].startswith("399 of 400 answers came in the chosen order. The other: 1 opened by hand")
        assert order["sentence"] in told["Do readers get the chosen order?"]
        assert order["exceptions"][0]["why"] in told["Do readers get the chosen order?"]
        assert re.match(r"The network was right about \d+ of the last \d+ randomly drawn images", control["sentence"])
        assert control["sentence"] in told["Does it pay?"]
        assert "Until the first training" not in told

    def test_images_that_came_by_chance_are_in_curve_table_csv_and_evidence(self, client):
        told, control = sections(client), figures(client)["control"]

        last = control["running"][-1]
        share, low, high = (f"{100 * one:.0f}" for one in (last["correct"] / last["n"], last["low"], last["high"]))
        assert f"random images {share} %" in told["Is it learning?"]
        assert f"(95 % interval {low} to {high} %)" in told["Is it learning?"]
        assert f"{share} % ({low}–{high})" in told["Rounds"]
        rows = list(csv.DictReader(client.get(f"{PAGE}/rounds.csv").text.lstrip("\ufeff").splitlines()))
        assert [row["round"] for row in rows if row["control_accuracy"]] == [
            one["round_id"] for one in control["running"]
        ]
        assert "Randomly drawn images" in told["When to stop?"]

    def test_a_confusion_leads_to_its_images(self, client):
        """As many as the matrix counts, each of that label and prediction."""
        page = client.get(PAGE, headers={"Accept": "text/html"}).text
        cells = re.findall(r'href="\.\.(/projects/[^"]*/images\?label=(\w+)&amp;predicted=(\w+))"[^>]*>(\d+)<', page)
        counts = figures(client)["confusions"]["r000014"]

        assert {(label, name): int(n) for _, label, name, n in cells} == {
            (label, name): n for label, row in counts.items() for name, n in row.items() if n
        }
        for path, _, _, n in cells:
            assert f"<b>{n}</b> image" in client.get(unescape(path), headers={"Accept": "text/html"}).text

    def test_where_there_is_no_network_yet(self, tmp_path, queue):
        store = prepare(tmp_path, rounds=2)
        client = create_app(Settings.load(data_dir=store.root), queue).test_client()

        told, start = sections(client), figures(client)["start"]

        assert re.search(r"more 'normal'.* needed; at the rate so far about \d+ more images", start["sentence"])
        assert start["sentence"] in told["Until the first training"]
        assert "When to stop?" not in told
        assert "random images" not in str(told)

    def test_what_cannot_be_told_leaves_its_section_out_and_no_other(self, client, store):
        (store.project(KEY).folder / "tasks.sqlite").write_text("{")

        told = sections(client)

        assert "Do readers get the chosen order?" not in told
        assert "Does it pay?" not in told
        assert "When to stop?" in told
        assert "random images" not in told["Is it learning?"]
