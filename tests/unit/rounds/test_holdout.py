"""The random holdout in a ranking."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_backend.acquisition import seeded_order
from ml_backend.rounds.split import holdout_places, mix_in_holdout
from ml_backend.schemas import Ranking

SHARES = st.floats(0.01, 0.5)


def ranked(*image_ids: str, strategy: str = "entropy") -> Ranking:
    """Ranked by falling scores, from the number of images down to 1."""
    scores = tuple(float(len(image_ids) - place) for place in range(len(image_ids)))
    return Ranking(strategy=strategy, image_ids=image_ids, scores=scores, batch_size=3)


def numbered(count: int) -> Ranking:
    return ranked(*map(str, range(1, count + 1)))


RANKINGS = st.lists(st.integers(1, 10**6).map(str), unique=True, max_size=60).map(lambda ids: ranked(*ids))


class TestMixInHoldout:
    def test_pinned(self):
        """A round replayed years later shows the same images: these may never change."""
        mix = mix_in_holdout(numbered(10), 0.3, seed=0, round_id="r000001")

        assert mix.control == ("4", "3", "2")
        assert mix.image_ids == ("1", "4", "5", "3", "6", "7", "8", "2", "9", "10")
        assert mix.scores == (10.0, 7.0, 6.0, 8.0, 5.0, 4.0, 3.0, 9.0, 2.0, 1.0)

    @given(ranking=RANKINGS, seed=st.integers(0, 9))
    def test_share_0_changes_nothing(self, ranking, seed):
        assert mix_in_holdout(ranking, 0.0, seed, "r000001") == ranking

    @given(share=SHARES)
    def test_a_random_ranking_stays_as_it_is(self, share):
        random = ranked("3", "1", "2", "5", "4", strategy="random")

        assert mix_in_holdout(random, share, 0, "r000001") == random

    @given(ranking=RANKINGS, share=SHARES, seed=st.integers(0, 9))
    def test_same_images_with_their_scores(self, ranking, share, seed):
        mix = mix_in_holdout(ranking, share, seed, "r000002")

        assert dict(zip(mix.image_ids, mix.scores, strict=True)) == dict(
            zip(ranking.image_ids, ranking.scores, strict=True)
        )
        assert set(mix.control) <= set(mix.image_ids)

    @given(ranking=RANKINGS, share=SHARES, seed=st.integers(0, 9))
    def test_are_at_the_holdout_places_and_the_rest_keeps_the_strategys_order(self, ranking, share, seed):
        mix = mix_in_holdout(ranking, share, seed, "r000002")
        places = holdout_places(len(ranking.image_ids), share, seed, "r000002")

        assert tuple(mix.image_ids[place - 1] for place in places) == mix.control
        rest = [image_id for image_id in mix.image_ids if image_id not in mix.control]
        assert rest == [image_id for image_id in ranking.image_ids if image_id in set(rest)]

    @given(ranking=RANKINGS, share=SHARES, data=st.data())
    def test_which_images_does_not_depend_on_the_strategy(self, ranking, share, data):
        other = ranked(*data.draw(st.permutations(ranking.image_ids)))

        assert mix_in_holdout(other, share, 4, "r1").control == mix_in_holdout(ranking, share, 4, "r1").control

    @given(ranking=RANKINGS, share=SHARES, data=st.data())
    def test_labels_in_between_leave_the_order_of_the_rest(self, ranking, share, data):
        """Whatever readers label, the images of the first round that are left come first again."""
        first = mix_in_holdout(ranking, share, 4, "r000001").control
        left = [image_id for image_id in ranking.image_ids if data.draw(st.booleans())]

        second = mix_in_holdout(ranked(*left), share, 4, "r000002").control

        left_over = tuple(image_id for image_id in first if image_id in left)
        both = min(len(left_over), len(second))
        assert second[:both] == left_over[:both]

    def test_every_image_is_as_likely_whatever_its_score(self):
        """Over 1000 seeds each of 20 images is drawn 200 times, give or take 4.5 standard deviations of 12.6."""
        counts: Counter[str] = Counter()
        for seed in range(1000):
            counts.update(mix_in_holdout(numbered(20), 0.2, seed, "r000001").control)

        assert all(abs(counts[str(number)] - 200) < 57 for number in range(1, 21)), counts

    def test_a_draw_tells_nothing_about_the_order_of_random(self):
        """Otherwise a study's baseline and its holdout would be the same images."""
        ids = [str(number) for number in range(1000)]
        control = mix_in_holdout(ranked(*ids), 0.2, 0, "r000001").control
        random = [ids[index] for index in seeded_order(ids, 0)[:200]]

        assert 20 < len(set(control) & set(random)) < 65  # 40 expected, standard deviation 5


class TestHoldoutPlaces:
    @given(length=st.integers(0, 300), share=SHARES, seed=st.integers(0, 9))
    def test_among_the_first_k_they_are_within_one_of_their_share(self, length, share, seed):
        places = holdout_places(length, share, seed, "r000001")

        assert places == sorted(set(places))
        assert all(1 <= place <= length for place in places)
        for k in range(length + 1):
            assert abs(sum(place <= k for place in places) - k * share) < 1 + 1e-9

    @pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
    def test_no_rhythm_gives_them_away(self, share):
        """Every place within a period comes up, in one round after the other and along one ranking."""
        period = round(1 / share)

        along = {place % period for place in holdout_places(100 * period, share, 0, "r000001")}
        by_round = {holdout_places(period, share, 0, f"r{number:06d}")[0] for number in range(100)}

        assert along == set(range(period))
        assert by_round == set(range(1, period + 1))

    @pytest.mark.parametrize("share", [-0.1, 0.51, 1.0, float("nan")])
    def test_other_shares_are_refused(self, share):
        with pytest.raises(ValueError, match=r"between 0 and 0\.5, got"):
            holdout_places(10, share, 0, "r000001")
