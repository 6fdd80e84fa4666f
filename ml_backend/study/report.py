"""The report of a study: one page that answers whether active learning pays on these images, and how sure that is."""

import os
from pathlib import Path
from typing import Final

from ml_backend.simulation.compare import TARGETS
from ml_backend.study.page import render_page
from ml_backend.study.plots import swatch
from ml_backend.study.report_answers import RANDOM, MetricAnswer, answer
from ml_backend.study.report_cautions import cautions
from ml_backend.study.report_curves import curves_of, finished_runs, metrics_of, picked_shares, picked_values, rarest
from ml_backend.study.report_figures import (
    Figure,
    Group,
    Styles,
    against_random,
    differences,
    group,
    metric_group,
    needed,
)
from ml_backend.study.report_tables import DEFINITIONS, compared, facts, listings, run_facts, times, wins
from ml_backend.study.report_words import headline
from ml_backend.study.rows import StudyResults

__all__ = ["report_page", "write_report"]

SPOKEN_OF: Final = ("accuracy", "balanced_accuracy")  # in the headline; the first is what warnings go by


def write_report(results: StudyResults, path: Path) -> None:
    """Write the report of a study, whole or not at all: a reader's browser never sees half a page.

    Args:
        results: a finished study, or what there is of one.
        path: of the HTML file; its folder must exist.

    Raises:
        ValueError: no round yet, see ``report_page``.
        OSError: the file cannot be written.
    """
    page = report_page(results)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # errors: a file name that is no UTF-8 must not cost the report.
        beside.write_text(page, encoding="utf-8", errors="replace")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def report_page(results: StudyResults) -> str:
    """The report as HTML: self-contained, without a script.

    Raises:
        ValueError: there is no round to report on yet.
    """
    if not results.rounds:
        raise ValueError("a report needs at least one finished round, got none: let the study run for longer")
    kept, torn = finished_runs(results)
    answers = [answer(metric, kept) for metric in metrics_of(kept)]
    compared_by = [one for one in answers if one.metric.higher_is_better]
    spoken_of = [one for name in SPOKEN_OF for one in answers if one.metric.name == name]
    primary = spoken_of[0]
    styles = _styles(results)
    return render_page(
        {
            "summary": results.summary,
            "several": len({row.variant for row in kept.rounds}) > 1,
            "styles": list(styles.values()),
            "legend": [{"name": name, "style": style, "swatch": swatch(style)} for name, style in styles.items()],
            "headline": headline(spoken_of),
            "primary": primary.metric.title,
            "facts": facts(kept),
            "pairs": against_random(primary, styles),
            "metrics": [metric_group(one, styles) for one in answers],
            "forests": _forests(spoken_of, styles),
            "comparisons": [(compared(one), wins(one)) for one in compared_by],
            "balance": _balance(kept, styles),
            "uncertainty": _uncertainty(kept, styles),
            "times": times(kept.rounds),
            "seconds": _seconds_by_strategy(kept, styles),
            "cautions": cautions(kept, primary, torn),
            "run": run_facts(results.summary),
            "listings": listings(results.summary),
            "definitions": DEFINITIONS,
        }
    )


def _styles(results: StudyResults) -> Styles:
    """Random is the neutral one; the others in the order of the study."""
    names = dict.fromkeys([*results.summary.strategies, *(row.strategy for row in results.rounds)])
    informed = [name for name in names if name != RANDOM]
    return {name: 0 if name == RANDOM else 1 + informed.index(name) for name in names}


def _forests(answers: list[MetricAnswer], styles: Styles) -> list[Figure]:
    drawn = [figure for one in answers for target in list(TARGETS)[:2] if (figure := needed(one, target, styles))]
    return [*drawn, *(figure for one in answers if (figure := differences(one, styles)))]


def _balance(results: StudyResults, styles: Styles) -> list[Group]:
    """A group a class; of two classes the rare one, as the other says the same again."""
    classes = results.summary.classes
    if not results.batches:
        return []
    rare = rarest(results)
    counts = results.summary.labels_per_class.get("train", {})
    total = sum(counts.values())
    variants = {row.variant for row in results.rounds}
    groups = []
    for place, name in enumerate(classes):
        if len(classes) == 2 and rare is not None and name != rare:
            continue
        share = counts[name] / total if total and name in counts else None
        groups.append(
            group(
                f"picked-{place}",
                f"Picks of class {name}",
                "Of all images picked so far, %.",
                picked_shares(results, name),
                styles,
                references={} if share is None else dict.fromkeys(variants, share),
                reference_name="training side",
                axis="of the picks, %",
                percent=True,
            )
        )
    return groups


def _uncertainty(results: StudyResults, styles: Styles) -> list[Group]:
    if not results.batches:
        return []
    epistemic = picked_values(results, lambda pick: pick.epistemic)
    aleatoric = picked_values(results, lambda pick: pick.aleatoric)
    return [
        group(
            "epistemic",
            "Epistemic part of the picks",
            "The passes' disagreement (BALD).",
            epistemic,
            styles,
            axis="nats",
        ),
        group("aleatoric", "Aleatoric part of the picks", "The passes' mean entropy.", aleatoric, styles, axis="nats"),
    ]


def _seconds_by_strategy(results: StudyResults, styles: Styles) -> list[Group]:
    training = curves_of(results, lambda row: row.train_seconds)
    acquisition = curves_of(results, lambda row: row.acquisition_seconds)
    return [
        group(
            "training",
            "Training of a round",
            "Seconds, on the work only.",
            training,
            styles,
            axis="seconds",
            spread=True,
        ),
        group(
            "acquisition",
            "Acquisition of a batch",
            "Seconds: passes and ranking.",
            acquisition,
            styles,
            axis="seconds",
            spread=True,
        ),
    ]
