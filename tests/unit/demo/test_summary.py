"""The table of the rounds, and where the time between a label and its new order went."""

import io
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from ml_backend.demo.order_check import Deviation, Fidelity, Served
from ml_backend.demo.readers import Submission
from ml_backend.demo.summary import RoundRow, Summary, delay, round_row, summary_table
from ml_backend.schemas import FitReport, ProjectKey, PublishedRanking, Ranking, RoundReport, RoundRequest

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
CLASSES = ("normal", "moderate", "severe")


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def label(sent_s: float) -> Submission:
    """One that Label Studio answers after half a second."""
    return Submission("ann", "1", "normal", at(sent_s), at(sent_s + 0.5))


def report(started_s: float, *, trained: bool = True) -> RoundReport:
    request = RoundRequest(
        project=ProjectKey(id=1, created=0),
        round_id="r000012",
        reason="labels",
        classes=CLASSES,
        strategy="entropy",
        batch_size=1,
        min_labels_per_class=2,
        validation_share=0.2,
        seed=0,
    )
    fit = FitReport(
        epochs=5,
        best_epoch=3,
        class_weights={},
        train_images=8,
        validation_images=2,
        validation_loss=0.5,
        validation_accuracy=0.75,
        validation_auroc=None,
    )
    return RoundReport(
        request=request,
        labels_per_class={"normal": 4, "moderate": 5, "severe": 3},
        fit=fit if trained else None,
        ranking=Ranking(strategy="entropy", image_ids=("1",), scores=(1.0,), batch_size=1),
        seconds={"labels": 1.0, "train": 4.0, "score": 2.0, "rank": 0.5, "publish": 9.0},
        started_at=at(started_s),
    )


PUBLISHED = PublishedRanking(
    version="v1",
    round_id="r000012",
    image_ids=("1",),
    seconds={"import": 0.25, "switch": 0.25, "delete": 8.0},
    published_at=NOON,
)


class TestDelay:
    def test_hand_computed(self):
        """The second label after the claim at 1 s is sent at 3 s, taken at 5 s, begun at 7 s and seen at 16 s.

        The first one does not count: the round before had it.
        """
        found = delay(
            [label(0), label(2), label(3), label(4)],
            retrain_after=2,
            previous_claim=at(1),
            claim=at(5),
            report=report(7),
            published=PUBLISHED,
            visible_at=at(16),
        )

        assert found is not None
        assert (found.total_s, found.submit_s, found.queue_s, found.start_s) == (13.0, 0.5, 1.5, 2.0)
        assert found.stages_s == {
            "labels": 1.0,
            "train": 4.0,
            "score": 2.0,
            "rank": 0.5,
            "publish: import": 0.25,
            "publish: switch": 0.25,
        }
        assert found.other_s == pytest.approx(13.0 - 0.5 - 1.5 - 2.0 - 8.0)

    def test_a_worker_that_is_faster_than_the_answer(self):
        """Label Studio calls the webhook before it answers the reader."""
        found = delay(
            [label(3)],
            retrain_after=1,
            previous_claim=None,
            claim=at(3.2),
            report=report(3.2),
            published=PUBLISHED,
            visible_at=at(12),
        )

        assert found is not None
        assert found.submit_s == pytest.approx(0.2)
        assert found.queue_s == 0.0

    @pytest.mark.parametrize("labels", [[], [label(2)], [label(0), label(9)]])
    def test_a_round_that_no_label_started_has_none(self, labels):
        found = delay(
            labels,
            retrain_after=2,
            previous_claim=None,
            claim=at(5),
            report=report(5),
            published=PUBLISHED,
            visible_at=at(9),
        )

        assert found is None


class TestRoundRow:
    def test_takes_over_what_the_round_says(self):
        wrong = Deviation(Served("ann", "3", ("v1",)), "4")

        row = round_row(report(0), PUBLISHED, Fidelity(served=9, in_order=8, held=1, deviations=[wrong]), None)

        assert (row.validation_accuracy, row.validation_auroc) == (0.75, None)
        assert (row.training_s, row.acquisition_s) == (4.0, 2.5)
        assert (row.served, row.in_order, row.held) == (9, 8, 1)
        assert row.deviations == (str(wrong),)

    def test_without_a_network_there_is_no_accuracy(self):
        row = round_row(report(0, trained=False), PUBLISHED, Fidelity(), None)

        assert (row.validation_accuracy, row.training_s) == (None, None)


def row(served: int, in_order: int, *, trained: bool = True) -> RoundRow:
    return round_row(report(0, trained=trained), PUBLISHED, Fidelity(served=served, in_order=in_order, held=2), None)


def summary(*rows: RoundRow) -> Summary:
    return Summary(
        address="http://127.0.0.1:1",
        project=1,
        images=9,
        readers=2,
        weights="none",
        strategy="entropy",
        seed=0,
        seconds={},
        rounds=rows,
    )


class TestSummary:
    @pytest.mark.parametrize(
        ("rows", "exact"),
        [
            ([row(5, 5), row(3, 3)], True),
            ([row(5, 5), row(0, 0)], True),
            ([row(5, 5), row(3, 2)], False),
            ([row(0, 0)], False),
            ([], False),
        ],
    )
    def test_is_exact_when_something_was_served_and_all_of_it_in_order(self, rows, exact):
        assert summary(*rows).exact is exact

    def test_json_and_back(self):
        assert Summary.model_validate_json(summary(row(5, 4)).model_dump_json()) == summary(row(5, 4))


class TestSummaryTable:
    def test_fits_a_narrow_terminal_and_shows_every_figure(self):
        out = io.StringIO()

        Console(file=out, width=80).print(summary_table([row(32, 32, trained=False), row(21, 20)], CLASSES))

        text = out.getvalue()
        assert max(map(len, text.splitlines())) <= 80
        for figure in ("12", "4/5/3", "0.75", "4.0 s", "2.5 s", "32/32 +2", "20/21 +2"):
            assert figure in text
        assert "…" not in text
