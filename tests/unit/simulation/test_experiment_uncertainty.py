"""A network's doubts against readers': by hand, then by laws."""

from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend.schemas import Annotation, ImageRef
from ml_backend.simulation.experiments import (
    FUNCTIONS,
    disagreement,
    quality_reading,
    rank_correlation,
    share_in_top,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def answers(**by_image: str) -> list[Annotation]:
    """One letter a reader; ``-`` is a reader who gave no class."""
    return [
        Annotation(
            image=ImageRef(id=image_id, uri=image_id),
            rater=f"r{number}",
            value=None if letter == "-" else letter,
            updated_at=NOW,
        )
        for image_id, letters in by_image.items()
        for number, letter in enumerate(letters)
    ]


class TestDisagreement:
    def test_hand_computed(self):
        """A a b: 2 of 3 pairs differ; a b c c: 5 of 6."""
        found = disagreement(answers(same="aaa", one="aab", wide="abcc"))

        assert found == pytest.approx({"same": 0.0, "one": 2 / 3, "wide": 5 / 6})

    def test_a_lone_reader_disagrees_with_nobody_and_is_left_out(self):
        assert disagreement(answers(lone="a", unread="a-", two="a-b")) == {"two": 1.0}


class TestRankCorrelation:
    def test_hand_computed(self):
        """Ranks 1 2 3 4 against 2 1 3 4: 1 - 6 * 2 / (4 * 15) = 0.8; how far the values lie apart does not matter."""
        assert rank_correlation(np.array([0.0, 1.0, 2.0, 99.0]), np.array([0.2, 0.1, 0.3, 0.4])) == pytest.approx(0.8)

    def test_no_doubt_at_all_is_no_correlation(self):
        assert rank_correlation(np.zeros(4), np.arange(4.0)) == 0.0
        assert rank_correlation(np.arange(4.0), np.zeros(4)) == 0.0

    def test_refuses_two_images(self):
        with pytest.raises(ValueError, match="3 images or more, got 2 and 2"):
            rank_correlation(np.arange(2.0), np.arange(2.0))


class TestShareInTop:
    def test_hand_computed(self):
        """The two most uncertain of ten hold 1.0 + 0.5 of 3.0."""
        readers = np.array([1.0, 0.5, 0.0, 0.5, 1.0, 0, 0, 0, 0, 0])

        assert share_in_top(np.arange(10.0)[::-1], readers, top=0.2) == pytest.approx(0.5)

    def test_images_at_the_border_count_in_part(self):
        """One of four equally uncertain ones: a quarter of what they hold together, whichever comes first."""
        readers = np.array([1.0, 0.0, 0.0, 1.0, 0.0, 0, 0, 0, 0, 0])
        uncertainty = np.array([1.0, 1.0, 1.0, 1.0, 0, 0, 0, 0, 0, 0])

        assert share_in_top(uncertainty, readers) == pytest.approx(0.25)

    def test_refuses_where_there_is_nothing_to_hold(self):
        with pytest.raises(ValueError, match="no two readers disagree"):
            share_in_top(np.arange(3.0), np.zeros(3))
        with pytest.raises(ValueError, match="0 < top <= 1"):
            share_in_top(np.arange(3.0), np.ones(3), top=0.0)

    @settings(deadline=None, max_examples=50)
    @given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), min_size=3, max_size=30), st.randoms())
    def test_laws(self, pairs, random):
        """The order of the images changes nothing; nothing holds more than the disputed ones; all hold all."""
        uncertainty, readers = np.array(pairs, dtype=np.float64).T
        readers[0] += 1.0
        found = share_in_top(uncertainty, readers, top=0.3)
        order = random.sample(range(len(pairs)), len(pairs))

        assert share_in_top(uncertainty[order], readers[order], top=0.3) == pytest.approx(found)
        assert 0.0 <= found <= share_in_top(readers, readers, top=0.3) + 1e-12
        assert share_in_top(uncertainty, readers, top=1.0) == pytest.approx(1.0)


class TestQualityReading:
    def reading(self, **mean: float):
        correlations = {name: [mean.get(name, 0.3) + 0.01 * seed for seed in range(3)] for name in FUNCTIONS}
        shares = {name: [0.2 if mean.get(name, 0.3) > 0 else 0.05] * 3 for name in FUNCTIONS}
        return quality_reading(correlations, shares, images=250, ceiling=0.4)

    def test_as_expected_with_the_closest_first(self):
        reading = self.reading(entropy=0.4)

        assert reading.surprises == ()
        assert (
            reading.found[0]
            == "250 test images; closest to the readers: entropy, Spearman correlation 0.410 [0.385 to 0.435]."
        )
        assert reading.rows[0] == ("entropy", "0.410 [0.385 to 0.435]", "0.200 [0.200 to 0.200]")
        assert "by chance 0.10, at most 0.400" in reading.found[1]

    def test_a_network_that_doubts_the_wrong_films_is_named(self):
        surprises = self.reading(entropy=-0.2).surprises

        assert len(surprises) == 3
        assert surprises[0].startswith("the correlation of entropy is not above 0")
        assert surprises[1].startswith("the top 10% by entropy hold no more")
        assert surprises[2].startswith("bald (0.310 ")
