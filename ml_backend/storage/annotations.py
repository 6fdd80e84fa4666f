"""What was read of a project's tasks, and what its rounds learned from."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import structlog

from ml_backend.errors import StorageError
from ml_backend.schemas import FrozenModel
from ml_backend.storage.atomic import read_record, write_record

KEPT_ROUNDS = 20  # the round that is served is among them, even if some after it could not be published

R = TypeVar("R", bound=FrozenModel)
log = structlog.get_logger(__name__)


class _Learned(FrozenModel):
    """The annotations of a project as a round read them: a digest of each, by its id."""

    states: dict[str, str]


class _SameContent(FrozenModel):
    """Addresses of images that hold the same bytes as another, with a digest of these."""

    digests: dict[str, str]


class _Problem(FrozenModel):
    problem: str


class ReadingStore:
    """The readings of one project, beside its rounds.

    Args:
        folder: of the project.
    """

    def __init__(self, folder: Path) -> None:
        self._mirror = folder / "tasks.json"
        self._learned = folder / "learned"
        self._problem = folder / "reading-problem.json"
        self._serving = folder / "serving.json"
        self._same = folder / "same-content.json"

    def mirror(self, kind: type[R]) -> R | None:
        """The last reading; None where there is none, or it is damaged: Label Studio can always be read again."""
        try:
            return read_record(self._mirror, kind)
        except StorageError as error:
            log.warning("the project is read whole", error=str(error))
            return None

    def keep_mirror(self, mirror: FrozenModel) -> None:
        """Replace the last reading. Never raises: the next one only takes longer."""
        try:
            write_record(self._mirror, mirror)
        except (StorageError, ValueError) as error:  # ValueError: half a surrogate pair, which JSON lets through
            log.warning("the next reading takes longer", error=str(error))

    def digests(self) -> dict[str, str]:
        """Address -> digest of the bytes there, of images that hold the same as another; as far as rounds have seen."""
        try:
            kept = read_record(self._same, _SameContent)
        except StorageError as error:
            log.warning("images are distinguished by their addresses alone", error=str(error))
            return {}
        return {} if kept is None else kept.digests

    def keep_digests(self, digests: Mapping[str, str]) -> bool:
        """Replace ``digests``; whether they are others than before. Never raises: the next round finds them again."""
        if self.digests() == dict(digests):
            return False
        try:
            write_record(self._same, _SameContent(digests=dict(digests)))
        except (StorageError, ValueError) as error:  # ValueError: half a surrogate pair, which JSON lets through
            log.warning("images with equal content are not noted", error=str(error))
            return False
        return True

    def keep_learned(self, round_id: str, states: dict[str, str]) -> None:
        """Note what a round learns from; before it is saved, so that no round that is served lacks it.

        Raises:
            StorageError: the disk refuses.
        """
        write_record(self._learned / f"{round_id}.json", _Learned(states=states))
        for old in sorted(self._learned.glob("r*.json"))[:-KEPT_ROUNDS]:
            old.unlink(missing_ok=True)

    def keep_learned_of(self, earlier: str, round_id: str) -> None:
        """Note that a round knows what an earlier one has learned, and no more: what changed since counts on.

        Where it was not noted of the earlier one, it is not of this one either.

        Raises:
            StorageError: the disk refuses, or what was noted is damaged.
        """
        if (learned := read_record(self._learned / f"{earlier}.json", _Learned)) is not None:
            self.keep_learned(round_id, learned.states)

    def serving(self, kind: type[R]) -> R | None:
        """What Label Studio was last seen to serve; None where that is not known."""
        try:
            return read_record(self._serving, kind)
        except StorageError as error:
            log.warning("what Label Studio serves is not known until the next reading", error=str(error))
            return None

    def keep_serving(self, serving: FrozenModel) -> None:
        """Replace that record. Never raises: it is only shown."""
        try:
            if serving != self.serving(type(serving)):
                write_record(self._serving, serving)
        except StorageError as error:
            log.warning("what Label Studio serves could not be noted", error=str(error))

    def note_problem(self, problem: str | None) -> None:
        """Say why the project cannot be read just now, or that it can. Never raises: it is only for showing."""
        try:
            if problem is None:
                self._problem.unlink(missing_ok=True)
            elif problem != self.problem():
                write_record(self._problem, _Problem(problem=problem))
        except (StorageError, OSError) as error:
            log.warning("not noted", problem=problem, error=str(error))

    def problem(self) -> str | None:
        """Why the project could not be read when it was last tried; None where it could."""
        try:
            noted = read_record(self._problem, _Problem)
        except StorageError as error:
            return str(error)
        return None if noted is None else noted.problem

    def changes_since(self, round_id: str, states: dict[str, str]) -> int | None:
        """How many annotations were made, changed or deleted since a round; None where that was not noted.

        Args:
            round_id: of a saved round.
            states: of all annotations now.
        """
        try:
            learned = read_record(self._learned / f"{round_id}.json", _Learned)
        except StorageError as error:
            log.warning("what the last round learned from is not known", error=str(error))
            return None
        if learned is None:
            return None
        then = learned.states
        return sum(then.get(name) != states.get(name) for name in then.keys() | states.keys())
