"""How the answer of every experiment is read off its studies: what was found, and what of it was not expected."""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from ml_backend.simulation.compare import paired_difference
from ml_backend.simulation.curves import by_name
from ml_backend.study.experiment_reading import (
    ByRun,
    Finished,
    Interval,
    Reading,
    interval,
    is_no_luck,
    known,
    last_values,
    needed_words,
    p_words,
    picked_share,
    run_means,
    spread_over_seeds,
)
from ml_backend.study.report_curves import curves_of, rarest
from ml_backend.study.report_words import difference_words
from ml_backend.study.rows import RoundRow, StudyResults

__all__ = ["read_centres", "read_imbalance", "read_latency", "read_losses", "read_paper"]

NEAR: Final = 1.0 / 3.0  # epochs that differ by less are about as many
PAPERS_BATCH_BALD: Final = 1.5  # times a single-image function, in the paper
SAME_COST: Final = 2.0  # functions whose times differ by a smaller factor cost about the same
ALONE: Final = ("bald", "entropy", "least_confidence", "margin", "mean_std", "variation_ratios")
LOSSES: Final = ("weighted", "unweighted")


def read_paper(winner: str) -> Callable[[Sequence[Finished]], Reading]:
    """Labels needed and the area under the curve, by strategy.

    Args:
        winner: the strategy that the paper found best, expected ahead of ``random`` in AU ROC by more than luck.
    """

    def read(finished: Sequence[Finished]) -> Reading:
        results = finished[0].results
        needed = needed_words(results, lambda m: m.accuracy, "95 % of the baseline")
        within = needed_words(results, lambda m: m.auroc, "baseline - 1 point")
        curves = {name: list(runs.values()) for name, runs in by_name(curves_of(results, _auroc)).items()}
        ahead = {n: paired_difference(own, curves["random"]) for n, own in curves.items() if n != "random"}
        rows = tuple(
            (
                name,
                needed[name],
                within[name],
                "" if name == "random" else difference_words(ahead[name]),
                "" if name == "random" else p_words(ahead[name]),
            )
            for name in curves
        )
        best = max(ahead, key=lambda name: ahead[name].mean)
        found = (
            _baseline_words(results),
            f"Furthest ahead of random in AU ROC: {best}, {difference_words(ahead[best])} averaged over the curve.",
            f"{winner}, the best in the paper: {difference_words(ahead[winner])}, {p_words(ahead[winner])}.",
        )
        behind = f"{winner} is not ahead of random in AU ROC by more than luck"
        surprises = () if is_no_luck(ahead[winner]) else (behind,)
        columns = (
            "strategy",
            "labels for 95 % of the baseline's accuracy",
            "labels for the baseline's AU ROC - 1 point",
            "AU ROC over the curve, minus random's",
            "Wilcoxon",
        )
        return Reading(found, columns, rows, surprises)

    return read


def read_losses(finished: Sequence[Finished]) -> Reading:
    """Weighted against unweighted: epochs, the rarest class, and the spread over seeds."""
    results = finished[0].results
    rare = _rarest(results)
    recall = run_means(results, lambda row: row.metrics.recall[rare])
    balanced = run_means(results, lambda row: row.metrics.balanced_accuracy)
    spreads = {pair: spread_over_seeds(results, *pair, lambda row: row.metrics.balanced_accuracy) for pair in recall}
    rows = tuple(
        (
            strategy,
            loss,
            _epochs_words([row.epochs for row in results.rounds if (row.strategy, row.variant) == (strategy, loss)]),
            str(interval(list(recall[strategy, loss].values()))),
            str(interval(list(balanced[strategy, loss].values()))),
            "one seed" if (spread := spreads[strategy, loss]) is None else f"{spread:.4f}",
        )
        for strategy, loss in recall
    )
    columns = ("strategy", "loss", "epochs", f"recall of {rare}", "balanced accuracy", "its spread over seeds")
    gain = _weighted_minus_unweighted(recall)
    epochs = {loss: float(np.median([row.epochs for row in results.rounds if row.variant == loss])) for loss in LOSSES}
    noise = {loss: _mean([spreads[pair] for pair in spreads if pair[1] == loss]) for loss in LOSSES}
    found = (
        f"Recall of the rarest class ({rare}), weighted minus unweighted: {gain}.",
        f"Epochs of a training, median: {epochs['weighted']:.0f} weighted, {epochs['unweighted']:.0f} unweighted.",
        "Standard deviation of the balanced accuracy over seeds: "
        f"{noise['weighted']:.4f} weighted, {noise['unweighted']:.4f} unweighted.",
    )
    surprises = []
    if not gain.is_above_zero:
        surprises.append(f"the weighted loss does not find more of {rare} by more than luck ({gain})")
    if not noise["weighted"] <= noise["unweighted"]:
        surprises.append(f"its runs do not differ less ({noise['weighted']:.4f} against {noise['unweighted']:.4f})")
    if abs((ratio := epochs["weighted"] / epochs["unweighted"]) - 1.0) > NEAR:
        surprises.append(f"it needs {ratio:.2f} times the epochs")
    return Reading(found, columns, rows, tuple(surprises))


def read_latency(finished: Sequence[Finished]) -> Reading:
    """Passes and ranking of one batch, by function."""
    results = finished[0].results
    seconds: dict[str, list[float]] = {}
    for row in results.rounds:
        seconds.setdefault(row.strategy, []).append(row.acquisition_seconds)
    middle = {name: float(np.median(values)) for name, values in seconds.items()}
    pool = results.summary.images["train"] - results.rounds[0].labels
    from_table = finished[0].arm.options.features is not None
    backbone = "features are known, the backbone is not in it" if from_table else "the backbone is in it at first"
    alone = {name: middle[name] for name in ALONE}
    slowest, fastest = max(alone, key=lambda n: alone[n]), min(alone, key=lambda n: alone[n])
    rows = tuple(
        (name, f"{middle[name]:.4f}", f"{min(values):.4f} to {max(values):.4f}", f"{1e3 * middle[name] / pool:.4f}")
        for name, values in sorted(seconds.items(), key=lambda item: middle[item[0]])
    )
    found = (
        f"A pool of {pool:,} images, {results.summary.passes} passes, a batch of {results.summary.batch_size}, "
        f"one thread; {backbone}.",
        f"Functions that look at every image alone: {alone[fastest]:.3f} s ({fastest}) to {alone[slowest]:.3f} s "
        f"({slowest}); batch_bald: {middle['batch_bald']:.3f} s.",
    )
    surprises = []
    if alone[slowest] > SAME_COST * alone[fastest]:
        surprises.append(f"{slowest} takes {alone[slowest] / alone[fastest]:.1f} times as long as {fastest}")
    if middle["batch_bald"] > PAPERS_BATCH_BALD * (usual := float(np.median(list(alone.values())))):
        surprises.append(f"batch_bald takes {middle['batch_bald'] / usual:.1f} times as long as most of them")
    columns = ("function", "seconds a batch, median", "over the seeds", "ms an image")
    return Reading(found, columns, rows, tuple(surprises))


def read_imbalance(finished: Sequence[Finished]) -> Reading:
    """What entropy and the weighted loss do for a class that is hardly there."""
    rows: list[tuple[str, ...]] = []
    found, surprises = [], []
    for one in finished:
        results = one.results
        rare = _rarest(results)
        train = results.summary.labels_per_class["train"]
        recall = run_means(results, lambda row, rare=rare: row.metrics.recall[rare])  # type: ignore[misc]
        areas = run_means(results, lambda row, rare=rare: row.metrics.average_precision[rare])  # type: ignore[misc]
        picked = picked_share(results, rare)
        rows += [
            (
                one.arm.title,
                strategy,
                loss,
                f"{100 * np.mean(list(picked[strategy, loss].values())):.1f} %",
                str(interval(list(recall[strategy, loss].values()))),
                str(interval(list(areas[strategy, loss].values()))),
            )
            for strategy, loss in recall
        ]
        more = interval(
            [
                float(np.mean([picked["entropy", loss][seed] - picked["random", loss][seed] for loss in LOSSES]))
                for seed in results.summary.seeds
            ]
        )
        gain = _weighted_minus_unweighted(recall)
        found.append(
            f"{one.arm.title}: {train[rare]} of {sum(train.values())} training images are {rare}. Share of it among "
            f"the picks, entropy minus random: {more}. Its recall, weighted minus unweighted: {gain}."
        )
        if not more.is_above_zero:
            surprises.append(f"{one.arm.title}: entropy does not pick more of {rare} than random by more than luck")
        if not gain.is_above_zero:
            surprises.append(f"{one.arm.title}: the weighted loss does not find more of {rare} by more than luck")
    columns = ("shares", "strategy", "loss", "rare class among the picks", "its recall", "its AU PRC")
    return Reading(tuple(found), columns, tuple(rows), tuple(surprises))


def read_centres(finished: Sequence[Finished]) -> Reading:
    """Within a centre against across, judged on the same images. Arms are named ``<trained>-to-<tested>``."""
    rows: list[tuple[str, ...]] = []
    baseline: dict[str, dict[int, float]] = {}
    for one in finished:
        results = one.results
        baseline[one.arm.name] = {row.seed: known(row.metrics.auroc) for row in results.baselines}
        accuracy = [row.metrics.accuracy for row in results.baselines]
        last = last_values(results, _auroc)
        rows.append(
            (
                one.arm.title,
                str(results.summary.images["train"]),
                str(interval(list(baseline[one.arm.name].values()))),
                str(interval(accuracy)),
                str(interval(list(last["entropy", ""].values()))),
                str(interval(list(last["random", ""].values()))),
            )
        )
    found, surprises = [], []
    for one in finished:
        trained, tested = one.arm.name.split("-to-")
        if trained == tested:
            continue
        within = baseline[f"{tested}-to-{tested}"]
        lost = interval([within[seed] - value for seed, value in baseline[one.arm.name].items()])
        found.append(f"{one.arm.title}: AU ROC lost against a network of the centre itself, with all labels: {lost}.")
        if not lost.is_above_zero:
            surprises.append(f"{one.arm.title}: a network from elsewhere is as good as the centre's own ({lost})")
    columns = (
        "trained -> tested",
        "training images",
        "AU ROC, all labels",
        "accuracy, all labels",
        "AU ROC, entropy at the end",
        "AU ROC, random at the end",
    )
    return Reading(tuple(found), columns, tuple(rows), tuple(surprises))


def _auroc(row: RoundRow) -> float | None:
    return row.metrics.auroc


def _rarest(results: StudyResults) -> str:
    return rarest(results) or results.summary.classes[0]


def _baseline_words(results: StudyResults) -> str:
    accuracy = float(np.median([row.metrics.accuracy for row in results.baselines]))
    auroc = float(np.median([known(row.metrics.auroc) for row in results.baselines]))
    return (
        f"All {results.baselines[0].labels} labels: accuracy {accuracy:.3f}, AU ROC {auroc:.3f} "
        f"(median of {len(results.baselines)} seeds)."
    )


def _epochs_words(epochs: Sequence[int]) -> str:
    low, middle, high = np.quantile(epochs, (0.25, 0.5, 0.75))
    return f"{middle:.0f} [{low:.0f}–{high:.0f}]"


def _mean(values: Sequence[float | None]) -> float:
    """NaN where a value is not known: nothing is more or less than that."""
    return float(np.mean([np.nan if value is None else value for value in values]))


def _weighted_minus_unweighted(values: ByRun) -> Interval:
    """Seed by seed, averaged over the strategies."""
    strategies = sorted({strategy for strategy, _ in values})
    seeds = sorted(next(iter(values.values())))
    return interval(
        [
            float(np.mean([values[name, "weighted"][seed] - values[name, "unweighted"][seed] for name in strategies]))
            for seed in seeds
        ]
    )
