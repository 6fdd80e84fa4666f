"""Readers in a real browser: the keys of the label config, the order of the ranking, and no answer refused."""

import io
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from PIL import Image

from ml_backend.demo.options import DemoImage, draw_images
from ml_backend.demo.project import create_project, upload_images
from ml_backend.demo.readers import Reader
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.connect import read_label_config
from ml_backend.label_studio.formats import prediction
from ml_backend.label_studio.publisher import SAMPLING
from tests.page_requests import RECORDED, page_request
from tests.system.labeling_page import LabelingPage, ReadingScreen
from tests.system.live import SMALL_NETWORK, LiveProject

pytestmark = [pytest.mark.system, pytest.mark.browser]

KEYS = {"1": "normal", "2": "moderate", "3": "severe", "0": "unreadable"}
ANSWER = re.compile(r"/api/(tasks/(?P<task>\d+)/annotations|annotations/\d+\?taskID=(?P<same>\d+))")


class TestBrowser:
    def test_hotkeys_label_the_images_in_the_order_of_the_ranking(self, browser, live_project):
        project = live_project(draw_images(12, seed=3, side=64), {"image_side": 64, "weights": "none"})
        project.wait_for()
        reader = project.reader("browser")

        page = LabelingPage(browser, reader.url)
        page.log_in(reader.email, reader.password)
        page.label_all_tasks(project.id)
        seen = [page.answer(key) for key in KEYS]

        _, published = project.newest()
        assert tuple(seen) == published.image_ids[: len(KEYS)]
        tasks = project.exported()
        stored = {str(task["id"]): task["annotations"][0]["result"][0]["value"]["choices"] for task in tasks}
        assert stored == dict(zip(seen, [[label] for label in KEYS.values()], strict=True))


SHAPES = ((1280, 1280), (2048, 1280))  # pixels: a square and a wide image
GREEN = (0, 150, 0)  # in no other place of the page
WINDOWS = {1366: 768, 1920: 1080, 2560: 1440}
BESIDE_THE_IMAGE = 195  # pixels of the height: Label Studio's two bars, the question and the keys


def flat_image(name: str, shape: tuple[int, int]) -> DemoImage:
    content = io.BytesIO()
    Image.new("RGB", shape, GREEN).save(content, "PNG")
    return DemoImage(name, content.getvalue(), "normal", None)


def check_screen(screen: ReadingScreen, width: int, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """The whole image, as tall as the window allows, in the middle of a black ground; nothing below the fold."""
    left, top, right, bottom = box = screen.image(GREEN)
    assert bottom - top >= WINDOWS[width] - BESIDE_THE_IMAGE
    assert (right - left) / (bottom - top) == pytest.approx(shape[0] / shape[1], rel=0.01)
    ground = screen.ground()
    assert abs((left - ground[0]) - (ground[2] - right)) <= 50, "not centred beside the tools"
    assert {screen.colour(x, (top + bottom) // 2) for x in (left - 3, right + 3)} == {(0, 0, 0)}
    assert screen.hidden() == []
    return box


@dataclass(frozen=True)
class Ranked:
    """A project in which two images come without a pre-label, and then four with one."""

    id: int
    predictions: dict[str, int]  # task -> its prediction
    reader: Reader


@pytest.fixture(scope="module")
def ranked(label_studio) -> Iterator[Ranked]:
    with LabelStudioClient(label_studio.url, label_studio.api_key) as client:
        project_id, config = create_project(client, "Recorded", read_label_config("severity"))
        images = [flat_image(f"{number}.png", SHAPES[number % 2]) for number in range(6)]
        list(upload_images(client, label_studio.api_key, project_id, config.image_key, images))
        tasks = [str(task["id"]) for task in client.unlabelled_tasks(project_id)]
        suggestions = [None, None, "severe", "severe", "severe", "severe"]
        version = "al-r000001-entropy-000000"
        ranking = [
            prediction(task, place / 6, version, config, suggestion, confidence=0.75)
            for place, (task, suggestion) in enumerate(zip(tasks, suggestions, strict=True))
        ]
        client.import_predictions(project_id, ranking)
        client.patch_project(project_id, {"sampling": SAMPLING, "model_version": version})
        made = client.request("GET", "/api/predictions/", list, query={"project": str(project_id)})
        invite = str(client.request("GET", "/api/invite", dict)["invite_url"])
        with Reader("recorded", client.url) as reader:
            yield Ranked(project_id, {str(one["task"]): int(one["id"]) for one in made}, reader.sign_up(invite))
        client.send("DELETE", f"/api/projects/{project_id}/")


def test_the_page_sends_what_is_recorded(browser, ranked):
    """And always the prediction that the image was opened from. Simulated readers are held against the recording.

    Each of the images comes on another screen, and fills it.
    """
    page, screen = LabelingPage(browser, ranked.reader.url), ReadingScreen(browser)
    page.log_in(ranked.reader.email, ranked.reader.password)
    page.sent()

    seen: dict[str, list[object]] = {}

    def step(name: str, act: Callable[[], object]) -> None:
        before = len(page.sent())
        act()
        requests = [page_request(one.method, one.path, one.body) for one in page.sent()[before:]]
        seen[name] = [request for request in requests if request is not None]

    def open_first() -> None:
        page.label_all_tasks(ranked.id)
        page.task_id()

    def leave_a_choice() -> None:
        page.choose("1")
        page.back()

    first: list[tuple[str, Callable[[], object]]] = [
        ("open", open_first),
        ("submit", lambda: page.answer("3")),
        ("skip", page.skip),
        ("accept a pre-label", lambda: page.answer("3")),
        ("choose another class", lambda: page.answer("1")),
        ("skip with a pre-label", page.skip),
    ]
    windows = [(width, shape) for width in WINDOWS for shape in SHAPES]
    for (name, act), (width, shape) in zip(first, windows, strict=True):
        screen.resize(width, WINDOWS[width])
        step(name, act)
        box = check_screen(screen, width, shape)
        if name == "open":
            assert "3 severe: " in screen.toggle_criteria()
            assert screen.image(GREEN) == box  # they lie over the image, and do not move it
            assert screen.toggle_criteria() == ""
            screen.zoom_in()
            assert screen.image(GREEN) != box
            screen.fit()
            assert screen.image(GREEN) == box
    step("leave a choice", leave_a_choice)
    step("look back", page.back)
    page.back()
    step("update an accepted pre-label", lambda: page.update("2"))
    page.back()
    page.back()
    step("update", lambda: page.update("2"))

    assert seen == RECORDED
    answers = [(ANSWER.match(one.path), one) for one in page.sent("POST", "PATCH")]
    named = [(found["task"] or found["same"], one.body["parent_prediction"]) for found, one in answers if found]
    assert len(named) == 7
    assert named == [(task, ranked.predictions[task]) for task, _ in named]
    assert page.errors() == []


IMAGES = 23
OPTIONS = SMALL_NETWORK | {"epochs": 3, "batch_size": 10, "reserve": 40, "retrain_after": 16, "strategy": "entropy"}


@dataclass
class Desk:
    """A reader with a browser, and the keys that were pressed."""

    reader: Reader
    page: LabelingPage
    pressed: dict[str, str | None] = field(default_factory=dict)  # task -> class; None for a skip

    def __post_init__(self) -> None:
        self._random = random.Random(self.reader.name)

    def open(self, project_id: int) -> None:
        self.page.log_in(self.reader.email, self.reader.password)
        self.page.label_all_tasks(project_id)
        self.page.task_id()

    def label(self, count: int) -> None:
        for _ in range(count):
            key = self._random.choice("123")
            self.pressed[self.page.answer(key)] = KEYS[key]

    def skip(self) -> None:
        self.pressed[self.page.skip()] = None

    def change_previous(self) -> None:
        """Go back to the previous annotation, change it, and return to the open image."""
        task = self.page.back()
        key = next(key for key in "123" if KEYS[key] != self.pressed[task])
        self.page.update(key)
        self.pressed[task] = KEYS[key]
        self.page.forward()


class TestNewRankingsWhileLabelling:
    def test_no_answer_is_refused_lost_or_doubled(self, live_project, browsers):
        """Two readers label under four rankings; three more hold an image or an answer through all of them."""
        project = live_project(draw_images(90, seed=5, side=32), OPTIONS)
        _, first = project.wait_for()
        skips, changes = project.reader("skips"), project.reader("changes")
        to_skip = skips.next_task(project.id, project.config)
        to_change = changes.next_task(project.id, project.config)
        changes.submit(project.id, to_change, "normal", project.config)
        to_change = changes.reopen(project.id, to_change, project.config)
        ann, ben, cora = desks = [
            Desk(project.reader(name), LabelingPage(browsers(), project.client.url)) for name in ("ann", "ben", "cora")
        ]
        for desk in desks:
            desk.open(project.id)
        cora.label(1)
        [answered], held = cora.pressed, cora.page.task_id()
        data_manager = cora.page.in_a_new_tab()
        data_manager.open_in_data_manager(project.id, answered)

        def label(each: int) -> None:
            # In turn: two that ask Label Studio at the same instant may get the same image where it runs on sqlite.
            for _ in range(each):
                ann.label(1)
                ben.label(1)

        # Ann and Ben have an image on the screen whenever a ranking comes.
        project.after(lambda: label(8))
        project.after(lambda: project.connect(strategy="bald", prelabel=True, retrain_after=100))
        label(6)
        ann.skip()
        ben.label(1)
        project.start_training()
        label(6)
        project.after(project.start_training)
        ann.change_previous()
        ben.change_previous()
        label(IMAGES - 21)
        assert [len(ann.pressed), len(ben.pressed)] == [IMAGES, IMAGES]
        rankings = [order.version for order in project.store.orders()]
        assert rankings.index(first.version) == 0
        assert len(rankings) > 4

        cora.page.in_front()
        assert cora.page.task_id() == held
        cora.label(1)
        data_manager.in_front().update("2")
        cora.pressed[answered] = KEYS["2"]
        skips.skip(project.id, to_skip)
        changes.update(project.id, to_change, "severe", project.config)

        for page in (*(desk.page for desk in desks), data_manager):
            answers = [one for one in page.sent("POST", "PATCH") if ANSWER.match(one.path)]
            assert [one for one in answers if one.status not in (200, 201)] == []
            assert page.in_front().errors() == []
        given = {desk.reader.email: desk.pressed for desk in desks}
        given |= {skips.email: {to_skip.image_id: None}, changes.email: {to_change.image_id: "severe"}}
        pressed = [(task, email, value) for email, values in given.items() for task, value in values.items()]
        assert stored_annotations(project) == sorted(pressed)
        report, _ = project.train()
        assert report.labels_per_class == Counter(value for _, _, value in pressed if value is not None)
        assert report.disputed == ()


def stored_annotations(project: LiveProject) -> list[tuple[str, str, str | None]]:
    """Every annotation as task, reader and class; None for the class of a skip."""
    emails = {int(user["id"]): str(user["email"]) for user in project.client.request("GET", "/api/users/", list)}
    return sorted(
        (
            str(task["id"]),
            emails[one["completed_by"]],
            None if one["was_cancelled"] else one["result"][0]["value"]["choices"][0],
        )
        for task in project.exported()
        for one in task["annotations"]
    )
