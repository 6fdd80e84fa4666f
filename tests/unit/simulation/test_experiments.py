"""Experiments: their specifications, tables and options, and the conclusions from results made by hand."""

import io
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

from ml_backend.cli import app
from ml_backend.config import ProjectOptions
from ml_backend.errors import RoundError, SettingsError
from ml_backend.registry import STRATEGIES
from ml_backend.schemas import Annotation, ImageRef
from ml_backend.simulation.analysis import Group
from ml_backend.simulation.conclusions import (
    CONCLUSIONS,
    FUNCTIONS,
    Conclusion,
    FinishedStudy,
    Interval,
    by_run,
    disagreement,
    interval,
    known,
    picked_share,
    rank_correlation,
    seed_spread,
    share_in_top,
    uncertainty_conclusion,
)
from ml_backend.simulation.dataset import DataSet
from ml_backend.simulation.experiments import (
    ExperimentContext,
    ExperimentOptions,
    Tables,
    across_centres,
    own_tables,
    run_experiment,
    two_centres,
    with_pool_of,
)
from ml_backend.simulation.options import SimulateOptions
from ml_backend.simulation.run_log import RoundRow, StudyResults
from ml_backend.simulation.specs import EXPERIMENTS, SEVEN, StudySpec, markdown
from ml_backend.simulation.tables import read_labels
from tests.manual import commands_run_by
from tests.unit.simulation.drawn_results import drawn_results
from tests.unit.simulation.tiny import make_data

PAGE = (Path(__file__).parents[3] / "docs" / "experiments.md").read_text()
LABELS, NPZ = Path("labels.csv"), Path("features.npz")
BINARY = "normal=normal;diseased=bacterial,viral"


class TestSpecs:
    def test_the_page_lists_them_word_for_word_and_names_nothing_that_is_gone(self):
        assert markdown() in PAGE
        assert re.findall(r"^### `ml-backend experiment ([a-z-]+)`", PAGE, re.MULTILINE) == list(EXPERIMENTS)

    def test_the_command_prints_them(self):
        [command] = commands_run_by(__file__)
        printed = CliRunner().invoke(app, command.words[1:])

        assert printed.exit_code == 0
        assert printed.stdout.strip() == markdown()

    def test_an_option_without_a_name_is_refused(self):
        refused = CliRunner().invoke(app, ["experiment", "--quick"])

        assert "--quick without an experiment: give its name" in str(refused.exception)

    def test_every_one_has_a_conclusion(self):
        assert list(CONCLUSIONS) == [*EXPERIMENTS]

    def test_strategies_exist(self):
        named = {name for one in EXPERIMENTS.values() for study in one.studies for name in study.strategies.split(",")}

        assert named <= STRATEGIES.keys()
        assert len(set(SEVEN.split(","))) == 7

    def test_a_start_set_of_profiles_has_a_label_of_every_class_for_each_network(self):
        networks = ProjectOptions(profile="best").committee

        assert {study.least_initial for study in EXPERIMENTS["profiles"].studies} == {networks}


class TestOptions:
    def test_the_command_leaves_out_what_only_distributes_the_work(self):
        options = ExperimentOptions(
            "loss-ablation", labels=Path("l.csv"), features=Path("f.npz"), task="a;b", seeds=3, quick=True, workers=2
        )

        assert options.command() == (
            "ml-backend experiment loss-ablation --labels l.csv --features f.npz --task 'a;b' --seeds 3 --quick"
        )

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (ExperimentOptions("paper"), "there is no experiment 'paper'; known are paper-binary, paper-multiclass"),
            (ExperimentOptions("paper-binary", seeds=0), "--seeds 0: expected 1 or more"),
            (ExperimentOptions("paper-binary", task="a;b"), "--task without --labels"),
            (ExperimentOptions("paper-binary", device="tpu"), "--device 'tpu': expected auto, cpu or cuda"),
            (
                ExperimentOptions("uncertainty-quality", labels=Path("l.csv"), features=Path("f.npz"), task="a;b"),
                "give --ratings",
            ),
        ],
    )
    def test_refuses_before_anything_is_written(self, options, message, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)

        with pytest.raises(SettingsError, match=message):
            run_experiment(options, Console(file=io.StringIO()))
        assert list(tmp_path.iterdir()) == []


class TestOwnTables:
    def test_the_users_own(self):
        tables = own_tables(ExperimentOptions("paper-binary", labels=LABELS, features=NPZ, task=BINARY), 2)

        assert tables == Tables(LABELS, BINARY, features=NPZ)
        assert tables.classes == ("normal", "diseased")

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"ratings": Path("r.csv")}, "--ratings without --labels"),
            ({"labels": LABELS}, "--labels without --images or --features"),
            ({"labels": LABELS, "features": NPZ}, "give the classes, least severe first, such as 'normal=normal"),
            ({"labels": LABELS, "features": NPZ, "task": "a;b;c"}, "requires 2 classes, but --task 'a;b;c' names 3"),
        ],
    )
    def test_names_what_is_missing(self, given, message):
        with pytest.raises(SettingsError, match=message):
            own_tables(ExperimentOptions("paper-binary", **given), 2)


class TestContext:
    def resolve(
        self, spec: StudySpec, task: str = "normal;moderate;severe", *, synthetic: bool = False, quick: bool = False
    ) -> SimulateOptions:
        tables = Tables(LABELS, task, features=NPZ, synthetic=synthetic)
        options = ExperimentOptions("x", quick=quick, workers=2)
        return ExperimentContext(tables, Path("out"), 3, options).resolve(spec)[1]

    @pytest.mark.parametrize(
        ("task", "synthetic", "expected"),
        [
            ("normal;moderate;severe", False, "normal=0.14,moderate=0.36,severe=0.5"),
            (BINARY, False, "normal=0.14"),
            ("a;b;c;d", False, None),
            (BINARY, True, None),  # they have these shares already
        ],
    )
    def test_own_images_are_subsampled_to_the_papers_shares(self, task, synthetic, expected):
        assert self.resolve(StudySpec(imbalance="paper"), task, synthetic=synthetic).imbalance == expected

    def test_a_study_is_the_profile_paper_up_to_half_of_the_labels(self):
        options = self.resolve(StudySpec(name="part", imbalance=0.1))

        assert options.command() == (
            "ml-backend simulate --labels labels.csv --out out/part --features features.npz --strategy entropy "
            "--seeds 3 --start given --task 'normal;moderate;severe' --imbalance normal=0.1 --initial 25"
        )
        assert options.workers == 2
        assert self.resolve(StudySpec(one_worker=True)).workers == 1

    @pytest.mark.parametrize(
        ("spec", "quick", "budget"),
        [
            (StudySpec(one_round=True), False, "75"),
            (StudySpec(one_round=True), True, "9"),
            (StudySpec(budget="0.25"), False, "0.25"),
            (StudySpec(initial=10), True, "13"),  # three labels of three classes, then four more
            (StudySpec(least_initial=5), True, "19"),
        ],
    )
    def test_budget(self, spec, quick, budget):
        assert self.resolve(spec, quick=quick).budget == budget

    def test_budgets_of_reads_fit_small_tables(self):
        """180 images to train and validate on; of 162, three reads an image would find no first network."""
        tables, options = Tables(LABELS, "normal;moderate;severe", features=NPZ), ExperimentOptions("readers")
        context = ExperimentContext(tables, Path("out"), 3, options)
        studies = EXPERIMENTS["readers"].studies
        for train, expected in (
            (900, {("720", 240), ("720", 120), ("720", 80)}),
            (150, {("162", 54), ("162", 27), ("162", 18)}),
        ):
            vars(context)["data"] = make_data({"train": train, "val": 30, "test": 3})
            found = [context.resolve(study)[1] for study in studies]
            assert {(one.budget, one.batch_size) for one in found} == expected
        vars(context)["data"] = make_data({"train": 132, "val": 30, "test": 3})
        with pytest.raises(SettingsError, match="needs more than 162 images to train and validate on, there are 162"):
            context.resolve(studies[0])


TABLES = Tables(Path("labels.csv"), "n=normal;m=moderate;s=severe", ratings=Path("ratings.csv"), images=Path("images"))


def with_sources(names: str = "ab") -> DataSet:
    """Patients of two images each; sources in turn, patient by patient."""
    data = make_data()
    return replace(data, source={i.id: names[int(str(i.patient_id).split("-")[1]) % len(names)] for i in data.images})


class TestDerivedTables:
    def test_two_centres_are_the_largest_by_name(self):
        """C has half of the images; a and b a quarter each, and a comes first."""
        assert two_centres(with_sources("cabc")) == ("a", "c")
        with pytest.raises(SettingsError, match="needs images of two sources, the labels have a: add a column"):
            two_centres(with_sources("a"))
        with pytest.raises(SettingsError, match="have none"):
            two_centres(make_data())

    def test_across_centres_trains_on_one_and_tests_on_the_other(self, tmp_path):
        data = with_sources()
        assert data.source is not None
        tables = across_centres(TABLES, data, "a", "b", tmp_path / "tables" / "a-to-b.csv")

        rows = read_labels(tables.labels)
        assert {(row.split, data.source[row.path]) for row in rows} == {("train", "a"), ("val", "a"), ("test", "b")}
        assert all(data.split[row.path] == row.split for row in rows)
        assert len(rows) == sum(
            data.source[image.id] == ("b" if data.split[image.id] == "test" else "a") for image in data.images
        )
        assert (tables.task, tables.ratings, tables.images) == ("normal;moderate;severe", None, Path("images"))
        assert {row.path: row.label for row in rows}.items() <= data.truth.items()
        assert all(row.patient_id for row in rows)

    @pytest.mark.parametrize(("pool", "trained_on"), [(1, 7), (20, 26), (42, 48), (1000, 48)])
    def test_pool_of_a_given_size_and_a_start_set_of_every_class(self, tmp_path, pool, trained_on):
        """48 training images; 2 labels of each of 3 classes at the start. The other sides stay."""
        rows = read_labels(with_pool_of(TABLES, make_data(), pool, 2, tmp_path / "pool.csv").labels)
        classes = Counter(row.label for row in rows if row.split == "train")

        assert Counter(row.split for row in rows) == {"train": trained_on, "val": 9, "test": 12}
        assert len(classes) == 3
        assert min(classes.values()) >= 2


class TestInterval:
    def test_hand_computed(self):
        """Mean 2, standard deviation 1, 3 values: 2 +- 4.3027 / sqrt 3, with t of 2 degrees of freedom."""
        found = interval([1.0, 2.0, 3.0])

        assert (found.mean, found.low, found.high) == pytest.approx((2.0, -0.4841, 4.4841), abs=1e-4)
        assert not found.is_above_zero
        assert str(found) == "2.000 [-0.484 to 4.484]"

    def test_equal_values_and_a_single_one(self):
        assert interval([0.5, 0.5]) == Interval(0.5, 0.5, 0.5)
        assert interval([0.5, 0.5]).is_above_zero
        assert str(interval([0.5])) == "0.500 (one seed)"
        assert not interval([0.5]).is_above_zero


class TestByRun:
    def test_means_and_last_values_of_every_run(self):
        results = drawn_results(("random", "entropy"), seeds=2, rounds=3)
        mine = [row.metrics.accuracy for row in results.rounds if (row.strategy, row.seed) == ("entropy", 1)]
        means, last = by_run(results, accuracy), by_run(results, accuracy, "last")

        assert means[Group("entropy", "")][1] == pytest.approx(sum(mine) / 3)
        assert last[Group("entropy", "")][1] == mine[-1]
        assert list(map(str, means)) == ["random", "entropy"]

    def test_undefined_rounds_are_left_out(self):
        results = drawn_results(("random",), seeds=1, rounds=3)

        [found] = by_run(results, lambda row: None if row.round == 1 else float(row.round)).values()
        assert found.to_dict() == {0: 2.5}
        with pytest.raises(RoundError, match="all of one class"):
            by_run(results, lambda _row: None)
        with pytest.raises(RoundError):
            known(None)

    def test_share_of_a_class_among_the_picks(self):
        results = drawn_results(("random",), seeds=1, rounds=2)
        normals = sum(row.label == "normal" for row in results.batches)

        assert picked_share(results, "normal")[Group("random", "")].to_dict() == {0: normals / 40}

    @pytest.mark.parametrize(("seeds", "expected"), [(2, 0.5**0.5), (1, np.nan)])
    def test_spread_is_between_seeds_and_not_between_rounds(self, seeds, expected):
        """Seeds 0 and 1 differ by 1 in every round: sqrt(1/2) each, however the rounds differ."""
        results = drawn_results(("random",), seeds=seeds, rounds=3)

        [found] = seed_spread(results, lambda row: row.seed + 10.0 * row.round).values()
        assert found == pytest.approx(expected, nan_ok=True)


def accuracy(row: RoundRow) -> float:
    return row.metrics.accuracy


def finished(results: StudyResults, name: str = "", title: str = "", profile: str = "paper") -> FinishedStudy:
    return FinishedStudy(name, title, SimulateOptions(labels=LABELS, out=Path("out"), profile=profile), results)


def with_metrics(results: StudyResults, change: Callable[[RoundRow], dict[str, object]]) -> StudyResults:
    rows = (row.model_copy(update={"metrics": row.metrics.model_copy(update=change(row))}) for row in results.rounds)
    return replace(results, rounds=tuple(rows))


def with_baselines(results: StudyResults, change: Callable[[int], Mapping[str, float]]) -> StudyResults:
    """Other metrics of the baselines, by seed."""
    rows = (
        row.model_copy(update={"metrics": row.metrics.model_copy(update=dict(change(row.seed)))})
        for row in results.baselines
    )
    return replace(results, baselines=tuple(rows))


class TestPaper:
    def conclusion(self, ahead: str, seeds: int = 10) -> Conclusion:
        """One strategy lies 0.05 above the others everywhere."""
        results = with_metrics(
            drawn_results(("random", "entropy", "bald"), seeds=seeds),
            lambda row: {"auroc": 0.7 + 0.01 * row.round + 0.05 * (row.strategy == ahead)},
        )
        return CONCLUSIONS["paper-binary"]([finished(results)])

    def test_the_best_of_the_paper_ahead_in_every_seed(self):
        """Its interval is [0.05, 0.05]; Wilcoxon's p of ten equal signs is 2 / 2**10."""
        found = self.conclusion("entropy")

        assert found.surprises == ()
        assert found.found[1].startswith("Furthest ahead of random in AU ROC: entropy, +0.050 [+0.050 to +0.050]")
        assert "p = 0.002" in found.found[2]
        assert [row[0] for row in found.rows] == ["random", "entropy", "bald"]
        assert {len(row) for row in found.rows} == {len(found.columns)}

    def test_another_one_ahead_is_a_surprise(self):
        found = self.conclusion("bald")

        assert found.surprises == ("entropy is not significantly ahead of random in AU ROC",)
        assert "all equal" in found.found[2]

    def test_two_seeds_prove_nothing(self):
        assert self.conclusion("entropy", seeds=2).surprises


class TestLosses:
    def conclusion(self, gain: float, noise: float, epochs: int) -> Conclusion:
        """Weighted against unweighted; seeds differ by 0.1 unweighted, which takes 30 epochs."""

        def change(row: RoundRow) -> dict[str, object]:
            weighted = row.variant == "weighted"
            return {
                "recall": {"normal": 0.5 + gain * weighted, "viral": 0.5, "bacterial": 0.5},
                "balanced_accuracy": 0.5 + row.seed * (noise if weighted else 0.1),
            }

        drawn = drawn_results(("random", "entropy"), seeds=3, variants=("weighted", "unweighted"))
        results = with_metrics(drawn, change)
        rows = (row.model_copy(update={"epochs": {"weighted": epochs}.get(row.variant, 30)}) for row in results.rounds)
        return CONCLUSIONS["loss-ablation"]([finished(replace(results, rounds=tuple(rows)))])

    def test_as_expected(self):
        found = self.conclusion(gain=0.2, noise=0.05, epochs=39)

        assert found.surprises == ()
        assert found.found == (
            "Recall of the rarest class (normal), weighted minus unweighted: 0.200 [0.200 to 0.200].",
            "Epochs of a training, median: 39 weighted, 30 unweighted.",
            "Standard deviation of the balanced accuracy over seeds: 0.0500 weighted, 0.1000 unweighted.",
        )
        assert found.rows[0] == (
            "random",
            "weighted",
            "39 [39–39]",
            "0.700 [0.700 to 0.700]",
            "0.550 [0.426 to 0.674]",
            "0.0500",
        )

    def test_every_difference_is_a_surprise(self):
        assert len(self.conclusion(gain=-0.2, noise=0.2, epochs=60).surprises) == 3


class TestReaders:
    """Twenty seeds of three rounds; a seed is 0.001 better than the one before, a round 0.1."""

    def conclusion(self, ordinal: float, again: float) -> Conclusion:
        """Labels of ordinal are so much better than those of median, networks of two reads than those of one."""
        studies = []
        for rule, reads, ahead in (("median", 1, 0.0), ("median", 2, again), ("ordinal", 2, again)):

            def change(row: RoundRow, ahead: float = ahead) -> dict[str, object]:
                return {"accuracy": 0.5 + 0.1 * row.round + 0.001 * row.seed + ahead}

            results = with_metrics(drawn_results(("random",), seeds=20, rounds=3, baseline=False), change)
            right = 0.7 + ordinal * (rule == "ordinal")
            rows = (row.model_copy(update={"label_accuracy": right + 0.001 * row.seed}) for row in results.rounds)
            studies.append(finished(replace(results, rounds=tuple(rows)), f"{rule}-{reads}"))
        return CONCLUSIONS["readers"](studies)

    def test_labels_and_networks_are_compared_with_the_median_of_the_same_reads(self):
        """Rounds of 75, 95 and 115: the lowest accuracy, 0.7095 at the end of two reads, one read passes before it."""
        found = self.conclusion(ordinal=0.05, again=-0.1)

        assert found.surprises == ()
        same = ("0.710 [0.707 to 0.712]", "0.000 [0.000 to 0.000]", "never [115–never], 10 of 20 never")
        assert found.rows == (
            ("median", "1", "0.709 [0.707 to 0.712]", "", "0.810 [0.807 to 0.812]", "", "105 [95–115], 0 of 20 never"),
            ("median", "2", "0.709 [0.707 to 0.712]", "", same[0], "", same[2]),
            ("ordinal", "2", "0.759 [0.757 to 0.762]", "0.050 [0.050 to 0.050]", *same),
        )
        assert found.found == tuple(
            f"{rule}: network's accuracy of 2 reads an image minus that of one read of 2 times the images: "
            "-0.100 [-0.100 to -0.100]."
            for rule in ("median", "ordinal")
        )

    def test_every_difference_is_a_surprise(self):
        assert self.conclusion(ordinal=-0.01, again=0.1).surprises == (
            "median: 2 reads an image are better than one read of more images (0.100 [0.100 to 0.100])",
            "ordinal of 2 reads is not significantly closer to the truth than median (-0.010 [-0.010 to -0.010])",
            "ordinal: 2 reads an image are better than one read of more images (0.100 [0.100 to 0.100])",
        )


class TestProfiles:
    def study(self, profile: str, height: float, baseline: float = 0.9) -> FinishedStudy:
        """Ten seeds, rising by 0.01 a round."""
        results = with_metrics(
            drawn_results(("random", "entropy"), seeds=10),
            lambda row: dict.fromkeys(("auroc", "accuracy"), height + 0.01 * row.round),
        )
        return finished(
            with_baselines(results, lambda _seed: dict.fromkeys(("auroc", "accuracy"), baseline)),
            profile,
            profile,
            profile,
        )

    def conclusion(self, best: float, **changes: float) -> Conclusion:
        return CONCLUSIONS["profiles"]([self.study("paper", 0.8), self.study("best", best, **changes)])

    def test_ahead_in_every_seed_is_as_expected(self):
        found = self.conclusion(0.82)

        assert found.surprises == ()
        assert found.found[0].startswith("AU ROC over the curve, random, best minus paper: +0.020")
        assert found.found[0].endswith("p = 0.002.")
        assert [row[:2] for row in found.rows] == [
            ("paper", "random"),
            ("best", "random"),
            ("paper", "entropy"),
            ("best", "entropy"),
        ]

    @pytest.mark.parametrize("best", [0.8, 0.79])
    def test_level_or_behind_is_a_surprise(self, best):
        assert self.conclusion(best).surprises == tuple(
            f"with {strategy}, best is not significantly ahead of paper in AU ROC" for strategy in ("random", "entropy")
        )

    def test_labels_needed_are_those_for_the_papers_baselines(self):
        """Both reach 95 % of the paper's 0.9; the better baseline of ``best`` is out of reach and not used."""
        found = self.conclusion(0.8, baseline=0.999)

        assert found.rows[0][2:] == found.rows[1][2:]
        assert "never" not in found.rows[1][2]


class TestLatency:
    def conclusion(self, **seconds: float) -> Conclusion:
        drawn = drawn_results(tuple(STRATEGIES), seeds=3, rounds=1)
        rows = (
            row.model_copy(update={"acquisition_seconds": seconds.get(row.strategy, 0.1 + 0.001 * row.seed)})
            for row in drawn.rounds
        )
        return CONCLUSIONS["acquisition-latency"]([finished(replace(drawn, rounds=tuple(rows)))])

    def test_all_the_same_but_batch_bald_is_as_expected(self):
        """75 of 1,336 are labelled, so 1,261 in the pool."""
        found = self.conclusion(batch_bald=0.15, random=0.001, badge=9.0)

        assert found.surprises == ()
        assert found.found[0].startswith("A pool of 1,261 images, 50 passes, a batch of 20")
        assert found.rows[0] == ("random", "0.0010", "0.0010 to 0.0010", "0.0008")
        assert found.rows[-1][0] == "badge"

    def test_a_slow_function_and_a_slow_batch_are_surprises(self):
        assert self.conclusion(batch_bald=0.202, bald=0.303).surprises == (
            "bald takes 3.0 times as long as entropy",
            "batch_bald takes 2.0 times as long as most of them",
        )


class TestImbalance:
    def study(self, title: str, gain: float) -> FinishedStudy:
        """4 or 5 of 20 picks by entropy, none by random."""
        drawn = drawn_results(
            ("random", "entropy"), seeds=10, variants=("weighted", "unweighted"), classes=("normal", "diseased")
        )
        picks = (
            row.model_copy(
                update={"label": "normal" if row.rank <= 4 + row.seed % 2 and row.strategy == "entropy" else "diseased"}
            )
            for row in drawn.batches
        )
        results = with_metrics(
            drawn, lambda row: {"recall": {"normal": 0.3 + gain * (row.variant == "weighted"), "diseased": 0.9}}
        )
        return finished(replace(results, batches=tuple(picks)), title=title)

    def test_picked_and_found_as_expected_in_both_studies(self):
        found = CONCLUSIONS["extreme-imbalance"]([self.study("5 / 95", 0.2), self.study("2 / 98", 0.2)])

        assert found.surprises == ()
        assert "entropy minus random: 0.225 [" in found.found[0]
        assert "weighted minus unweighted: 0.200 [0.200 to 0.200]" in found.found[1]
        assert found.rows[2][:4] == ("5 / 95", "entropy", "weighted", "22.5 %")
        assert len(found.rows) == 8

    def test_the_study_with_a_surprise_is_named(self):
        [surprise] = CONCLUSIONS["extreme-imbalance"]([self.study("5 / 95", 0.2), self.study("2 / 98", 0.0)]).surprises

        assert surprise == "2 / 98: the weighted loss does not significantly raise the recall of normal"


class TestCentres:
    def conclusion(self, across: float) -> Conclusion:
        """Within a centre 0.9; in the second centre a network from the first one reaches ``across``."""
        aurocs = {"1-to-1": 0.9, "2-to-1": 0.8, "1-to-2": across, "2-to-2": 0.9}

        def study(name: str) -> FinishedStudy:
            results = with_baselines(drawn_results(seeds=3), lambda seed: {"auroc": aurocs[name] + 0.001 * seed})
            return finished(results, name, name.replace("-to-", " -> "))

        return CONCLUSIONS["cross-centre"]([study(name) for name in aurocs])

    def test_a_loss_in_both_directions_is_as_expected(self):
        found = self.conclusion(across=0.7)

        assert found.surprises == ()
        assert found.found == (
            "2 -> 1: AU ROC lost against a network of the centre itself, with all labels: 0.100 [0.100 to 0.100].",
            "1 -> 2: AU ROC lost against a network of the centre itself, with all labels: 0.200 [0.200 to 0.200].",
        )
        assert [row[0] for row in found.rows] == ["1 -> 1", "2 -> 1", "1 -> 2", "2 -> 2"]
        assert found.rows[1][2] == "0.801 [0.799 to 0.803]"

    def test_the_direction_without_a_loss_is_a_surprise(self):
        [surprise] = self.conclusion(across=0.95).surprises

        assert surprise.startswith("1 -> 2: a network of another centre is as good as the centre's own (-0.050")


class TestUncertainty:
    def conclusion(self, **agreement: float) -> Conclusion:
        """Three seeds of ten images, two of them disputed; scores that agree with the readers, or not."""
        disputed = np.array([1.0, 1.0, *[0.0] * 8])
        frames = []
        for seed in range(3):
            noise = np.random.default_rng(seed).normal(0, 0.01, 10)
            scores = {name: agreement.get(name, 0.3) * disputed + noise for name in FUNCTIONS}
            index = pd.MultiIndex.from_product([[seed], [f"{n}.png" for n in range(10)]], names=["seed", "image_id"])
            frames.append(pd.DataFrame({"disagreement": disputed, **scores}, index=index))
        return uncertainty_conclusion(pd.concat(frames), ceiling=0.5)

    def test_as_expected(self):
        found = self.conclusion()

        assert found.surprises == ()
        assert found.found[0].startswith("10 test images; closest to the readers: bald, Spearman correlation 0.6")
        assert found.rows[1][2] == "0.500 [0.500 to 0.500]"
        assert "at random 0.10, at most 0.500" in found.found[1]

    def test_a_network_that_is_uncertain_about_other_images_is_a_surprise(self):
        surprises = self.conclusion(entropy=-0.3).surprises

        assert len(surprises) == 3
        assert surprises[0].startswith("the correlation of entropy is not significantly above 0")
        assert surprises[1].startswith("the top 10% by entropy hold no more")
        assert surprises[2].startswith("bald (0.")


def answers(**by_image: str) -> list[Annotation]:
    """One letter a reader; ``-`` is a reader who gave no class."""
    return [
        Annotation(
            image=ImageRef(id=image_id, uri=image_id),
            rater=f"r{number}",
            value=None if letter == "-" else letter,
            updated_at=datetime(2026, 1, 1, tzinfo=UTC),
        )
        for image_id, letters in by_image.items()
        for number, letter in enumerate(letters)
    ]


def test_disagreement_is_the_share_of_pairs_that_differ():
    """A a b: 2 of 3 pairs; a b c c: 5 of 6. A single reader has no pair."""
    found = disagreement(answers(same="aaa", one="aab", wide="abcc", lone="a", unread="a-", two="a-b"))

    assert found == pytest.approx({"same": 0.0, "one": 2 / 3, "wide": 5 / 6, "two": 1.0})


def test_rank_correlation_hand_computed():
    """Ranks 1 2 3 4 against 2 1 3 4: 1 - 6 * 2 / (4 * 15) = 0.8; a constant has none."""
    assert rank_correlation(np.array([0.0, 1.0, 2.0, 99.0]), np.array([0.2, 0.1, 0.3, 0.4])) == pytest.approx(0.8)
    assert rank_correlation(np.zeros(4), np.arange(4.0)) == rank_correlation(np.arange(4.0), np.zeros(4)) == 0.0


class TestShareInTop:
    def test_hand_computed(self):
        """The two most uncertain of ten hold 1.0 + 0.5 of 3.0."""
        readers = np.array([1.0, 0.5, 0.0, 0.5, 1.0, 0, 0, 0, 0, 0])

        assert share_in_top(np.arange(10.0)[::-1], readers, top=0.2) == pytest.approx(0.5)

    def test_images_at_the_border_count_in_part(self):
        """One of four equally uncertain ones: a quarter of what they hold together, whichever comes first."""
        readers = np.array([1.0, 0.0, 0.0, 1.0, 0.0, 0, 0, 0, 0, 0])
        uncertainty = np.array([1.0, 1.0, 1.0, 1.0, 0, 0, 0, 0, 0, 0])

        assert share_in_top(uncertainty, readers) == pytest.approx(0.25)

    @pytest.mark.parametrize(("readers", "top"), [(np.zeros(3), 0.1), (np.ones(3), 0.0)])
    def test_refuses(self, readers, top):
        with pytest.raises(ValueError, match="expected 0 < top <= 1 and disagreement"):
            share_in_top(np.arange(3.0), readers, top=top)
