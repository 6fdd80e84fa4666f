"""What Label Studio itself exports: a second witness, which nothing of the backend reads."""

from typing import Any

from ml_backend.label_studio.client import LabelStudioClient

__all__ = ["exported_tasks"]


def exported_tasks(client: LabelStudioClient, project_id: int) -> list[dict[str, Any]]:
    """Every task with an annotation or a skip, as the JSON export writes it."""
    return client.request("GET", f"/api/projects/{project_id}/export", list, query={"exportType": "JSON"})
