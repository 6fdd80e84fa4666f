"""The view, the check of the served order, and where the time between a label and its new order went."""

import io
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from ml_backend.demo.readers import ServedImage, Submission
from ml_backend.demo.summary import (
    Delay,
    OrderCheck,
    RoundRow,
    Summary,
    View,
    check_order,
    measure_delay,
    summary_table,
)
from ml_backend.schemas import PublishedRanking, RoundReport
from tests.fakes import CLASSES, NOON, make_fit, make_report


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=90)


def written(out: Console) -> str:
    return cast("io.StringIO", out.file).getvalue()


class TestViewInALog:
    def test_a_step_is_a_line_at_its_beginning_and_one_at_its_end(self):
        out = console(terminal=False)
        with View(out) as view:
            for done in (0, 1, 2, 2):
                view.step("uploading", done, 2)

        begun, ended = written(out).splitlines()
        assert begun == "uploading ..."
        assert ended.startswith("uploading: done (0.")

    def test_after_clear_the_same_step_is_shown_again(self):
        out = console(terminal=False)
        with View(out) as view:
            view.step("training", 1, 1)
            view.clear()
            view.step("training", 0, 1)

        assert written(out).splitlines()[2:] == ["training ..."]

    def test_a_long_line_stays_one_line_and_brackets_stay_brackets(self):
        out = console(terminal=False)
        line = "label [bold] " + "x" * 200

        View(out).print(line)

        assert written(out) == f"{line}\n"


class TestViewOnATerminal:
    def test_shows_a_bar_with_its_count(self):
        out = console(terminal=True)
        with View(out) as view:
            view.step("training", 3, 9)
            view.print("a line that stays")

        assert all(text in written(out) for text in ("training", "3/9", "a line that stays"))

    def test_a_long_line_breaks_between_words(self):
        out = console(terminal=True)

        View(out).print("a word " * 20)

        first, second = (line.strip() for line in written(out).splitlines())
        assert (first, second) == ("a word " * 12 + "a word", "a word " * 6 + "a word")

    def test_on_a_narrow_terminal_the_figures_stay_on_their_line(self):
        out = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=80)
        view = View(out)
        view.step("Label Studio (its first start takes a minute or three)", 1, 100)

        out.print(view._bars)

        assert "1/100 0:00:00 -:--:--" in written(out)

    def test_a_step_that_begins_anew_is_no_longer_finished(self):
        view = View(console(terminal=True))
        view.step("labels until the next round", 20, 20)
        view.step("labels until the next round", 3, 20)

        (task,) = view._bars.tasks
        assert (task.completed, task.total, task.finished) == (3, 20, False)

    def test_clear_removes_the_bars(self):
        view = View(console(terminal=True))
        view.step("training", 3, 9)
        view.clear()

        assert view._bars.tasks == []


def serve(order: str, version: str = "v1", readers: str = "ab") -> list[ServedImage]:
    """One event a letter, the readers in turn."""
    return [ServedImage(readers[i % len(readers)], image, (version,)) for i, image in enumerate(order)]


def total(served: Sequence[ServedImage], rankings: dict[str, str]) -> tuple[int, int]:
    checks = check_order(served, rankings).values()
    return sum(one.in_order for one in checks), sum(one.served for one in checks)


class TestCheckOrder:
    def test_the_ranking_itself_is_in_order(self):
        assert check_order(serve("cab"), {"v1": "cabd"})["v1"] == OrderCheck(served=3, in_order=3)

    def test_a_swap_is_one_deviation(self):
        """Image b instead of a; then a is indeed the first that is left, and c after it."""
        check = check_order(serve("bac"), {"v1": "abc"})["v1"]

        assert (check.in_order, check.served) == (2, 3)
        assert check.deviations == ["a was served image b under v1, where image a was first"]

    @pytest.mark.parametrize(
        ("served", "rankings", "expected"),
        [
            # d, c and b each come before a; a itself is right at the end.
            (serve("dcba"), {"v1": "abcd"}, (1, 4)),
            # v2 puts a first again, but a reader has had it: c is its first image.
            ([*serve("ab"), *serve("cd", "v2")], {"v1": "abcd", "v2": "acbd"}, (4, 4)),
            # The order of v1 after v2 was published.
            ([*serve("ab"), *serve("cd", "v2")], {"v1": "abcd", "v2": "dc"}, (3, 4)),
            # Another image than the one on the screen.
            ([*serve("a"), ServedImage("a", "b", ("v1",), holding="a")], {"v1": "abc"}, (1, 2)),
            # The same image again after its annotation.
            (serve("aa", readers="a"), {"v1": "abc"}, (1, 2)),
            # A version that was never published.
            (serve("a", "backend title"), {"v1": "a"}, (0, 1)),
        ],
    )
    def test_hand_computed(self, served, rankings, expected):
        assert total(served, rankings) == expected

    def test_rankings_are_counted_apart(self):
        checks = check_order([*serve("ab"), *serve("d", "v2")], {"v1": "abcd", "v2": "cd", "v3": "d"})

        assert {v: (one.in_order, one.served) for v, one in checks.items()} == {
            "v1": (2, 2),
            "v2": (0, 1),
            "v3": (0, 0),
        }

    def test_the_image_on_the_screen_is_counted_apart(self):
        served = [*serve("a"), ServedImage("a", "a", ("v2",), holding="a"), *serve("c", "v2")]

        assert check_order(served, {"v1": "abc", "v2": "cb"})["v2"] == OrderCheck(served=1, in_order=1, held=1)

    def test_an_image_that_waits_for_another_reader_is_served_once_more_and_to_another(self):
        """``a`` is first, but its first reader is served what comes after it, and so is the one after the second."""
        served = [*serve("ab"), *serve("cad", "v2", readers="abc")]

        assert check_order(served, {"v1": "abcd", "v2": "acd"}, {"v2": "a"})["v2"] == OrderCheck(3, in_order=3)
        assert check_order([*served, *serve("a", "v2", "b")], {"v2": "acda"}, {"v2": "a"})["v2"].in_order == 3
        assert check_order(served, {"v1": "abcd", "v2": "acd"})["v2"].in_order == 2

    def test_an_image_that_is_opened_again_just_before_its_ranking_is_served_under_the_one_before(self):
        served = [*serve("ab"), *serve("a", readers="b"), *serve("d", "v2", "c")]
        checks = check_order(served, {"v1": "abcd", "v2": "acd"}, {"v2": "a"})

        assert [(one.in_order, one.served) for one in checks.values()] == [(2, 2), (1, 2)]
        assert checks["v2"].deviations == ["c was served image d under v2, where image c was first"]

    def test_beyond_the_ranking_nothing_is_in_order(self):
        check = check_order(serve("abx"), {"v1": "ab"})["v1"]

        assert (check.in_order, check.served) == (2, 3)
        assert "no image of that ranking was left" in check.deviations[0]

    @pytest.mark.parametrize(("image", "counted_under"), [("a", "v1"), ("c", "v2"), ("b", None)])
    def test_around_a_publish_either_order_counts(self, image, counted_under):
        checks = check_order([ServedImage("a", image, ("v1", "v2"))], {"v1": "abc", "v2": "cab"})

        assert [v for v, one in checks.items() if one.in_order] == ([counted_under] if counted_under else [])
        if counted_under is None:
            assert checks["v2"].deviations == ["a was served image b under v1 or v2, where image c was first"]

    def test_refuses_an_event_without_a_version(self):
        with pytest.raises(ValueError, match="under no version"):
            check_order([ServedImage("a", "x", ())], {})

    @settings(deadline=None)
    @given(st.permutations("abcdefgh"), st.permutations("abcdefgh"), st.integers(0, 8))
    def test_following_each_ranking_is_always_in_order(self, first, second, switch):
        """Serve the first until the switch, then what is left of the second."""
        start = first[:switch]
        rest = [image for image in second if image not in start]
        served = [*serve("".join(start)), *serve("".join(rest), "v2")]

        assert total(served, {"v1": "".join(first), "v2": "".join(second)}) == (8, 8)

    @settings(deadline=None)
    @given(st.permutations("abcdef"), st.permutations("abcdef"))
    def test_any_other_order_is_noticed(self, ranking, served):
        in_order, count = total(serve("".join(served)), {"v1": "".join(ranking)})

        assert (in_order == count) == (served == ranking)


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def label(sent_s: float) -> Submission:
    """One that Label Studio answers after half a second."""
    return Submission("ann", "1", "normal", at(sent_s), at(sent_s + 0.5))


def report(started_s: float, *, trained: bool = True) -> RoundReport:
    changes = {
        "labels_per_class": {"normal": 4, "moderate": 5, "severe": 3},
        "fit": make_fit() if trained else None,
        "seconds": {"labels": 1.0, "train": 4.0, "score": 2.0, "rank": 0.5, "publish": 9.0},
        "started_at": at(started_s),
    }
    return make_report("r000012").model_copy(update=changes)


PUBLISHED = PublishedRanking(
    version="v1",
    round_id="r000012",
    image_ids=("1",),
    seconds={"import": 0.25, "switch": 0.25, "delete": 8.0},
    published_at=NOON,
)


class TestMeasureDelay:
    @staticmethod
    def measure(
        sent_s: Sequence[float], claim_s: float, visible_s: float, *, started_s: float, previous_s: float | None = None
    ) -> Delay | None:
        return measure_delay(
            [label(one) for one in sent_s],
            retrain_after=2,
            previous_claim=None if previous_s is None else at(previous_s),
            claim=at(claim_s),
            report=report(started_s),
            published=PUBLISHED,
            visible_at=at(visible_s),
        )

    def test_hand_computed(self):
        """The second label after the claim at 1 s is sent at 3 s, taken at 5 s, begun at 7 s and seen at 16 s.

        The first one does not count: the round before had it.
        """
        found = self.measure([0, 2, 3, 4], 5, 16, started_s=7, previous_s=1)

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
        found = self.measure([1, 3], 3.2, 12, started_s=3.2)

        assert found is not None
        assert found.submit_s == pytest.approx(0.2)
        assert found.queue_s == 0.0

    @pytest.mark.parametrize("sent_s", [[], [2], [0, 9]])
    def test_a_round_that_no_label_started_has_none(self, sent_s):
        assert self.measure(sent_s, 5, 9, started_s=5) is None


def row(served: int, in_order: int, *, trained: bool = True) -> RoundRow:
    order = OrderCheck(served=served, in_order=in_order, held=2, deviations=["wrong"] * (served - in_order))
    return RoundRow.of(report(0, trained=trained), PUBLISHED, order, None)


class TestRoundRow:
    def test_of_a_trained_round(self):
        found = row(9, 8)

        assert (found.validation_accuracy, found.validation_auroc) == (0.5, None)
        assert (found.training_s, found.acquisition_s) == (4.0, 2.5)
        assert (found.served, found.in_order, found.held, found.deviations) == (9, 8, 2, ("wrong",))

    def test_without_a_network_there_is_no_accuracy(self):
        found = row(0, 0, trained=False)

        assert (found.validation_accuracy, found.training_s) == (None, None)


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
        out = Console(file=io.StringIO(), width=80)

        out.print(summary_table([row(32, 32, trained=False), row(21, 20)], CLASSES))

        text = written(out)
        assert max(map(len, text.splitlines())) <= 80
        for figure in ("12", "4/5/3", "0.50 (2)", "4.0 s", "2.5 s", "32/32 +2", "20/21 +2"):
            assert figure in text
        assert "…" not in text
