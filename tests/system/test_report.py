"""The report in a real browser: no word out of sight on a phone, dark and light, and lines that can be hidden."""

from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from ml_backend.simulation.report import write_report
from tests.unit.simulation.drawn_results import drawn_results

pytestmark = [pytest.mark.system, pytest.mark.browser]

# Elements whose right edge lies outside the window, unless their own box scrolls or SVG cuts nothing off.
OUTSIDE = """
return [...document.querySelectorAll('body *')].filter(e => !e.closest('.box') && !e.closest('details:not([open])')
  && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(e => e.outerHTML.slice(0, 80))
"""


class Report:
    """A written report, as a window of some width shows it."""

    def __init__(self, browser: webdriver.Chrome, path: Path) -> None:
        self._browser = browser
        self._path = path

    def open(self, width: int, *, scheme: str = "light", media: str = "screen") -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self._browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        wish = {"media": media, "features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self._browser.execute_cdp_cmd("Emulation.setEmulatedMedia", wish)
        self._browser.get(self._path.as_uri())

    def ask(self, script: str) -> object:
        return self._browser.execute_script(script)

    def style(self, selector: str, name: str) -> str:
        found = self._browser.find_element(By.CSS_SELECTOR, selector)
        return str(found.value_of_css_property(name))


@pytest.fixture
def report(browser: webdriver.Chrome, tmp_path: Path) -> Report:
    path = tmp_path / "report.html"
    # A class whose name has no place to break, and the longest names of strategies.
    classes = ("normal", "viral", "bacterial_with_a_long_name_that_cannot_break_anywhere")
    strategies = ("random", "least_confidence", "variation_ratios")
    write_report(drawn_results(strategies, rounds=20, classes=classes, variants=("weighted", "unweighted")), path)
    return Report(browser, path)


class TestReport:
    @pytest.mark.parametrize("width", [390, 1400])
    def test_nothing_lies_outside_the_window(self, browser, report, width):
        report.open(width)

        assert report.ask(f"return document.documentElement.scrollWidth <= {width}")
        assert report.ask(OUTSIDE) == []
        assert browser.get_log("browser") == []

    def test_wide_tables_scroll_in_their_own_box(self, report):
        report.open(390)

        assert report.ask("return [...document.querySelectorAll('.box')].some(b => b.scrollWidth > b.clientWidth)")

    def test_words_in_figures_can_be_read_on_a_phone(self, report):
        """The SVG shrinks with its figure: what counts is the size on the screen."""
        report.open(390)

        smallest = report.ask(
            "return Math.min(...[...document.querySelectorAll('figure svg')].map(s => "
            "11.5 * s.getBoundingClientRect().width / s.viewBox.baseVal.width))"
        )
        assert isinstance(smallest, float)
        assert smallest >= 10

    def test_follows_the_readers_theme_and_prints_on_white(self, report):
        grounds = {}
        for scheme, media in (("light", "screen"), ("dark", "screen"), ("dark", "print")):
            report.open(1400, scheme=scheme, media=media)
            grounds[scheme, media] = report.style("body", "background-color")

        assert grounds["light", "screen"] == grounds["dark", "print"] != grounds["dark", "screen"]

    def test_a_strategy_can_be_hidden_without_a_script(self, browser, report):
        report.open(1400)
        before = report.style("figure .k1 .line", "stroke"), report.style("figure .k1", "display")

        browser.find_element(By.ID, "show-1").click()

        assert before[1] != "none"
        assert report.style("figure .k1", "display") == "none"
        assert report.style("figure .k0", "display") != "none"
        assert report.style(".legend .swatch.k1", "display") != "none"

    def test_lines_have_colours_of_their_own(self, report):
        report.open(1400)

        assert len({report.style(f"figure .k{style} .line", "stroke") for style in range(3)}) == 3
