"""Files of a version with other formats: another strategy then starts a training, and no round fails."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ml_backend.demo.options import draw_images
from ml_backend.model.checkpoint import FILE_NAME
from tests.system.live import SMALL_NETWORK, LiveProject

pytestmark = pytest.mark.system

OPTIONS = SMALL_NETWORK | {"batch_size": 4, "noise_every": 0, "strategy": "core_set"}


@pytest.fixture(scope="module")
def project(live_project) -> LiveProject:
    project: LiveProject = live_project(draw_images(40, seed=3, side=64), OPTIONS)
    project.label(project.first_of_each_class(3))
    project.train()
    return project


def written_by_another_version(project: LiveProject, round_id: str) -> None:
    """Change the format number in all files that a round keeps of its network."""
    folder = project.store.folder / "rounds" / round_id
    for path in filter(Path.is_file, (folder / "outputs.npz", folder / "evidence.npz")):
        with np.load(path) as arrays:
            kept = dict(arrays)
        np.savez(path, **(kept | {"format": np.array(0)}))
    path = folder / FILE_NAME
    with safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()["ml_backend"])
    save_file(load_file(path), path, metadata={"ml_backend": json.dumps(metadata | {"version": 0})})


@pytest.mark.parametrize("strategy", ["margin", "typiclust"])
def test_another_strategy_starts_a_training(project, worker, strategy):
    """A strategy on passes, and one on features: neither fails, and one line of the log gives the reason."""
    old = project.newest()[0].request.round_id
    written_by_another_version(project, old)
    log = worker._log.read_text().splitlines()

    project.connect(strategy=strategy)
    report, published = project.wait_for(lambda report: report.ranking.strategy == strategy)

    assert (report.base, report.request.reason) == (None, "forced")
    assert report.fit is not None
    assert project.first_served(strategy) == report.ranking.image_ids[0] == published.image_ids[0]
    lines = [line for line in worker._log.read_text().splitlines()[len(log) :] if "the last network" in line]
    [line] = [line for line in lines if f'"project":"{project.store.folder.name}"' in line.replace(" ", "")]
    assert "the last network cannot rank again: a round with training takes its place" in line
    assert "was made for version 0, not 1" in line
    replayed = project.run("replay", "--project", str(project.id), "--round", old)
    assert "cannot be replayed" in replayed.stdout
    assert "is of format 0, and this version reads format 1" in replayed.stdout
