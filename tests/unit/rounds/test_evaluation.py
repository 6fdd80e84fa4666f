"""Active against random selection at equal label counts, on learners whose answers follow from their labels."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from ml_backend.analytics.evaluation import ActiveAgainstRandom, HoldoutLabel, LabelsByOrigin
from ml_backend.errors import TooFewLabels
from ml_backend.predictions import PoolPredictions
from ml_backend.registry import Need
from ml_backend.rounds.evaluation import active_vs_random, table
from ml_backend.schemas import FitReport, ImageRef, Label
from tests.fakes import CLASSES, NOON, FakeLearner, make_image


def label(number: int, patient: str | None = None) -> Label:
    return Label(image=make_image(number, patient), value=CLASSES[number % 3], raters=1)


def origin(start: int = 12, control: int = 40, chosen: int = 60, patients: int | None = None) -> LabelsByOrigin:
    """Start set from image 0 on, control from 1000, chosen from 2000; patients share their images among all three."""

    def labels(first: int, count: int) -> tuple[Label, ...]:
        return tuple(label(n, None if patients is None else f"p{n % patients}") for n in range(first, first + count))

    probs = dict.fromkeys(CLASSES, 1 / 3)
    return LabelsByOrigin(
        start=labels(0, start),
        control=tuple(HoldoutLabel(one, "r000002", probs, NOON) for one in labels(1000, control)),
        chosen=labels(2000, chosen),
    )


class Knowing(FakeLearner):
    """Answers rightly where the last digit of an image lies below a bound: which one depends on what it has learned."""

    def __init__(self, journal: list[tuple[list[str], list[str]]], active_knows: int, random_knows: int) -> None:
        super().__init__()
        self._log = journal
        self._help = active_knows, random_knows
        self._knows = 0

    def fit(self, train: Sequence[Label], validation: Sequence[Label], classes: Sequence[str]) -> FitReport:
        learned = [one.image.id for one in (*train, *validation)]
        self._knows = self._help[0] if any(int(i) >= 2000 for i in learned) else self._help[1]
        self._learned = learned
        return super().fit(train, validation, classes)

    def outputs(self, pool: Sequence[ImageRef], needs: frozenset[Need]) -> PoolPredictions:
        self._log.append((self._learned, [image.id for image in pool]))
        right = [int(image.id) % 10 < self._knows for image in pool]
        answers = [int(i.id) % 3 if ok else (int(i.id) + 1) % 3 for i, ok in zip(pool, right, strict=True)]
        probs = np.eye(3, dtype=np.float32)[answers][:, None].repeat(2, axis=1)
        return PoolPredictions(tuple(image.id for image in pool), self._classes, probs)


def compared(
    labels: LabelsByOrigin, active_knows: int = 8, random_knows: int = 5, control_share: float = 0.1, left: int = 1000
):
    journal: list[tuple[list[str], list[str]]] = []
    found: ActiveAgainstRandom = active_vs_random(
        labels,
        lambda: Knowing(journal, active_knows, random_knows),
        CLASSES,
        validation_share=0.3,
        seed=0,
        control_share=control_share,
        left=left,
    )
    return found, journal


class TestCounts:
    def test_what_came_by_hand_is_on_neither_side(self):
        picked = (label(3000), label(3001))
        found, journal = compared(replace(origin(), by_hand=picked))

        assert not {"3000", "3001"} & {image for learned, asked in journal for image in (*learned, *asked)}
        assert found.by_hand == 2
        assert found.sentence.endswith(" 2 labels of images put next by hand are on neither side.")
        assert "by hand" not in compared(origin())[0].sentence

    def test_equal_on_both_sides_and_every_control_image_is_asked_once(self):
        found, journal = compared(origin())

        asked = [image for _, images in journal[::2] for image in images]
        assert sorted(asked) == [str(n) for n in range(1000, 1040)]
        assert [images for _, images in journal[::2]] == [images for _, images in journal[1::2]]
        for (active, _), (random, _) in zip(journal[::2], journal[1::2], strict=True):
            assert len(active) == len(random)
            assert not any(1000 <= int(i) < 2000 for i in active)
            assert not any(int(i) >= 2000 for i in random)
        assert found.labels == tuple(len(learned) for learned, _ in journal[::2])
        assert [n - e for n, e in zip(found.labels, found.chosen, strict=True)] == [12] * 5

    def test_the_earliest_chosen_are_taken_and_no_more_than_there_are(self):
        found, journal = compared(origin(chosen=10))

        assert found.chosen == (10,) * 5
        assert all({str(n) for n in range(2000, 2010)} <= set(learned) for learned, _ in journal[::2])

    def test_nobody_is_learned_from_and_asked_about(self):
        """Fifteen patients, each with images among start, control and chosen."""
        _, journal = compared(origin(patients=15))

        for learned, asked in journal:
            assert not {int(i) % 15 for i in learned} & {int(i) % 15 for i in asked}


class TestResult:
    @pytest.mark.parametrize(
        ("active", "random", "difference", "verdict"),
        [(8, 5, 0.3, "pays."), (3, 8, -0.5, "has cost accuracy here."), (5, 5, 0.0, "no significant difference yet.")],
    )
    def test_sign_of_the_difference(self, active, random, difference, verdict):
        """Of ten images, the active network knows so many, the random one so many."""
        found, _ = compared(origin(), active, random)

        assert found.difference == pytest.approx(difference)
        assert (found.low > 0, found.high < 0) == (difference > 0, difference < 0)
        assert found.sentence.endswith(verdict)

    def test_figures(self):
        """Of 40 images 8 of 10 known against 5 of 10: 12 more, none fewer; p = 2 / 2^12."""
        found, _ = compared(origin())

        assert (found.images, found.active_correct, found.random_correct) == (40, 32, 20)
        assert (found.only_active, found.only_random) == (12, 0)
        assert found.p == pytest.approx(2 / 2**12)
        assert 0 < found.low < 0.3 < found.high < 1

    def test_no_image_decides_between_equal_networks(self):
        found, _ = compared(origin(), 5, 5)

        assert (found.p, found.low, found.high) == (1.0, 0.0, 0.0)

    def test_interval_is_a_bootstrap_over_patients(self):
        """Against a plain loop over the resampled patients, of 40 images of 15 patients."""
        labels = origin(patients=15)
        found, _ = compared(labels)
        gains: dict[int, list[int]] = {}
        for one in labels.control:
            number = int(one.label.image.id)
            gains.setdefault(number % 15, []).append(int(number % 10 in {5, 6, 7}))
        patients = [gains[number] for number in sorted(gains, key=lambda number: f"patient p{number}")]
        draws = np.random.default_rng(0).integers(len(patients), size=(9_999, len(patients)))
        means = [np.mean([gain for index in draw for gain in patients[index]]) for draw in draws]

        assert (found.low, found.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))

    def test_as_a_table(self):
        """40 holdout images in five folds of 8: 32 are trained on, with 12 of the start."""
        lines = table(compared(origin())[0]).splitlines()

        assert [line.split()[-2:] for line in lines[1:]] == [["44", "44"], ["32", "32"], ["32", "20"], ["12", "0"]]
        assert len({len(line) for line in lines}) == 1

    def test_the_same_twice(self):
        assert compared(origin())[0].low == compared(origin())[0].low


RANDOM = origin().start[:7]


class TestTooFewLabels:
    @pytest.mark.parametrize(
        ("labels", "words"),
        [
            (origin(control=12), r"12 holdout .* 30 are needed: 18 more; .* about 180 more labels"),
            (origin(control=12), r"so far 12 labels from before the first network, 60 chosen by it\)"),
            (replace(origin(control=12), random=RANDOM), r"60 chosen by it, 7 under strategy=random\)"),
            (replace(origin(control=0, chosen=0), random=RANDOM), r"all 7 labels .*strategy=random.*; set another"),
            (replace(origin(chosen=0), random=RANDOM), "no image that the strategy chose"),
            (origin(chosen=0), "no image that the strategy chose"),
        ],
    )
    def test_says_what_is_missing(self, labels, words):
        with pytest.raises(TooFewLabels, match=words):
            compared(labels)

    @pytest.mark.parametrize(
        ("control_share", "left", "words"),
        [
            (0.1, 180, "; at control_share=0.1 that takes about 180 more labels"),
            (0.1, 179, "; with the option control_share=0.3 that takes about 60 more labels"),
            (0.0, 59, "; with the option control_share=0.5 that takes about 36 more labels"),
            (0.5, 35, "; of the 35 images left at most every second is drawn at random, too few: import more images"),
        ],
    )
    def test_advises_what_fits_the_images_left(self, control_share, left, words):
        with pytest.raises(TooFewLabels, match=words):
            compared(origin(control=12), control_share=control_share, left=left)
