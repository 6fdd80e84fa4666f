"""Small pictures of the images that a round chose, for its owner's page. None of them is needed for anything else."""

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import structlog

from ml_backend.storage.files import folder_beside

__all__ = ["Thumbnails"]

KEPT_ROUNDS = 20
DRAWN, SQUASHED = "films", "thumbs"
"""Folders of a round: its pictures, and those of an earlier version, which drew every film as a square."""
# Label Studio's task ids are numbers; an id that is a path could lead out of the folder.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

log = structlog.get_logger()


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
