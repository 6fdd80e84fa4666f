import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend.analytics.standing import start_estimate
from ml_backend.config import ProjectOptions

labels = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 60), min_size=2)


class TestStartEstimate:
    @pytest.mark.parametrize(("share", "lacking"), [(0.4, 10), (0.25, 8), (0.1, 20)])
    def test_one_class_missing_with_a_known_share(self, share, lacking):
        """With thousands of labels the share is known: k / share images on the average, the median a little below."""
        minimum = 2000
        of_class = minimum - lacking
        found = start_estimate({"rare": of_class, "rest": round(of_class * (1 - share) / share)}, minimum, 10**6)
        expected = lacking / share
        spread = (lacking * (1 - share)) ** 0.5 / share

        assert found.missing["rare"] == lacking
        assert found.more == pytest.approx(expected, rel=0.08)
        assert found.low == pytest.approx(expected - 1.6 * spread, abs=0.35 * spread + 1)
        assert found.high == pytest.approx(expected + 1.7 * spread, abs=0.35 * spread + 1)

    def test_the_slowest_class_decides(self):
        """Two classes of a quarter each that lack 10 take longer than one alone."""
        one = start_estimate({"a": 990, "b": 1000, "c": 2000}, 1000, 10**6)
        both = start_estimate({"a": 990, "b": 990, "c": 2000}, 1000, 10**6)

        assert both.missing == {"a": 10, "b": 10}
        assert both.more is not None
        assert one.more is not None
        assert both.more > one.more

    def test_sentence(self):
        found = start_estimate({"normal": 18, "moderate": 40, "severe": 60}, 25, 500)

        assert found.sentence == (
            f"7 more 'normal' needed; at the rate so far about {found.more} more images ({found.low} to {found.high})."
        )
        # 7 over a share of 19 / 121, on the average of the posterior.
        assert found.more == pytest.approx(7 * 121 / 19, rel=0.1)

    def test_an_order_by_looks_is_told(self):
        found = start_estimate({"normal": 18, "severe": 60}, 25, 500, random_order=False)

        assert "estimated for a random order" in found.sentence

    def test_without_labels_nothing_is_known(self):
        found = start_estimate({"normal": 0, "severe": 0}, 25, 500)

        assert found.missing == {"normal": 25, "severe": 25}
        assert (found.more, found.low, found.high, found.enough) == (None, None, None, None)
        assert found.sentence == (
            "25 more 'normal' and 25 more 'severe' needed; no label yet, so nothing is known of how many images that "
            "takes."
        )

    def test_a_class_that_was_never_seen(self):
        """After 100 labels its share is about 1 in 100: 500 images hold 25 of it hardly ever."""
        found = start_estimate({"normal": 0, "severe": 100}, 25, 500)

        assert found.enough is not None
        assert found.enough < 0.05
        assert "will probably not hold enough" in found.sentence
        assert found.more == found.high == 500

    def test_a_pool_that_is_too_small_for_certain(self):
        found = start_estimate({"normal": 10, "severe": 30}, 25, 14)

        assert found.enough == 0.0
        assert "cannot hold them: import more" in found.sentence

    def test_a_pool_that_may_be_too_small(self):
        """About 43 images, at most 83: of 50 it is not certain."""
        found = start_estimate({"normal": 18, "moderate": 40, "severe": 60}, 25, 50)

        assert found.high == 50
        assert "the pool of 50 may not hold enough" in found.sentence

    def test_complete(self):
        found = start_estimate({"normal": 25, "severe": 40}, 25, 500)

        assert (found.missing, found.more, found.enough) == ({}, 0, 1.0)

    @settings(deadline=None, max_examples=60)
    @given(labels, st.integers(2, 40), st.integers(0, 400), st.integers(0, 5))
    def test_laws(self, counts, minimum, pool, seed):
        """Never fewer than are missing, never more than the pool, and the same again for the same seed."""
        found = start_estimate(counts, minimum, pool, seed)

        assert found == start_estimate(counts, minimum, pool, seed)
        lacking = sum(found.missing.values())
        assert lacking == sum(max(0, minimum - count) for count in counts.values())
        if found.more is not None and found.low is not None and found.high is not None:
            assert min(lacking, pool) <= found.low <= found.more <= found.high <= max(pool, 0)


class TestWaysOut:
    """Told where a class will hardly come, and not before."""

    @pytest.mark.parametrize(
        ("counts", "minimum", "pool", "told"),
        [
            ({"normal": 18, "moderate": 40, "severe": 60}, 25, 500, False),
            ({"normal": 18, "moderate": 40, "severe": 60}, 25, 50, False),
            ({"normal": 0, "moderate": 0, "severe": 0}, 25, 500, False),
            ({"normal": 4, "moderate": 6, "severe": 1}, 25, 5000, False),
            ({"normal": 9, "moderate": 9, "severe": 0}, 2, 20, True),
            ({"normal": 30, "moderate": 40, "severe": 5}, 25, 0, True),
            ({"normal": 30, "moderate": 40, "severe": 5}, 25, 19, True),
            ({"normal": 0, "moderate": 0, "severe": 0}, 25, 74, True),
            ({"normal": 50, "moderate": 70, "severe": 0}, 25, 10**6, True),
            ({"normal": 25, "moderate": 25, "severe": 25}, 25, 0, False),
        ],
    )
    def test_when_they_are_due(self, counts, minimum, pool, told):
        assert bool(start_estimate(counts, minimum, pool).ways_out) == told

    def test_are_three(self):
        found = start_estimate({"normal": 30, "moderate": 40, "severe": 5}, 25, 0)

        assert found.sentence == "20 more 'severe' needed; no image without a label is left: import more."
        assert found.ways_out == (
            "take 'severe' out of the choices of the label config, so that there are fewer classes",
            "lower the option min_labels_per_class, 25 now and 2 at least",
            "go on without it: the option ignore_classes=severe leaves the labels out until it is taken back",
        )
        assert found.advice == f"{found.sentence} Otherwise: {'; or '.join(found.ways_out)}."

    @pytest.mark.parametrize(
        ("rare", "ignored", "option"),
        [
            ("severe", ("artefact",), "artefact,severe"),
            ("severe", (), "severe"),
            ("severe, acute", ("artefact",), '["artefact", "severe, acute"]'),
        ],
    )
    def test_the_option_can_be_set_as_it_is_told(self, rare, ignored, option):
        told = start_estimate({"normal": 30, "moderate": 40, rare: 5}, 25, 0, ignored=ignored).ways_out[-1]

        assert f"the option ignore_classes={option} leaves" in told
        assert ProjectOptions(ignore_classes=option).ignore_classes == (*ignored, rare)

    def test_two_classes_are_the_fewest(self):
        found = start_estimate({"normal": 30, "severe": 5}, 25, 0)

        assert found.ways_out == ("lower the option min_labels_per_class, 25 now and 2 at least",)

    def test_of_several_that_lack_labels_the_owner_names_one(self):
        found = start_estimate({"normal": 30, "moderate": 1, "severe": 1}, 25, 0)

        assert "ignore_classes=its name" in found.ways_out[-1]
        found = start_estimate({"normal": 30, "moderate": 1, "severe": 1}, 25, 0, ignored=("artefact",))
        assert "ignore_classes=artefact,its name" in found.ways_out[-1]
