"""Page object of Label Studio's labelling page, driven by keys; and the requests that the page sends."""

import io
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support import expected_conditions as expected
from selenium.webdriver.support.wait import WebDriverWait

TIMEOUT_S = 60
AGAIN_S = 2
# Toasts go away by themselves: each is noted when it comes.
NOTE_TOASTS = """
window.toasts = [];
new MutationObserver(changes => changes.forEach(change => change.addedNodes.forEach(node => {
  const found = node.querySelector?.('[class*=toast_]') ?? (node.closest?.('[class*=toast_]'));
  if (found) window.toasts.push([found.className.includes('error') ? 'error' : 'info', found.innerText]);
}))).observe(document, {childList: true, subtree: true});
"""
# The page ignores Ctrl+Enter for 0.2 s after a submission.
READY = "return Htx.annotationStore.selected && !Htx.isLoading && !Htx.isSubmitting"
SELECTED = "return document.querySelector('.lsf-choice__item:has(input:checked)')?.innerText"
TASK = "document.querySelector('.lsf-choice__item') && document.querySelector('.lsf-current-task__task-id')"
HIDDEN = """
return [...document.querySelectorAll('.question h3, .lsf-choice__item, [data-testid=bottombar-submit-button]')].filter(
  one => {
    const box = one.getBoundingClientRect();
    return !one.contains(document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2));
  }).map(one => one.innerText)
"""
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the window


@dataclass
class Sent:
    """A request of the page to Label Studio's API; the status is None until the answer comes."""

    method: str
    path: str  # with the query
    body: Any
    status: int | None = None


class LabelingPage:
    """The steps of a reader in a browser: log in, "Label All Tasks", a hotkey, Ctrl+Enter."""

    def __init__(self, browser: webdriver.Chrome, url: str) -> None:
        self._browser = browser
        self._url = url
        self._wait = WebDriverWait(browser, TIMEOUT_S, poll_frequency=0.05)
        self._sent: dict[str, Sent] = {}
        self._window = browser.current_window_handle
        browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": NOTE_TOASTS})

    def log_in(self, email: str, password: str) -> None:
        self._browser.get(f"{self._url}/user/login/")
        self._browser.find_element(By.NAME, "email").send_keys(email)
        self._browser.find_element(By.NAME, "password").send_keys(password, Keys.ENTER)
        self._wait.until(lambda b: "/user/login" not in b.current_url)

    def in_a_new_tab(self) -> "LabelingPage":
        """The page in another tab of this browser, which is then in front."""
        self._browser.switch_to.new_window("tab")
        return LabelingPage(self._browser, self._url)

    def in_front(self) -> "LabelingPage":
        """Bring the tab of this page to the front."""
        self._browser.switch_to.window(self._window)
        return self

    def label_all_tasks(self, project_id: int) -> None:
        self._browser.get(f"{self._url}/projects/{project_id}/data")
        button = (By.XPATH, "//button[normalize-space(.)='Label All Tasks']")
        self._wait.until(expected.element_to_be_clickable(button)).click()

    def open_in_data_manager(self, project_id: int, task_id: str) -> None:
        """Open a task from the list of tasks, as an owner does who looks at an annotation."""
        self._browser.get(f"{self._url}/projects/{project_id}/data?task={task_id}")
        self._wait.until(lambda _: self.task_id() == task_id)

    def task_id(self) -> str:
        """The task on the screen, as its bottom bar names it."""
        return str(self._wait.until(lambda b: b.execute_script(f"return ({TASK})?.firstChild.textContent")))

    def selected(self) -> str | None:
        """The hotkey of the class that is selected."""
        found = re.search(r"\[(.)\]", self._browser.execute_script(SELECTED) or "")
        return found and found[1]

    def choose(self, key: str) -> None:
        """Press the hotkey, unless its class is selected already: then it would be switched off."""
        self._wait.until(lambda _: self._choose(key))

    def answer(self, key: str) -> str:
        """Choose, then Ctrl+Enter, and wait for the next image; returns the annotated task."""
        before = self.task_id()
        self.choose(key)
        self._press(Keys.CONTROL, Keys.ENTER)
        self._wait_for_another(before)
        return before

    def skip(self) -> str:
        """Ctrl+Space, and wait for the next image; returns the skipped task."""
        before = self.task_id()
        self._press(Keys.CONTROL, Keys.SPACE)
        self._wait_for_another(before)
        return before

    def back(self) -> str:
        """Press the arrow to the previous image; returns its task."""
        return self._arrow("prev-task")

    def forward(self) -> str:
        """Press the arrow to the next image; returns its task."""
        return self._arrow("next-task")

    def update(self, key: str) -> None:
        """Choose another class for an earlier annotation, Ctrl+Enter, and wait until the page has loaded it again."""
        before = len(self.sent())
        self.choose(key)
        self._press(Keys.CONTROL, Keys.ENTER)
        self._wait.until(
            lambda _: (
                self._is_accepted()
                and [one.status for one in self.sent()[before:] if one.method == "PATCH"] not in ([], [None])
            )
        )
        self._wait_until_ready()

    def errors(self) -> list[str]:
        """The red toasts since the page was loaded."""
        return [text for kind, text in self._browser.execute_script("return window.toasts") if kind == "error"]

    def sent(self, *methods: str) -> list[Sent]:
        """What pages of this browser have sent to Label Studio's API so far, oldest first."""
        for entry in self._browser.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            details = message["params"]
            if message["method"] == "Network.requestWillBeSent":
                request = details["request"]
                if request["url"].startswith(f"{self._url}/api/"):
                    body = json.loads(request["postData"]) if "postData" in request else None
                    path = request["url"].removeprefix(self._url)
                    self._sent[details["requestId"]] = Sent(request["method"], path, body)
            elif message["method"] == "Network.responseReceived" and details["requestId"] in self._sent:
                self._sent[details["requestId"]].status = details["response"]["status"]
        return [one for one in self._sent.values() if not methods or one.method in methods]

    def _choose(self, key: str) -> bool:
        if self.selected() == key:
            return True
        self._press(key)
        # A key that is pressed before the form is ready does nothing.
        quick = WebDriverWait(self._browser, AGAIN_S, poll_frequency=0.05)
        try:
            return bool(quick.until(lambda _: self.selected() == key))
        except TimeoutException:
            return False

    def _arrow(self, name: str) -> str:
        before = self.task_id()
        self._browser.execute_script(f"document.querySelector('[data-testid={name}]').click()")
        self._wait_for_another(before)
        return self.task_id()

    def _wait_for_another(self, before: str) -> None:
        self._wait.until(lambda _: self._is_accepted() and self.task_id() != before)
        self._wait_until_ready()

    def _is_accepted(self) -> bool:
        if errors := self.errors():
            pytest.fail(f"the page says: {'; '.join(errors)}")
        return True

    def _wait_until_ready(self) -> None:
        self._wait.until(lambda b: b.execute_script(READY))

    def _press(self, *keys: str) -> None:
        self._browser.find_element(By.TAG_NAME, "body").send_keys(*keys)


class ReadingScreen:
    """What a reader sees of an image on a screen of some size, measured in screenshots.

    ``AL_SCREENSHOTS`` names a folder that the last screenshot of each size is written to.
    """

    def __init__(self, browser: webdriver.Chrome) -> None:
        self._browser = browser
        self._wait = WebDriverWait(browser, TIMEOUT_S, poll_frequency=0.2)
        self._pixels: Any = None  # of the last screenshot, uint8[height, width, 3]

    def resize(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def image(self, colour: tuple[int, int, int]) -> Box:
        """Where an image of one colour is seen, once it no longer moves."""
        seen: list[tuple[int, ...] | None] = [None]

        def still(_: webdriver.Chrome) -> tuple[int, ...] | None:
            shot = self._browser.get_screenshot_as_png()
            self._pixels = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"))
            if folder := os.environ.get("AL_SCREENSHOTS"):
                Path(folder, f"reading-{self._pixels.shape[1]}.png").write_bytes(shot)
            rows, columns = np.nonzero((self._pixels == colour).all(axis=-1))
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else []
            seen.append(tuple(map(int, box)) or None)
            return seen[-1] if seen[-1] == seen[-2] else None

        found = self._wait.until(still)
        assert found is not None
        left, top, right, bottom = found
        return left, top, right, bottom

    def colour(self, x: int, y: int) -> tuple[int, ...]:
        """The colour of a pixel when the image was last measured."""
        return tuple(self._pixels[y, x].tolist())

    def ground(self) -> Box:
        """The room that Label Studio leaves to the label config."""
        box = self._browser.find_element(By.CSS_SELECTOR, ".lsf-main-content").rect
        return box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]

    def hidden(self) -> list[str]:
        """Question, choices and submit button, as far as they are outside of the window or covered."""
        found: list[str] = self._browser.execute_script(HIDDEN)
        return found

    def toggle_criteria(self) -> str:
        """Open the reading criteria, or close them; returns the text that is then seen."""
        panel = (By.CSS_SELECTOR, ".question [role=tabpanel]")
        before = "".join(one.text for one in self._browser.find_elements(*panel))
        self._browser.find_element(By.XPATH, "//*[normalize-space(text())='Reading criteria']").click()
        self._wait.until(lambda b: b.find_element(*panel).text != before)
        return self._browser.find_element(*panel).text

    def zoom_in(self) -> None:
        """Turn the wheel over the image, with Ctrl pressed."""
        box = self._browser.find_element(By.CSS_SELECTOR, ".konvajs-content").rect
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        wheel = {"type": "mouseWheel", "x": x, "y": y, "deltaX": 0, "deltaY": -120, "modifiers": 2}
        self._browser.execute_cdp_cmd("Input.dispatchMouseEvent", wheel)

    def fit(self) -> None:
        """Shift+1."""
        self._browser.find_element(By.TAG_NAME, "body").send_keys(Keys.SHIFT, "1")
