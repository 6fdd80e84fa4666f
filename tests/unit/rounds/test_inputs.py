"""What a round sees is noted as it is seen."""

from ml_backend.rounds.replay import RecordingLabelSource
from tests.fakes import CLASSES, FakeLabels, make_annotation, make_image, one_reader


def test_notes_the_labels_and_the_pool_in_the_order_of_their_ids():
    """Numbers in their own order: 9 before 10; a skip is no label."""
    annotations = [make_annotation(10, "severe"), make_annotation(9, "normal"), make_annotation(8, None)]
    inputs = RecordingLabelSource(FakeLabels(annotations, [make_image(12), make_image(11)]), one_reader)

    assert inputs.consensus(inputs.annotations(), CLASSES) == one_reader(annotations, CLASSES)
    assert inputs.unlabelled()[0] == [make_image(12), make_image(11)]

    noted = inputs.noted()
    assert [label.image.id for label in noted.labels] == ["9", "10"]
    assert [image.id for image in noted.pool] == ["11", "12"]


def test_before_a_round_has_seen_anything_there_is_nothing():
    noted = RecordingLabelSource(FakeLabels(), one_reader).noted()

    assert (noted.labels, noted.pool) == ((), ())
