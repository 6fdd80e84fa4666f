"""Sides by patient, and rarer classes."""

import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend.acquisition import seeded_order
from ml_backend.errors import SettingsError
from ml_backend.schemas import ImageRef
from ml_backend.simulation.dataset import check_sides, split_by_patient, subsample_to_prevalence
from ml_backend.simulation.tables import SIDES, Side

SHARES = (0.6, 0.15, 0.25)
IDS = ["0.png", "1.png", "2.png", "3.png"]


def refs(patients: Sequence[int | None]) -> list[ImageRef]:
    return [
        ImageRef(id=f"{n}.png", uri=f"{n}.png", patient_id=None if patient is None else f"p{patient}")
        for n, patient in enumerate(patients)
    ]


def truth_of(images: list[ImageRef], values: list[str]) -> dict[str, str]:
    return {image.id: value for image, value in zip(images, values, strict=True)}


class TestSplitByPatient:
    def test_every_class_has_the_shares(self):
        """100 normal and 40 severe single images: 60, 15, 25 and 24, 6, 10."""
        images = refs([None] * 140)
        truth = truth_of(images, ["normal"] * 100 + ["severe"] * 40)

        split = split_by_patient(images, truth, 3, SHARES)

        assert Counter((split[i], truth[i]) for i in truth) == {
            ("train", "normal"): 60, ("val", "normal"): 15, ("test", "normal"): 25,
            ("train", "severe"): 24, ("val", "severe"): 6, ("test", "severe"): 10,
        }  # fmt: skip

    def test_patients_stay_whole_and_shares_near(self):
        """200 patients of 1 to 4 films, whose films may be of two classes."""
        draw = random.Random(2)
        patients = [n for n in range(200) for _ in range(draw.choice((1, 2, 2, 3, 4)))]
        images = refs(list(patients))
        truth = truth_of(images, draw.choices(["a", "b", "c"], (14, 36, 50), k=len(images)))

        split = split_by_patient(images, truth, 0, SHARES)

        assert all(len({split[i.id] for i in images if i.patient_id == f"p{n}"}) == 1 for n in range(200))
        for name, count in Counter(truth.values()).items():
            for side, share in zip(SIDES, SHARES, strict=True):
                assert sum(truth[i] == name and split[i] == side for i in truth) == pytest.approx(count * share, abs=2)

    def test_patients_with_many_films_are_on_all_sides_alike(self):
        """They come first, but all sides fill at one pace: 48, 12 and 20 of their 80 films."""
        images = refs([n // 4 for n in range(80)] + [100 + n for n in range(40)])
        truth = truth_of(images, ["a"] * 120)

        split = split_by_patient(images, truth, 0, SHARES)

        assert Counter(split[f"{n}.png"] for n in range(80)) == {"train": 48, "val": 12, "test": 20}

    @settings(deadline=None)
    @given(st.permutations(range(24)), st.integers(0, 3))
    def test_the_order_of_the_rows_changes_nothing(self, order, seed):
        images = refs([n // 2 for n in range(24)])
        truth = truth_of(images, ["a", "b", "b"] * 8)

        shuffled = [images[n] for n in order]

        split = split_by_patient(shuffled, {i.id: truth[i.id] for i in shuffled}, seed, SHARES)
        assert split == split_by_patient(images, truth, seed, SHARES)

    def test_another_seed_is_another_split(self):
        images = refs([None] * 40)
        truth = truth_of(images, ["a", "b"] * 20)

        assert len({tuple(sorted(split_by_patient(images, truth, seed, SHARES).items())) for seed in range(5)}) == 5

    def test_validation_may_be_empty(self):
        images = refs([None] * 10)

        split = split_by_patient(images, truth_of(images, ["a"] * 10), 0, (0.7, 0.0, 0.3))

        assert Counter(split.values()) == {"train": 7, "test": 3}

    @pytest.mark.parametrize("shares", [(0.6, 0.2, 0.3), (0.0, 0.5, 0.5), (0.9, 0.1, 0.0), (0.8, -0.2, 0.4)])
    def test_shares_that_are_none_are_refused(self, shares):
        with pytest.raises(SettingsError, match="must sum to 1, train and test above 0"):
            split_by_patient(refs([None]), {"0.png": "a"}, 0, shares)


class TestSharesReached:
    def study(self, **sides: dict[str, int]) -> tuple[dict[str, str], dict[str, Side]]:
        truth: dict[str, str] = {}
        split: dict[str, Side] = {}
        for side in SIDES:
            for name, count in sides.get(side, {}).items():
                for n in range(count):
                    truth[f"{side}-{name}-{n}"], split[f"{side}-{name}-{n}"] = name, side
        return truth, split

    def counts(self, kept: list[str]) -> dict[str, int]:
        return dict(Counter(name.rsplit("-", 1)[0] for name in kept))

    def test_too_many_of_the_class_go(self):
        """14 of 100: 86 of the others keep 14 normals, and 43 keep 7."""
        truth, split = self.study(train={"normal": 60, "mild": 40, "severe": 46}, test={"normal": 50, "severe": 43})

        kept = subsample_to_prevalence(truth, split, ("normal", "mild", "severe"), {"normal": 0.14}, 0)

        assert self.counts(kept) == {
            "train-normal": 14, "train-mild": 40, "train-severe": 46, "test-normal": 7, "test-severe": 43,
        }  # fmt: skip

    def test_where_the_class_is_too_rare_the_others_go(self):
        """10 normals shall be half: 10 others stay, 3 to 2 as before."""
        truth, split = self.study(train={"normal": 10, "mild": 60, "severe": 40})

        kept = subsample_to_prevalence(truth, split, ("normal", "mild", "severe"), {"normal": 0.5}, 0)

        assert self.counts(kept) == {"train-normal": 10, "train-mild": 6, "train-severe": 4}

    def test_all_classes_may_have_a_wish(self):
        """Moderate is the scarcest by its share: 36 of 100."""
        truth, split = self.study(train={"n": 30, "m": 36, "s": 80})

        kept = subsample_to_prevalence(truth, split, ("n", "m", "s"), {"n": 0.14, "m": 0.36, "s": 0.5}, 0)

        assert self.counts(kept) == {"train-n": 14, "train-m": 36, "train-s": 50}

    def test_a_smaller_share_keeps_some_of_the_same(self):
        truth, split = self.study(train={"n": 50, "s": 100})

        more, less = (set(subsample_to_prevalence(truth, split, ("n", "s"), {"n": share}, 4)) for share in (0.2, 0.1))

        assert less < more

    def test_the_order_of_the_rows_changes_nothing(self):
        truth, split = self.study(train={"n": 50, "s": 100})
        backwards = dict(reversed(truth.items()))

        assert set(subsample_to_prevalence(truth, split, ("n", "s"), {"n": 0.1}, 4)) == set(
            subsample_to_prevalence(backwards, split, ("n", "s"), {"n": 0.1}, 4)
        )

    def test_what_stays_is_not_what_the_strategy_random_asks_for_first(self):
        """The same seed orders both; images kept by the bare order would all be asked for at the start."""
        truth, split = self.study(train={"n": 400, "s": 400})
        kept = subsample_to_prevalence(truth, split, ("n", "s"), {"n": 0.2}, 7)

        in_order = [kept[place] for place in seeded_order(kept, 7)]

        first = np.mean([truth[i] == "n" for i in in_order[:250]])
        assert first == pytest.approx(0.2, abs=0.06)

    @pytest.mark.parametrize(
        ("imbalance", "message"),
        [
            ({"none": 0.1}, "imbalance of 'none': the classes are n, s"),
            ({"n": 0.0}, "above 0 and below 1"),
            ({"n": 1.0}, "sum to less than 1, to leave room for s"),
            ({"n": 0.4, "s": 0.4}, "n=0.4, s=0.4: shares must lie above 0 and below 1 and sum to 1"),
            ({"n": 0.01}, "cannot be reached on the train side, which holds 5 n, 20 s: no image of n would be left"),
            ({"s": 0.001}, "5 n, 20 s: no image of s would be left"),
        ],
    )
    def test_a_share_that_cannot_be_is_refused_with_the_numbers(self, imbalance, message):
        truth, split = self.study(train={"n": 5, "s": 20})

        with pytest.raises(SettingsError, match=message):
            subsample_to_prevalence(truth, split, ("n", "s"), imbalance, 0)

    def test_a_validation_side_without_a_free_class_is_no_obstacle(self):
        truth, split = self.study(train={"a": 40, "b": 20, "c": 20}, val={"a": 8, "b": 4})

        kept = subsample_to_prevalence(truth, split, ("a", "b", "c"), {"a": 0.5}, 0)

        assert self.counts(kept) == {"train-a": 40, "train-b": 20, "train-c": 20, "val-a": 4, "val-b": 4}

    def test_a_side_without_the_class_is_refused(self):
        truth, split = self.study(train={"a": 40, "b": 40}, val={"b": 4})

        with pytest.raises(SettingsError, match="on the val side, which holds 0 a, 4 b"):
            subsample_to_prevalence(truth, split, ("a", "b"), {"a": 0.2}, 0)

    def test_a_side_where_nobody_takes_the_rest_is_refused(self):
        """On validation 60 % are left for c, of which there is none."""
        truth, split = self.study(train={"a": 9, "b": 9, "c": 9}, val={"a": 8, "b": 8})

        with pytest.raises(SettingsError, match="on the val side, which holds 8 a, 8 b, 0 c"):
            subsample_to_prevalence(truth, split, ("a", "b", "c"), {"a": 0.2, "b": 0.2}, 0)

    @settings(deadline=None)
    @given(st.integers(20, 90), st.integers(20, 90), st.integers(20, 90), st.floats(0.1, 0.8))
    def test_within_half_an_image_a_class(self, n, m, s, share):
        truth, split = self.study(train={"n": n, "m": m, "s": s})

        kept = self.counts(subsample_to_prevalence(truth, split, ("n", "m", "s"), {"n": share}, 0))

        assert abs(kept["train-n"] - share * sum(kept.values())) <= 1.5
        # Nothing goes that could have stayed: the class, or the others, are whole.
        assert kept["train-n"] == n or (kept["train-m"], kept["train-s"]) == (m, s)


class TestCheckSides:
    IMAGES = refs([0, 0, 1, 2])

    def check(self, values: str, sides: list[Side], classes: tuple[str, ...] = ("a", "b")) -> None:
        ids = [image.id for image in self.IMAGES]
        check_sides(self.IMAGES, dict(zip(ids, values, strict=True)), dict(zip(ids, sides, strict=True)), classes)

    def test_accepts_a_study(self):
        images = refs([0, 0, 1, 1])
        check_sides(images, truth_of(images, list("abab")), {"0.png": "train", "1.png": "train", "2.png": "test", "3.png": "test"}, ("a", "b"))  # fmt: skip  # noqa: E501

    def test_a_patient_on_two_sides_is_named(self):
        with pytest.raises(
            SettingsError, match=r"1 patients have images on more than one side: patient p0 \(train, te"
        ):
            self.check("abab", ["train", "test", "train", "test"])

    def test_a_side_without_a_class_is_refused(self):
        with pytest.raises(SettingsError, match=r"test side has no image of class 'b', of which .* 1 patients in all"):
            self.check("abaa", ["train", "train", "test", "test"])

    def test_what_does_not_belong_together_is_named(self):
        with pytest.raises(SettingsError, match=r"do not belong together: 3\.png"):
            check_sides(self.IMAGES[:3], dict.fromkeys(IDS, "a"), dict.fromkeys(IDS[:3], "train"), ("a",))
        with pytest.raises(SettingsError, match=r"do not belong together: 0\.png"):
            check_sides([self.IMAGES[0]] * 2, {"0.png": "a"}, {"0.png": "train"}, ("a",))
