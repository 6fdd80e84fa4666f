"""Faults of a running installation: a plan of them drawn from a seed, and their injection in a phase of a round."""

import os
import random
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, get_args

from ml_backend.demo.services import Worker
from ml_backend.schemas import RoundReport
from tests.system.chaos.installation import RETRAIN_AFTER, START_S, LabelledProject, kill, suspended
from tests.system.chaos.relay import Held

Phase = Literal["idle", "reading", "training", "scoring", "saving", "import", "switch", "delete"]
"""Phases of a round, the last three being steps of publishing; idle: readers label, and no round runs."""

Fault = Literal["work-horse", "worker", "server", "restart Redis", "flush Redis", "stop Label Studio", "full disk"]

PHASES: tuple[Phase, ...] = get_args(Phase)
FAULTS: tuple[Fault, ...] = get_args(Fault)
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


@dataclass(frozen=True)
class Step:
    """One fault.

    Attributes:
        number: from 1.
        phase: in which it is done.
        deed: what is done.
        moment: position in the phase, 0 to 1; of a request: under 0.5 before it arrives, else once it is answered.
        labels: number of labels that readers submit before the repair.
    """

    number: int
    phase: Phase
    fault: Fault
    moment: float
    labels: int

    def __str__(self) -> str:
        return f"{self.number}-{self.phase}-{self.fault.replace(' ', '-')}"


def fits(phase: Phase, fault: Fault) -> bool:
    """Whether there is something to do it to: without a round there is no work-horse, and nothing is written."""
    return phase != "idle" or fault not in {"work-horse", "full disk"}


def plan(kills: int, seed: int, most_labels: int) -> list[Step]:
    """So many steps; every phase comes in turn, and every deed, each time in another order.

    Args:
        kills: how many.
        seed: the same one gives the same plan.
        most_labels: that are submitted before a damage is mended.
    """
    chance = random.Random(seed)
    phases: list[Phase] = []
    faults: list[Fault] = []
    steps = []
    for number in range(1, kills + 1):
        phases = phases or chance.sample(PHASES, len(PHASES))
        faults = faults or chance.sample(FAULTS, len(FAULTS))
        phase = phases.pop()
        fitting = [fault for fault in faults if fits(phase, fault)]
        fault = fitting[0] if fitting else chance.choice([fault for fault in FAULTS if fits(phase, fault)])
        if fitting:
            faults.remove(fault)
        # While the server is down enough is labelled for a round, of which no event ever tells.
        fewest = most_labels if fault == "server" else 0
        steps.append(Step(number, phase, fault, chance.random(), chance.randint(fewest, most_labels)))
    return steps


class FaultInjector:
    """Injects the fault of one step.

    Args:
        project: whose rounds it meets.
        step: fault and phase.
        stop_s: seconds for which Label Studio is suspended.
        waits: for the 40 s after which a killed worker's round, and the 15 s after which a failed round begins again;
            otherwise both are cut short.

    Attributes:
        at: monotonic seconds of the fault.
        met: phase in which the round really was.
    """

    def __init__(self, project: LabelledProject, step: Step, stop_s: float, *, waits: bool) -> None:
        self.project = project
        self.installation = project.installation
        self.step = step
        self.stop_s = stop_s
        self.waits = waits
        self.held: Held | None = None
        self.at = 0.0
        self.met = ""

    def run(self) -> None:
        """Wait for the phase, inject the fault, let readers go on, repair."""
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
        }[self.step.fault]()

    def _reach(self) -> None:
        phase, readers = self.step.phase, self.project.readers
        if phase == "idle":
            readers.submit(int(self.step.moment * RETRAIN_AFTER))
            self.met = "idle"
            return
        if phase == "delete":
            self.project.leave_an_expired_version()
        answered = self.step.moment >= 0.5
        if phase in REQUESTS:
            self.held = self.installation.relay.hold(REQUESTS[phase], answered=answered)
        last = self.project.folder.latest()
        readers.read()  # and go on while it is done
        if self.held is not None:
            assert self.held.reached.wait(PHASE_S), f"no round came to {phase}: {self.installation.logs()}"
            self.met = f"{phase}, {'answered' if answered else 'sent'}"
        else:
            self.met = self._stage(phase, last)

    def _stage(self, phase: Phase, last: RoundReport | None) -> str:
        """Wait for the stage by the round's progress, then for the moment in it; a short stage may be over by then."""
        stage, deadline = STAGES[phase], time.monotonic() + PHASE_S
        while (seen := self._progress()) is None or ORDER.index(seen) < ORDER.index(stage):
            assert time.monotonic() < deadline, f"no round came to {phase}: {self.installation.logs()}"
            time.sleep(0.002)
        over = time.monotonic() + self.step.moment * (last.seconds.get(stage, 0.0) if last else 0.0)
        # Shorter this time than the last: then at its very end.
        while self._progress() == stage and time.monotonic() < over:
            time.sleep(0.002)
        return self._progress() or "over"

    def _progress(self) -> str | None:
        # A round that a flush has orphaned leaves its progress behind.
        running = self.installation.redis.hexists(f"al:{self.project.key}", "running")
        stage = self.installation.redis.hget(f"al:{self.project.key}:progress", "stage") if running else None
        return None if stage is None else stage.decode()

    def _release(self) -> None:
        if self.held is not None:
            self.held.released.set()

    def _running_worker(self) -> tuple[Worker, int] | None:
        """The worker and the work-horse of the round; None, noted in ``met``, where it is over by now."""
        found = self.installation.worker_of(self.project.key)
        assert found is not None or self.held is None, (
            f"a request is held, and no worker has sent it: {self.installation.logs()}"
        )
        if found is None:
            self.met += ", no round"
        return found

    def _label(self) -> None:
        self.project.readers.submit(self.step.labels)

    def _work_horse(self) -> None:
        if (found := self._running_worker()) is not None:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(found[1], signal.SIGKILL)
        self._release()
        self._label()

    def _worker(self) -> None:
        found = self._running_worker()
        worker = found[0] if found else self.installation.workers[0]
        kill(worker)
        self._release()
        self._label()
        worker.start().wait(START_S)
        if found and not self.waits:
            self.installation.miss_heartbeats()

    def _server(self) -> None:
        kill(self.installation.server, group=True)
        self._release()
        self._label()  # of which no event ever tells
        self.installation.server.start().wait()

    def _restart_redis(self) -> None:
        kill(self.installation.valkey)
        self._release()
        time.sleep(self.step.moment)
        self.installation.valkey.start().wait()
        self._label()

    def _flush_redis(self) -> None:
        self.installation.redis.flushall()
        self._release()
        self._label()

    def _stop_label_studio(self) -> None:
        with suspended(self.installation.url, self.stop_s):
            self._release()
        self._label()

    def _full_disk(self) -> None:
        found = self._running_worker()
        if found is not None:
            self.installation.disk.fill(found[1])
        try:
            self._release()
            deadline = time.monotonic() + FULL_S
            while self.installation.queue.status(self.project.key).running is not None and time.monotonic() < deadline:
                time.sleep(0.1)
            self._label()
        finally:
            self.installation.disk.free()
        if not self.waits:
            self.installation.end_pause(self.project.key)
