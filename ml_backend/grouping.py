"""Groups of images that must not be divided: copies of one image, and the images of one patient."""

from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

from ml_backend.schemas import ImageRef, natural_order

T = TypeVar("T", bound=Hashable)


def linked(marks_of: Mapping[T, Iterable[Hashable]]) -> dict[T, T]:
    """Connected components: items are connected where they share a mark, also by way of others.

    Args:
        marks_of: item -> what it may share with others. The order of the items decides which one represents the rest.

    Returns:
        Item -> the first item of its component.
    """
    items = list(marks_of)
    parent = list(range(len(items)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    first_with: dict[Hashable, int] = {}
    for place, item in enumerate(items):
        for mark in marks_of[item]:
            one, other = root(first_with.setdefault(mark, place)), root(place)
            parent[max(one, other)] = min(one, other)
    return {item: items[root(place)] for place, item in enumerate(items)}


def groups_of(images: Iterable[ImageRef]) -> dict[str, str]:
    """Image id -> name of the group that a split must not divide.

    Images of one patient are a group, and so are images with one address. Where an address occurs under two patients,
    one of the two names is wrong or both are the same person: all their images are one group.

    Returns:
        ``ImageRef.group`` of each image that shares nothing; else the first patient's, or the first image's.
    """
    in_order = sorted(images, key=lambda image: natural_order(image.id))
    patients = {image.id: image.patient_id for image in in_order}
    first = linked(
        {
            image.id: [("uri", image.uri), *([("patient", image.patient_id)] if image.patient_id is not None else [])]
            for image in in_order
        }
    )
    names: dict[str, list[str]] = {}
    for image in in_order:
        if (patient := patients[image.id]) is not None:
            names.setdefault(first[image.id], []).append(patient)
    patient_of = {lowest: min(found, key=natural_order) for lowest, found in names.items()}
    return {
        image.id: f"patient {patient_of[first[image.id]]}"
        if first[image.id] in patient_of
        else f"image {first[image.id]}"
        for image in in_order
    }
