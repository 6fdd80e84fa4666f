"""A page for a second screen in the reading room: how far the readers have come, and nothing that could bias them."""

from datetime import datetime

from flask import Response

from ml_backend.analytics.overview import Analysis
from ml_backend.analytics.standing import Standing
from ml_backend.config import ProjectOptions
from ml_backend.errors import BackendError
from ml_backend.scheduling import QueueStatus
from ml_backend.server.context import context, refreshing
from ml_backend.server.status import config_of
from ml_backend.server.views import find_project, pages, render


@pages.get("/projects/<key>/readers")
def readers(key: str) -> Response:
    """How far the readers have come, for a second screen: no accuracy, no classes, no names."""
    connection, project = find_project(key)
    # Never computed here, which takes seconds at 100,000 images: the reconciler renews it within a minute.
    found = project.readings.analysis(Analysis) or Analysis(inputs="")
    configured, _ = config_of(connection)
    options = None if configured is None else configured.options
    try:
        queue = context().queue.status(connection.project)
        number, words = next_ranking(queue, found.standing, options, paused=project.pause.read() is not None)
    except BackendError:  # a page that says so would not reload
        queue, number, words = QueueStatus(), "–", "not known at the moment"
    view = {
        "connection": connection,
        "reading": found.reading,
        "standing": found.standing,
        "today": datetime.now().astimezone().date(),
        "number": number,
        "words": words,
    }
    return render("readers.html", view | refreshing(busy=bool(queue.running or queue.waiting)))


def next_ranking(
    queue: QueueStatus, standing: Standing | None, options: ProjectOptions | None, *, paused: bool
) -> tuple[str, str]:
    """When readers get the next ranking: a number or a word, and what it counts or means.

    Args:
        queue: rounds of the project.
        standing: None where Label Studio was not read yet.
        options: of the owner; None where they are wrong.
        paused: by the owner.
    """
    # Redis learns of a new number with the next event only.
    missing = (options.retrain_after if options else queue.threshold) - queue.changes
    left = missing if standing is None else standing.waiting + standing.further
    found = (
        (queue.running, "now", "it is being computed"),
        (queue.waiting, "soon", "it waits to be computed"),
        (standing is not None and not standing.waits, "–", "no image waits for a label"),
        (paused, "–", "paused: the order stays as it is"),
        # Before Label Studio has sent anything.
        (not queue.threshold and queue.annotations is None, "–", "not known yet"),
        (not queue.threshold, "–", "the owner starts it"),
        (missing <= 0, "soon", "it is due"),
        (left < missing, "–", "too few images are left for another one"),
        (True, str(missing), "more label" if missing == 1 else "more labels"),
    )
    return next((number, words) for holds, number, words in found if holds)
