"""Rounds as CSV, for a spreadsheet."""

import csv
import io
from collections.abc import Iterable, Sequence

from ml_backend.insight.lines import RoundLine
from ml_backend.insight.proof import ControlEstimate
from ml_backend.pool_outputs import PoolOutputs
from ml_backend.records import RoundReport

__all__ = ["ranking_csv", "rounds_csv"]

# A spreadsheet runs a cell that begins with one of these as a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def ranking_csv(report: RoundReport, outputs: PoolOutputs | None) -> str:
    """The whole order of a round: place, image, score, by chance or not, predicted class, and what was thought of each.

    Args:
        report: of the round.
        outputs: what its network said; its columns stay empty where there is none.
    """
    ranking = report.ranking
    classes = report.request.classes if outputs is None else outputs.classes
    row_of = {} if outputs is None else {name: row for row, name in enumerate(outputs.image_ids)}
    means = None if outputs is None else outputs.probs.mean(axis=1)
    control = set(ranking.control)

    def rows() -> Iterable[Sequence[object]]:
        for place, (name, score) in enumerate(zip(ranking.image_ids, ranking.scores, strict=True), start=1):
            row = row_of.get(name)
            known = means is not None and row is not None
            probs = [f"{p:.4f}" for p in means[row]] if means is not None and row is not None else [""] * len(classes)
            predicted = classes[int(means[row].argmax())] if known and means is not None else ""
            yield (
                place,
                name,
                f"{score:.6g}",
                "yes" if name in control else "no",
                ranking.suggestions.get(name, predicted),
                *probs,
            )

    head = ["place", "image", f"score_{ranking.strategy}", "by_chance", "predicted", *(f"p_{name}" for name in classes)]
    return _csv(head, rows())


def rounds_csv(lines: Sequence[RoundLine], control: ControlEstimate | None = None) -> str:
    """One row a round, oldest first.

    Args:
        lines: the rounds.
        control: what the images that came by chance say; its columns stay empty at rounds where they were too few.
    """
    by_chance = {} if control is None else {one.round_id: one for one in control.running}
    classes = list(dict.fromkeys(name for line in lines for name in line.classes))
    stages = list(dict.fromkeys(stage for line in lines for stage in line.seconds))
    head = [
        *("round", "started_at", "reason", "strategy", "labels", "images", "batch", "by_chance", "excluded"),
        *("trained_on", "validated_on", "epochs", "accuracy", "auroc", "validation_loss"),
        *("control_images", "control_accuracy", "control_low", "control_high"),
        *(f"labels_{name}" for name in classes),
        *(f"recall_{name}" for name in classes),
        *(f"seconds_{stage}" for stage in stages),
    ]

    def row(line: RoundLine) -> list[object]:
        fit, told = line.fit, by_chance.get(line.round_id)
        return [
            *(line.round_id, line.started_at, line.reason, line.strategy, line.labels, line.images),
            *(line.batch_size, line.control, line.excluded),
            *(
                ("", "", "", "", "", "")
                if fit is None
                else (
                    *(fit.train_images, fit.validation_images, fit.epochs, fit.validation_accuracy),
                    *(fit.validation_auroc, fit.validation_loss),
                )
            ),
            *(("", "", "", "") if told is None else (told.n, told.accuracy, told.low, told.high)),
            *(line.labels_per_class.get(name, "") for name in classes),
            *("" if fit is None else fit.validation_recall.get(name) for name in classes),
            *(line.seconds.get(stage, "") for stage in stages),
        ]

    return _csv(head, (row(line) for line in lines))


def _csv(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow([_harmless(cell) for cell in head])
    writer.writerows([_harmless(cell) for cell in row] for row in rows)
    return file.getvalue()


def _harmless(cell: object) -> object:
    """Text that no spreadsheet takes for a formula; numbers of ours stay numbers."""
    text = "" if cell is None else str(cell)
    if not text.startswith(_FORMULA):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text
