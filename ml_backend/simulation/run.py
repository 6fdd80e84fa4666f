"""Keeps the sides of a study apart: what would be a leak stops the run instead of brightening its curve.

The results of a study as files: ``rounds.csv``, ``batches.csv``, ``baselines.csv``, ``summary.json``.
One run: a strategy and a seed, from the start set to the end of the budget.
"""

import csv
import io
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

import numpy as np
import torch
from pydantic import ValidationError
from threadpoolctl import threadpool_limits

from ml_backend.acquisition import bald, entropy
from ml_backend.acquisition.strategy import CatalogStrategy
from ml_backend.consensus.rules import RULES
from ml_backend.errors import RoundError, StorageError
from ml_backend.model.hardware import one_thread
from ml_backend.predictions import ImageFeatures, PoolPredictions
from ml_backend.registry import Need
from ml_backend.rounds.interfaces import Learner, RoundParts, Strategy
from ml_backend.schemas import FitReport, FrozenModel, ImageRef, Label, Ranking, RoundReport
from ml_backend.simulation.dataset import DataSet
from ml_backend.simulation.loop import OracleReader, reveal_start, simulated_rounds
from ml_backend.simulation.metrics import RoundMetrics, round_metrics
from ml_backend.simulation.options import Study
from ml_backend.simulation.oracle import Oracle
from ml_backend.simulation.plan import Run
from ml_backend.simulation.run_log import BaselineRow, BatchRow, Journal, RoundRow, StudyResults, StudySummary
from ml_backend.storage.atomic import read_record, write_atomically, write_record

PROBS: Final[frozenset[Need]] = frozenset({"probs"})


class Leak(RoundError):
    """An image was used where its side of the study does not belong."""


class GuardedLearner:
    """A learner that is only shown what it may see. Satisfies ``engine.ports.Learner``.

    It learns from the training side, stops by the validation side (by the training side where there is none), ranks
    what is left of the training side, and meets the test side in ``judge`` alone. Features of validation images are
    kept from the strategy, to which they would look like labelled images of the pool.

    Args:
        learner: the learner itself.
        data: whose sides are kept apart.

    Raises:
        Leak: from any method, where an image is on a side that it must not be on; names the image.
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
        """See ``engine.ports.Learner``."""
        trained, held_out = ({label.image.id for label in side} for side in (train, validation))
        _require("trained on", trained, self._train)
        _require("validated on", held_out, self._validation or self._train)
        _require("validated on, though it was trained on", held_out, held_out - trained)
        self._labelled = frozenset(trained | held_out)
        self._fit = self._learner.fit(train, validation, classes)
        return self._fit

    def outputs(self, pool: Sequence[ImageRef], needs: frozenset[Need]) -> PoolPredictions:
        """Of the pool, for the strategy."""
        self._pool = frozenset(image.id for image in pool)
        _require("in the pool", self._pool, self._train)
        _require("in the pool, though it has a label", self._pool, self._pool - self._labelled)
        outputs = self._learner.outputs(pool, needs)
        _require("scored as of the pool", outputs.image_ids, self._pool)
        return self._without_validation(outputs)

    def check(self, ranking: Ranking) -> None:
        """Make sure that a ranking holds images of the last pool only."""
        _require("ranked", ranking.image_ids, self._pool)

    def judge(self, images: Sequence[ImageRef]) -> PoolPredictions:
        """Of the test side, for the metrics."""
        _require("tested on", (image.id for image in images), self._test)
        return self._learner.outputs(images, PROBS)

    def prepare(self, images: Sequence[ImageRef]) -> None:
        """See ``engine.ports.Learner``."""
        self._learner.prepare(images)

    def embed(self, images: Sequence[ImageRef]) -> ImageFeatures:
        """See ``engine.ports.Learner``."""
        return self._learner.embed(images)

    def save(self, folder: str) -> None:
        """See ``engine.ports.Learner``."""
        self._learner.save(folder)

    def _without_validation(self, outputs: PoolPredictions) -> PoolPredictions:
        features, fit = outputs.labelled_features, self._fit
        if features is None or fit is None or not self._validation:
            return outputs
        # They come in the order of the fit: training first.
        if len(features) != fit.train_images + fit.validation_images:
            raise Leak(
                f"features of {len(features)} labelled images, but {fit.train_images} were trained on and "
                f"{fit.validation_images} validated on: whose they are cannot be told"
            )
        return replace(outputs, labelled_features=features[: fit.train_images])


def _require(use: str, found: Iterable[str], allowed: Collection[str]) -> None:
    strangers = set(found).difference(allowed)
    if strangers:
        raise Leak(
            f"image {min(strangers)!r} (and {len(strangers) - 1} more) is {use}, and its side of the study forbids it: "
            "the results would be worth nothing; this is a bug of the learner, the strategy or the table's reader"
        )


Cells: TypeAlias = dict[str, object]
R = TypeVar("R", RoundRow, BatchRow, BaselineRow)

ROUNDS: Final = "rounds.csv"
BATCHES: Final = "batches.csv"
BASELINES: Final = "baselines.csv"
SUMMARY: Final = "summary.json"


def write_results(results: StudyResults, out: Path) -> None:
    """Write all tables, each whole or not at all.

    Raises:
        StorageError: the disk refuses.
    """
    classes = results.summary.classes
    try:
        for name, kind, rows in (
            (ROUNDS, RoundRow, results.rounds),
            (BATCHES, BatchRow, results.batches),
            (BASELINES, BaselineRow, results.baselines),
        ):
            write_atomically(out / name, _table(_columns(kind, classes), rows))
    except OSError as error:
        raise StorageError(f"the results could not be written to {out}: {error}") from error
    write_record(out / SUMMARY, results.summary)


def read_results(out: Path) -> StudyResults:
    """Read what ``write_results`` wrote.

    Raises:
        StorageError: there is no study in that folder, or a table of it is damaged; names file and line.
    """
    summary = read_record(out / SUMMARY, StudySummary)
    if summary is None:
        raise StorageError(
            f"{out} holds no finished study: there is no {SUMMARY}; run `ml-backend simulate --out {out}`"
        )
    return StudyResults(
        summary=summary,
        rounds=tuple(_rows(out / ROUNDS, RoundRow, summary.classes)),
        batches=tuple(_rows(out / BATCHES, BatchRow, summary.classes)),
        baselines=tuple(_rows(out / BASELINES, BaselineRow, summary.classes)),
    )


def _columns(kind: type[FrozenModel], classes: Sequence[str], prefix: str = "") -> list[str]:
    """The fields of a record; those of the metrics among them, those by class one a class."""
    columns: list[str] = []
    for name, info in kind.model_fields.items():
        if info.annotation is RoundMetrics:
            columns += _columns(RoundMetrics, classes)
        elif _is_by_class(kind, name):
            columns += [f"{_rows_by_class(prefix + name)}_{one}" for one in classes]
        else:
            columns.append(name)
    return columns


def _is_by_class(kind: type[FrozenModel], field: str) -> bool:
    return getattr(kind.model_fields[field].annotation, "__origin__", None) is dict


def _rows_by_class(field: str) -> str:
    return "labels" if field == "labels_per_class" else field


def _table(columns: Sequence[str], rows: Iterable[FrozenModel]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_cells(row) for row in rows)
    return text.getvalue().encode()


def _cells(record: FrozenModel) -> Cells:
    cells: Cells = {}
    for name in type(record).model_fields:
        value = getattr(record, name)
        if isinstance(value, RoundMetrics):
            cells |= _cells(value)
        elif isinstance(value, dict):
            cells |= {f"{_rows_by_class(name)}_{one}": number for one, number in value.items()}
        else:
            cells[name] = value
    return cells


def _rows(path: Path, kind: type[R], classes: Sequence[str]) -> list[R]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise StorageError(f"{path} cannot be read: {error}") from error
    found: list[R] = []
    for line, cells in enumerate(rows, start=2):
        try:
            found.append(kind.model_validate(_fields(cells, kind, classes)))
        except (KeyError, ValidationError) as error:
            raise StorageError(f"{path}, line {line} is no row of a study: {error}") from error
    return found


def _fields(cells: Mapping[str, str], kind: type[FrozenModel], classes: Sequence[str]) -> Cells:
    fields: Cells = {}
    for name, info in kind.model_fields.items():
        if info.annotation is RoundMetrics:
            fields[name] = _fields(cells, RoundMetrics, classes)
        elif _is_by_class(kind, name):
            fields[name] = {one: cells[f"{_rows_by_class(name)}_{one}"] or None for one in classes}
        else:
            # Only texts may be empty: the variant.
            fields[name] = cells[name] if info.annotation is str else cells[name] or None
    return fields


def journal_of(out: Path, run: Run) -> Journal:
    """Where a run of the study in that folder keeps what it has done."""
    return Journal(out / "runs" / run.name)


def do_run(
    run: Run,
    study: Study,
    journal: Journal,
    on_round: Callable[[], None] = lambda: None,
    strategy: Strategy | None = None,
) -> None:
    """Do a run, or what is left of it; nothing where it is done.

    Args:
        run: which one.
        study: whose data it is about.
        journal: of the run; every round stands there once it is finished.
        on_round: called after every round.
        strategy: ranks the pool; by default what the run names, from the catalogue.

    Raises:
        Leak: an image was used where its side forbids it.
        RoundError, StorageError: see ``run_round`` and ``Journal``.
    """
    # On any number of cores, and beside any number of other runs, the same bits.
    with journal.held(), one_thread(), threadpool_limits(1):
        if journal.is_done:
            return
        if run.is_baseline:
            journal.write_baseline(_baseline(run, study))
            on_round()
        else:
            _rounds(run, study, journal, on_round, strategy or CatalogStrategy(run.strategy))
        journal.finish()


def _rounds(run: Run, study: Study, journal: Journal, on_round: Callable[[], None], strategy: Strategy) -> None:
    plan, data = study.plan, study.data
    options = plan.options_of(run)
    if options.retrain == "warm":
        # The network that the next round would go on from is not kept.
        journal.forget()
    past, chosen = journal.mend()
    oracle = Oracle.of(data)
    reveal_start(oracle, plan.initial, run.seed)
    for row in past:
        oracle.reveal(choice.image_id for choice in chosen if choice.round == row.round)
    learner = GuardedLearner(study.learner(options), data)
    last = _LastRound(learner)
    parts = RoundParts(
        labels=oracle,
        consensus=RULES[options.consensus],
        learner=learner,
        strategy=strategy,
        store=last,
        publisher=OracleReader(oracle),
        split=study.split(),
    )
    rounds = simulated_rounds(plan.request(run, data.classes), parts, first=len(past) + 1)
    number = len(past)
    train_images = len(data.labels("train"))
    test = _TestSide(data)
    while len(labelled := oracle.revealed) <= plan.budget and (report := next(rounds, None)) is not None:
        number += 1
        if report.fit is None or last.outputs is None:
            raise _untrained(run, number, report)
        row = RoundRow(
            run=run.name,
            strategy=run.strategy,
            variant=run.variant,
            seed=run.seed,
            round=number,
            labels=len(labelled),
            share=len(labelled) / train_images,
            labels_per_class=_by_class(labelled, data),
            metrics=test.judge(learner),
            epochs=report.fit.epochs,
            train_seconds=report.seconds["train"],
            # Where the strategy looks at nothing, the passes are drawn for the report alone.
            acquisition_seconds=report.seconds["rank"] + (report.seconds["score"] if strategy.needs else 0.0),
        )
        journal.append(row, _batch_rows(run, number, report, last.outputs, data))
        on_round()


class _LastRound:
    """Keeps the outputs of the newest round in memory. Satisfies ``engine.ports.ReportStore``."""

    def __init__(self, learner: GuardedLearner) -> None:
        self._learner = learner
        self.outputs: PoolPredictions | None = None

    def save(self, report: RoundReport, outputs: PoolPredictions | None, learner: Learner | None) -> None:
        del learner
        if outputs is not None:
            # Before it is published: what leaks is never labelled.
            self._learner.check(report.ranking)
        self.outputs = outputs


def fit_on_all(run: Run, study: Study) -> tuple[GuardedLearner, FitReport, float]:
    """A network trained on every label of the training side, with the loss and the seed of a run.

    Returns:
        The learner that holds it, how the training went, and its seconds.

    Raises:
        Leak, RoundError: see ``do_run``.
    """
    data, options = study.data, study.plan.options_of(run)
    oracle = Oracle.of(data)
    oracle.reveal(image.id for image in oracle.unlabelled()[0])
    labels = RULES[options.consensus](oracle.annotations(), data.classes).labels
    train, validation = study.split()(labels, options.validation_share, run.seed)
    learner = GuardedLearner(study.learner(options), data)
    start = time.perf_counter()
    fit = learner.fit(train, validation, data.classes)
    return learner, fit, time.perf_counter() - start


def _baseline(run: Run, study: Study) -> BaselineRow:
    learner, fit, seconds = fit_on_all(run, study)
    return BaselineRow(
        variant=run.variant,
        seed=run.seed,
        labels=len(study.data.labels("train")),
        metrics=_TestSide(study.data).judge(learner),
        epochs=fit.epochs,
        train_seconds=seconds,
    )


class _TestSide:
    """What is measured on, put together once a run."""

    def __init__(self, data: DataSet) -> None:
        labels = data.labels("test")
        place = {name: number for number, name in enumerate(data.classes)}
        self._images = [label.image for label in labels]
        self._targets = {label.image.id: place[label.value] for label in labels}
        self._classes = data.classes

    def judge(self, learner: GuardedLearner) -> RoundMetrics:
        """The network of the last fit, by the mean over the passes."""
        outputs = learner.judge(self._images)
        if not outputs.image_ids:
            raise RoundError(f"no test image could be read; the first: {outputs.exclusions[0].reason}")
        targets = np.array([self._targets[image_id] for image_id in outputs.image_ids])
        return round_metrics(outputs.probs.mean(axis=1, dtype=np.float64), targets, self._classes)


def _by_class(image_ids: Sequence[str], data: DataSet) -> dict[str, int]:
    counts = Counter(data.truth[image_id] for image_id in image_ids)
    return {name: counts[name] for name in data.classes}


def _untrained(run: Run, number: int, report: RoundReport) -> RoundError:
    counts = ", ".join(f"{name}: {count}" for name, count in report.labels_per_class.items())
    return RoundError(
        f"round {number} of {run.name} has too few labels to train on ({counts}): readers gave images of the "
        "start set no class; give a larger --initial"
    )


def _batch_rows(run: Run, number: int, report: RoundReport, outputs: PoolPredictions, data: DataSet) -> list[BatchRow]:
    ranking = report.ranking
    batch = ranking.image_ids[: ranking.batch_size]
    row_of = {image_id: row for row, image_id in enumerate(outputs.image_ids)}
    probs = torch.from_numpy(outputs.probs[[row_of[image_id] for image_id in batch]])
    epistemic, total = bald(probs).tolist(), entropy(probs).tolist()
    return [
        BatchRow(
            run=run.name,
            strategy=run.strategy,
            variant=run.variant,
            seed=run.seed,
            round=number,
            rank=place,
            image_id=image_id,
            label=data.truth[image_id],
            score=score,
            epistemic=known,
            # Rounding must not make it less than nothing.
            aleatoric=max(0.0, both - known),
        )
        for place, (image_id, score, known, both) in enumerate(
            zip(batch, ranking.scores[: len(batch)], epistemic, total, strict=True), start=1
        )
    ]
