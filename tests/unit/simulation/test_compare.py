"""Two studies side by side: which are paired, and the figures of hand-made ones."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from ml_backend.cli import app
from ml_backend.errors import SettingsError
from ml_backend.simulation.analysis import metric_statistics
from ml_backend.simulation.compare import Comparison, compare, compare_strategies, print_comparison
from ml_backend.simulation.metrics import METRICS
from ml_backend.simulation.run_log import RunLog, StudyResults
from ml_backend.storage.atomic import write_record
from tests.manual import commands_run_by
from tests.unit.simulation.drawn_results import drawn_metrics, drawn_results
from tests.unit.simulation.tiny import make_plan


def write(folder: Path, results: StudyResults, **changes: Any) -> Path:
    """The folder of a finished study."""
    fields = {"strategies": results.summary.strategies, "seeds": results.summary.seeds, "start": "live"}
    write_record(folder / "plan.json", make_plan(**fields | changes))
    write_record(folder / "summary.json", results.summary)
    for row in results.rounds:
        (folder / "runs" / row.run).mkdir(parents=True, exist_ok=True)
        RunLog(folder, row.run).append(row, [])
    for baseline in results.baselines:
        RunLog(folder, f"baseline-s{baseline.seed}").write_baseline(baseline)
    return folder


def study(starts: list[int], *, ahead: float = 0.0, strategy: str = "entropy") -> StudyResults:
    """One run a seed, on 75 to 255 labels: 0.6, and 0.8 from ``starts`` on, ``ahead`` added; 0.8 with all labels."""
    drawn = drawn_results((strategy,), seeds=len(starts), rounds=10, batches=False)
    classes = drawn.summary.classes
    rows = [
        row.model_copy(
            update={"metrics": drawn_metrics((0.8 if row.labels >= starts[row.seed] else 0.6) + ahead, classes)}
        )
        for row in drawn.rounds
    ]
    baselines = [row.model_copy(update={"metrics": drawn_metrics(0.8, classes)}) for row in drawn.baselines]
    return replace(drawn, rounds=tuple(rows), baselines=tuple(baselines))


SLOW, FAST = [155, 195, 155, 195, 155, 195], [95, 115, 95, 115, 95, 115]


class TestCompare:
    def of(self, tmp_path: Path, first: StudyResults, second: StudyResults, **changes: Any) -> Comparison:
        return compare(write(tmp_path / "a", first), write(tmp_path / "b", second, **changes))

    def test_pairs_runs_of_one_seed(self, tmp_path):
        """Everywhere 0.02 higher, and reaching 0.8 after 95 instead of 155 or 115 instead of 195 labels."""
        found = self.of(tmp_path, study(SLOW), study(SLOW, ahead=0.02))
        [area] = [row for row in found.areas if row.metric == "accuracy"]

        assert (found.paired, found.unpaired_because, found.differences, found.only_in) == (True, "", {}, {})
        assert area.difference == pytest.approx(0.02)
        assert [area.low, area.high] == pytest.approx([0.02, 0.02])
        assert area.second - area.first == pytest.approx(0.02)
        assert area.seeds == (6, 6)

    def test_ratio_of_labels_needed_by_the_baselines_of_the_first(self, tmp_path):
        second = study(FAST)
        higher = [
            r.model_copy(update={"metrics": drawn_metrics(0.9, second.summary.classes)}) for r in second.baselines
        ]
        found = self.of(tmp_path, study(SLOW), replace(second, baselines=tuple(higher)))
        [row] = [row for row in found.labels_needed if row.target == "baseline - 1 point"]

        assert (row.first, row.second, row.seeds) == (175.0, 105.0, (6, 6))
        assert [row.low, row.ratio, row.high] == pytest.approx([115 / 195, (95 / 155 + 115 / 195) / 2, 95 / 155])

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"digests": {"labels": "zz", "features": "bb"}}, "content of --labels differs"),
            ({"imbalance": {"normal": 0.1}, "task": "a;b"}, "--imbalance normal and --task differ"),
            ({"seeds": (7, 8)}, "no seed is in both studies"),
        ],
    )
    def test_other_data_or_seeds_are_not_paired(self, tmp_path, changes, reason):
        second = study(SLOW, ahead=0.02)
        if "seeds" in changes:
            rows = (r.model_copy(update={"seed": 7 + r.seed, "run": f"entropy-s{7 + r.seed}"}) for r in second.rounds)
            second = replace(
                second,
                rounds=tuple(row for row in rows if row.seed < 9),
                baselines=tuple(r.model_copy(update={"seed": 7 + r.seed}) for r in second.baselines[:2]),
            )
        found = self.of(tmp_path, study(SLOW), second, **changes)
        [area] = [row for row in found.areas if row.metric == "accuracy"]

        assert (found.paired, found.unpaired_because) == (False, reason)
        assert area.low is not None
        assert area.high is not None
        assert area.difference == pytest.approx(0.02)
        assert area.low < 0 < area.high

    def test_names_what_differs_and_what_is_in_one_only(self, tmp_path):
        options = make_plan().options | {"batch_size": 7}
        found = self.of(tmp_path, both(), study(SLOW), options=options)

        assert found.differences == {"--batch-size": ("5", "7")}
        assert found.only_in == {str(tmp_path / "a"): ("bald",)}
        assert {row.strategy for row in found.areas} == {row.strategy for row in found.labels_needed} == {"entropy"}

    @pytest.mark.parametrize(
        ("results", "changes", "message"),
        [
            (
                drawn_results(classes=("a", "b")),
                {},
                "--task gives normal, viral, bacterial in the first and a, b",
            ),
            (drawn_results(), {"start": "given"}, "--start gives live in the first and given in the second"),
            (study(SLOW, strategy="bald"), {}, r"no strategy in common \(entropy, mean_std, random and bald\)"),
            (replace(drawn_results(), rounds=()), {}, "no network was trained in .*b: run it again with a larger"),
            (drawn_results(), {"count": "reads"}, "--count gives images in the first and reads in the second"),
        ],
    )
    def test_refuses_figures_that_mean_other_things(self, tmp_path, results, changes, message):
        with pytest.raises(SettingsError, match=message):
            self.of(tmp_path, drawn_results(), results, **changes)

    def test_without_baselines_says_that_no_target_is_known_and_what_was_counted(self, tmp_path):
        bare = replace(both(), baselines=(), summary=both().summary.model_copy(update={"count": "reads"}))
        first = write(tmp_path / "a", bare, count="reads", baseline=False)
        second = write(tmp_path / "b", replace(bare, baselines=both().baselines), count="reads")

        for found, whose in (
            (compare(first, second), "study 1 has"),
            (compare_strategies(first, "entropy"), "the study has"),
        ):
            printed = words(found)
            assert f"Reads needed: not known, since {whose} no baseline" in printed
            assert "without --no-baseline." in printed
            assert "no strategy reached" not in printed

    def test_refuses_a_folder_without_a_finished_study(self, tmp_path):
        folder = write(tmp_path / "a", study(SLOW))
        (folder / "summary.json").unlink()

        with pytest.raises(SettingsError, match=r"no finished study \(no summary.json\)"):
            compare(folder, folder)

    def test_refuses_a_study_with_itself(self, tmp_path):
        folder = write(tmp_path / "a", study(SLOW))

        with pytest.raises(SettingsError, match="is compared with itself: give another study"):
            compare(folder, folder / ".." / "a")


def both(first: StudyResults | None = None, second: StudyResults | None = None) -> StudyResults:
    """One study of ``entropy``, slow, and of ``bald``, fast."""
    slow, fast = first or study(SLOW), second or study(FAST, strategy="bald")
    summary = slow.summary.model_copy(update={"strategies": ("entropy", "bald")})
    return replace(slow, summary=summary, rounds=(*slow.rounds, *fast.rounds))


def words(found: Comparison) -> str:
    printed = io.StringIO()
    print_comparison(found, Console(file=printed, width=200))
    return printed.getvalue()


class TestCompareStrategies:
    def test_every_other_with_the_reference_seed_by_seed(self, tmp_path):
        found = compare_strategies(write(tmp_path / "a", both()), "entropy")
        [row] = [row for row in found.labels_needed if row.target == "baseline - 1 point"]
        [area] = [row for row in found.areas if row.metric == "accuracy"]

        assert (row.strategy, row.first, row.second, row.seeds) == ("bald", 175.0, 105.0, (6, 6))
        assert [row.low, row.ratio, row.high] == pytest.approx([115 / 195, (95 / 155 + 115 / 195) / 2, 95 / 155])
        # Three and four of nine steps of 0.2 earlier.
        assert area.difference == pytest.approx(0.2 * 3.5 / 9)
        assert area.second - area.first == pytest.approx(area.difference)
        assert area.p == pytest.approx(2 / 2**6)

    def test_agrees_with_the_report(self, tmp_path):
        """Runs whose networks begin at different label counts are compared over what each pair shares."""
        drawn = drawn_results(seeds=6, rounds=8)
        rounds = tuple(row for row in drawn.rounds if row.seed or row.strategy == "random" or row.round > 3)
        found = compare_strategies(write(tmp_path / "a", replace(drawn, rounds=rounds)), "random")
        compared = {row.strategy: row for row in found.areas if row.metric == "auroc"}
        [auroc] = [metric for metric in METRICS if metric.name == "auroc"]
        reported = metric_statistics(auroc, replace(drawn, rounds=rounds)).differences

        assert set(compared) == {group.strategy for group in reported} != set()
        for group, one in reported.items():
            row = compared[group.strategy]
            assert (row.difference, row.low, row.high, row.p) == pytest.approx((one.mean, one.low, one.high, one.p))

    def test_says_that_seeds_are_few_and_an_interval_open_without_a_negative_zero(self, tmp_path):
        """Four of six runs of ``bald`` get to the baseline: the largest ratios are infinite."""
        late = study([95, 95, 95, 95, 10_000, 10_000], strategy="bald")
        six = words(compare_strategies(write(tmp_path / "a", both(study(SLOW), late)), "entropy"))
        level = both(study(SLOW[:2]), study(SLOW[:2], ahead=-1e-9, strategy="bald"))
        two = words(compare_strategies(write(tmp_path / "b", level), "entropy"))

        assert "[0.49 to never]" in six
        assert "-0.000" not in two
        assert two.endswith(
            "Answer: no difference in accuracy between bald and entropy is shown: +0.000 (no interval below 6 seeds), "
            "averaged over the learning curve, 2 seeds.\n"
        )
        assert "Few seeds: 2 of the 20 that a claim needs. An interval and a p of pairs need 6." in two

    def test_names_a_strategy_that_was_not_run(self, tmp_path):
        with pytest.raises(
            SettingsError, match=r"--reference 'entrop': .* expected one of entropy, bald; did you mean"
        ):
            compare_strategies(write(tmp_path / "a", both()), "entrop")

    def test_refuses_a_study_of_one_strategy(self, tmp_path):
        with pytest.raises(SettingsError, match="no strategy besides entropy: run it with more of --strategy"):
            compare_strategies(write(tmp_path / "a", study(SLOW)), "entropy")


def test_the_command_prints_tables_or_json(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)
    own, command, within = commands_run_by(__file__)
    _, *words = command.words
    for name, starts in zip(words[1:], (SLOW, FAST), strict=True):
        write(Path(name), study(starts))

    text = CliRunner().invoke(app, words, catch_exceptions=False).stdout
    printed = json.loads(CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False).stdout)

    _, *words_within = within.words
    write(Path(words_within[1]), both())
    one = CliRunner().invoke(app, words_within, catch_exceptions=False).stdout
    write(Path(own.words[2]), both())
    assert (
        CliRunner().invoke(app, own.words[1:], catch_exceptions=False).stdout.split("\n", 1)[1] == one.split("\n", 1)[1]
    )
    refused = CliRunner().invoke(app, [*words, "--reference", "entropy"])
    for name in ("low", "lower"):
        write(Path(name), study([10_000] * 6))
    unreached = CliRunner().invoke(app, ["compare", "low", "lower"], catch_exceptions=False).stdout

    assert "minus entropy, mean, 95 % interval" in one
    assert "Few seeds: 6 of the 20 that a claim needs." in one
    assert "An interval and a p" not in one
    assert one.rstrip().splitlines()[-1].startswith("Answer: the accuracy of bald is higher than that of entropy")
    assert "0.60 [0.59 to 0.61]" in one
    assert "entropy, mean" in one
    assert "entropy, median" in one
    assert "Labels needed: no strategy reached a target" in unreached
    assert "labels for" not in unreached
    assert "in more than half of its runs" in unreached
    assert (
        "between entropy of study 2 and entropy of study 1 is shown: +0.000 [+0.000 to +0.000], averaged" in unreached
    )
    assert "--reference entropy compares strategies of one study" in str(refused.exception)
    assert "Paired: the same data" in text
    assert "0.60 [0.59 to 0.61]" in text
    assert printed["paired"] is True
    assert [row["metric"] for row in printed["areas"]] == ["accuracy", "balanced_accuracy", "auroc"]
