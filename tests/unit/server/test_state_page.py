"""The state of a project in one file, and two rounds side by side, over a project that has learned for some weeks."""

import re

import pytest

from ml_backend.config import ProjectOptions, Settings
from ml_backend.schemas import Ranking, round_name
from ml_backend.server.app import create_app
from ml_backend.storage import RoundStore
from tests.fakes import make_fit, make_report
from tests.system.owner_data import KEY, prepare
from tests.unit.server.memory import PROJECT, MemoryQueue

HTML = {"Accept": "text/html"}
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    store: RoundStore = prepare(tmp_path_factory.mktemp("state"), rounds=6)
    return create_app(Settings(data_dir=store.root), MemoryQueue()).test_client(), store.project(KEY)


def table(page, caption):
    """The rows of a table: name -> cells."""
    body = page.partition(f"<caption>{caption}</caption>")[2].partition("</table>")[0]
    rows = re.findall(r'<th scope="row">(.*?)</th>(.*?)</tr>', body, re.DOTALL)
    return {name: re.findall(r"<td[^>]*>(.*?)</td>", cells) for name, cells in rows}


class TestState:
    def test_holds_every_figure_option_and_round_and_loads_nothing(self, learned):
        client, project = learned

        answer = client.get(f"/projects/{KEY}/state", headers=HTML)

        assert answer.status_code == 200
        for name in ProjectOptions.model_fields:
            assert f'<th scope="row">{name}</th>' in answer.text
        assert re.search(r'<th scope="row">strategy</th><td>bald \*</td>', answer.text)
        assert re.search(r'<th scope="row">dropout</th><td>0.5</td>', answer.text)
        for name, value in (("ignore_classes", "none"), ("channels_last", "true"), ("prelabel", "false")):
            assert f'<th scope="row">{name}</th><td>{value}</td>' in answer.text
        newest = project.latest_summary()
        for one in project.summaries()[0]:
            assert f'<th scope="row">{round_name(one.round_id).capitalize()}</th>' in answer.text
        assert f"accuracy {newest.fit.validation_accuracy:.3f}" in answer.text
        assert ", ".join(f"{name} {count}" for name, count in newest.labels_per_class.items()) in answer.text
        assert answer.text.count("<svg") >= 3
        assert not re.search(r"<(script|link|img|iframe)\b|https?://(?!label-studio\.example)", answer.text)

    def test_of_a_project_without_a_round(self, connected):
        page = connected.get(f"/projects/{PROJECT}/state", headers=HTML).text

        assert "No network was trained yet." in page
        assert "no round holds a manifest" in page


class TestCompare:
    def test_options_labels_figures_and_order(self, connected, store):
        project, report = store.project(PROJECT), make_report()
        names = [str(number) for number in range(200)]
        for round_id, order, options, fit in (
            ("r000001", names, {"epochs": 50, "dropout": 0.5}, None),
            (
                "r000002",
                [*names[10:30], *names[:10], *names[30:190]],
                {"epochs": 9, "dropout": 0.5, "prelabel": True},
                make_fit().model_copy(update={"validation_auroc": 0.876}),
            ),
        ):
            by = "random" if fit is None else "x"
            ranking = Ranking(strategy=by, image_ids=tuple(order), scores=(0.5,) * len(order), batch_size=5)
            request = report.request.model_copy(update={"round_id": round_id, "options": options})
            project.save(report.model_copy(update={"request": request, "ranking": ranking, "fit": fit}), None, None)

        page = connected.get(f"/projects/{PROJECT}/compare", headers=HTML).text

        assert table(page, "Options that differ") == {
            "ordered by": ["random", "x"],
            "epochs": ["50", "9"],
            "prelabel": ["–", "true"],
        }
        assert table(page, "Labels when the round began")["all"] == ["0", "0"]
        figures = table(page, "Training and ranking")
        assert figures["accuracy"] == ["–", "50 %"]
        assert figures["AU ROC"] == ["–", "0.88"]
        assert figures["images ranked"] == ["200", "190"]
        # The first 20 of both are 0 to 19 and 10 to 29; of 190 images in common.
        assert "10 of the first 20 are the same; by chance about 2 would be." in page
        assert "100 of the first 100 are the same" in page
        assert "Round 1 trained no network." in page
        anew = report.model_copy(update={"request": report.request.model_copy(update={"round_id": "r000003"})})
        project.save(anew.model_copy(update={"base": "r000002"}), None, None)
        assert "Round 3 only ranked anew, by the network of round 2: it has no training of its own." in (
            connected.get(f"/projects/{PROJECT}/compare", headers=HTML).text
        )
        other = connected.get(f"/projects/{PROJECT}/compare?a=r000002&b=r000001", headers=HTML).text
        assert table(other, "Options that differ")["prelabel"] == ["true", "–"]

    @pytest.mark.parametrize("query", ["", "?a=r9&b=r000001", f"?a={HOSTILE}"])
    def test_rounds_that_there_are_not(self, connected, store, query):
        store.project(PROJECT).save(make_report(), None, None)

        answer = connected.get(f"/projects/{PROJECT}/compare{query}", headers=HTML)

        assert answer.status_code == 404
        assert query or "The project has 1 round, and two are needed" in answer.text
        assert "<script" not in answer.text

    def test_offered_from_two_rounds_on(self, connected, store):
        for number, offered in ((1, False), (2, True)):
            store.project(PROJECT).save(make_report(f"r{number:06d}"), None, None)

            page = connected.get(f"/projects/{PROJECT}", headers=HTML).text

            assert ("Compare rounds" in page) is offered

    def test_any_two_rounds_of_a_project_that_has_learned(self, learned):
        client, _ = learned

        page = client.get(f"/projects/{KEY}/compare?a=r000002&b=r000006", headers=HTML).text

        assert table(page, "Training and ranking")["validation images"] == ["–", "48"]
        assert "more than 20 are needed to compare them" in page
