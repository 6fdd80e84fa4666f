"""A reader's hands in Label Studio: log in, "Label All Tasks", a hotkey, Ctrl+Enter."""

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support import expected_conditions as expected
from selenium.webdriver.support.wait import WebDriverWait

__all__ = ["Hands"]

TIMEOUT_S = 60


class Hands:
    """The steps of a reader, as hands would make them."""

    def __init__(self, browser: webdriver.Chrome, url: str) -> None:
        self._browser = browser
        self._url = url
        self._wait = WebDriverWait(browser, TIMEOUT_S)

    def log_in(self, email: str, password: str) -> None:
        self._browser.get(f"{self._url}/user/login/")
        self._browser.find_element(By.NAME, "email").send_keys(email)
        self._browser.find_element(By.NAME, "password").send_keys(password, Keys.ENTER)
        self._wait.until(lambda b: "/user/login" not in b.current_url)

    def label_all_tasks(self, project_id: int) -> None:
        self._browser.get(f"{self._url}/projects/{project_id}/data")
        button = (By.XPATH, "//button[normalize-space(.)='Label All Tasks']")
        self._wait.until(expected.element_to_be_clickable(button)).click()

    def task_id(self) -> str:
        """The task on the screen, as its bottom bar names it."""
        number = "document.querySelector('.lsf-choice__item') && document.querySelector('.lsf-current-task__task-id')"
        return str(self._wait.until(lambda b: b.execute_script(f"return ({number})?.firstChild.textContent")))

    def answer(self, key: str) -> None:
        """Press the hotkey, then Ctrl+Enter, and wait for the next image."""
        before = self.task_id()
        body = self._browser.find_element(By.TAG_NAME, "body")
        body.send_keys(key)
        self._wait.until(expected.presence_of_element_located((By.CSS_SELECTOR, ".lsf-choice__item input:checked")))
        body.send_keys(Keys.CONTROL, Keys.ENTER)
        self._wait.until(lambda _: self.task_id() != before)
