"""One run of a study: a strategy and a seed, from its start to the end of the budget, by the live loop's rounds."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import structlog
import torch
from structlog.typing import EventDict
from threadpoolctl import threadpool_limits

from ml_backend.acquisition import CatalogStrategy, bald, entropy
from ml_backend.config import ProjectOptions
from ml_backend.consensus.rules import rule
from ml_backend.errors import EmptyPool, RoundError, SettingsError
from ml_backend.images.source import FolderSource
from ml_backend.model.data import FeatureTable
from ml_backend.model.ensemble import make_learner
from ml_backend.model.hardware import one_thread
from ml_backend.model.learner import LearnerProgress, McDropoutLearner
from ml_backend.predictions import ImageFeatures, PoolPredictions
from ml_backend.registry import Need
from ml_backend.rounds.interfaces import ConsensusRule, Learner, Splitter, Strategy, no_progress
from ml_backend.rounds.run import Project, RoundResult, run_round
from ml_backend.rounds.split import Sides, fixed_split, fold_split, stable_split
from ml_backend.schemas import FitReport, ImageRef, Label, PublishedRanking, Ranking, RoundReport, RoundRequest
from ml_backend.simulation.dataset import DataSet, load_dataset, parse_task
from ml_backend.simulation.metrics import RoundMetrics, round_metrics
from ml_backend.simulation.oracle import Oracle
from ml_backend.simulation.plan import Run, StudyPlan
from ml_backend.simulation.readers import answers_of
from ml_backend.simulation.run_log import BaselineRow, BatchRow, ColdRow, RoundRow, RunLog

PROBS: Final[frozenset[Need]] = frozenset({"probs"})

MakeLearner: TypeAlias = Callable[[ProjectOptions], Learner]
"""Makes a new learner for the options of a run, which hold its seed."""


class LeakageError(RoundError):
    """An image was used where its side of the study does not belong."""


@dataclass(frozen=True, slots=True)
class Study:
    """A plan, its data, and the learners of its runs."""

    plan: StudyPlan
    data: DataSet
    learner: MakeLearner

    def split(self) -> Splitter:
        """The validation side where the study has one; else validation is drawn from the labels, as in a live loop."""
        validation = [label.image.id for label in self.data.labels("val")]
        return fixed_split(validation) if validation else stable_split

    def oracle(self, seed: int) -> Oracle:
        """Answers as the readers of the plan do."""
        return Oracle.of(self.data, answers_of(self.data, self.plan.readers, self.plan.reads, seed))


def open_study(plan: StudyPlan, out: Path, data: DataSet | None = None) -> Study:
    """Open the study of a plan.

    Args:
        plan: of the study.
        out: folder of the results; decoded images and features are cached there too.
        data: of the plan, where it was read already.

    Raises:
        SettingsError: a table or a function is wrong, or has changed since the study began.
    """
    plan.add_functions()
    opened = load_data(plan) if data is None else data
    ids = [image.id for image in opened.images]
    table = None if opened.features is None else FeatureTable(ids, opened.features)
    source = FolderSource(out if opened.folder is None else opened.folder)

    def network(options: ProjectOptions, seed: int, progress: LearnerProgress) -> McDropoutLearner:
        return McDropoutLearner(
            options, source, out / "cache", device=plan.device, seed=seed, progress=progress, table=table
        )

    def learner(options: ProjectOptions) -> Learner:
        folds = None if opened.labels("val") else partial(fold_split, seed=options.seed)
        return make_learner(network, options, folds, no_progress)

    return Study(plan, opened, learner)


def load_data(plan: StudyPlan) -> DataSet:
    """Read the tables of a plan again.

    Raises:
        SettingsError: a table is wrong, or has changed since the study began.
    """
    images, ratings, features = (None if p is None else Path(p) for p in (plan.images, plan.ratings, plan.features))
    data = load_dataset(
        images,
        Path(plan.labels),
        ratings=ratings,
        features=features,
        task=None if plan.task is None else parse_task(plan.task),
        imbalance=plan.imbalance,
        join_validation=plan.start == "live",
    )
    if changed := [name for name, digest in data.digests.items() if plan.digests.get(name) != digest]:
        raise SettingsError(f"the {' and the '.join(changed)} have changed since the study began: give a new --out")
    return data


def do_run(
    run: Run,
    study: Study,
    log: RunLog,
    on_round: Callable[[], None] = lambda: None,
    strategy: Strategy | None = None,
) -> None:
    """Do a run, or the rest of it; nothing where it is done.

    Args:
        run: one of the study's.
        study: opened.
        log: of the run; every finished round is appended.
        on_round: called after every round.
        strategy: ranks the pool; by default the one that the run names.

    Raises:
        LeakageError: an image was used where its side forbids it.
        RoundError, StorageError: see ``run_round`` and ``RunLog``.
    """
    # The same bits on any number of cores, next to any number of other runs.
    with log.held(), one_thread(), threadpool_limits(1), _warnings_once():
        if log.is_done:
            return
        if run.is_baseline:
            learner, fit, seconds = fit_on_all(run, study)
            log.write_baseline(
                BaselineRow(
                    variant=run.variant,
                    seed=run.seed,
                    labels=len(study.data.labels("train")),
                    metrics=_test_metrics(learner, study.data),
                    epochs=fit.epochs,
                    train_seconds=seconds,
                )
            )
            on_round()
        else:
            _do_rounds(run, study, log, on_round, strategy or CatalogStrategy(run.strategy))
        log.finish()


@contextmanager
def _warnings_once() -> Iterator[None]:
    """Log each warning once a process, and nothing below warnings: hundreds of rounds would repeat it."""
    before = structlog.get_config()
    structlog.configure(
        processors=[_once, *before["processors"]],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    )
    try:
        yield
    finally:
        structlog.configure(**before)


def _once(_logger: Any, _method: str, event: EventDict) -> EventDict:
    if event["event"] in _logged:
        raise structlog.DropEvent
    _logged.add(str(event["event"]))
    return event


_logged: Final[set[str]] = set()
"""Warnings that this process has logged."""


def _do_rounds(run: Run, study: Study, log: RunLog, on_round: Callable[[], None], strategy: Strategy) -> None:
    plan, data = study.plan, study.data
    options = plan.options_of(run)
    if options.retrain == "warm":
        # The network that the next round would start from is not kept.
        log.clear()
    past, picked = log.mend()
    oracle = study.oracle(run.seed)
    oracle.reveal(oracle.start_set(plan.initial, run.seed))
    oracle.reveal(row.image_id for row in picked)
    learner = GuardedLearner(study.learner(options), data)
    project = SimulatedProject(oracle, rule(options.consensus), study.split(), learner.check)
    rounds = simulated_rounds(plan.request(run, data.classes), project, learner, strategy, first=len(past) + 1)
    number = len(past)
    train_images = len(data.labels("train"))
    while True:
        labelled, reads = oracle.revealed, oracle.reads
        if (reads if plan.count == "reads" else len(labelled)) > plan.budget:
            break
        if (result := next(rounds, None)) is None:
            break
        number += 1
        report, training = result.report, result.training
        counter = Counter(data.truth[image_id] for image_id in labelled)
        so_far = {
            **_of_run(run),
            "round": number,
            "labels": len(labelled),
            "reads": reads,
            "share": len(labelled) / train_images,
            "labels_per_class": {name: counter[name] for name in data.classes},
        }
        if report.fit is None or training is None:
            if plan.start == "live":
                log.append(ColdRow(**so_far), _batch_rows(run, number, report.ranking, None, data))
                on_round()
                continue
            counts = ", ".join(f"{name}: {labels}" for name, labels in report.labels_per_class.items())
            raise RoundError(
                f"round {number} of {run.name} has too few labels to train on ({counts}): readers gave images of the "
                "start set no class, or another; give a larger --initial"
            )
        known = frozenset(labelled)
        right = [
            label.value == data.truth[label.image.id]
            for label in (*training.train, *training.validation)
            if label.image.id in known
        ]
        row = RoundRow(
            **so_far,
            label_accuracy=sum(right) / len(right),
            metrics=_test_metrics(learner, data),
            epochs=report.fit.epochs,
            train_seconds=report.seconds["train"],
            # A strategy without needs ranks without the passes, which are drawn for the results alone.
            acquisition_seconds=report.seconds["rank"] + (report.seconds["score"] if strategy.needs else 0.0),
        )
        log.append(row, _batch_rows(run, number, report.ranking, training.predictions, data))
        on_round()


def _of_run(run: Run) -> dict[str, Any]:
    return {"run": run.name, "strategy": run.strategy, "variant": run.variant, "seed": run.seed}


class SimulatedProject(Project):
    """A project whose labels are known: publishing a ranking labels its batch, first image first.

    Args:
        oracle: the truth.
        consensus: rule of every round.
        split: training and validation labels.
        check: called with every ranking of a network, before an image of it is labelled.
    """

    def __init__(
        self,
        oracle: Oracle,
        consensus: ConsensusRule,
        split: Splitter = stable_split,
        check: Callable[[Ranking], None] = lambda _: None,
    ) -> None:
        self.labels = self._oracle = oracle
        self.consensus = consensus
        self._split = split
        self._check = check

    def split(self, labels: Sequence[Label], validation_share: float, seed: int) -> Sides:
        return self._split(labels, validation_share, seed)

    def publish(self, report: RoundReport) -> PublishedRanking:
        """Label the first ``batch_size`` images of the ranking, in its order."""
        if report.trained:
            self._check(report.ranking)
        batch = report.ranking.image_ids[: report.ranking.batch_size]
        self._oracle.reveal(batch)
        return PublishedRanking(
            version=f"simulated-{report.request.round_id}",
            round_id=report.request.round_id,
            image_ids=batch,
            seconds={},
            published_at=datetime.now(UTC),
        )


def simulated_rounds(
    request: RoundRequest, project: Project, learner: Learner, strategy: Strategy, first: int = 1
) -> Iterator[RoundResult]:
    """Run round after round, each when it is asked for, until the pool is used up.

    Args:
        request: of every round; its ``round_id`` is counted up from that of ``first``.
        project: labels the batch when it is published.
        learner: trained in every round.
        strategy: ranks the pool; what ``request.strategy`` names.
        first: number of the first round; above 1 where a run goes on.

    Raises:
        EmptyPool: round 1 found no image to rank: a run that never began is not one that ended.
        TooFewLabels, WeightsError, StorageError: see ``run_round``.
    """
    for number in count(first):
        numbered = request.model_copy(update={"round_id": f"r{number:06d}"})
        try:
            result = run_round(numbered, project, learner, strategy)
        except EmptyPool:
            if number == 1:
                raise
            return
        yield result


def fit_on_all(run: Run, study: Study) -> tuple["GuardedLearner", FitReport, float]:
    """Train a network on every label of the training side, with the loss and the seed of a run.

    Returns:
        The fitted learner, the report of its training, and the seconds that it took.

    Raises:
        LeakageError, RoundError: see ``do_run``.
    """
    data, options = study.data, study.plan.options_of(run)
    oracle = study.oracle(run.seed)
    oracle.reveal(image.id for image in oracle.unlabelled()[0])
    labels = rule(options.consensus)(oracle.annotations(), data.classes).labels
    train, validation = study.split()(labels, options.validation_share, run.seed)
    learner = GuardedLearner(study.learner(options), data)
    start = time.perf_counter()
    fit = learner.fit(train, validation, data.classes)
    return learner, fit, time.perf_counter() - start


class GuardedLearner:
    """Wraps a learner and raises where images of one side of a study are used for another.

    The learner trains on the training side, stops by the validation side (by the training side where there is none),
    ranks the rest of the training side, and predicts the test side in ``predict_test`` alone. Features of a fixed
    validation side are withheld from the strategy, to which they would look like labelled images of the pool.

    Args:
        learner: that is wrapped.
        data: whose sides are kept apart.

    Raises:
        LeakageError: from any method, where an image is on a forbidden side; names the image.
    """

    def __init__(self, learner: Learner, data: DataSet) -> None:
        self._learner = learner
        self._train = frozenset(label.image.id for label in data.labels("train"))
        self._validation = frozenset(label.image.id for label in data.labels("val"))
        self._test = frozenset(label.image.id for label in data.labels("test"))
        self._labelled: frozenset[str] = frozenset()
        self._pool: frozenset[str] = frozenset()
        self._fit: FitReport | None = None

    def fit(self, train: Sequence[Label], validation: Sequence[Label], classes: Sequence[str]) -> FitReport:
        trained, held_out = ({label.image.id for label in side} for side in (train, validation))
        _require("trained on", trained, self._train)
        _require("validated on", held_out, self._validation or self._train)
        _require("validated on, though it was trained on", held_out, held_out - trained)
        self._labelled = frozenset(trained | held_out)
        self._fit = self._learner.fit(train, validation, classes)
        return self._fit

    def outputs(self, pool: Sequence[ImageRef], needs: frozenset[Need]) -> PoolPredictions:
        self._pool = frozenset(image.id for image in pool)
        _require("in the pool", self._pool, self._train)
        _require("in the pool, though it has a label", self._pool, self._pool - self._labelled)
        outputs = self._learner.outputs(pool, needs)
        _require("scored as of the pool", outputs.image_ids, self._pool)
        features, fit = outputs.labelled_features, self._fit
        if features is None or fit is None or not self._validation:
            return outputs
        # They come in the order of the fit: training first.
        if len(features) != fit.train_images + fit.validation_images:
            raise LeakageError(
                f"features of {len(features)} labelled images, but {fit.train_images} were trained on and "
                f"{fit.validation_images} validated on: those of the validation side cannot be told apart"
            )
        return replace(outputs, labelled_features=features[: fit.train_images])

    def check(self, ranking: Ranking) -> None:
        """Make sure that a ranking holds images of the last pool only."""
        _require("ranked", ranking.image_ids, self._pool)

    def predict_test(self, images: Sequence[ImageRef]) -> PoolPredictions:
        """Predictions of images of the test side, for the metrics."""
        _require("tested on", (image.id for image in images), self._test)
        return self._learner.outputs(images, PROBS)

    def prepare(self, images: Sequence[ImageRef]) -> None:
        self._learner.prepare(images)

    def embed(self, images: Sequence[ImageRef]) -> ImageFeatures:
        # Known labels tell which class has too few. A given start then ends: nothing is ranked by them.
        _require("ranked by its features", (image.id for image in images), self._train | self._validation)
        return self._learner.embed(images)

    def save(self, folder: str) -> None:
        self._learner.save(folder)


def _require(use: str, found: Iterable[str], allowed: Collection[str]) -> None:
    if strangers := set(found).difference(allowed):
        raise LeakageError(
            f"image {min(strangers)!r} (and {len(strangers) - 1} more) is {use}, and its side of the study forbids it: "
            "the results would be worthless; this is a bug of the learner, the strategy or the table's reader"
        )


def _test_metrics(learner: GuardedLearner, data: DataSet) -> RoundMetrics:
    """Metrics of the network of the last fit on the test side, by the mean over the passes."""
    outputs = learner.predict_test([label.image for label in data.labels("test")])
    if not outputs.image_ids:
        raise RoundError(f"no test image could be read; the first: {outputs.exclusions[0].reason}")
    targets = np.array([data.classes.index(data.truth[image_id]) for image_id in outputs.image_ids])
    return round_metrics(outputs.probs.mean(axis=1, dtype=np.float64), targets, data.classes)


def _batch_rows(
    run: Run, number: int, ranking: Ranking, outputs: PoolPredictions | None, data: DataSet
) -> list[BatchRow]:
    """The picks of a round; ``outputs`` is None before the first network."""
    batch = ranking.image_ids[: ranking.batch_size]
    uncertainty: list[tuple[float | None, float | None]] = [(None, None)] * len(batch)
    if outputs is not None:
        row_of = {image_id: row for row, image_id in enumerate(outputs.image_ids)}
        probs = torch.from_numpy(outputs.probs[[row_of[image_id] for image_id in batch]])
        # Rounding must not make the aleatoric part negative.
        uncertainty = [
            (own, max(0.0, h - own)) for own, h in zip(bald(probs).tolist(), entropy(probs).tolist(), strict=True)
        ]
    picks = zip(batch, ranking.scores[: len(batch)], uncertainty, strict=True)
    return [
        BatchRow(
            **_of_run(run),
            round=number,
            rank=rank,
            image_id=image_id,
            label=data.truth[image_id],
            score=score,
            epistemic=epistemic,
            aleatoric=aleatoric,
        )
        for rank, (image_id, score, (epistemic, aleatoric)) in enumerate(picks, start=1)
    ]
