"""How the newest order stands to what the owner has chosen."""

from pathlib import Path

import numpy as np
import pytest

from ml_backend.analytics.order_audit import order_state
from ml_backend.config import ProjectOptions
from ml_backend.predictions import PoolPredictions
from ml_backend.schemas import PublishedRanking, RoundReport
from ml_backend.storage import ProjectStore
from tests.fakes import CLASSES, NOON, make_fit, make_report, make_request

OUTPUTS = PoolPredictions(("1", "2"), CLASSES, np.full((2, 2, 3), 1 / 3, dtype=np.float32))
CHOSEN = ProjectOptions(strategy="entropy", batch_size=3)


class Network:
    """Saves a file as a learner does; a committee's lies a folder deeper."""

    def save(self, folder: str) -> None:
        place = Path(folder) / "network-1"
        place.mkdir()
        (place / "model.safetensors").write_bytes(b"weights")


def trained(round_id: str = "r000001", **request: object) -> RoundReport:
    asked = make_request(**({"round_id": round_id, "strategy": "entropy"} | request))
    return make_report(round_id).model_copy(update={"request": asked, "fit": make_fit()})


def serve(project: ProjectStore, round_id: str = "r000001", *, wholly: bool = True) -> None:
    seconds = {"import": 1.0, "delete": 1.0} if wholly else {"import": 1.0}
    project.set_published(
        PublishedRanking(version="v", round_id=round_id, image_ids=("2",), seconds=seconds, published_at=NOON)
    )


@pytest.fixture
def project(tmp_path) -> ProjectStore:
    return ProjectStore(tmp_path)


@pytest.fixture
def served(project: ProjectStore) -> ProjectStore:
    """A trained round by entropy, with its passes and its network, that readers are served."""
    project.save(trained(), OUTPUTS, Network())
    serve(project)
    return ProjectStore(project.folder)


class TestOrderStanding:
    def test_no_round(self, project):
        standing = order_state(project, CHOSEN, CLASSES)

        assert (standing.verdict, standing.due) == ("next round", False)
        assert standing.why == "no network has ranked the images yet"

    def test_a_round_of_the_cold_start(self, project):
        project.save(make_report(), None, None)

        assert order_state(project, CHOSEN, CLASSES).verdict == "next round"

    def test_a_cold_start_that_began_anew_is_not_ranked_by_the_old_network(self, served):
        """Labels were deleted, and the classes have too few again."""
        served.save(make_report("r000002"), None, None)

        assert not order_state(served, ProjectOptions(strategy="bald"), CLASSES).due

    def test_as_chosen(self, served):
        standing = order_state(served, CHOSEN, CLASSES)

        assert (standing.verdict, standing.due) == ("as chosen", False)

    @pytest.mark.parametrize(
        "change", [{"reserve": 7}, {"passes": 9}, {"retrain_after": 3}, {"epochs": 9}, {"prelabel": True}]
    )
    def test_options_that_rank_nothing_ask_for_nothing(self, served, change):
        assert not order_state(served, CHOSEN.model_copy(update=change), CLASSES).due

    @pytest.mark.parametrize("change", [{"strategy": "bald"}, {"batch_size": 5}, {"control_share": 0.1}])
    def test_passes_are_enough_for_what_looks_at_nothing_else(self, served, change):
        standing = order_state(served, CHOSEN.model_copy(update=change), CLASSES)

        assert (standing.verdict, standing.due) == ("passes", True)
        assert standing.base == standing.latest == served.summary("r000001")

    @pytest.mark.parametrize("strategy", ["badge", "core_set", "typiclust"])
    def test_the_network_looks_again_for_what_looks_at_more(self, served, strategy):
        assert order_state(served, ProjectOptions(strategy=strategy), CLASSES).verdict == "network"

    def test_a_network_that_is_gone(self, served):
        """Three are kept."""
        next(served.folder.rglob("model.safetensors")).unlink()

        standing = order_state(served, ProjectOptions(strategy="core_set"), CLASSES)

        assert (standing.verdict, standing.due) == ("next round", False)
        assert "network of round r000001" in standing.why

    def test_passes_that_are_gone_while_the_network_is_there(self, served):
        (served.folder / "rounds" / "r000001" / "outputs.npz").unlink()

        assert order_state(served, ProjectOptions(strategy="bald"), CLASSES).verdict == "network"

    def test_a_question_with_other_classes(self, served):
        standing = order_state(served, ProjectOptions(strategy="bald"), (*CLASSES, "worse"))

        assert (standing.verdict, standing.due) == ("next round", False)

    def test_a_second_change_goes_back_to_the_round_that_trained(self, served):
        reranked = make_report("r000002").model_copy(
            update={"request": make_request(round_id="r000002", strategy="bald", reason="rerank"), "base": "r000001"}
        )
        served.save(reranked, OUTPUTS, None)
        serve(served, "r000002")

        assert order_state(served, ProjectOptions(strategy="bald", batch_size=3), CLASSES).verdict == "as chosen"
        standing = order_state(served, ProjectOptions(strategy="badge", batch_size=3), CLASSES)
        assert (standing.verdict, standing.base, standing.latest) == (
            "network",
            served.summary("r000001"),
            served.summary("r000002"),
        )

    @pytest.mark.parametrize("wholly", [None, False])
    def test_a_new_order_that_was_saved_and_not_wholly_published(self, served, wholly):
        reranked = make_report("r000002").model_copy(
            update={"request": make_request(round_id="r000002", strategy="bald", reason="rerank"), "base": "r000001"}
        )
        served.save(reranked, OUTPUTS, None)
        if wholly is not None:
            serve(served, "r000002", wholly=wholly)

        standing = order_state(served, ProjectOptions(strategy="bald", batch_size=3), CLASSES)

        assert (standing.verdict, standing.due) == ("saved", True)

    def test_a_training_that_was_not_published_is_published_by_its_own_round(self, project):
        project.save(trained(), OUTPUTS, Network())

        standing = order_state(project, CHOSEN, CLASSES)

        assert (standing.verdict, standing.due) == ("saved", False)
