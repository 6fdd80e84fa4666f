"""Small stand-ins for the ports of a round, and builders for its records."""

import hashlib
import re
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np

from ml_backend.consensus import Consensus
from ml_backend.errors import StaleRound
from ml_backend.predictions import ImageFeatures, PoolPredictions
from ml_backend.registry import Need
from ml_backend.rounds.cold_start import StartFeatures
from ml_backend.rounds.interfaces import ConsensusRule, LabelSource, Learner
from ml_backend.rounds.run import Project, ProjectData
from ml_backend.schemas import (
    Annotation,
    Exclusion,
    FitReport,
    ImageRef,
    Label,
    ProjectKey,
    PublishedRanking,
    Ranking,
    RoundReport,
    RoundRequest,
    Stage,
)

CLASSES = ("normal", "moderate", "severe")
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def make_image(number: int, patient_id: str | None = None) -> ImageRef:
    return ImageRef(id=str(number), uri=f"images/{number}.png", patient_id=patient_id)


def make_annotation(number: int, value: str | None, rater: str = "ann") -> Annotation:
    return Annotation(image=make_image(number), rater=rater, value=value, updated_at=NOON)


def make_request(**changes: object) -> RoundRequest:
    """A round of three classes that trains from two labels a class on."""
    fields: dict[str, object] = {
        "project": ProjectKey(id=7, created=1_700_000_000),
        "round_id": "r000001",
        "reason": "labels",
        "classes": CLASSES,
        "strategy": "fake",
        "batch_size": 3,
        "min_labels_per_class": 2,
        "validation_share": 0.3,
        "seed": 0,
    }
    return RoundRequest.model_validate(fields | changes)


def make_report(round_id: str = "r000001") -> RoundReport:
    """A cold-start round over two images."""
    return RoundReport(
        request=make_request(round_id=round_id),
        labels_per_class=dict.fromkeys(CLASSES, 0),
        fit=None,
        ranking=Ranking(strategy="random", image_ids=("2", "1"), scores=(0.9, 0.1), batch_size=1),
        seconds={"labels": 0.5},
        started_at=NOON,
    )


def make_fit() -> FitReport:
    """A short training of the three classes."""
    return FitReport(
        epochs=1,
        best_epoch=1,
        class_weights=dict.fromkeys(CLASSES, 1.0),
        train_images=4,
        validation_images=2,
        validation_loss=0.5,
        validation_accuracy=0.5,
        validation_auroc=None,
    )


def one_reader(annotations: Sequence[Annotation], classes: Sequence[str]) -> Consensus:
    """The rule for exactly one reader an image: the answer is the label, a skip excludes the image."""
    return Consensus(
        labels=tuple(Label(image=a.image, value=a.value, raters=1) for a in annotations if a.value in classes),
        exclusions=tuple(
            Exclusion(image_id=a.image.id, reason="no reader gave a class")
            for a in annotations
            if a.value not in classes
        ),
    )


class FakeLabels:
    """Answers with what it was given."""

    def __init__(
        self,
        annotations: Sequence[Annotation] = (),
        pool: Sequence[ImageRef] = (),
        exclusions: Sequence[Exclusion] = (),
    ) -> None:
        self._annotations = annotations
        self._pool = pool
        self._exclusions = exclusions

    def annotations(self) -> Sequence[Annotation]:
        return self._annotations

    def unlabelled(self) -> tuple[Sequence[ImageRef], Sequence[Exclusion]]:
        return self._pool, self._exclusions


class FakeLearner:
    """Its mind about an image is a hash of the image's id; it remembers what it was asked.

    Args:
        unreadable: ids of images that it cannot read.
        passes: stochastic passes.
    """

    def __init__(self, unreadable: Sequence[str] = (), passes: int = 4) -> None:
        self.unreadable = set(unreadable)
        self.passes = passes
        self.fits: list[tuple[list[str], list[str]]] = []  # ids of training and of validation
        self.prepared: list[str] = []
        self.embedded: list[list[str]] = []
        self.needs: list[frozenset[Need]] = []
        self._classes: tuple[str, ...] = ()

    def fit(self, train: Sequence[Label], validation: Sequence[Label], classes: Sequence[str]) -> FitReport:
        self.fits.append(([label.image.id for label in train], [label.image.id for label in validation]))
        self._classes = tuple(classes)
        return FitReport(
            epochs=3,
            best_epoch=2,
            class_weights=dict.fromkeys(classes, 1.0),
            train_images=len(train),
            validation_images=len(validation),
            validation_loss=0.5,
            validation_accuracy=0.75,
            validation_auroc=0.8,
            exclusions=tuple(
                Exclusion(image_id=label.image.id, reason="unreadable while training")
                for label in (*train, *validation)
                if label.image.id in self.unreadable
            ),
        )

    def outputs(self, pool: Sequence[ImageRef], needs: frozenset[Need]) -> PoolPredictions:
        self.needs.append(needs)
        readable = [image for image in pool if image.id not in self.unreadable]
        return PoolPredictions(
            image_ids=tuple(image.id for image in readable),
            classes=self._classes,
            probs=np.array([self._probs(image.id) for image in readable], dtype=np.float32).reshape(
                len(readable), self.passes, len(self._classes)
            ),
            exclusions=tuple(
                Exclusion(image_id=image.id, reason="unreadable while scoring")
                for image in pool
                if image.id in self.unreadable
            ),
        )

    def prepare(self, images: Sequence[ImageRef]) -> None:
        self.prepared += [image.id for image in images]

    def embed(self, images: Sequence[ImageRef]) -> ImageFeatures:
        """Images whose ids end in the same digit look almost alike."""
        self.embedded.append([image.id for image in images])
        readable = [image for image in images if image.id not in self.unreadable]
        numbers = [int(re.sub(r"\D", "", image.id)) for image in readable]  # of a path too
        noise = [np.random.default_rng(number).normal(0.0, 0.01, 10) for number in numbers]
        groups = np.array([number % 10 for number in numbers], dtype=np.int64)
        return ImageFeatures(
            image_ids=tuple(image.id for image in readable),
            features=(np.eye(10)[groups] + np.array(noise).reshape(-1, 10)).astype(np.float32),
            exclusions=tuple(
                Exclusion(image_id=image.id, reason="unreadable while embedding")
                for image in images
                if image.id in self.unreadable
            ),
        )

    def save(self, folder: str) -> None:
        with open(f"{folder}/model.txt", "w") as file:  # noqa: PTH123 - the port gives a str
            file.write(f"fits: {len(self.fits)}\n")

    def _probs(self, image_id: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        seed = int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:4])
        return np.random.default_rng(seed).dirichlet(np.ones(len(self._classes)), size=self.passes)


class FakeStrategy:
    """Ranks by the least probable winner, ties by id."""

    name = "fake"
    needs: frozenset[Need] = frozenset({"probs"})

    def rank(self, outputs: PoolPredictions, batch_size: int, seed: int) -> Ranking:
        scores = 1.0 - outputs.probs.mean(axis=1).max(axis=-1)
        order = sorted(range(len(scores)), key=lambda index: (-scores[index], outputs.image_ids[index]))
        return Ranking(
            strategy=self.name,
            image_ids=tuple(outputs.image_ids[index] for index in order),
            scores=tuple(float(scores[index]) for index in order),
            batch_size=batch_size,
            suggestions=outputs.suggestions(),
            exclusions=outputs.exclusions,
        )


class FakeProject(Project):
    """Keeps saved and published rounds in lists; the journal shows what came first.

    Args:
        labels: annotations and pool.
        stale_at_call: number of the call of ``ensure_current`` that raises; 0 for none.
    """

    def __init__(
        self, labels: LabelSource, *, consensus: ConsensusRule = one_reader, stale_at_call: int = 0, cold: bool = False
    ) -> None:
        self.labels = labels
        self.consensus = consensus
        self.journal: list[str] = []
        self.stages: list[tuple[Stage, int, int]] = []
        self.saved: list[tuple[RoundReport, PoolPredictions | None, Learner | None]] = []
        self.published: list[RoundReport] = []
        self.cold = cold  # readers have no order yet
        self._stale_at_call = stale_at_call
        self._calls = 0

    def save(
        self,
        report: RoundReport,
        predictions: PoolPredictions | None,
        learner: Learner | None,
        data: ProjectData,
        start_features: StartFeatures | None = None,
    ) -> None:
        self.journal.append("save")
        self.saved.append((report, predictions, learner))

    def publish(self, report: RoundReport) -> PublishedRanking:
        self.ensure_current()
        self.journal.append("publish")
        self.published.append(report)
        return PublishedRanking(
            version=f"fake-{report.request.round_id}",
            round_id=report.request.round_id,
            image_ids=report.ranking.image_ids,
            seconds={"import": 0.0},
            published_at=NOON,
        )

    def report_progress(self, stage: Stage, done: int, total: int) -> None:
        self.stages.append((stage, done, total))

    def ensure_current(self) -> None:
        self._calls += 1
        if self._calls == self._stale_at_call:
            raise StaleRound("a newer run holds the token")

    def has_order(self) -> bool:
        return not self.cold
