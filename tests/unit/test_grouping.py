"""Which images belong together."""

from collections.abc import Sequence
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend.schemas import ImageRef, groups_of, linked

IMAGES = st.lists(
    st.tuples(st.sampled_from("abcdefgh"), st.sampled_from([None, None, "p", "q", "r"])), max_size=10
).map(lambda rows: [ImageRef(id=str(n), uri=uri, patient_id=patient) for n, (uri, patient) in enumerate(rows, 5)])


def connected(images: Sequence[ImageRef], one: ImageRef, other: ImageRef) -> bool:
    """By walking from one to the next, the slow way."""
    reached = {one.id}
    while True:
        more = {
            b.id
            for a in images
            for b in images
            if a.id in reached and (a.uri == b.uri or (a.patient_id is not None and a.patient_id == b.patient_id))
        }
        if more <= reached:
            return other.id in reached
        reached |= more


@settings(deadline=None)
@given(images=IMAGES)
def test_two_images_are_of_one_group_exactly_where_a_chain_leads_from_one_to_the_other(images: list[ImageRef]) -> None:
    group = groups_of(images)

    for one, other in combinations(images, 2):
        assert (group[one.id] == group[other.id]) == connected(images, one, other)


@settings(deadline=None)
@given(images=IMAGES, data=st.data())
def test_the_order_of_the_images_decides_nothing(images: list[ImageRef], data: st.DataObject) -> None:
    assert groups_of(data.draw(st.permutations(images))) == groups_of(images)


@settings(deadline=None)
@given(patients=st.lists(st.sampled_from([None, "p", "q"]), max_size=8))
def test_without_copies_a_group_has_the_name_that_it_always_had(patients: list[str | None]) -> None:
    """Else every project's split would change with an update."""
    images = [ImageRef(id=str(n), uri=f"{n}.png", patient_id=patient) for n, patient in enumerate(patients)]

    assert groups_of(images) == {image.id: image.group for image in images}


def test_copies_are_named_after_the_lowest() -> None:
    images = [ImageRef(id=number, uri="a.png") for number in ("10", "9")]

    assert groups_of(images) == {"9": "image 9", "10": "image 9"}


def test_one_address_under_two_patients_makes_them_one() -> None:
    named = [("1", "a", "q"), ("2", "a", "p"), ("3", "b", "q"), ("4", "c", "r"), ("5", "a", None)]
    images = [ImageRef(id=number, uri=uri, patient_id=patient) for number, uri, patient in named]

    assert groups_of(images) == {
        "1": "patient p",
        "2": "patient p",
        "3": "patient p",
        "4": "patient r",
        "5": "patient p",
    }


def test_the_first_stands_for_the_rest() -> None:
    assert linked({"b": [1], "a": [2], "c": [1, 2], "d": []}) == {"b": "b", "a": "b", "c": "b", "d": "d"}
