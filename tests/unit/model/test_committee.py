"""Several networks as one learner: whose passes, whose folds, whose progress."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ml_backend.config import ProjectOptions
from ml_backend.errors import RoundError, WeightsError
from ml_backend.images.source import FolderSource
from ml_backend.model.ensemble import CommitteeLearner, Folds, Tell, make_learner
from ml_backend.model.learner import LearnerStage, McDropoutLearner
from ml_backend.predictions import PoolPredictions
from ml_backend.registry import Need
from ml_backend.rounds.interfaces import Learner
from ml_backend.rounds.split import fold_split
from ml_backend.schemas import FitReport, ImageRef, Label
from tests.unit.model.phantom_films import BOTH, CLASSES, OPTIONS, PROBS, labelled, learner, pool

FOLDS: Folds = partial(fold_split, seed=0)


def member(films: Path, cache: Path, options: ProjectOptions, seed: int, tell: Tell) -> McDropoutLearner:
    return McDropoutLearner(options, FolderSource(films), cache, device="cpu", seed=seed, progress=tell)


def silent(stage: LearnerStage, done: int, total: int) -> None:
    pass


def committee(
    films: Path, cache: Path, folds: Folds | None = FOLDS, networks: int = 3, tell: Tell = silent
) -> CommitteeLearner:
    options = OPTIONS.model_copy(update={"committee": networks, "passes": 8})
    made = make_learner(partial(member, films, cache), options, folds, tell)
    assert isinstance(made, CommitteeLearner)
    return made


class Recording(McDropoutLearner):
    """Notes what it was fitted on."""

    sides: list[tuple[set[str], set[str]]]

    def fit(self, train: Sequence[Label], validation: Sequence[Label], classes: Sequence[str]) -> FitReport:
        self.sides = [({one.image.id for one in train}, {one.image.id for one in validation})]
        return super().fit(train, validation, classes)


def recording(films: Path, cache: Path, folds: Folds | None) -> tuple[CommitteeLearner, list[Recording]]:
    members: list[Recording] = []

    def make(options: ProjectOptions, seed: int, told: Tell) -> McDropoutLearner:
        members.append(Recording(options, FolderSource(films), cache, device="cpu", seed=seed, progress=told))
        return members[-1]

    made = make_learner(make, OPTIONS.model_copy(update={"committee": 3}), folds, silent)
    assert isinstance(made, CommitteeLearner)
    return made, members


class TestFit:
    def test_every_label_is_validated_on_once_and_trained_on_by_the_others(self, films: Path, cache: Path) -> None:
        it, members = recording(films, cache, FOLDS)

        report = it.fit(labelled(films, 0, 24), labelled(films, 24, 30), CLASSES)

        everything = {one.image.id for one in labelled(films, 0, 30)}
        sides = [member.sides[0] for member in members]
        assert sorted(image for _, held_out in sides for image in held_out) == sorted(everything)
        assert all(train == everything - held_out for train, held_out in sides)
        assert (report.train_images, report.validation_images) == (30, 30)

    def test_a_side_for_validation_is_never_trained_on(self, films: Path, cache: Path) -> None:
        it, members = recording(films, cache, None)

        report = it.fit(labelled(films, 0, 24), labelled(films, 24, 30), CLASSES)

        validation = {one.image.id for one in labelled(films, 24, 30)}
        sides = [member.sides[0] for member in members]
        assert all(held_out == validation and not train & validation for train, held_out in sides)
        assert (report.train_images, report.validation_images) == (24, 6)

    def test_report_is_the_mean_by_images_of_the_members_reports(self, films: Path, cache: Path) -> None:
        it = committee(films, cache)
        report = it.fit(labelled(films, 0, 25), [], CLASSES)

        alone = [
            member.fit(train, held_out, CLASSES)
            for member, (train, held_out) in zip(it._members, FOLDS(labelled(films, 0, 25), 3), strict=True)
        ]
        assert report.validation_accuracy == pytest.approx(
            sum(one.validation_accuracy * one.validation_images for one in alone) / 25
        )
        assert report.epochs == sorted(one.epochs for one in alone)[1]
        assert report.class_weights == {
            name: pytest.approx(np.mean([one.class_weights[name] for one in alone])) for name in CLASSES
        }

    def test_unreadable_images_are_named_once(self, films: Path, cache: Path) -> None:
        report = committee(films, cache).fit(labelled(films, 31, 61), [], CLASSES)

        assert [exclusion.image_id for exclusion in report.exclusions] == ["60-normal"]
        assert report.train_images == 29

    def test_progress_is_that_of_all(self, films: Path, cache: Path) -> None:
        told: list[tuple[str, int, int]] = []
        it = committee(films, cache, tell=lambda stage, done, total: told.append((stage, done, total)))

        it.fit(labelled(films, 0, 30), [], CLASSES)

        training = [(done, total) for stage, done, total in told if stage == "train"]
        assert training == sorted(training)
        assert training[-1][0] == training[-1][1]


class TestOutputs:
    def test_passes_are_shared_out(self, films: Path, cache: Path) -> None:
        """Eight passes for three networks: 3, 3 and 2, each network's own."""
        it: Learner = committee(films, cache)
        it.fit(labelled(films, 0, 24), labelled(films, 24, 30), CLASSES)
        assert isinstance(it, CommitteeLearner)

        outputs = it.outputs(pool(films, 30, 45), BOTH)
        single = [member.outputs(pool(films, 30, 45), PROBS).probs for member in it._members]

        assert [probs.shape[1] for probs in single] == [3, 3, 2]
        assert np.array_equal(outputs.probs, np.concatenate(single, axis=1))
        assert outputs.features is not None
        assert outputs.labelled_features is not None
        assert len(outputs.labelled_features) == 30

    def test_networks_differ(self, films: Path, cache: Path) -> None:
        it = committee(films, cache, folds=None)
        it.fit(labelled(films, 0, 24), labelled(films, 24, 30), CLASSES)

        first, second = (member.outputs(pool(films, 30, 45), PROBS).probs for member in it._members[:2])

        assert not np.allclose(first.mean(axis=1), second.mean(axis=1), atol=1e-3)

    def test_an_image_that_one_network_alone_could_read_stops_the_round(self, films: Path, cache: Path) -> None:
        it = committee(films, cache)
        it.fit(labelled(films, 0, 24), labelled(films, 24, 30), CLASSES)
        last = it._members[-1]
        whole = last.outputs

        def without_the_first(images: Sequence[ImageRef], needs: frozenset[Need]) -> PoolPredictions:
            return whole(images[1:], needs)

        last.outputs = without_the_first  # type: ignore[method-assign,assignment]
        with pytest.raises(RoundError, match="for one network of the committee and not for the next"):
            it.outputs(pool(films, 30, 35), PROBS)


class TestSaved:
    def test_another_process_gives_the_same_bits(self, films: Path, cache: Path, tmp_path: Path) -> None:
        it = committee(films, cache)
        it.fit(labelled(films, 0, 24), labelled(films, 24, 30), CLASSES)
        it.save(str(tmp_path))
        other = committee(films, cache)

        other.restore(str(tmp_path))

        assert np.array_equal(
            other.outputs(pool(films, 30, 40), PROBS).probs, it.outputs(pool(films, 30, 40), PROBS).probs
        )

    def test_a_missing_network_is_named(self, films: Path, cache: Path, tmp_path: Path) -> None:
        it = committee(films, cache)
        it.fit(labelled(films, 0, 24), labelled(films, 24, 30), CLASSES)
        it.save(str(tmp_path))
        (tmp_path / "network-2" / "model.safetensors").unlink()

        with pytest.raises(WeightsError, match="network-2"):
            committee(films, cache).restore(str(tmp_path))


class TestMakeLearner:
    def test_one_network_is_no_committee(self, films: Path, cache: Path) -> None:
        assert isinstance(make_learner(partial(member, films, cache), OPTIONS, FOLDS, silent), McDropoutLearner)

    def test_a_committee_of_one_is_refused(self, films: Path, cache: Path) -> None:
        with pytest.raises(ValueError, match="2 networks or more, got 1"):
            CommitteeLearner([learner(films, cache)], None)
