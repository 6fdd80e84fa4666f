"""Studies that never ran: seeded curves that rise and saturate, for the report's tests and for looking at it."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ml_backend.simulation.metrics import RoundMetrics
from ml_backend.simulation.run_log import BaselineRow, BatchRow, RoundRow, StudyResults, StudySummary

Shares: TypeAlias = npt.NDArray[np.float64]

SPEED: Mapping[str, float] = {"random": 1.0, "core_set": 1.1, "bald": 1.5, "batch_bald": 1.7, "mean_std": 1.8}
SECONDS: Mapping[str, float] = {"random": 0.004, "batch_bald": 2.5}
TRAIN = 1336


def drawn_results(
    strategies: Sequence[str] = ("random", "entropy", "mean_std"),
    *,
    seeds: int = 3,
    rounds: int = 6,
    variants: Sequence[str] = ("",),
    classes: Sequence[str] = ("normal", "viral", "bacterial"),
    baseline: bool = True,
    batches: bool = True,
    command: str = "ml-backend simulate --images films --labels labels.csv --seeds 3 --out study",
) -> StudyResults:
    """A study of curves ``best (1 - exp(-speed share / 0.12))`` with noise; informed strategies rise faster."""
    shares = np.array([0.28, 0.28, 0.44]) if len(classes) == 3 else np.array([0.14, 0.86])
    round_rows: list[RoundRow] = []
    batch_rows: list[BatchRow] = []
    for place, strategy in enumerate(strategies):
        for variant in variants:
            for seed in range(seeds):
                rng = np.random.default_rng([place, len(variant), seed])
                rows = _run(strategy, variant, seed, rounds=rounds, classes=classes, shares=shares, rng=rng)
                round_rows += rows
                if batches:
                    batch_rows += _picks(rows, classes, shares, rng)
    baselines = [
        BaselineRow(
            variant=variant,
            seed=seed,
            labels=TRAIN,
            metrics=drawn_metrics(0.80 + 0.004 * (seed % 3), classes),
            epochs=90,
            train_seconds=4.2,
        )
        for variant in variants
        for seed in range(seeds)
    ]
    return StudyResults(
        _summary(strategies, variants, classes, seeds=seeds, rounds=rounds, shares=shares, command=command),
        tuple(round_rows),
        tuple(batch_rows),
        tuple(baselines) if baseline else (),
    )


def drawn_metrics(height: float, classes: Sequence[str]) -> RoundMetrics:
    """Every metric a little off the accuracy, as they are."""
    height = float(np.clip(height, 0.05, 0.99))
    per_class = {name: min(1.0, height + 0.03 * place) for place, name in enumerate(classes)}
    return RoundMetrics(
        images=562,
        accuracy=height,
        balanced_accuracy=max(0.0, height - 0.03),
        macro_f1=max(0.0, height - 0.04),
        auroc=min(1.0, 0.5 + height / 2),
        auprc=min(1.0, 0.35 + height / 2),
        precision=dict(per_class),
        recall=dict(per_class),
        specificity=dict(per_class),
        average_precision=dict(per_class),
        quadratic_weighted_kappa=2 * height - 1,
        ece=(1 - height) / 3,
    )


def _run(
    strategy: str,
    variant: str,
    seed: int,
    *,
    rounds: int,
    classes: Sequence[str],
    shares: Shares,
    rng: np.random.Generator,
) -> list[RoundRow]:
    rows = []
    name = "-".join(part for part in (strategy, variant, f"s{seed}") if part)
    speed = SPEED.get(strategy, 2.0) * rng.normal(1, 0.12)
    for number in range(1, rounds + 1):
        labels = 25 * len(classes) + 20 * (number - 1)
        height = 0.45 + 0.36 * (1 - np.exp(-speed * labels / TRAIN / 0.12)) + rng.normal(0, 0.008)
        counts = rng.multinomial(20 * (number - 1), shares)
        rows.append(
            RoundRow(
                run=name,
                strategy=strategy,
                variant=variant,
                seed=seed,
                round=number,
                labels=labels,
                share=labels / TRAIN,
                labels_per_class={c: 25 + int(count) for c, count in zip(classes, counts, strict=True)},
                metrics=drawn_metrics(height, classes),
                epochs=int(rng.integers(30, 90)),
                train_seconds=0.2 + labels / 800 + abs(rng.normal(0, 0.03)),
                acquisition_seconds=SECONDS.get(strategy, 0.03) * rng.uniform(0.8, 1.2),
            )
        )
    return rows


def _picks(
    rows: Sequence[RoundRow], classes: Sequence[str], shares: Shares, rng: np.random.Generator
) -> list[BatchRow]:
    picks = []
    for row in rows:
        # Informed strategies ask for the rare classes at first, as they do on real images.
        lean = 0.0 if row.strategy == "random" else 0.5 * np.exp(-row.round / 10)
        weights = (1 - lean) * shares + lean / len(classes)
        aleatoric = rng.uniform(0.3, 0.9, 20) * (0.6 if row.strategy == "random" else 1.0)
        for rank, label in enumerate(rng.choice(list(classes), 20, p=weights), start=1):
            picks.append(
                BatchRow(
                    run=row.run,
                    strategy=row.strategy,
                    variant=row.variant,
                    seed=row.seed,
                    round=row.round,
                    rank=rank,
                    image_id=f"{row.round:03}-{rank:02}.jpeg",
                    label=str(label),
                    score=float(1 - rank / 40),
                    epistemic=float(0.25 * np.exp(-row.round / 20) * rng.uniform(0.6, 1.4)),
                    aleatoric=float(aleatoric[rank - 1]),
                )
            )
    return picks


def _summary(
    strategies: Sequence[str],
    variants: Sequence[str],
    classes: Sequence[str],
    *,
    seeds: int,
    rounds: int,
    shares: Shares,
    command: str,
) -> StudySummary:
    images = {"train": TRAIN, "val": 334, "test": 562}
    return StudySummary(
        command=command,
        started_at="2026-11-23T01:00:00Z",
        seconds=754.0,
        classes=tuple(classes),
        images=images,
        labels_per_class={
            side: {name: round(count * share) for name, share in zip(classes, shares, strict=True)}
            for side, count in images.items()
        },
        strategies=tuple(strategies),
        variants=tuple(variants),
        seeds=tuple(range(seeds)),
        rounds=rounds,
        passes=50,
        batch_size=20,
        initial_per_class=25,
        profile="paper",
        options={"backbone": "mobilenet_v2", "dropout": 0.5, "patience": 3},
        versions={"label-studio-active-learning": "0.1.0", "python": "3.11.9", "torch": "2.15.0"},
        digests={"labels.csv": "9f" * 32, "features.npz": "a1" * 32},
        notes=("3 rows of labels.csv name files that are not there; they were left out.",),
    )
