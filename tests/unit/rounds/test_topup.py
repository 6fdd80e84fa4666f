"""What is published of the last ranking before it runs out; on fakes."""

import threading
from collections.abc import Sequence

import pytest
from structlog.contextvars import bound_contextvars, get_contextvars

from ml_backend.acquisition import seeded_order
from ml_backend.errors import LabelStudioError, StaleRound
from ml_backend.rounds.interfaces import Publisher
from ml_backend.rounds.reuse import LockedPublisher, TopUp, beside, topped_up
from ml_backend.schemas import Exclusion, PublishedRanking, Ranking, RoundReport
from tests.fakes import NOON, FakeLabels, FakePublisher, make_annotation, make_image, make_report


def report_of(*image_ids: str, unreadable: Sequence[str] = ()) -> RoundReport:
    """A round that ranked these, with falling scores; a batch is 2."""
    scores = tuple(1.0 - 0.01 * place for place in range(len(image_ids)))
    return make_report().model_copy(
        update={
            "ranking": Ranking(strategy="fake", image_ids=image_ids, scores=scores, batch_size=2),
            "exclusions": tuple(Exclusion(image_id=name, reason="damaged") for name in unreadable),
        }
    )


def images(*numbers: int):
    return [make_image(number) for number in numbers]


class Archive:
    """One round, of which some images are served."""

    def __init__(self, report: RoundReport, served: Sequence[str]) -> None:
        self._report = report
        self._served = tuple(served)

    def published(self) -> PublishedRanking | None:
        if not self._served:
            return None
        return PublishedRanking(version="v", round_id="r000001", image_ids=self._served, seconds={}, published_at=NOON)

    def report(self, round_id: str) -> RoundReport:
        assert round_id == "r000001"
        return self._report


def top_up(labels: FakeLabels, archive: Archive, low: int, publisher: Publisher | None = None):
    publisher = publisher or FakePublisher()
    done = TopUp(labels, publisher, archive, low, lambda: None).run()
    return done, publisher


class TestToppedUp:
    def test_scored_images_in_their_order_then_new_ones_then_skipped_ones(self):
        """Of 5, 3, 1, 4 the 3 is labelled and the 5 skipped; 8 and 9 are new."""
        ranking = topped_up(report_of("5", "3", "1", "4"), [make_annotation(5, None)], images(1, 4, 5, 8, 9))

        new = [("8", "9")[index] for index in seeded_order(["8", "9"], 0)]
        assert ranking.image_ids == ("1", "4", *new, "5")
        assert ranking.scores == (0.98, 0.97, 0.97, 0.97, 1.0)

    def test_images_that_stand_by_chance_stay_known_as_such(self):
        """Of 5, 3 and 1 the 3 is labelled and the 5 skipped."""
        report = report_of("5", "3", "2", "1")
        mixed = report.model_copy(update={"ranking": report.ranking.model_copy(update={"control": ("5", "3", "1")})})

        ranking = topped_up(mixed, [make_annotation(5, None)], images(1, 2, 5))

        assert (ranking.image_ids, ranking.control) == (("2", "1", "5"), ("1", "5"))

    def test_what_the_round_could_not_read_is_not_new(self):
        ranking = topped_up(report_of("1", unreadable=["7"]), [], images(1, 7))

        assert ranking.image_ids == ("1",)

    @pytest.mark.parametrize("kind", ["same image", "no image", "unreadable answer"])
    def test_what_the_round_left_out_for_another_reason_is_new_once_it_waits(self, kind):
        """The task that stood for it was deleted, its data were mended, its answer was withdrawn."""
        left_out = Exclusion(image_id="7", reason="as its task was", kind=kind)
        report = report_of("1").model_copy(update={"exclusions": (left_out,)})

        assert topped_up(report, [], images(1, 7)).image_ids == ("1", "7")

    def test_new_images_keep_their_order_while_others_come_and_go(self):
        report = report_of("1")
        many = topped_up(report, [], images(1, *range(10, 30))).image_ids
        few = topped_up(report, [], images(1, *range(10, 20))).image_ids

        assert few == tuple(name for name in many if name in set(few))


class TestTopUp:
    def test_publishes_more_when_few_are_left(self):
        """Served were 1 to 4; 1, 2 and 3 are labelled, so that one is left and two are wanted."""
        labels = FakeLabels([make_annotation(n, "normal") for n in (1, 2, 3)], images(4, 5, 6))

        done, publisher = top_up(labels, Archive(report_of("1", "2", "3", "4", "5", "6"), ["1", "2", "3", "4"]), low=2)

        assert [report.ranking.image_ids for report in publisher.published] == [("4", "5", "6")]
        assert done[1].round_id == "r000001"
        assert done[0].ranking.image_ids == ("1", "2", "3", "4", "5", "6")  # the round is what it was

    def test_does_nothing_while_enough_are_left(self):
        done, publisher = top_up(FakeLabels(pool=images(3, 4, 5)), Archive(report_of("3", "4", "5"), ["3", "4"]), low=2)

        assert (done, publisher.published) == (None, [])

    def test_a_skipped_image_is_not_left(self):
        """Whoever skipped it is not shown it again."""
        labels = FakeLabels([make_annotation(3, None)], images(3, 4, 5))

        done, publisher = top_up(labels, Archive(report_of("3", "4", "5"), ["3", "4"]), low=2)

        assert done is not None
        assert publisher.published[0].ranking.image_ids == ("4", "5", "3")

    def test_does_nothing_where_everything_that_waits_is_served(self):
        done, publisher = top_up(FakeLabels(pool=images(5)), Archive(report_of("3", "4", "5"), ["3", "4", "5"]), low=9)

        assert (done, publisher.published) == (None, [])

    @pytest.mark.parametrize("held", [True, False])
    def test_publishes_what_label_studio_has_lost(self, held: bool):
        """Enough is left, if only Label Studio still held it."""
        labels, archive = FakeLabels(pool=images(3, 4, 5)), Archive(report_of("3", "4", "5"), ["3", "4"])
        publisher, asked = FakePublisher(), []

        def is_held(published: PublishedRanking) -> bool:
            asked.append(published.version)
            return held

        TopUp(labels, publisher, archive, 2, lambda: None, is_held=is_held).run()

        assert [report.ranking.image_ids for report in publisher.published] == ([] if held else [("3", "4", "5")])
        assert asked == ["v"]

    def test_publishes_nothing_lost_where_nothing_waits(self):
        """Readers who skipped an image are not served it again."""
        labels = FakeLabels([make_annotation(3, None)], images(3))
        publisher = FakePublisher()

        TopUp(labels, publisher, Archive(report_of("3"), ["3"]), 1, lambda: None, is_held=lambda _: False).run()

        assert publisher.published == []

    def test_does_nothing_before_the_first_round(self):
        done, publisher = top_up(FakeLabels(pool=images(1)), Archive(report_of("1"), []), low=9)

        assert (done, publisher.published) == (None, [])

    def test_an_outdated_run_publishes_nothing(self):
        def guard():
            raise StaleRound("a newer one")

        publisher = FakePublisher()
        with pytest.raises(StaleRound):
            TopUp(FakeLabels(pool=images(1, 2)), publisher, Archive(report_of("1", "2"), ["1"]), 2, guard).run()
        assert publisher.published == []


class TestCopies:
    """An image that is served, and by now is another task's: labelled there, or the lower of the two."""

    TOLD = (Exclusion(image_id="4", reason="task 4 holds the same image as task 1"),)

    def test_leave_the_order_although_enough_is_left(self):
        labels = FakeLabels([make_annotation(1, "normal")], images(3, 5), self.TOLD)

        done, publisher = top_up(labels, Archive(report_of("3", "4", "5"), ["3", "4", "5"]), low=2)

        assert done is not None
        assert [report.ranking.image_ids for report in publisher.published] == [("3", "5")]

    def test_that_are_not_served_are_no_reason_to_publish(self):
        labels = FakeLabels([make_annotation(1, "normal")], images(3, 5), self.TOLD)

        assert top_up(labels, Archive(report_of("3", "4", "5"), ["3", "5"]), low=2)[0] is None

    def test_nothing_is_published_where_nothing_else_waits(self):
        labels = FakeLabels([make_annotation(1, "normal")], [], self.TOLD)

        assert top_up(labels, Archive(report_of("1", "4"), ["1", "4"]), low=2)[0] is None


class TestBeside:
    def test_looks_again_after_a_refusal_and_ends_with_the_block(self):
        looked = threading.Semaphore(0)

        def look():
            looked.release()
            raise LabelStudioError("restarting")

        with beside(look, every_s=0.001):
            assert looked.acquire(timeout=30)
            assert looked.acquire(timeout=30)
        assert not [thread for thread in threading.enumerate() if thread.name == "top-up"]

    def test_what_it_logs_names_the_round_of_the_block(self):
        looked, told = threading.Event(), []

        def look():
            told.append(get_contextvars())
            looked.set()

        with bound_contextvars(project="2.1", round="r000001"), beside(look, every_s=0.001):
            assert looked.wait(30)
        assert told[0] == {"project": "2.1", "round": "r000001"}

    def test_does_not_look_at_once(self):
        """A round that is short, or has just published, needs none."""
        looks = []
        with beside(lambda: looks.append(1), every_s=60):
            pass

        assert looks == []


def test_of_two_threads_one_publishes_at_a_time():
    publisher, entered = LockedPublisher(FakePublisher()), threading.Event()
    done: list[str] = []

    def other():
        entered.set()
        publisher.publish(make_report(), lambda: done.append("published"))

    thread = threading.Thread(target=other)
    with publisher.turn():
        thread.start()
        assert entered.wait(30)
        publisher.publish(make_report(), lambda: done.append("mine"))
        assert done == ["mine"]
    thread.join(30)
    assert done == ["mine", "published"]
