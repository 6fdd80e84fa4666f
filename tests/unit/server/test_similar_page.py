"""Similar images and the map: what is shown, what the button records and asks for, and what is said where it cannot."""

import re
import time

import numpy as np
import pytest

from ml_backend.analytics.overview import analyse
from ml_backend.scheduling.connections import configuration
from ml_backend.schemas import PublishedRanking, Ranking
from ml_backend.storage.outputs import Embedding
from tests.fakes import NOON, make_report
from tests.unit.analytics.test_standing import mirror_of, said, task
from tests.unit.server.memory import PROJECT

HTML = {"Accept": "text/html"}
HERE = f"/projects/{PROJECT}"
ROWS = [[2, 0, 1], [1, 0, 1], [1, 2, 0], [0, 5, 1], [-1, 0, 0], [1, 0, 0.5]]


@pytest.fixture
def project(connected, store):
    """Image 3 is labelled severe and 5 normal; images 6 and 2 are served, without a network."""
    project = store.project(PROJECT)
    ranking = Ranking(strategy="random", image_ids=("6", "2", "1", "4"), scores=(4, 3, 2, 1), batch_size=2)
    project.save(make_report().model_copy(update={"ranking": ranking}), None, None)
    project.set_embedding(Embedding("r000001", "", tuple("123456"), np.array(ROWS, np.float16), 0.41))
    severe, normal = said("severe"), said("normal")
    project.readings.keep_mirror(mirror_of(task(), task(), task(severe), task(), task(normal), task()))
    project.thumbnails.keep("r000001", [("2", b"\xff\xd8jpeg")])
    return project


def page(client, address):
    return client.get(f"{HERE}/{address}", headers=HTML).text


def press(client, chosen, like="1", token=None):
    token = token or re.findall(r'name="token" value="(\w+)"', page(client, f"similar/{like}"))[0]
    return client.post(
        f"{HERE}/similar/{like}",
        data={"token": token, "chosen": chosen},
        headers={"Origin": "http://localhost", **HTML},
    )


class TestSimilar:
    def test_the_nearest_of_each_kind(self, connected, project):
        before, _, labelled = page(connected, "similar/1").partition(">With a label<")

        assert re.findall(r'name="chosen" value="(\d)"', before) == ["6", "2", "4"]
        assert re.findall(r"Task (\d) in Label Studio", labelled) == ["3", "5"]
        assert re.findall(r"Label: <b>(\w+)<", labelled) == ["severe", "normal"]
        assert re.findall(r"likeness ([\d.]+)", before) == ["1.00", "0.95", "0.09"]
        assert before.count("<img ") == 1  # of image 2; of the others no picture is kept

    @pytest.mark.parametrize(
        ("image", "reason"), [("9", "imported after round 1"), ("%3Cscript%3E", "imported after round 1")]
    )
    def test_an_image_that_no_round_has_read(self, connected, project, image, reason):
        text = page(connected, f"similar/{image}")

        assert reason in text
        assert "<script" not in text.replace("<script src=", "")

    @pytest.mark.parametrize("stored", [False, True])
    @pytest.mark.parametrize("address", ["similar/1", "map"])
    def test_before_a_round_has_stored_features(self, connected, project, address, stored):
        (project.folder / "embedding.npz").unlink()
        if stored:  # of no image
            project.set_embedding(Embedding("r000001", "", (), np.empty((0, 2), np.float16), 0.0))

        assert "The next round stores them" in page(connected, address)

    def test_without_pretrained_weights(self, connected, project, store):
        """What an earlier round stored is still shown."""
        before = store.connection(PROJECT.id)
        store.connect(before.model_copy(update={"extra_params": before.extra_params | {"weights": "none"}}))
        assert "More like this" in page(connected, "images")
        (project.folder / "embedding.npz").unlink()

        for address in ("similar/1", "map"):
            assert "weights=none</code>: without pretrained weights images cannot be" in page(connected, address)
            assert "next round stores" not in page(connected, address)
        assert "More like this" not in page(connected, "images")


class TestPutNext:
    def test_is_recorded_and_asked_for(self, connected, project, queue):
        """Of 2, 3, which has a label, and 9, which is none of the project's."""
        answer = press(connected, ["2", "3", "9"])

        assert (answer.status_code, answer.headers["Location"]) == (303, f"../../..{HERE}/similar/1?done=topup-asked")
        [pick] = project.hand_picks()
        assert (pick.by, pick.like, pick.image_ids) == ("the page", "1", ("2",))
        assert queue.requests == ["topup"]
        text = page(connected, "similar/1?done=topup-asked")
        assert "Readers get these images within a minute" in text
        assert re.findall(r'name="chosen" value="(\d)"', text) == ["6", "4"]
        assert "by the page: 1 like task 1 (2)" in text

    def test_the_wall_says_what_comes_before_its_batch(self, connected, project):
        assert "put next by hand" not in page(connected, "images")
        published = PublishedRanking(
            version="v", round_id="r000001", image_ids=("4", "6"), by_hand=("4",), seconds={}, published_at=NOON
        )
        project.set_published(published)

        assert "Before them come the images that were put next by hand" in page(connected, "images")

    @pytest.mark.parametrize("chosen", [[], ["3"], ["9", "../x"]])
    def test_nothing_that_waits(self, connected, project, queue, chosen):
        assert press(connected, chosen).headers["Location"].endswith("done=none")
        assert (project.hand_picks(), queue.requests) == ((), [])

    def test_no_answer_is_asked_for_what_has_another_one_than_a_label(self, connected, project, queue):
        """Image 2 was put next and got an answer that is no class; 4 is a copy of 1, and 6 was skipped."""
        press(connected, ["2"])
        assert "1 of these images still waits" in page(connected, "similar/1")
        tasks = [task(), task(said("unreadable")), task(said("severe")), task(data={"image": "/1.png"})]
        project.readings.keep_mirror(mirror_of(*tasks, task(said("normal")), task(said(None))))
        queue.requests.clear()

        assert press(connected, ["2", "4", "6"], like="3").headers["Location"].endswith("done=none")
        text = page(connected, "similar/3")
        assert re.findall(r'name="chosen" value="(\d)"', text) == ["1"]
        assert "0 of these images still wait " in text
        assert queue.requests == []

    def test_twice_is_once(self, connected, project, queue):
        press(connected, ["2"])
        press(connected, ["2"])

        assert len(project.hand_picks()) == 1

    def test_a_round_that_waits_takes_it_along(self, connected, project, queue):
        queue.refuses = True

        assert press(connected, ["2"]).headers["Location"].endswith("done=waits")
        assert project.hand_picked() == ("2",)

    def test_not_from_another_page(self, connected, project, queue):
        assert press(connected, ["2"], token="0" * 64).status_code == 403
        assert project.hand_picks() == ()


class TestMap:
    @pytest.mark.parametrize(
        ("by", "counts"),
        [
            ("label", ["no label yet: 4", "normal: 1", "severe: 1"]),
            ("batch", ["further back in the order: 1", "labelled: 2", "chosen next: 2", "put next by hand: 1"]),
            ("uncertainty", ["labelled, or without a prediction: 6"]),
        ],
    )
    def test_colours_and_links(self, connected, project, by, counts):
        press(connected, ["4"])
        text = page(connected, f"map?by={by}")
        legend = re.findall(r"</svg>([^<]*: \d+)</li>", text)

        assert [one for one in legend if not one.endswith(": 0")] == counts
        # Both labelled images, the batch, and what was put next.
        assert sorted(re.findall(r'<a href="[^"]*similar/(\d)" tabindex', text)) == ["2", "3", "4", "5", "6"]
        assert "show 41 % of what tells the 6 images apart" in text
        assert ("holds no predictions" in text) == (by == "uncertainty")

    def test_by_uncertainty_of_the_served_order(self, connected, project):
        sure = {"6": 0.95, "2": 0.8, "1": 0.7, "4": 0.5, "3": 0.99}
        report = make_report("r000002")
        changed = {"confidences": sure, "suggestions": dict.fromkeys(sure, "severe")}
        ranking = report.ranking.model_copy(update={"image_ids": tuple(sure), "scores": (1,) * 5, **changed})
        project.save(report.model_copy(update={"ranking": ranking}), None, None)

        legend = re.findall(r"</svg>([^<]*): (\d+)</li>", page(connected, "map?by=uncertainty"))
        assert [int(number) for _, number in legend] == [2, 1, 1, 1, 1]
        assert "predicted severe, 95 % sure" in page(connected, "similar/1")

    @pytest.mark.parametrize("images", [10_000, 100_000])
    def test_of_many_images_is_small_and_fast(self, connected, project, images):
        ids = tuple(map(str, range(1, images + 1)))
        rows = np.random.default_rng(0).normal(size=(images, 64)).astype(np.float16)
        project.set_embedding(Embedding("r000001", "", ids, rows, 0.1))
        project.readings.keep_mirror(mirror_of(*[task(said("severe"))] * 2000))
        analyse(project, *configuration(project.connection()))
        began = time.process_time()
        text = page(connected, "map")

        assert time.process_time() - began < (2.0 if images == 10_000 else 4.0)
        assert len(text.encode()) < 500_000
