"""Addresses of images that stay where they are: below Label Studio's document root, in a bucket, or on a web server."""

from pathlib import Path
from urllib.parse import quote

from ml_backend.errors import SettingsError
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.storages import connect_storage, stored_address


class Places:
    """Connects the storages of one project as they are needed.

    Args:
        client: of a user who may change the project.
        project_id: the project.
        source: of the import; a bucket is connected by it, so that its keys need no more than its prefix.
        document_root: ``LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT``, under the same path here.
    """

    def __init__(
        self, client: LabelStudioClient, project_id: int, source: str, document_root: Path | None = None
    ) -> None:
        self._client = client
        self._project_id = project_id
        self._source = source
        self._root = document_root.resolve() if document_root else None
        self._connected: set[str] = set()

    def address(self, place: str) -> str:
        """What a task holds to show the file.

        Args:
            place: path or URL of the file, as ``images.files.SourceFile.address``.

        Raises:
            SettingsError: Label Studio cannot serve it from there.
            LabelStudioError: Label Studio refuses its storage.
        """
        if place.startswith(("http://", "https://")):
            return place
        if "://" not in place:
            return self._local(Path(place).resolve())
        bucket = "/".join(place.split("/")[:3])
        if bucket not in self._connected:
            uri = self._source if f"{self._source}/".startswith(f"{bucket}/") else f"{bucket}/"
            connect_storage(self._client, self._project_id, uri)
            self._connected.add(bucket)
        return stored_address(place)

    def _local(self, path: Path) -> str:
        if self._root is None or self._root not in path.parents[1:]:
            raise SettingsError(
                f"{path} cannot stay where it is: Label Studio serves what lies in a folder below its document root, "
                f"which --document-root names ({self._root or 'not given'}); move it there, or leave out "
                "--leave-in-place"
            )
        below = path.relative_to(self._root)
        folder = str(self._root / below.parts[0])
        if folder not in self._connected:
            rows = self._client.storages("local", self._project_id)
            if folder not in {str(row.get("path")) for row in rows}:
                # Not to be synchronized: that would make a second task of every file.
                self._client.add_storage("local", self._project_id, {"path": folder, "synchronizable": False})
            self._connected.add(folder)
        return f"/data/local-files/?d={quote(below.as_posix())}"
