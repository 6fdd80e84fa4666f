"""The wall of images: which are shown, in what order, and that hostile names stay text."""

import re

import pytest

from ml_backend.analytics.history import HELD_OUT, HeldOutPredictions
from ml_backend.label_studio.publisher import Serving
from ml_backend.schemas import HeldOutImage, Ranking
from ml_backend.server.images_page import PER_PAGE
from tests.fakes import NOON, make_report
from tests.unit.analytics.test_standing import mirror_of, said, task
from tests.unit.server.memory import PROJECT
from tests.unit.server.test_predictions import save_round

HTML = {"Accept": "text/html"}
PAGE = f"/projects/{PROJECT}/images"
HOSTILE = "<script>alert(1)</script>"


def tasks(client, query=""):
    """The tasks that a page shows, in their order."""
    return re.findall(r">Task (\w+) in Label Studio<", client.get(f"{PAGE}{query}", headers=HTML).text)


def image(name, label, normal, severe):
    return HeldOutImage(image_id=name, label=label, probs={"normal": normal, "severe": severe})


@pytest.fixture
def tested(connected, store):
    project = store.project(PROJECT)
    project.save(make_report(), None, None)
    held_out = (
        image("1", "normal", 0.9, 0.1),
        image("2", "severe", 0.6, 0.4),
        image("3", "severe", 0.95, 0.05),
        image("4", "normal", 0.2, 0.8),
    )
    project.set_record("r000001", HELD_OUT, HeldOutPredictions(images=held_out))
    project.thumbnails.keep("r000001", [("3", b"\xff\xd8jpeg")])
    return connected


@pytest.mark.parametrize("page", ["images", "options", "state", "rounds/r000001"])
def test_a_page_names_the_project_by_its_title(tested, store, page):
    def names():
        text = tested.get(f"/projects/{PROJECT}/{page}", headers=HTML).text
        return re.findall(r'href="[./]*projects/[\d.]+">([^<]*)</a>', text)[:1]

    assert names() == [f"Project {PROJECT.id}"]
    seen = Serving(
        version=None, there=0, held=0, model_version="", sampling=None, maximum_annotations=1,
        show_collab_predictions=True, title="Chests <2026>",
    )  # fmt: skip
    store.project(PROJECT).readings.keep_serving(seen)
    assert names() == ["Chests &lt;2026&gt;"]


@pytest.mark.parametrize(
    ("page", "current"),
    [
        ("", ["Project"]),
        ("/images?label=severe", ["Images"]),
        ("/images?tab=disagree", ["Labels to check"]),
        ("/options", ["Options and preview"]),
        ("/rounds/r000001", []),
    ],
)
def test_the_navigation_marks_the_current_page(tested, page, current):
    text = tested.get(f"/projects/{PROJECT}{page}", headers=HTML).text
    [navigation] = re.findall(r'<nav class="tabs".*?</nav>', text, re.DOTALL)

    assert re.findall(r'aria-current="page">([^<]*)<', navigation) == current
    assert ">Compare rounds<" not in navigation  # of one round


class TestWall:
    def test_says_whose_errors_most_disagreements_are(self, tested):
        page = tested.get(f"{PAGE}?tab=disagree", headers=HTML).text

        assert "contradicts 3 of 4 labels (75&nbsp;%): unless that many labels are wrong, most of these are" in page
        assert "unless that many" not in tested.get(f"{PAGE}?tab=labelled", headers=HTML).text

    def test_disagreements_with_the_most_confident_first(self, tested):
        assert tasks(tested, "?tab=disagree") == ["3", "4", "2"]
        page = tested.get(f"{PAGE}?tab=disagree", headers=HTML).text
        assert "<h1>Labels to check</h1>" in page
        assert "task 3</a>: the label is severe, and the network is 95\u00a0% sure of normal." in page

    def test_what_each_reader_answered(self, tested, store):
        """Where several have read an image; as the project was last analysed."""
        project = store.project(PROJECT)
        given = (["normal"], ["severe"], ["severe", "severe", "normal"])
        at = NOON.isoformat()
        readers = [task(*(said(one, n, created_at=at) for n, one in enumerate(of, start=1))) for of in given]
        project.readings.keep_mirror(mirror_of(*readers))
        tested.get(f"/projects/{PROJECT}", headers=HTML)

        page = tested.get(f"{PAGE}?tab=disagree", headers=HTML).text

        assert page.count("(readers: ") == 1
        assert "Label: <b>severe</b> (readers: normal, severe, severe)" in page

    def test_says_of_which_images_pictures_are_kept(self, tested):
        told = [
            "Pictures are kept of the images that" in tested.get(f"{PAGE}?tab=disagree{one}", headers=HTML).text
            for one in ("", "&image=3", "&image=4")
        ]

        assert told == [True, False, True]

    def test_a_cell_of_the_confusion_matrix(self, tested):
        assert tasks(tested, "?label=severe&predicted=normal") == ["2", "3"]
        assert tasks(tested, "?label=normal&predicted=normal") == ["1"]
        assert tasks(tested, "?label=severe&predicted=severe") == []
        assert tasks(tested, "?tab=disagree&predicted=severe") == ["4"]

    def test_one_image_with_all_that_is_known_of_it(self, tested):
        page = tested.get(f"{PAGE}?tab=disagree&image=3", headers=HTML).text

        assert tasks(tested, "?tab=disagree&image=3") == ["3"]
        assert "The label is severe, and the network is 95\u00a0% sure of normal" in page
        assert 'src="../../projects/' in page
        assert page.count("<progress") == 2
        assert 'value="0.9500" aria-label="Probability of normal"' in page
        assert f'/projects/{PROJECT.id}/data?task=3"' in page

    def test_what_was_chosen_next_with_why(self, connected, store):
        save_round(store)

        page = connected.get(PAGE, headers=HTML).text

        assert tasks(connected) == list(store.project(PROJECT).report("r000001").ranking.image_ids[:1])
        assert "No. 1 in the order: " in page

    def test_what_was_answered_since_is_left_out_and_counted(self, connected, store):
        """On the wall and on the project's page; task 9 was deleted, which is no answer."""
        project, report = store.project(PROJECT), make_report()
        names = ("1", "2", "3", "9", "4")
        ranking = Ranking(strategy="x", image_ids=names, scores=(0.5,) * 5, batch_size=4, control=("4",))
        project.save(report.model_copy(update={"ranking": ranking}), None, None)

        def pages(*answers):
            project.readings.keep_mirror(mirror_of(*(task(*(said(one) for one in of)) for of in answers)))
            paths = (PAGE, f"/projects/{PROJECT}")
            return [" ".join(connected.get(path, headers=HTML).text.split()) for path in paths]

        told = ("2 of the 5 images were answered since and are", "1 of the 4 images was answered since and is")
        for page, counted in zip(pages((), ["normal"], [None], ["severe"]), told, strict=True):
            assert re.findall(r">Task (\d+)(?: in Label Studio)?<", page) == ["1", "3", "9"]
            assert f"{counted} left out." in page
        wall, _ = pages(["normal"], ["normal"], ["normal"], ["severe"])
        assert "4 of the 5 images were answered since and are left out." in wall
        assert tasks(connected, "?image=1") == ["1"]

    def test_says_how_many_labels_were_tested(self, tested, store):
        project = store.project(PROJECT)
        report = make_report("r000002").model_copy(update={"labels_per_class": {"normal": 50, "severe": 11}})
        project.save(report, None, None)
        agreed = HeldOutPredictions(images=tuple(image(str(one), "normal", 0.9, 0.1) for one in range(9)))
        project.set_record("r000002", HELD_OUT, agreed)

        page = tested.get(f"{PAGE}?tab=disagree", headers=HTML).text
        filtered = tested.get(f"{PAGE}?tab=disagree&predicted=severe", headers=HTML).text

        told = "No disagreement among the 9 labels tested; 52 labels were not tested (the network was trained on them)."
        assert told in page
        assert "every label is tested by a network that did not see it" in page
        assert "No such image here." not in page
        assert "No such image here." in filtered
        assert "9 labels were tested; 52 labels" in filtered
        ensemble = report.request.model_copy(update={"round_id": "r000003", "options": {"committee": 3}})
        project.save(report.model_copy(update={"request": ensemble}), None, None)
        project.set_record("r000003", HELD_OUT, agreed)
        page = tested.get(f"{PAGE}?tab=disagree", headers=HTML).text
        assert "No disagreement among the 9 labels tested.</p>" in page

    def test_says_where_a_round_kept_no_predictions(self, connected, store):
        save_round(store)

        page = connected.get(f"{PAGE}?tab=disagree", headers=HTML).text

        assert "earlier versions of the backend kept none" in page
        assert tasks(connected, "?tab=disagree") == []

    def test_damaged_predictions_hide_no_tab_and_are_named(self, tested, store):
        """Neither the only record nor the newest of two; what an earlier round kept is shown."""
        project = store.project(PROJECT)

        def pages():
            asked = [tested.get(f"{PAGE}?tab={tab}", headers=HTML) for tab in ("chosen", "disagree", "labelled")]
            assert [page.status_code for page in asked] == [200, 200, 200]
            return [re.findall("The predictions of (round [0-9]) cannot be read", page.text) for page in asked]

        assert pages() == [[], [], []]
        project.save(make_report("r000002"), None, None)
        (project.folder / "rounds" / "r000002" / f"{HELD_OUT}.json").write_text("{")
        assert pages() == [[], ["round 2"], ["round 2"]]
        assert tasks(tested, "?tab=disagree") == ["3", "4", "2"]
        (project.folder / "rounds" / "r000001" / f"{HELD_OUT}.json").write_text("{")
        assert pages() == [[], ["round 2"], ["round 2"]]
        assert tasks(tested, "?tab=disagree") == []

    @pytest.mark.parametrize("query", ["?page=0", "?page=x", "?page=99", "?tab=none", "?label=%00&predicted=%ff"])
    def test_any_query_is_a_page(self, tested, query):
        assert tested.get(f"{PAGE}{query}", headers=HTML).status_code == 200

    def test_hostile_names_stay_text(self, tested, store):
        wrong = HeldOutImage(image_id="9", label=HOSTILE, probs={HOSTILE: 0.4, "b": 0.6})
        store.project(PROJECT).set_record("r000001", HELD_OUT, HeldOutPredictions(images=(wrong,)))

        for query in ("?tab=disagree", f"?label={HOSTILE}&predicted={HOSTILE}", f"?image={HOSTILE}"):
            assert "<script" not in tested.get(f"{PAGE}{query}", headers=HTML).text

    def test_paged_at_a_pool_of_100_000(self, connected, store):
        project, report = store.project(PROJECT), make_report()
        names = tuple(str(number) for number in range(100_000))
        ranking = Ranking(strategy="x", image_ids=names, scores=(0.5,) * len(names), batch_size=20)
        project.save(report.model_copy(update={"ranking": ranking}), None, None)
        held_out = tuple(image(name, "severe", 0.6, 0.4) for name in names[:5000])
        project.set_record("r000001", HELD_OUT, HeldOutPredictions(images=held_out))

        assert tasks(connected, "?tab=disagree&page=3") == list(names[2 * PER_PAGE : 3 * PER_PAGE])
        assert len(tasks(connected)) == 20
