from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ml_backend.config import ProjectOptions
from ml_backend.errors import RoundError, WeightsError
from ml_backend.images.source import FolderSource
from ml_backend.model.data import LabelledDataset
from ml_backend.model.ensemble import EnsembleLearner, FoldSplitter, make_learner
from ml_backend.model.learner import LearnerProgress, LearnerStage, McDropoutLearner
from ml_backend.predictions import PoolPredictions
from ml_backend.registry import Need
from ml_backend.rounds.interfaces import Learner
from ml_backend.rounds.split import fold_split
from ml_backend.schemas import FitReport, ImageRef
from tests.unit.model.synthetic_images import BOTH, CLASSES, OPTIONS, PROBS, labelled, learner, pool

FOLDS: FoldSplitter = partial(fold_split, seed=0)


class RecordingMember(McDropoutLearner):
    """Records the labels that it was fitted on."""

    trained_on: set[str]
    validated_on: set[str]

    def fit_loaded(
        self, train_set: LabelledDataset, validation_set: LabelledDataset, classes: Sequence[str]
    ) -> FitReport:
        self.trained_on = {image.id for image in train_set.images}
        self.validated_on = {image.id for image in validation_set.images}
        return super().fit_loaded(train_set, validation_set, classes)


def no_progress(stage: LearnerStage, done: int, total: int) -> None:
    pass


def make_ensemble(
    image_dir: Path, cache: Path, folds: FoldSplitter | None = FOLDS, progress: LearnerProgress = no_progress
) -> tuple[EnsembleLearner, list[RecordingMember]]:
    """Three networks with eight passes in all."""
    members: list[RecordingMember] = []

    def make_member(options: ProjectOptions, seed: int, own_progress: LearnerProgress) -> McDropoutLearner:
        members.append(
            RecordingMember(options, FolderSource(image_dir), cache, device="cpu", seed=seed, progress=own_progress)
        )
        return members[-1]

    made = make_learner(make_member, OPTIONS.model_copy(update={"committee": 3, "passes": 8}), folds, progress)
    assert isinstance(made, EnsembleLearner)
    return made, members


@pytest.fixture(scope="module")
def fitted(image_dir: Path, cache: Path) -> tuple[EnsembleLearner, list[RecordingMember], FitReport]:
    ensemble, members = make_ensemble(image_dir, cache)
    return ensemble, members, ensemble.fit(labelled(image_dir, 0, 24), labelled(image_dir, 24, 30), CLASSES)


Fitted = tuple[EnsembleLearner, list[RecordingMember], FitReport]


class TestFit:
    def test_every_label_is_validated_on_once_and_trained_on_by_the_others(
        self, image_dir: Path, fitted: Fitted
    ) -> None:
        _, members, report = fitted

        everything = {label.image.id for label in labelled(image_dir, 0, 30)}
        assert sorted(image for member in members for image in member.validated_on) == sorted(everything)
        assert all(member.trained_on == everything - member.validated_on for member in members)
        assert (report.train_images, report.validation_images) == (30, 30)
        assert sorted(one.image_id for one in report.held_out) == sorted(everything)

    def test_a_validation_set_of_its_own_is_never_trained_on(self, image_dir: Path, cache: Path) -> None:
        ensemble, members = make_ensemble(image_dir, cache, folds=None)

        report = ensemble.fit(labelled(image_dir, 0, 24), labelled(image_dir, 24, 30), CLASSES)

        validation = {label.image.id for label in labelled(image_dir, 24, 30)}
        assert all(member.validated_on == validation for member in members)
        assert not any(member.trained_on & validation for member in members)
        assert (report.train_images, report.validation_images) == (24, 6)
        # Different initial weights make different networks of the same labels.
        alone = [member.fit(labelled(image_dir, 0, 24), labelled(image_dir, 24, 30), CLASSES) for member in members]
        assert [one.image_id for one in report.held_out] == [one.image_id for one in alone[0].held_out]
        assert report.held_out[0].probs["normal"] == pytest.approx(
            np.mean([one.held_out[0].probs["normal"] for one in alone])
        )
        first, second = (member.outputs(pool(image_dir, 30, 45), PROBS).probs for member in members[:2])
        assert not np.allclose(first.mean(axis=1), second.mean(axis=1), atol=1e-3)

    def test_report_combines_the_members_reports(self, image_dir: Path, cache: Path) -> None:
        """Means weighted by validation images, medians of epochs; each member trains as it does alone."""
        labels = labelled(image_dir, 0, 25)
        ensemble, members = make_ensemble(image_dir, cache)
        report = ensemble.fit(labels, [], CLASSES)

        alone = [member.fit(*sets, CLASSES) for member, sets in zip(members, FOLDS(labels, 3), strict=True)]

        accuracies = [each.validation_accuracy * each.validation_images for each in alone]
        assert report.validation_accuracy == pytest.approx(sum(accuracies) / 25)
        assert report.epochs == sorted(each.epochs for each in alone)[1]
        assert report.class_weights == {
            name: pytest.approx(np.mean([each.class_weights[name] for each in alone])) for name in CLASSES
        }

    def test_four_labels_of_two_of_three_classes(self, image_dir: Path, cache: Path) -> None:
        """Two folds for three networks: the third has the first one's labels, and other weights and dropout."""
        given = labelled(image_dir, 0, 30)
        labels = [label for name in CLASSES[:2] for label in [one for one in given if one.value == name][:2]]
        ensemble, members = make_ensemble(image_dir, cache)

        report = ensemble.fit(labels, [], CLASSES)

        assert [(len(member.trained_on), len(member.validated_on)) for member in members] == [(2, 2)] * 3
        assert members[0].trained_on == members[2].trained_on != members[1].trained_on
        assert report.class_weights == pytest.approx({"normal": 2 / 3, "moderate": 2 / 3, "severe": 0.0})
        assert report.validation_recall["severe"] is None
        first, _, third = (member.outputs(pool(image_dir, 30, 45), PROBS).probs for member in members)
        assert not np.allclose(first.mean(axis=1), third.mean(axis=1), atol=1e-3)

    def test_a_class_of_one_patient_is_trained_on_by_all(self, image_dir: Path, cache: Path) -> None:
        labels = [
            label.model_copy(update={"image": label.image.model_copy(update={"patient_id": "p"})})
            if label.value == "severe"
            else label
            for label in labelled(image_dir, 0, 18)
        ]
        ensemble, members = make_ensemble(image_dir, cache)

        report = ensemble.fit(labels, [], CLASSES)

        severe = {label.image.id for label in labels if label.value == "severe"}
        assert all(severe <= member.trained_on for member in members)
        # The fold with that patient is no network's to validate on.
        assert report.train_images == 18
        assert (
            report.validation_images
            == len(set.union(*(member.validated_on for member in members)))
            < 18 - len(severe) + 1
        )
        assert report.validation_recall["severe"] is None

    def test_unreadable_images_are_named_once(self, image_dir: Path, cache: Path) -> None:
        report = make_ensemble(image_dir, cache)[0].fit(labelled(image_dir, 31, 61), [], CLASSES)

        assert [exclusion.image_id for exclusion in report.exclusions] == ["60-normal"]
        assert report.train_images == 29

    def test_progress_is_of_all_networks(self, image_dir: Path, cache: Path) -> None:
        seen: list[tuple[str, int, int]] = []
        ensemble, _ = make_ensemble(image_dir, cache, progress=lambda *progress: seen.append(progress))

        ensemble.fit(labelled(image_dir, 0, 30), [], CLASSES)

        training = [(done, total) for stage, done, total in seen if stage == "train"]
        assert training == sorted(training)
        assert training[-1][0] == training[-1][1]


class TestOutputs:
    def test_passes_are_divided(self, image_dir: Path, fitted: Fitted) -> None:
        """Eight passes of three networks: 3, 3 and 2, each network's own."""
        ensemble, members, _ = fitted
        learner: Learner = ensemble

        outputs = learner.outputs(pool(image_dir, 30, 45), BOTH)
        single = [member.outputs(pool(image_dir, 30, 45), PROBS).probs for member in members]

        assert [probs.shape[1] for probs in single] == [3, 3, 2]
        assert np.array_equal(outputs.probs, np.concatenate(single, axis=1))
        assert outputs.features is not None
        assert outputs.labelled_features is not None
        assert len(outputs.labelled_features) == 30

    def test_the_pool_is_read_once(self, image_dir: Path, cache: Path, tmp_path: Path, fitted: Fitted) -> None:
        fitted[0].save(str(tmp_path))
        seen: list[tuple[str, int, int]] = []
        ensemble, _ = make_ensemble(image_dir, cache, progress=lambda *progress: seen.append(progress))
        ensemble.restore(str(tmp_path))

        ensemble.outputs(pool(image_dir, 30, 50), PROBS)

        assert seen == [("score", 20, 20)]

    def test_an_image_that_one_network_alone_could_read(self, image_dir: Path, cache: Path) -> None:
        """Of networks that are trained whole, each reads the pool with its own backbone."""

        class Scored(McDropoutLearner):
            def outputs(
                self, pool: Sequence[ImageRef], needs: frozenset[Need], others: Sequence[McDropoutLearner] = ()
            ) -> PoolPredictions:
                ids = tuple(image.id for image in pool[self._seed :])
                return PoolPredictions(ids, CLASSES, np.full((len(ids), 2, 3), 1 / 3, dtype=np.float32))

        options = OPTIONS.model_copy(update={"finetune": "full"})
        members = [Scored(options, FolderSource(image_dir), cache, device="cpu", seed=seed) for seed in (0, 1)]

        with pytest.raises(RoundError, match="for one network of the ensemble and not for another"):
            EnsembleLearner(members, FOLDS).outputs(pool(image_dir, 30, 35), PROBS)

    def test_embed(self, image_dir: Path, fitted: Fitted) -> None:
        """All networks have the same backbone."""
        ensemble, members, _ = fitted
        features = ensemble.embed(pool(image_dir, 0, 3)).features

        assert np.array_equal(features, members[1].embed(pool(image_dir, 0, 3)).features)


class TestSaved:
    def test_same_bits_when_restored(self, image_dir: Path, cache: Path, tmp_path: Path, fitted: Fitted) -> None:
        fitted[0].save(str(tmp_path))
        other, _ = make_ensemble(image_dir, cache)

        other.restore(str(tmp_path))

        images = pool(image_dir, 30, 40)
        assert np.array_equal(other.outputs(images, PROBS).probs, fitted[0].outputs(images, PROBS).probs)

    def test_a_missing_network_is_named(self, image_dir: Path, cache: Path, tmp_path: Path, fitted: Fitted) -> None:
        fitted[0].save(str(tmp_path))
        (tmp_path / "network-2" / "model.safetensors").unlink()

        with pytest.raises(WeightsError, match="network-2"):
            make_ensemble(image_dir, cache)[0].restore(str(tmp_path))


def test_one_network_is_no_ensemble(image_dir: Path, cache: Path) -> None:
    single = learner(image_dir, cache)

    assert make_learner(lambda *_: single, OPTIONS, FOLDS, no_progress) is single
    with pytest.raises(ValueError, match="2 networks or more, got 1"):
        EnsembleLearner([single], None)
