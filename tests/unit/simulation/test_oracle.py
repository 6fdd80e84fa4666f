"""The oracle gives away exactly the labels that were asked for."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend.records import ImageRef, Label
from ml_backend.simulation.oracle import Oracle, read_truth
from tests.fakes import CLASSES


def truth_of(*values: str) -> list[Label]:
    return [
        Label(image=ImageRef(id=f"{number}.png", uri=f"{number}.png"), value=value, raters=1)
        for number, value in enumerate(values)
    ]


class TestOracle:
    def test_knows_nothing_until_asked(self):
        oracle = Oracle(truth_of("normal", "severe"))

        assert oracle.annotations() == []
        assert [image.id for image in oracle.unlabelled()[0]] == ["0.png", "1.png"]

    def test_reveals_what_was_asked_in_that_order(self):
        oracle = Oracle(truth_of("normal", "severe", "moderate"))

        oracle.reveal(["2.png", "0.png"])

        answers = oracle.annotations()
        assert [(answer.image.id, answer.value) for answer in answers] == [("2.png", "moderate"), ("0.png", "normal")]
        assert answers[0].updated_at < answers[1].updated_at
        assert [image.id for image in oracle.unlabelled()[0]] == ["1.png"]

    @pytest.mark.parametrize("asked", [["1.png", "9.png"], ["1.png", "1.png"], ["0.png"]])
    def test_a_wrong_question_reveals_nothing(self, asked):
        """Unknown, twice in one question, or labelled before."""
        oracle = Oracle(truth_of("normal", "severe"))
        oracle.reveal(["0.png"])

        with pytest.raises(ValueError, match=r"'9\.png'|'1\.png' was labelled|'0\.png' was labelled"):
            oracle.reveal(asked)

        assert oracle.revealed == ("0.png",)

    def test_the_pool_does_not_depend_on_the_order_of_the_rows(self):
        """Twelve images, so that 10.png and 11.png come after 9.png."""
        truth = truth_of(*["normal", "severe"] * 6)

        pool, _ = Oracle(reversed(truth)).unlabelled()

        assert [image.id for image in pool] == [label.image.id for label in truth]

    def test_one_truth_an_image(self):
        with pytest.raises(ValueError, match=r"'0\.png' has more than one true label"):
            Oracle([*truth_of("normal"), *truth_of("severe")])

    def test_an_empty_truth_is_refused(self):
        with pytest.raises(ValueError, match="no image"):
            Oracle([])

    @settings(deadline=None)
    @given(st.lists(st.sampled_from(CLASSES), min_size=1, max_size=30), st.data())
    def test_revealed_and_pool_are_a_partition(self, values, data):
        """Every image is labelled or in the pool, never both, whatever was asked."""
        oracle = Oracle(truth_of(*values))
        asked = data.draw(st.sets(st.integers(0, len(values) - 1)))

        oracle.reveal(f"{number}.png" for number in sorted(asked))

        labelled = {answer.image.id: answer.value for answer in oracle.annotations()}
        pool = {image.id for image in oracle.unlabelled()[0]}
        assert labelled == {f"{number}.png": values[number] for number in asked}
        assert pool == {f"{number}.png" for number in range(len(values))} - labelled.keys()


class TestStartSet:
    VALUES = ["normal"] * 4 + ["moderate"] * 8 + ["severe"] * 12

    def test_holds_so_many_of_every_class(self):
        truth = truth_of(*self.VALUES)
        value_of = {label.image.id: label.value for label in truth}

        start = Oracle(truth).start_set(3, seed=1)

        assert sorted(value_of[image_id] for image_id in start) == ["moderate"] * 3 + ["normal"] * 3 + ["severe"] * 3

    def test_does_not_depend_on_the_order_of_the_rows(self):
        truth = truth_of(*self.VALUES)
        shuffled = random.Random(5).sample(truth, len(truth))

        assert Oracle(shuffled).start_set(3, seed=1) == Oracle(truth).start_set(3, seed=1)

    def test_another_seed_is_another_draw(self):
        oracle = Oracle(truth_of(*self.VALUES))

        assert len({oracle.start_set(3, seed) for seed in range(5)}) == 5

    def test_reveals_nothing(self):
        oracle = Oracle(truth_of(*self.VALUES))

        oracle.start_set(3, seed=1)

        assert oracle.revealed == ()

    def test_a_class_that_is_too_small_is_named(self):
        with pytest.raises(ValueError, match="'normal' has 4 images but the start set needs 5"):
            Oracle(truth_of(*self.VALUES)).start_set(5, seed=1)


class TestReadTruth:
    def table(self, folder: Path, text: str) -> Path:
        path = folder / "labels.csv"
        path.write_text(text, encoding="utf-8")
        return path

    def test_reads_the_columns_it_needs(self, tmp_path):
        """In any order, with others beside them, with a byte-order mark and with an empty patient."""
        table = self.table(
            tmp_path, "\ufefflabel,site,path,patient_id\nsevere,A,images/1.png,p1\nnormal,B,images/2.png,\n"
        )

        truth = read_truth(table, CLASSES)

        assert [(label.image.id, label.value, label.image.patient_id) for label in truth] == [
            ("images/1.png", "severe", "p1"),
            ("images/2.png", "normal", None),
        ]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("path,patient_id\na.png,p\n", "no column label"),
            ("", "no column label and no column path"),
            (
                "path,label\na.png,severe\n\nb.png,Severe\n",
                "line 4, column label: 'Severe' is none of normal, moderate",
            ),
            ("path,label\n ,severe\n", "line 2, column path: empty"),
            ("path,label\na.png\n", "line 2, column label: ''"),
        ],
    )
    def test_a_wrong_table_names_row_and_column(self, tmp_path, text, message):
        with pytest.raises(ValueError, match=message):
            read_truth(self.table(tmp_path, text), CLASSES)

    def test_a_table_in_another_encoding_is_named(self, tmp_path):
        table = tmp_path / "labels.csv"
        table.write_bytes("path,label\nbild-ä.png,severe\n".encode("latin-1"))

        with pytest.raises(ValueError, match=r"labels\.csv cannot be read: .* expected a CSV file in UTF-8"):
            read_truth(table, CLASSES)
