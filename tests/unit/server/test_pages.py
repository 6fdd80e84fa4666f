"""The owner's pages: what they show, who may press their buttons, and what hostile names come to."""

import csv
import re
from urllib.parse import urljoin

import pytest
from markupsafe import escape
from pydantic import SecretStr

from ml_backend.config import Settings
from ml_backend.label_studio.sync import TaskCache
from ml_backend.scheduling import LastError, QueueStatus
from ml_backend.schemas import ProjectKey, PutOff, Ranking, Reread
from ml_backend.server.actions import MESSAGES, CsrfTokens, is_same_origin
from ml_backend.server.app import create_app
from ml_backend.storage.project_state import Pause, Thumbnails
from tests.fakes import NOON, make_fit, make_report
from tests.label_configs import LEARNED
from tests.unit.server.memory import PROJECT, payload
from tests.unit.server.test_predictions import save_round

HTML = {"Accept": "text/html"}
PAGE = f"/projects/{PROJECT}"
OURS = {"Origin": "http://localhost"}
HOSTILE = "<script>alert(1)</script>"


def token(client, action):
    page = client.get(PAGE, headers=HTML).text
    found = re.search(rf'action="\.\.{PAGE}/{action}"><input type="hidden" name="token" value="(\w+)"', page)
    assert found, f"no button {action}"
    return found[1]


def press(client, action, headers=OURS, **form):
    return client.post(f"{PAGE}/{action}", data={"token": token(client, action)} | form, headers=headers)


class TestProject:
    def test_labels_to_the_next_round(self, connected, store, queue):
        save_round(store)
        queue.state = QueueStatus(changes=12, threshold=20)

        page = connected.get(PAGE, headers=HTML).text

        assert "12 of 20" in page
        assert ">0 of 2<" in page  # of every class, until the first training
        assert "by chance" not in page or "Chosen to be labelled next" in page

    def test_names_the_question(self, connected):
        """That which counts of several, and what is not learned."""
        told = payload("setup")
        assert connected.post("/setup", json=told | {"schema": LEARNED["two questions"].xml}).status_code == 200
        learned = LEARNED["two questions"].not_learned

        assert f"It {escape(learned)}." in connected.get(PAGE, headers=HTML).text
        assert connected.get("/").json["projects"][0]["question"] == learned

    def test_its_number_alone_leads_to_it(self, connected, store):
        """With the rest of the address; where two projects had the number, neither is meant."""
        found = connected.get(f"/projects/{PROJECT.id}/images?tab=disagree", headers=HTML)
        assert (found.status_code, found.headers["Location"]) == (302, f"../..{PAGE}/images?tab=disagree")
        bare = connected.get(f"/projects/{PROJECT.id}", headers=HTML)
        assert urljoin(f"/projects/{PROJECT.id}", bare.headers["Location"]) == PAGE
        assert connected.post(f"/projects/{PROJECT.id}/train", headers=OURS).status_code == 404
        [one] = store.connections()
        store.connect(one.model_copy(update={"project": ProjectKey(id=PROJECT.id, created=5)}))
        assert connected.get(f"/projects/{PROJECT.id}", headers=HTML).status_code == 404

    def test_json_for_anybody_else(self, connected, store):
        save_round(store)

        told = connected.get(PAGE).json

        assert told["project"] == str(PROJECT)
        assert told["paused"] is None
        assert [line["round_id"] for line in told["rounds"]] == ["r000001"]

    def test_failed_says_why_and_what_to_do(self, connected, queue):
        queue.state = QueueStatus(last_error=LastError(kind="WeightsError", message=HOSTILE, at=0))

        page = connected.get(PAGE, headers=HTML).text

        assert "&lt;script&gt;alert(1)" in page
        assert HOSTILE not in page
        assert "“Train now” starts it at once" in page

    @pytest.mark.parametrize("path", ["/projects/9.9", "/projects/x", "/projects/2.1%0a", f"{PAGE}/rounds/r9"])
    def test_unknown_is_told_in_words(self, connected, path):
        for headers in ({}, HTML):
            response = connected.get(path, headers=headers)

            assert response.status_code == 404
        assert "<h1>There is nothing at this address</h1>" in response.text
        assert "error" in connected.get(path).json

    def test_hostile_names_stay_text(self, connected, store):
        report = make_report()
        ranking = Ranking(strategy=HOSTILE, image_ids=(HOSTILE, "=1+1"), scores=(1.0, 0.5), batch_size=2)
        request = report.request.model_copy(update={"classes": (HOSTILE, "b")})
        store.project(PROJECT).save(
            report.model_copy(
                update={"ranking": ranking, "request": request, "labels_per_class": {HOSTILE: 1, "b": 2}}
            ),
            None,
            None,
        )

        for path in (PAGE, f"{PAGE}/rounds/r000001"):
            page = connected.get(path, headers=HTML)
            assert page.status_code == 200
            assert HOSTILE not in page.text
            assert page.text.count("<script") == page.text.count('times.js" defer></script>') == 1
        rows = list(csv.reader(connected.get(f"{PAGE}/rounds/r000001.csv").text.lstrip("\ufeff").splitlines()))
        assert rows[0][:2] == ["place", "image"]
        assert rows[2][1] == "'=1+1"
        assert connected.get(f"{PAGE}/rounds.csv").text.count("r000001") == 1

    def test_a_round_that_only_ranked_again_names_its_network(self, connected, store):
        """Nor does the page suggest a comparison that would end for want of random images, or no page of options."""
        report, project = make_report(), store.project(PROJECT)
        request = report.request.model_copy(update={"control_share": 0.1})
        project.save(report.model_copy(update={"request": request, "fit": make_fit()}), None, None)
        again = request.model_copy(update={"round_id": "r000002", "reason": "rerank"})
        project.save(report.model_copy(update={"request": again, "base": "r000001"}), None, None)
        project.readings.keep_mirror(TaskCache(read_at=NOON, whole_at=NOON, tasks={}))

        page = connected.get(PAGE, headers=HTML).text

        assert "ranked again by round 1's network" in page
        assert "not trained<" not in page
        assert "Randomly drawn images, unmarked among the others" in page
        assert "ml-backend proof" not in page
        assert f'On the page <a href="..{PAGE}/options">' in page

    def test_a_round_names_what_it_put_off_and_asks_again(self, connected, store):
        report = make_report()
        put_off = (PutOff(image_id="2", reason="more than 2 images of patient <b>17</b> in the batch"),)
        again = Reread(image_id="9", after=1, value=0.62, label_error=3.14, answers=1)
        ranking = report.ranking.model_copy(update={"put_off": put_off, "rereads": (again,)})
        store.project(PROJECT).save(report.model_copy(update={"ranking": ranking}), None, None)

        page = connected.get(f"{PAGE}/rounds/r000001", headers=HTML).text
        answer = connected.get(f"{PAGE}/rounds/r000001").json

        assert "1 image to a later batch" in page
        assert '/data?task=9">Task 9</a>, after 1 image of the order: a network that did not learn from it' in page
        assert "expects another label with confidence</li>" in page
        assert "task 9 0.62, 3.1.</p>" in page
        assert "Task 2: more than 2 images of patient &lt;b&gt;17&lt;/b&gt; in the batch" in page
        assert answer["report"]["ranking"]["put_off"] == [one.model_dump() for one in put_off]

    def test_pictures_are_served_to_who_may_see_them(self, connected, store):
        save_round(store)
        Thumbnails(store.project(PROJECT).folder).keep("r000001", [("4", b"\xff\xd8jpeg")])

        response = connected.get(f"{PAGE}/rounds/r000001/thumbs/4.jpg")

        assert (response.data, response.content_type) == (b"\xff\xd8jpeg", "image/jpeg")
        assert response.headers["Cache-Control"] == "no-store"
        assert connected.get(f"{PAGE}/rounds/r000001/thumbs/..%2freport.jpg").status_code == 404
        assert "thumbs/4.jpg" in connected.get(PAGE, headers=HTML).text


class TestButtons:
    def test_train_now(self, connected, queue):
        response = press(connected, "train")

        assert (response.status_code, response.headers["Location"]) == (303, f"../..{PAGE}?done=asked")
        assert queue.requests == ["forced"]
        assert MESSAGES["asked"] in connected.get(f"{PAGE}?done=asked", headers=HTML).text

    def test_train_now_says_that_no_label_has_changed(self, connected, queue, store):
        project = store.project(PROJECT)
        project.save(make_report(), None, None)
        assert press(connected, "train").headers["Location"].endswith("done=asked")  # nothing is trained yet
        project.save(make_report("r000002").model_copy(update={"fit": make_fit()}), None, None)
        assert press(connected, "train").headers["Location"].endswith("done=asked-again")
        queue.state = QueueStatus(changes=1)
        assert press(connected, "train").headers["Location"].endswith("done=asked")

    def test_top_up(self, connected, queue):
        press(connected, "topup")

        assert queue.requests == ["topup"]

    def test_pause_holds_what_starts_by_itself_and_nothing_else(self, connected, store, queue):
        queue.state = QueueStatus(changes=18, threshold=20)
        press(connected, "pause")
        assert connected.get("/").json["projects"][0]["paused"]
        assert "Paused" in connected.get(PAGE, headers=HTML).text

        for _ in range(3):
            connected.post("/webhook", json=payload("ANNOTATION_CREATED"))
        assert (queue.state.changes, queue.state.threshold, queue.requests) == (21, 0, [])
        press(connected, "train")
        assert queue.requests == ["forced"]

        connected.post("/setup", json=payload("setup"))
        assert queue.idle_requests == []
        press(connected, "resume")
        assert queue.requests == ["forced", "labels"]
        assert queue.state.threshold == 20
        assert not Pause(store.project(PROJECT).folder).holds

    def test_a_pause_is_kept_where_redis_forgets(self, connected, queue):
        queue.state = QueueStatus(changes=0, threshold=20)
        press(connected, "pause")
        queue.state = QueueStatus()

        connected.post("/webhook", json=payload("ANNOTATION_CREATED"))

        assert queue.state.threshold == 0
        press(connected, "resume")
        assert queue.state.threshold == 20

    @pytest.mark.parametrize("given", ["", "0" * 64, "ü"])
    def test_a_wrong_token(self, connected, queue, given):
        assert connected.post(f"{PAGE}/train", data={"token": given}, headers=OURS).status_code == 403
        assert connected.post(f"{PAGE}/train", headers=OURS).status_code == 403
        assert queue.requests == []

    def test_the_token_of_another_button(self, connected, queue):
        assert press(connected, "train", token=token(connected, "pause")).status_code == 403

    @pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil.example", "http://["])
    def test_a_page_of_somebody_else(self, connected, queue, origin):
        headers = {"Origin": origin, "X-Forwarded-Host": "evil.example"}
        assert press(connected, "train", headers=headers).status_code == 403
        assert queue.requests == []

    def test_no_credentials(self, store, queue):
        settings = Settings(data_dir=store.root, basic_auth_user="ls", basic_auth_pass=SecretStr("x"))
        client = create_app(settings, queue).test_client()

        for action in ("train", "topup", "pause", "resume"):
            assert (
                client.post(f"{PAGE}/{action}", data={"token": CsrfTokens().of(str(PROJECT), action)}).status_code
                == 401
            )


def test_same_origin_is_the_host_that_was_asked():
    assert is_same_origin("https://Backend.example:9090", "backend.example:9090")
    assert not is_same_origin("https://backend.example", "backend.example:9090")
    assert not is_same_origin("", "")


def test_the_browsers_own_judgement_outranks_a_host_that_a_proxy_wrote():
    assert is_same_origin("https://host.example", "backend:9090", "same-origin")
    for fetched in ("same-site", "cross-site", "none", ""):
        assert not is_same_origin("https://host.example", "host.example", fetched)
