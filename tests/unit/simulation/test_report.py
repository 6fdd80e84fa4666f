"""The page: everything in it, nothing loaded, every text escaped, for any study that can be."""

import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from ml_backend.simulation.report import report_page, write_report
from ml_backend.simulation.run_log import StudyResults
from tests.unit.simulation.drawn_results import drawn_results

CSS = Path(__file__).parents[3] / "ml_backend" / "simulation" / "templates" / "report.css"
EVIL = "<script>alert(1)</script>"
VOID = {"meta", "link", "input", "br"}


class Reader(HTMLParser):
    """Tags with their attributes, and the text of the headings; refuses tags that do not nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.headings: list[tuple[int, str]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self._open and re.fullmatch("h[1-6]", self._open[-1]):
            level, text = self.headings.pop()
            self.headings.append((level, text + data))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def renamed(results: StudyResults, old: str, new: str) -> StudyResults:
    """A study of which a class has another name."""

    def swap(value: object) -> object:
        if isinstance(value, dict):
            return {new if key == old else key: swap(one) for key, one in value.items()}
        if isinstance(value, list):
            return [swap(one) for one in value]
        return new if value == old else value

    def again(row):
        return type(row).model_validate_json(
            type(row).model_validate(swap(row.model_dump(mode="json"))).model_dump_json()
        )

    return StudyResults(
        again(results.summary),
        tuple(map(again, results.rounds)),
        tuple(map(again, results.batches)),
        tuple(map(again, results.baselines)),
    )


def without_metrics(results: StudyResults, *names: str) -> StudyResults:
    def again(row):
        return row.model_copy(update={"metrics": row.metrics.model_copy(update=dict.fromkeys(names))})

    return replace(results, rounds=tuple(map(again, results.rounds)), baselines=tuple(map(again, results.baselines)))


def torn(results: StudyResults) -> StudyResults:
    """The last runs never began, one stopped early, and only some baselines are there."""
    rows = [r for r in results.rounds if not (r.strategy == "mean_std" and (r.seed > 0 or r.round > 2))]
    return replace(results, rounds=tuple(rows), baselines=results.baselines[:1])


STUDIES = {
    "three classes": drawn_results(),
    "two classes, two variants": drawn_results(classes=("normal", "diseased"), variants=("weighted", "unweighted")),
    "one strategy, one seed, one round": drawn_results(("random",), seeds=1, rounds=1),
    "no random": drawn_results(("entropy", "mean_std")),
    "no baseline": drawn_results(baseline=False),
    "no picks": drawn_results(batches=False),
    "metrics that are not defined": without_metrics(drawn_results(), "auroc", "auprc", "quadratic_weighted_kappa"),
    "torn": torn(drawn_results(rounds=20)),
    "eleven strategies": drawn_results(("random", *"abcdefghij"), seeds=2, rounds=2),
}


@pytest.fixture(params=STUDIES, scope="module")
def reader(request) -> Reader:
    return Reader(report_page(STUDIES[request.param]))


class TestAnyStudy:
    def test_answers_in_order(self, reader):
        assert [text for level, text in reader.headings if level == 2] == [
            "1. Learning curves",
            "2. How many labels, and is it more than luck?",
            "3. What the strategies picked",
            "4. Time",
            "5. Warnings",
            "6. What was run",
        ]

    def test_headings_descend_step_by_step(self, reader):
        levels = [level for level, _ in reader.headings]

        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))

    def test_ids_are_unique_and_what_they_are_named_by_is_there(self, reader):
        ids = Counter(attributes["id"] for _, attributes in reader.tags if "id" in attributes)
        named = {name for _, attributes in reader.tags for name in attributes.get("aria-labelledby", "").split()}
        linked = {attributes["href"][1:] for attributes in reader.all("a")}

        assert [name for name, count in ids.items() if count > 1] == []
        assert named | linked <= set(ids)

    def test_every_header_cell_has_a_scope_and_every_table_a_caption(self, reader):
        assert {attributes.get("scope") for attributes in reader.all("th")} == {"col", "row"}
        assert len(reader.all("caption")) == len(reader.all("table"))

    def test_every_figure_is_described(self, reader):
        figures = [attributes for attributes in reader.all("svg") if attributes.get("role") == "img"]

        assert len(reader.all("figure")) == len(figures) == len(reader.all("desc")) > 0

    def test_loads_nothing_and_runs_nothing(self, reader):
        assert {name for name, _ in reader.tags} & {"script", "img", "iframe", "object", "form"} == set()
        assert [attributes["href"] for attributes in reader.all("link")] == ["data:,"]
        assert not [word for word in reader.words if "@import" in word or "url(" in word]
        assert not [name for _, attributes in reader.tags for name in attributes if name.startswith("on")]

    def test_no_number_is_nan(self, reader):
        values = [value for _, attributes in reader.tags for value in attributes.values()]

        assert not [one for one in (*reader.words, *values) if re.search(r"\b(nan|inf|None)\b", one)]


class TestReportPage:
    def test_names_of_users_stay_text(self):
        results = renamed(drawn_results(command=f"ml-backend simulate {EVIL}"), "viral", EVIL)
        page = report_page(results)

        assert EVIL not in page
        assert "alert(1)" in page
        assert Reader(page).all("script") == []

    def test_the_headline_comes_first(self):
        page = report_page(drawn_results(seeds=10, rounds=20))

        assert page.index("On these images, ") < page.index("Choosing images pays here") < page.index("<main>")

    def test_variants_stand_side_by_side_on_one_scale(self):
        page = report_page(STUDIES["two classes, two variants"])
        ticks = [
            re.findall(r'class="tick right"[^>]*>([^<]+)<', drawing)
            for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL)
            if "Accuracy, weighted" in drawing or "Accuracy, unweighted" in drawing
        ]

        assert len(ticks) == 2
        assert ticks[0] == ticks[1] != []

    def test_every_strategy_can_be_hidden(self):
        page = report_page(drawn_results())

        for style in range(3):
            assert f'id="show-{style}"' in page
            assert f"#show-{style}:not(:checked)) figure .k{style} " in page

    def test_says_everything_that_is_needed_to_run_it_again(self):
        results = drawn_results()
        page = report_page(results)

        for words in (results.summary.command, "mobilenet_v2", "3.11.9", "9f" * 32, results.summary.notes[0]):
            assert words in page

    def test_the_rare_class_of_two_is_shown(self):
        page = report_page(drawn_results(classes=("normal", "diseased")))

        assert "Picks of class normal" in page
        assert "Picks of class diseased" not in page
        assert "training side 14 %" in page

    def test_a_torn_run_is_named(self):
        results = drawn_results(rounds=20)
        rows = [r for r in results.rounds if not (r.strategy == "entropy" and r.seed == 1 and r.round > 4)]

        assert "entropy, seed 1: 4 of 20 rounds" in report_page(replace(results, rounds=tuple(rows)))

    def test_the_same_study_is_the_same_page(self):
        assert report_page(drawn_results()) == report_page(drawn_results())

    def test_refuses_a_study_without_a_round(self):
        with pytest.raises(ValueError, match="at least one finished round"):
            report_page(replace(drawn_results(), rounds=()))


class TestWriteReport:
    def test_writes_one_file(self, tmp_path):
        write_report(drawn_results(), tmp_path / "report.html")

        assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
        assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")

    def test_a_failure_leaves_the_old_page(self, tmp_path):
        page = tmp_path / "report.html"
        page.write_text("old")

        with pytest.raises(ValueError, match="at least one"):
            write_report(replace(drawn_results(), rounds=()), page)
        assert page.read_text() == "old"

    def test_a_name_that_is_no_utf8_does_not_cost_the_report(self, tmp_path):
        write_report(drawn_results(command="simulate --images film\udce9"), tmp_path / "report.html")

        assert "simulate --images film?" in (tmp_path / "report.html").read_text(encoding="utf-8")


def luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


THEMES = [dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in CSS.read_text().split("@media")[:2]]


class TestColours:
    """WCAG 2.2: 4.5 for text, 3 for lines."""

    @pytest.mark.parametrize("theme", THEMES, ids=["light", "dark"])
    def test_contrast(self, theme):
        for ground in ("paper", "panel"):
            for ink in ("ink", "soft", "mark"):
                assert contrast(theme[ink], theme[ground]) >= 4.5, (ink, ground)
        for place in range(9):
            assert contrast(theme[f"c{place}"], theme["paper"]) >= 3, place
