"""One run: a strategy and a seed, from the start set to the end of the budget."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from ml_backend.acquisition import bald, entropy
from ml_backend.acquisition.strategy import CatalogStrategy
from ml_backend.consensus.catalog import RULES
from ml_backend.engine.ports import Learner, RoundParts, Strategy
from ml_backend.errors import RoundError
from ml_backend.model.threads import one_thread
from ml_backend.pool_outputs import PoolOutputs
from ml_backend.records import FitReport, RoundReport
from ml_backend.simulation.dataset import DataSet
from ml_backend.simulation.loop import OracleReader, reveal_start, simulated_rounds
from ml_backend.simulation.metrics import RoundMetrics, round_metrics
from ml_backend.simulation.oracle import Oracle
from ml_backend.study.guard import GuardedLearner
from ml_backend.study.journal import Journal
from ml_backend.study.parts import Study
from ml_backend.study.plan import Run
from ml_backend.study.rows import BaselineRow, BatchRow, RoundRow

__all__ = ["do_run", "fit_on_all", "journal_of"]


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
        self.outputs: PoolOutputs | None = None

    def save(self, report: RoundReport, outputs: PoolOutputs | None, learner: Learner | None) -> None:
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


def _batch_rows(run: Run, number: int, report: RoundReport, outputs: PoolOutputs, data: DataSet) -> list[BatchRow]:
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
