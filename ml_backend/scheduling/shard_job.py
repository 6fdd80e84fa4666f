"""The job of a worker that helps another one's round: it scores shards of the pool as long as there are any."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import structlog

from ml_backend.config import Settings
from ml_backend.errors import BackendError, StaleRound
from ml_backend.logs import set_up_logs
from ml_backend.predictions import PoolPredictions
from ml_backend.scheduling import ShardQueue
from ml_backend.schemas import ProjectKey
from ml_backend.storage import RoundStore, ScoringFolder

KEEP_INTERVAL_S = 1.0

log = structlog.get_logger()


def run(project: str, scoring: str) -> dict[str, str | int]:
    """Follow a round's call for help; rq keeps the answer for an hour.

    A failure is told and harmless: the round does without, and nobody waits for this job.

    Args:
        project: ``"<id>.<unix seconds>"``.
        scoring: name of what the round has laid out.

    Raises:
        SettingsError: the environment is wrong.
        QueueError: Redis does not answer at the beginning.
    """
    settings = Settings.load()
    set_up_logs(settings)
    key = ProjectKey.parse(project)
    folder = RoundStore(settings.data_dir).project(key).scoring(scoring)
    with structlog.contextvars.bound_contextvars(project=project, round=folder.round_id, scoring=scoring):
        helper = _Helper(ShardQueue.from_settings(settings, key), folder)
        try:
            return helper.give(lambda: _scorer(settings, key, folder, helper.progress))
        except StaleRound as error:
            log.info("help ends", reason=str(error), shards=helper.done)
            return {"outcome": "called off", "shards": helper.done}
        except BackendError as error:
            # Told in words: the round goes on without.
            log.warning("no help", error=str(error), kind=type(error).__name__, shards=helper.done)
            return {"outcome": "failed", "shards": helper.done, "error": str(error)}
        finally:
            helper.let_go()


Score = Callable[[int], PoolPredictions]


class _Helper:
    """Takes one shard after the other; ``done`` counts them."""

    def __init__(self, board: ShardQueue, folder: ScoringFolder) -> None:
        self._board = board
        self._folder = folder
        self._shard: int | None = None
        self._kept = time.monotonic()
        self.done = 0

    def give(self, scorer: Callable[[], AbstractContextManager[Score]]) -> dict[str, str | int]:
        """Score what nobody else has.

        Raises:
            StaleRound: the round is over, or has scored this shard itself.
            BackendError: the network cannot be had, or scoring failed.
        """
        task = self._folder.task()
        if task is None or not self._board.is_open(self._folder.name):
            log.info("nothing to do: the pool is scored, or the worker of the round has another data folder")
            return {"outcome": "over", "shards": 0}
        if not self._take_next(task.shards):
            return {"outcome": "nothing left", "shards": 0}
        with scorer() as score:
            while self._shard is not None:
                outputs = score(self._shard)
                self._keep()
                self._folder.write(self._shard, outputs)
                self._board.finish(self._folder.name, self._shard)
                self.done += 1
                self._take_next(task.shards)
        log.info("helped", shards=self.done)
        return {"outcome": "helped", "shards": self.done}

    def progress(self, stage: str, done: int, total: int) -> None:
        """Keep the shard, once a second.

        Raises:
            StaleRound: it is lost: the round is over, or has done without this worker.
        """
        del stage, done, total
        if time.monotonic() - self._kept >= KEEP_INTERVAL_S:
            self._keep()

    def let_go(self) -> None:
        """Leave a shard that was begun to others. Never raises: its claim ends by itself."""
        if self._shard is not None:
            try:
                self._board.release(self._folder.name, self._shard)
            except BackendError as error:
                log.warning("a shard could not be given back", shard=self._shard, error=str(error))

    def _take_next(self, shards: int) -> bool:
        # The first is the round's own.
        free = (n for n in range(1, shards) if not self._folder.has(n) and self._board.claim(self._folder.name, n))
        self._shard = next(free, None)
        return self._shard is not None

    def _keep(self) -> None:
        self._kept = time.monotonic()
        if self._shard is not None and not self._board.keep(self._folder.name, self._shard):
            shard, self._shard = self._shard, None
            raise StaleRound(
                f"shard {shard} is no longer this worker's: the pool is scored, or this worker was too slow"
            )


def _scorer(
    settings: Settings, key: ProjectKey, folder: ScoringFolder, progress: Callable[[str, int, int], None]
) -> AbstractContextManager[Score]:
    # Imports torch, which where there may be a GPU only the work-horse does: its parent forks.
    from ml_backend.rounds.live import shard_scorer  # noqa: PLC0415

    return shard_scorer(settings, key, folder, progress)
