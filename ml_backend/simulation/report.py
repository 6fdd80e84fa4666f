"""The report of a study: one HTML file that loads nothing and runs no script.

Numbers come from ``analysis``, charts from ``ml_backend.charts``, words from ``templates/report.html``.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich.table import Table
from rich.text import Text

from ml_backend.charts import Interval, Line, interval_chart, line_chart, save_line_chart, swatch, value_words
from ml_backend.simulation.analysis import (
    PAIRS_FOR_AN_INTERVAL,
    SEEDS_FOR_A_CLAIM,
    TARGETS,
    Early,
    Group,
    LabelsNeeded,
    LabelsRatio,
    MetricStatistics,
    PairedDifference,
    Quartiles,
    bands,
    complete_runs,
    early,
    findings,
    first_ranking_quartiles,
    labels_ratio,
    learning_curves,
    metric_statistics,
    picked_median_curves,
    picked_share_curves,
    quartiles,
    rarest_class,
)
from ml_backend.simulation.metrics import ACCURACY, METRICS, Metric, rare_class_metric
from ml_backend.simulation.plan import RANDOM
from ml_backend.simulation.run_log import DifferenceSummary, EarlySummary, StudyResults
from ml_backend.storage.atomic import write_atomically

SPOKEN_OF: Final = ("accuracy", "balanced_accuracy")  # in the headline; findings go by the first
PRINTED: Final = ("accuracy", "balanced_accuracy", "auroc")  # as figures for a paper
NAMED: Final = 3  # strategies of a sentence, besides random
SHOWN_FINDINGS: Final = 2  # of a kind; the others are folded away
NUMBERS: Final = 6  # label counts of a table
HEADLINE_TARGETS: Final = ("baseline - 1 point", "95 % of the baseline")  # the first that was reached

Status: TypeAlias = Literal["few_seeds", "pays", "behind", "open"]
Styles: TypeAlias = Mapping[str, int]
"""Strategy -> colour and dash pattern; 0 is ``random``'s."""


def write_report(results: StudyResults, path: Path) -> None:
    """Write the report of a study atomically: a browser never sees half a page.

    Args:
        results: a finished study, or the finished part of one.
        path: of the HTML file; its folder must exist.

    Raises:
        ValueError: no round yet, see ``report_page``.
        OSError: the file cannot be written.
    """
    # errors: a file name may not be UTF-8.
    write_atomically(path, report_page(results).encode(errors="replace"))
    path.chmod(0o644)  # for colleagues too, unlike the files of the data folder


def write_figures(results: StudyResults, folder: Path) -> None:
    """Write the learning curves for a paper, as ``<metric>[-<variant>].svg`` and ``.pdf``.

    Args:
        results: with at least one round.
        folder: of the figures; it is made where it is missing.

    Raises:
        OSError: a file cannot be written.
    """
    kept, _ = complete_runs(results)
    styles = _styles(results)
    folder.mkdir(exist_ok=True)
    for metric in (metric for metric in METRICS if metric.name in PRINTED):
        one = metric_statistics(metric, kept)
        for variant in dict.fromkeys(group.variant for group in one.bands):
            reference = one.baseline(variant)
            save_line_chart(
                folder / f"{metric.name}{'-' if variant else ''}{variant}",
                [_line(group, band, styles) for group, band in one.bands.items() if group.variant == variant],
                x_label=results.summary.unit,
                y_label=metric.title,
                references={} if reference is None else {"all labels": reference},
            )


def _line(group: Group, band: pd.DataFrame, styles: Styles) -> Line:
    columns = (band[name].tolist() for name in ("median", "q25", "q75"))
    return Line(styles[group.strategy], group.strategy, band.index.tolist(), *columns)


def report_page(results: StudyResults) -> str:
    """The report as HTML.

    Raises:
        ValueError: there is no finished round.
    """
    if not results.rounds:
        raise ValueError("a report needs at least one finished round, got none: let the study run for longer")
    kept, incomplete = complete_runs(results)
    statistics = [metric_statistics(metric, kept) for metric in metrics_of(kept)]
    spoken_of = [one for name in SPOKEN_OF for one in statistics if one.metric.name == name]
    primary = spoken_of[0]
    target = headline_target(primary)
    begun = early(kept)
    styles, unit = _styles(results), results.summary.unit
    content = {
        "summary": results.summary,
        "runs": len({row.run for row in kept.rounds}),
        "several": len({row.variant for row in kept.rounds}) > 1,
        "styles": styles,
        "headlines": [headline(one, target) for one in spoken_of if one is primary or target],
        "verdict": verdict(primary),
        "primary": primary.metric,
        "pairs": metric_charts(primary, styles, pairs=True, unit=unit).charts,
        "metrics": [metric_charts(one, styles, unit=unit) for one in statistics],
        "forests": _interval_charts(spoken_of, styles, unit),
        "comparisons": [one for one in statistics if one.metric.higher_is_better],
        "begun": begun,
        "starts": starts(kept, begun),
        "balance": _balance(kept, styles),
        "uncertainty": _uncertainty(kept, styles),
        "answers": _answers(kept, styles),
        "times": times(kept),
        "findings": findings(kept, primary, incomplete),
    }
    return _templates().get_template("report.html").render(content).lstrip()


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("ml_backend.simulation"),
        autoescape=True,  # file names and class names come from users
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "shares": share_words,
        "difference": difference_words,
        "ratio": ratio_words,
        "quartiles": quartile_words,
        "duration": duration_words,
        "seconds": seconds_words,
        "value": value_words,
        "spoken": lambda group: f"{group.strategy} ({group.variant})" if group.variant else group.strategy,
        "json": lambda value: json.dumps(value, ensure_ascii=False),
    }
    environment.tests["infinite"] = math.isinf
    environment.globals |= {
        "swatch": swatch,
        "seeds_for_a_claim": SEEDS_FOR_A_CLAIM,
        "shown_findings": SHOWN_FINDINGS,
        "pairs_for_an_interval": PAIRS_FOR_AN_INTERVAL,
    }
    return environment


def summarized(results: StudyResults) -> StudyResults:
    """The results, with the labels until the first ranking and the start of the curves in their summary."""
    kept, _ = complete_runs(results)
    started = early(kept)
    found = {
        "first_ranking": {
            str(group): tuple(None if math.isinf(labels) else labels for labels in of)
            for group, of in first_ranking_quartiles(kept).items()
        },
        "early": started
        and EarlySummary(
            labels=started.labels,
            quartiles={str(group): tuple(of) for group, of in started.by_group.items()},
            minus_random={
                str(group): DifferenceSummary(**asdict(difference)) for group, difference in started.differences.items()
            },
        ),
    }
    return replace(results, summary=results.summary.model_copy(update=found))


class Start(NamedTuple):
    """How the runs of a group begin: labels until a network ranks, and early balanced accuracy, as text or empty."""

    group: Group
    ranked: str
    early: str = ""
    difference: str = ""  # from ``random``
    p: str = ""


def starts(results: StudyResults, begun: Early | None) -> list[Start]:
    """How every group begins, in the order of the study; ``begun`` is of the same complete runs."""
    found = []
    for group, ranked in first_ranking_quartiles(results).items():
        start = Start(group, label_words(ranked))
        if begun and group in begun.by_group:
            start = start._replace(early=quartile_words(begun.by_group[group]))
        if begun and (ahead := begun.differences.get(group)):
            start = start._replace(difference=difference_words(ahead), p=p_words(ahead))
        found.append(start)
    return found


def conclusion(results: StudyResults) -> Table:
    """What a study shows of every group, as a table for the terminal; at least one round has trained a network."""
    kept, _ = complete_runs(results)
    begun, target, unit = early(kept), HEADLINE_TARGETS[0], results.summary.unit
    needed = metric_statistics(ACCURACY, kept).needed_for(target)
    over = f"balanced accuracy over the first {begun.labels} {unit}" if begun else "early balanced accuracy"
    table = Table(
        "strategy", f"{unit} until a network ranks", f"{unit} for {target} of accuracy", over,
        "minus random's, mean [95 % interval]",
        "p", caption=Text("Median [quartiles], where the heading says nothing else."), caption_justify="left",
    )  # fmt: skip
    for one in starts(kept, begun):
        row = needed.get(one.group)
        reached = ", ".join(dict.fromkeys([label_words(row.labels), share_words(row.share)])) if row else ""
        table.add_row(str(one.group), one.ranked, reached, one.early, one.difference, one.p)
    return table


def metrics_of(results: StudyResults) -> tuple[Metric, ...]:
    """The metrics that are defined in at least one round.

    AU PRC of the rarest class is among them, unless it is AU PRC itself: with two classes of which the last is rare.
    """
    classes, rare = results.summary.classes, rarest_class(results)
    has_own = rare is not None and not (len(classes) == 2 and rare == classes[-1])
    metrics = (*METRICS[:5], *([rare_class_metric(rare)] if rare and has_own else []), *METRICS[5:])
    return tuple(metric for metric in metrics if any(metric.of(row.metrics) is not None for row in results.rounds))


def share_words(share: Quartiles) -> str:
    """``35 % [28–40]`` or ``never [9.4 %–never]``: median and quartiles of fractions; ``never`` where infinite."""

    def percent(value: float) -> str:
        if math.isinf(value):
            return "never"
        # Early on, half a per cent is a batch.
        return f"{100 * value:.0f}" if value >= 0.0995 else f"{100 * value:.1f}"

    if math.isinf(share.q25):
        return "never"
    unit, low_unit = ("", " %") if math.isinf(share.median) else (" %", "")
    return f"{percent(share.median)}{unit} [{percent(share.q25)}{low_unit}–{percent(share.q75)}]"


def difference_words(difference: PairedDifference) -> str:
    """``+0.021 [+0.012 to +0.030]``: mean and 95 % interval, which fewer than six pairs do not have."""
    if difference.low is None or difference.high is None:
        return f"{difference.mean:+z.3f} (no interval below {PAIRS_FOR_AN_INTERVAL} seeds)"
    return f"{difference.mean:+z.3f} [{difference.low:+z.3f} to {difference.high:+z.3f}]"


def ratio_words(ratio: LabelsRatio) -> str:
    """``0.62 [0.50 to 0.80]``: median and 95 % interval, which fewer than six pairs do not have."""
    median, *ends = (
        "never" if math.isinf(v) else f"{v:.2f}" for v in (ratio.median, ratio.low, ratio.high) if v is not None
    )
    return f"{median} [{' to '.join(ends)}]" if ends else median


def quartile_words(values: Quartiles) -> str:
    """``0.812 [0.805–0.820]``."""
    return f"{values.median:.3f} [{values.q25:.3f}–{values.q75:.3f}]"


def label_words(labels: Quartiles) -> str:
    """``180 [140–240]``; ``never`` where they are infinite."""
    q25, median, q75 = ("never" if math.isinf(one) else f"{one:.0f}" for one in labels)
    return median if q25 == median == q75 else f"{median} [{q25}–{q75}]"


def p_words(difference: PairedDifference) -> str:
    """``0.012``; empty where all pairs are equal, or fewer than six."""
    return "" if difference.p is None else f"{difference.p:.2g}"


def seconds_words(values: Quartiles) -> str:
    """``2.5 s [1.75–3.25]``, in milliseconds below 0.1 s."""
    scale, unit = (1000, "ms") if values.median < 0.1 else (1, "s")
    return f"{scale * values.median:.3g} {unit} [{scale * values.q25:.3g}–{scale * values.q75:.3g}]"


def duration_words(seconds: float) -> str:
    """``5.04 s``, ``1 min 35 s`` or ``2 h 1 min``."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class Headline(NamedTuple):
    """Labels needed by one metric, as one sentence of the headline has it.

    Attributes:
        metric: title within a sentence.
        target: one of ``HEADLINE_TARGETS``; None where no group reached one in more than half of its runs.
        baselines: median over the seeds, by variant.
        rows: the best groups, then ``random``; those that reached the target first. Empty without a baseline.
        left_out: how many other groups there are.
        apart: whether the interquartile ranges of the first group and its ``random`` are disjoint; None without both.
    """

    metric: str
    target: str | None
    baselines: tuple[float, ...]
    rows: tuple[LabelsNeeded, ...]
    left_out: int
    apart: bool | None


def headline_target(primary: MetricStatistics) -> str | None:
    """The hardest target that any group reached in more than half of its runs."""
    return next((target for target in HEADLINE_TARGETS if target in primary.targets[True]), None)


def headline(one: MetricStatistics, target: str | None) -> Headline:
    """Select the groups for the headline; ``target`` is that of ``headline_target``."""
    rows = [row for row in one.needed if row.target == target]
    informed = sorted((row for row in rows if row.group.strategy != RANDOM), key=lambda row: row.share.median)
    reference = [row for row in rows if row.group.strategy == RANDOM]
    ordered = sorted([*informed[:NAMED], *reference], key=lambda row: math.isinf(row.labels.median))
    apart = None
    if ordered:
        best = ordered[0]
        other = next((row for row in reference if row.group.variant == best.group.variant), best)
        if other is not best and math.isfinite(best.share.median) and math.isfinite(other.share.q25):
            apart = best.share.q75 < other.share.q25
    title = one.metric.title
    values = [one.baseline(variant) for variant in dict.fromkeys(variant for variant, _ in one.baselines)]
    return Headline(
        metric=title if title[:2].isupper() else title[0].lower() + title[1:],
        target=target,
        baselines=tuple(value for value in values if value is not None),
        rows=tuple(ordered),
        left_out=max(0, len(informed) - NAMED),
        apart=apart,
    )


class Verdict(NamedTuple):
    """Whether choosing images beats random picks, by the group with the largest mean difference of the areas.

    Attributes:
        status: ``few_seeds`` for a claim; ``pays``, ``behind`` or ``open`` by the interval of the ratio where there is
            one, else of the difference.
        group: the best of ``compared`` groups, whose p is not corrected for that.
        difference: from ``random``.
        ratio: of the labels needed for ``target``, by ``random``'s; None where either reaches no target in most pairs.
        target: the hardest of ``HEADLINE_TARGETS`` that both reach.
    """

    status: Status
    group: Group
    difference: PairedDifference
    compared: int
    ratio: LabelsRatio | None = None
    target: str = ""


def labels_ratio_from_random(one: MetricStatistics, group: Group) -> tuple[str, LabelsRatio | None]:
    """Labels needed by ``random``'s, for the hardest of ``HEADLINE_TARGETS`` that both reach in most pairs."""
    reference = Group(RANDOM, group.variant)
    for target in HEADLINE_TARGETS if group != reference else ():
        found = labels_ratio(one.labels_of(group, target), one.labels_of(reference, target))
        if found and 0 < found.median < math.inf:
            return target, found
    return "", None


def verdict(primary: MetricStatistics) -> Verdict | None:
    """The verdict of a study; None where no group can be compared with ``random``."""
    if not primary.differences:
        return None
    # Rounded, so that of equal means the surer one is selected and not the one with the larger rounding error.
    group, best = max(primary.differences.items(), key=lambda named: (round(named[1].mean, 9), named[1].low or 0.0))
    target, ratio = labels_ratio_from_random(primary, group)
    better, worse = best.low is not None and best.low > 0, best.high is not None and best.high < 0
    if ratio is not None:
        better, worse = ratio.high is not None and ratio.high < 1, ratio.low is not None and ratio.low > 1
    status: Status = "pays" if better else "behind" if worse else "open"
    if best.pairs < SEEDS_FOR_A_CLAIM:
        status = "few_seeds"
    return Verdict(status, group, best, len(primary.differences), ratio, target)


class Chart(NamedTuple):
    """A drawing and its title."""

    title: str
    drawing: Markup


class ChartGroup(NamedTuple):
    """One quantity: a chart a variant, side by side on one scale, and a table of the same numbers.

    Attributes:
        columns: label counts.
        rows: group -> median and quartiles, as text.
    """

    id: str
    title: str
    note: str
    charts: tuple[Chart, ...]
    columns: tuple[int, ...]
    rows: Mapping[Group, tuple[str, ...]]


def chart_group(
    name: str,
    title: str,
    note: str,
    found: Mapping[Group, pd.DataFrame],
    styles: Styles,
    *,
    panels: Mapping[str, Sequence[Group]] | None = None,
    references: Mapping[str, float] | None = None,
    reference_name: str = "all labels",
    unit: str = "labels",
    axis: str = "",
    percent: bool = False,
) -> ChartGroup:
    """Charts of bands over the labels, and a table of them.

    ``found`` is of ``analysis.bands``; ``panels`` are titles with groups of one variant each, a chart a variant by
    default; ``references`` are heights of a horizontal line by variant, which ``reference_name`` labels; ``unit`` is
    what the curves count; ``axis`` labels the values (by default ``title`` does); ``percent`` says that they are
    fractions.
    """
    values = references or {}
    ends = [*values.values(), *(v for band in found.values() for v in band[["q25", "q75"]].to_numpy().ravel().tolist())]
    counts = [float(count) for band in found.values() for count in band.index]
    if panels is None:
        headings = {group: f"{title}, {group.variant}" if group.variant else title for group in found}
        panels = {heading: [one for one in found if headings[one] == heading] for heading in headings.values()}
    charts = []
    for place, (heading, groups) in enumerate(panels.items()):
        reference = values.get(groups[0].variant)
        label = "" if reference is None else f"{reference_name} {value_words(reference, percent=percent)}"
        drawing = line_chart(
            f"{name}-{place}",
            heading,
            _described({group.strategy: found[group]["median"] for group in groups}, unit, percent=percent),
            [
                _line(group, found[group], styles)
                # Random last: what all others are compared with must not be covered.
                for group in sorted(groups, key=lambda group: group.strategy == RANDOM)
            ],
            x_label=unit,
            y_label=axis or title,
            references={} if reference is None else {label: reference},
            x_range=(min(counts), max(counts)),
            y_range=(min(ends), max(ends)),
            percent=percent,
        )
        charts.append(Chart(heading, drawing))
    return ChartGroup(name, title, note, tuple(charts), *_numbers(found, percent=percent))


def _described(medians: Mapping[str, pd.Series], unit: str, *, percent: bool) -> str:
    ends = "; ".join(
        f"{strategy} from {value_words(median.iloc[0], percent=percent)} at {median.index[0]} {unit} "
        f"to {value_words(median.iloc[-1], percent=percent)} at {median.index[-1]}"
        for strategy, median in medians.items()
    )
    return f"Median over the seeds: {ends}."


def _numbers(
    found: Mapping[Group, pd.DataFrame], *, percent: bool
) -> tuple[tuple[int, ...], dict[Group, tuple[str, ...]]]:
    """Label counts that are spread over all, and the cells of every group at them."""

    def cell(values: Sequence[float]) -> str:
        q25, median, q75 = (value_words(v, percent=percent) for v in values)
        return "-" if math.isnan(values[0]) else f"{median} [{q25}–{q75}]"

    counts = sorted({int(count) for band in found.values() for count in band.index})
    places = np.linspace(0, len(counts) - 1, NUMBERS).round().astype(int) if counts else ()
    columns = tuple(counts[place] for place in np.unique(places))
    rows = {group: band[["q25", "median", "q75"]].reindex(columns).to_numpy() for group, band in found.items()}
    return columns, {group: tuple(map(cell, values)) for group, values in rows.items()}


def metric_charts(one: MetricStatistics, styles: Styles, *, pairs: bool = False, unit: str = "labels") -> ChartGroup:
    """Learning curves of a metric with the baselines, or ``pairs`` of each group and ``random``.

    Pairs are easier to read where many bands cover each other.
    """
    metric = one.metric
    values = {group.variant: one.baseline(group.variant) for group in one.groups}
    panels = {
        f"{group} against random": (group, reference)
        for group in one.bands
        if (reference := Group(RANDOM, group.variant)) in one.bands and group != reference
    }
    return chart_group(
        "pair" if pairs else metric.name,
        metric.title,
        metric.note,
        one.bands,
        styles,
        panels=panels if pairs else None,
        references={variant: value for variant, value in values.items() if value is not None},
        unit=unit,
        axis=metric.axis,
    )


def _interval_charts(statistics: Sequence[MetricStatistics], styles: Styles, unit: str) -> list[Chart]:
    """Labels needed for the first two targets, where reached; then differences from ``random``."""
    charts = []

    def add(name: str, title: str, x_label: str, rows: list[Interval], *, shares: bool) -> None:
        described = "; ".join(f"{row.name} {row.words}" for row in rows) + "."
        drawing = interval_chart(name, title, described, rows, x_label=x_label, percent=shares, from_zero=shares)
        charts.append(Chart(title, drawing))

    for one in statistics:
        for place, target in enumerate(list(TARGETS)[:2]):
            if target in one.targets[True]:
                rows = [
                    Interval(styles[row.group.strategy], str(row.group), *row.share, share_words(row.share))
                    for row in one.needed_for(target).values()
                ]
                title = f"{unit.capitalize()} needed for {target}: {one.metric.title}"
                words = f"{unit} needed, % of the training side: median and quartiles"
                add(f"needed-{one.metric.name}-{place}", title, words, rows, shares=True)
    for one in statistics:
        rows = []
        for group, ahead in one.differences.items():
            low, high = (ahead.mean if end is None else end for end in (ahead.low, ahead.high))
            words = difference_words(ahead)
            rows.append(Interval(styles[group.strategy], str(group), low, ahead.mean, high, words))
        if rows:
            known = "95 % interval" if any(row.low < row.high for row in rows) else "mean"
            title = f"Difference from random: {one.metric.title}"
            words = f"area under the curve minus random's, {known}"
            add(f"difference-{one.metric.name}", title, words, rows, shares=False)
    return charts


class Times(NamedTuple):
    """Cost of one group: seconds and epochs over all rounds and seeds, rounds and total over the seeds."""

    group: Group
    training: Quartiles
    acquisition: Quartiles
    epochs: float
    rounds: float
    whole: float


def times(results: StudyResults) -> list[Times]:
    """Cost of every group, in the order of the rows."""
    frame = pd.DataFrame(
        [(r.strategy, r.variant, r.seed, r.epochs, r.train_seconds, r.acquisition_seconds) for r in results.rounds],
        columns=["strategy", "variant", "seed", "epochs", "training", "acquisition"],
    )
    found = []
    for key, rows in frame.groupby(["strategy", "variant"], sort=False):
        training, acquisition = (quartiles(rows[name].to_numpy()) for name in ("training", "acquisition"))
        runs = (rows["training"] + rows["acquisition"]).groupby(rows["seed"])
        medians = rows["epochs"].median(), runs.size().median(), runs.sum().median()
        found.append(Times(Group(*key), training, acquisition, *medians))
    return found


def _styles(results: StudyResults) -> dict[str, int]:
    """Random is the neutral one; the others in the order of the study."""
    names = dict.fromkeys([*results.summary.strategies, *(row.strategy for row in results.rounds)])
    informed = [name for name in names if name != RANDOM]
    return {name: 0 if name == RANDOM else 1 + informed.index(name) for name in names}


def _balance(results: StudyResults, styles: Styles) -> list[ChartGroup]:
    """A group a class; of two classes the rare one only, as the other is its complement."""
    classes, rare = results.summary.classes, rarest_class(results)
    counts = results.summary.labels_per_class.get("train", {})
    total = sum(counts.values())
    groups = []
    for place, name in enumerate(classes if results.batches else ()):
        if len(classes) == 2 and rare is not None and name != rare:
            continue
        share = {row.variant: counts[name] / total for row in results.rounds} if total and name in counts else {}
        groups.append(
            chart_group(
                f"picked-{place}",
                f"Picks of class {name}",
                "Of all images picked so far, %.",
                bands(picked_share_curves(results, name)),
                styles,
                references=share,
                reference_name="training side",
                unit=results.summary.unit,
                axis="of the picks, %",
                percent=True,
            )
        )
    return groups


def _answers(results: StudyResults, styles: Styles) -> list[ChartGroup]:
    """The share of right labels, where readers answered."""
    if all(row.label_accuracy in {None, 1.0} for row in results.rounds):
        return []
    note = "Share of the labels of a round that are the true class: what the rule made of the readers' answers."
    curves = bands(learning_curves(results, lambda row: row.label_accuracy))
    title, unit = "Labels equal to the truth", results.summary.unit
    return [chart_group("right-labels", title, note, curves, styles, unit=unit, percent=True)]


def _uncertainty(results: StudyResults, styles: Styles) -> list[ChartGroup]:
    parts: tuple[tuple[Literal["epistemic", "aleatoric"], str], ...] = (
        ("epistemic", "Disagreement of the passes (BALD)."),
        ("aleatoric", "Mean entropy of the passes."),
    )
    return [
        chart_group(
            name,
            f"{name.title()} part of the picks",
            note,
            bands(picked_median_curves(results, name)),
            styles,
            unit=results.summary.unit,
            axis="nats",
        )
        for name, note in (parts if results.batches else ())
    ]
