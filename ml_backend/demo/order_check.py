"""Was the served order the chosen order? A pure comparison of what readers got with what rounds published."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Served:
    """One answer of Label Studio to a reader who asked for the next image, or an image kept on the screen."""

    reader: str
    image_id: str
    versions: tuple[str, ...]  # what Label Studio named just before and just after: one, or two around a publish
    holding: str | None = None  # the image that was on the screen, without an answer, when the ranking came


@dataclass(frozen=True, slots=True)
class Deviation:
    """An image that was served although another one, or none, stood first."""

    served: Served
    expected: str | None  # None where the ranking had no image left, or the version was never published

    def __str__(self) -> str:
        wanted = "no image of that ranking was left" if self.expected is None else f"image {self.expected} was first"
        versions = " or ".join(self.served.versions)
        return f"{self.served.reader} was served image {self.served.image_id} under {versions}, where {wanted}"


@dataclass(slots=True)
class Fidelity:
    """How the images served under one ranking compare with it."""

    served: int = 0
    in_order: int = 0
    held: int = 0  # on a reader's screen when this ranking came; not part of ``served``
    deviations: list[Deviation] = field(default_factory=list)


def compare(served: Sequence[Served], rankings: Mapping[str, Sequence[str]]) -> dict[str, Fidelity]:
    """Compare the whole served sequence with the published rankings.

    An image is in order when it is the first of the ranking in force that no reader has been served before. One
    exception is allowed and counted: a reader keeps the image on the screen when a new ranking comes.

    Args:
        served: all readers' images in the order in which Label Studio served them, from the first ranking on.
        rankings: version -> image ids in the order in which they should be served.

    Returns:
        One entry for every published version, and one for every version that is named though it was never published.

    Raises:
        ValueError: an event names no version.
    """
    results = {version: Fidelity() for version in rankings}
    taken: set[str] = set()
    for event in served:
        if not event.versions:
            raise ValueError(f"image {event.image_id} was served to {event.reader} under no version: expected 1 or 2")
        if event.holding is not None:
            _count_held(event, results)
        else:
            _count_next(event, rankings, taken, results)
        taken.add(event.image_id)
    return results


def _count_held(event: Served, results: dict[str, Fidelity]) -> None:
    result = results.setdefault(event.versions[-1], Fidelity())
    if event.image_id == event.holding:
        result.held += 1
        return
    result.served += 1
    result.deviations.append(Deviation(event, event.holding))


def _count_next(
    event: Served, rankings: Mapping[str, Sequence[str]], taken: set[str], results: dict[str, Fidelity]
) -> None:
    # Around a publish either order may have been in force; the later one is asked first.
    expected = {
        version: next((image for image in rankings.get(version, ()) if image not in taken), None)
        for version in reversed(event.versions)
    }
    matching = next((version for version, image in expected.items() if image == event.image_id), None)
    version = matching if matching is not None else event.versions[-1]
    result = results.setdefault(version, Fidelity())
    result.served += 1
    if matching is None:
        result.deviations.append(Deviation(event, expected[version]))
    else:
        result.in_order += 1
