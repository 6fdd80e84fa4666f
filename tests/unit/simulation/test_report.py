"""The page: everything in it, nothing loaded, every text escaped, for any study that can be."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest
from rich.console import Console

from ml_backend.simulation.analysis import MetricStatistics, PairedDifference, Quartiles, bands, metric_statistics
from ml_backend.simulation.metrics import ACCURACY
from ml_backend.simulation.report import (
    ChartGroup,
    Headline,
    chart_group,
    conclusion,
    difference_words,
    duration_words,
    headline,
    headline_target,
    metrics_of,
    report_page,
    seconds_words,
    share_words,
    times,
    verdict,
    write_figures,
    write_report,
)
from ml_backend.simulation.run_log import StudyResults
from tests.golden_figures import check, figures, tables
from tests.unit.simulation.drawn_results import drawn_metrics, drawn_results

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


def without_metrics(results: StudyResults, *names: str) -> StudyResults:
    def again(row):
        return row.model_copy(update={"metrics": row.metrics.model_copy(update=dict.fromkeys(names))})

    return replace(results, rounds=tuple(map(again, results.rounds)), baselines=tuple(map(again, results.baselines)))


def incomplete(results: StudyResults) -> StudyResults:
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
    "incomplete": incomplete(drawn_results(rounds=20)),
    "eleven strategies": drawn_results(("random", *"abcdefghij"), seeds=2, rounds=2),
}


@pytest.fixture(params=STUDIES, scope="module")
def reader(request) -> Reader:
    return Reader(report_page(STUDIES[request.param]))


class TestAnyStudy:
    def test_answers_in_order(self, reader):
        assert [text for level, text in reader.headings if level == 2] == [
            "1. Learning curves",
            "2. How many labels, and how sure is that?",
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
        page = report_page(drawn_results(command=f"ml-backend simulate {EVIL}", classes=("normal", EVIL, "bacterial")))

        assert EVIL not in page
        assert "alert(1)" in page
        assert Reader(page).all("script") == []

    def test_the_headline_comes_first(self):
        page = report_page(drawn_results(seeds=20, rounds=20))

        [answer] = re.findall(r"</h1>\s*<p[^>]*>(.*?)</p>", page)
        assert re.fullmatch(
            r"Yes: (mean_std|entropy), the best of 2 strategies, needs 0\.\d\d \[0\.\d\d to 0\.\d\d\] of "
            r"random's labels to (come|reach) .* all labels \(0\.80\d\) "
            r"\(median and 95 % interval; 20 paired seeds, of which 1 has one side that never got there and "
            r"counts as infinitely many labels\)\.",
            answer,
        )
        assert page.index(answer) < page.index("On these images, ") < page.index("<main>")

    def test_of_few_seeds_claims_neither_interval_nor_p_nor_ratio(self):
        """Entropy is there after 30 labels; random after 60, and in the second run never."""
        few, more = (
            page_words(together(steps("entropy", [30, 30] * pairs), steps("random", [60, None] * pairs)))
            for pairs in (1, 3)
        )

        assert "entropy differs by +" in few
        assert "(no interval below 6 seeds) from random" in few
        assert "2 seeds: an interval and a p of the differences need 6 or more." in few
        assert "Wilcoxon p" not in few
        assert "of random's labels" not in few
        assert "Wilcoxon p = 0.031" in more
        assert "6 seeds: Wilcoxon's test cannot give less than p = 0.031" in more

    def test_a_target_out_of_reach_is_folded_away(self):
        """With all labels, accuracy is 0.8: with 115 nobody comes near, with 455 a point below is reached."""
        [short, long] = (report_page(drawn_results(("random", "entropy"), rounds=rounds)) for rounds in (3, 20))
        targets = "95 % of the baseline, baseline - 1 point, baseline"
        folded = f"Not reached by any strategy in more than half of its runs: {targets}<"

        assert folded in short
        assert folded not in long
        assert "Labels needed for 95 % of the baseline: Accuracy" not in short
        assert "Labels needed for 95 % of the baseline: Accuracy" in long

    def test_variants_are_side_by_side_on_one_scale_with_their_baselines(self):
        page = report_page(STUDIES["two classes, two variants"])
        drawings = [
            drawing
            for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL)
            if "Accuracy, weighted" in drawing or "Accuracy, unweighted" in drawing
        ]
        ticks = [re.findall(r'class="tick right"[^>]*>([^<]+)<', drawing) for drawing in drawings]

        assert len(ticks) == 2
        assert ticks[0] == ticks[1] != []
        assert all(">all labels 0.804<" in drawing for drawing in drawings)

    def test_every_strategy_can_be_hidden(self):
        page = report_page(drawn_results())

        for style in range(3):
            assert f'id="show-{style}"' in page
            assert f"#show-{style}:not(:checked)) figure .k{style} " in page

    def test_says_everything_that_is_needed_to_run_it_again(self):
        summary = drawn_results().summary
        page = report_page(drawn_results())

        for words in (summary.command, "mobilenet_v2", "3.11.9", "9f" * 32, summary.notes[0], "12 min 34 s"):
            assert words in page

    def test_right_labels_are_shown_where_readers_answered(self):
        drawn = drawn_results(strategies=("random",), seeds=1)
        answered = [row.model_copy(update={"label_accuracy": 0.75}) for row in drawn.rounds]

        assert "Labels equal to the truth" not in report_page(drawn)
        assert "random from 75 % at 75 labels to 75 %" in report_page(replace(drawn, rounds=tuple(answered)))

    def test_an_incomplete_run_is_named(self):
        results = drawn_results(rounds=20)
        rows = [r for r in results.rounds if not (r.strategy == "entropy" and r.seed == 1 and r.round > 4)]

        assert "entropy, seed 1: 4 of 20 rounds" in report_page(replace(results, rounds=tuple(rows)))

    def test_refuses_a_study_without_a_round(self):
        with pytest.raises(ValueError, match="at least one finished round"):
            report_page(replace(drawn_results(), rounds=()))


def test_keeps_the_figures_of_a_study_with_variants_and_an_incomplete_run():
    results = drawn_results(
        ("random", "entropy", "bald", "batch_bald"),
        seeds=5,
        rounds=16,
        variants=("weighted", "unweighted"),
        classes=("normal", "diseased"),
    )
    rounds = tuple(row for row in results.rounds if not (row.run == "bald-weighted-s3" and row.round > 4))
    page = report_page(replace(results, rounds=rounds))
    above, warnings = page[: page.index("<nav")], page[page.index('id="warnings"') : page.index('id="run"')]

    check("report", {"tables": tables(page), "headline": figures(above), "warnings": figures(warnings)})


def page_words(results: StudyResults) -> str:
    return re.sub(r"\s+", " ", " ".join(Reader(report_page(results)).words))


class TestWarnings:
    """The words of every finding, with its numbers."""

    def test_of_a_study_with_few_seeds_passes_and_labels(self):
        words = page_words(drawn_results(("random", "batch_bald", "entropy"), rounds=3, variants=("weighted",)))

        assert "3 seeds: an interval and a p of the differences need 6 or more" in words
        assert "batch_bald picked batches of 20 with 50 passes, which carry at most 3.9 nats" in words
        assert "Draw 100 passes or more, or pick batches of 10 or less." in words
        assert (
            "entropy, weighted never reaches the baseline's figures of class 'viral': precision in 3 of 3 runs" in words
        )
        assert "of its picks and 28 % of the training set." in words

    @pytest.mark.parametrize(
        ("height", "kind"), [(0.3, "learns more slowly than"), (None, "is not shown to be better than")]
    )
    def test_of_strategies_that_random_is_level_with_or_ahead_of(self, height, kind):
        results = drawn_results(("random", "entropy"), seeds=20, rounds=8)
        of_random = {(r.seed, r.round): r.metrics for r in results.rounds if r.strategy == "random"}
        rows = [
            row.model_copy(
                update={
                    "metrics": drawn_metrics(height, results.summary.classes)
                    if height
                    else of_random[row.seed, row.round]
                }
            )
            for row in results.rounds
        ]
        level = [r if r.strategy == "entropy" else old for r, old in zip(rows, results.rounds, strict=True)]

        assert f"entropy {kind} random picks: mean difference" in page_words(replace(results, rounds=tuple(level)))

    def test_of_missing_parts(self):
        results = drawn_results(("entropy", "mean_std"), seeds=3)
        words = page_words(replace(results, baselines=()))

        assert "6 of 6 runs have no baseline" in words
        assert "mean_std, seed 1 and 1 more." in words
        assert "The strategy random was not run" in words

    def test_of_a_study_without_baselines_that_counts_reads(self):
        results = drawn_results(("entropy", "random"), seeds=6)
        of_reads = {"count": "reads", "baseline": False}
        summary = results.summary.model_copy(update=of_reads)
        words = page_words(replace(results, baselines=(), summary=summary))

        assert "No network was trained on all labels (--no-baseline), so that reads needed are not known." in words
        assert "Reads needed are not known without them. Check: Where they are wanted, give the same command" in words
        assert "Let the study finish" not in words
        assert re.search(r"Strategy \d+ reads", words)
        assert "Reads until a network ranks Balanced accuracy" in words
        assert not re.search(r"\d labels(?!\.csv)", words)
        table = Console(width=200).render_lines(conclusion(replace(results, summary=summary)))
        assert "reads until a network ranks" in "".join(part.text for line in table for part in line)

    def test_of_runs_that_need_very_different_numbers_of_labels(self):
        words = page_words(steps("entropy", [20, 20, 80, None, None]))

        assert "labels needed for 95 % of the baseline: median 80, quartiles 20 and never; 2 of 5 runs" in words


class TestWriteReport:
    def test_a_name_that_is_no_utf8_does_not_cost_the_report(self, tmp_path):
        write_report(drawn_results(command="simulate --images film\udce9"), tmp_path / "report.html")

        assert "simulate --images film?" in (tmp_path / "report.html").read_text(encoding="utf-8")
        assert (tmp_path / "report.html").stat().st_mode & 0o777 == 0o644  # colleagues read it


def test_figures_for_a_paper_are_as_wide_as_a_column(tmp_path):
    """Accuracies of 0.5 to 0.8 on 75 to 175 labels: the axes begin there. 85 mm are 240.9 points."""
    for name in ("one", "two"):
        write_figures(drawn_results(variants=("weighted", "unweighted")), tmp_path / name)
    drawing = (tmp_path / "one" / "accuracy-weighted.svg").read_text()
    words = re.findall(r"<text [^>]*>([^<]*)</text>", drawing)

    assert {path.stem for path in (tmp_path / "one").iterdir()} == {
        f"{metric}-{loss}"
        for metric in ("accuracy", "balanced_accuracy", "auroc")
        for loss in ("weighted", "unweighted")
    }
    assert {"labels", "Accuracy", "random", "entropy", "mean_std", "all labels"} <= set(words)
    numbers = {float(word) for word in words if re.fullmatch(r"[\d.]+", word)}
    assert min(n for n in numbers if n > 1) >= 60
    assert min(numbers) >= 0.4
    assert 'width="240.9' in drawing
    assert re.search(rb"/MediaBox \[ 0 0 240\.9", (tmp_path / "one" / "auroc-weighted.pdf").read_bytes())
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


class TestMetricsOf:
    def names(self, results: StudyResults) -> list[str]:
        return [metric.name for metric in metrics_of(results)]

    def test_of_two_classes_the_rare_one_has_an_area_of_its_own_unless_it_is_the_last(self):
        results = drawn_results(classes=("normal", "diseased"))
        counts = {"train": {"normal": 900, "diseased": 100}}
        [rare] = [metric for metric in metrics_of(results) if metric.name == "auprc_rare"]

        assert rare.title == "AU PRC of normal"
        assert rare.of(results.rounds[0].metrics) == results.rounds[0].metrics.average_precision["normal"]
        summary = results.summary.model_copy(update={"labels_per_class": counts})
        assert "auprc_rare" not in self.names(replace(results, summary=summary))

    def test_leaves_out_what_is_never_defined(self):
        assert "auroc" not in self.names(without_metrics(drawn_results(), "auroc"))


class TestWords:
    @pytest.mark.parametrize(
        ("q25", "median", "q75", "expected"),
        [
            (0.28, 0.35, 0.4, "35 % [28–40]"),
            (0.45, 0.75, math.inf, "75 % [45–never]"),
            (0.45, math.inf, math.inf, "never [45 %–never]"),
            (math.inf, math.inf, math.inf, "never"),
            (0.0699, 0.0723, 0.101, "7.2 % [7.0–10]"),
        ],
    )
    def test_share(self, q25, median, q75, expected):
        assert share_words(Quartiles(q25, median, q75)) == expected

    @pytest.mark.parametrize(
        ("low", "high", "expected"),
        [(0.012, 0.03, "+0.021 [+0.012 to +0.030]"), (None, None, "+0.021 (no interval below 6 seeds)")],
    )
    def test_difference(self, low, high, expected):
        assert difference_words(PairedDifference(0.0214, low, high, 0.002, 10)) == expected

    @pytest.mark.parametrize(("seconds", "expected"), [(5.04, "5.04 s"), (95.4, "1 min 35 s"), (7260, "2 h 1 min")])
    def test_duration(self, seconds, expected):
        assert duration_words(seconds) == expected

    def test_seconds(self):
        assert seconds_words(Quartiles(1.75, 2.5, 3.25)) == "2.5 s [1.75–3.25]"
        assert seconds_words(Quartiles(0.02, 0.02, 0.0214)) == "20 ms [20–21.4]"


def steps(strategy: str, at: Sequence[int | None], variant: str = "") -> StudyResults:
    """One run a seed, on 10, 20 .. 100 of 100 images: an accuracy of 0.5, and 0.8 from ``at`` labels on."""
    drawn = drawn_results((strategy,), seeds=len(at), rounds=10, variants=(variant,), classes=("a", "b"), batches=False)
    rows = [
        row.model_copy(
            update={
                "labels": 10 * row.round,
                "share": row.round / 10,
                "metrics": drawn_metrics(0.8 if 10 * row.round >= (at[row.seed] or 1000) else 0.5, ("a", "b")),
            }
        )
        for row in drawn.rounds
    ]
    return replace(drawn, rounds=tuple(rows))


def together(*studies: StudyResults, baseline: float | None = 0.8) -> StudyResults:
    rows = tuple(
        row.model_copy(update={"metrics": drawn_metrics(baseline or 0.0, ("a", "b"))})
        for row in studies[0].baselines
        if baseline is not None
    )
    rounds = tuple(row for one in studies for row in one.rounds)
    return replace(studies[0], rounds=rounds, baselines=rows)


def statistics(*studies: StudyResults, baseline: float | None = 0.8) -> MetricStatistics:
    return metric_statistics(ACCURACY, together(*studies, baseline=baseline))


class TestHeadline:
    def headline(self, *studies: StudyResults, baseline: float | None = 0.8) -> Headline:
        one = statistics(*studies, baseline=baseline)
        return headline(one, headline_target(one))

    def test_the_best_first_then_random(self):
        found = self.headline(steps("entropy", [20, 30, 40] * 4), steps("random", [60, 70, 80] * 4))

        assert (found.metric, found.target, found.baselines) == ("accuracy", "baseline - 1 point", (0.8,))
        assert [(str(row.group), row.labels.median) for row in found.rows] == [("entropy", 30), ("random", 70)]
        assert (found.left_out, found.apart) == (0, True)

    def test_interquartile_ranges_overlap(self):
        assert self.headline(steps("entropy", [20, 50, 80]), steps("random", [30, 60, 90])).apart is False

    def test_random_first_where_only_random_got_there(self):
        found = self.headline(steps("entropy", [None] * 3), steps("random", [50, 60, 70]))

        assert [str(row.group) for row in found.rows] == ["random", "entropy"]
        assert (found.rows[1].never, found.apart) == (3, None)

    @pytest.mark.parametrize(
        ("baseline", "target", "rows"), [(0.84, "95 % of the baseline", 2), (0.95, None, 0), (None, None, 0)]
    )
    def test_a_lower_target_or_none_where_it_was_not_reached(self, baseline, target, rows):
        found = self.headline(steps("entropy", [20] * 3), steps("random", [50] * 3), baseline=baseline)

        assert (found.target, len(found.rows), bool(found.baselines)) == (target, rows, baseline is not None)

    def test_names_three_and_random_and_counts_the_others(self):
        others = [steps(name, [20 + 10 * place] * 3) for place, name in enumerate("abcde")]
        found = self.headline(*others, steps("random", [90] * 3))

        assert [str(row.group) for row in found.rows] == ["a", "b", "c", "random"]
        assert found.left_out == 2

    def test_sentences(self):
        """A variant in brackets, where its comma would divide the sentence."""
        weighted = (steps("entropy", [20] * 20, "weighted"), steps("random", [None] * 20, "weighted"))
        results = replace(
            weighted[0],
            rounds=(*weighted[0].rounds, *weighted[1].rounds),
            baselines=tuple(
                row.model_copy(update={"metrics": drawn_metrics(0.8, ("a", "b"))}) for row in weighted[0].baselines
            ),
        )

        words = page_words(results)
        assert (
            "On these images, entropy (weighted) needed 20 % [20–20] of the labels to come within a point of the "
            "accuracy of all labels (0.800); random (weighted) did not get there in 20 of 20 runs. (Median"
        ) in words
        assert "Yes: entropy (weighted) differs by +0." in words
        assert "in accuracy, averaged over the learning curve (mean and 95 % interval; 20 paired seeds)." in words


class TestVerdict:
    RANDOM = steps("random", [50, 60] * 10)

    @pytest.mark.parametrize(
        ("at", "status"),
        [([20, 30] * 10, "pays"), ([80, 90] * 10, "behind"), ([20, 80] * 10, "open"), ([20] * 3, "few_seeds")],
    )
    def test_by_the_interval_and_the_number_of_seeds(self, at, status):
        found = verdict(statistics(self.RANDOM, steps("entropy", at)))
        assert found is not None

        assert (found.status, found.compared) == (status, 1)

    def test_names_the_best_of_several(self):
        found = verdict(statistics(self.RANDOM, steps("bald", [30, 40] * 10), steps("entropy", [20, 30] * 10)))
        assert found is not None

        assert (str(found.group), found.compared) == ("entropy", 2)

    def test_of_equal_means_the_surer_one(self):
        found = verdict(statistics(self.RANDOM, steps("bald", [20, 50] * 10), steps("entropy", [30, 40] * 10)))
        assert found is not None

        assert str(found.group) == "entropy"

    def test_none_without_random(self):
        assert verdict(statistics(steps("entropy", [20] * 3))) is None


class TestChartGroup:
    STYLES: ClassVar = {"random": 0, "entropy": 1}

    def group(self, runs: Mapping[tuple[str, str], Sequence[Sequence[float]]], **changes: object) -> ChartGroup:
        rows = [
            (strategy, variant, seed, 10 * (place + 1), value, 100)
            for (strategy, variant), values in runs.items()
            for seed, run in enumerate(values)
            for place, value in enumerate(run)
        ]
        columns = ["strategy", "variant", "seed", "labels", "value", "train_images"]
        return chart_group("x", "X", "", bands(pd.DataFrame(rows, columns=columns)), self.STYLES, **changes)  # type: ignore[arg-type]

    def test_numbers_are_medians_and_quartiles_of_the_runs(self):
        """Entropy ended early."""
        found = self.group({("random", ""): [[0.1, 0.5], [0.2, 0.6], [0.4, 0.7]], ("entropy", ""): [[0.1]]})

        assert found.columns == (10, 20)
        assert {str(group): cells for group, cells in found.rows.items()} == {
            "random": ("0.200 [0.150–0.300]", "0.600 [0.550–0.650]"),
            "entropy": ("0.100 [0.100–0.100]", "-"),
        }

    def test_nothing_to_draw(self):
        found = self.group({})

        assert (found.charts, found.columns, found.rows) == ((), (), {})


def test_times_hand_computed():
    """Two seeds of two rounds: training 1, 2, 3, 4 s; a run takes 3 or 7 s of it, and 0.04 s for two batches."""
    drawn = drawn_results(("entropy",), seeds=2, rounds=2)
    rows = [
        row.model_copy(
            update={"train_seconds": 2.0 * row.seed + row.round, "acquisition_seconds": 0.02, "epochs": 30 + row.round}
        )
        for row in drawn.rounds
    ]
    [one] = times(replace(drawn, rounds=tuple(rows)))

    assert (one.training, one.acquisition) == ((1.75, 2.5, 3.25), (0.02, 0.02, 0.02))
    assert (one.epochs, one.rounds) == (31.5, 2)
    assert one.whole == pytest.approx(5.04)


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
