"""What the reader of a report should be told before believing it: the findings of a study, and what it lacks."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ml_backend.simulation.curves import by_name
from ml_backend.simulation.findings import (
    Finding,
    few_passes,
    few_seeds,
    missed_classes,
    random_level,
    wide_spread,
)
from ml_backend.simulation.metrics import RoundMetrics
from ml_backend.study.report_answers import RANDOM, MetricAnswer, in_pairs
from ml_backend.study.rows import StudyResults

__all__ = ["Caution", "cautions"]


@dataclass(frozen=True, slots=True)
class Caution:
    """Warnings that ask for the same: what was seen, and what to look at or to try next."""

    messages: tuple[str, ...]
    check: str


def cautions(results: StudyResults, primary: MetricAnswer, torn: Sequence[str]) -> tuple[Caution, ...]:
    """Every warning of a study, the gravest kind first.

    Args:
        results: finished runs.
        primary: the metric that strategies are held against ``random`` by.
        torn: runs that were left out, in words.
    """
    summary = results.summary
    found: list[Finding] = []
    found += few_seeds(min(len(runs) for runs in by_name(primary.curves).values()))
    for runs, chance in in_pairs(primary.curves).values():
        found += random_level([*runs, *chance])
    found += few_passes(summary.strategies, summary.passes, summary.batch_size)
    found += wide_spread(primary.needed, summary.batch_size)
    found += _missed(results)
    messages: dict[str, list[str]] = {}
    for message, check in (*_lacking(primary, torn), *((one.message, one.check) for one in found)):
        messages.setdefault(check, []).append(message)
    return tuple(Caution(tuple(of_check), check) for check, of_check in messages.items())


def _lacking(primary: MetricAnswer, torn: Sequence[str]) -> list[tuple[str, str]]:
    """Message and check."""
    found = []
    if torn:
        found.append(
            (
                f"{len(torn)} {'run' if len(torn) == 1 else 'runs'} broke off and are left out of every figure and "
                f"number: {'; '.join(torn)}.",
                "Give the command again with the same --out: it goes on where it stopped.",
            )
        )
    if lacking := [f"{c.name}, seed {c.seed}" for c in primary.curves if (c.variant, c.seed) not in primary.baselines]:
        shown = ", ".join(lacking[:5]) + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
        found.append(
            (
                f"{len(lacking)} of {len(primary.curves)} runs have no baseline, a network trained on all labels: "
                f"{shown}. Labels needed are told without them.",
                "Let the study finish: the baselines are runs of their own.",
            )
        )
    if not any(curve.strategy == RANDOM for curve in primary.curves):
        found.append(
            (
                "random was not run, so that nothing tells what choosing images is worth at all.",
                "Run the study with random among its strategies.",
            )
        )
    return found


def _missed(results: StudyResults) -> list[Finding]:
    """By variant, because each is held against its own baseline."""
    found: list[Finding] = []
    for variant in dict.fromkeys(row.variant for row in results.rounds):
        baselines = {row.seed: row.metrics for row in results.baselines if row.variant == variant}
        runs: dict[str, dict[int, list[RoundMetrics]]] = {}
        for row in sorted(results.rounds, key=lambda row: row.round):
            if row.variant == variant and row.seed in baselines:
                runs.setdefault(_name(row.strategy, variant), {}).setdefault(row.seed, []).append(row.metrics)
        picked: dict[str, Counter[str]] = {}
        for pick in results.batches:
            if pick.variant == variant:
                picked.setdefault(_name(pick.strategy, variant), Counter())[pick.label] += 1
        available = results.summary.labels_per_class.get("train")
        found += missed_classes(runs, baselines, picked=picked, available=available)
    return found


def _name(strategy: str, variant: str) -> str:
    return f"{strategy}, {variant}" if variant else strategy
