"""A run goes through the live loop's rounds, writes each down, goes on where it was stopped, and lets nothing leak."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import entropy
from structlog import get_logger
from structlog.testing import capture_logs

from ml_backend.config import ProjectOptions
from ml_backend.errors import EmptyPool, RoundError
from ml_backend.predictions import PoolPredictions
from ml_backend.registry import Need
from ml_backend.rounds import run as rounds_run
from ml_backend.rounds.interfaces import Learner, Splitter
from ml_backend.rounds.split import stable_split
from ml_backend.schemas import Annotation, ImageRef, Label, Ranking, RoundReport
from ml_backend.simulation import run as simulation_run
from ml_backend.simulation.dataset import DataSet
from ml_backend.simulation.oracle import Oracle
from ml_backend.simulation.plan import Run
from ml_backend.simulation.run import GuardedLearner, LeakageError, SimulatedProject, Study, do_run, simulated_rounds
from ml_backend.simulation.run_log import BatchRow, RoundRow, RunLog
from tests.fakes import CLASSES, NOON, FakeLearner, FakeStrategy, make_request, one_reader
from tests.unit.simulation.tiny import make_data, make_plan, make_study

ENTROPY = Run(strategy="entropy", variant="", seed=0, loss="weighted")
BASELINE = Run(strategy="baseline", variant="", seed=0, loss="weighted")


class Watched(FakeLearner):
    """Remembers the pools that it was asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.pools: list[list[str]] = []

    def outputs(self, pool: Sequence[ImageRef], needs: frozenset[Need]) -> PoolPredictions:
        self.pools.append([image.id for image in pool])
        return super().outputs(pool, needs)


def rows(log: RunLog) -> tuple[list[dict[str, object]], tuple[BatchRow, ...]]:
    """What a run did, without how long it took."""
    rounds, batches = log.read()
    return [row.model_dump(exclude={"train_seconds", "acquisition_seconds"}) for row in rounds], batches


def run(
    folder: Path, run: Run = ENTROPY, study: Study | None = None, on_round: Callable[[], None] = lambda: None
) -> RunLog:
    log = RunLog(folder, run.name)
    do_run(run, study or make_study(), log, on_round)
    return log


def trained(log: RunLog) -> list[RoundRow]:
    return [row for row in log.read()[0] if isinstance(row, RoundRow)]


def study_with(learner: Learner) -> Study:
    return replace(make_study(), learner=lambda _options: learner)


class TestRounds:
    def test_grow_by_a_batch_from_the_start_set_to_the_budget(self, tmp_path):
        """2 of 3 classes, then 5 a round; 31 labels would be more than 30."""
        rounds, batches = run(tmp_path).read()

        assert [row.labels for row in rounds] == [6, 11, 16, 21, 26]
        assert [row.share for row in rounds] == [count / 48 for count in (6, 11, 16, 21, 26)]
        assert rounds[0].labels_per_class == dict.fromkeys(CLASSES, 2)
        assert [row.round for row in batches] == [number for number in range(1, 6) for _ in range(5)]
        assert [row.rank for row in batches] == [1, 2, 3, 4, 5] * 5

    @pytest.mark.parametrize("budget", [6, 10, 11, 26, 45, 46, 48])
    def test_are_as_many_as_the_plan_says(self, tmp_path, budget):
        """A round that trains on exactly the budget is one."""
        study = make_study(make_plan(budget=budget))

        assert len(run(tmp_path, study=study).read()[0]) == study.plan.rounds(classes=3, train_images=48)

    def test_of_a_budget_of_everything_end_with_the_pool(self, tmp_path):
        """48 images: after 46 labels 2 are left, then 0; a run that could not mark its end has ended anyway."""
        study = make_study(make_plan(budget=48))
        log = run(tmp_path, study=study)
        whole = rows(log)
        (tmp_path / "runs" / ENTROPY.name / "done").unlink()

        assert [row.labels for row in log.read()[0]][-1] == 46
        assert len(log.read()[1]) == 42
        assert rows(run(tmp_path, study=study)) == whole
        assert log.is_done

    def test_log_a_warning_once_and_nothing_below(self, tmp_path, monkeypatch):
        """Four passes are too few for each of five batches."""
        monkeypatch.setattr(simulation_run, "_logged", set())
        with capture_logs() as logged:
            run(tmp_path, Run(strategy="batch_bald", variant="", seed=0, loss="weighted"))
            get_logger().info("after the run")

        assert [line["event"] for line in logged] == ["few_passes_for_batch_bald", "after the run"]

    def test_each_side_has_its_own_use(self, tmp_path):
        """Trained on the training side, stopped by validation; the pool is training images, then the test side."""
        learner = Watched()

        run(tmp_path, study=study_with(learner))

        for train, validation in learner.fits:
            assert {name.split("/")[0] for name in train} == {"train"}
            assert validation == [f"val/{number:03d}.png" for number in range(9)]
        for ranked, tested in zip(learner.pools[::2], learner.pools[1::2], strict=True):
            assert {name.split("/")[0] for name in ranked} == {"train"}
            assert {name.split("/")[0] for name in tested} == {"test"}

    def test_all_strategies_of_a_seed_begin_alike_and_another_seed_otherwise(self, tmp_path):
        starts = {}
        for name, seed in (("random", 0), ("entropy", 0), ("entropy", 1)):
            learner = Watched()
            one = ENTROPY.model_copy(update={"strategy": name, "seed": seed})
            run(tmp_path, one, study_with(learner))
            starts[name, seed] = learner.fits[0]

        assert starts["random", 0] == starts["entropy", 0] != starts["entropy", 1]

    def test_metrics_are_those_of_the_mean_over_the_passes_on_the_test_side(self, tmp_path):
        data = make_data()
        learner = FakeLearner()
        learner._classes = CLASSES
        test = data.labels("test")
        probs = learner.outputs([label.image for label in test], frozenset()).probs.mean(axis=1)

        rounds = trained(run(tmp_path))

        right = [CLASSES[best] == label.value for best, label in zip(probs.argmax(axis=1), test, strict=True)]
        assert rounds[0].metrics.accuracy == pytest.approx(np.mean(right))
        assert rounds[0].metrics.images == 12

    def test_a_pick_knows_what_kind_of_uncertainty_it_was(self, tmp_path):
        """Against SciPy, from the passes: both parts sum to the entropy of the mean, which is the score here."""
        _, batches = run(tmp_path).read()

        learner = FakeLearner()
        learner._classes = CLASSES
        for row in batches:
            [probs] = learner.outputs([ImageRef(id=row.image_id, uri="x")], frozenset()).probs.astype(np.float64)
            assert row.aleatoric == pytest.approx(entropy(probs, axis=-1).mean(), abs=1e-6)
            assert row.epistemic is not None
            assert row.aleatoric is not None
            assert row.epistemic + row.aleatoric == pytest.approx(row.score, abs=1e-6)
            assert row.score == pytest.approx(entropy(probs.mean(axis=0)), abs=1e-6)

    def test_without_a_validation_side_it_is_drawn_from_the_labels_as_in_a_live_loop(self, tmp_path):
        learner = Watched()
        data = make_data({"train": 48, "test": 12})

        rounds, _ = run(tmp_path, study=Study(make_plan(), data, lambda _options: learner)).read()

        assert [len(train) + len(validation) for train, validation in learner.fits] == [row.labels for row in rounds]
        assert all(validation for _, validation in learner.fits)

    def test_an_unreadable_test_image_is_left_out_of_the_metrics(self, tmp_path):
        rounds = trained(run(tmp_path, study=make_study(unreadable=["test/003.png"])))

        assert rounds[0].metrics.images == 11

    def test_readers_who_give_the_start_set_no_class_are_an_error_in_words(self, tmp_path):
        data = make_data({"train": 48, "test": 12})
        unsure = tuple(
            Annotation(image=image, rater="ann", value=None, updated_at=NOON)
            for image in data.images
            if data.split[image.id] == "train" and data.truth[image.id] != "normal"
        )

        with pytest.raises(RoundError, match=r"too few labels to train on \(normal: 2, moderate: 0, severe: 0\)"):
            run(tmp_path, study=make_study(data=replace(data, ratings=unsure)))


class TestBaseline:
    def test_learns_every_label_of_the_training_side(self, tmp_path):
        learner = Watched()
        log = run(tmp_path, BASELINE, study_with(learner))

        row = log.baseline()

        assert row is not None
        assert (row.labels, row.metrics.images) == (48, 12)
        [(train, validation)] = learner.fits
        assert (len(train), len(validation)) == (48, 9)


class _Stop(Exception):
    """The run is stopped."""


def stop_after(rounds: int) -> Callable[[], None]:
    left = iter(range(rounds - 1))

    def stop() -> None:
        if next(left, None) is None:
            raise _Stop

    return stop


class TestResuming:
    @pytest.mark.parametrize("after", [1, 3, 5])
    def test_goes_on_to_the_same_result(self, tmp_path, after):
        with pytest.raises(_Stop):
            run(tmp_path / "stopped", on_round=stop_after(after))
        assert len(RunLog(tmp_path / "stopped", ENTROPY.name).read()[0]) == after

        assert rows(run(tmp_path / "stopped")) == rows(run(tmp_path / "whole"))

    @pytest.mark.parametrize("cut", [1, 40, 900])
    @pytest.mark.parametrize("name", ["rounds.jsonl", "batches.jsonl"])
    def test_an_incomplete_line_is_done_again(self, tmp_path, name, cut):
        whole = rows(run(tmp_path / "whole"))
        run(tmp_path / "cut")
        folder = tmp_path / "cut" / "runs" / ENTROPY.name
        (folder / "done").unlink()
        (folder / name).write_bytes((folder / name).read_bytes()[:-cut])

        assert rows(run(tmp_path / "cut")) == whole

    def test_what_is_done_is_not_done_again(self, tmp_path):
        run(tmp_path)
        learner = Watched()

        run(tmp_path, study=study_with(learner))

        assert learner.fits == []

    def test_a_warm_run_begins_anew_because_its_network_is_gone(self, tmp_path):
        options = ProjectOptions(batch_size=5, passes=4, finetune="head", retrain="warm").model_dump(mode="json")
        learner = Watched()
        study = Study(make_plan(options=options), make_data(), lambda _options: learner)

        with pytest.raises(_Stop):
            run(tmp_path, study=study, on_round=stop_after(1))
        learner.fits.clear()
        log = run(tmp_path, study=study)

        assert len(learner.fits) == len(log.read()[0]) == 5


PROBS: frozenset[Need] = frozenset({"probs"})


class PeekingStrategy(FakeStrategy):
    """Asks for labels of the test side."""

    def rank(self, outputs: PoolPredictions, batch_size: int, seed: int) -> Ranking:
        ranking = super().rank(outputs, batch_size, seed)
        return ranking.model_copy(update={"image_ids": ("test/000.png", *ranking.image_ids[1:])})


class PeekingLearner(FakeLearner):
    """Scores a validation image as if it were of the pool."""

    def outputs(self, pool: Sequence[ImageRef], needs: frozenset[Need]) -> PoolPredictions:
        return super().outputs([*pool, ImageRef(id="val/000.png", uri="val/000.png")], needs)


class LooseStudy(Study):
    """Splits as if the validation side were not fixed, and trains on some of it."""

    def split(self) -> Splitter:
        return stable_split


class LearnerWithFeatures(FakeLearner):
    """Returns features of everything that it was fitted on: row i is filled with i."""

    def outputs(self, pool: Sequence[ImageRef], needs: frozenset[Need]) -> PoolPredictions:
        count = sum(map(len, self.fits[-1]))
        features = np.zeros((len(pool), 2), np.float32)
        labelled = np.repeat(np.arange(count, dtype=np.float32)[:, None], 2, axis=1)
        return replace(super().outputs(pool, needs), features=features, labelled_features=labelled)


def labels(data: DataSet, *names: str) -> list[Label]:
    return [Label(image=image, value=data.truth[image.id], raters=1) for image in data.images if image.id in names]


def images(data: DataSet, *names: str) -> list[ImageRef]:
    return [label.image for label in labels(data, *names)]


class TestLeakage:
    @pytest.mark.parametrize(
        ("study", "strategy", "message"),
        [
            (make_study(), PeekingStrategy(), r"'test/000.png' \(and 0 more\) is ranked"),
            (study_with(PeekingLearner()), None, r"'val/000.png' \(and 0 more\) is scored as of the pool"),
            (
                LooseStudy(make_plan(), make_data(), lambda _options: FakeLearner()),
                None,
                r"'val/.*' \(and \d more\) is trained on",
            ),
        ],
    )
    def test_stops_the_run_before_anything_is_kept(self, tmp_path, study, strategy, message):
        log = RunLog(tmp_path, ENTROPY.name)

        with pytest.raises(LeakageError, match=message):
            do_run(ENTROPY, study, log, strategy=strategy)

        assert log.read() == ((), ())

    def test_from_a_pool_with_a_test_image(self, tmp_path, monkeypatch):
        """As if the reader of the tables put it there."""
        with_test = classmethod(lambda cls, data, _ratings: cls([*data.labels("train"), *data.labels("test")]))
        monkeypatch.setattr(Oracle, "of", with_test)

        with pytest.raises(LeakageError, match="'test/"):
            run(tmp_path, study=make_study(data=make_data({"train": 48, "test": 12})))


class TestGuardedLearner:
    DATA = make_data()
    WITHOUT_VALIDATION = make_data({"train": 48, "test": 12})

    def guard(self, data: DataSet, *validation: str, learner: FakeLearner | None = None) -> GuardedLearner:
        """Fitted on two images of the training side."""
        guard = GuardedLearner(learner or LearnerWithFeatures(), data)
        guard.fit(labels(data, "train/000.png", "train/001.png"), labels(data, *validation), CLASSES)
        return guard

    def test_refuses_a_labelled_image_in_the_pool(self):
        with pytest.raises(LeakageError, match=r"'train/001.png' \(and 0 more\) is in the pool, though it has a label"):
            self.guard(self.DATA, "val/000.png").outputs(images(self.DATA, "train/001.png", "train/002.png"), PROBS)

    def test_refuses_to_train_and_validate_on_an_image(self):
        with pytest.raises(LeakageError, match="is validated on, though it was trained on"):
            self.guard(self.WITHOUT_VALIDATION, "train/000.png")

    def test_refuses_to_test_on_a_training_image(self):
        with pytest.raises(LeakageError, match=r"'train/000.png' \(and 0 more\) is tested on"):
            self.guard(self.DATA, "val/000.png").predict_test(images(self.DATA, "train/000.png", "test/000.png"))

    @pytest.mark.parametrize(
        ("data", "validation", "seen"),
        [
            # Otherwise core_set would find the part of the pool near the validation side covered.
            (DATA, "val/000.png", [[0, 0], [1, 1]]),
            (WITHOUT_VALIDATION, "train/002.png", [[0, 0], [1, 1], [2, 2]]),
        ],
    )
    def test_withholds_the_features_of_a_fixed_validation_side(self, data, validation, seen):
        outputs = self.guard(data, validation).outputs(images(data, "train/005.png"), PROBS)

        assert outputs.labelled_features is not None
        assert outputs.labelled_features.tolist() == seen

    def test_refuses_labelled_features_of_another_fit(self):
        learner = LearnerWithFeatures()
        guard = self.guard(self.DATA, "val/000.png", learner=learner)
        learner.fits.append(([], []))

        with pytest.raises(LeakageError, match="features of 0 labelled images, but 2 were trained on and 1 vali"):
            guard.outputs(images(self.DATA, "train/005.png"), PROBS)


def rounds_of(oracle: Oracle, learner: Learner | None = None, first: int = 1, **changes: object) -> list[RoundReport]:
    """All rounds of three images by a strategy that hashes."""
    project = SimulatedProject(oracle, one_reader)
    results = simulated_rounds(make_request(**changes), project, learner or FakeLearner(), FakeStrategy(), first)
    return [result.report for result in results]


class TestSimulatedRounds:
    @pytest.fixture
    def oracle(self):
        """Of 30 images two of every class are labelled."""
        oracle = Oracle(
            Label(
                image=ImageRef(id=f"{n}.png", uri=f"{n}.png", patient_id=f"p{n // 2}"), value=CLASSES[n % 3], raters=1
            )
            for n in range(30)
        )
        oracle.reveal(oracle.start_set(2, 0))
        return oracle

    def test_are_the_live_loops(self):
        live = Path(rounds_run.__file__).with_name("live.py")

        assert vars(simulation_run)["run_round"] is rounds_run.run_round
        # As text: importing the live loop takes seconds of torch.
        assert re.search(r"from ml_backend.rounds.run import .*\brun_round\b", live.read_text())

    def test_label_the_head_of_every_ranking_and_learn_it_in_the_next_round(self, oracle):
        learner = FakeLearner()

        reports = rounds_of(oracle, learner)

        batches = [report.ranking.image_ids[:3] for report in reports]
        assert [report.request.round_id for report in reports] == [f"r{n:06d}" for n in range(1, 9)]
        assert oracle.revealed[6:] == tuple(image_id for batch in batches for image_id in batch)
        assert [sum(report.labels_per_class.values()) for report in reports] == list(range(6, 30, 3))
        assert set(batches[0]) <= {image_id for ids in learner.fits[1] for image_id in ids}

    def test_without_a_pool_are_an_error_in_the_first_round_and_an_end_later(self, oracle):
        oracle.reveal([image.id for image in oracle.unlabelled()[0]])

        with pytest.raises(EmptyPool):
            rounds_of(oracle)
        assert rounds_of(oracle, first=2) == []
