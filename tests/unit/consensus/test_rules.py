"""All consensus rules: what each decides, the models of the readers, and the edge cases."""

import json
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend.consensus import RULES, Consensus, rule
from ml_backend.consensus import readers as models
from ml_backend.consensus.readers import Array, Reads, dawid_skene, ordinal
from ml_backend.schemas import Annotation, ImageRef

CLASSES = ("normal", "moderate", "severe")
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ALL_RULES = pytest.mark.parametrize("name", RULES)


def annotation(
    value: int | None, rater: str, image_id: int | str = 1, *, minute: int = 0, truth: bool = False
) -> Annotation:
    return Annotation(
        image=ImageRef(id=str(image_id), uri=f"{image_id}.png"),
        rater=rater,
        value=None if value is None else CLASSES[value],
        ground_truth=truth,
        updated_at=NOON + timedelta(minutes=minute),
    )


def read(*answers: Sequence[int | None]) -> list[Annotation]:
    """A row per image from 1, a column per reader; None where the reader has not read it."""
    return [
        annotation(value, f"reader {column}", image_id)
        for image_id, row in enumerate(answers, start=1)
        for column, value in enumerate(row)
        if value is not None
    ]


def values(consensus: Consensus) -> list[int]:
    return [CLASSES.index(label.value) for label in consensus.labels]


class Readers:
    """Synthetic readers of hidden truths.

    Args:
        seed: of truths and answers.
        images: number of images.
        matrices: probability of each answer, [readers, truths, answers]; None for readers of a latent severity, of whom
            the last answers a class too severely and is unsure, and a fifth of whose errors the others make.
    """

    def __init__(self, seed: int, images: int, matrices: Array | None = None, reads: int = 3) -> None:
        rng = np.random.default_rng(seed)
        readers = 5 if matrices is None else len(matrices)
        chosen = np.sort(rng.random((images, readers)).argsort(axis=1)[:, :reads], axis=1)
        if matrices is None:
            severity = rng.uniform(-0.5, 2.5, images)
            self.truth = np.round(severity).astype(int)
            bias, error = np.array([0.0, 0.0, 0.0, 0.0, 1.0])[chosen], np.array([0.4] * 4 + [0.8])[chosen]
            seen = severity[:, None] + bias + error * rng.standard_normal(chosen.shape)
            answers = np.clip(np.round(seen), 0, 2).astype(int)
        else:
            self.truth = rng.choice(3, images, p=[0.5, 0.3, 0.2])
            cumulative = matrices.cumsum(axis=2)[chosen, self.truth[:, None]]
            answers = (rng.random((images, reads, 1)) > cumulative).sum(axis=2)
        self.reads = Reads(
            np.repeat(np.arange(images), reads),
            chosen.ravel(),
            answers.ravel(),
            np.stack([(answers == one).mean(axis=1) for one in range(3)], axis=1),
            np.full(images, -1),
        )

    def distance(self, probabilities: Array) -> float:
        """Mean distance to the truth, in classes, of the median of the probabilities."""
        chosen = (probabilities.cumsum(axis=1)[:, :-1] <= 0.5 + 1e-9).sum(axis=1)
        return float(np.abs(chosen - self.truth).mean())


GOOD = np.array([[0.85, 0.13, 0.02], [0.1, 0.8, 0.1], [0.02, 0.13, 0.85]])
TOO_SEVERE = np.array([[0.3, 0.6, 0.1], [0.1, 0.3, 0.6], [0.1, 0.1, 0.8]])
CHANCE = np.full((3, 3), 1 / 3)


class TestMajority:
    def test_the_most_frequent_answer_without_an_order(self):
        consensus = rule("majority")(read((0, 0, 2), (2, 2, 0), (1, 0, 2, 2)), CLASSES)

        assert values(consensus) == [0, 2, 2]
        assert consensus.labels[2].probabilities == {"normal": 0.25, "moderate": 0.25, "severe": 0.5}
        assert not any(label.disputed for label in consensus.labels)

    def test_a_tie_is_drawn_by_the_image_and_disputed(self):
        """Always the same class of an image, and of 60 images each of the tied ones about equally often."""
        annotations = read(*[(0, 2)] * 60)
        consensus = rule("majority")(annotations, CLASSES)
        drawn = values(consensus)

        assert set(drawn) == {0, 2}
        assert 18 <= drawn.count(2) <= 42
        assert all(label.disputed for label in consensus.labels)
        assert values(rule("majority")(annotations[20:], CLASSES)) == drawn[10:]


class TestLatest:
    def test_whoever_gave_it(self):
        annotations = [annotation(2, "b", minute=3), annotation(0, "a"), annotation(1, "a", minute=2)]
        [label] = rule("latest")(annotations, CLASSES).labels
        changed = [*annotations, annotation(0, "a", minute=4)]

        assert (label.value, label.raters, label.disputed, label.probabilities) == ("severe", 2, False, {})
        assert values(rule("latest")(changed, CLASSES)) == [0]

    def test_at_the_same_time_the_most_severe(self):
        assert values(rule("latest")(read((2, 0), (0, 1)), CLASSES)) == [2, 1]


class TestDawidSkene:
    @pytest.mark.parametrize("case", json.loads((Path(__file__).parent / "crowd_kit.json").read_text())["cases"])
    def test_as_crowd_kit_without_a_prior(self, case):
        images, readers, answers = np.array(case["reads"]).T
        expected = np.array(case["probabilities"])
        counts = np.zeros(expected.shape)
        np.add.at(counts, (images, answers), 1)
        shares = counts / counts.sum(axis=1, keepdims=True)
        reads = Reads(images, readers, answers, shares, np.full(len(shares), -1))

        assert dawid_skene(reads, right=0.0, wrong=0.0, steps=20) == pytest.approx(expected, abs=1e-5)

    def test_a_reader_who_inverts_the_classes_is_understood(self):
        """Two against one, and yet the one is right, as the images show that all five read."""
        everyone = [(0, 0, 0, 2, 2), (2, 2, 2, 0, 0)] * 15
        annotations = read(*everyone, (0, None, None, 2, 2))

        assert values(rule("dawid_skene")(annotations, CLASSES))[-1] == 0
        assert values(rule("majority")(annotations, CLASSES))[-1] == 2


class TestOrdinal:
    def test_a_reader_who_answers_too_severely_is_found(self):
        """Bias in classes; the others have none."""
        found = rule("ordinal")(read(*[(0, 0, 0, 1), (1, 1, 1, 2), (1, 1, 1, 2), (0, 0, 0, 1)] * 10), CLASSES)

        assert [one.rater for one in found.readers] == [f"reader {number}" for number in range(4)]
        assert [one.reads for one in found.readers] == [40] * 4
        assert [round(one.bias, 1) for one in found.readers[:3]] == [0.0] * 3
        assert found.readers[3].bias == pytest.approx(1.0, abs=0.2)

    def test_recovers_bias_and_precision(self):
        """Four readers with an error of 0.4 classes, one with a bias of 1 and an error of 0.8."""
        fit = ordinal(Readers(0, 2_000).reads)

        assert fit.biases == pytest.approx([0, 0, 0, 0, 1], abs=0.15)
        assert fit.precisions**-0.5 == pytest.approx([0.4] * 4 + [0.8], abs=0.12)

    @pytest.mark.parametrize(
        "poor", [None, TOO_SEVERE, CHANCE], ids=["latent severity", "matrix, too severe", "matrix, chance"]
    )
    def test_closer_to_the_truth_than_the_median_if_one_of_five_readers_is_poor(self, poor):
        """Paired over 20 seeds, three reads of each of 400 images: the 95 % interval of the difference excludes 0."""
        matrices = None if poor is None else np.stack([GOOD] * 4 + [poor])
        gains = []
        for seed in range(20):
            readers = Readers(seed, 400, matrices)
            reads = readers.reads
            gains.append(readers.distance(reads.shares) - readers.distance(reads.shrunk(ordinal(reads).probabilities)))

        assert np.mean(gains) - 2.09 * np.std(gains, ddof=1) / np.sqrt(20) > 0

    def test_answers_without_an_author_are_counted_together(self, monkeypatch):
        """As if each were a reader's own, but 400 of them in less than 4 MB; a reader of their own takes 12 kB."""
        known, drawn = Readers(1, 200, reads=2).reads, Readers(2, 200, reads=2).reads
        reads = Reads(
            np.r_[known.images[:20], drawn.images],
            np.r_[known.readers[:20], np.arange(5, 405)],
            np.r_[known.answers[:20], drawn.answers],
            drawn.shares,
            np.where(np.arange(200) % 9 == 0, drawn.shares.argmax(axis=1), -1),
        )
        order = np.argsort(reads.images, kind="stable")
        reads = replace(reads, images=reads.images[order], readers=reads.readers[order], answers=reads.answers[order])
        ordinal(reads, steps=1)
        tracemalloc.start()
        together = ordinal(reads, steps=3)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        monkeypatch.setattr(models, "_alike", lambda reads: (reads.readers, np.ones(len(reads.readers), bool)))
        alone = ordinal(reads, steps=3)

        assert peak < 4e6
        assert together.biases == pytest.approx(alone.biases)
        assert together.precisions == pytest.approx(alone.precisions)
        assert together.probabilities == pytest.approx(alone.probabilities)

    def test_few_reads_leave_the_median(self):
        annotations = read((0, 0, 2), (0, 1, 2), (2, 2, 0), (1, 1, 2), (0, None, 0))

        assert values(rule("ordinal")(annotations, CLASSES)) == values(rule("median")(annotations, CLASSES))

    def test_a_tie_of_few_reads_is_disputed(self):
        assert [one.disputed for one in rule("ordinal")(read((0, 2), (0, 0), (2, 1)), CLASSES).labels] == [1, 0, 1]

    @pytest.mark.parametrize("name", ["ordinal", "dawid_skene"])
    def test_ground_truths_show_how_their_readers_err(self, name):
        """Reader 1 calls every normal image moderate: so does a further image, which nobody else has read."""
        truths = [annotation(value, "expert", number, truth=True) for number, value in enumerate([0, 1] * 40, start=1)]
        annotations = [*truths, *read(*[(1,), (2,)] * 40, (2,))]
        consensus = rule(name)(annotations, CLASSES)

        assert values(consensus) == [0, 1] * 40 + [1]
        assert consensus.labels[0].disputed
        assert consensus.labels[-1].disputed  # no reader gave that class
        assert consensus.labels[-1].probabilities == {}

    @pytest.mark.parametrize("name", ["ordinal", "dawid_skene"])
    def test_of_ground_truths_that_differ_the_label_is_the_truth(self, name):
        """Reader 0 calls every image severe: so he does the further one, which nobody else has read."""
        truths = [annotation(value, f"{value}", number, truth=True) for number in range(1, 31) for value in (0, 2)]
        answers = read(*[(2, 0)] * 30, (2,))
        consensus = rule(name)([*truths, *answers], CLASSES)
        chosen = values(consensus)[:30]
        right = [one for one in truths if one.value == CLASSES[chosen[int(one.image.id) - 1]]]
        agree = rule(name)([*right, *answers], CLASSES)

        assert set(chosen) == ({2} if name == "ordinal" else {0, 2})
        assert values(consensus) == values(agree)
        for one, other in zip(consensus.readers, agree.readers, strict=True):
            assert one.bias == pytest.approx(other.bias, abs=1e-4)


POOR = [name for name in RULES if name != "latest"]  # `latest` takes the last reader's answer, right or wrong


class TestShrunk:
    def test_hand_worked(self):
        """Reader 0 has one read that can be compared, reader 1 has two, one of them with a ground truth."""
        reads = Reads(
            images=np.array([0, 0, 1, 2]),
            readers=np.array([0, 1, 0, 1]),
            answers=np.array([0, 1, 1, 1]),
            shares=np.tile([0.0, 1.0], (3, 1)),
            truths=np.array([-1, -1, 1]),
        )

        assert reads.shrunk(np.tile([1.0, 0.0], (3, 1)))[:, 0] == pytest.approx([1.5 / 11.5, 1 / 11, 0.0])


class TestEdgeCases:
    @ALL_RULES
    @pytest.mark.parametrize(
        "answers",
        [
            [(0, None), (None, 2), (1, None), (None, 0)],
            [(0,), (2,), (2,), (1,), (0,)],
            [(0, 0, 0), (2, 2, 2), (1, 1, 1)] * 4,
            [(0, 0), (2, 2)] * 5,
            [(2, 2, 2)],
            [(0,)],
            [tuple(number % 3 for _ in range(50)) for number in range(12)],
        ],
        ids=["no overlap", "one reader", "agreement", "unused class", "one image", "one read", "50 readers"],
    )
    def test_what_nobody_disputes_is_the_label(self, name, answers):
        consensus = rule(name)(read(*answers), CLASSES)

        assert values(consensus) == [next(value for value in row if value is not None) for row in answers]
        assert not any(label.disputed for label in consensus.labels)
        assert all(label.probabilities[label.value] > 0.5 for label in consensus.labels if label.probabilities)

    @ALL_RULES
    def test_no_images(self, name):
        assert rule(name)([], CLASSES) == Consensus(())

    @ALL_RULES
    def test_readers_who_always_disagree(self, name):
        """Every image has a disputed label; only ``ordinal``, which has a class between the answers, chooses that."""
        consensus = rule(name)(read(*[(0, 2), (2, 0)] * 6), CLASSES)

        assert len(consensus.labels) == 12
        assert set(values(consensus)) <= ({1} if name == "ordinal" else {0, 2})
        assert {label.disputed for label in consensus.labels} == {name != "latest"}

    @pytest.mark.parametrize("name", POOR)
    def test_a_reader_with_one_answer_for_everything(self, name):
        """Three others read well: the constant answers move no label."""
        truth = [0, 1, 2, 0, 1, 0] * 5

        assert values(rule(name)(read(*[(value, value, value, 2) for value in truth]), CLASSES)) == truth

    @ALL_RULES
    def test_an_edited_and_a_deleted_answer_count_as_they_are_now(self, name):
        before = read((0, 0, 0), (2, 2, 2))
        edited = [*before, annotation(2, "reader 0", 1, minute=1), annotation(2, "reader 1", 1, minute=1)]
        deleted = [one for one in edited if (one.image.id, one.rater) != ("1", "reader 2")]

        assert values(rule(name)(before, CLASSES)) == [0, 2]
        assert values(rule(name)(edited, CLASSES))[0] == 2
        assert rule(name)(deleted, CLASSES).labels[0].raters == 2
        assert values(rule(name)(deleted, CLASSES)) == [2, 2]

    @ALL_RULES
    def test_imported_answers_without_an_author(self, name):
        """They are all the importing user's, and ground truths: each counts, and none says anything about a reader."""
        imported = [annotation(value, "importer", truth=True) for value in (1, 1, 0)]
        consensus = rule(name)([*imported, annotation(1, "importer", 2, truth=True)], CLASSES)

        assert [(one.value, one.raters, one.disputed) for one in consensus.labels] == [
            ("moderate", 3, True),
            ("moderate", 1, False),
        ]
        assert consensus.readers == ()


IMAGES = st.lists(
    st.builds(
        annotation,
        value=st.sampled_from([0, 1, 2, None]),
        rater=st.sampled_from("abcd"),
        image_id=st.sampled_from(["2", "10", "9"]),
        minute=st.integers(0, 2),
        truth=st.integers(0, 7).map(lambda n: n == 0),
    ),
    max_size=16,
)


class TestLaws:
    @ALL_RULES
    @settings(deadline=None, max_examples=25)
    @given(annotations=IMAGES, data=st.data())
    def test_of_every_rule(self, name, annotations, data):
        """The order of arrival decides nothing, images are those of the median, probabilities add up to 1.

        A label is a class that was answered or lies between two that were.
        """
        consensus = rule(name)(annotations, CLASSES)

        assert rule(name)(data.draw(st.permutations(annotations)), CLASSES) == consensus
        by_median = rule("median")(annotations, CLASSES)
        assert consensus.exclusions == by_median.exclusions
        for label, other in zip(consensus.labels, by_median.labels, strict=True):
            answers = {CLASSES.index(one.value) for one in annotations if one.image.id == label.image.id and one.value}
            assert min(answers) <= CLASSES.index(label.value) <= max(answers)
            assert (label.image, label.raters) == (other.image, other.raters)
            assert bool(label.probabilities) == (label.raters > 1 and name != "latest")
            if label.probabilities:
                assert sum(label.probabilities.values()) == pytest.approx(1.0, abs=1e-5)
                assert list(label.probabilities) == list(CLASSES)

    @ALL_RULES
    @settings(deadline=None, max_examples=25)
    @given(annotations=IMAGES, truth=st.sampled_from([0, 1, 2]))
    def test_a_ground_truth_overrides(self, name, annotations, truth):
        readers = [one for one in annotations if not one.ground_truth]
        decided = annotation(truth, "expert", "2", truth=True)

        [label] = [one for one in rule(name)([*readers, decided], CLASSES).labels if one.image.id == "2"]
        assert (label.value, label.raters) == (CLASSES[truth], 1)
