"""Numbers of rounds: the folder that a round is written in is the reservation of its number."""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ml_backend.errors import StaleRound

__all__ = ["make_room", "reserve", "sweep"]


def reserve(rounds: Path) -> str:
    """Take the next number: of two runs that try at once, each gets one of its own.

    Args:
        rounds: the folder of a project's rounds, which is there.

    Raises:
        OSError: the disk refuses.
    """
    while True:
        round_id = f"r{_newest(rounds) + 1:06d}"
        try:
            # The folder that the round is written in, and the number's reservation: of two runs one makes it.
            (rounds / f".{round_id}").mkdir()
        except FileExistsError:
            continue
        if _newest(rounds) == int(round_id[1:]):
            return round_id
        # Looked up before a newer run came and swept the number away from under another one.
        with suppress(OSError):
            (rounds / f".{round_id}").rmdir()


def make_room(folder: Path, target: Path) -> None:
    """An empty folder for a round that nobody has saved, and no newer one has overtaken.

    Raises:
        StaleRound: a newer one has.
        OSError: it is saved already, or the disk refuses.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if _newest(target.parent) > _number(target):
        raise StaleRound(f"a newer round than {target.name} has begun: it is not saved")
    if target.exists():
        raise FileExistsError(f"{target.name} is there already")
    # What was left half written under a number that nobody had taken.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def _newest(rounds: Path) -> int:
    """Number of the newest round that was begun, saved or not; 0 where there is none."""
    return max(map(_number, rounds.iterdir()), default=0)


def _number(folder: Path) -> int:
    name = folder.name.removeprefix(".")
    return int(name[1:]) if name[:1] == "r" and name[1:].isdecimal() else 0


def sweep(rounds: Path, round_id: str, large: Sequence[str], kept: int) -> None:
    """Remove what killed rounds left half-written, and large files but of the last rounds that have any.

    Args:
        rounds: folder of a project's rounds.
        round_id: of the round that begins.
        large: patterns of files, each counted by itself.
        kept: rounds that keep them.
    """
    for left in rounds.glob(".r*"):
        if left.name < f".{round_id}":
            shutil.rmtree(left, ignore_errors=True)
    saved = sorted(path.parent for path in rounds.glob("r*/report.json"))
    for pattern in large:
        having = [files for folder in saved if (files := list(folder.rglob(pattern)))]
        for path in (path for files in having[:-kept] for path in files):
            path.unlink(missing_ok=True)
