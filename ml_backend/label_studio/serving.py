"""What Label Studio serves a project's readers, compared with what was published.

The ranking orders Label Studio's tasks as long as the project's settings say so and the published predictions are
there. Any user of Label Studio can change either: predictions are deleted in the Data Manager, imported a second time,
or another model version is chosen. The reconciler compares the two once a minute; page and doctor name what it finds.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

from ml_backend.label_studio.client import HeldPredictions, LabelStudioClient
from ml_backend.records import ImportedVersion, Published, Record
from ml_backend.settings import ProjectOptions

__all__ = [
    "ONE_INSTALLATION",
    "SAMPLING",
    "Aspect",
    "Serving",
    "ServingProblem",
    "is_lost",
    "read_serving",
    "serving_problems",
    "wanted_project",
]

SAMPLING = "Uncertainty sampling"
ONE_INSTALLATION = (
    "stop the other installation, or remove one of the two from the project; then press Train now on the project's "
    "page. Where there is no other, the data folder is older than the ranking, as a restored backup is: press Train now"
)
# Versions as ``LabelStudioPublisher`` names them.
RANKING = re.compile(r"al-r\d{6,}-\w+-[0-9a-f]{6}")
Aspect = Literal["sampling", "readers per image", "predictions on", "order served", "predictions"]


class Serving(Record):
    """What decides which image a reader is served next, as Label Studio holds it.

    Attributes:
        version: model version that was published when Label Studio was asked; None where there was none.
        there: published images that the project still has.
        held: predictions of that version that the project holds.
        model_version: of the project; "" where it has none.
        sampling: of the project; likewise the rest.
        connected: whether the project has this ML backend; asked only where the ranking is not there as published,
            since Label Studio calls every backend before it answers.
        foreign: whether ``model_version`` is the ranking of another installation of this backend.
        imported_again: whether predictions of that version were made after it was published.
    """

    version: str | None
    there: int
    held: int
    model_version: str
    sampling: str | None
    maximum_annotations: int | None
    show_collab_predictions: bool
    connected: bool = True
    foreign: bool = False
    imported_again: bool = False


class ServingProblem(Record):
    """Something that keeps readers from being served the published ranking.

    Attributes:
        aspect: what is wrong.
        seen: what Label Studio holds, in a sentence.
        mended: whether the backend publishes the ranking again by itself.
        foreign: whether another installation of this backend is the cause; see ``ONE_INSTALLATION``.
    """

    aspect: Aspect
    seen: str
    mended: bool = False
    foreign: bool = False


def wanted_project(options: ProjectOptions) -> dict[str, object]:
    """Settings of a project with which readers are served the ranking."""
    return {
        "sampling": SAMPLING,
        "maximum_annotations": options.annotations_per_task,
        # Off, each "Save" in the project's settings would drop the model version, and the order with it.
        # Our predictions are empty unless the owner asked for pre-labelling, so that nothing is shown.
        "show_collab_predictions": True,
    }


def read_serving(
    client: LabelStudioClient,
    project: Mapping[str, Any],
    tasks: Collection[int],
    published: Published | None,
    imported: Callable[[], Collection[ImportedVersion]],
    *,
    user: str | None = None,
) -> Serving:
    """Ask Label Studio how many of the published predictions it holds: one request, and none before the first ranking.

    Where they are not as published, a second request asks whether the project still has this ML backend.

    Args:
        client: of Label Studio.
        project: the project's row.
        tasks: ids of the tasks that the project has.
        published: what was published last.
        imported: reads the model versions on this installation's record; called only where another one is served.
        user: that callers of this backend give; None where none is asked for, and any backend may be this one.

    Raises:
        LabelStudioError: no answer, or a refusal.
        StorageError: from ``imported``.
    """
    none = HeldPredictions(0, None)
    held = none if published is None else client.held_predictions(int(project["id"])).get(published.version, none)
    imported_at = None if published is None else published.imported_at
    version = None if published is None else published.version
    model_version = project.get("model_version") or ""
    another = model_version != version and RANKING.fullmatch(model_version) is not None
    serving = Serving(
        version=version,
        there=0 if published is None else sum(int(image_id) in tasks for image_id in published.image_ids),
        held=held.number,
        model_version=model_version,
        sampling=project.get("sampling"),
        maximum_annotations=project.get("maximum_annotations"),
        show_collab_predictions=bool(project.get("show_collab_predictions")),
        foreign=another and model_version not in {one.version for one in imported()},
        # Older it may be: the newest one is gone with its task.
        imported_again=imported_at is not None and held.newest is not None and held.newest > imported_at,
    )
    if not is_lost(serving):
        return serving
    connected = any(user is None or row.get("basic_auth_user") == user for row in client.backends(int(project["id"])))
    return serving.model_copy(update={"connected": connected})


def serving_problems(
    serving: Serving, options: ProjectOptions, title: str, *, waits: bool = True
) -> list[ServingProblem]:
    """Why readers are not served the published ranking; empty where they are.

    Args:
        serving: what Label Studio holds.
        options: of the project.
        title: of the backend in Label Studio: under it as model version Label Studio serves in random order.
        waits: whether an image waits for a label; where none does, nobody misses a ranking that is lost.
    """
    found = _of_settings(serving, options)
    random = ", the backend's title, which serves in random order" if serving.model_version == title else ""
    if serving.version is None:
        if random:
            seen = f"model_version is {serving.model_version!r}{random}; no ranking is published yet"
            found.append(ServingProblem(aspect="order served", seen=seen))
        return found
    if not waits:
        return found
    alone = ""
    if not serving.connected:
        alone = "; it is not published again, since the project does not have this ML backend any more"
    elif serving.foreign:
        alone = "; another installation of this backend publishes its ranking here, so this one does not"
    cause = {"mended": is_lost(serving), "foreign": serving.connected and serving.foreign}
    if serving.model_version != serving.version:
        seen = f"model_version is {serving.model_version!r}{random}; the published ranking is {serving.version}{alone}"
        found.append(ServingProblem(aspect="order served", seen=seen, **cause))
    if serving.held != serving.there or serving.imported_again:
        again = f"predictions of {serving.version} were imported again in place of the published ones"
        numbers = (
            f"Label Studio holds {serving.held} predictions of {serving.version}, and {serving.there} of its "
            "images are there"
        )
        seen = f"{again if serving.held == serving.there else numbers}{alone}"
        found.append(ServingProblem(aspect="predictions", seen=seen, **cause))
    return found


def _of_settings(serving: Serving, options: ProjectOptions) -> list[ServingProblem]:
    found = []
    wanted = wanted_project(options)
    if serving.sampling != wanted["sampling"]:
        seen = f"Label Studio serves by {serving.sampling!r}, and the ranking only by {SAMPLING!r}"
        found.append(ServingProblem(aspect="sampling", seen=seen))
    if serving.maximum_annotations != wanted["maximum_annotations"]:
        seen = (
            f"an image is shown to {serving.maximum_annotations} readers, and annotations_per_task is "
            f"{options.annotations_per_task}"
        )
        found.append(ServingProblem(aspect="readers per image", seen=seen))
    if not serving.show_collab_predictions:
        seen = "predictions are switched off: the next Save of the project's settings drops the order"
        found.append(ServingProblem(aspect="predictions on", seen=seen))
    return found


def is_lost(serving: Serving) -> bool:
    """Whether Label Studio does not hold the published ranking as it was published, so that it is published again.

    Not where the owner has removed the backend from the project, nor where another installation of this backend
    publishes in the same project: the two would replace each other's ranking every minute.
    """
    changed = serving.model_version != serving.version or serving.held != serving.there or serving.imported_again
    return serving.version is not None and serving.connected and not serving.foreign and changed
