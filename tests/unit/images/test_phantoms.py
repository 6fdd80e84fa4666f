import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend.images.synthetic import ImagePlan, draw_pool, plan_pool


def draw_phantom(severity, classes, seed, side=512, patient=None, **look):
    """One image; its anatomy is by its seed, unless it has a patient's."""
    return ImagePlan(severity, classes, seed, seed if patient is None else patient, **look).draw(side)


class TestDrawPhantom:
    def test_same_seed_same_film(self) -> None:
        assert np.array_equal(draw_phantom(1, 3, 5, 64), draw_phantom(1, 3, 5, 64))
        assert not np.array_equal(draw_phantom(1, 3, 5, 64), draw_phantom(1, 3, 6, 64))

    def test_looks_like_a_chest(self) -> None:
        """Air is black, lungs are darker than the soft tissue below them, the spine is brighter."""
        film = draw_phantom(0, 3, 0, 128).astype(float)
        air, lung, belly, spine = film[:4, :4], film[45:60, 30:40], film[115:122, 30:40], film[45:60, 62:66]

        assert air.mean() < 20
        assert air.mean() + 20 < lung.mean() < belly.mean() - 40
        assert spine.mean() > lung.mean() + 60

    def test_opacities_grow_with_severity(self) -> None:
        """The lung fields brighten from class to class, and the classes overlap."""
        lungs = np.array(
            [
                [draw_phantom(severity, 3, 100 * severity + seed, 64)[20:40, 12:52].mean() for seed in range(30)]
                for severity in range(3)
            ]
        )

        assert (np.diff(lungs.mean(axis=1)) > 5).all()
        assert lungs[0].max() > lungs[1].min()
        assert lungs[1].max() > lungs[2].min()

    def test_patient_decides_the_anatomy(self) -> None:
        """Two films of one patient resemble each other more than films of two."""

        def distance(seed: int, patient: int) -> float:
            first, other = draw_phantom(0, 3, 1, 64, 10), draw_phantom(0, 3, seed, 64, patient)
            return float(np.abs(first.astype(float) - other).mean())

        assert np.mean([distance(s, 10) for s in range(2, 12)]) < np.mean([distance(s, s + 10) for s in range(2, 12)])

    @pytest.mark.parametrize(("severity", "classes"), [(3, 3), (-1, 3), (0, 1)])
    def test_refuses_a_class_that_is_none(self, severity: int, classes: int) -> None:
        with pytest.raises(ValueError, match="severity must be"):
            draw_phantom(severity, classes, 0)

    def test_refuses_a_film_too_small_to_draw(self) -> None:
        with pytest.raises(ValueError, match="at least 32"):
            draw_phantom(0, 2, 0, 16)

    def test_difficulty_hides_the_disease(self) -> None:
        """How far the lung fields of neighbouring classes lie apart, in spreads within a class."""

        def separation(difficulty: float) -> float:
            mild, severe = (
                np.array(
                    [draw_phantom(c, 3, 50 * c + n, 48, difficulty=difficulty)[15:30, 9:39].mean() for n in range(40)]
                )
                for c in (0, 2)
            )
            return float((severe.mean() - mild.mean()) / np.hypot(mild.std(), severe.std()))

        assert separation(0.0) > 1.3 * separation(0.5) > 1.3 * 1.3 * separation(1.0)

    def test_opacities_fade_to_half(self) -> None:
        """What a severe film has over its healthy twin, of the same seed: confounders and exposure are in both."""

        def contrast(difficulty: float) -> float:
            twins = [
                [draw_phantom(c, 3, n, 48, difficulty=difficulty).astype(float) for c in (0, 2)] for n in range(30)
            ]
            return float(np.mean([(severe - healthy)[15:30, 9:39].mean() for healthy, severe in twins]))

        assert contrast(1.0) == pytest.approx(contrast(0.0) / 2, rel=0.25)

    def test_by_default_nothing_is_hard_and_the_centre_is_the_plain_one(self) -> None:
        plain = draw_phantom(1, 3, 5, 64, 7)

        assert np.array_equal(plain, draw_phantom(1, 3, 5, 64, 7, difficulty=0.0, centre=0))
        assert not np.array_equal(plain, draw_phantom(1, 3, 5, 64, 7, difficulty=0.01))
        assert not np.array_equal(plain, draw_phantom(1, 3, 5, 64, 7, centre=1))

    def test_a_harder_film_is_the_same_film(self) -> None:
        """Same pose and anatomy: it resembles its easy twin more than another film."""
        twins = [np.corrcoef(draw_phantom(1, 3, n, 48).ravel(), draw_phantom(1, 3, n, 48, difficulty=1.0).ravel())[0, 1] for n in range(8)]  # fmt: skip  # noqa: E501
        others = [np.corrcoef(draw_phantom(1, 3, n, 48).ravel(), draw_phantom(1, 3, n + 1, 48, difficulty=1.0).ravel())[0, 1] for n in range(8)]  # fmt: skip  # noqa: E501

        assert np.mean(twins) > np.mean(others)

    @pytest.mark.parametrize("difficulty", [-0.1, 1.1, float("nan")])
    def test_refuses_a_difficulty_that_is_none(self, difficulty: float) -> None:
        with pytest.raises(ValueError, match="difficulty must lie from 0 to 1"):
            draw_phantom(0, 2, 0, 32, difficulty=difficulty)

    def test_refuses_a_centre_that_is_none(self) -> None:
        with pytest.raises(ValueError, match="numbered from 0, got -1"):
            draw_phantom(0, 2, 0, 32, centre=-1)


class TestFilmPlan:
    def test_latent_severity_scatters_around_the_class(self) -> None:
        """Spread 0.3 steps, and 0.45 where it is hardest; not below 0."""
        for difficulty, spread in ((0.0, 0.3), (1.0, 0.45)):
            found = [ImagePlan(1, 3, seed, seed, difficulty).latent_severity for seed in range(400)]

            assert np.mean(found) == pytest.approx(1.0, abs=0.07)
            assert np.std(found) == pytest.approx(spread, rel=0.15)
        assert min(ImagePlan(0, 3, seed, seed).latent_severity for seed in range(20)) == 0.0

    def test_latent_severity_is_what_is_drawn(self) -> None:
        """Of films of one class, those that stand higher on the scale have whiter lungs."""
        plans = [ImagePlan(1, 3, seed, 0) for seed in range(60)]

        whiteness = [plan.draw(48)[15:30, 9:39].mean() for plan in plans]

        assert np.corrcoef(whiteness, [plan.latent_severity for plan in plans])[0, 1] > 0.45


class TestPlanPool:
    def test_is_what_draw_pool_draws(self) -> None:
        plans = plan_pool(9, (1, 2), seed=4, difficulty=0.5, centres=2)
        films, labels, patients = draw_pool(9, (1, 2), seed=4, side=32, difficulty=0.5, centres=2)

        assert labels.tolist() == [plan.severity for plan in plans]
        assert patients == [plan.patient for plan in plans]
        assert all(np.array_equal(film, plan.draw(32)) for film, plan in zip(films, plans, strict=True))

    def test_patients_are_spread_over_the_centres_and_stay_in_one(self) -> None:
        plans = plan_pool(90, (1, 1), seed=0, centres=3)

        centre_of = {plan.patient: plan.centre for plan in plans}
        assert np.bincount(list(centre_of.values())).tolist() == pytest.approx([len(centre_of) / 3] * 3, abs=1)
        assert all(centre_of[plan.patient] == plan.centre for plan in plans)

    def test_needs_a_centre(self) -> None:
        with pytest.raises(ValueError, match="at least 1 centre, got 0"):
            plan_pool(4, (1, 1), seed=0, centres=0)


class TestDrawPool:
    def test_shares_to_the_film(self) -> None:
        films, labels, patients = draw_pool(50, (0.14, 0.36, 0.5), seed=0, side=32)

        assert np.bincount(labels).tolist() == [8, 18, 24]
        assert len(films) == len(patients) == 50
        assert films[0].shape == (32, 32)
        assert 50 / 4 <= len(set(patients)) < 50
        # In random order, or the first labels would all be of one class.
        assert len(set(labels[:10].tolist())) > 1

    def test_named_shares(self) -> None:
        assert np.bincount(draw_pool(4, {"normal": 1, "severe": 1}, seed=1, side=32)[1]).tolist() == [2, 2]

    @given(
        count=st.integers(3, 30), shares=st.lists(st.floats(0.01, 1.0), min_size=2, max_size=3), seed=st.integers(0, 9)
    )
    @settings(deadline=None, max_examples=10)
    def test_every_class_occurs(self, count: int, shares: list[float], seed: int) -> None:
        films, labels, _ = draw_pool(count, shares, seed, 32)

        assert len(films) == count
        assert (np.bincount(labels, minlength=len(shares)) >= 1).all()

    @pytest.mark.parametrize(("count", "shares"), [(5, (1.0,)), (5, (0.5, 0.0)), (2, (1, 1, 1))])
    def test_refuses_a_pool_without_a_class(self, count: int, shares: tuple[float, ...]) -> None:
        with pytest.raises(ValueError, match="positive shares"):
            draw_pool(count, shares, 0)
