"""A run goes through the engine's rounds, writes each down, and goes on where it was stopped."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import entropy

from ml_backend.config import ProjectOptions
from ml_backend.errors import RoundError
from ml_backend.predictions import PoolPredictions
from ml_backend.registry import Need
from ml_backend.rounds.interfaces import Learner
from ml_backend.schemas import Annotation, ImageRef
from ml_backend.simulation.options import Study
from ml_backend.simulation.plan import Run
from ml_backend.simulation.run import do_run, journal_of
from ml_backend.simulation.run_log import BatchRow, Journal
from tests.fakes import CLASSES, NOON, FakeLearner
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


def rows(journal: Journal) -> tuple[list[dict[str, object]], tuple[BatchRow, ...]]:
    """What a run did, without how long it took."""
    rounds, batches = journal.read()
    return [row.model_dump(exclude={"train_seconds", "acquisition_seconds"}) for row in rounds], batches


def run(
    folder: Path, run: Run = ENTROPY, study: Study | None = None, on_round: Callable[[], None] = lambda: None
) -> Journal:
    journal = journal_of(folder, run)
    do_run(run, study or make_study(), journal, on_round)
    return journal


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
        journal = run(tmp_path, BASELINE, study_with(learner))

        row = journal.baseline()

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
        assert len(journal_of(tmp_path / "torn", ENTROPY).read()[0]) == after

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
        journal = run(tmp_path, study=study)
        whole = rows(journal)
        (tmp_path / "runs" / ENTROPY.name / "done").unlink()

        assert rows(run(tmp_path, study=study)) == whole
        assert journal.is_done

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
        journal = run(tmp_path, study=study)

        assert len(learner.fits) == len(journal.read()[0]) == 5
