"""``proof`` on a project with real rounds: its comparison, its output, and its refusal of too few labels."""

from datetime import datetime

import pytest

from ml_backend.analytics.evaluation import PROOF, ActiveAgainstRandom
from ml_backend.demo.options import draw_images
from ml_backend.demo.project import create_project
from ml_backend.label_studio.connect import read_label_config
from ml_backend.schemas import Connection, ProjectKey, PublishedRanking, RoundReport
from ml_backend.storage import RoundStore
from ml_backend.storage.project_state import Quarantine
from tests.system.live import SMALL_NETWORK, LiveProject

pytestmark = pytest.mark.system

PER_CLASS = 4
EACH_ROUND = 40
OPTIONS = SMALL_NETWORK | {
    "batch_size": 10,
    "reserve": "all",
    "noise_every": 0,
    "control_share": 0.5,
    "strategy": "entropy",
}


def label_first(project: LiveProject, round_: tuple[RoundReport, PublishedRanking]) -> tuple[set[str], set[str]]:
    """Label the first images of the served order; returns those of the holdout, and the others."""
    report, published = round_
    labelled = published.image_ids[:EACH_ROUND]
    project.label(labelled)
    holdout = set(report.ranking.control) & set(labelled)
    return holdout, set(labelled) - holdout


@pytest.fixture(scope="module")
def project(live_project) -> LiveProject:
    """Twelve labels from before the first network, and that network."""
    project: LiveProject = live_project(draw_images(120, seed=21, side=64), OPTIONS)
    project.label(project.first_of_each_class(PER_CLASS))
    project.train()
    return project


class TestProof:
    """One story, in the order of the tests."""

    def test_names_the_number_of_missing_labels(self, project):
        done = project.run("proof", "--project", str(project.id))

        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.splitlines()[-1] == (
            "ml-backend: 0 holdout images have a label, and 30 are needed: 30 more; at control_share=0.5 "
            "that takes about 60 more labels (so far 12 labels from before the first network, 0 chosen by it)"
        )
        assert project.store.project_record(PROOF, ActiveAgainstRandom) is None

    def test_compares_the_chosen_images_with_the_holdout(self, project):
        holdout, chosen = label_first(project, project.newest())
        more_holdout, more_chosen = label_first(project, project.train())
        holdout, chosen = holdout | more_holdout, chosen | more_chosen
        # Of an unlabelled image: the comparison, which reads labelled ones alone, must not remove it.
        quarantine = Quarantine(project.store.folder)
        with quarantine.settled():
            quarantine.enter(next(iter(project.images())), "file", "damaged", "planted", passing=False)
        listed, rounds = Quarantine(project.store.folder).listed(), project.store.round_ids()

        done = project.run("proof", "--project", str(project.id))

        assert done.returncode == 0, done.stderr
        found = project.store.project_record(PROOF, ActiveAgainstRandom)
        assert found is not None
        *table, sentence = done.stdout.splitlines()
        assert sentence == found.sentence
        # Every holdout image is predicted in one of five folds, and trained on in the other four at most.
        assert found.images == len(holdout) >= 30
        assert 3 * len(holdout) < sum(found.chosen) <= 4 * min(len(holdout), len(chosen))
        assert all(0 < n - extra <= 3 * PER_CLASS for n, extra in zip(found.labels, found.chosen, strict=True))
        assert found.active_correct - found.random_correct == found.only_active - found.only_random
        assert found.difference == pytest.approx((found.only_active - found.only_random) / found.images)
        assert found.low <= found.difference <= found.high
        assert table[0].split() == ["chosen", "random"]
        assert table[3].split()[-2:] == [str(found.active_correct), str(found.random_correct)]
        assert done.stderr.splitlines()[-1] == "10 of 10 networks trained"
        assert len(listed) == 1
        assert Quarantine(project.store.folder).listed() == listed
        assert project.store.round_ids() == rounds

    def test_its_sentence_is_on_the_owners_page(self, project):
        found = project.store.project_record(PROOF, ActiveAgainstRandom)
        assert found is not None

        assert found.sentence.split(" (")[0] in project.page().text

    def test_every_selection_can_be_replayed(self, project):
        done = project.run("replay", "--project", str(project.id))

        assert (done.returncode, done.stderr) == (0, "")
        assert [": same " in line for line in done.stdout.splitlines()] == [True] * len(project.store.round_ids())


def test_a_project_that_is_gone_from_label_studio(project, tmp_path):
    """It is still in the data folder: the backend looks once a minute."""
    client = project.client
    project_id, _ = create_project(client, "Soon gone", read_label_config("severity"))
    created = int(datetime.fromisoformat(client.project(project_id)["created_at"]).timestamp())
    client.send("DELETE", f"/api/projects/{project_id}/")
    key = ProjectKey(id=project_id, created=created)
    RoundStore(tmp_path).connect(
        Connection(project=key, hostname=client.url, label_config=read_label_config("severity"))
    )

    done = project.run("proof", "--project", str(project_id), AL_DATA_DIR=str(tmp_path))

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == (
        f"ml-backend: project {key} is gone: the Label Studio at {client.url} has no project {project_id} that the "
        "user of AL_LABEL_STUDIO_API_KEY may see"
    )
