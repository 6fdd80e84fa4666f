"""Keeps a tab of the Data Manager with the images about which readers disagree, for somebody to decide."""

from collections.abc import Sequence
from typing import Any, Final, Protocol

import structlog

from ml_backend.errors import LabelStudioError, RequestRefused
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.schemas import FrozenModel

TITLE: Final = "Disagreements"
MOST: Final = 100
"""Images of the tab: its filter has a line for each, which the Data Manager shows."""

Json = dict[str, Any]
log = structlog.get_logger(__name__)


class DisagreementsTab(FrozenModel):
    """The tab as this backend made it.

    Attributes:
        id: in Label Studio.
        images: ids of the tasks that it shows.
        before: ids that it may show instead, as the change to ``images`` was not seen to succeed.
    """

    id: int
    images: tuple[str, ...]
    before: tuple[str, ...] | None = None


class TabStore(Protocol):
    """Keeps the tab between two rounds."""

    def disagreements_tab(self, kind: type[DisagreementsTab]) -> DisagreementsTab | None: ...

    def keep_disagreements_tab(self, tab: DisagreementsTab) -> None:
        """Never raises."""
        ...


def keep_tab(client: LabelStudioClient, project_id: int, images: Sequence[str], store: TabStore) -> None:
    """Let the tab show these images, and make it where there is none yet. Errors are logged.

    It is made once, for the first disagreement, with the columns of the first tab. The owner may rename it, move it and
    change its columns; one that is removed does not come back, and one whose filter is not ours any more is left alone.

    Args:
        client: of Label Studio.
        project_id: of the project.
        images: task ids, the widest disagreement first; the first ``MOST`` are shown.
        store: of the project.
    """
    shown = tuple(images[:MOST])
    try:
        made = store.disagreements_tab(DisagreementsTab)
        if made is None and not shown:
            return
        if made is None and (made := _adopted(tabs := _tabs(client, project_id))) is None:
            if not tabs:  # the Data Manager makes this one only where there is none
                tabs = [_made(client, project_id, {"title": "Default", "type": "list"})]
            looks: Json = {name: value for name, value in tabs[0]["data"].items() if name != "ordering"}
            tab = _made(client, project_id, looks | {"title": TITLE, "filters": _only(shown)})
            made = DisagreementsTab(id=int(tab["id"]), images=shown)
        elif made.before is not None or set(made.images) != set(shown):
            data: Json = client.request("GET", f"/api/dm/views/{made.id}/", dict).get("data") or {}
            seen = _shown_by(data)
            if seen is None or seen not in (set(made.images), set(made.before or ())):
                return
            # On record first: a change without a response must not pass for the owner's.
            made = made.model_copy(update={"images": shown, "before": tuple(sorted(seen))})
            store.keep_disagreements_tab(made)
            if store.disagreements_tab(DisagreementsTab) != made:
                return
            data = {**data, "filters": _only(shown)}
            client.send("PATCH", f"/api/dm/views/{made.id}/", body={"project": project_id, "data": data})
            made = made.model_copy(update={"before": None})
        store.keep_disagreements_tab(made)
    except RequestRefused as error:
        if error.status != 404:  # the owner has removed it
            log.warning("the tab of disagreements stays as it is for now", error=str(error))
    except (LabelStudioError, KeyError, TypeError, ValueError) as error:
        log.warning("the tab of disagreements stays as it is for now", error=str(error))


def _tabs(client: LabelStudioClient, project_id: int) -> list[Json]:
    tabs = client.request("GET", "/api/dm/views/", list, query={"project": str(project_id)})
    return [tab | {"data": tab.get("data") or {"type": "list"}} for tab in tabs]  # the API makes some without


def _made(client: LabelStudioClient, project_id: int, data: Json) -> Json:
    return client.request("POST", "/api/dm/views/", dict, body={"project": project_id, "data": data})


def _adopted(tabs: Sequence[Json]) -> DisagreementsTab | None:
    """A tab of that title, as an installation leaves whose data folder is gone."""
    for tab in tabs:
        if tab["data"].get("title") == TITLE and (shown := _shown_by(tab["data"])) is not None:
            return DisagreementsTab(id=int(tab["id"]), images=tuple(sorted(shown)))
    return None


def _only(images: Sequence[str]) -> dict[str, object]:
    """A filter with a line for each image; with one that no task passes where there is none."""
    line = {"filter": "filter:tasks:id", "operator": "equal", "type": "Number"}
    return {"conjunction": "or", "items": [line | {"value": int(image_id)} for image_id in images or ("0",)]}


def _shown_by(data: Json) -> set[str] | None:
    """The images of a filter of ours; None where it is another."""
    items = (data.get("filters") or {}).get("items") or []
    if not items or any((one["filter"], one["operator"]) != ("filter:tasks:id", "equal") for one in items):
        return None
    return {str(one["value"]) for one in items} - {"0"}
