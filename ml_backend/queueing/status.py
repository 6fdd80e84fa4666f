"""What can be read about a project's rounds."""

from typing import NamedTuple

from ml_backend.records import Reason, Record

__all__ = ["Counted", "LastError", "Progress", "QueueStatus"]


class Counted(NamedTuple):
    """What a count of changes found."""

    changes: int  # since the last round took them
    due: bool  # they reached the threshold
    threshold_before: int  # what the threshold was; 0: rounds did not start by themselves


class LastError(Record):
    """Why the last round failed."""

    kind: str  # name of the error's class
    message: str
    at: float  # unix seconds


class Progress(Record):
    """Where the running round is."""

    generation: int
    stage: str
    done: int
    total: int
    started: float  # unix seconds: the round
    stage_started: float  # unix seconds: the stage
    updated: float  # unix seconds


class QueueStatus(Record):
    """Everything that the queue knows about a project."""

    changes: int = 0  # since the last round took them
    threshold: int = 0  # changes that start a round; 0: none starts by itself
    annotations: int | None = None  # as Label Studio counted them in its last event
    waiting: Reason | None = None
    running: Reason | None = None
    progress: Progress | None = None
    last_error: LastError | None = None  # of the last round, where it failed
    error_reason: Reason | None = None  # what that round was for
    failures: int = 0  # rounds that failed in a row
    next_attempt: float | None = None  # unix seconds; of a failed round that is tried again by itself
    rounds_finished: int = 0
    rounds_failed: int = 0
    told_twice_at: float | None = None  # unix seconds: when an event came to two addresses; None: none ever did

    @property
    def ran_out(self) -> bool:
        """Whether the last round found no image to rank. Whether that is a fault, the project's images say."""
        return self.last_error is not None and self.last_error.kind in ("EmptyPool", "UnusablePool")

    @property
    def failing(self) -> bool:
        """Whether there is something to mend: not so where the last round only found every image labelled."""
        return self.last_error is not None and self.last_error.kind != "EmptyPool"

    @property
    def learning_failed(self) -> bool:
        """Whether the last round came to nothing that would have learned from the labels."""
        return self.last_error is not None and self.error_reason not in ("topup", "rerank")
