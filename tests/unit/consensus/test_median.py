"""Readers' answers into labels."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend.config.settings import CONSENSUS_RULES
from ml_backend.consensus import RULES, Consensus, adjudication, median, rule
from ml_backend.rounds.interfaces import ConsensusRule
from ml_backend.schemas import Annotation, ImageRef, Label

CLASSES = ("normal", "moderate", "severe")
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def annotation(
    value: str | None,
    rater: str,
    image_id: str = "1",
    *,
    minute: int = 0,
    ground_truth: bool = False,
    patient: str = "p",
) -> Annotation:
    image = ImageRef(id=image_id, uri=f"{image_id}.png", patient_id=patient)
    at = NOON + timedelta(minutes=minute)
    return Annotation(image=image, rater=rater, value=value, ground_truth=ground_truth, updated_at=at)


def of_one_image(*values: str | None) -> Consensus:
    return median([annotation(value, f"reader {i}") for i, value in enumerate(values)], CLASSES)


def the_label(consensus: Consensus) -> Label:
    [label] = consensus.labels
    assert consensus.exclusions == ()
    return label


class TestMedian:
    @pytest.mark.parametrize(
        ("values", "expected", "disputed"),
        [
            (["moderate"], "moderate", False),
            (["severe", "normal", "moderate"], "moderate", False),
            (["normal", "severe", "normal"], "normal", False),
            (["moderate", "moderate"], "moderate", False),
            (["normal", "moderate"], "moderate", True),
            (["severe", "moderate"], "severe", True),
            (["severe", "normal"], "severe", True),
            (["normal", "normal", "normal", "severe"], "normal", False),
            (["normal", "severe", "moderate", "normal"], "moderate", True),
            (["severe", "normal", "moderate", "moderate", "normal", "severe"], "moderate", False),
        ],
    )
    def test_hand_worked(self, values: list[str], expected: str, disputed: bool) -> None:
        label = the_label(of_one_image(*values))

        assert (label.value, label.disputed, label.raters) == (expected, disputed, len(values))

    def test_severity_is_the_order_of_the_classes(self) -> None:
        """By the alphabet ``mild`` would come before ``none``."""
        annotations = [annotation("mild", "a"), annotation("none", "b")]

        assert the_label(median(annotations, ("none", "mild"))).value == "mild"
        assert the_label(median(annotations, ("mild", "none"))).value == "none"

    def test_no_annotation(self) -> None:
        assert median([], CLASSES) == Consensus(())


class TestWhoCounts:
    def test_a_reader_s_latest_answer(self) -> None:
        """One reader went from severe to normal; beside the other's normal nothing is left to dispute."""
        annotations = [
            annotation("normal", "a", minute=5),
            annotation("severe", "a", minute=1),
            annotation("normal", "b"),
        ]

        label = the_label(median(annotations, CLASSES))

        assert (label.value, label.raters, label.disputed) == ("normal", 2, False)

    def test_a_reader_may_take_an_answer_back(self) -> None:
        annotations = [annotation("severe", "a"), annotation(None, "a", minute=1), annotation("normal", "b")]

        label = the_label(median(annotations, CLASSES))

        assert (label.value, label.raters) == ("normal", 1)

    def test_ground_truth_overrides_all(self) -> None:
        """Three readers, later and of one mind, do not outvote it; that they differ is for the owner to see."""
        annotations = [
            *(annotation("severe", f"reader {i}", minute=9) for i in range(3)),
            annotation("normal", "expert", ground_truth=True),
        ]

        label = the_label(median(annotations, CLASSES))

        assert (label.value, label.raters, label.disputed) == ("normal", 1, True)

    def test_a_ground_truth_that_readers_agree_with_is_undisputed(self) -> None:
        annotations = [
            annotation("normal", "a", minute=9),
            annotation(None, "b", minute=9),
            annotation("normal", "expert", ground_truth=True),
        ]

        assert not the_label(median(annotations, CLASSES)).disputed

    def test_a_ground_truth_that_replaces_its_reader_s_own_answer_is_undisputed(self) -> None:
        annotations = [annotation("severe", "a"), annotation("normal", "a", minute=1, ground_truth=True)]

        assert not the_label(median(annotations, CLASSES)).disputed
        later = [*annotations, annotation("moderate", "a", minute=2)]
        assert the_label(median(later, CLASSES)).disputed

    @pytest.mark.parametrize(
        ("truths", "value", "disputed"),
        [
            (["normal", "normal", "severe"], "normal", True),
            (["severe", "normal"], "severe", True),
            (["moderate", "severe", "normal"], "moderate", True),
            (["normal", "normal"], "normal", False),
            (["normal", None], "normal", True),
            ([None, "severe", "severe"], "severe", True),
        ],
    )
    @pytest.mark.parametrize("raters", ["aaa", "abc"])
    def test_ground_truths_that_differ_are_not_decided_by_time(
        self, truths: list[str | None], value: str, disputed: bool, raters: str
    ) -> None:
        """Also where all are the importing user's; the reader's own answer is later and plays no part."""
        for order in permutations(range(len(truths))):
            annotations = [
                annotation(truth, rater, minute=minute, ground_truth=True)
                for truth, rater, minute in zip(truths, raters, order, strict=False)
            ]

            label = the_label(median([*annotations, annotation(value, "reader", minute=9)], CLASSES))

            assert (label.value, label.disputed) == (value, disputed)
            assert label.raters == sum(truth is not None for truth in truths)

    def test_a_ground_truth_without_an_answer_disputes_nothing(self) -> None:
        """Imported for another question of the same image, say."""
        silent = annotation(None, "a", ground_truth=True).model_copy(update={"unanswered": True})

        label = the_label(median([silent, annotation("normal", "a", ground_truth=True)], CLASSES))

        assert (label.value, label.raters, label.disputed) == ("normal", 1, False)

    def test_a_ground_truth_of_no_class_leaves_the_image_out(self) -> None:
        annotations = [annotation("sever", "a", ground_truth=True), annotation("normal", "b", ground_truth=True)]

        [exclusion] = median(annotations, CLASSES).exclusions
        assert "'sever'" in exclusion.reason

    def test_skips_are_no_votes(self) -> None:
        """Two skips beside one answer: neither a class of their own nor a majority."""
        label = the_label(of_one_image(None, "moderate", None))

        assert (label.value, label.raters, label.disputed) == ("moderate", 1, False)

    def test_the_image_as_the_latest_annotation_has_it(self) -> None:
        annotations = [
            annotation("normal", "a", minute=2, patient="corrected"),
            annotation("normal", "b", patient="typo"),
        ]

        assert the_label(median(annotations, CLASSES)).image.patient_id == "corrected"


class TestExclusions:
    def test_unreadable_to_everyone(self) -> None:
        consensus = of_one_image(None, None)

        [exclusion] = consensus.exclusions
        assert consensus.labels == ()
        assert exclusion.image_id == "1"
        assert exclusion.reason == "all 2 readers skipped image 1 or gave it no class"

    def test_unanswered_by_everyone(self) -> None:
        """Of a question that is optional, or was asked on a condition; one who skipped makes it unreadable."""
        open_ = [annotation(None, rater).model_copy(update={"unanswered": True}) for rater in "ab"]

        [exclusion] = median(open_, CLASSES).exclusions
        [other] = median([*open_, annotation(None, "c")], CLASSES).exclusions

        assert exclusion.reason == (
            "all 2 readers gave image 1 no answer to the question: it is optional, or its condition was not met"
        )
        assert other.reason.startswith("all 3 readers skipped")

    def test_unreadable_by_ground_truth(self) -> None:
        consensus = median([annotation("normal", "a"), annotation(None, "b", ground_truth=True)], CLASSES)

        [exclusion] = consensus.exclusions
        assert "its ground truth skipped" in exclusion.reason

    def test_an_unknown_value_names_image_value_and_classes(self) -> None:
        """The other reader's answer does not hide it."""
        consensus = of_one_image("normal", "sever")

        [exclusion] = consensus.exclusions
        assert consensus.labels == ()
        assert "image 1 is labelled 'sever'" in exclusion.reason
        assert "known are normal, moderate, severe" in exclusion.reason
        assert "alias='sever'" in exclusion.reason  # which keeps the labels of a class that was renamed

    def test_an_unknown_value_that_was_corrected(self) -> None:
        annotations = [annotation("sever", "a"), annotation("severe", "a", minute=1)]

        assert the_label(median(annotations, CLASSES)).value == "severe"

    def test_one_bad_image_does_not_stop_the_others(self) -> None:
        annotations = [annotation(None, "a", "3"), annotation("normal", "a", "10"), annotation("what", "a", "2")]

        consensus = median(annotations, CLASSES)

        assert [label.image.id for label in consensus.labels] == ["10"]
        assert [exclusion.image_id for exclusion in consensus.exclusions] == ["2", "3"]


ANNOTATIONS = st.lists(
    st.builds(
        annotation,
        value=st.sampled_from([*CLASSES, None, "unheard of"]),
        rater=st.sampled_from("abc"),
        image_id=st.sampled_from(["2", "10", "9"]),
        minute=st.integers(0, 2),
        ground_truth=st.integers(0, 5).map(lambda n: n == 0),
    ),
    max_size=12,
)


class TestLaws:
    @settings(deadline=None, max_examples=200)
    @given(annotations=ANNOTATIONS, data=st.data())
    def test_the_order_of_arrival_decides_nothing(self, annotations: Sequence[Annotation], data: st.DataObject) -> None:
        assert median(data.draw(st.permutations(annotations)), CLASSES) == median(annotations, CLASSES)

    @settings(deadline=None)
    @given(annotations=ANNOTATIONS)
    def test_every_image_is_a_label_or_an_exclusion_in_the_order_of_ids(
        self, annotations: Sequence[Annotation]
    ) -> None:
        consensus = median(annotations, CLASSES)
        labelled = [label.image.id for label in consensus.labels]
        excluded = [exclusion.image_id for exclusion in consensus.exclusions]

        assert labelled == sorted(labelled, key=int)
        assert excluded == sorted(excluded, key=int)
        assert sorted(labelled + excluded) == sorted({a.image.id for a in annotations})

    @settings(deadline=None)
    @given(values=st.lists(st.sampled_from(CLASSES), min_size=1, max_size=9))
    def test_no_more_than_half_say_less_and_no_more_than_half_say_more(self, values: list[str]) -> None:
        label = the_label(of_one_image(*values))
        severity = [CLASSES.index(value) for value in values]
        at = CLASSES.index(label.value)

        assert label.value in values
        assert 2 * sum(s < at for s in severity) <= len(values)
        assert 2 * sum(s > at for s in severity) <= len(values)
        assert label.disputed == (2 * sum(s < at for s in severity) == len(values))


def of_images(**answers: str) -> list[Annotation]:
    """``i7="nns"``: image 7 read by three readers, by the first letters of the classes."""
    by_letter = {name[0]: name for name in CLASSES}
    return [
        annotation(by_letter[letter], f"reader {i}", image_id[1:])
        for image_id, letters in answers.items()
        for i, letter in enumerate(letters)
    ]


class TestAdjudication:
    ANSWERS = of_images(i1="nm", i2="ms", i3="sn", i4="nns", i5="nnn", i10="sn", i6="s", i7="nmms", i8="nms")

    def test_ordered_classes_two_apart_the_widest_and_most_even_first(self) -> None:
        assert adjudication(self.ANSWERS, CLASSES, ordered=True) == ("8", "3", "7", "10", "4")

    def test_unordered_classes_that_differ_at_all(self) -> None:
        assert adjudication(self.ANSWERS, CLASSES, ordered=False) == ("8", "7", "1", "2", "3", "10", "4")

    def test_two_classes_have_no_wider_disagreement_than_one(self) -> None:
        annotations = of_images(i1="nn", i2="nm")

        assert adjudication(annotations, CLASSES[:2], ordered=True) == ("2",)

    def test_a_ground_truth_has_decided(self) -> None:
        annotations = of_images(i1="ns")

        assert adjudication(annotations, CLASSES, ordered=True) == ("1",)
        truth = annotation("normal", "expert", ground_truth=True)
        assert adjudication([*annotations, truth], CLASSES, ordered=True) == ()

    def test_one_reader_who_changed_an_answer_does_not_disagree(self) -> None:
        annotations = [annotation("normal", "a"), annotation("severe", "a", minute=1), annotation(None, "b")]

        assert adjudication(annotations, CLASSES, ordered=True) == ()


class TestProbabilities:
    def test_must_add_up_to_one(self) -> None:
        image = ImageRef(id="7", uri="7.png")

        with pytest.raises(ValueError, match=r"the probabilities of image 7 add up to 0\.9, not to 1"):
            Label(image=image, value="normal", raters=2, probabilities={"normal": 0.5, "severe": 0.4})


class TestRules:
    def test_names_are_those_that_an_owner_may_choose(self) -> None:
        assert set(RULES) == set(CONSENSUS_RULES)

    def test_satisfy_the_port(self) -> None:
        """The types are held against the Protocol by mypy."""
        rules: list[ConsensusRule] = list(RULES.values())

        assert all(one([], CLASSES) == Consensus(()) for one in rules)

    def test_by_name(self) -> None:
        assert rule("median") is median

    def test_unknown_name(self) -> None:
        with pytest.raises(ValueError, match="unknown consensus rule 'mean': known are median"):
            rule("mean")


class TestIgnoredClass:
    def test_an_image_with_it_has_no_label(self) -> None:
        """Without that answer, the consensus of the others would be another."""
        answers = [
            annotation("severe", "a").model_copy(update={"ignored": True}),
            annotation("normal", "b"),
            annotation("normal", "a", "2"),
        ]

        found = median(answers, ("normal", "moderate"))

        assert [label.image.id for label in found.labels] == ["2"]
        assert [(one.image_id, one.kind) for one in found.exclusions] == [("1", "ignored class")]
        assert "'severe', which ignore_classes leaves out" in found.exclusions[0].reason
