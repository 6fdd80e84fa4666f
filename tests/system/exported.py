"""Label Studio's own export, which the backend does not read."""

from typing import Any

from ml_backend.label_studio.client import LabelStudioClient


def exported_tasks(client: LabelStudioClient, project_id: int) -> list[dict[str, Any]]:
    """Every task with an annotation or a skip, as the JSON export writes it."""
    return client.request("GET", f"/api/projects/{project_id}/export", list, query={"exportType": "JSON"})
