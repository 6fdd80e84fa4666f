"""A live start: labels are found by the cold start of the live loop, and every one counts."""

import io
import json
import math
import shlex
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

from ml_backend.cli import app
from ml_backend.config import ProjectOptions
from ml_backend.errors import SettingsError
from ml_backend.rounds.cold_start import random_order
from ml_backend.simulation import study
from ml_backend.simulation.analysis import (
    Group,
    RunKey,
    early,
    first_ranking,
    first_ranking_quartiles,
    labels_needed_by_run,
    labels_needed_table,
    learning_curves,
)
from ml_backend.simulation.options import SimulateOptions, make_plan
from ml_backend.simulation.plan import Run, StudyPlan
from ml_backend.simulation.report import conclusion, report_page, summarized
from ml_backend.simulation.run import GuardedLearner, LeakageError, Study, do_run, load_data
from ml_backend.simulation.run_log import ColdRow, RoundRow, RunLog, StudyResults
from ml_backend.simulation.study import simulate
from tests.fakes import CLASSES, FakeLearner
from tests.unit.simulation.drawn_results import drawn_metrics, drawn_results
from tests.unit.simulation.test_run import BASELINE, ENTROPY, Watched, rows, stop_after
from tests.unit.simulation.test_run import _Stop as Stop
from tests.unit.simulation.test_study import stopping, tables
from tests.unit.simulation.tiny import make_data, write_tables
from tests.unit.simulation.tiny import make_plan as tiny_plan

DATA = make_data({"train": 48, "test": 12})
RANDOM_RUN = ENTROPY.model_copy(update={"strategy": "random"})


def live_plan(*, enough: int = 4, **options: object) -> StudyPlan:
    """Five labels a round, 30 at most; ``enough`` labels a class before the first network."""
    chosen = {"batch_size": 5, "passes": 4, "finetune": "head", "min_labels_per_class": enough} | options
    return tiny_plan(start="live", initial=0, options=ProjectOptions.model_validate(chosen).model_dump(mode="json"))


def live_run(folder: Path, run: Run = ENTROPY, plan: StudyPlan | None = None, stop: int | None = None) -> RunLog:
    log = RunLog(folder, run.name)
    study = Study(plan or live_plan(), DATA, lambda _options: FakeLearner())
    do_run(run, study, log, (lambda: None) if stop is None else stop_after(stop))
    return log


class TestRun:
    def test_begins_with_the_random_order_of_the_live_loop_until_a_network_ranks(self, tmp_path):
        rounds, batches = live_run(tmp_path).read()

        cold = [row for row in rounds if isinstance(row, ColdRow)]
        assert 0 < len(cold) < len(rounds)
        assert rounds[: len(cold)] == tuple(cold)
        order = random_order([label.image.id for label in DATA.labels("train")], 5, ENTROPY.seed).image_ids
        picked = [row for row in batches if row.round <= len(cold)]
        assert [row.image_id for row in picked] == [*order[: 5 * len(cold)]]
        assert {(row.epistemic, row.aleatoric) for row in picked} == {(None, None)}
        assert all(row.epistemic is not None for row in batches[len(picked) :])

    def test_counts_every_image_that_was_labelled(self, tmp_path):
        """From none on, validation among them."""
        learner = Watched()
        log = RunLog(tmp_path, ENTROPY.name)
        do_run(ENTROPY, Study(live_plan(), DATA, lambda _options: learner), log)
        rounds, batches = log.read()

        for row in rounds:
            before = [DATA.truth[pick.image_id] for pick in batches if pick.round < row.round]
            assert row.labels == len(before) == 5 * (row.round - 1)
            assert row.labels_per_class == {name: before.count(name) for name in CLASSES}
            assert row.share == row.labels / 48
        trained = [row.labels for row in rounds if isinstance(row, RoundRow)]
        assert [len(train) + len(validation) for train, validation in learner.fits] == trained
        assert len(rounds) == live_plan().rounds(classes=3, train_images=48)

    @pytest.mark.parametrize("after", [1, 2, 6])
    @pytest.mark.parametrize("retrain", ["scratch", "warm"])
    def test_goes_on_from_the_cold_start_to_the_same_result(self, tmp_path, after, retrain):
        plan = live_plan(retrain=retrain)
        with pytest.raises(Stop):
            live_run(tmp_path / "stopped", plan=plan, stop=after)
        assert len(RunLog(tmp_path / "stopped", ENTROPY.name).read()[0]) == after

        assert rows(live_run(tmp_path / "stopped", plan=plan)) == rows(live_run(tmp_path / "whole", plan=plan))

    def test_without_enough_labels_of_a_class_ends_with_its_budget(self, tmp_path):
        """17 of every class are wanted, and there are 16."""
        log = live_run(tmp_path, plan=live_plan(enough=17))

        assert log.is_done
        assert {type(row) for row in log.read()[0]} == {ColdRow}
        assert [row.labels for row in log.read()[0]] == [0, 5, 10, 15, 20, 25, 30]

    def test_random_is_a_team_without_active_learning(self):
        plan = live_plan(enough=5, cold_start="typiclust")
        random, entropy = plan.request(RANDOM_RUN, CLASSES), plan.request(ENTROPY, CLASSES)

        assert (random.cold_start, random.min_labels_per_class) == ("random", 2)
        assert (entropy.cold_start, entropy.min_labels_per_class) == ("typiclust", 5)
        assert entropy.per_patient == 2

    def test_a_given_start_is_the_papers_protocol(self):
        given = tiny_plan(options=live_plan(enough=5, cold_start="typiclust").options)
        request = given.request(ENTROPY, CLASSES)

        assert (request.cold_start, request.min_labels_per_class, request.per_patient) == ("random", 2, 0)

    def test_a_request_has_every_option_that_a_round_knows(self):
        plan = live_plan(enough=7, validation_share=0.4, control_share=0.1)
        request = plan.request(ENTROPY, CLASSES)

        assert (request.min_labels_per_class, request.validation_share, request.control_share) == (7, 0.4, 0.1)
        assert request.options == plan.options_of(ENTROPY).model_dump(mode="json")

    def test_features_of_the_test_side_never_make_an_order(self):
        guard = GuardedLearner(FakeLearner(), DATA)

        with pytest.raises(LeakageError, match=r"'test/000.png' \(and 11 more\) is ranked by its features"):
            guard.embed([label.image for label in DATA.labels("test")])


@pytest.fixture
def options(tmp_path: Path) -> SimulateOptions:
    """57 images to train on: 48 of the side ``train`` and 9 of ``val``."""
    return SimulateOptions(
        **write_tables(tmp_path),
        out=tmp_path / "out",
        strategies="entropy",
        seeds="2",
        min_labels_per_class=3,
        batch_size=5,
        budget="25",
        passes=4,
        device="cpu",
        option=("epochs=3",),
        task=";".join(CLASSES),
    )


class TestOptions:
    def test_a_live_start_is_the_default_and_has_no_validation_side(self, options):
        plan, data = make_plan(options)

        assert (plan.start, plan.initial, plan.options["min_labels_per_class"]) == ("live", 0, 3)
        assert [len(data.labels(side)) for side in ("train", "val", "test")] == [57, 0, 12]
        assert "9 images of the validation side count as training side" in data.notes
        assert load_data(plan).split == data.split

    def test_any_project_option_can_be_set(self, options):
        plan, _ = make_plan(replace(options, option=("committee=2", "validation_share = 0.3"), cold_start="typiclust"))

        chosen = [plan.options[name] for name in ("committee", "validation_share", "cold_start")]
        assert chosen == [2, 0.3, "typiclust"]
        assert "--cold-start typiclust --option committee=2 --option 'validation_share = 0.3'" in plan.command

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"initial": 5},
                r"--initial 5: a live start has no start set.*--min-labels-per-class 5 .* or --start given",
            ),
            ({"start": "paper"}, "--start 'paper': expected live or given"),
            ({"start": "given"}, "--min-labels-per-class 3: a given start has no cold start.*give --start live"),
            ({"min_labels_per_class": 1}, "--min-labels-per-class=1.*greater than or equal to 2"),
            ({"cold_start": "warm"}, "--cold-start='warm'"),
            ({"budget": "0"}, r"--budget 0: expected labels \(200\) or"),
            ({"min_labels_per_class": 20}, "--budget 25: the first network needs 40 labels, not 25"),
            ({"option": ("committee",)}, "--option 'committee': expected NAME=VALUE"),
            ({"option": ("seed=3",)}, "--option 'seed=3': seed has a flag of its own; give --seeds"),
            ({"option": ("strategy=bald",)}, "give --strategy"),
            ({"option": ("loss=weighted",)}, "give --loss"),
            ({"option": ("batch_size=3",)}, "give --batch-size"),
            ({"option": ("dropout=0.1", "dropout=0.2")}, "dropout is given twice"),
            ({"option": ("dropuot=0.1",)}, "-o dropuot: no such option; did you mean 'dropout'"),
            ({"option": ("dropout=2",)}, "dropout='2'.*less than 1"),
        ],
    )
    def test_refuses_with_the_way_out(self, options, changes, message):
        with pytest.raises(SettingsError, match=message):
            make_plan(replace(options, **changes))


class TestStudy:
    def test_gives_tables_a_summary_and_a_report_in_the_live_currency(self, options):
        text = io.StringIO()
        results = simulate(options, Console(file=text, width=200))

        first = "Live start: every label counts, the start and the validation included."
        page = (options.out / "report.html").read_text()
        assert first in text.getvalue()
        body = page[page.index("<body") :]
        assert body.index(first) < body.index("<h1>") < body.index('class="headline')
        assert results.summary.protocol == first
        table = pd.read_csv(options.out / "rounds.csv")
        assert table["labels"].tolist() == [0, 5, 10, 15, 20, 25] * 4
        cold = table["accuracy"].isna()
        assert cold.sum() == len(results.cold) > 0
        ranked = table[~cold].groupby(["strategy", "seed"])["labels"].min()
        for name, quartiles in results.summary.first_ranking.items():
            assert quartiles == pytest.approx(ranked[name].quantile([0.25, 0.5, 0.75]).tolist())
        assert set(results.summary.first_ranking) == {"random", "entropy"}

    def test_stopped_in_the_cold_start_goes_on_to_the_same_tables(self, options, tmp_path, monkeypatch):
        options = replace(options, no_random=True)
        simulate(replace(options, out=tmp_path / "whole"), Console(file=io.StringIO()))
        monkeypatch.setattr(study, "do_run", stopping(2))
        with pytest.raises(KeyboardInterrupt):
            simulate(options, Console(file=io.StringIO()))
        [rounds] = (options.out / "runs").glob("*/rounds.jsonl")
        assert all("metrics" not in json.loads(line) for line in rounds.read_text().splitlines())
        monkeypatch.undo()

        simulate(options, Console(file=io.StringIO()))

        assert tables(options.out) == tables(tmp_path / "whole")

    def test_without_any_network_says_why_there_is_no_report(self, options):
        text = io.StringIO()
        changed = replace(options, seeds="1", min_labels_per_class=12, no_random=True)
        results = simulate(changed, Console(file=text, width=200))

        assert results.rounds == ()
        assert len(results.cold) == 6
        assert results.summary.first_ranking == {"entropy": (None,) * 3}
        assert "no network was trained: 25 labels did not complete the start; give a larger --budget" in text.getvalue()
        assert not (options.out / "report.html").exists()
        again = CliRunner().invoke(app, shlex.split(results.summary.command)[1:], catch_exceptions=False)
        assert again.exit_code == 1


def live_results(ranks_at: dict[tuple[str, int], int], height: float = 0.8) -> StudyResults:
    """Runs on two classes, a round every 20 labels up to 100; networks from a label count on, of one height.

    Balanced accuracy is 0.03 lower than the height, see ``drawn_metrics``.
    """
    drawn = drawn_results(("random", "entropy"), seeds=2, rounds=1, classes=("a", "b"))
    cold: list[ColdRow] = []
    rounds: list[RoundRow] = []
    for (strategy, seed), at in ranks_at.items():
        for number, labels in enumerate(range(0, 101, 20), start=1):
            fields = {
                "run": f"{strategy}-s{seed}",
                "strategy": strategy,
                "variant": "",
                "seed": seed,
                "round": number,
                "labels": labels,
                "share": labels / 200,
                "labels_per_class": {"a": 0, "b": labels},
            }
            if labels < at:
                cold.append(ColdRow.model_validate(fields))
            else:
                more = {"metrics": drawn_metrics(height, ("a", "b")), "epochs": 1}
                rounds.append(
                    RoundRow.model_validate({**fields, **more, "train_seconds": 1.0, "acquisition_seconds": 1.0})
                )
    return replace(drawn, rounds=tuple(rounds), cold=tuple(cold), batches=())


ENTROPY_GROUP, RANDOM_GROUP = Group("entropy", ""), Group("random", "")
EARLIER = {("random", 0): 60, ("random", 1): 80, ("entropy", 0): 20, ("entropy", 1): 40}


class TestFirstRanking:
    def test_is_at_the_labels_of_the_first_network(self):
        assert first_ranking(live_results(EARLIER)) == {
            RunKey(Group(strategy, ""), seed): labels for (strategy, seed), labels in EARLIER.items()
        }

    def test_of_a_run_without_a_network_never_comes(self):
        results = live_results(EARLIER | {("random", 1): 999})

        assert first_ranking(results)[RunKey(RANDOM_GROUP, 1)] == math.inf
        assert first_ranking_quartiles(results)[RANDOM_GROUP] == (math.inf, math.inf, math.inf)
        assert summarized(results).summary.first_ranking["entropy"] == (25.0, 30.0, 35.0)
        assert summarized(results).summary.first_ranking["random"] == (None, None, None)

    def test_such_a_run_counts_in_the_labels_needed(self):
        results = live_results(EARLIER | {("random", 1): 999})
        curves = learning_curves(results, lambda row: row.metrics.accuracy)
        baselines = {("", 0): 0.8, ("", 1): 0.8}
        untrained = [RunKey(RANDOM_GROUP, 1)]

        found = {
            (row.group, row.target): row
            for row in labels_needed_table(labels_needed_by_run(curves, baselines, untrained))
        }
        row = found[RANDOM_GROUP, "baseline"]
        assert (row.runs, row.never, row.labels.q25) == (2, 1, math.inf)
        assert found[ENTROPY_GROUP, "baseline"].labels == (25.0, 30.0, 35.0)


class TestEarly:
    def test_hand_computed(self):
        """Chance level 0.5 until the first network, then 0.77: random's runs have it for 40 and 20 of 100 labels."""
        found = early(live_results(EARLIER))

        assert found is not None
        assert found.labels == 100
        assert found.by_group[RANDOM_GROUP] == pytest.approx((0.5675, 0.581, 0.5945))
        assert found.by_group[ENTROPY_GROUP] == pytest.approx((0.6755, 0.689, 0.7025))
        difference = found.differences[ENTROPY_GROUP]
        assert difference.mean == pytest.approx(0.27 * 0.4)
        assert difference.pairs == 2
        assert set(found.differences) == {ENTROPY_GROUP}

    def test_ends_where_the_first_run_ends(self):
        results = live_results(EARLIER)
        short = tuple(row for row in results.rounds if row.run != "entropy-s0" or row.labels <= 60)

        found = early(replace(results, rounds=short))
        assert found is not None
        assert found.labels == 60
        assert found.by_group[RANDOM_GROUP] == pytest.approx((0.5, 0.5, 0.5))

    def test_of_a_given_start_counts_the_start_set_at_chance_level(self):
        results = drawn_results(("random",), seeds=1, rounds=6, classes=("a", "b"))
        rows = [row.metrics.balanced_accuracy for row in results.rounds[:3]]

        found = early(results)
        assert found is not None
        assert found.by_group[RANDOM_GROUP].median == pytest.approx(
            (50 * 0.5 + 20 * rows[0] + 20 * rows[1] + 10 * rows[2]) / 100
        )

    def test_of_runs_without_a_label_is_none(self):
        results = live_results(EARLIER)

        assert early(replace(results, rounds=(), cold=tuple(row for row in results.cold if not row.labels))) is None

    def test_stands_in_report_and_terminal(self):
        results = live_results(EARLIER)
        text = io.StringIO()
        Console(file=text, width=300).print(conclusion(results))

        for shown in (text.getvalue(), report_page(results)):
            assert "30 [25–35]" in shown
            assert "0.689 [0.67" in shown
            assert "+0.108" in shown
            assert "+0.108 [" not in shown  # of two seeds


def test_the_baseline_learns_both_sides_of_a_live_start(tmp_path, options):
    plan, data = make_plan(options)
    log = RunLog(tmp_path, BASELINE.name)
    do_run(BASELINE, Study(plan, data, lambda _options: FakeLearner()), log)

    row = log.baseline()
    assert row is not None
    assert row.labels == 57
