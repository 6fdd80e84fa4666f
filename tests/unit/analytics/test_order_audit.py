"""Whether readers got the published order, by hand and in rooms of readers with its locks; and its state."""

import random
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_backend.analytics.history import Answer
from ml_backend.analytics.order_audit import OrderFidelity, order_fidelity, order_state
from ml_backend.config import ProjectOptions
from ml_backend.predictions import PoolPredictions
from ml_backend.schemas import PublishedRanking, RoundReport
from ml_backend.storage import ProjectStore
from tests.fakes import CLASSES, NOON, make_fit, make_report, make_request


def at(minute: float) -> datetime:
    return NOON + timedelta(minutes=minute)


def order(ids: str, minute: float = 0, version: str = "v1") -> PublishedRanking:
    return PublishedRanking(
        version=version, round_id="r000001", image_ids=tuple(ids), seconds={}, published_at=at(minute)
    )


def answer(
    image_id: str, minute: float, rater: str = "ann", lead: float | None = 0.5, *, skipped: bool = False
) -> Answer:
    """``lead`` in minutes."""
    return Answer(
        image_id=image_id,
        rater=rater,
        created_at=at(minute),
        lead_time_s=None if lead is None else 60 * lead,
        skipped=skipped,
        value=None if skipped else "severe",
    )


def kinds(fidelity: OrderFidelity) -> list[tuple[str, str]]:
    return [(one.image_id, one.kind) for one in fidelity.exceptions]


class TestOneReader:
    def test_down_the_list_is_in_order(self):
        fidelity = order_fidelity([order("abc")], [answer("a", 1), answer("b", 2), answer("c", 3)])

        assert (fidelity.answered, fidelity.in_order, fidelity.assumed_held) == (3, 3, 0)
        assert fidelity.sentence == "3 of 3 answers came in the chosen order."

    def test_the_last_first_was_opened_by_hand_and_says_what_waited(self):
        fidelity = order_fidelity([order("abcd")], [answer("d", 1), answer("a", 2), answer("b", 3), answer("c", 4)])

        [one] = fidelity.exceptions
        assert (one.image_id, one.rater, one.kind, one.at) == ("d", "ann", "by hand", at(0.5))
        assert one.why.startswith("image a and 2 more were ahead of it")
        assert fidelity.in_order == 3
        assert fidelity.sentence.endswith('The other: 1 opened by hand or labelled "As Displayed".')

    def test_one_that_was_passed_over_is_not_forgotten_behind_those_that_are_over(self):
        """Image b waits behind a, which is answered, and before c, which the reader opened by hand."""
        fidelity = order_fidelity([order("abcd")], [answer("a", 1), answer("c", 2), answer("b", 3), answer("d", 4)])

        [one] = fidelity.exceptions
        assert (one.image_id, one.kind) == ("c", "by hand")
        assert one.why.startswith("image b was ahead of it")

    def test_an_image_that_no_order_holds(self):
        assert kinds(order_fidelity([order("ab")], [answer("x", 1)])) == [("x", "not in order")]

    def test_before_any_order(self):
        fidelity = order_fidelity([order("ab", 10)], [answer("a", 1), answer("b", 11)])

        assert kinds(fidelity) == [("a", "before any order")]
        assert fidelity.in_order == 1

    def test_a_further_answer_is_named(self):
        fidelity = order_fidelity([order("ab")], [answer("a", 1), answer("a", 2, "ben"), answer("b", 3)])

        assert kinds(fidelity) == [("a", "again")]

    def test_nobody_has_answered(self):
        assert order_fidelity([order("ab")], []).sentence == "No reader has answered yet."

    @pytest.mark.parametrize("lead", [None, 60.0 * 24 * 30])
    def test_a_time_that_is_missing_or_absurd_changes_nothing(self, lead):
        fidelity = order_fidelity([order("abc")], [answer(i, n, lead=lead) for n, i in enumerate("abc", 1)])

        assert (fidelity.in_order, fidelity.exceptions) == (3, ())


class TestANewOrder:
    def test_what_was_served_before_the_switch_is_in_order(self):
        """Served at minute 1 under the old order, answered at minute 3; the new one came at minute 2."""
        answers = [answer("a", 1), answer("b", 3, lead=2), answer("d", 4)]

        fidelity = order_fidelity([order("abcd"), order("dcb", 2, "v2")], answers)

        assert (fidelity.in_order, fidelity.exceptions) == (3, ())

    def test_a_page_that_was_loaded_again_explains_what_is_held(self):
        """The clock of the page began anew at minute 2.5, after the switch."""
        answers = [answer("a", 1), answer("b", 3, lead=0.5), answer("d", 4)]

        fidelity = order_fidelity([order("abcd"), order("dcb", 2, "v2")], answers)

        assert kinds(fidelity) == [("b", "held")]

    def test_a_reader_who_goes_on_along_the_old_order_is_found(self):
        """Nothing of the old order can have been held twice: c was served after b's answer."""
        answers = [answer("a", 1), answer("b", 3, lead=2), answer("c", 4), answer("e", 5)]

        fidelity = order_fidelity([order("abcde"), order("edcb", 2, "v2")], answers)

        assert kinds(fidelity) == [("c", "by hand")]

    def test_what_was_taken_after_the_switch_does_not_make_room_in_the_old_order(self):
        """Ann took b at minute 2.5. In the old order, until 2, a waited before it; ben took it at 2.2."""
        answers = [answer("x", 2.15, "ben", lead=0.1), answer("a", 2.3, "ben", lead=0.1), answer("b", 3)]

        fidelity = order_fidelity([order("ab"), order("xadefgb", 2, "v2")], answers)

        assert kinds(fidelity) == [("b", "by hand")]

    def test_an_order_to_come_explains_nothing(self):
        """Image d was taken before c and b; that the next order has it first is no reason yet."""
        answers = [answer("a", 1), answer("d", 2), answer("b", 3), answer("c", 4)]

        fidelity = order_fidelity([order("abcd"), order("dcb", 9, "v2")], answers)

        assert kinds(fidelity) == [("d", "by hand")]

    def test_around_the_switch_either_order_is_right(self):
        answers = [answer("a", 1), answer("b", 2.5, lead=0.45)]

        assert order_fidelity([order("abcd"), order("dcb", 2, "v2")], answers).in_order == 2

    def test_the_orders_may_come_in_any_order(self):
        orders = [order("dcb", 2, "v2"), order("abcd")]

        assert order_fidelity(orders, [answer("d", 3), answer("a", 1)]).in_order == 2


class TestSeveralReaders:
    def test_what_another_reader_has_on_the_screen_is_passed_over(self):
        """Ben holds a from minute 0 to 9; ann goes on with b and c."""
        answers = [answer("b", 1), answer("c", 2), answer("a", 9, "ben", lead=9)]

        assert order_fidelity([order("abc")], answers).in_order == 3

    def test_also_where_ben_has_loaded_his_page_again(self):
        answers = [answer("b", 1), answer("c", 2), answer("a", 9, "ben", lead=0.2)]

        fidelity = order_fidelity([order("abc")], answers)

        assert (fidelity.in_order, fidelity.assumed_held) == (3, 0)

    def test_but_not_where_ben_answered_another_image_in_between(self):
        """Then it waited, at minute 1, for whoever came next."""
        answers = [answer("c", 1), answer("a", 2, "ben", lead=0.5), answer("b", 3, "ben", lead=0.5)]

        assert kinds(order_fidelity([order("abc")], answers)) == [("c", "by hand")]

    def test_an_image_without_an_answer_is_probably_held_and_that_is_said(self):
        fidelity = order_fidelity([order("abc")], [answer("b", 1), answer("c", 2)])

        assert (fidelity.in_order, fidelity.assumed_held) == (2, 2)
        assert "Ahead of 2 of them was an image without an answer" in fidelity.sentence

    def test_nobody_holds_two(self):
        """Ann is the only one known, and one unknown reader is allowed for."""
        assert kinds(order_fidelity([order("abc")], [answer("c", 1)])) == [("c", "by hand")]

    def test_a_reader_who_goes_on_answering_holds_nothing_meanwhile(self):
        """Nobody ever answers b and c. When ann takes d only one unknown can hold one of them: ben still answers e."""
        answers = [answer("a", 1, "ben"), answer("d", 2), answer("e", 4, "ben")]

        fidelity = order_fidelity([order("abcde")], answers)

        assert kinds(fidelity) == [("d", "by hand")]
        assert fidelity.assumed_held == 1

    def test_an_image_opened_by_hand_leaves_the_one_on_the_screen_held(self):
        """Ben has a on the screen, opens f by hand, and comes back to a; ann's b was right all the time."""
        answers = [
            answer("f", 2, "ben"),
            answer("b", 1, lead=0.9),
            answer("a", 5, "ben"),
            answer("c", 3),
            answer("d", 6),
        ]

        assert kinds(order_fidelity([order("abcdef")], answers)) == [("f", "by hand")]

    def test_nobody_holds_an_image_for_longer_than_a_lock_lives(self):
        answers = [answer("b", 1), answer("c", 2), answer("a", 60 * 25, "ben")]

        assert kinds(order_fidelity([order("abc")], answers)) == [("b", "by hand"), ("c", "by hand")]


class TestSkips:
    def test_a_skipped_image_is_out_of_the_way(self):
        answers = [answer("a", 1, skipped=True), answer("b", 2), answer("c", 3)]

        assert order_fidelity([order("abc")], answers).in_order == 3

    def test_at_its_own_place_for_another_reader_it_is_in_order(self):
        answers = [answer("a", 1, skipped=True), answer("a", 2, "ben"), answer("b", 3)]

        assert order_fidelity([order("abc")], answers).in_order == 3

    def test_back_later_it_is_in_order_where_nothing_waits_before_it(self):
        answers = [answer("b", 2), answer("a", 1, skipped=True), answer("c", 3), answer("a", 4)]

        assert order_fidelity([order("abcd")], answers).in_order == 4

    def test_back_under_an_order_that_does_not_hold_it_it_is_explained(self):
        answers = [answer("a", 1, skipped=True), answer("d", 3), answer("a", 4)]

        assert kinds(order_fidelity([order("abcd"), order("dcb", 2, "v2")], answers)) == [("a", "after a skip")]


@dataclass
class Room:
    """Readers on Label Studio's "Label All Tasks", with its locks: one image each, kept until it is answered."""

    rng: random.Random
    readers: int
    timed: bool
    orders: list[PublishedRanking] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)
    screens: dict[str, tuple[str, float]] = field(default_factory=dict)
    minute: float = 0.0

    def publish(self, images: list[str]) -> None:
        self.minute += 1
        left = [image for image in images if image not in self.taken or image in {i for i, _ in self.screens.values()}]
        self.rng.shuffle(left)
        self.orders.append(order("", self.minute, f"v{len(self.orders)}").model_copy(update={"image_ids": tuple(left)}))
        self.minute += 1

    def serve(self, rater: str) -> None:
        waiting = [image for image in self.orders[-1].image_ids if image not in self.taken]
        if rater not in self.screens and waiting:
            self.screens[rater] = (waiting[0], self.minute)
            self.taken.add(waiting[0])

    def submit(self, rater: str) -> None:
        if rater in self.screens:
            image, since = self.screens.pop(rater)
            lead = self.minute - since if self.timed else None
            self.answers.append(answer(image, self.minute, rater, lead))

    def read(self, turns: int) -> None:
        for _ in range(turns):
            self.minute += self.rng.uniform(0.2, 2.0)
            rater = f"reader {self.rng.randrange(self.readers)}"
            self.submit(rater)
            self.serve(rater)

    def close(self, *, everybody: bool) -> None:
        """Whoever has answered nothing yet answers, so that all readers are known; or everybody does."""
        known = {given.rater for given in self.answers}
        for rater in [f"reader {number}" for number in range(self.readers)]:
            if everybody or rater not in known:
                self.submit(rater)

    def open_by_hand(self, rater: str) -> str:
        """The last image of the order, which nobody has taken; what the reader holds stays on the screen."""
        image = next(i for i in reversed(self.orders[-1].image_ids) if i not in self.taken)
        self.minute += 0.5
        self.taken.add(image)
        self.answers.append(answer(image, self.minute, rater, 0.3 if self.timed else None))
        return image


IMAGES = [str(number) for number in range(80)]


@given(seed=st.integers(0, 10_000), readers=st.integers(1, 5), rounds=st.integers(1, 4), finish=st.booleans())
def test_whoever_reads_as_label_studio_serves_is_in_order(seed, readers, rounds, finish):
    """Readers hold their images across every switch; one who has answered before may hold the last to this day."""
    room = Room(random.Random(seed), readers, timed=True)
    for _ in range(rounds):
        room.publish(IMAGES)
        room.read(12)
    room.close(everybody=finish)

    fidelity = order_fidelity(room.orders, room.answers)

    assert fidelity.exceptions == ()
    assert fidelity.in_order == fidelity.answered == len(room.answers)


@given(seed=st.integers(0, 10_000), readers=st.integers(1, 5), rounds=st.integers(1, 3))
def test_without_measured_times_all_that_is_left_is_what_was_held(seed, readers, rounds):
    room = Room(random.Random(seed), readers, timed=False)
    for _ in range(rounds):
        room.publish(IMAGES)
        room.read(12)
    room.close(everybody=False)

    fidelity = order_fidelity(room.orders, room.answers)

    assert {one.kind for one in fidelity.exceptions} <= {"held"}
    assert len(fidelity.exceptions) <= readers * (rounds - 1)


@given(seed=st.integers(0, 10_000), readers=st.integers(1, 4), timed=st.booleans())
def test_what_was_opened_by_hand_is_found_and_nothing_else(seed, readers, timed):
    room = Room(random.Random(seed), readers, timed=timed)
    room.publish(IMAGES)
    room.read(10)
    opened = room.open_by_hand("reader 0")
    room.read(10)
    room.close(everybody=False)

    assert kinds(order_fidelity(room.orders, room.answers)) == [(opened, "by hand")]


OUTPUTS = PoolPredictions(("1", "2"), CLASSES, np.full((2, 2, 3), 1 / 3, dtype=np.float32))
CHOSEN = ProjectOptions(strategy="entropy", batch_size=3)


class Network:
    """Saves a file as a learner does; a committee's lies a folder deeper."""

    def save(self, folder: str) -> None:
        place = Path(folder) / "network-1"
        place.mkdir()
        (place / "model.safetensors").write_bytes(b"weights")


def trained(round_id: str = "r000001", **request: object) -> RoundReport:
    asked = make_request(**({"round_id": round_id, "strategy": "entropy"} | request))
    return make_report(round_id).model_copy(update={"request": asked, "fit": make_fit()})


def serve(project: ProjectStore, round_id: str = "r000001", *, wholly: bool = True) -> None:
    seconds = {"import": 1.0, "delete": 1.0} if wholly else {"import": 1.0}
    project.set_published(
        PublishedRanking(version="v", round_id=round_id, image_ids=("2",), seconds=seconds, published_at=NOON)
    )


@pytest.fixture
def project(tmp_path) -> ProjectStore:
    return ProjectStore(tmp_path)


@pytest.fixture
def served(project: ProjectStore) -> ProjectStore:
    """A trained round by entropy, with its passes and its network, that readers are served."""
    project.save(trained(), OUTPUTS, Network())
    serve(project)
    return ProjectStore(project.folder)


class TestOrderStanding:
    def test_no_round(self, project):
        standing = order_state(project, CHOSEN, CLASSES)

        assert (standing.verdict, standing.due) == ("next round", False)
        assert standing.why == "no network has ranked the images yet"

    def test_a_round_of_the_cold_start(self, project):
        project.save(make_report(), None, None)

        assert order_state(project, CHOSEN, CLASSES).verdict == "next round"

    def test_a_cold_start_that_began_anew_is_not_ranked_by_the_old_network(self, served):
        """Labels were deleted, and the classes have too few again."""
        served.save(make_report("r000002"), None, None)

        assert not order_state(served, ProjectOptions(strategy="bald"), CLASSES).due

    def test_as_chosen(self, served):
        standing = order_state(served, CHOSEN, CLASSES)

        assert (standing.verdict, standing.due) == ("as chosen", False)

    @pytest.mark.parametrize(
        "change", [{"reserve": 7}, {"passes": 9}, {"retrain_after": 3}, {"epochs": 9}, {"prelabel": True}]
    )
    def test_options_that_rank_nothing_ask_for_nothing(self, served, change):
        assert not order_state(served, CHOSEN.model_copy(update=change), CLASSES).due

    @pytest.mark.parametrize("change", [{"strategy": "bald"}, {"batch_size": 5}, {"control_share": 0.1}])
    def test_passes_are_enough_for_what_looks_at_nothing_else(self, served, change):
        standing = order_state(served, CHOSEN.model_copy(update=change), CLASSES)

        assert (standing.verdict, standing.due) == ("passes", True)
        assert standing.base == standing.latest == served.summary("r000001")

    @pytest.mark.parametrize("strategy", ["badge", "core_set", "typiclust"])
    def test_the_network_looks_again_for_what_looks_at_more(self, served, strategy):
        assert order_state(served, ProjectOptions(strategy=strategy), CLASSES).verdict == "network"

    def test_a_network_that_is_gone(self, served):
        """Three are kept."""
        next(served.folder.rglob("model.safetensors")).unlink()

        standing = order_state(served, ProjectOptions(strategy="core_set"), CLASSES)

        assert (standing.verdict, standing.due) == ("next round", False)
        assert "network of round r000001" in standing.why

    def test_passes_that_are_gone_while_the_network_is_there(self, served):
        (served.folder / "rounds" / "r000001" / "outputs.npz").unlink()

        assert order_state(served, ProjectOptions(strategy="bald"), CLASSES).verdict == "network"

    def test_a_question_with_other_classes(self, served):
        standing = order_state(served, ProjectOptions(strategy="bald"), (*CLASSES, "worse"))

        assert (standing.verdict, standing.due) == ("next round", False)

    def test_a_second_change_goes_back_to_the_round_that_trained(self, served):
        reranked = make_report("r000002").model_copy(
            update={"request": make_request(round_id="r000002", strategy="bald", reason="rerank"), "base": "r000001"}
        )
        served.save(reranked, OUTPUTS, None)
        serve(served, "r000002")

        assert order_state(served, ProjectOptions(strategy="bald", batch_size=3), CLASSES).verdict == "as chosen"
        standing = order_state(served, ProjectOptions(strategy="badge", batch_size=3), CLASSES)
        assert (standing.verdict, standing.base, standing.latest) == (
            "network",
            served.summary("r000001"),
            served.summary("r000002"),
        )

    @pytest.mark.parametrize("wholly", [None, False])
    def test_a_new_order_that_was_saved_and_not_wholly_published(self, served, wholly):
        reranked = make_report("r000002").model_copy(
            update={"request": make_request(round_id="r000002", strategy="bald", reason="rerank"), "base": "r000001"}
        )
        served.save(reranked, OUTPUTS, None)
        if wholly is not None:
            serve(served, "r000002", wholly=wholly)

        standing = order_state(served, ProjectOptions(strategy="bald", batch_size=3), CLASSES)

        assert (standing.verdict, standing.due) == ("saved", True)

    def test_a_training_that_was_not_published_is_published_by_its_own_round(self, project):
        project.save(trained(), OUTPUTS, Network())

        standing = order_state(project, CHOSEN, CLASSES)

        assert (standing.verdict, standing.due) == ("saved", False)
