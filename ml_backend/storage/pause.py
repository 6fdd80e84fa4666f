"""Whether a project's rounds start by themselves: its owner may hold them."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import structlog
from pydantic import Field

from ml_backend.errors import StorageError
from ml_backend.records import Record
from ml_backend.storage.files import read_record, write_record

__all__ = ["Pause", "Paused"]

log = structlog.get_logger()


class Paused(Record):
    """Since when no round starts by itself, and after how many changes one did (0: it did not)."""

    since: datetime
    threshold: Annotated[int, Field(ge=0)] = 0


class Pause:
    """The pause of one project; here and not in Redis, which may be emptied.

    Args:
        folder: of the project.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "paused.json"

    def read(self) -> Paused | None:
        """The pause; None where rounds start by themselves.

        A file that cannot be read is a pause as well: somebody wanted one, and "resume" mends it.
        """
        try:
            return read_record(self._path, Paused)
        except StorageError as error:
            log.warning("a pause that cannot be read holds the rounds", error=str(error))
            return Paused(since=datetime.now(UTC))

    @property
    def holds(self) -> bool:
        """Whether no round may start by itself."""
        return self.read() is not None

    def begin(self, threshold: int) -> None:
        """Hold the rounds; a pause that has begun stays as it is.

        Args:
            threshold: changes that started a round until now.

        Raises:
            StorageError: the disk refuses.
        """
        if not self.holds:
            write_record(self._path, Paused(since=datetime.now(UTC), threshold=threshold))

    def end(self) -> Paused | None:
        """Let rounds start again; says which pause that ended, None where there was none.

        Raises:
            StorageError: the disk refuses.
        """
        ended = self.read()
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"{self._path} could not be removed: {error}") from error
        return ended
