"""The owner's page of readers: what it says, whom it names, and that a view computes nothing."""

import csv
import io
import re
from datetime import UTC, datetime
from html import unescape

import pytest

from ml_backend.analytics.history import Answer
from ml_backend.analytics.overview import Analysis, analyse
from ml_backend.analytics.readers import reader_agreement
from ml_backend.config import Settings
from ml_backend.label_studio.disagreements import DisagreementsTab
from ml_backend.scheduling.connections import configuration
from ml_backend.server.agreement_page import FIRST_DISPUTES
from ml_backend.server.app import create_app
from ml_backend.storage import RoundStore
from tests.system.owner_data import KEY, add_readers, prepare
from tests.unit.server.memory import PROJECT, MemoryQueue
from tests.unit.server.test_readers import reconciled

HTML = {"Accept": "text/html"}


@pytest.fixture(scope="module")
def panel(tmp_path_factory):
    """Three readers of every image, with trained networks behind them; compared as the reconciler does it."""
    store: RoundStore = prepare(tmp_path_factory.mktemp("panel"), rounds=8)
    add_readers(store)
    analysis = analyse(store.project(KEY), *configuration(store.connection(KEY.id)))
    assert analysis.readers is not None
    return create_app(Settings(data_dir=store.root), MemoryQueue()).test_client(), store, analysis.readers


def text(client, path):
    page = client.get(path, headers=HTML)
    assert page.status_code == 200
    return " ".join(unescape(re.sub("<[^>]+>", " ", page.text)).split())


class TestPage:
    def test_each_reader(self, panel):
        client, _, found = panel
        page = client.get(f"/projects/{KEY}/agreement", headers=HTML).text
        rows = re.findall(r'<th scope="row">(Reader \d)</th><td>(\d+)</td><td>(\d+)</td><td>(\d+)</td>', page)

        assert rows == [
            ("Reader 1", "160", "25", "160"),
            ("Reader 2", "160", "20", "160"),
            ("Reader 3", "160", "30", "160"),
        ]
        assert [one.bias.low > 0.1 for one in found.readers] == [False, False, True]
        assert page.count(">few<") == 3  # the drift of each, in halves of 80 images
        assert re.search(r'<p class="answer">Substantial agreement: kappa 0\.7\d \(95', page)
        assert re.search(
            r"Reader 3 stands out: too severe by 0\.\d\d classes \(95\u00a0% interval 0\.\d\d to 0\.\d\d\)\.</p>", page
        )

    def test_images_to_adjudicate_lead_to_their_tasks(self, panel):
        client, store, found = panel
        store.project(KEY).readings.keep_disagreements_tab(DisagreementsTab(id=41, images=()))
        page = client.get(f"/projects/{KEY}/agreement", headers=HTML).text
        listed = re.findall(r'data\?task=(\d+)">Task \1</a>: normal, (?:\w+, )?severe', page)

        assert listed == [one.image_id for one in found.disputes]
        assert len(listed) == found.disputed == found.apart[2] > FIRST_DISPUTES
        shown, folded = page.split(f"<summary>10 of {found.disputed}: show all</summary>")
        assert (shown.count(">Task "), folded.count(">Task ")) == (FIRST_DISPUTES, found.disputed - FIRST_DISPUTES)
        assert f"/projects/{KEY.id}/data?tab=41" in page

    def test_the_table_as_csv(self, panel):
        client, _, found = panel
        answer = client.get(f"/projects/{KEY}/agreement.csv")
        rows = list(csv.DictReader(io.StringIO(answer.text.removeprefix("\ufeff"))))

        assert [row["reader"] for row in rows] == ["Reader 1", "Reader 2", "Reader 3"]
        biases = [one.bias.value for one in found.readers]
        assert [float(row["bias"]) for row in rows] == pytest.approx(biases, abs=1e-4)
        assert float(rows[2]["others_normal_reader_moderate"]) == found.readers[2].confusion["normal"]["moderate"]
        assert sum(float(row["agreement_images"]) for row in rows) == 3 * 160

    def test_metrics_name_nobody(self, panel):
        client, _, found = panel
        samples = client.get("/metrics").text

        assert f'al_readers{{project="{KEY}"}} 3.0' in samples
        assert f'al_reader_kappa{{project="{KEY}"}} {found.kappa.value}' in samples
        assert f'al_images_to_adjudicate{{project="{KEY}"}} {found.disputed}.0' in samples

    def test_whether_uncertainty_foretold_disagreement(self, panel):
        client, _, found = panel
        of_round = next(one for one in found.foresight if one.aleatoric)
        words = "rank correlation of uncertainty and later disagreement"

        assert f"the {words} is" in text(client, f"/projects/{KEY}")
        assert f"{words} of readers, on {of_round.images} images" in text(
            client, f"/projects/{KEY}/rounds/{of_round.round_id}"
        )
        assert "Did the network know where readers disagree?" in text(client, f"/projects/{KEY}/state")

    def test_names_where_the_owner_asks(self, panel):
        client, store, _ = panel
        store.project(KEY).readings.keep_reader_names({"1": "Ada Ärztin", "3": "=cmd()"})
        path, before = f"/projects/{KEY}/agreement", store.connection(KEY.id)
        assert "Ada" not in text(client, path)

        store.connect(before.model_copy(update={"extra_params": before.extra_params | {"reader_names": True}}))

        assert "Ada Ärztin 160 25" in text(client, path)
        assert "Reader 2 160 20" in text(client, path)
        assert "\n'=cmd()," in client.get(f"{path}.csv").text
        assert "Ada" not in client.get("/metrics").text
        store.project(KEY).readings.keep_reader_names({})
        assert "numbered by their first answers." in text(client, path)
        store.connect(before)
        assert "the option reader_names shows their names instead." in text(client, path)

    def test_a_view_computes_nothing(self, panel, monkeypatch):
        client, _, _ = panel
        for computed in ("label_studio.sync.TaskCache.annotated", "analytics.overview.reader_agreement"):
            monkeypatch.setattr(f"ml_backend.{computed}", lambda *_, **__: pytest.fail("computes"))

        assert client.get(f"/projects/{KEY}/agreement", headers=HTML).status_code == 200


class TestFewReaders:
    def test_before_anything_is_read(self, connected):
        assert "Not known yet" in text(connected, f"/projects/{PROJECT}/agreement")
        assert connected.get(f"/projects/{PROJECT}/agreement.csv").text.startswith("\ufeffreader,")

    def test_classes_without_an_order(self, connected, store):
        """Nobody is too severe, and every difference needs a decision."""
        at = datetime(2026, 11, 2, tzinfo=UTC)
        given = [
            Answer(image_id=image, rater=rater, created_at=at, value=value)
            for image in ("1", "2")
            for rater, value in (("4", "left"), ("5", "left" if image == "1" else "both"))
        ]
        found = reader_agreement(given, ("left", "right", "both"), ordered=False, disputed=("2",))
        store.project(PROJECT).readings.keep_analysis(Analysis(inputs="", readers=found))

        page = text(connected, f"/projects/{PROJECT}/agreement")

        assert "different: 1 of 2" in page
        assert "1 image without a ground truth on which readers are of different opinions" in page
        assert "Task 2 : left, both" in page
        assert "Bias" not in page

    def test_two_classes_and_no_author(self, connected, store):
        at = datetime(2026, 11, 2, tzinfo=UTC)
        given = [
            Answer(image_id="1", rater=f"{rater}", created_at=at, value=value)
            for rater, value in (("unknown, annotation 4", "no"), ("unknown, annotation 5", "yes"))
        ]
        for raters in ({}, {"unknown, annotation 4": "4", "unknown, annotation 5": "5"}):
            named = [one.model_copy(update={"rater": raters.get(one.rater, one.rater)}) for one in given]
            found = reader_agreement(named, ("no", "yes"), disputed=("1",))
            store.project(PROJECT).readings.keep_analysis(Analysis(inputs="", readers=found))

            page = text(connected, f"/projects/{PROJECT}/agreement")

            assert "different: 1 of 1" in page
            assert "readers are of different opinions" in page
            assert "apart:" not in page
            assert "of 1 images" not in page

    def test_one_reader(self, connected, store):
        reconciled(store, answers=9)

        page = text(connected, f"/projects/{PROJECT}/agreement")

        assert "Only one reader has answered so far" in page
        assert "annotations_per_task=2" in page
        assert "Reader 1 9 7 0 – – –" in page
        assert "Which images need a decision?" not in page
        assert "al_reader_kappa{" not in connected.get("/metrics").text
