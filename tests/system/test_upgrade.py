"""What a version with other formats left behind: another strategy then takes a training, and no round fails."""

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ml_backend.demo.options import draw_images
from ml_backend.model.checkpoint import FILE_NAME
from tests.system.owned import Owned

pytestmark = pytest.mark.system

OPTIONS: dict[str, object] = {
    "backbone": "resnet18",
    "weights": "none",
    "finetune": "head",
    "image_side": 64,
    "passes": 5,
    "epochs": 5,
    "batch_size": 4,
    "retrain_after": 1000,
    "min_labels_per_class": 2,
    "noise_every": 0,
    "strategy": "core_set",
}


@pytest.fixture(scope="module")
def owned(live_project, backend) -> Owned:
    owned = Owned.of(live_project, backend, draw_images(40, seed=3, side=64), OPTIONS)
    owned.label(owned.some_of_each_class(3))
    owned.trained()
    return owned


def written_by_another_version(owned: Owned, round_id: str) -> None:
    """Change the number of the format in everything that a round keeps of its network."""
    folder = owned.store.folder / "rounds" / round_id
    for path in folder.glob("*.npz"):
        with np.load(path) as arrays:
            kept = dict(arrays)
        np.savez(path, **(kept | {"format": np.array(0)}))
    path = folder / FILE_NAME
    with safe_open(path, framework="pt") as file:
        told = json.loads(file.metadata()["ml_backend"])
    save_file(load_file(path), path, metadata={"ml_backend": json.dumps(told | {"version": 0})})


@pytest.mark.parametrize("strategy", ["margin", "typiclust"])
def test_another_strategy_takes_a_training(owned, worker, strategy):
    """By passes, and by what only a network can look up: neither fails, and one line says why."""
    before = owned.newest()
    assert before is not None
    old = before[0].request.round_id
    written_by_another_version(owned, old)
    log = worker._log.read_text().splitlines()

    owned.connect(strategy=strategy)
    report, published = owned.wait_for(lambda report: report.ranking.strategy == strategy)

    assert (report.base, report.request.reason) == (None, "forced")
    assert report.fit is not None
    assert owned.served_first(strategy) == report.ranking.image_ids[0] == published.image_ids[0]
    said = [line for line in worker._log.read_text().splitlines()[len(log) :] if "the last network" in line]
    [line] = [line for line in said if f'"project":"{owned.store.folder.name}"' in line.replace(" ", "")]
    assert "the last network cannot rank anew: a round that learns takes its place" in line
    assert "was made for version 0, not 1" in line
    replayed = owned.run("replay", "--project", str(owned.id), "--round", old)
    assert "cannot be replayed" in replayed.stdout
    assert "is of format 0, and this version reads format 1" in replayed.stdout
