"""Agreement of readers: kappa against scikit-learn, the interval on drawn readers, and the cases that projects have."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score

from ml_backend.analytics.history import Answer, ImageInsight, RoundInsight
from ml_backend.analytics.readers import (
    Estimate,
    RoundForesight,
    agreement_answer,
    correlation,
    disagreement,
    estimate_words,
    foresight,
    foresight_answer,
    outlier_answer,
    pooled,
    rank_correlation,
    reader_agreement,
)

CLASSES = ("normal", "moderate", "severe")
BEGAN = datetime(2026, 11, 2, 8, 0, tzinfo=UTC)


def answers(reads: Sequence[tuple[str, str, int | None]], **fields: object) -> list[Answer]:
    """(image, reader, class) in the order of the answers; the class None is unreadable."""
    return [
        Answer(
            image_id=image,
            rater=rater,
            created_at=BEGAN + timedelta(minutes=number),
            value=None if value is None else CLASSES[value],
            **fields,
        )
        for number, (image, rater, value) in enumerate(reads)
    ]


def compared(given: Sequence[Answer], classes: Sequence[str] = CLASSES, **chosen: Any) -> Any:
    """The type of the figures is not narrowed: a missing one fails its test."""
    return reader_agreement(given, classes, **chosen)


def panel(given: Mapping[str, Sequence[int | None]]) -> list[Answer]:
    """Reader -> class of each image; image by image."""
    number = len(next(iter(given.values())))
    return answers([(f"{one}", rater, values[one]) for one in range(number) for rater, values in given.items()])


def draw(rng: np.random.Generator, images: int, errors: Sequence[float]) -> Any:
    """Answers of readers who are one class off, or two, in these shares of the images."""
    truth = rng.choice(3, size=images, p=(0.6, 0.25, 0.15))
    step = rng.choice([-1, 1], size=(len(errors), images)) * (1 + (rng.random((len(errors), images)) < 0.15))
    wrong = rng.random((len(errors), images)) < np.array(errors)[:, None]
    return np.clip(truth + step * wrong, 0, 2)


def read_by(drawn: Any) -> list[Answer]:
    return panel({str(rater): row.tolist() for rater, row in enumerate(drawn)})


class TestKappa:
    @pytest.mark.parametrize("ordered", [True, False])
    def test_two_readers_against_scikit_learn(self, ordered):
        drawn = draw(np.random.default_rng(1), 80, (0.3, 0.4))

        found = compared(read_by(drawn), ordered=ordered).readers[0].agreement

        expected = cohen_kappa_score(*drawn, weights="quadratic" if ordered else None)
        assert (found.value, found.n) == (pytest.approx(expected), 80)

    def test_the_error_of_whole_answers(self):
        """With many images that of Fleiss, Cohen & Everitt 1969: here a table of 2,000, by its formula."""
        table = np.array([[1060, 90, 10], [80, 400, 60], [0, 70, 230]])
        pairs = [(i, j) for i in range(3) for j in range(3) for _ in range(table[i, j])]
        found = compared(read_by(np.array(pairs).T)).readers[1].agreement
        p, w = table / 2000, 1 - np.subtract.outer(np.arange(3), np.arange(3)) ** 2 / 4
        rows, columns = p.sum(1), p.sum(0)
        observed, expected = (w * p).sum(), rows @ w @ columns
        part = w - np.add.outer(w @ columns, rows @ w) * (1 - found.value)
        error = ((p * part**2).sum() - (found.value - expected * (1 - found.value)) ** 2) ** 0.5 / (1 - expected)

        assert found.value == pytest.approx((observed - expected) / (1 - expected))
        assert (found.high - found.low) / (2 * 1.96) == pytest.approx(error / 2000**0.5, rel=0.01)

    def test_all_agree(self):
        """Without the added images the interval would have no width."""
        found = compared(panel({"a": [0, 1, 2] * 5, "b": [0, 1, 2] * 5}))

        assert found.apart == (15, 0, 0)
        for one in (found.kappa, found.readers[0].agreement):
            assert one.value == one.high == 1.0
            assert one.low == pytest.approx(0.64, abs=0.01)

    def test_all_always_disagree(self):
        found = compared(panel({"a": [0, 2] * 10, "b": [2, 0] * 10}))

        assert found.apart == (0, 0, 20)
        assert found.kappa.value == found.kappa.low == pytest.approx(-1.0)

    def test_one_class_for_everything(self):
        """Kappa is undefined between two such readers, and says nothing against others; the bias shows it."""
        found = compared(panel({"a": [2] * 30, "b": [2] * 30}))
        assert (found.kappa, found.readers[0].agreement, found.readers[0].drift) == (None, None, None)

        found = compared(panel({"a": [2] * 30, "b": [0, 1, 2] * 10})).readers[0]
        assert (found.agreement, found.drift) == (None, None)
        assert found.bias.value == pytest.approx(1.0)

    def test_fifty_readers(self):
        rng = np.random.default_rng(3)
        drawn = draw(rng, 400, [0.2] * 50)
        reads = [(str(one), str(who), int(drawn[who, one])) for one in range(400) for who in rng.choice(50, 3, False)]

        found = compared(answers(reads))

        assert (len(found.readers), sum(one.reads for one in found.readers), found.images) == (50, 1200, 400)
        assert np.median([one.agreement.value for one in found.readers]) == pytest.approx(found.kappa.value, abs=0.1)


def test_intervals_hold_the_true_values():
    """Of 80 projects of 60 images and three readers, one of them poor; the true values are of 8,000 images."""
    rng, errors = np.random.default_rng(5), (0.1, 0.15, 0.4)

    def found(images: int) -> list[Any]:
        of = compared(read_by(draw(rng, images, errors)))
        return [of.kappa, *(figure for one in of.readers for figure in (one.agreement, one.bias, one.drift))]

    true = [one.value for one in found(8_000)]
    true[3::3] = [0.0] * 3  # they do not drift
    held = np.array(
        [[one.low <= value <= one.high for one, value in zip(found(60), true, strict=True)] for _ in range(400)]
    )

    assert held.mean(axis=0).min() > 0.88
    assert 0.93 < held.mean() < 0.985


class TestReference:
    def test_a_tie_of_the_others_counts_half(self):
        """Both of the others' answers are in the middle: no reader appears too mild for the rule's severe choice."""
        one = compared(panel({"a": [1], "b": [0], "c": [2]})).readers[0]

        assert one.confusion["normal"]["moderate"] == one.confusion["severe"]["moderate"] == 0.5
        assert one.bias.value == 0.0

    def test_a_poor_reader_among_three_others(self):
        one = compared(panel({"a": [0], "b": [0], "c": [0], "d": [2]})).readers[0]

        assert one.confusion["normal"] == {"normal": 1.0, "moderate": 0.0, "severe": 0.0}

    def test_the_most_frequent_class_without_an_order(self):
        one = compared(panel({"a": [1], "b": [0], "c": [2], "d": [2]}), ordered=False).readers[0]

        assert one.confusion["severe"]["moderate"] == 1.0
        assert one.bias is None

    def test_a_ground_truth_comes_before_the_others(self):
        truth = answers([("1", "chief", 2)], ground_truth=True)
        given = [*answers([("1", "a", 0), ("1", "b", 0)]), *truth]

        found = compared(given)

        assert [one.rater for one in found.readers] == ["a", "b"]
        assert found.readers[0].confusion["severe"]["normal"] == 1.0
        assert [len(compared(given, ground_truth=how).readers) for how in ("reader", "ignore")] == [3, 2]

    def test_an_answer_that_is_the_ground_truth_itself(self):
        """It is a read, and compared with nothing; the other readers are compared with it."""
        given = answers([("2", "a", 1), ("2", "b", 0)], lead_time_s=9.0)
        given[0] = given[0].model_copy(update={"ground_truth": True})

        assert [(one.reads, one.compared) for one in compared(given).readers] == [(1, 0), (1, 1)]

    @pytest.mark.parametrize("how", ["override", "ignore", "reader"])
    def test_a_decision_does_not_make_readers_agree(self, how):
        """Whether readers agree is the same after each difference was decided for one of them."""
        drawn = draw(np.random.default_rng(7), 60, (0.2, 0.2))
        before = [one.model_copy(update={"lead_time_s": 9.0}) for one in read_by(drawn)]
        apart = drawn[0] != drawn[1]
        after = [
            one.model_copy(update={"ground_truth": one.rater == "0" and bool(apart[int(one.image_id)])})
            for one in before
        ]
        found, decided = compared(before), compared(after, ground_truth=how)

        assert 0 < apart.sum() < 60
        assert (decided.kappa, decided.apart, decided.images) == (found.kappa, found.apart, 60)

    def test_imported_ground_truths_as_readers(self):
        """Label Studio gives those without an author to the user who imports them: they are no reads of hers."""
        truths = answers([(str(n), "1", value) for n in range(40) for value in (n % 3, (n + 1) % 3)], ground_truth=True)
        found = compared([*answers([("0", "2", 0)]), *truths], ground_truth="reader")

        assert [(one.rater, one.compared) for one in found.readers] == [("2", 1)]
        assert (found.unnamed, found.images) == (80, 40)
        assert found.kappa.value < 0

    def test_readers_who_never_overlap(self):
        found = compared(answers([("1", "a", 0), ("2", "b", 1)]))

        assert (found.images, found.kappa) == (0, None)
        assert [(one.reads, one.compared, one.agreement) for one in found.readers] == [(1, 0, None)] * 2

    def test_answers_that_are_no_class(self):
        """Skips, unreadable images, and classes that are ignored or gone compare with nothing."""
        given = [*answers([("1", "a", 0), ("1", "b", None)]), *answers([("2", "a", None)], skipped=True)]
        given.append(given[0].model_copy(update={"image_id": "3", "rater": "b", "value": "technically poor"}))

        found = compared(given)

        assert [(one.reads, one.skips, one.compared) for one in found.readers] == [(1, 1, 0), (2, 0, 0)]

    def test_answers_without_an_author(self):
        """Each is a rater of its own to the rules: they are compared with, and no reader."""
        found = compared(answers([("1", "a", 0), ("1", "unknown, annotation 9", 0)]))

        assert (len(found.readers), found.unnamed, found.readers[0].compared) == (1, 1, 1)

    def test_no_answer_has_an_author(self):
        apart = compared(answers([("1", "unknown, annotation 8", 0), ("2", "unknown, annotation 9", 0)]))
        found = compared(answers([("1", "unknown, annotation 8", 0), ("1", "unknown, annotation 9", 1)]))

        assert (found.readers, found.images, found.classes) == ((), 1, 3)
        assert agreement_answer(apart).startswith("No image has answers of two readers yet")
        assert agreement_answer(found).startswith("Too early to tell")

    def test_no_answers(self):
        assert compared([]).readers == ()

    def test_tasks_of_one_image(self):
        found = compared(answers([("1", "a", 0), ("2", "b", 0)]), image_of=lambda _: "1")

        assert found.images == 1


def test_words_of_a_figure_that_is_almost_zero():
    assert estimate_words(Estimate(value=-0.004, low=-0.2, high=0.2, n=9)) == "0.00 (−0.20 to 0.20)"


@pytest.mark.parametrize(
    ("given", "begins"),
    [
        ({}, "No reader has answered yet"),
        ({"a": [0] * 40}, "Only one reader has answered so far"),
        ({"a": [0, 1] * 5, "b": [0, 2] * 5}, "Too early to tell, on so few images: kappa 0.64"),
        ({"a": [0, 1] * 20, "b": [0, 1] * 20}, "Almost perfect agreement: kappa 1.00"),
        ({"a": [0, 1, 2, 2] * 20, "b": [0, 2, 2, 0] * 20}, "Slight to moderate agreement: kappa 0.27 (95 %"),
        ({"a": [1] * 40, "b": [1] * 40}, "Not known yet: on 100 % (91 to 100) of the 40 images that several read, all"),
    ],
)
def test_sentence_about_agreement(given, begins):
    found = compared(panel(given) if given else [])

    assert agreement_answer(found).startswith(begins)


@pytest.mark.parametrize(
    ("third", "ordered", "answer"),
    [
        pytest.param(
            [2] * 40,
            True,
            "c stands out: too severe by 1.48 classes (95 % interval 1.32 to 1.63).",
            id="each time a class or two higher",
        ),
        pytest.param([0] * 40, False, "", id="the same class each time has no kappa"),
        pytest.param([0, 1] * 20, True, "No reader clearly stands out.", id="as the others"),
        pytest.param([2, 0] * 20, False, "c stands out: agrees least with the others, kappa −", id="no order"),
        pytest.param([2] * 9 + [None] * 31, True, "", id="too few images"),
    ],
)
def test_the_reader_who_stands_out(third, ordered, answer):
    others = [0, 1] * 19 + [1, 1]
    found = compared(panel({"a": others, "b": [*others[:36], 2, 1, 0, 0]} | {"c": third}), ordered=ordered)

    assert outlier_answer([(one.rater, one) for one in found.readers]).startswith(answer)


def test_of_two_readers_none_stands_out():
    found = compared(panel({"a": [0, 1] * 20, "b": [2] * 40}))

    assert outlier_answer([(one.rater, one) for one in found.readers]) == ""


def test_the_answers_about_the_tasks_asked_for():
    found = compared(panel({"a": [0, 1, 2], "b": [0, 2, None]}), asked=["1", "2", "99"])

    assert found.answers == {"1": ("moderate", "severe")}


def test_repeats_and_the_latest_answer():
    """The first answer and the second make the kappa; the latest is the one that others are compared with."""
    first, again = [0, 1, 2, 0, 1, 2, 1, 0], [0, 1, 2, 0, 1, 2, 2, 1]
    reads = [(str(n), "a", value) for values in (first, again) for n, value in enumerate(values)]
    found = compared([*answers([("6", "b", 2)]), *answers(reads)]).readers[1]

    assert found.repeats.value == pytest.approx(cohen_kappa_score(first, again, weights="quadratic"))
    assert (found.repeated, found.confusion["severe"]["severe"], found.reads) == (8, 1.0, 16)


def test_drift():
    """A reader who answers as the others do at first, and always severe in the end."""
    true = [0, 1, 2] * 40
    found = compared(panel({"a": true[:60] + [2, 2, 1] * 20, "b": true, "c": true, "d": true}))

    assert found.readers[0].drift.high < 0 < found.readers[0].bias.low
    assert found.readers[1].drift.value == pytest.approx(0.0, abs=0.01)


class TestForesight:
    def test_spearman_against_scipy(self):
        rng = np.random.default_rng(2)
        one, other = rng.random(40).round(1), rng.integers(0, 3, 40) / 3.0

        assert rank_correlation(one, other) == pytest.approx(spearmanr(one, other).statistic)
        assert rank_correlation(one, np.zeros(40)) is None

    def test_the_interval_holds_the_true_correlation(self):
        """A third of the images disagree, as it is with readers: most values are tied."""
        rng = np.random.default_rng(4)

        def drawn(images: int) -> Any:
            uncertainty = rng.normal(size=images)
            return uncertainty, (uncertainty + 1.5 * rng.normal(size=images) > 0.8).astype(float)

        true: Any = rank_correlation(*drawn(200_000))
        singles: Any = [correlation(*drawn(40)) for _ in range(1000)]
        together: Any = [pooled(correlation(*drawn(20)) for _ in range(8)) for _ in range(400)]
        small: Any = [pooled(correlation(*drawn(4)) for _ in range(15)) for _ in range(400)]

        for found in (singles, together, small):
            assert np.mean([one.low <= true <= one.high for one in found if one]) == pytest.approx(0.95, abs=0.025)

    def test_of_the_last_round_before_the_answers(self):
        def insight(values: Mapping[str, float]) -> RoundInsight:
            probs = dict.fromkeys(CLASSES, 1 / 3)
            images = tuple(
                ImageInsight(image_id=name, place=n, probs=probs, score=0.0, aleatoric=0.5, epistemic=value)
                for n, (name, value) in enumerate(values.items(), start=1)
            )
            return RoundInsight(images=99, expected=probs, predicted={}, batch=images)

        names = [str(n) for n in range(12)]
        spread = {name: n / 12 for n, name in enumerate(names)}
        earlier = insight({name: -float(n) + 12 for n, name in enumerate(names)} | {"unread": 1.0})
        later = insight({name: float(n) for n, name in enumerate(names)})

        found: Any
        (found,) = foresight({"r000001": earlier, "r000002": later}, spread)

        assert (found.round_id, found.images, found.epistemic.value) == ("r000002", 12, pytest.approx(1.0))
        assert found.aleatoric is None  # constant
        assert foresight({"r000001": insight({"unread": 1.0})}, spread) == ()

    @pytest.mark.parametrize(
        ("aleatoric", "epistemic", "begins"),
        [(0.5, 0.5, "Yes: "), (0.5, 0.1, "Yes, by its aleatoric part: "), (0.1, 0.1, "Not clear yet: "),
         (-0.3, -0.2, "No: "), (0.5, None, "Yes: "), (None, None, "")],
    )  # fmt: skip
    def test_sentence(self, aleatoric, epistemic, begins):
        """Of five rounds of 20 images each: 0.1 may be 0, and -0.2 is far from a use."""

        def part(value: float | None) -> Estimate | None:
            return None if value is None else Estimate(value=value, low=value - 0.4, high=value + 0.4, n=20)

        one = RoundForesight(round_id="r000001", images=20, aleatoric=part(aleatoric), epistemic=part(epistemic))

        assert foresight_answer([one] * 5).startswith(begins)
        assert bool(foresight_answer([one] * 5)) == bool(begins)
        assert foresight_answer([one]) == ""  # too few images

    def test_a_correlation_of_no_use(self):
        """Above 0, and certainly small."""
        one = RoundForesight(
            round_id="r000001", images=600, epistemic=Estimate(value=0.1, low=0.02, high=0.18, n=600), aleatoric=None
        )

        assert foresight_answer([one]).startswith("Barely: ")

    def test_rounds_of_four_images(self):
        """As where a fifth of a batch of 20 is read again: together they are enough, and none alone."""
        alone = correlation(np.arange(4.0), np.arange(4.0))
        one = RoundForesight(round_id="r000001", images=4, epistemic=alone)

        assert alone is not None
        assert alone.low < 0.2
        assert alone.value == pytest.approx(1.0)
        assert foresight_answer([one] * 7) == ""
        assert foresight_answer([one] * 8).startswith("Yes: ")

    def test_disagreement_is_the_share_of_pairs(self):
        assert disagreement({"1": "aab", "2": "a", "3": "abc"}) == {"1": pytest.approx(2 / 3), "3": 1.0}
