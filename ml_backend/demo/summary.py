"""What every round of the demo did: one row each, as a table and as JSON."""

from collections.abc import Sequence
from datetime import datetime

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ml_backend.demo.order_check import Fidelity
from ml_backend.demo.readers import Submission
from ml_backend.schemas import FrozenModel, PublishedRanking, RoundReport


class Delay(FrozenModel):
    """Seconds from the label that started a round until Label Studio served by its ranking."""

    total_s: float
    submit_s: float  # until Label Studio had answered the reader, the webhook to the backend included
    queue_s: float  # until the worker took the round: it may have to end another one first
    start_s: float  # until the round began: a new process imports what it needs
    stages_s: dict[str, float]  # the round's stages, then the steps of its publishing that readers wait for
    other_s: float  # what no stage accounts for, the time until the demo looked included


class RoundRow(FrozenModel):
    """One published round. ``None`` where nothing was trained: the start set was growing, or it only ranked anew."""

    round_id: str
    version: str
    strategy: str
    labels_per_class: dict[str, int]
    validation_accuracy: float | None
    validation_auroc: float | None
    training_s: float | None
    acquisition_s: float
    served: int
    in_order: int
    held: int
    deviations: tuple[str, ...]
    delay: Delay | None  # None for the round that began with the connection, not with a label


class Summary(FrozenModel):
    """The demo's result."""

    address: str
    project: int
    images: int
    readers: int
    weights: str
    strategy: str
    seed: int
    seconds: dict[str, float]  # stage of the demo -> wall time
    rounds: tuple[RoundRow, ...]

    @property
    def exact(self) -> bool:
        """Whether every served image was the one that the ranking in force put first."""
        return all(row.in_order == row.served for row in self.rounds) and any(row.served for row in self.rounds)


def round_row(report: RoundReport, published: PublishedRanking, fidelity: Fidelity, waited: Delay | None) -> RoundRow:
    """One row from what the round saved, what was published and what was served."""
    fit = report.fit
    return RoundRow(
        round_id=report.request.round_id,
        version=published.version,
        strategy=report.ranking.strategy,
        labels_per_class=report.labels_per_class,
        validation_accuracy=fit.validation_accuracy if fit else None,
        validation_auroc=fit.validation_auroc if fit else None,
        training_s=report.seconds.get("train") if fit else None,
        acquisition_s=report.seconds.get("score", 0.0) + report.seconds.get("rank", 0.0),
        served=fidelity.served,
        in_order=fidelity.in_order,
        held=fidelity.held,
        deviations=tuple(str(deviation) for deviation in fidelity.deviations),
        delay=waited,
    )


def delay(
    submissions: Sequence[Submission],
    *,
    retrain_after: int,
    previous_claim: datetime | None,
    claim: datetime,
    report: RoundReport,
    published: PublishedRanking,
    visible_at: datetime,
) -> Delay | None:
    """How long readers waited for a round.

    Args:
        submissions: all labels, oldest first.
        retrain_after: labels that start a round: the last of so many since the previous claim did.
        previous_claim: when the worker took the round before; None for the first.
        claim: when the worker took this one.
        report: of this round.
        published: of this round.
        visible_at: when Label Studio was first seen to serve by its ranking.

    Returns:
        None where the round began without enough labels: because the project was connected, say.
    """
    since = [s for s in submissions if previous_claim is None or s.answered_at > previous_claim]
    if len(since) < retrain_after or since[retrain_after - 1].sent_at > claim:
        return None
    trigger = since[retrain_after - 1]
    # Label Studio answers the reader after the webhook: a free worker may have been faster.
    answered_at = min(trigger.answered_at, claim)
    submit_s = (answered_at - trigger.sent_at).total_seconds()
    queue_s = (claim - answered_at).total_seconds()
    start_s = (report.started_at - claim).total_seconds()
    total_s = (visible_at - trigger.sent_at).total_seconds()
    # Expired versions are deleted after readers see the new order.
    steps = {f"publish: {name}": s for name, s in published.seconds.items() if name != "delete"}
    stages_s = {name: s for name, s in report.seconds.items() if name != "publish"} | steps
    return Delay(
        total_s=total_s,
        submit_s=submit_s,
        queue_s=queue_s,
        start_s=start_s,
        stages_s=stages_s,
        other_s=total_s - submit_s - queue_s - start_s - sum(stages_s.values()),
    )


def summary_table(rows: Sequence[RoundRow], classes: Sequence[str]) -> Table:
    """The rounds as a table that fits into 80 columns."""
    table = Table(
        title="What the rounds did",
        caption="–: nothing was trained: random order, until every class has the labels that a\n"
        "network needs, or ranked anew by an earlier network\n"
        "+n: images that readers had on the screen when the ranking came",
        box=SIMPLE_HEAD,
    )
    labels = "labels\n" + "/\n".join(classes)
    for heading in (
        "round",
        labels,
        "valid.\naccuracy",
        "valid.\nAU ROC",
        "training",
        "acquisition",
        "served in\nthe order",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.round_id.lstrip("r0"),
            "/".join(str(row.labels_per_class[name]) for name in classes),
            _share(row.validation_accuracy),
            _share(row.validation_auroc),
            _seconds(row.training_s),
            _seconds(row.acquisition_s if row.training_s is not None else None),
            f"{row.in_order}/{row.served}" + (f" +{row.held}" if row.held else ""),
            style=None if row.in_order == row.served else "red",
        )
    return table


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} s"
