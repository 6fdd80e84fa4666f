"""What Label Studio's page sends while a reader labels: the recording, and requests in the form that it has.

A number, a time and an id differ from run to run: the recording names their kind in angle brackets. Requests that
readers' answers do not depend on (users, columns, comments) are left out.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

RECORDED: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).parent / "recorded/label_studio_page.json").read_text()
)
PATHS = (
    (r"/api/dm/actions\?id=next_task&(?:tabID=\d+&)?project=\d+", "/api/dm/actions?id=next_task&project=<project>"),
    (r"/api/tasks/\d+/annotations\?project=\d+", "/api/tasks/<task>/annotations?project=<project>"),
    (r"/api/tasks/\d+/drafts\?project=\d+", "/api/tasks/<task>/drafts?project=<project>"),
    (
        r"/api/annotations/\d+\?taskID=\d+&project=\d+",
        "/api/annotations/<annotation>?taskID=<task>&project=<project>",
    ),
    (
        r"/api/tasks/\d+\?interaction=labelstream&project=\d+",
        "/api/tasks/<task>?interaction=labelstream&project=<project>",
    ),
)
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
LOCK = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
REGION = re.compile(r"[\w-]{10}")
KINDS: dict[str, tuple[str, Callable[[Any], object]]] = {
    "lead_time": ("<seconds>", lambda value: isinstance(value, float | int) and 0 < value < 1000),
    "parent_prediction": ("<prediction>", lambda value: isinstance(value, int)),
    "draft_id": ("<draft>", lambda value: isinstance(value, int) and value > 0),
    "project": ("<project>", lambda value: isinstance(value, str) and value.isdigit()),
    "started_at": ("<time>", lambda value: isinstance(value, str) and TIME.fullmatch(value)),
    "unique_id": ("<lock>", lambda value: isinstance(value, str) and LOCK.fullmatch(value)),
}


def page_request(method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A request in the form of the recording; None for one that it leaves out."""
    form = next((form for pattern, form in PATHS if re.fullmatch(pattern, path)), None)
    if form is None:
        return None
    kinds = {} if body is None else {name: _kind(name, value) for name, value in body.items()}
    return {"request": f"{method} {form}"} | ({} if body is None else {"body": kinds})


def _kind(name: str, value: Any) -> Any:
    if name == "result":
        return [region | {"id": "<region>"} if REGION.fullmatch(region["id"]) else region for region in value]
    kind, is_one = KINDS.get(name, ("", lambda _: False))
    return kind if is_one(value) else value
