"""``proof`` on a project that real rounds have ordered: what it compares, what it says, and when it says nothing."""

from datetime import datetime

import httpx
import pytest

from ml_backend.analytics.evaluation import ActiveAgainstRandom
from ml_backend.demo.options import draw_images, shipped_config
from ml_backend.demo.project import create_project
from ml_backend.schemas import Connection, ProjectKey, PublishedRanking, RoundReport
from ml_backend.storage import RoundStore
from ml_backend.storage.atomic import read_record
from ml_backend.storage.quarantine import Quarantine
from tests.system.owned import Owned

pytestmark = pytest.mark.system

PER_CLASS = 4
EACH_ROUND = 40
OPTIONS: dict[str, object] = {
    "backbone": "resnet18",
    "weights": "none",
    "finetune": "head",
    "image_side": 64,
    "passes": 5,
    "epochs": 5,
    "batch_size": 10,
    "reserve": "all",
    "retrain_after": 1000,
    "min_labels_per_class": 2,
    "noise_every": 0,
    "control_share": 0.5,
    "strategy": "entropy",
}


def first_of(owned: Owned, round_: tuple[RoundReport, PublishedRanking]) -> tuple[set[str], set[str]]:
    """Label the first images of what is served; those that stood there by chance, and the others."""
    report, published = round_
    given = published.image_ids[:EACH_ROUND]
    owned.label(given)
    by_chance = set(report.ranking.control) & set(given)
    return by_chance, set(given) - by_chance


@pytest.fixture(scope="module")
def owned(live_project, backend) -> Owned:
    """Twelve labels from before the first network, and that network."""
    owned = Owned.of(live_project, backend, draw_images(120, seed=21, side=64), OPTIONS)
    owned.label(owned.some_of_each_class(PER_CLASS))
    owned.trained()
    return owned


class TestProof:
    """One story: the tests stand in its order."""

    def test_with_too_little_to_tell_it_says_how_much_is_missing(self, owned):
        done = owned.run("proof", "--project", str(owned.id))

        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.splitlines()[-1] == (
            "ml-backend: 0 holdout images have a label, and 30 are needed: 30 more; at control_share=0.5 "
            "that takes about 60 more labels (so far 12 labels from before the first network, 0 chosen by it)"
        )
        assert not (owned.store.folder / PROOF).exists()

    def test_compares_what_was_chosen_with_what_came_by_chance(self, owned):
        first = owned.newest()
        assert first is not None
        chance, chosen = first_of(owned, first)
        more_chance, more_chosen = first_of(owned, owned.trained())
        chance, chosen = chance | more_chance, chosen | more_chosen
        # Of an image that waits: a comparison that looks at labelled ones alone must not strike it off.
        quarantine = Quarantine(owned.store.folder)
        with quarantine.settled():
            quarantine.enter(next(iter(owned.project.images())), "file", "damaged", "planted", passing=False)
        listed, rounds = Quarantine(owned.store.folder).listed(), owned.store.round_ids()

        done = owned.run("proof", "--project", str(owned.id))

        assert done.returncode == 0, done.stderr
        found = read_record(owned.store.folder / PROOF, ActiveAgainstRandom)
        assert found is not None
        *table, sentence = done.stdout.splitlines()
        assert sentence == found.sentence
        # Every control image is asked about in one of five folds, and learned from in the other four at most.
        assert found.images == len(chance) >= 30
        assert 3 * len(chance) < sum(found.chosen) <= 4 * min(len(chance), len(chosen))
        assert all(0 < n - extra <= 3 * PER_CLASS for n, extra in zip(found.labels, found.chosen, strict=True))
        assert found.active_correct - found.random_correct == found.only_active - found.only_random
        assert found.difference == pytest.approx((found.only_active - found.only_random) / found.images)
        assert found.low <= found.difference <= found.high
        assert table[0].split() == ["chosen", "random"]
        assert table[3].split()[-2:] == [str(found.active_correct), str(found.random_correct)]
        assert done.stderr.splitlines()[-1] == "10 of 10 networks trained"
        assert len(listed) == 1
        assert Quarantine(owned.store.folder).listed() == listed
        assert owned.store.round_ids() == rounds

    def test_its_sentence_stands_on_the_owners_page(self, owned, backend):
        found = read_record(owned.store.folder / PROOF, ActiveAgainstRandom)
        assert found is not None
        key = owned.store.connection().project

        page = httpx.get(f"{backend.url}/projects/{key}", auth=(backend.user, backend.password), timeout=30)

        assert page.status_code == 200
        assert found.sentence.split(" (")[0] in page.text

    def test_and_every_selection_comes_out_again(self, owned):
        done = owned.run("replay", "--project", str(owned.id))

        assert (done.returncode, done.stderr) == (0, "")
        assert [": same " in line for line in done.stdout.splitlines()] == [True] * len(owned.store.round_ids())


def test_a_project_that_is_gone_from_label_studio(owned, tmp_path):
    """It is still in the data folder: the backend looks once a minute."""
    client = owned.project.client
    project_id, _ = create_project(client, "Soon gone", shipped_config("severity"))
    created = int(datetime.fromisoformat(client.project(project_id)["created_at"]).timestamp())
    client.send("DELETE", f"/api/projects/{project_id}/")
    key = ProjectKey(id=project_id, created=created)
    RoundStore(tmp_path).connect(Connection(project=key, hostname=client.url, label_config=shipped_config("severity")))

    done = owned.run("proof", "--project", str(project_id), AL_DATA_DIR=str(tmp_path))

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == (
        f"ml-backend: project {key} is gone: the Label Studio at {client.url} has no project {project_id} that the "
        "user of AL_LABEL_STUDIO_API_KEY may see"
    )
