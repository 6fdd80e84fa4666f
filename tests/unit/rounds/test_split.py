"""Training against validation: apart by patient, stable, and every class on both sides where that can be."""

import re
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend.acquisition import seeded_draws
from ml_backend.errors import TooFewLabels
from ml_backend.rounds.split import fixed_split, fold_split, stable_split
from ml_backend.schemas import ImageRef, Label

CLASSES = ("normal", "moderate", "severe")


def label(number: int, value: str, patient: str | None = None) -> Label:
    return Label(image=ImageRef(id=str(number), uri=f"{number}.png", patient_id=patient), value=value, raters=1)


def groups(labels: Sequence[Label]) -> set[str]:
    return {one.image.group for one in labels}


def values(labels: Sequence[Label]) -> set[str]:
    return {one.value for one in labels}


def below(labels: Sequence[Label], share: float, seed: int) -> set[str]:
    """Groups whose own draw puts them into validation."""
    names = sorted(groups(labels))
    return {n for n, d in zip(names, seeded_draws(names, seed).tolist(), strict=True) if d < share * 2**64}


SINGLE_CLASS_PATIENTS = st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=30).map(
    lambda rows: [label(i, CLASSES[p % 3], f"p{p}" if known else None) for i, (p, known) in enumerate(rows)]
)

ANY_PATIENTS = st.lists(st.tuples(st.sampled_from(CLASSES), st.integers(0, 8)), min_size=1, max_size=25).map(
    lambda rows: [label(i, value, f"p{p}") for i, (value, p) in enumerate(rows)]
)


def patients_by_class(labels: Sequence[Label]) -> dict[str, int]:
    return Counter(value for _, value in {(one.image.group, one.value) for one in labels})


class TestByDraw:
    def test_hand_worked(self) -> None:
        """Of the draws of "image 1" .. "image 8" under seed 0, taken with b2sum, five lie under one half."""
        labels = [label(number, CLASSES[number % 2]) for number in range(1, 9)]

        train, validation = stable_split(labels, 0.5, 0)

        assert [one.image.id for one in validation] == ["1", "2", "6", "7", "8"]
        assert [one.image.id for one in train] == ["3", "4", "5"]

    def test_a_patient_is_never_on_both_sides(self) -> None:
        """Sixty images of 20 patients, with classes that differ within a patient."""
        labels = [label(i, CLASSES[i % 3], f"patient {i % 20}") for i in range(60)]

        train, validation = stable_split(labels, 0.3, 1)

        assert groups(train).isdisjoint(groups(validation))
        assert len(train) + len(validation) == 60
        assert values(train) == values(validation) == set(CLASSES)

    def test_the_share_is_the_expected_share(self) -> None:
        """Of 2,000 patients 400 are expected; 4 standard deviations are 72."""
        _, validation = stable_split([label(i, CLASSES[i % 3]) for i in range(2000)], 0.2, 5)

        assert 328 <= len(validation) <= 472

    def test_seeds_differ(self) -> None:
        labels = [label(i, CLASSES[i % 3]) for i in range(60)]

        assert len({tuple(one.image.id for one in stable_split(labels, 0.2, seed)[1]) for seed in range(10)}) == 10


class TestStability:
    @pytest.mark.parametrize("seed", range(20))
    def test_validation_stays_while_labels_are_added(self, seed: int) -> None:
        """The paper's course: 25 a class at first, then 20 more each round, at 14 / 36 / 50 %."""
        order = [label(i, CLASSES[i % 3], f"p{i // 2}-{i % 3}") for i in range(75)]
        order += [label(i, CLASSES[0 if i % 50 < 7 else 1 if i % 50 < 25 else 2], f"q{i}") for i in range(75, 375)]
        before: tuple[set[str], set[str]] = (set(), set())
        for known in range(75, 376, 20):
            train, validation = stable_split(order[:known], 0.2, seed)
            assert before[0] <= groups(train)
            assert before[1] <= groups(validation)
            assert values(train) == values(validation) == set(CLASSES)
            before = groups(train), groups(validation)

    @settings(deadline=None, max_examples=120)
    @given(labels=ANY_PATIENTS, share=st.sampled_from([0.1, 0.2, 0.5]), seed=st.integers(0, 50))
    def test_only_a_class_without_a_side_moves_anyone(self, labels: list[Label], share: float, seed: int) -> None:
        """Where the draws alone serve every class, they alone decide; so new labels move nobody."""
        drawn = below(labels, share, seed)
        inside = values([one for one in labels if one.image.group in drawn])
        outside = values([one for one in labels if one.image.group not in drawn])
        several = {name for name, count in patients_by_class(labels).items() if count > 1}
        if several and outside == values(labels) and several <= inside:
            assert groups(stable_split(labels, share, seed)[1]) == drawn


class TestEveryClass:
    @settings(deadline=None, max_examples=150)
    @given(labels=SINGLE_CLASS_PATIENTS, share=st.sampled_from([0.01, 0.2, 0.5, 0.99]), seed=st.integers(0, 50))
    def test_both_sides_where_it_has_two_patients(self, labels: list[Label], share: float, seed: int) -> None:
        """The draws often put all of a small class on one side; a class of one patient is trained on."""
        counts = patients_by_class(labels)
        if max(counts.values()) < 2:
            return

        train, validation = stable_split(labels, share, seed)

        assert values(train) == values(labels)
        assert values(validation) >= {name for name, count in counts.items() if count > 1}

    @settings(deadline=None, max_examples=150)
    @given(labels=ANY_PATIENTS, share=st.sampled_from([0.01, 0.2, 0.5, 0.99]), seed=st.integers(0, 50))
    def test_patients_of_several_classes(self, labels: list[Label], share: float, seed: int) -> None:
        if max(patients_by_class(labels).values()) < 2:
            return

        train, validation = stable_split(labels, share, seed)

        assert train
        assert validation
        assert groups(train).isdisjoint(groups(validation))
        assert sorted([*train, *validation], key=lambda one: int(one.image.id)) == labels

    @pytest.mark.parametrize("seed", range(30))
    def test_one_move_may_call_for_another(self, seed: int) -> None:
        """Patient b can validate only if a and c do not, so two splits are good: {b} and {a, c}."""
        labels = [
            label(1, "normal", "a"),
            label(2, "normal", "b"),
            label(3, "severe", "b"),
            label(4, "severe", "c"),
        ]

        _, validation = stable_split(labels, 0.5, seed)

        assert groups(validation) in ({"patient b"}, {"patient a", "patient c"})

    def test_where_it_cannot_be_training_comes_first(self) -> None:
        """Three patients share three classes pairwise: whoever validates, one class is on one side only."""
        pairs = {"a": CLASSES[:2], "b": CLASSES[1:], "c": CLASSES[::2]}
        labels = [
            label(2 * i + j, value, patient)
            for i, (patient, pair) in enumerate(pairs.items())
            for j, value in enumerate(pair)
        ]

        for seed in range(30):
            train, validation = stable_split(labels, 0.5, seed)
            assert values(train) == set(CLASSES)
            assert len(groups(validation)) == 1


class TestOrder:
    @settings(deadline=None)
    @given(labels=ANY_PATIENTS, data=st.data())
    def test_the_order_of_labels_decides_nothing(self, labels: list[Label], data: st.DataObject) -> None:
        if max(patients_by_class(labels).values()) < 2:
            return

        assert stable_split(data.draw(st.permutations(labels)), 0.3, 0) == stable_split(labels, 0.3, 0)


class TestTooFew:
    @pytest.mark.parametrize(
        ("labels", "found"),
        [
            ([], "no label at all"),
            ([label(1, "normal")], "normal: 1"),
            ([label(i, "normal", "one patient") for i in range(5)], "normal: 1"),
            ([label(1, "severe"), label(2, "normal")], "normal: 1, severe: 1"),
        ],
    )
    def test_says_what_there_is_and_what_is_needed(self, labels: list[Label], found: str) -> None:
        message = rf"{len(labels)} labels cannot be split .* some class needs labels of 2 patients .* got {found};"
        with pytest.raises(TooFewLabels, match=message):
            stable_split(labels, 0.2, 0)

    def test_two_patients_of_one_class_are_enough(self) -> None:
        train, validation = stable_split([label(1, "normal"), label(2, "normal")], 0.2, 0)

        assert len(train) == len(validation) == 1

    @pytest.mark.parametrize("share", [0.0, 1.0, -0.2, 20.0, float("nan")])
    def test_a_share_that_is_none(self, share: float) -> None:
        with pytest.raises(ValueError, match=re.escape(f"above 0 and below 1, got {share}")):
            stable_split([label(1, "normal"), label(2, "normal")], share, 0)


class TestFixedSplit:
    def test_the_same_images_are_validation_whatever_else_is_labelled(self):
        split = fixed_split(["3", "30"])

        train, validation = split([label(n, "normal") for n in (12, 3, 5)], 0.2, 0)
        more_train, more_validation = split([label(n, "severe") for n in (30, 12, 3, 5, 4)], 0.9, 7)

        assert [one.image.id for one in train] == ["5", "12"]
        assert [one.image.id for one in validation] == ["3"]
        assert [one.image.id for one in more_train] == ["4", "5", "12"]
        assert [one.image.id for one in more_validation] == ["3", "30"]

    @pytest.mark.parametrize("numbers", [(3,), (5,), ()])
    def test_both_sides_need_a_label(self, numbers):
        with pytest.raises(TooFewLabels, match=r"labels to train on and \d of the 2 validation images: both need"):
            fixed_split(["3", "30"])([label(n, "normal") for n in numbers], 0.2, 0)


class TestFolds:
    @given(
        patients=st.lists(st.tuples(st.sampled_from(CLASSES), st.integers(0, 8)), min_size=1, max_size=40),
        folds=st.integers(2, 5),
        seed=st.integers(0, 2**40),
    )
    @settings(deadline=None, max_examples=50)
    def test_each_label_is_held_out_once_and_no_patient_is_torn(
        self, patients: list[tuple[str, int]], folds: int, seed: int
    ) -> None:
        labels = [label(number, value, f"p{patient}") for number, (value, patient) in enumerate(patients)]
        largest = max(Counter(one.value for one in labels).values())
        possible = min(folds, len(groups(labels)), largest)
        if possible < 2:
            with pytest.raises(TooFewLabels):
                fold_split(labels, folds, seed)
            return

        sides = fold_split(labels, folds, seed)

        assert 2 <= len(sides) <= possible
        assert len(sides) == possible or len(groups(labels)) < 2 * folds
        assert sorted(one.image.id for _, held_out in sides for one in held_out) == sorted(
            one.image.id for one in labels
        )
        for train, held_out in sides:
            assert held_out
            assert groups(train).isdisjoint(groups(held_out))
            assert len(train) + len(held_out) == len(labels)

    def test_classes_are_spread_evenly(self) -> None:
        """Thirty, twelve and six images of as many patients, over three folds: 10, 4 and 2 in each."""
        counts = dict(zip(CLASSES, (30, 12, 6), strict=True))
        labels = [label(100 * place + n, name) for place, name in enumerate(CLASSES) for n in range(counts[name])]

        for _, held_out in fold_split(labels, 3, 7):
            assert Counter(one.value for one in held_out) == {"normal": 10, "moderate": 4, "severe": 2}

    def test_depends_on_seed_and_not_on_order(self) -> None:
        labels = [label(number, CLASSES[number % 3]) for number in range(30)]

        assert fold_split(labels, 3, 1) == fold_split(labels[::-1], 3, 1)
        assert fold_split(labels, 3, 1) != fold_split(labels, 3, 2)

    def test_fewer_folds_where_labels_are_few(self) -> None:
        """Two labels of each of two classes: two folds, each with both classes on both sides."""
        labels = [label(number, CLASSES[number % 2]) for number in range(4)]

        sides = fold_split(labels, 5, 0)

        assert len(sides) == 2
        assert all(values(side) == set(CLASSES[:2]) for fold in sides for side in fold)

    def test_a_rare_class_does_not_lower_the_number_of_folds(self) -> None:
        labels = [label(number, "severe" if number < 2 else "normal") for number in range(10)]

        sides = fold_split(labels, 5, 0)

        assert len(sides) == 5
        assert all(values(train) == {"normal", "severe"} for train, _ in sides)

    def test_too_few_patients(self) -> None:
        labels = [label(number, CLASSES[number % 3], "p") for number in range(9)]

        with pytest.raises(TooFewLabels, match=r"9 labels of 1 patients, at most 3 of a class, cannot be split"):
            fold_split(labels, 3, 0)


class TestCopies:
    """Labels of tasks that hold one image."""

    COPIES = st.lists(
        st.tuples(st.sampled_from(CLASSES), st.integers(0, 12), st.sampled_from([None, None, "p", "q"])),
        min_size=4,
        max_size=30,
    ).map(
        lambda rows: [
            Label(image=ImageRef(id=str(n), uri=f"{uri}.png", patient_id=patient), value=value, raters=1)
            for n, (value, uri, patient) in enumerate(rows)
        ]
    )

    @settings(deadline=None)
    @given(labels=COPIES, seed=st.integers(0, 50))
    def test_no_address_and_no_patient_is_on_both_sides(self, labels, seed):
        try:
            sides = [stable_split(labels, 0.3, seed), *fold_split(labels, 2, seed)]
        except TooFewLabels:
            return
        for train, validation in sides:
            for shared in ("uri", "patient_id"):
                here, there = ({getattr(one.image, shared) for one in side} - {None} for side in (train, validation))
                assert here.isdisjoint(there)
            assert sorted([*train, *validation], key=repr) == sorted(labels, key=repr)
