"""Served order against chosen order: exact, with the held image as the only exception."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend.demo.order_check import Served, compare


def serve(order: str, version: str = "v1", readers: str = "ab") -> list[Served]:
    """One event a letter, the readers in turn."""
    return [Served(readers[i % len(readers)], image, (version,)) for i, image in enumerate(order)]


def total(served: Sequence[Served], rankings: dict[str, str]) -> tuple[int, int]:
    results = compare(served, rankings).values()
    return sum(r.in_order for r in results), sum(r.served for r in results)


class TestCompare:
    def test_the_ranking_itself_is_in_order(self):
        result = compare(serve("cab"), {"v1": "cabd"})["v1"]

        assert (result.in_order, result.served, result.held, result.deviations) == (3, 3, 0, [])

    def test_a_swap_is_one_deviation(self):
        """Image b instead of a; then a is indeed the first that is left, and c after it."""
        result = compare(serve("bac"), {"v1": "abc"})["v1"]

        assert (result.in_order, result.served) == (2, 3)
        assert str(result.deviations[0]) == "a was served image b under v1, where image a was first"

    def test_the_reverse_order_is_not_in_order(self):
        """d, c and b each come while a waits; a itself is right at the end."""
        assert total(serve("dcba"), {"v1": "abcd"}) == (1, 4)

    def test_a_new_ranking_skips_what_was_served_under_the_old_one(self):
        """v2 puts a first again, but a reader has had it: c is its first image for readers."""
        served = [*serve("ab"), *serve("cd", "v2")]

        assert total(served, {"v1": "abcd", "v2": "acbd"}) == (4, 4)

    def test_the_old_order_after_a_new_ranking_is_wrong(self):
        served = [*serve("ab"), *serve("cd", "v2")]

        assert total(served, {"v1": "abcd", "v2": "dc"}) == (3, 4)

    def test_rankings_are_counted_apart(self):
        results = compare([*serve("ab"), *serve("d", "v2")], {"v1": "abcd", "v2": "cd", "v3": "d"})

        assert [(v, r.in_order, r.served) for v, r in results.items()] == [("v1", 2, 2), ("v2", 0, 1), ("v3", 0, 0)]

    def test_the_held_image_is_the_exception_and_is_counted(self):
        served = [*serve("a"), Served("a", "a", ("v2",), holding="a"), *serve("c", "v2")]

        results = compare(served, {"v1": "abc", "v2": "cb"})

        assert (results["v2"].held, results["v2"].served, results["v2"].in_order) == (1, 1, 1)

    def test_another_image_than_the_held_one_is_wrong(self):
        served = [*serve("a"), Served("a", "b", ("v1",), holding="a")]

        assert total(served, {"v1": "abc"}) == (1, 2)

    def test_the_same_image_again_after_the_answer_is_wrong(self):
        assert total(serve("aa", readers="a"), {"v1": "abc"}) == (1, 2)

    def test_beyond_the_ranking_nothing_is_in_order(self):
        result = compare(serve("abx"), {"v1": "ab"})["v1"]

        assert (result.in_order, result.served) == (2, 3)
        assert "no image of that ranking was left" in str(result.deviations[0])

    def test_a_version_that_was_never_published_is_wrong(self):
        result = compare(serve("a", "backend title"), {"v1": "a"})["backend title"]

        assert (result.in_order, result.served) == (0, 1)

    @pytest.mark.parametrize(("image", "counted_under"), [("a", "v1"), ("c", "v2")])
    def test_around_a_publish_either_order_counts(self, image, counted_under):
        results = compare([Served("a", image, ("v1", "v2"))], {"v1": "abc", "v2": "cab"})

        assert [v for v, r in results.items() if r.in_order] == [counted_under]

    def test_around_a_publish_a_third_image_is_wrong(self):
        results = compare([Served("a", "b", ("v1", "v2"))], {"v1": "abc", "v2": "cab"})

        assert results["v2"].deviations[0].expected == "c"

    def test_refuses_an_event_without_a_version(self):
        with pytest.raises(ValueError, match="under no version"):
            compare([Served("a", "x", ())], {})

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
