"""Charts of the owner pages, from the summaries of the rounds. Torch-free."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from markupsafe import Markup

from ml_backend.analytics.evaluation import WINDOW as CONTROL_WINDOW
from ml_backend.analytics.evaluation import ActiveAgainstRandom, CalibrationBin, HoldoutEstimate, wilson
from ml_backend.analytics.history import Confusion
from ml_backend.charts import Line, bar_chart, line_chart
from ml_backend.schemas import FitReport
from ml_backend.storage import RoundSummary

_NO_CONFUSIONS: Final[Mapping[str, Confusion]] = {}


def learning_lines(
    rounds: Sequence[RoundSummary], control: HoldoutEstimate | None = None, proof: ActiveAgainstRandom | None = None
) -> list[Line]:
    """Accuracy and AU ROC on the validation images, and accuracy on the holdout where it is large enough.

    Args:
        rounds: of the project, oldest first.
        control: accuracy on holdout images.
        proof: the comparison with random labels: a point of the curve that these would have.
    """
    fits = _fits(rounds)
    counts = [fit.validation_images for _, fit in fits]
    intervals = [wilson(round(fit.validation_accuracy * n), n) for (_, fit), n in zip(fits, counts, strict=True)]
    labels = {line.round_id: float(line.labels) for line in rounds}
    running = [one for one in (control.running if control else ()) if one.round_id in labels]
    lines = (
        Line(
            style=1,
            name="accuracy",
            x=[x for x, _ in fits],
            y=[fit.validation_accuracy for _, fit in fits],
            low=[low for low, _ in intervals],
            high=[high for _, high in intervals],
            n=counts,
            meaning=f"share of the {_span(counts)} validation images that are predicted correctly, with its 95 % "
            "interval",
        ),
        Line(
            style=2,
            name="AU ROC",
            x=[x for x, fit in fits if fit.validation_auroc is not None],
            y=[fit.validation_auroc for _, fit in fits if fit.validation_auroc is not None],
            meaning="how well the classes of the validation images are separated, from 0.50 (guessing) to 1",
            hundredths=True,
        ),
        Line(
            style=3,
            name="random images",
            x=[labels[one.round_id] for one in running],
            y=[one.accuracy for one in running],
            low=[one.low for one in running],
            high=[one.high for one in running],
            n=[one.n for one in running],
            meaning=f"accuracy on the last images drawn at random, at most {CONTROL_WINDOW}, with its 95 % interval",
        ),
    )
    return _restyled([*lines, *([] if proof is None else [_random_labels(proof)])])


def _random_labels(proof: ActiveAgainstRandom) -> Line:
    low, high = wilson(proof.random_correct, proof.images)
    return Line(
        style=4,
        name="random labels",
        x=[sum(proof.labels) / len(proof.labels)],
        y=[proof.random_correct / proof.images],
        low=[low],
        high=[high],
        n=[proof.images],
        meaning="accuracy on random images of networks trained on random labels, by ml-backend proof",
    )


def recall_lines(rounds: Sequence[RoundSummary], confusions: Mapping[str, Confusion] = _NO_CONFUSIONS) -> list[Line]:
    """Recall of every class on the validation images, with its interval where their number is known.

    Args:
        rounds: of the project, oldest first.
        confusions: of its last rounds.
    """
    trained = [one for one in rounds if one.fit is not None and one.trained]
    classes = dict.fromkeys(name for one in trained if one.fit is not None for name in one.fit.validation_recall)
    return _restyled(_recall_line(name, trained, confusions) for name in classes)


def _recall_line(name: str, trained: Sequence[RoundSummary], confusions: Mapping[str, Confusion]) -> Line:
    x: list[float] = []
    y: list[float] = []
    counts: list[tuple[int, int]] = []  # correct and all, of the last rounds that have them without a gap
    for one in trained:
        row = confusions.get(one.round_id, {}).get(name, {})
        recall = None if one.fit is None else one.fit.validation_recall.get(name)
        if n := sum(row.values()):
            counts.append((row[name], n))
            recall = row[name] / n
        elif recall is not None:
            counts.clear()
        if recall is not None:
            x.append(float(one.labels))
            y.append(recall)
    intervals = [wilson(correct, n) for correct, n in counts]
    low, high, of = [low for low, _ in intervals], [high for _, high in intervals], [n for _, n in counts]
    return Line(style=1, name=name, x=x, y=y, low=low, high=high, n=of)


def _span(counts: Sequence[int]) -> str:
    """Least and most of them, as a reader's range."""
    if not counts:
        return "0"
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _fits(rounds: Sequence[RoundSummary]) -> list[tuple[float, FitReport]]:
    """Number of labels and metrics of every trained round."""
    return [(float(line.labels), line.fit) for line in rounds if line.fit is not None and line.trained]


def _restyled(lines: Iterable[Line]) -> list[Line]:
    """Lines that have a value, with the styles 1, 2, 3..."""
    return [replace(line, style=style) for style, line in enumerate((one for one in lines if one.x), start=1)]


def shares_chart(name: str, title: str, lines: Sequence[Line]) -> Markup:
    """Shares over the number of labels; the accessible description has their last values.

    Args:
        name: unique on the page.
        title: of the chart.
        lines: at least one.
    """
    last = []
    for line in lines:
        band = f" (95 % interval {100 * line.low[-1]:.0f} to {100 * line.high[-1]:.0f} %)" if line.low else ""
        of = f" of {line.n[-1]} images" if line.n else ""
        value = f"{line.y[-1]:.2f}" if line.hundredths else f"{100 * line.y[-1]:.0f} %"
        last.append(f"{line.name} {value}{of} at {line.x[-1]:.0f} labels{band}")
    xs = [x for line in lines for x in line.x]
    return line_chart(
        name,
        title,
        f"Last values: {'; '.join(last)}.",
        lines,
        x_label="labels",
        y_label="%, AU ROC × 100" if any(line.hundredths for line in lines) else "%",
        x_range=(min(xs), max(xs)),
        y_range=(0.0, 1.0),
        percent=True,
        dots=True,
        width=420,
        names_width=122,  # for the larger type of a phone
    )


def calibration_chart(bins: Sequence[CalibrationBin]) -> Markup:
    """Two bars a bin of similar confidence: the share predicted correctly, and the mean confidence."""
    rows = {
        f"{one.correct} of {one.n} right": {"of-labels": one.correct / one.n, "of-pool": one.confidence} for one in bins
    }
    words = "; ".join(f"{100 * one.confidence:.0f} % sure, {one.correct} of {one.n} right" for one in bins)
    return bar_chart("calibration", "Confidence and accuracy", words, rows)


def balance_chart(labels: Mapping[str, int], expected: Mapping[str, float]) -> Markup:
    """Two bars a class: its share of the labels, and its estimated share of the unlabelled images."""
    total = sum(labels.values())
    rows = {
        name: {"of-labels": labels.get(name, 0) / total if total else 0.0, "of-pool": expected.get(name, 0.0)}
        for name in dict.fromkeys((*labels, *expected))
    }
    words = "; ".join(
        f"{name}: {100 * bars['of-labels']:.0f} % of the labels, {100 * bars['of-pool']:.0f} % of the pool"
        for name, bars in rows.items()
    )
    return bar_chart("balance", "Class balance", words, rows)
