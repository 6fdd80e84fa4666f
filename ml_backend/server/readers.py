"""A page for a second screen in the reading room: how far the readers have come, and nothing that could bias them."""

from dataclasses import replace
from datetime import datetime

from flask import Response

from ml_backend.analytics.overview import Analysis
from ml_backend.server.context import context, refreshing
from ml_backend.server.status import ProjectStatus, status_of
from ml_backend.server.views import find_project, pages, render


@pages.get("/projects/<key>/readers")
def readers(key: str) -> Response:
    """How far the readers have come, for a second screen: no accuracy, no classes, no names."""
    connection, project = find_project(key)
    # Never computed here, which takes seconds at 100,000 images: the reconciler renews it within a minute.
    found = project.readings.analysis(Analysis)
    status = replace(status_of(connection, context().store, context().queue, analysed=False), analysis=found)
    number, words = next_ranking(status)
    view = {
        "connection": connection,
        "reading": found and found.reading,
        "standing": status.standing,
        "today": datetime.now().astimezone().date(),
        "number": number,
        "words": words,
    }
    return render("readers.html", view | refreshing(busy=status.busy))


def next_ranking(status: ProjectStatus) -> tuple[str, str]:
    """When readers get the next ranking: a number or a word, and what it counts or means.

    Args:
        status: of the project, with its standing where there is one.
    """
    queue, standing = status.queue, status.standing
    # Redis learns of a new number with the next event only.
    missing = (status.options.retrain_after if status.options else queue.threshold) - queue.changes
    left = missing if standing is None else standing.waiting + standing.further
    found = (
        (queue.running, "now", "it is being computed"),
        (queue.waiting, "soon", "it waits to be computed"),
        (standing is not None and not standing.waits, "–", "no image waits for a label"),
        (status.paused, "–", "paused: the order stays as it is"),
        (not queue.threshold, "–", "the owner starts it"),
        (missing <= 0, "soon", "it is due"),
        (left < missing, "–", "too few images are left for another one"),
        (True, str(missing), "more label" if missing == 1 else "more labels"),
    )
    return next((number, words) for holds, number, words in found if holds)
