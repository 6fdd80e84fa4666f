"""Leaks that somebody might build in, each caught."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from ml_backend.predictions import PoolPredictions
from ml_backend.registry import Need
from ml_backend.rounds.interfaces import Splitter
from ml_backend.rounds.split import stable_split
from ml_backend.schemas import ImageRef, Label, Ranking
from ml_backend.simulation.dataset import DataSet
from ml_backend.simulation.options import Study
from ml_backend.simulation.oracle import Oracle
from ml_backend.simulation.plan import Run
from ml_backend.simulation.run import GuardedLearner, Leak, do_run, journal_of
from tests.fakes import CLASSES, FakeLearner, FakeStrategy
from tests.unit.simulation.tiny import make_data, make_study

RUN = Run(strategy="entropy", variant="", seed=0, loss="weighted")
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
        with pytest.raises(Leak, match=r"'test/000.png' \(and 0 more\) is ranked"):
            do_run(RUN, make_study(), journal_of(tmp_path, RUN), strategy=PeekingStrategy())

        assert journal_of(tmp_path, RUN).read() == ((), ())

    def test_a_learner_that_scores_a_validation_image(self, tmp_path):
        study = replace(make_study(), learner=lambda _options: PeekingLearner())

        with pytest.raises(Leak, match=r"'val/000.png' \(and 0 more\) is scored as of the pool"):
            do_run(RUN, study, journal_of(tmp_path, RUN))

    def test_a_split_that_trains_on_the_validation_side(self, tmp_path):
        study = make_study()

        with pytest.raises(Leak, match=r"'val/.*' \(and \d more\) is trained on"):
            do_run(RUN, LooseStudy(study.plan, study.data, study.learner), journal_of(tmp_path, RUN))

    def test_a_pool_with_a_test_image(self, tmp_path, monkeypatch):
        """The reader of the tables puts it there."""
        with_test = classmethod(lambda cls, data: cls([*data.labels("train"), *data.labels("test")]))
        monkeypatch.setattr(Oracle, "of", with_test)
        study = make_study(data=make_data({"train": 48, "test": 12}))

        with pytest.raises(Leak, match="'test/"):
            do_run(RUN, study, journal_of(tmp_path, RUN))


class TestGuardedLearner:
    def test_what_is_labelled_is_not_in_the_pool(self):
        data = make_data()
        guard = GuardedLearner(FakeLearner(), data)
        guard.fit(labels(data, "train/000.png", "train/001.png"), labels(data, "val/000.png"), CLASSES)

        with pytest.raises(Leak, match=r"'train/001.png' \(and 0 more\) is in the pool, though it has a label"):
            guard.outputs(images(data, "train/001.png", "train/002.png"), PROBS)

    def test_nothing_is_trained_and_validated_on(self):
        data = make_data({"train": 48, "test": 12})
        both = labels(data, "train/000.png", "train/001.png")

        with pytest.raises(Leak, match="is validated on, though it was trained on"):
            GuardedLearner(FakeLearner(), data).fit(both, both[:1], CLASSES)

    def test_only_test_images_are_judged(self):
        data = make_data()

        with pytest.raises(Leak, match=r"'train/000.png' \(and 0 more\) is tested on"):
            GuardedLearner(FakeLearner(), data).judge(images(data, "train/000.png", "test/000.png"))

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

        with pytest.raises(Leak, match="features of 0 labelled images, but 1 were trained on and 1 validated on"):
            guard.outputs(images(data, "train/005.png"), PROBS)
