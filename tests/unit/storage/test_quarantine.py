from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend.storage.project_state import (
    LONGEST_PASSING_PAUSE_S,
    LONGEST_PAUSE_S,
    MOST_COMPARED,
    Quarantine,
    _pause_s,
)


@dataclass
class Clock:
    at: datetime = datetime(2026, 11, 23, tzinfo=UTC)

    def __call__(self):
        return self.at

    def wait(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "projects" / "1.0"


@pytest.fixture
def quarantine(folder, clock):
    return Quarantine(folder, clock)


def play(quarantine: Quarantine, bad: dict[str, str], *, good: tuple[str, ...] = (), file: str = "a") -> list[str]:
    """A round over bad images (id -> trouble) and good ones; the ids that were tried."""
    tried = []
    with quarantine.settled():
        for image_id in (*bad, *good):
            if quarantine.bars(image_id, file) is None:
                tried.append(image_id)
                if image_id in bad:
                    quarantine.enter(image_id, file, bad[image_id], f"image {image_id} is bad", passing=False)
    return tried


class TestRounds:
    def test_a_bad_image_is_listed_once_the_round_ends(self, quarantine, folder, clock):
        play(quarantine, {"12": "damaged", "9": "missing"}, good=("1",))

        first, second = Quarantine(folder, clock).listed()
        assert (first.image_id, first.trouble, first.reason, first.times) == ("9", "missing", "image 9 is bad", 1)
        assert second.image_id == "12"
        assert first.first_seen == first.last_tried == clock.at

    def test_it_is_left_in_peace_for_a_pause_that_doubles(self, quarantine, clock):
        tried_at = []
        for minute in range(16):
            if play(quarantine, {"9": "damaged"}):
                tried_at.append(minute)
            clock.wait(60)

        assert tried_at == [0, 1, 3, 7, 15]
        [entry] = quarantine.listed()
        assert (entry.times, entry.next_try - entry.last_tried) == (5, timedelta(minutes=16))

    def test_a_barred_image_says_why_and_until_when(self, quarantine):
        play(quarantine, {"9": "damaged"})

        with quarantine.settled():
            assert quarantine.bars("9", "a") == "image 9 is bad (not tried again before 2026-11-23 00:01 UTC)"

    def test_within_a_round_it_is_tried_once(self, quarantine):
        with quarantine.settled():
            quarantine.enter("9", "a", "damaged", "image 9 is bad", passing=False)

            assert quarantine.bars("9", "a") == "image 9 is bad"

    def test_another_file_is_tried_at_once_and_counts_anew(self, quarantine, clock):
        play(quarantine, {"9": "damaged"})
        clock.wait(60)
        play(quarantine, {"9": "damaged"})

        assert play(quarantine, {"9": "empty"}, file="b") == ["9"]
        [entry] = quarantine.listed()
        assert (entry.times, entry.trouble, entry.first_seen) == (1, "empty", clock.at)

    def test_what_can_be_read_again_leaves_the_list(self, quarantine, clock):
        play(quarantine, {"9": "missing"})
        clock.wait(60)

        assert play(quarantine, {}, good=("9",)) == ["9"]
        assert quarantine.listed() == ()

    def test_what_is_gone_from_the_project_leaves_the_list(self, quarantine):
        play(quarantine, {"9": "missing", "10": "missing"})
        play(quarantine, {"10": "missing"})

        assert [entry.image_id for entry in quarantine.listed()] == ["10"]

    def test_a_round_that_reads_nothing_changes_nothing(self, quarantine):
        play(quarantine, {"9": "missing"})
        before = quarantine.listed()
        play(quarantine, {})

        assert quarantine.listed() == before

    def test_a_round_that_fails_drops_nobody_and_keeps_what_it_found(self, quarantine, clock):
        play(quarantine, {"9": "missing"})
        clock.wait(60)

        def fail() -> None:
            with quarantine.settled():
                assert quarantine.bars("9", "a") is None
                quarantine.enter("11", "a", "damaged", "image 11 is bad", passing=False)
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fail()

        assert [(entry.image_id, entry.times) for entry in quarantine.listed()] == [("9", 1), ("11", 1)]


class TestVersion:
    """What a host says of a file whose address stays the same."""

    def enter(self, quarantine: Quarantine, version: str, ids: tuple[str, ...] = ("9",)) -> None:
        with quarantine.settled():
            for image_id in ids:
                quarantine.enter(image_id, "a", "damaged", f"image {image_id} is bad", passing=False, version=version)

    @pytest.mark.parametrize(
        ("then", "now", "is_tried"), [("1", "2", True), ("1", "1", False), ("1", "", False), ("", "2", False)]
    )
    def test_another_one_ends_the_pause(self, quarantine, then, now, is_tried):
        """Nothing follows from a host that says nothing, then or now."""
        self.enter(quarantine, then)

        with quarantine.settled():
            assert (quarantine.bars("9", "a", lambda: now) is None) == is_tried
            assert (quarantine.bars("9", "a", lambda: now) is None) == is_tried

    def test_counts_anew_where_it_is_another_and_on_where_it_is_not_told(self, quarantine, clock):
        seen = []
        for version in ("1", "1", "", "1", "2"):
            self.enter(quarantine, version)
            seen.append(quarantine.listed()[0].times)

        assert seen == [1, 2, 3, 4, 1]

    def test_is_asked_for_once_a_round_and_not_of_everybody(self, quarantine):
        ids = tuple(str(number) for number in range(MOST_COMPARED + 20))
        self.enter(quarantine, "1", ids)
        asked = []

        def says(image_id: str) -> str:
            asked.append(image_id)
            return "1"

        with quarantine.settled():
            for image_id in (*ids, *ids):
                assert quarantine.bars(image_id, "a", partial(says, image_id))

        assert asked == list(ids[:MOST_COMPARED])

    def test_is_not_asked_for_when_the_image_is_tried_anyway(self, quarantine, clock):
        self.enter(quarantine, "1")
        clock.wait(60)

        with quarantine.settled():
            assert quarantine.bars("9", "a", lambda: pytest.fail("asked")) is None


class TestWithdraw:
    def test_a_new_one_is_forgotten_and_a_known_one_stays_as_it_was(self, quarantine, clock):
        play(quarantine, {"9": "timed-out"})
        before = quarantine.listed()
        clock.wait(60)
        with quarantine.settled():
            for image_id in ("9", "10"):
                assert quarantine.bars(image_id, "a") is None
                quarantine.enter(image_id, "a", "unreachable", f"image {image_id}: no answer", passing=True)
            quarantine.withdraw(["9", "10", "never seen"])

        assert quarantine.listed() == before


class TestPause:
    def test_grows_to_its_bound(self):
        assert [_pause_s(times, passing=False) for times in (1, 2, 3)] == [60, 120, 240]
        assert _pause_s(10**6, passing=False) == LONGEST_PAUSE_S
        assert _pause_s(10**6, passing=True) == LONGEST_PASSING_PAUSE_S


class TestDisk:
    @pytest.mark.parametrize("content", [b"", b"{not json", b'{"images": [{"image_id": 1}]}', b"\xff\xfe"])
    def test_a_damaged_list_begins_anew(self, quarantine, folder, content):
        folder.mkdir(parents=True)
        (folder / "quarantine.json").write_bytes(content)

        assert quarantine.listed() == ()
        assert play(quarantine, {"9": "missing"}) == ["9"]
        assert len(quarantine.listed()) == 1

    def test_a_disk_that_refuses_stops_no_round(self, quarantine, folder):
        folder.parent.mkdir(parents=True)
        folder.write_text("a file where the folder should be")

        assert play(quarantine, {"9": "missing"}) == ["9"]

    def test_no_address_is_written(self, quarantine, folder):
        play(quarantine, {"9": "missing"}, file="http://pacs/9?X-Amz-Signature=secret")

        assert "secret" not in (folder / "quarantine.json").read_text()

    def test_a_round_without_a_bad_image_writes_nothing(self, quarantine, folder):
        play(quarantine, {}, good=("1", "2"))

        assert not folder.exists()


class TestLaw:
    @given(
        rounds=st.lists(
            st.tuples(st.sets(st.sampled_from("abcd")), st.sets(st.sampled_from("abcd")), st.integers(0, 600)),
            max_size=8,
        )
    )
    @settings(deadline=None, max_examples=30)
    def test_a_bad_image_is_always_listed_and_a_good_one_in_the_end_never(self, tmp_path_factory, rounds):
        """Whatever became bad, good again, or left the project meanwhile."""
        clock = Clock()
        quarantine = Quarantine(tmp_path_factory.mktemp("law"), clock)
        for bad, there, pause_s in rounds:
            play(quarantine, dict.fromkeys(sorted(bad & there), "damaged"), good=tuple(sorted(there - bad)))
            listed = {entry.image_id for entry in quarantine.listed()}
            assert bad & there <= listed
            assert listed <= there or not there
            clock.wait(pause_s)
        clock.wait(LONGEST_PAUSE_S)
        play(quarantine, {}, good=("a", "b", "c", "d"))

        assert quarantine.listed() == ()
