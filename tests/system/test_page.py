"""The owner's pages in a real browser, over a real Valkey and a prepared data folder; no Label Studio is needed.

``AL_SCREENSHOTS`` names a folder that pictures of the page are written to: ``docs`` renews those of the README.
"""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rq import Queue, Worker
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support import expected_conditions as expected
from selenium.webdriver.support.wait import WebDriverWait
from werkzeug.serving import make_server

from ml_backend.analytics.overview import analyse
from ml_backend.config import Settings
from ml_backend.processes import Valkey
from ml_backend.scheduling import QUEUE, Progress, RoundQueue, connect_redis
from ml_backend.scheduling.connections import configuration
from ml_backend.server.app import create_app
from tests.system.owner_data import KEY, add_embedding, add_readers, prepare

pytestmark = [pytest.mark.system, pytest.mark.browser]

WIDTHS = {1400: 1000, 390: 844}  # CSS pixels: a desk, a phone
TIMEOUT_S = 30
A4 = {"width": 670, "height": 950, "deviceScaleFactor": 1, "mobile": False}  # within the margins, at 96 dpi
BROKEN_WORDS = r"""
return [...document.querySelectorAll('th, td')].flatMap(cell => {
  const text = cell.firstChild, found = [];
  if (text && text.nodeType === 3) for (const word of text.data.matchAll(/[^\s-]+/g)) {
    const range = document.createRange();
    range.setStart(text, word.index); range.setEnd(text, word.index + word[0].length);
    if (range.getClientRects().length > 1) found.push(word[0]);
  }
  return found;
});"""
"""Script: the words in tables that a line break divides."""
TIMES = ("/", f"/projects/{KEY}", f"/projects/{KEY}/rounds/r000009")
"""Pages that show moments, in the browser's time zone."""


@pytest.fixture(scope="module")
def queue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoundQueue]:
    with Valkey(tmp_path_factory.mktemp("page-valkey")).start() as service:
        service.wait()
        yield RoundQueue(connect_redis(service.url))


@pytest.fixture(scope="module")
def url(queue: RoundQueue, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The real app on a port, behind its credentials, with a project that has learned for three weeks."""
    folder: Path = tmp_path_factory.mktemp("page")
    store = prepare(folder)
    add_readers(store)
    add_embedding(store)
    analyse(store.project(KEY), *configuration(store.connection(KEY.id)))
    queue.count_changes(KEY, 12, 20, 192)
    settings = Settings.load(data_dir=folder, basic_auth_user="owner", basic_auth_pass="secret")
    server = make_server("127.0.0.1", 0, create_app(settings, queue), threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://owner:secret@127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(params=["light", "dark"])
def scheme(request: pytest.FixtureRequest, browser: webdriver.Chrome) -> str:
    feature = {"name": "prefers-color-scheme", "value": str(request.param)}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    return str(request.param)


def open_at(browser: webdriver.Chrome, url: str, width: int) -> None:
    """Open a page on a screen so wide; a window of Chromium's own has no less than 500 pixels."""
    metrics = {"width": width, "height": WIDTHS[width], "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(url)
    # Pictures further down are loaded when they are near.
    browser.execute_script("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
    WebDriverWait(browser, TIMEOUT_S).until(
        lambda b: b.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth)")
    )


def complaints(browser: webdriver.Chrome) -> list[str]:
    return [str(entry["message"]) for entry in browser.get_log("browser")]


def serious_findings(browser: webdriver.Chrome) -> list[str]:
    """What axe-core finds that keeps somebody from using the page."""
    import axe_core_python

    program = (Path(str(axe_core_python.__file__)).parent / "axe.min.js").read_text(encoding="utf-8")
    browser.execute_script(program)
    found: dict[str, Any] = browser.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
    assert found["passes"], "axe looked at nothing"
    return [
        f"{one['id']} ({one['impact']}): {one['help']}; {[node['html'][:200] for node in one['nodes']][:3]}"
        for one in found["violations"]
        if one["impact"] in {"serious", "critical"}
    ]


def picture(shown: webdriver.Chrome | WebElement, name: str) -> None:
    if folder := os.environ.get("AL_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        path = str(Path(folder) / name)
        assert shown.screenshot(path) if isinstance(shown, WebElement) else shown.save_screenshot(path)


class TestPage:
    @pytest.mark.parametrize("width", WIDTHS)
    @pytest.mark.parametrize(
        "path",
        [
            "/",
            f"/projects/{KEY}",
            *(
                f"/projects/{KEY}/{page}"
                for page in ("agreement", "rounds/r000009", "images", "options", "compare", "state")
            ),
        ],
    )
    def test_is_whole_on_a_desk_and_on_a_phone(self, browser, url, scheme, width, path):
        # Held still: what reloads by itself must let its reader stop that.
        open_at(browser, f"{url}{path}?still=1", width)

        assert browser.find_elements(By.CSS_SELECTOR, "h1")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert complaints(browser) == []
        assert serious_findings(browser) == []
        times = browser.execute_script("return [...document.querySelectorAll('time')].map(t => [t.title, t.innerText])")
        assert all(title.endswith(" UTC") and "UTC" not in shown for title, shown in times)
        assert bool(times) == (path in TIMES)
        if path.endswith("/state"):
            ends = "return [...document.querySelectorAll('.meanings td')].map(t => t.getBoundingClientRect().right)"
            assert 0 < max(browser.execute_script(ends)) <= width
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", A4)
            broken = browser.execute_script(BROKEN_WORDS)
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
            assert broken == []
        if path == f"/projects/{KEY}" and scheme == "light":
            assert len(browser.find_elements(By.CSS_SELECTOR, ".tiles img")) == 11
            picture(browser, f"page-{width}.png")
        if path == f"/projects/{KEY}" and scheme == "light" and width == 1400:
            picture(browser.find_element(By.XPATH, "//section[h2='Chosen to be labelled next']"), "batch-1400.png")

    @pytest.mark.parametrize("width", WIDTHS)
    def test_the_readers_screen_is_legible_from_two_metres(self, browser, url, width):
        """At 0.27 mm a pixel, figures of 90 pixels are 24 mm high, and words of 24 pixels 6 mm."""
        browser.get(f"{url}/projects/{KEY}")  # which analyses it, as the reconciler does
        open_at(browser, f"{url}/projects/{KEY}/readers?still=1", width)

        sizes = "return [...document.querySelectorAll(arguments[0])].map(e => parseFloat(getComputedStyle(e).fontSize))"
        figures, words = browser.execute_script(sizes, "dd b"), browser.execute_script(sizes, "dt, dd")
        assert len(figures) == 5
        if width == 1400:
            assert min(figures) >= 90
            assert min(words) >= 24
            assert browser.execute_script("return document.documentElement.scrollHeight") <= WIDTHS[width]
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert complaints(browser) == []
        assert serious_findings(browser) == []
        picture(browser, f"readers-{width}.png")

    def test_a_project_is_paused_and_goes_on(self, browser, url, queue):
        """By its buttons; labels are counted meanwhile and start nothing."""
        open_at(browser, f"{url}/projects/{KEY}", 1400)
        assert browser.find_element(By.LINK_TEXT, "Stop that")
        assert "12 of 20" in browser.find_element(By.TAG_NAME, "main").text

        press(browser, "Pause")
        assert state(browser) == "Paused"
        assert "no round starts by itself" in browser.find_element(By.CSS_SELECTOR, ".said").text
        assert not queue.count_changes(KEY, 10).due

        press(browser, "Resume")
        assert state(browser) == "Waiting"
        assert queue.status(KEY).waiting == "labels"
        claim = queue.claim(KEY, int(queue.redis.hget(f"al:{KEY}", "waiting") or 0))
        assert claim is not None

        now = time.time()
        data = {"started": now, "stage_started": now - 30, "updated": now}
        queue.write_progress(KEY, Progress(generation=1, stage="score", done=1, total=4, **data))
        browser.refresh()
        assert state(browser) == "Waiting"  # the worker is gone
        worker = Worker([Queue(QUEUE, connection=queue.redis)], connection=queue.redis)
        worker.register_birth()
        browser.refresh()
        assert state(browser) == "Working"
        assert "Time left: about 2 minutes" in " ".join(browser.find_element(By.TAG_NAME, "main").text.split())

        claim.finish()
        worker.register_death()
        press(browser, "Train now")
        assert queue.status(KEY).waiting == "forced"
        assert complaints(browser) == []


def press(browser: webdriver.Chrome, text: str) -> None:
    button = browser.find_element(By.XPATH, f"//button[normalize-space(.)='{text}']")
    button.click()
    # The page before may show what an earlier button did.
    WebDriverWait(browser, TIMEOUT_S).until(expected.staleness_of(button))
    WebDriverWait(browser, TIMEOUT_S).until(lambda b: b.find_elements(By.CSS_SELECTOR, ".said"))


def state(browser: webdriver.Chrome) -> str:
    return browser.find_element(By.CSS_SELECTOR, ".state").text.split()[-1]


def test_similar_images_are_shown_and_put_next(browser, url, queue):
    """The map on a phone in the dark, then from an image of its list to the button."""
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [dark]})
    open_at(browser, f"{url}/projects/{KEY}/map?by=batch", 390)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    assert serious_findings(browser) == []
    assert len(browser.find_elements(By.CSS_SELECTOR, "svg a circle")) > 100

    browser.find_element(By.CSS_SELECTOR, "summary").click()
    browser.find_element(By.CSS_SELECTOR, "details a").click()
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    assert serious_findings(browser) == []
    boxes = browser.find_elements(By.NAME, "chosen")
    chosen = [box.get_attribute("value") for box in boxes[1:]]
    browser.execute_script("arguments[0].click()", boxes[0])
    browser.execute_script("arguments[0].click()", browser.find_element(By.CSS_SELECTOR, "form button"))

    said = WebDriverWait(browser, TIMEOUT_S).until(
        expected.presence_of_element_located((By.CSS_SELECTOR, "[role=status]"))
    )
    assert said.text.startswith("Put next")
    assert queue.status(KEY).waiting  # a round that an earlier test requested publishes them too
    assert f"({', '.join(chosen)})" in browser.find_element(By.CSS_SELECTOR, ".long").text
    assert complaints(browser) == []
