"""Small pictures of the images that a round chose, for its owner's page. None of them is needed for anything else."""

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import structlog

from ml_backend.storage.files import folder_beside

__all__ = ["Thumbnails"]

KEPT_ROUNDS = 20
# Label Studio's task ids are numbers; an id that is a path could lead out of the folder.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

log = structlog.get_logger()


class Thumbnails:
    """Those of one project, ``rounds/<round>/thumbs/<image>.jpg``.

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
        target = self._rounds / round_id / "thumbs"
        if not (target.parent / "report.json").is_file():
            return 0
        shutil.rmtree(target, ignore_errors=True)
        count = 0
        with folder_beside(target) as folder:
            for image_id, content in pictures:
                if _ID.fullmatch(image_id):
                    (folder / f"{image_id}.jpg").write_bytes(content)
                    count += 1
        for old in sorted(self._rounds.glob("r*/thumbs"))[:-KEPT_ROUNDS]:
            shutil.rmtree(old, ignore_errors=True)
        return count

    def of_round(self, round_id: str) -> frozenset[str]:
        """The images of a round that there is a picture of."""
        if not _ID.fullmatch(round_id):
            return frozenset()
        return frozenset(path.stem for path in (self._rounds / round_id / "thumbs").glob("*.jpg"))

    def read(self, round_id: str, image_id: str) -> bytes | None:
        """One picture; None where there is none, or the ids are none."""
        if not (_ID.fullmatch(round_id) and _ID.fullmatch(image_id)):
            return None
        try:
            return (self._rounds / round_id / "thumbs" / f"{image_id}.jpg").read_bytes()
        except OSError:
            return None
