"""Addresses of images that stay where they are: below Label Studio's document root, in a bucket, or on a web server."""

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from ml_backend.errors import SettingsError
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.storages import connect_storage, stored_address


class Places:
    """Connects the storages of one import as they are needed.

    Args:
        source: of the import. A folder or a bucket is connected by it, so that no more than its prefix is shown; of a
            table, the folder of each file.
        document_root: ``LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT``, under the same path here.
        private: files and folders that no reader may see, such as the key.
    """

    def __init__(self, source: str, document_root: Path | None = None, private: Sequence[Path] = ()) -> None:
        self._source = source
        self._root = document_root.resolve() if document_root else None
        self._private = [path.resolve() for path in private]
        self._connected: set[str] = set()

    def check(self, place: str) -> None:
        """Whether Label Studio can show a file from where it is.

        Args:
            place: path or URL of the file, as ``images.files.SourceFile.address``; empty where browsers cannot show it.

        Raises:
            SettingsError: it cannot, or would show what is private as well.
        """
        if not place:
            raise SettingsError("browsers cannot show it where it is: import it without --leave-in-place")
        try:
            place.encode()
        except UnicodeEncodeError:
            raise SettingsError("its name is no UTF-8, so that Label Studio cannot show it: rename it") from None
        if "://" not in place:
            self._folder(Path(place).resolve())

    def address(self, client: LabelStudioClient, project_id: int, place: str) -> str:
        """What a task holds to show a file, which is connected to the project.

        Args:
            client: of a user who may change the project.
            project_id: the project.
            place: as ``check`` takes it.

        Raises:
            SettingsError: as ``check`` raises it.
            LabelStudioError: Label Studio refuses its storage.
        """
        if place.startswith(("http://", "https://")):
            return place
        if "://" not in place:
            return self._local(client, project_id, Path(place).resolve())
        bucket = "/".join(place.split("/")[:3])
        if bucket not in self._connected:
            uri = self._source if f"{self._source}/".startswith(f"{bucket}/") else f"{bucket}/"
            connect_storage(client, project_id, uri)
            self._connected.add(bucket)
        return stored_address(place)

    def _local(self, client: LabelStudioClient, project_id: int, path: Path) -> str:
        folder, root = self._folder(path)
        if str(folder) not in self._connected:
            rows = client.storages("local", project_id)
            if str(folder) not in {str(row.get("path")) for row in rows}:
                # Not to be synchronized: that would make a second task of every file.
                client.add_storage("local", project_id, {"path": str(folder), "synchronizable": False})
            self._connected.add(str(folder))
        return f"/data/local-files/?d={quote(path.relative_to(root).as_posix())}"

    def _folder(self, path: Path) -> tuple[Path, Path]:
        """The folder to connect, whose files Label Studio shows to all of the project; and the document root."""
        source = Path(self._source)
        folder = source.resolve() if source.is_dir() else path.parent
        if self._root is None or self._root not in folder.parents:
            raise SettingsError(
                f"{folder} cannot stay where it is: Label Studio serves folders below its document root, "
                f"which --document-root names ({self._root or 'not given'}); move it there, or leave out "
                "--leave-in-place"
            )
        for private in self._private:
            if private.is_relative_to(folder):
                raise SettingsError(
                    f"{private} would be shown to all readers, like everything in {folder}: give --out and --key-file "
                    "outside of it"
                )
        return folder, self._root
