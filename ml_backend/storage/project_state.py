"""Whether a project's rounds start by themselves: its owner may hold them.

Small pictures of the images that a round chose, for its owner's page. None of them is needed for anything else.
"""

import re
import shutil
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import structlog
from pydantic import Field

from ml_backend.errors import StorageError
from ml_backend.schemas import FrozenModel
from ml_backend.storage.atomic import folder_beside, read_record, write_record

log = structlog.get_logger()


class Paused(FrozenModel):
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


KEPT_ROUNDS = 20
DRAWN, SQUASHED = "films", "thumbs"
"""Folders of a round: its pictures, and those of an earlier version, which drew every film as a square."""
# Label Studio's task ids are numbers; an id that is a path could lead out of the folder.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class Thumbnails:
    """Those of one project, ``rounds/<round>/films/<image>.jpg``.

    Args:
        folder: of the project.
    """

    def __init__(self, folder: Path) -> None:
        self._rounds = folder / "rounds"

    def keep(self, round_id: str, pictures: Iterable[tuple[str, bytes]]) -> int:
        """Write those of a saved round, and remove those of rounds that are long over; says how many were written.

        Args:
            round_id: of the round.
            pictures: image ids, each with a JPEG file; an id that no file may be called is left out.

        Raises:
            OSError: the disk refuses.
        """
        target = self._rounds / round_id / DRAWN
        if not (target.parent / "report.json").is_file():
            return 0
        shutil.rmtree(target, ignore_errors=True)
        count = 0
        with folder_beside(target) as folder:
            for image_id, content in pictures:
                if _ID.fullmatch(image_id):
                    (folder / f"{image_id}.jpg").write_bytes(content)
                    count += 1
        shutil.rmtree(target.parent / SQUASHED, ignore_errors=True)
        for old in self._with_pictures()[:-KEPT_ROUNDS]:
            for name in (DRAWN, SQUASHED):
                shutil.rmtree(old / name, ignore_errors=True)
        return count

    def squashed(self) -> list[str]:
        """The rounds whose pictures an earlier version drew, the newest first."""
        return [folder.name for folder in reversed(self._with_pictures()) if not (folder / DRAWN).is_dir()]

    def of_round(self, round_id: str) -> frozenset[str]:
        """The images of a round that there is a picture of."""
        if not _ID.fullmatch(round_id):
            return frozenset()
        return frozenset(path.stem for path in self._folder(round_id).glob("*.jpg"))

    def read(self, round_id: str, image_id: str) -> bytes | None:
        """One picture; None where there is none, or the ids are none."""
        if not (_ID.fullmatch(round_id) and _ID.fullmatch(image_id)):
            return None
        try:
            return (self._folder(round_id) / f"{image_id}.jpg").read_bytes()
        except OSError:
            return None

    def _folder(self, round_id: str) -> Path:
        """Where a round's pictures are; until they are drawn again, those of the earlier version."""
        drawn = self._rounds / round_id / DRAWN
        return drawn if drawn.is_dir() else drawn.with_name(SQUASHED)

    def _with_pictures(self) -> list[Path]:
        """Folders of the rounds that have any, oldest first."""
        return sorted({path.parent for name in (DRAWN, SQUASHED) for path in self._rounds.glob(f"r*/{name}")})
