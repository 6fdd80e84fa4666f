"""Images that resemble one, with a button that puts them next in the order; and the map of all images. Torch-free."""

from collections.abc import Mapping, Sequence, Set
from datetime import UTC, datetime
from typing import Final

import numpy as np
import structlog
from flask import Response, request

from ml_backend.analytics.overview import analyse, served_round
from ml_backend.analytics.similar import Neighbour, nearest
from ml_backend.charts import COLOURS, Mark, scatter_chart
from ml_backend.label_studio.formats import training_classes
from ml_backend.schemas import Connection, HandPick
from ml_backend.server.actions import perform
from ml_backend.server.context import context, relative_url, user_name
from ml_backend.server.images_page import WallImage, comparable, pictures_of
from ml_backend.server.status import config_of
from ml_backend.server.views import find_project, pages, render
from ml_backend.storage import ProjectStore
from ml_backend.storage.rounds import Suggestions

SHOWN: Final = 12
LINKED_LABELS: Final = 120
"""Labelled images of the map with a link: with more, nothing else could be seen."""
SURE: Final = (0.9, 0.75, 0.6)
"""Probabilities of the most probable class that the map distinguishes."""
VIEWS: Final = {"label": "label", "uncertainty": "uncertainty of the network", "batch": "batch"}
MESSAGES: Final = {
    "topup-asked": "Put next. Readers get these images within a minute; an image that is open stays open.",
    "waits": "Put next, with the round that is queued already.",
    "none": "Nothing was changed: no image was chosen that still waits for a label.",
}

log = structlog.get_logger()


@pages.get("/projects/<key>/similar/<image_id>")
def similar(key: str, image_id: str) -> Response:
    """The images that resemble one, without and with a label."""
    connection, project = find_project(key)
    embedding, (labels, closed) = project.embedding(), _labels(connection, project)
    known = embedding is not None and image_id in embedding.image_ids
    unlabelled, labelled = nearest(embedding, image_id, labels, SHOWN, closed) if embedding and known else ([], [])
    pictures = pictures_of(project, [image_id, *(one.image_id for one in (*unlabelled, *labelled))])
    suggestions = _suggestions(project)

    def shown(one: Neighbour) -> WallImage:
        suggested = suggestions.classes.get(one.image_id)
        sure = f", {100 * suggestions.confidences[one.image_id]:.0f} % sure" if suggested else ""
        why = f"likeness {one.likeness:.2f}" + (f"; predicted {suggested}{sure}" if suggested and not one.label else "")
        return WallImage(one.image_id, why, one.label, suggested, {}, pictures.get(one.image_id))

    return render(
        "similar.html",
        {
            "connection": connection,
            "embedding": embedding,
            "comparable": comparable(connection, project),
            "known": known,
            "image": image_id,
            "label": labels.get(image_id),
            "of_image": pictures.get(image_id),
            "unlabelled": [shown(one) for one in unlabelled],
            "labelled": [shown(one) for one in labelled],
            "waiting": {*project.hand_picked()} - labels.keys() - closed,
            "picks": project.hand_picks()[::-1],
            "token": context().tokens.of(key, "similar"),
            "said": MESSAGES.get(request.args.get("done", "")),
        },
    )


@pages.post("/projects/<key>/similar/<image_id>")
def put_next(key: str, image_id: str) -> Response:
    """Put the chosen ones of an image's neighbours next in the order; the form sends ``token`` and ``chosen``."""
    connection, project = find_project(key)
    context().tokens.require(key, "similar", request.form.get("token", ""))
    embedding, (labels, closed) = project.embedding(), _labels(connection, project)
    allowed = {*(embedding.image_ids if embedding else ())} - labels.keys() - closed - {*project.hand_picked()}
    chosen = tuple(one for one in dict.fromkeys(request.form.getlist("chosen")) if one in allowed)[:SHOWN]
    message = "none"
    if chosen:
        # On record first: should the request be lost, the reconciler finds what was not published.
        project.add_hand_pick(HandPick(at=datetime.now(UTC), by=user_name(), like=image_id[:64], image_ids=chosen))
        message = perform("topup", connection, context().store, context().queue)
        log.info("images put next by hand", by=user_name(), like=image_id[:64], images=chosen, said=message)
    return Response(
        status=303, headers={"Location": relative_url("pages.similar", key=key, image_id=image_id, done=message)}
    )


@pages.get("/projects/<key>/map")
def image_map(key: str) -> Response:
    """All images by the first two axes of their features, coloured by label, uncertainty or batch."""
    connection, project = find_project(key)
    by = request.args.get("by", "")
    by = by if by in VIEWS else "label"
    embedding, (labels, closed) = project.embedding(), _labels(connection, project)
    shown = served_round(project)
    head = None if shown is None else project.head(shown)
    batch = [] if head is None else [one.image_id for one in (*head.batch, *head.behind)]
    view: dict[str, object] = {"connection": connection, "embedding": embedding, "by": by, "views": VIEWS}
    view["comparable"] = comparable(connection, project)
    if embedding is not None:
        rows = {name: row for row, name in enumerate(embedding.image_ids)}
        done = {*closed, *labels}
        waiting = [one for one in dict.fromkeys((*project.hand_picked(), *batch)) if one in rows and one not in done]
        labelled = [one for one in embedding.image_ids if one in labels]
        linked = [*waiting, *labelled[:: -(-len(labelled) // LINKED_LABELS) or 1]]
        kinds, kind_of = _kinds(by, connection, project, labels, batch)
        places = [kind_of.get(one, 0) for one in embedding.image_ids]
        legend = [(style, text, places.count(n)) for n, (style, text) in enumerate(kinds)]
        names = [labels.get(one, "no label yet") for one in linked]
        marks = [
            Mark(rows[one], relative_url("pages.similar", key=key, image_id=one), f"Task {one}: {name}")
            for one, name in zip(linked, names, strict=True)
        ]
        view["chart"] = scatter_chart(
            "map",
            f"Map of {len(places)} images, coloured by {VIEWS[by]}",
            "; ".join(f"{number} {text}" for _, text, number in legend),
            embedding.components[:, :2].astype(np.float64),
            styles=[style for style, _ in kinds],
            kinds=places,
            marks=marks,
        )
        view |= {"legend": legend, "linked": list(zip(linked, names, strict=True))}
    return render("map.html", view)


def _kinds(
    by: str, connection: Connection, project: ProjectStore, labels: Mapping[str, str], batch: Sequence[str]
) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """Style and words of each kind of image, and the place of an image's kind among them; of all others, 0."""
    if by == "batch":
        kinds = [
            ("s0", "further back in the order"),
            ("s3", "labelled"),
            ("s1", "chosen next"),
            ("s2", "put next by hand"),
        ]
        picked = dict.fromkeys(project.hand_picked(), 3)
        return kinds, {**dict.fromkeys(batch, 2), **picked, **dict.fromkeys(labels, 1)}
    if by == "uncertainty":
        words = ["labelled, or without a prediction", "the network is 90 % sure or more"]
        words += ["75 to 90 %", "60 to 75 %", "less than 60 %"]
        sure = {one: share for one, share in _suggestions(project).confidences.items() if one not in labels}
        kinds = list(zip(("s0", "u1", "u2", "u3", "u4"), words, strict=True))
        return kinds, {one: 1 + sum(share < bound for bound in SURE) for one, share in sure.items()}
    configured, _ = config_of(connection)
    classes = () if configured is None else training_classes(*configured)
    styles = (f"s{1 + place % COLOURS}" for place in range(len(classes)))
    kinds = [("s0", "no label yet"), *zip(styles, classes, strict=True)]
    return kinds, {one: 1 + classes.index(label) for one, label in labels.items() if label in classes}


def _labels(connection: Connection, project: ProjectStore) -> tuple[Mapping[str, str], Set[str]]:
    """Image id -> label, as Label Studio was last read, and the images without one that no reader is asked for.

    Both are empty where labels cannot be read.
    """
    configured, _ = config_of(connection)
    found = None if configured is None else analyse(project, *configured)
    return ({}, frozenset()) if found is None else (found.labels, found.closed)


def _suggestions(project: ProjectStore) -> Suggestions:
    return Suggestions({}, {}) if (served := served_round(project)) is None else project.suggestions(served)
