"""What both pages and both JSONs tell of a project: whether there is a network, what is left out, and the end."""

import pytest

from ml_backend.scheduling import LastError, QueueStatus
from ml_backend.storage.project_state import ReadingStore
from tests.fakes import make_fit, make_report
from tests.unit.analytics.test_standing import mirror_of, said, task
from tests.unit.server.memory import PROJECT, payload
from tests.unit.server.test_events import published

HTML = {"Accept": "text/html"}
PAGE = f"/projects/{PROJECT}"
PLENTY = [task(said(name)) for name in ("normal", "moderate", "severe") for _ in range(3)]
OTHER_KEY = task(data={"picture": "/a.png"})
BY_NETWORK = "r000002"


class Shown:
    """The project's page, the page of all projects, and the JSON of both."""

    def __init__(self, client):
        self.page, self.index = (" ".join(client.get(path, headers=HTML).text.split()) for path in (PAGE, "/"))
        self.json = client.get(PAGE).json
        (self.of_index,) = client.get("/").json["projects"]

    @property
    def states(self):
        return {self.json["state"], self.of_index["state"]}


@pytest.fixture
def show(client, store, queue):
    """The project as it stands with these tasks, rounds and options."""
    project = store.project(PROJECT)

    def shown(*tasks, rounds=(), error=None, served=True, **options):
        client.post("/setup", json=payload("setup") | {"extra_params": {"min_labels_per_class": 3} | options})
        for report in rounds:
            project.save(report, None, None)
        if rounds and served:
            project.set_published(published("4"))
        ReadingStore(project.folder).keep_mirror(mirror_of(*tasks))
        if error:
            queue.state = QueueStatus(
                threshold=20, last_error=LastError(kind=error, message=f"refused by {error}", at=0)
            )
        return Shown(client)

    return shown


def trained(number=2):
    return make_report(f"r{number:06d}").model_copy(update={"fit": make_fit()})


def ranked_anew(strategy, number=3):
    report = make_report(f"r{number:06d}")
    ranking = report.ranking.model_copy(update={"strategy": strategy})
    return report.model_copy(update={"base": BY_NETWORK, "ranking": ranking})


class TestNetwork:
    @pytest.mark.parametrize("strategy", ["bald", "random"])
    def test_is_not_denied_after_a_change_of_strategy(self, show, strategy):
        shown = show(*PLENTY, task(), rounds=[make_report(), trained(), ranked_anew(strategy)])

        for told in (shown.page, shown.index):
            assert "Until the" not in told
            assert "none yet" not in told
            assert BY_NETWORK in told
        assert shown.json["start"] is None
        for told in (shown.json, shown.of_index):
            assert (told["network"]["round_id"], told["network"]["ranks"]) == (BY_NETWORK, True)
            assert told["network"]["validation_accuracy"] == make_fit().validation_accuracy

    def test_nor_before_anything_was_read(self, show, client, store):
        show(rounds=[trained(), ranked_anew("bald")])
        (store.project(PROJECT).folder / "tasks.sqlite").unlink()

        assert "Until the" not in Shown(client).page

    def test_none_before_the_first_training(self, show):
        shown = show(*PLENTY[:4], task(), rounds=[make_report()])

        assert "Until the first training" in shown.page
        assert "1 of 3" in shown.page  # by the reading, and not by the round, which saw no label
        assert "none yet" in shown.page
        assert "none yet" in shown.index
        assert (shown.json["network"], shown.of_index["network"]) == (None, None)

    def test_of_other_classes(self, show):
        shown = show(*PLENTY, task(), rounds=[trained()], ignore_classes="severe")

        assert (
            "it distinguishes normal, moderate, severe, and the next training learns the current classes" in shown.page
        )
        assert "Until the next training" in shown.page

    def test_grows_again_where_a_class_lost_labels(self, show):
        shown = show(*PLENTY[:4], *[task()] * 5, rounds=[trained(), make_report("r000003")])

        assert "Until the next training" in shown.page
        assert shown.json["network"]["ranks"] is False
        assert shown.json["start"]["missing"] == {"moderate": 2, "severe": 3}


class TestLeftOut:
    def test_is_counted_before_any_round(self, show):
        shown = show(task(), OTHER_KEY, OTHER_KEY, task(said("grave")))

        for told in (shown.page, shown.index):
            assert "2 tasks without a label have no image, the first: task 2 has no image under" in told
            assert "1 image is labelled as no class: image 4 is labelled" in told
        for told in (shown.json, shown.of_index):
            assert [(one["kind"], one["count"]) for one in told["standing"]["left_out"]] == [
                ("no image", 2),
                ("no class", 1),
            ]

    @pytest.mark.parametrize("error", [None, "EmptyPool", "UnusablePool"])
    def test_images_under_another_key_are_a_failure_and_no_want_of_images(self, show, error):
        shown = show(*PLENTY, *[OTHER_KEY] * 24, rounds=[trained()], error=error)

        assert shown.states == {"failed"}
        for told in (shown.page, shown.index):
            assert "task 10 has no image under &#39;image&#39;; its data holds [&#39;picture&#39;]" in told
            assert "mport " not in told

    def test_an_image_that_a_list_names_and_is_usable_again(self, show):
        """The error is of the last round; images wait now, and the next round finds them."""
        shown = show(*PLENTY, task(), rounds=[trained()], error="EmptyPool")

        assert shown.states == {"idle"}
        assert "A round is asked for within a minute" in shown.page


class TestTheEnd:
    @pytest.mark.parametrize("error", [None, "EmptyPool", "UnusablePool"])
    def test_is_a_success(self, show, error):
        shown = show(*PLENTY, task(said(None)), rounds=[trained()], error=error)

        assert shown.states == {"done"}
        assert shown.json["standing"]["verdict"] == "labelled"
        for told in (shown.page, shown.index):
            assert "Every image is labelled: 10 images, 1 of them only skipped" in told
            assert 'class="wrong"' not in told
            assert "refused by" not in told
            assert "Until the" not in told
            assert "to be labelled next" not in told
        assert "Complete" in shown.page
        assert "Complete" in shown.index

    def test_hides_no_other_failure(self, show):
        assert show(*PLENTY, rounds=[trained()], error="WeightsError").states == {"failed"}

    def test_without_a_network_it_tells_the_ways_to_one(self, show):
        shown = show(*PLENTY[:4], rounds=[make_report()], error="EmptyPool")

        assert shown.states == {"done"}
        assert shown.json["standing"]["verdict"] == "blocked"
        assert "Complete" in shown.page
        assert "2 more &#39;moderate&#39; or 3 more &#39;severe&#39; needed; no image without a label" in shown.page
        assert "lower the option min_labels_per_class, 3 now and 2 at least" in shown.page
        assert "Every image is labelled, and no network can be trained yet" in shown.index

    def test_labels_that_cannot_be_used_wait_for_their_owner(self, show):
        """More images are no help: the labels are there."""
        shown = show(*PLENTY[:4], task(said("grave")), rounds=[make_report()], error="EmptyPool")

        assert shown.states == {"blocked"}
        assert "Waits for you" in shown.page
        assert "1 image is labelled as no class" in shown.page

    def test_a_lower_minimum_leads_on(self, show):
        assert (
            show(*PLENTY[:5], rounds=[make_report()], min_labels_per_class=2).json["standing"]["verdict"] == "labelled"
        )

    def test_a_project_without_images_is_new(self, show):
        shown = show(error="EmptyPool")

        assert shown.states == {"idle"}
        for told in (shown.page, shown.index):
            assert "The project has no images yet: import images in Label Studio to begin." in told
            assert "Until the" not in told


class TestAClassThatNeverComes:
    def test_is_not_waited_for_and_named(self, show):
        shown = show(*[task(said("normal")), task(said("moderate"))] * 10, *[task()] * 10, rounds=[trained()])

        assert shown.json["start"] is None
        assert shown.json["standing"]["few"] == {
            "missing": {"severe": 3}, "sought": [],
            "sentence": "No label yet of 'severe': the network cannot predict it.",
        }  # fmt: skip
        for told in (shown.page, shown.index):
            assert "No label yet of &#39;severe&#39;: the network cannot predict it." in told

    def test_its_images_are_sought_from_the_first_on(self, show):
        labelled = [task(said("normal")), task(said("moderate"))] * 10
        shown = show(*labelled, task(said("severe")), *[task()] * 10, rounds=[trained()])

        assert shown.json["standing"]["few"]["sought"] == ["severe"]
        assert "Images that resemble those of &#39;severe&#39; come first in half of the places." in shown.page

    def test_the_ways_out_are_told_where_they_are_due_and_not_before(self, show):
        early, late = ([task(said("normal"))] * many + [task(said("moderate"))] for many in (2, 200))

        assert "cold_start=herding" not in show(*early, *[task()] * 40).page
        shown = show(*late, *[task()] * 10)
        assert "will probably not hold enough: import more." in shown.page
        assert "set the option cold_start=herding" in shown.page
        assert len(shown.json["start"]["ways_out"]) == 2
