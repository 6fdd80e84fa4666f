"""One step of a plan: waits for its phase, does its deed, lets readers go on, and mends the damage."""

import os
import signal
import time
from contextlib import suppress

from ml_backend.demo.services import Worker
from ml_backend.schemas import RoundReport
from tests.system.chaos.damage import kill, stopped
from tests.system.chaos.installation import RETRAIN_AFTER, START_S, Ward
from tests.system.chaos.plan import Phase, Step
from tests.system.chaos.relay import Held

__all__ = ["Strike"]

PHASE_S = 120.0  # until a round comes to a phase, on a busy machine
FULL_S = 20.0  # that a disk stays full at most
REQUESTS = {
    "reading": r"GET /api/tasks\?",
    "import": r"POST /api/projects/\d+/import/predictions",
    "switch": r"PATCH /api/projects/\d+/",
    "delete": r"DELETE /api/projects/\d+/model-versions/",
}
STAGES = {"training": "train", "scoring": "score", "saving": "save"}
# The training begins with the features of its images.
ORDER = ("labels", "train", "features", "score", "rank", "save", "publish")


class Strike:
    """One step's deed, done in its phase.

    Args:
        ward: where.
        step: which.
        stop_s: how long Label Studio is stopped, in seconds.
    """

    def __init__(self, ward: Ward, step: Step, stop_s: float) -> None:
        self.ward = ward
        self.here = ward.here
        self.step = step
        self.stop_s = stop_s
        self.held: Held | None = None
        self.at = 0.0  # monotonic seconds of the deed
        self.met = ""  # where the round really stood

    def run(self) -> None:
        """Wait for the phase, do the deed, let readers go on, mend it."""
        self._reach()
        self.at = time.monotonic()
        {
            "work-horse": self._work_horse,
            "worker": self._worker,
            "server": self._server,
            "restart Redis": self._restart_redis,
            "flush Redis": self._flush_redis,
            "stop Label Studio": self._stop_label_studio,
            "full disk": self._full_disk,
        }[self.step.deed]()

    # The phase

    def _reach(self) -> None:
        phase, readers = self.step.phase, self.ward.readers
        if phase == "idle":
            readers.submit(int(self.step.moment * RETRAIN_AFTER))
            self.met = "idle"
            return
        if phase == "delete":
            self.ward.leave_an_expired_version()
        answered = self.step.moment >= 0.5
        if phase in REQUESTS:
            self.held = self.here.relay.hold(REQUESTS[phase], answered=answered)
        last = self.ward.folder.latest()
        readers.read()  # and go on while it is done
        if self.held is not None:
            assert self.held.reached.wait(PHASE_S), f"no round came to {phase}: {self.here.logs()}"
            self.met = f"{phase}, {'answered' if answered else 'sent'}"
        else:
            self.met = self._stage(phase, last)

    def _stage(self, phase: Phase, last: RoundReport | None) -> str:
        """Wait for the stage by the round's own progress, then for a moment in it; a short one may be over by then."""
        stage, deadline = STAGES[phase], time.monotonic() + PHASE_S
        while (seen := self._progress()) is None or ORDER.index(seen) < ORDER.index(stage):
            assert time.monotonic() < deadline, f"no round came to {phase}: {self.here.logs()}"
            time.sleep(0.002)
        over = time.monotonic() + self.step.moment * (last.seconds.get(stage, 0.0) if last else 0.0)
        # Shorter this time than the last: then at its very end.
        while self._progress() == stage and time.monotonic() < over:
            time.sleep(0.002)
        return self._progress() or "over"

    def _progress(self) -> str | None:
        # A round that a flush has orphaned leaves its progress behind.
        running = self.here.redis.hexists(f"al:{self.ward.key}", "running")
        stage = self.here.redis.hget(f"al:{self.ward.key}:progress", "stage") if running else None
        return None if stage is None else stage.decode()

    # The deeds

    def _release(self) -> None:
        if self.held is not None:
            self.held.released.set()

    def _who_runs_it(self) -> tuple[Worker, int] | None:
        """The worker and the work-horse of the round; None, and the tally says so, where it is over by now."""
        found = self.here.worker_of(self.ward.key)
        assert found is not None or self.held is None, f"a request is held, and nobody has sent it: {self.here.logs()}"
        if found is None:
            self.met += ", no round"
        return found

    def _label(self) -> None:
        self.ward.readers.submit(self.step.labels)

    def _work_horse(self) -> None:
        if (found := self._who_runs_it()) is not None:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(found[1], signal.SIGKILL)
        self._release()
        self._label()

    def _worker(self) -> None:
        found = self._who_runs_it()
        worker = found[0] if found else self.here.workers[0]
        kill(worker)
        self._release()
        self._label()
        worker.start().wait(START_S)

    def _server(self) -> None:
        kill(self.here.server, group=True)
        self._release()
        self._label()  # of which no event ever tells
        self.here.server.start().wait()

    def _restart_redis(self) -> None:
        kill(self.here.valkey)
        self._release()
        time.sleep(self.step.moment)
        self.here.valkey.start().wait()
        self._label()

    def _flush_redis(self) -> None:
        self.here.redis.flushall()
        self._release()
        self._label()

    def _stop_label_studio(self) -> None:
        with stopped(self.here.url, self.stop_s):
            self._release()
        self._label()

    def _full_disk(self) -> None:
        found = self._who_runs_it()
        if found is not None:
            self.here.disk.fill(found[1])
        try:
            self._release()
            deadline = time.monotonic() + FULL_S
            while self.here.queue.status(self.ward.key).running is not None and time.monotonic() < deadline:
                time.sleep(0.1)
            self._label()
        finally:
            self.here.disk.free()
