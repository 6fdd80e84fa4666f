"""Live rounds of every family of strategies keep their order, figures and manifest.

As in an installation: a worker's process, the server's endpoints, a Valkey, and a small Label Studio over HTTP.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from typer.testing import CliRunner

from tests.golden_entry import Settings, cli, create_app
from tests.golden_figures import check, digest, plain
from tests.golden_services import valkey
from tests.golden_studio import Studio, key, wait_until, worker

PROJECTS: dict[int, dict[str, object]] = {
    1: {"strategy": "entropy", "prelabel": True, "control_share": 0.2, "noise_every": 1},
    2: {"strategy": "batch_bald"},
    3: {"strategy": "core_set"},
    4: {"strategy": "badge"},
    5: {"strategy": "typiclust"},
    6: {"strategy": "mean_std", "committee": 3},
    7: {"strategy": "random"},
    8: {"strategy": "bald", "cold_start": "typiclust"},
}
FIT = ("epochs", "best_epoch", "train_images", "validation_images")
FIT_FIGURES = ("class_weights", "validation_loss", "validation_accuracy", "validation_auroc", "validation_recall")
MANIFEST = ("labels", "pool", "weights_from", "seed", "previous_round")


class Installation:
    """What the worker and the server share, and the server."""

    def __init__(self, data: Path, studio: Studio, client: FlaskClient) -> None:
        self.data, self.studio, self.client = data, studio, client

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        response = self.client.post(path, json=body)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.get_json()
        return answer

    def is_quiet(self) -> bool:
        queues = [one["queue"] for one in self.client.get("/").get_json()["projects"]]
        return not any(queue["running"] or queue["waiting"] for queue in queues)

    def rounds(self, project: int) -> list[Path]:
        return sorted((self.data / f"projects/{key(project)}/rounds").glob("r*"))


@pytest.fixture(scope="module")
def installation(tmp_path_factory):
    """Every project has had its first order and a training; the first one then another strategy."""
    folder = tmp_path_factory.mktemp("live")
    with valkey() as (_, url), Studio().serving() as studio:
        client = create_app(Settings(data_dir=folder / "data", redis_url=url)).test_client()
        found = Installation(folder / "data", studio, client)
        environ = {"AL_DATA_DIR": str(found.data), "AL_REDIS_URL": url, "AL_LABEL_STUDIO_URL": studio.url}
        with worker(environ, log := folder / "worker.log"):
            for project, options in PROJECTS.items():
                studio.add_project(project)
                found.post("/setup", studio.setup(project, options))
            wait_until(found.is_quiet, log)
            for project in PROJECTS:
                answer = found.post("/webhook", studio.event(project, studio.label(project, 20)))
                assert answer == {"action": "ANNOTATIONS_CREATED", "changes": 20, "outcome": "requested"}
            wait_until(found.is_quiet, log)
            found.post("/setup", studio.setup(1, PROJECTS[1] | {"strategy": "margin"}))
            wait_until(found.is_quiet, log)
        yield found


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text())


def one_round(folder: Path) -> dict[str, Any]:
    report, manifest = read(folder, "report"), read(folder, "manifest")
    ranking, fit = report["ranking"], report["fit"]
    return {
        "reason": report["request"]["reason"],
        "base": report.get("base"),
        "labels": report["labels_per_class"],
        "strategy": ranking["strategy"],
        "order": digest(ranking["image_ids"]),
        "first": ranking["image_ids"][:12],
        "scores": ranking["scores"][:12],
        "suggestions": digest(sorted(ranking["suggestions"].items())),
        "control": ranking["control"],
        "left out": [one["image_id"] for one in report["exclusions"]],
        "fit": None if fit is None else {name: fit[name] for name in (*FIT, *FIT_FIGURES)},
        "stages": list(report["seconds"]),
        "manifest": {name: manifest[name] for name in MANIFEST} | {"options": digest(manifest["options"])},
        "sealed": sorted(manifest["files"]),
        "files": sorted(path.name for path in folder.iterdir() if path.is_file()),
    }


# A processor with other vector instructions rounds otherwise: the order stays, and these digits of the scores.
def test_rounds(installation):
    found = {
        f"{project} {' '.join(map(str, options.values()))}": [one_round(one) for one in installation.rounds(project)]
        for project, options in PROJECTS.items()
    }

    check("rounds", found, rel=5e-4)


def test_what_label_studio_holds(installation):
    studio = installation.studio
    found = {
        str(project): {
            "served": studio.served(project),
            "versions": [version.rpartition("-")[0] for version in studio.predictions[project]],
            "last": studio.predictions[project][studio.rows[project]["model_version"]][-1] | {"model_version": ""},
        }
        for project in PROJECTS
    }

    check("served", found, rel=5e-4)


def test_predictions(installation):
    answer = installation.post("/predict", {"project": key(1), "tasks": [{"id": n} for n in range(1, 60, 9)]})
    for one in answer["results"]:
        one["model_version"] = "-".join(one["model_version"].split("-")[:3])

    check("predictions", answer, rel=5e-4)


def test_what_the_pages_tell(installation):
    page = installation.client.get(f"/projects/{key(1)}").get_json()
    told = {name: page[name] for name in ("chosen", "network", "standing", "stopping", "control")}
    noise = read(installation.rounds(1)[1], "noise")

    check("live-page", {"page": plain(told), "noise": noise}, rel=5e-4)


@pytest.mark.parametrize("project", [1, 2, 8])
def test_replay_comes_to_the_same(installation, project, monkeypatch):
    monkeypatch.setenv("AL_DATA_DIR", str(installation.data))
    monkeypatch.setenv("AL_DEVICE", "cpu")
    result = CliRunner().invoke(cli, ["replay", "--project", str(project), "--json"], catch_exceptions=False)

    assert [json.loads(line)["sound"] for line in result.stdout.splitlines() if line[0] == "{"] == [
        True for _ in installation.rounds(project)
    ]
