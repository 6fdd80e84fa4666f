"""A run goes through the live loop's rounds, writes each down, goes on where it was stopped, and lets nothing leak."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import entropy

from ml_backend.config import ProjectOptions
from ml_backend.errors import EmptyPool, RoundError
from ml_backend.predictions import PoolPredictions
from ml_backend.registry import Need
from ml_backend.rounds import run as rounds_run
from ml_backend.rounds.interfaces import Learner, RoundParts, Splitter
from ml_backend.rounds.split import fixed_split, stable_split
from ml_backend.schemas import Annotation, ImageRef, Label, Ranking, RoundReport
from ml_backend.simulation import run as simulation_run
from ml_backend.simulation.dataset import DataSet
from ml_backend.simulation.oracle import Oracle
from ml_backend.simulation.plan import Run
from ml_backend.simulation.run import GuardedLearner, LeakageError, Study, do_run, simulated_rounds
from ml_backend.simulation.run_log import BatchRow, RunLog
from ml_backend.storage import ProjectStore
from tests.fakes import CLASSES, NOON, FakeLearner, FakeStrategy, MemoryStore, make_request, one_reader
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

    def test_a_budget_of_everything_ends_with_the_pool(self, tmp_path):
        """48 images: after 46 labels 2 are left, and then nothing is left to rank."""
        rounds, batches = run(tmp_path, study=make_study(make_plan(budget=48))).read()

        assert [row.labels for row in rounds][-1] == 46
        assert len(batches) == 42

    def test_labels_of_the_validation_side_are_not_counted(self, tmp_path):
        rounds, batches = run(tmp_path).read()
        truth = make_data().truth

        chosen = [row.image_id for row in batches if row.round == 1]
        assert sum(rounds[1].labels_per_class.values()) == 11
        assert rounds[1].labels_per_class == {
            name: 2 + sum(truth[image_id] == name for image_id in chosen) for name in CLASSES
        }

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

        rounds, _ = run(tmp_path).read()

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
            assert row.epistemic + row.aleatoric == pytest.approx(row.score, abs=1e-6)
            assert row.score == pytest.approx(entropy(probs.mean(axis=0)), abs=1e-6)

    def test_without_a_validation_side_it_is_drawn_from_the_labels_as_in_a_live_loop(self, tmp_path):
        learner = Watched()
        data = make_data({"train": 48, "test": 12})

        rounds, _ = run(tmp_path, study=Study(make_plan(), data, lambda _options: learner)).read()

        assert [len(train) + len(validation) for train, validation in learner.fits] == [row.labels for row in rounds]
        assert all(validation for _, validation in learner.fits)

    def test_an_unreadable_test_image_is_left_out_of_the_metrics(self, tmp_path):
        rounds, _ = run(tmp_path, study=make_study(unreadable=["test/003.png"])).read()

        assert rounds[0].metrics.images == 11

    def test_readers_who_give_the_start_set_no_class_are_an_error_in_words(self, tmp_path):
        data = make_data({"train": 48, "test": 12})
        unsure = tuple(
            Annotation(image=image, rater="ann", value=None, updated_at=NOON)
            for image in data.images
            if data.split[image.id] == "train" and data.truth[image.id] == "severe"
        )

        with pytest.raises(RoundError, match=r"too few labels to train on \(normal: 2, moderate: 2, severe: 0\)"):
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
    """Somebody pulls the plug."""


class TestResuming:
    @pytest.mark.parametrize("after", [1, 3, 5])
    def test_goes_on_to_the_same_result(self, tmp_path, after):
        whole = rows(run(tmp_path / "whole"))
        left = after

        def stop() -> None:
            nonlocal left
            left -= 1
            if not left:
                raise _Stop

        with pytest.raises(_Stop):
            run(tmp_path / "torn", on_round=stop)
        assert len(RunLog(tmp_path / "torn", ENTROPY.name).read()[0]) == after

        assert rows(run(tmp_path / "torn")) == whole

    @pytest.mark.parametrize("cut", [1, 40, 900])
    @pytest.mark.parametrize("name", ["rounds.jsonl", "batches.jsonl"])
    def test_a_torn_line_is_done_again(self, tmp_path, name, cut):
        whole = rows(run(tmp_path / "whole"))
        run(tmp_path / "torn")
        folder = tmp_path / "torn" / "runs" / ENTROPY.name
        (folder / "done").unlink()
        (folder / name).write_bytes((folder / name).read_bytes()[:-cut])

        assert rows(run(tmp_path / "torn")) == whole

    def test_a_run_that_used_its_pool_up_has_ended_even_where_it_could_not_say_so(self, tmp_path):
        study = make_study(make_plan(budget=48))
        log = run(tmp_path, study=study)
        whole = rows(log)
        (tmp_path / "runs" / ENTROPY.name / "done").unlink()

        assert rows(run(tmp_path, study=study)) == whole
        assert log.is_done

    def test_what_is_done_is_not_done_again(self, tmp_path):
        run(tmp_path)
        learner = Watched()

        run(tmp_path, study=study_with(learner))

        assert learner.fits == []

    def test_a_warm_run_begins_anew_because_its_network_is_gone(self, tmp_path):
        options = ProjectOptions(batch_size=5, passes=4, finetune="head", retrain="warm").model_dump(mode="json")
        learner = Watched()
        study = Study(make_plan(options=options), make_data(), lambda _options: learner)

        def stop() -> None:
            raise _Stop

        with pytest.raises(_Stop):
            run(tmp_path, study=study, on_round=stop)
        learner.fits.clear()
        log = run(tmp_path, study=study)

        assert len(learner.fits) == len(log.read()[0]) == 5


PROBS: frozenset[Need] = frozenset({"probs"})


class PeekingStrategy(FakeStrategy):
    """Knows the test side, and asks for its labels."""

    def rank(self, outputs: PoolPredictions, batch_size: int, seed: int) -> Ranking:
        ranking = super().rank(outputs, batch_size, seed)
        return ranking.model_copy(update={"image_ids": ("test/000.png", *ranking.image_ids[1:])})


class PeekingLearner(FakeLearner):
    """Scores a validation image as if it were of the pool."""

    def outputs(self, pool: Sequence[ImageRef], needs: frozenset[Need]) -> PoolPredictions:
        return super().outputs([*pool, ImageRef(id="val/000.png", uri="val/000.png")], needs)


class LooseStudy(Study):
    """Forgets that the validation side is fixed, and trains on some of it."""

    def split(self) -> Splitter:
        return stable_split


class LearnerWithFeatures(FakeLearner):
    """Hands out features of everything that it was fitted on: row i is filled with i."""

    def outputs(self, pool: Sequence[ImageRef], needs: frozenset[Need]) -> PoolPredictions:
        count = sum(map(len, self.fits[-1]))
        features = np.zeros((len(pool), 2), np.float32)
        labelled = np.repeat(np.arange(count, dtype=np.float32)[:, None], 2, axis=1)
        return replace(super().outputs(pool, needs), features=features, labelled_features=labelled)


def labels(data: DataSet, *names: str) -> list[Label]:
    return [Label(image=image, value=data.truth[image.id], raters=1) for image in data.images if image.id in names]


def images(data: DataSet, *names: str) -> list[ImageRef]:
    return [label.image for label in labels(data, *names)]


class TestRunWithALeak:
    def test_a_strategy_that_asks_for_a_test_image(self, tmp_path):
        with pytest.raises(LeakageError, match=r"'test/000.png' \(and 0 more\) is ranked"):
            do_run(ENTROPY, make_study(), RunLog(tmp_path, ENTROPY.name), strategy=PeekingStrategy())

        assert RunLog(tmp_path, ENTROPY.name).read() == ((), ())

    def test_a_learner_that_scores_a_validation_image(self, tmp_path):
        study = replace(make_study(), learner=lambda _options: PeekingLearner())

        with pytest.raises(LeakageError, match=r"'val/000.png' \(and 0 more\) is scored as of the pool"):
            do_run(ENTROPY, study, RunLog(tmp_path, ENTROPY.name))

    def test_a_split_that_trains_on_the_validation_side(self, tmp_path):
        study = make_study()

        with pytest.raises(LeakageError, match=r"'val/.*' \(and \d more\) is trained on"):
            do_run(ENTROPY, LooseStudy(study.plan, study.data, study.learner), RunLog(tmp_path, ENTROPY.name))

    def test_a_pool_with_a_test_image(self, tmp_path, monkeypatch):
        """The reader of the tables puts it there."""
        with_test = classmethod(lambda cls, data: cls([*data.labels("train"), *data.labels("test")]))
        monkeypatch.setattr(Oracle, "of", with_test)
        study = make_study(data=make_data({"train": 48, "test": 12}))

        with pytest.raises(LeakageError, match="'test/"):
            do_run(ENTROPY, study, RunLog(tmp_path, ENTROPY.name))


class TestGuardedLearner:
    def test_what_is_labelled_is_not_in_the_pool(self):
        data = make_data()
        guard = GuardedLearner(FakeLearner(), data)
        guard.fit(labels(data, "train/000.png", "train/001.png"), labels(data, "val/000.png"), CLASSES)

        with pytest.raises(LeakageError, match=r"'train/001.png' \(and 0 more\) is in the pool, though it has a label"):
            guard.outputs(images(data, "train/001.png", "train/002.png"), PROBS)

    def test_nothing_is_trained_and_validated_on(self):
        data = make_data({"train": 48, "test": 12})
        both = labels(data, "train/000.png", "train/001.png")

        with pytest.raises(LeakageError, match="is validated on, though it was trained on"):
            GuardedLearner(FakeLearner(), data).fit(both, both[:1], CLASSES)

    def test_only_test_images_are_judged(self):
        data = make_data()

        with pytest.raises(LeakageError, match=r"'train/000.png' \(and 0 more\) is tested on"):
            GuardedLearner(FakeLearner(), data).predict_test(images(data, "train/000.png", "test/000.png"))

    def test_a_fixed_validation_side_does_not_look_labelled_to_a_strategy(self):
        """Else core_set would find the part of the pool that validation covers, covered."""
        data = make_data()
        guard = GuardedLearner(LearnerWithFeatures(), data)
        guard.fit(labels(data, "train/000.png", "train/001.png"), labels(data, "val/000.png"), CLASSES)

        outputs = guard.outputs(images(data, "train/005.png"), PROBS)

        assert outputs.labelled_features is not None
        assert outputs.labelled_features.tolist() == [[0, 0], [1, 1]]

    def test_validation_drawn_from_the_labels_is_labelled(self):
        data = make_data({"train": 48, "test": 12})
        guard = GuardedLearner(LearnerWithFeatures(), data)
        guard.fit(labels(data, "train/000.png", "train/001.png"), labels(data, "train/002.png"), CLASSES)

        outputs = guard.outputs(images(data, "train/005.png"), PROBS)

        assert outputs.labelled_features is not None
        assert len(outputs.labelled_features) == 3

    def test_labelled_features_of_nobody_knows_whom_are_refused(self):
        data = make_data()
        guard = GuardedLearner(LearnerWithFeatures(), data)
        guard.fit(labels(data, "train/000.png"), labels(data, "val/000.png"), CLASSES)
        guard._learner.fits.append(([], []))  # type: ignore[attr-defined]

        with pytest.raises(LeakageError, match="features of 0 labelled images, but 1 were trained on and 1 vali"):
            guard.outputs(images(data, "train/005.png"), PROBS)


IMAGES = 30


def make_truth() -> list[Label]:
    """Ten images of every class, two a patient."""
    return [
        Label(image=ImageRef(id=f"{n}.png", uri=f"{n}.png", patient_id=f"p{n // 2}"), value=CLASSES[n % 3], raters=1)
        for n in range(IMAGES)
    ]


def rounds_of(
    oracle: Oracle,
    learner: Learner | None = None,
    *,
    first: int = 1,
    store: MemoryStore | ProjectStore | None = None,
    split: Splitter = stable_split,
    **changes: object,
) -> Iterator[RoundReport]:
    """Rounds of three images by a strategy that hashes, as they are asked for."""
    learner = learner or FakeLearner()
    parts = RoundParts(oracle, one_reader, learner, FakeStrategy(), store or MemoryStore(), oracle, split=split)
    return simulated_rounds(make_request(**changes), parts, first)


def started() -> Oracle:
    """Two labels of every class are known."""
    oracle = Oracle(make_truth())
    oracle.reveal(oracle.start_set(2, 0))
    return oracle


def without_clock(reports: Iterator[RoundReport], count: int) -> list[dict[str, object]]:
    return [report.model_dump(exclude={"seconds", "started_at"}) for report in islice(reports, count)]


class TestSimulatedRounds:
    def test_are_the_live_loops(self):
        live = Path(rounds_run.__file__).with_name("live.py")

        assert vars(simulation_run)["run_round"] is rounds_run.run_round
        # As text: importing the live loop takes seconds of torch.
        assert re.search(r"from ml_backend.rounds.run import .*\brun_round\b", live.read_text())

    def test_label_the_head_of_every_ranking_and_learn_it_in_the_next_round(self):
        oracle, learner = started(), FakeLearner()

        reports = list(islice(rounds_of(oracle, learner), 4))

        batches = [report.ranking.image_ids[:3] for report in reports]
        assert [report.request.round_id for report in reports] == ["r000001", "r000002", "r000003", "r000004"]
        assert oracle.revealed[6:] == tuple(image_id for batch in batches for image_id in batch)
        assert [sum(report.labels_per_class.values()) for report in reports] == [6, 9, 12, 15]
        assert set(batches[0]) <= {image_id for ids in learner.fits[1] for image_id in ids}

    def test_of_the_same_seed_are_the_same(self):
        once, again = (without_clock(rounds_of(started()), 3) for _ in range(2))

        assert once == again

    def test_end_when_the_pool_is_used_up(self):
        """24 images in the pool, 10 a round: three rounds, the last one of four images."""
        oracle = started()

        assert len(list(rounds_of(oracle, batch_size=10))) == 3
        assert len(oracle.revealed) == IMAGES

    def test_leave_unreadable_images_in_the_pool_and_end(self):
        oracle = started()

        reports = list(rounds_of(oracle, FakeLearner(unreadable=["7.png", "8.png"]), batch_size=12))

        assert {image.id for image in oracle.unlabelled()[0]} <= {"7.png", "8.png"}
        assert {e.image_id for e in reports[0].exclusions} <= {"7.png", "8.png"}

    def test_without_a_pool_are_an_error_in_the_first_round_and_an_end_later(self):
        oracle = Oracle(make_truth())
        oracle.reveal(image.id for image in oracle.unlabelled()[0])

        with pytest.raises(EmptyPool):
            next(rounds_of(oracle))
        assert list(rounds_of(oracle, first=2)) == []

    def test_go_on_where_they_were_left(self):
        whole = list(islice(rounds_of(started()), 4))
        oracle = started()
        for report in whole[:2]:
            oracle.reveal(report.ranking.image_ids[:3])

        assert without_clock(rounds_of(oracle, first=3), 2) == without_clock(iter(whole[2:]), 2)

    def test_can_hold_validation_fixed(self):
        """Images that are always known tell when to stop, and nothing else."""
        truth = make_truth()
        oracle = Oracle(truth[6:], always_known=truth[:6])
        oracle.reveal(oracle.start_set(2, 0))
        learner = FakeLearner()

        list(islice(rounds_of(oracle, learner, split=fixed_split([label.image.id for label in truth[:6]])), 2))

        assert [len(train) for train, _ in learner.fits] == [6, 9]
        assert all(set(validation) == {label.image.id for label in truth[:6]} for _, validation in learner.fits)

    def test_are_kept_like_live_ones(self, tmp_path):
        store = ProjectStore(tmp_path / "simulation")

        reports = list(islice(rounds_of(started(), store=store), 2))

        assert [store.report(round_id) for round_id in store.round_ids()] == reports
        assert (store.folder / "rounds/r000002/model.txt").read_text() == "fits: 2\n"

    def test_of_a_typiclust_start_label_an_image_of_every_group_and_then_train(self):
        """No reader waits in a simulation: the first batch of ten is already one of each of ten looks."""
        oracle = Oracle(
            Label(image=ImageRef(id=f"{n}", uri=f"{n}.png"), value=CLASSES[n % 3], raters=1) for n in range(100, 160)
        )

        first, second = islice(rounds_of(oracle, cold_start="typiclust", batch_size=10), 2)

        assert first.ranking.strategy == "typiclust"
        assert {image_id[-1] for image_id in first.ranking.image_ids[:10]} == set("0123456789")
        assert second.fit is not None
