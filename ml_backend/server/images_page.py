"""A wall of a project's images: what was chosen next, and where networks and readers disagree. Torch-free."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from flask import Response, request

from ml_backend.analytics.history import HELD_OUT, HeldOutPredictions
from ml_backend.analytics.overview import (
    CONTROL,
    Analysis,
    BatchImage,
    analyse,
    chosen_images,
    newest_record,
    reason,
    reason_unseen,
    served_round,
)
from ml_backend.schemas import Connection, HeldOutImage
from ml_backend.server.status import config_of
from ml_backend.server.views import find_project, pages, render
from ml_backend.storage import ProjectStore

PER_PAGE: Final = 24

Tab = Literal["chosen", "disagree", "labelled"]
TABS: Final[dict[Tab, str]] = {
    "chosen": "Chosen next",
    "disagree": "Labels to check",
    "labelled": "All labels tested",
}


@dataclass(frozen=True, slots=True)
class WallImage:
    """An image as the wall shows it.

    Attributes:
        label: None where it has none yet.
        readers: classes that its readers gave, where several have read it.
        probs: by class, least severe first; empty without a network.
        picture: the round that keeps a picture of it; None where no round does.
    """

    image_id: str
    why: str
    label: str | None
    predicted: str | None
    probs: Mapping[str, float]
    picture: str | None
    readers: tuple[str, ...] = ()


@pages.get("/projects/<key>/images")
def images(key: str) -> Response:
    """A wall of images with the probabilities of all classes, filtered by label, prediction or disagreement."""
    connection, project = find_project(key)
    label, predicted = request.args.get("label", ""), request.args.get("predicted", "")
    asked = request.args.get("tab", "labelled" if label else "chosen")
    tab: Tab = next((name for name in TABS if name == asked), "chosen")
    alone = request.args.get("image", "")
    found: list[BatchImage] | list[HeldOutImage]
    answered = untested = 0
    tested: int | None = None
    damaged: str | None = None
    if tab == "chosen":
        shown = served_round(project)
        chosen = None if shown is None else chosen_images(project, shown)
        found = [] if chosen is None else [*chosen.batch, *chosen.control]
        ranked, gone = len(found), frozenset[str]() if alone else answered_since(connection, project)
        found = [one for one in found if one.image_id not in gone]
        answered = ranked - len(found)
        strategy, of_round = ("", None) if chosen is None else (chosen.strategy, chosen.round_id)
    else:
        newest, strategy = newest_record(project, HELD_OUT, HeldOutPredictions), ""
        of_round, found = None if newest is None else newest[0], []
        if newest is not None:
            found = newest[1].disagreements() if tab == "disagree" else list(newest[1].images)
            tested = len(newest[1].images)
            untested = _untested(project, of_round, tested)
        if (last := project.rounds_with(HELD_OUT)[-1:]) != [of_round]:
            damaged = next(iter(last), None)
    classes = list(dict.fromkeys(name for one in found for name in _probs(one)))
    kept = [one for one in found if _fits(one, label, predicted) and alone in {"", one.image_id}]
    pages_in_all = max(-(-len(kept) // PER_PAGE), 1)
    number = min(max(request.args.get("page", 1, type=int), 1), pages_in_all)
    part = kept[(number - 1) * PER_PAGE : number * PER_PAGE]
    pictures = pictures_of(project, (one.image_id for one in part))
    known = project.readings.analysis(Analysis) if tab == "disagree" else None
    answers = known.readers.answers if known is not None and known.readers is not None else {}
    return render(
        "images.html",
        {
            "connection": connection,
            "comparable": comparable(connection, project),
            "tab": tab,
            "tabs": TABS,
            "of_round": of_round,
            "label": label,
            "predicted": predicted,
            "labels": classes if tab != "chosen" else [],
            "classes": classes,
            "tested": tested,
            "untested": untested,
            "damaged": damaged,
            "answered": answered,
            "ranked": answered + len(found),
            "filtered": bool(label or predicted or alone),
            "images": [_shown(one, strategy, pictures, answers) for one in part],
            "alone": alone,
            "picked": (published := project.published()) is not None and published.by_hand,
            "total": len(kept),
            "page": number,
            "pages": pages_in_all,
        },
    )


def _untested(project: ProjectStore, round_id: str | None, tested: int) -> int:
    """Labels of a round that its network was trained on, so that it could not be tested on them; of a committee, 0."""
    found = next((one for one in project.summaries()[0] if one.round_id == round_id), None)
    if found is None or found.request.options.get("committee", 1) != 1:
        return 0
    return max(found.labels - tested, 0)


def comparable(connection: Connection, project: ProjectStore) -> bool:
    """Whether rounds store what images are compared by: without pretrained weights they do not."""
    configured, _ = config_of(connection)
    return configured is None or configured.options.weights != "none" or project.embedding() is not None


def answered_since(connection: Connection, project: ProjectStore) -> frozenset[str]:
    """The chosen and previewed images that no longer wait for a reader; empty where answers cannot be read."""
    configured, _ = config_of(connection)
    return frozenset() if configured is None else analyse(project, *configured).answered


def _probs(image: BatchImage | HeldOutImage) -> Mapping[str, float]:
    if isinstance(image, HeldOutImage):
        return image.probs
    return {} if image.said is None else image.said.probs


def _fits(image: BatchImage | HeldOutImage, label: str, predicted: str) -> bool:
    """Whether the image has this label and prediction; empty ones fit any."""
    if isinstance(image, HeldOutImage):
        return label in {"", image.label} and predicted in {"", image.predicted}
    return not label and predicted in {"", None if image.said is None else image.said.suggestion}


def _shown(
    image: BatchImage | HeldOutImage,
    strategy: str,
    pictures: Mapping[str, str],
    answers: Mapping[str, tuple[str, ...]],
) -> WallImage:
    if isinstance(image, HeldOutImage):
        sure = f"{100 * image.confidence:.0f} %"
        why = f"the label is {image.label}, and the network is {sure} sure of {image.predicted}"
        label: str | None = image.label
        predicted: str | None = image.predicted
        if label == predicted:
            why = f"network and label agree; the network is {sure} sure"
    else:
        label, predicted = None, None if image.said is None else image.said.suggestion
        why = reason_unseen(strategy, control=image.control) if image.said is None else reason(strategy, image.said)
        if image.sought:
            why = f"resembles a labelled image of {image.sought}"
        why = f"no. {image.place} in the order: {CONTROL if image.control else why}"
    picture, readers = pictures.get(image.image_id), answers.get(image.image_id, ())
    return WallImage(image.image_id, why, label, predicted, _probs(image), picture, readers)


def pictures_of(project: ProjectStore, image_ids: Iterable[str]) -> dict[str, str]:
    """The newest round that keeps a picture of each of the images."""
    found: dict[str, str] = {}
    left = set(image_ids)
    for round_id in project.thumbnails.rounds():
        if not left:
            break
        there = left & project.thumbnails.of_round(round_id)
        found |= dict.fromkeys(there, round_id)
        left -= there
    return found
