"""Conclusions of the experiments: sentences, a table, and differences from the expectation."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from jaxtyping import Float
from scipy import stats
from threadpoolctl import threadpool_limits

from ml_backend.acquisition import bald, entropy, least_confidence, margin, mean_std, variation_ratios
from ml_backend.analytics import readers
from ml_backend.errors import RoundError, SettingsError
from ml_backend.model.hardware import one_thread
from ml_backend.schemas import Annotation
from ml_backend.simulation.analysis import (
    CONFIDENCE,
    Group,
    PairedDifference,
    labels_needed,
    labels_needed_by_run,
    labels_needed_table,
    learning_curves,
    paired_difference,
    quartiles,
    rarest_class,
    tables,
)
from ml_backend.simulation.metrics import ACCURACY, AUROC, Metric
from ml_backend.simulation.options import SimulateOptions, make_plan
from ml_backend.simulation.plan import RANDOM, Run
from ml_backend.simulation.report import difference_words, label_words, share_words
from ml_backend.simulation.run import Study, fit_on_all, open_study
from ml_backend.simulation.run_log import RoundRow, StudyResults
from ml_backend.storage.atomic import write_atomically

SIGNIFICANT: Final = 0.05  # upper limit of p
NEAR: Final = 1.0 / 3.0  # numbers of epochs that differ by less are about the same
PAPERS_BATCH_BALD: Final = 1.5  # times a pointwise function, in the paper
SAME_COST: Final = 2.0  # functions whose times differ by a smaller factor cost about the same
TOP: Final = 0.1  # share of the images
EXPECTED_RULES: Final = ("dawid_skene", "ordinal")  # closer to the truth than the median
TOTAL_UNCERTAINTY: Final = ("entropy", "least_confidence", "margin")
FUNCTIONS: Final = {one.__name__: one for one in (bald, entropy, least_confidence, margin, mean_std, variation_ratios)}
"""Pointwise acquisition functions without randomness."""

Values: TypeAlias = Float[npt.NDArray[np.floating[Any]], " images"]


@dataclass(frozen=True, slots=True)
class FinishedStudy:
    """A study of an experiment, with its results."""

    name: str
    title: str
    options: SimulateOptions
    results: StudyResults


@dataclass(frozen=True, slots=True)
class Conclusion:
    """Result of an experiment.

    Attributes:
        found: sentences.
        columns: of the table.
        rows: of the table, as text.
        surprises: differences from the expectation.
    """

    found: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    surprises: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over seeds and its 95 % interval, which a single seed does not have."""

    mean: float
    low: float | None
    high: float | None

    @property
    def is_above_zero(self) -> bool:
        return self.low is not None and self.low > 0.0

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:.3f} (one seed)"
        return f"{self.mean:.3f} [{self.low:.3f} to {self.high:.3f}]"


def interval(values: Sequence[float] | pd.Series) -> Interval:
    """Mean and Student's t interval, which is wide for few seeds.

    Raises:
        ValueError: no value, or one that is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if not len(array) or not np.isfinite(array).all():
        raise ValueError(f"an interval needs at least one value, all of them finite; got {list(values)}")
    mean = float(array.mean())
    if len(array) < 2:
        return Interval(mean, None, None)
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(array) - 1) * stats.sem(array))
    return Interval(mean, mean - half, mean + half)


def known(value: float | None) -> float:
    """A metric that must be defined.

    Raises:
        RoundError: it is not, because a class is missing among the readable test images.
    """
    if value is None:
        raise RoundError("a metric is not defined: the readable test images are all of one class")
    return value


def by_run(
    results: StudyResults, value: Callable[[RoundRow], float | None], over: Literal["mean", "last"] = "mean"
) -> dict[Group, pd.Series]:
    """By seed, the mean over the rounds of every run in which a value is defined, or the last of them.

    Raises:
        RoundError: a run has no such round.
    """
    found = tables(learning_curves(results, value))
    if sum(table.shape[1] for table in found.values()) < len({row.run for row in results.rounds}):
        known(None)
    return {group: table.mean() if over == "mean" else table.ffill().iloc[-1] for group, table in found.items()}


def picked_share(results: StudyResults, class_name: str) -> dict[Group, pd.Series]:
    """By seed, the share of a class among the picks of every run, without its start set."""
    picks: dict[Group, list[tuple[int, bool]]] = {}
    for row in results.batches:
        picks.setdefault(Group(row.strategy, row.variant), []).append((row.seed, row.label == class_name))
    return {
        group: pd.DataFrame(rows, columns=["seed", "hit"]).groupby("seed")["hit"].mean()
        for group, rows in picks.items()
    }


def seed_spread(results: StudyResults, value: Callable[[RoundRow], float]) -> dict[Group, float]:
    """Standard deviation over the seeds at the same number of labels, median over the rounds; NaN for one seed."""
    found = tables(learning_curves(results, value))
    return {group: float(table.std(axis=1, ddof=1).dropna().median()) for group, table in found.items()}


def is_significant(ahead: PairedDifference) -> bool:
    """By interval and test: with few seeds, an interval above 0 is not enough."""
    return ahead.low is not None and ahead.low > 0.0 and ahead.p is not None and ahead.p < SIGNIFICANT


def needed_words(
    results: StudyResults, metric: Metric, target: str, baselines: StudyResults | None = None
) -> dict[str, str]:
    """Share of the labels that a target takes, by strategy.

    Args:
        results: of the curves.
        metric: of the target.
        target: a key of ``analysis.TARGETS``.
        baselines: study of the same seeds with the baselines; ``results`` by default.

    Raises:
        RoundError: the metric of a baseline is not defined.
    """
    levels = {(row.variant, row.seed): known(metric.of(row.metrics)) for row in (baselines or results).baselines}
    curves = learning_curves(results, lambda row: metric.of(row.metrics))
    table = labels_needed_table(labels_needed_by_run(curves, levels))
    return {str(row.group): share_words(row.share) for row in table if row.target == target}


def _metric_tables(results: StudyResults, metric: Metric) -> dict[str, pd.DataFrame]:
    return {str(group): table for group, table in tables(learning_curves(results, _of(metric))).items()}


def _of(metric: Metric) -> Callable[[RoundRow], float | None]:
    return lambda row: metric.of(row.metrics)


def _p_words(ahead: PairedDifference) -> str:
    if ahead.p is None:
        return "no p" if ahead.low is None else "all equal"
    return f"p = {ahead.p:.3f}"


def _rarest(results: StudyResults) -> str:
    return rarest_class(results) or results.summary.classes[0]


def _weighted_minus_unweighted(values: Mapping[Group, pd.Series]) -> Interval:
    """Seed by seed, averaged over the strategies."""
    return interval(_mean([values[Group(name, "weighted")] - values[Group(name, "unweighted")] for name, _ in values]))


def _mean(values: Sequence[Any]) -> Any:
    """Of numbers, or of series element by element."""
    return sum(values) / len(values)


def conclude_paper(best_in_paper: str) -> Callable[[Sequence[FinishedStudy]], Conclusion]:
    """Labels needed and areas under the curve, by strategy.

    Args:
        best_in_paper: the strategy that is expected to be significantly ahead of ``random`` in AU ROC.
    """

    def conclude(finished: Sequence[FinishedStudy]) -> Conclusion:
        results = finished[0].results
        accuracy = needed_words(results, ACCURACY, "95 % of the baseline")
        area = needed_words(results, AUROC, "baseline - 1 point")
        curves = _metric_tables(results, AUROC)
        ahead = {name: paired_difference(own, curves[RANDOM]) for name, own in curves.items() if name != RANDOM}
        words = {name: (difference_words(one), _p_words(one)) for name, one in ahead.items()}
        rows = tuple((name, accuracy[name], area[name], *words.get(name, ("", ""))) for name in curves)
        best = max(ahead, key=lambda name: ahead[name].mean)
        median_accuracy = np.median([row.metrics.accuracy for row in results.baselines])
        median_auroc = np.median([known(row.metrics.auroc) for row in results.baselines])
        found = (
            f"All {results.baselines[0].labels} labels: accuracy {median_accuracy:.3f}, AU ROC {median_auroc:.3f} "
            f"(median of {len(results.baselines)} seeds).",
            f"Furthest ahead of random in AU ROC: {best}, {words[best][0]} averaged over the curve.",
            f"{best_in_paper}, the best in the paper: {', '.join(words[best_in_paper])}.",
        )
        behind = f"{best_in_paper} is not significantly ahead of random in AU ROC"
        columns = (
            "strategy",
            "labels for 95 % of the baseline's accuracy",
            "labels for the baseline's AU ROC - 1 point",
            "AU ROC over the curve, minus random's",
            "Wilcoxon",
        )
        return Conclusion(found, columns, rows, () if is_significant(ahead[best_in_paper]) else (behind,))

    return conclude


def conclude_losses(finished: Sequence[FinishedStudy]) -> Conclusion:
    """Weighted against unweighted: epochs, recall of the rarest class, and spread over the seeds."""
    results = finished[0].results
    rare = _rarest(results)
    recall = by_run(results, lambda row: row.metrics.recall[rare])
    balanced = by_run(results, lambda row: row.metrics.balanced_accuracy)
    spread = seed_spread(results, lambda row: row.metrics.balanced_accuracy)
    epochs = {group: table.stack() for group, table in tables(learning_curves(results, lambda r: r.epochs)).items()}
    rows = []
    for group, noise in spread.items():
        low, middle, high = quartiles(epochs[group].to_numpy())
        rows.append(
            (
                *group,
                f"{middle:.0f} [{low:.0f}–{high:.0f}]",
                str(interval(recall[group])),
                str(interval(balanced[group])),
                "one seed" if math.isnan(noise) else f"{noise:.4f}",
            )
        )
    gain = _weighted_minus_unweighted(recall)
    usual, noises = {}, {}
    for loss in ("weighted", "unweighted"):
        usual[loss] = pd.concat([of for group, of in epochs.items() if group.variant == loss]).median()
        noises[loss] = _mean([of for group, of in spread.items() if group.variant == loss])
    found = (
        f"Recall of the rarest class ({rare}), weighted minus unweighted: {gain}.",
        f"Epochs of a training, median: {usual['weighted']:.0f} weighted, {usual['unweighted']:.0f} unweighted.",
        "Standard deviation of the balanced accuracy over seeds: "
        f"{noises['weighted']:.4f} weighted, {noises['unweighted']:.4f} unweighted.",
    )
    surprises = []
    if not gain.is_above_zero:
        surprises.append(f"the weighted loss does not significantly raise the recall of {rare} ({gain})")
    # NaN of one seed is a surprise, too.
    if not noises["weighted"] <= noises["unweighted"]:
        surprises.append(f"its runs do not differ less ({noises['weighted']:.4f} against {noises['unweighted']:.4f})")
    if abs((ratio := usual["weighted"] / usual["unweighted"]) - 1.0) > NEAR:
        surprises.append(f"it needs {ratio:.2f} times the epochs")
    columns = ("strategy", "loss", "epochs", f"recall of {rare}", "balanced accuracy", "its spread over seeds")
    return Conclusion(found, columns, tuple(rows), tuple(surprises))


def conclude_profiles(finished: Sequence[FinishedStudy]) -> Conclusion:
    """The profiles ``best`` and ``paper``, seed by seed, both with the baselines of ``paper``."""
    studies = {one.options.profile: one.results for one in finished}
    paper, best = studies["paper"], studies["best"]
    found, surprises = [], []
    for metric in (AUROC, ACCURACY):
        ours, theirs = _metric_tables(best, metric), _metric_tables(paper, metric)
        for strategy in paper.summary.strategies:
            gain = paired_difference(ours[strategy], theirs[strategy])
            words = f"{difference_words(gain)}, {_p_words(gain)}"
            found.append(f"{metric.title} over the curve, {strategy}, best minus paper: {words}.")
            if metric is AUROC and not is_significant(gain):
                surprises.append(f"with {strategy}, best is not significantly ahead of paper in AU ROC")

    def of_baselines(metric: Metric) -> str:
        return ", ".join(
            f"{interval([known(metric.of(row.metrics)) for row in study.baselines])} {name}"
            for name, study in studies.items()
        )

    found.append(f"All labels: AU ROC {of_baselines(AUROC)}; accuracy {of_baselines(ACCURACY)}.")
    rows = tuple(
        (
            profile,
            strategy,
            needed_words(study, ACCURACY, "95 % of the baseline", paper)[strategy],
            needed_words(study, AUROC, "baseline - 1 point", paper)[strategy],
        )
        for strategy in paper.summary.strategies
        for profile, study in studies.items()
    )
    columns = (
        "profile",
        "strategy",
        "labels for 95 % of the paper's baseline accuracy",
        "labels for the paper's baseline AU ROC - 1 point",
    )
    return Conclusion(tuple(found), columns, rows, tuple(surprises))


def conclude_latency(finished: Sequence[FinishedStudy]) -> Conclusion:
    """Time of passes and ranking of one batch, by function."""
    [one] = finished
    results = one.results
    pool = results.summary.images["train"] - results.rounds[0].labels
    seconds = pd.Series(
        [row.acquisition_seconds for row in results.rounds], [row.strategy for row in results.rounds]
    ).groupby(level=0)
    times = seconds.agg(["median", "min", "max"]).sort_values("median", kind="stable")
    middle = times["median"]
    pointwise = middle[list(FUNCTIONS)]
    slowest, fastest, batch_bald = pointwise.idxmax(), pointwise.idxmin(), middle["batch_bald"]
    rows = tuple(
        (row.Index, f"{row.median:.4f}", f"{row.min:.4f} to {row.max:.4f}", f"{1e3 * row.median / pool:.4f}")
        for row in times.itertuples()
    )
    backbone = "without the backbone" if one.options.features is not None else "with the backbone in the first round"
    found = (
        f"A pool of {pool:,} images, {results.summary.passes} passes, a batch of {results.summary.batch_size}, "
        f"one thread; {backbone}.",
        f"Pointwise functions: {pointwise.min():.3f} s ({fastest}) to {pointwise.max():.3f} s ({slowest}); "
        f"batch_bald: {batch_bald:.3f} s.",
    )
    surprises = []
    if pointwise.max() > SAME_COST * pointwise.min():
        surprises.append(f"{slowest} takes {pointwise.max() / pointwise.min():.1f} times as long as {fastest}")
    if batch_bald > PAPERS_BATCH_BALD * pointwise.median():
        surprises.append(f"batch_bald takes {batch_bald / pointwise.median():.1f} times as long as most of them")
    columns = ("function", "seconds a batch, median", "over the seeds", "ms an image")
    return Conclusion(found, columns, rows, tuple(surprises))


def conclude_imbalance(finished: Sequence[FinishedStudy]) -> Conclusion:
    """Effect of entropy and of the weighted loss on a rare class."""
    rows: list[tuple[str, ...]] = []
    found, surprises = [], []
    for one in finished:
        results = one.results
        rare, train = _rarest(results), results.summary.labels_per_class["train"]
        recall = by_run(results, lambda row, rare=rare: row.metrics.recall[rare])  # type: ignore[misc]
        areas = by_run(results, lambda row, rare=rare: row.metrics.average_precision[rare])  # type: ignore[misc]
        picked = picked_share(results, rare)
        rows += [
            (
                one.title,
                *group,
                f"{100 * picked[group].mean():.1f} %",
                str(interval(recall[group])),
                str(interval(areas[group])),
            )
            for group in recall
        ]
        losses = dict.fromkeys(group.variant for group in recall)
        more = interval(_mean([picked[Group("entropy", loss)] - picked[Group(RANDOM, loss)] for loss in losses]))
        gain = _weighted_minus_unweighted(recall)
        found.append(
            f"{one.title}: {train[rare]} of {sum(train.values())} training images are {rare}. Share of it among "
            f"the picks, entropy minus random: {more}. Its recall, weighted minus unweighted: {gain}."
        )
        if not more.is_above_zero:
            surprises.append(f"{one.title}: entropy does not pick significantly more of {rare} than random")
        if not gain.is_above_zero:
            surprises.append(f"{one.title}: the weighted loss does not significantly raise the recall of {rare}")
    columns = ("shares", "strategy", "loss", "rare class among the picks", "its recall", "its AU PRC")
    return Conclusion(tuple(found), columns, tuple(rows), tuple(surprises))


def conclude_centres(finished: Sequence[FinishedStudy]) -> Conclusion:
    """Within a centre against across, on the same test images. Studies are named ``<trained>-to-<tested>``."""
    auroc = {
        one.name: pd.Series({row.seed: known(row.metrics.auroc) for row in one.results.baselines}) for one in finished
    }
    rows, found, surprises = [], [], []
    for one in finished:
        last = by_run(one.results, _of(AUROC), "last")
        values = (
            auroc[one.name],
            [row.metrics.accuracy for row in one.results.baselines],
            last[Group("entropy", "")],
            last[Group(RANDOM, "")],
        )
        rows.append((one.title, str(one.results.summary.images["train"]), *(str(interval(v)) for v in values)))
        trained, tested = one.name.split("-to-")
        if trained == tested:
            continue
        lost = interval(auroc[f"{tested}-to-{tested}"] - auroc[one.name])
        found.append(f"{one.title}: AU ROC lost against a network of the centre itself, with all labels: {lost}.")
        if not lost.is_above_zero:
            surprises.append(f"{one.title}: a network of another centre is as good as the centre's own ({lost})")
    columns = (
        "trained -> tested",
        "training images",
        "AU ROC, all labels",
        "accuracy, all labels",
        "AU ROC, entropy at the end",
        "AU ROC, random at the end",
    )
    return Conclusion(tuple(found), columns, tuple(rows), tuple(surprises))


def conclude_readers(finished: Sequence[FinishedStudy]) -> Conclusion:
    """Labels and networks by rule and reads an image, for the same reads in all. Names are ``<rule>-<reads>``."""
    labels, accuracy, curves = {}, {}, {}
    for one in finished:
        [labels[one.name]] = by_run(one.results, lambda row: row.label_accuracy, "last").values()
        [accuracy[one.name]] = by_run(one.results, _of(ACCURACY), "last").values()
        [curves[one.name]] = tables(learning_curves(one.results, _of(ACCURACY))).values()
    target = float(min(of.mean() for of in accuracy.values()))
    rows, found, surprises = [], [], []
    for name, table in curves.items():
        rule, reads = name.split("-")
        cells = [rule, reads]
        for values in (labels, accuracy):
            gain = interval(values[name] - values[f"median-{reads}"])
            cells += [str(interval(values[name])), "" if rule == "median" else str(gain)]
            if values is labels and reads != "1" and rule in EXPECTED_RULES and not gain.is_above_zero:
                surprises.append(
                    f"{rule} of {reads} reads is not significantly closer to the truth than median ({gain})"
                )
        if reads != "1":
            again = interval(accuracy[name] - accuracy["median-1"])
            found.append(
                f"{rule}: network's accuracy of {reads} reads an image minus that of one read of {reads} times the "
                f"images: {again}."
            )
            if again.is_above_zero:
                surprises.append(f"{rule}: {reads} reads an image are better than one read of more images ({again})")
        needed = table.apply(labels_needed, target=target, window=1).to_numpy()
        rows.append((*cells, f"{label_words(quartiles(needed))}, {np.isinf(needed).sum()} of {len(needed)} never"))
    columns = (
        "rule",
        "reads an image",
        "labels equal to the truth",
        "minus median",
        "network's accuracy",
        "minus median",
        f"reads for {target:.3f}, the lowest of these",
    )
    return Conclusion(tuple(found), columns, tuple(rows), tuple(surprises))


def conclude_uncertainty(finished: Sequence[FinishedStudy]) -> Conclusion:
    """Train the baseline of every seed again, and compare its uncertainty about the test side with the readers.

    ``uncertainty.csv`` in the study's folder has every image and seed.

    Raises:
        SettingsError: no two readers disagree about a test image.
    """
    options = finished[0].options
    plan, data = make_plan(options)
    test = {label.image.id for label in data.labels("test")}
    disputed = {image_id: value for image_id, value in disagreement(data.ratings).items() if image_id in test}
    if len(disputed) < 3 or not any(disputed.values()):
        raise SettingsError(
            "uncertainty-quality needs 3 or more test images with two readers, and readers who disagree about one: "
            f"{len(disputed)} have two readers, who disagree about {sum(map(bool, disputed.values()))}; "
            "give other --ratings"
        )
    study = open_study(plan, options.out, data)
    frames = []
    for run in (run for run in plan.runs() if run.is_baseline):
        scores = _uncertainty(run, study)
        scores.insert(0, "disagreement", scores.index.map(disputed))
        frames.append(scores.dropna(subset="disagreement").assign(seed=run.seed))
    table = pd.concat(frames).set_index("seed", append=True).swaplevel()
    write_atomically(options.out / "uncertainty.csv", table.to_csv(lineterminator="\n").encode())
    readers = np.array(list(disputed.values()))
    return uncertainty_conclusion(table, share_in_top(readers, readers))


def _uncertainty(run: Run, study: Study) -> pd.DataFrame:
    """Scores of every readable test image (rows) by every pointwise function (columns)."""
    with one_thread(), threadpool_limits(1):  # like the study's own rounds
        learner, _, _ = fit_on_all(run, study)
        outputs = learner.predict_test([label.image for label in study.data.labels("test")])
        probs = torch.from_numpy(outputs.probs)
        scores = {name: score(probs).double().numpy() for name, score in FUNCTIONS.items()}
    return pd.DataFrame(scores, index=pd.Index(outputs.image_ids, name="image_id"))


def uncertainty_conclusion(table: pd.DataFrame, ceiling: float) -> Conclusion:
    """Conclusion from the scores of all seeds.

    Args:
        table: indexed by seed and image, with the columns ``disagreement`` and those of ``FUNCTIONS``.
        ceiling: disagreement that the images with the highest disagreement hold.
    """
    by_seed = [one for _, one in table.groupby(level="seed")]

    def over_seeds(statistic: Callable[[Values, Values], float]) -> dict[str, Interval]:
        return {
            name: interval([statistic(one[name].to_numpy(), one["disagreement"].to_numpy()) for one in by_seed])
            for name in FUNCTIONS
        }

    ranks, held = over_seeds(rank_correlation), over_seeds(share_in_top)
    order = sorted(ranks, key=lambda name: -ranks[name].mean)
    found = (
        f"{len(by_seed[0])} test images; closest to the readers: {order[0]}, Spearman correlation {ranks[order[0]]}.",
        f"The {TOP:.0%} of the images with the highest {order[0]} hold {held[order[0]]} of all disagreement; "
        f"at random {TOP:.2f}, at most {ceiling:.3f}.",
        "Intervals are over seeds, that is over networks; the test images are the same ones.",
    )
    surprises = [
        f"the correlation of {name} is not significantly above 0 ({ranks[name]})"
        for name in TOTAL_UNCERTAINTY
        if not ranks[name].is_above_zero
    ]
    if held["entropy"].mean <= TOP:
        surprises.append(f"the top {TOP:.0%} by entropy hold no more disagreement than random ({held['entropy']})")
    if ranks["entropy"].mean < ranks["bald"].mean:
        surprises.append(f"bald ({ranks['bald']}) is closer to the readers than entropy ({ranks['entropy']})")
    columns = ("function", "Spearman correlation", f"disagreement held by the top {TOP:.0%}")
    return Conclusion(
        found, columns, tuple((name, str(ranks[name]), str(held[name])) for name in order), tuple(surprises)
    )


def disagreement(ratings: Sequence[Annotation]) -> dict[str, float]:
    """Disagreement about each image, as ``analytics.readers`` measures it.

    Args:
        ratings: annotations; those without a class do not count.
    """
    answers: dict[str, list[str]] = {}
    for rating in ratings:
        if rating.value is not None:
            answers.setdefault(rating.image.id, []).append(rating.value)
    return readers.disagreement(answers)


def rank_correlation(uncertainty: Values, disagreeing: Values) -> float:
    """Spearman's correlation, -1 to 1; 0 where one of the two is constant."""
    return readers.rank_correlation(uncertainty, disagreeing) or 0.0


def share_in_top(uncertainty: Values, disagreeing: Values, top: float = TOP) -> float:
    """Fraction of all disagreement that the most uncertain images hold; expected value at random: ``top``.

    Images of equal uncertainty at the border count in part, so that the order of a table has no effect.

    Args:
        uncertainty: one an image, higher is less certain.
        disagreeing: one an image, 0 or more.
        top: fraction of the images, above 0 to 1; at least one image.

    Raises:
        ValueError: no disagreement at all, or a fraction out of range.
    """
    total = float(disagreeing.sum())
    if not 0.0 < top <= 1.0 or not total > 0.0:
        raise ValueError(f"expected 0 < top <= 1 and disagreement about an image, got {top} and {total}")
    count = max(1, round(top * len(uncertainty)))
    border = np.sort(uncertainty)[-count]
    above, at = uncertainty > border, uncertainty == border
    held = disagreeing[above].sum() + disagreeing[at].sum() * (count - above.sum()) / at.sum()
    return float(held) / total


CONCLUSIONS: Final[Mapping[str, Callable[[Sequence[FinishedStudy]], Conclusion]]] = {
    "paper-binary": conclude_paper("entropy"),
    "paper-multiclass": conclude_paper("mean_std"),
    "loss-ablation": conclude_losses,
    "profiles": conclude_profiles,
    "acquisition-latency": conclude_latency,
    "extreme-imbalance": conclude_imbalance,
    "uncertainty-quality": conclude_uncertainty,
    "cross-centre": conclude_centres,
    "readers": conclude_readers,
}
