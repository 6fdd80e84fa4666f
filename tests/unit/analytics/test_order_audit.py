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
from ml_backend.analytics.order_audit import OrderFidelity, order_state
from ml_backend.analytics.order_audit import order_fidelity as fidelity_of
from ml_backend.config import ProjectOptions
from ml_backend.predictions import PoolPredictions
from ml_backend.schemas import PublishedRanking, RoundReport
from ml_backend.storage import ProjectStore
from ml_backend.storage.outputs import id_column
from ml_backend.storage.rounds import ServedOrder
from tests.fakes import CLASSES, NOON, make_fit, make_report, make_request


def at(minute: float) -> datetime:
    return NOON + timedelta(minutes=minute)


def order(ids: str, minute: float = 0, version: str = "v1", rereads: str = "") -> PublishedRanking:
    return PublishedRanking(
        version=version,
        round_id="r000001",
        image_ids=tuple(ids),
        rereads=tuple(rereads),
        seconds={},
        published_at=at(minute),
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


def order_fidelity(orders: list[PublishedRanking], answers: list[Answer]) -> OrderFidelity:
    return fidelity_of([(ServedOrder.of(one), id_column(one.image_ids)) for one in orders], answers)


def kinds(fidelity: OrderFidelity) -> list[tuple[str, str]]:
    return [(one.image_id, one.kind) for one in fidelity.exceptions]


SWITCH = [order("abcd"), order("dcb", 2, "v2")]


@pytest.mark.parametrize(
    ("orders", "answers", "expected"),
    [
        pytest.param([order("abc")], [answer("a", 1), answer("b", 2), answer("c", 3)], [], id="down the list"),
        pytest.param([order("ab")], [answer("x", 1)], [("x", "not in order")], id="in no order"),
        pytest.param(
            [order("ab"), order("acb", 2, rereads="a")],
            [answer("a", 1), answer("a", 3, "ben"), answer("c", 4, "ben"), answer("b", 5)],
            [],
            id="read again as asked",
        ),
        pytest.param(
            [order("ab"), order("acb", 2, rereads="a")],
            [answer("a", 1), answer("c", 3), answer("b", 4)],
            [],
            id="an only reader has no gap where another is asked",
        ),
        pytest.param(
            [order("ab"), order("cab", 2, rereads="a")],
            [answer("a", 1, "ben"), answer("a", 3), answer("b", 4), answer("b", 5, "ben"), answer("c", 60)],
            [("a", "again"), ("b", "by hand"), ("b", "again")],
            id="read again ahead of its place, and without being asked",
        ),
        pytest.param(
            [order("ab", 10)], [answer("a", 1), answer("b", 11)], [("a", "before any order")], id="before any order"
        ),
        pytest.param(
            [order("ab")],
            [answer("a", 1), answer("a", 2, "ben"), answer("b", 3)],
            [("a", "again")],
            id="a further answer",
        ),
        pytest.param(
            [order("abcd")],
            [answer("a", 1), answer("c", 2), answer("b", 3), answer("d", 4)],
            [("c", "by hand")],
            id="b is passed over, behind a, which is answered",
        ),
        *(
            pytest.param(
                [order("abc")],
                [answer(i, n, lead=lead) for n, i in enumerate("abc", 1)],
                [],
                id=f"a time of {lead} minutes is not used",
            )
            for lead in (None, 60.0 * 24 * 30)
        ),
        pytest.param(
            SWITCH,
            [answer("a", 1), answer("b", 3, lead=2), answer("d", 4)],
            [],
            id="b was served before the switch and answered after it",
        ),
        pytest.param(
            SWITCH,
            [answer("a", 1), answer("b", 3, lead=0.5), answer("d", 4)],
            [("b", "held")],
            id="b likewise, and its page was reloaded after the switch",
        ),
        pytest.param(
            [order("abcde"), order("edcb", 2, "v2")],
            [answer("a", 1), answer("b", 3, lead=2), answer("c", 4), answer("e", 5)],
            [("c", "by hand")],
            id="c follows the old order: it was served after the answer to b",
        ),
        pytest.param(
            [order("ab"), order("xadefgb", 2, "v2")],
            [answer("x", 2.15, "ben", lead=0.1), answer("a", 2.3, "ben", lead=0.1), answer("b", 3)],
            [("b", "by hand")],
            id="in the old order, until 2, a was ahead of b; ben took it at 2.2",
        ),
        pytest.param(
            [order("abcd"), order("dcb", 9, "v2")],
            [answer("a", 1), answer("d", 2), answer("b", 3), answer("c", 4)],
            [("d", "by hand")],
            id="a later order explains nothing",
        ),
        pytest.param(
            SWITCH, [answer("a", 1), answer("b", 2.5, lead=0.45)], [], id="around the switch either order counts"
        ),
        pytest.param(SWITCH[::-1], [answer("d", 3), answer("a", 1)], [], id="orders come in any order"),
        pytest.param(
            [order("abc")],
            [answer("b", 1), answer("c", 2), answer("a", 9, "ben", lead=9)],
            [],
            id="ben holds a from 0 to 9",
        ),
        pytest.param(
            [order("abc")],
            [answer("b", 1), answer("c", 2), answer("a", 9, "ben", lead=0.2)],
            [],
            id="ben likewise, and his page was reloaded",
        ),
        pytest.param(
            [order("abc")],
            [answer("c", 1), answer("a", 2, "ben", lead=0.5), answer("b", 3, "ben", lead=0.5)],
            [("c", "by hand")],
            id="ben answered another image meanwhile, so that a was free",
        ),
        pytest.param([order("abc")], [answer("c", 1)], [("c", "by hand")], id="one unknown reader holds one image"),
        pytest.param(
            [order("abcdef")],
            [answer("f", 2, "ben"), answer("b", 1, lead=0.9), answer("a", 5, "ben"), answer("c", 3), answer("d", 6)],
            [("f", "by hand")],
            id="ben holds a while he opens f by hand",
        ),
        pytest.param(
            [order("abc")],
            [answer("b", 1), answer("c", 2), answer("a", 60 * 25, "ben")],
            [("b", "by hand"), ("c", "by hand")],
            id="no image is held for longer than a lock lives",
        ),
        pytest.param(
            [order("abc")], [answer("a", 1, skipped=True), answer("b", 2), answer("c", 3)], [], id="a is skipped"
        ),
        pytest.param(
            [order("abc")],
            [answer("a", 1, skipped=True), answer("a", 2, "ben"), answer("b", 3)],
            [],
            id="a is skipped and served to another reader at its place",
        ),
        pytest.param(
            [order("abcd")],
            [answer("b", 2), answer("a", 1, skipped=True), answer("c", 3), answer("a", 4)],
            [],
            id="a is skipped and comes back where nothing is ahead of it",
        ),
        pytest.param(
            SWITCH,
            [answer("a", 1, skipped=True), answer("d", 3), answer("a", 4)],
            [("a", "after a skip")],
            id="a is skipped and comes back under an order without it",
        ),
    ],
)
def test_answers_against_orders(orders, answers, expected):
    found = order_fidelity(orders, answers)

    assert kinds(found) == [one for one in expected if one[1] != "again"]
    assert (found.answered, found.in_order) == (len(answers), len(answers) - len(expected))


def test_the_newest_exceptions_are_listed():
    images = [f"{number}" for number in range(300)]
    orders = [order("").model_copy(update={"image_ids": ("never", *images[::-1])})]
    found = order_fidelity(orders, [answer(one, n + 1, who) for n, one in enumerate(images) for who in ("ann", "ben")])

    assert [one.image_id for one in found.exceptions][-1] in images[-3:]
    assert len(found.exceptions) == 200


class TestSentences:
    def test_everything_in_order(self):
        found = order_fidelity([order("abc")], [answer("a", 1), answer("b", 2), answer("c", 3)])

        assert found.assumed_held == 0
        assert found.sentence == "3 of 3 answers came in the chosen order."

    def test_an_exception_names_what_was_ahead(self):
        found = order_fidelity([order("abcd")], [answer("d", 1), answer("a", 2), answer("b", 3), answer("c", 4)])

        [one] = found.exceptions
        assert (one.image_id, one.rater, one.kind, one.at) == ("d", "ann", "by hand", at(0.5))
        assert one.why.startswith("image a and 2 more were ahead of it")
        assert found.sentence.endswith('The other: 1 opened by hand or labelled "As Displayed".')

    def test_an_image_without_an_answer_is_probably_held(self):
        found = order_fidelity([order("abc")], [answer("b", 1), answer("c", 2)])

        assert (found.in_order, found.assumed_held) == (2, 2)
        assert "For 2 of these, an earlier image was still unanswered" in found.sentence

    def test_a_reader_who_goes_on_answering_holds_nothing_meanwhile(self):
        """Nobody answers b and c. When ann takes d only one unknown can hold one of them: ben still answers e."""
        found = order_fidelity([order("abcde")], [answer("a", 1, "ben"), answer("d", 2), answer("e", 4, "ben")])

        assert (kinds(found), found.assumed_held) == ([("d", "by hand")], 1)

    def test_what_was_put_next_by_hand_is_counted(self):
        orders = [order("abc"), order("cb", 1.2).model_copy(update={"by_hand": ("c", "b")})]
        found = order_fidelity(orders, [answer("a", 1), answer("c", 2)])

        assert found.sentence.endswith(" order. 1 of the images had been put next by hand.")

    def test_no_answer_yet(self):
        assert order_fidelity([order("ab")], []).sentence == "No reader has answered yet."

    def test_further_answers_are_not_out_of_order(self):
        """Label Studio serves them at random where several readers read each image."""
        found = order_fidelity([order("ab")], [answer("a", 1), answer("a", 2, "ben"), answer("b", 3)])

        assert (
            found.sentence
            == "2 of 2 answers came in the chosen order. Not counted: 1 further answer to images that had one."
        )


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


def ranked_anew() -> RoundReport:
    """By bald, from what the network of r000001 predicted."""
    request = make_request(round_id="r000002", strategy="bald", reason="rerank")
    return make_report("r000002").model_copy(update={"request": request, "base": "r000001"})


BALD = ProjectOptions(strategy="bald", batch_size=3)


class TestOrderState:
    def test_no_round(self, project):
        state = order_state(project, CHOSEN, CLASSES)

        assert (state.verdict, state.due) == ("next round", False)
        assert state.why == "no network has ranked the images yet"

    def test_a_round_of_the_cold_start(self, project):
        project.save(make_report(), None, None)

        assert order_state(project, CHOSEN, CLASSES).verdict == "next round"

    def test_a_cold_start_that_began_anew_is_not_ranked_by_the_old_network(self, served):
        """Labels were deleted, and the classes have too few again."""
        served.save(make_report("r000002"), None, None)

        assert not order_state(served, BALD, CLASSES).due

    @pytest.mark.parametrize(
        ("change", "verdict"),
        [
            ({}, "as chosen"),
            *(({name: value}, "as chosen") for name, value in {"reserve": 7, "passes": 9, "epochs": 9}.items()),
            ({"retrain_after": 3, "prelabel": True}, "as chosen"),
            *(({name: value}, "passes") for name, value in {"strategy": "bald", "batch_size": 5}.items()),
            ({"control_share": 0.1}, "passes"),
            *(({"strategy": name}, "network") for name in ("badge", "core_set", "typiclust")),
        ],
    )
    def test_after_a_change_of_options(self, served, change, verdict):
        state = order_state(served, CHOSEN.model_copy(update=change), CLASSES)

        assert (state.verdict, state.due) == (verdict, verdict != "as chosen")
        assert state.base == state.latest == served.summary("r000001")

    @pytest.mark.parametrize(("ranked_with", "verdict"), [(None, "as chosen"), (2, "as chosen"), (3, "passes")])
    def test_after_a_change_of_the_bound_of_a_patients_images(self, project, ranked_with, verdict):
        """An upgrade from a version without it is no change: the next round takes it up."""
        project.save(trained(per_patient=ranked_with), OUTPUTS, Network())
        serve(project)

        assert order_state(project, CHOSEN, CLASSES).verdict == verdict

    def test_a_network_that_is_gone(self, served):
        """Three are kept."""
        next(served.folder.rglob("model.safetensors")).unlink()

        state = order_state(served, ProjectOptions(strategy="core_set"), CLASSES)

        assert (state.verdict, state.due) == ("next round", False)
        assert "network of round r000001" in state.why

    def test_passes_that_are_gone_while_the_network_is_there(self, served):
        (served.folder / "rounds" / "r000001" / "outputs.npz").unlink()

        assert order_state(served, BALD, CLASSES).verdict == "network"

    def test_other_classes(self, served):
        assert order_state(served, BALD, (*CLASSES, "worse")).verdict == "next round"

    def test_a_second_change_goes_back_to_the_round_that_trained(self, served):
        served.save(ranked_anew(), OUTPUTS, None)
        serve(served, "r000002")

        assert order_state(served, BALD, CLASSES).verdict == "as chosen"
        state = order_state(served, ProjectOptions(strategy="badge", batch_size=3), CLASSES)
        assert (state.verdict, state.base and state.base.round_id) == ("network", "r000001")
        assert state.latest == served.summary("r000002")

    @pytest.mark.parametrize("wholly", [None, False])
    def test_a_new_order_that_was_saved_and_not_wholly_published(self, served, wholly):
        served.save(ranked_anew(), OUTPUTS, None)
        if wholly is not None:
            serve(served, "r000002", wholly=wholly)

        state = order_state(served, BALD, CLASSES)

        assert (state.verdict, state.due) == ("saved", True)

    def test_a_training_that_was_not_published_is_published_by_its_own_round(self, project):
        project.save(trained(), OUTPUTS, Network())

        state = order_state(project, CHOSEN, CLASSES)

        assert (state.verdict, state.due) == ("saved", False)
