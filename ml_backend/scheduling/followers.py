"""The followers of a worker: processes that take part in the rounds of its work-horses; see ``model.distributed``.

``python -m ml_backend.scheduling.followers HOST PORT GPU PARENT`` runs one. It loads PyTorch while it waits.
"""

import ctypes
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import ClassVar, NoReturn, Self

import structlog

from ml_backend.config import Settings
from ml_backend.errors import SettingsError
from ml_backend.extras import DISTRIBUTION
from ml_backend.logs import set_up_logs

PR_SET_PDEATHSIG = 1  # linux/prctl.h
LOOPBACK = "127.0.0.1"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Processes:
    """How many processes run a round.

    Attributes:
        nproc: on each machine.
        nnodes: machines.
        node_rank: of this machine; that of rank 0 takes the jobs.
        master: host and port of machine 0, on which the others connect; only with several machines.
    """

    nproc: int = 1
    nnodes: int = 1
    node_rank: int = 0
    master: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.node_rank < self.nnodes:
            raise SettingsError(
                f"--node-rank {self.node_rank} of --nnodes {self.nnodes}: expected 0 to {self.nnodes - 1}, "
                "another number on each machine"
            )
        if (self.master is None) == (self.nnodes > 1):
            raise SettingsError(
                f"--nnodes {self.nnodes} {'without' if self.master is None else 'with'} --master: several machines, "
                "and only these, need --master HOST:PORT, an address of machine 0 that the others reach"
            )
        _ = self.address

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of machine 0; a free port of the loopback interface where it is the only one."""
        host, _, port = (self.master or f"{LOOPBACK}:0").rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise SettingsError(f"--master {self.master!r}: expected HOST:PORT, such as 10.0.0.1:29500")
        return host, int(port)

    @property
    def others(self) -> int:
        """Processes of a round but the work-horse."""
        return self.nproc * self.nnodes - 1


def count_gpus(wanted: str) -> int:
    """Number of GPUs to use, of the visible ones; they are counted in another process, since this one loads no PyTorch.

    Args:
        wanted: ``all``, or a number.

    Raises:
        SettingsError: it is neither, or there are not as many.
    """
    code = "import torch; print(torch.cuda.device_count())"
    there = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)  # noqa: S603
    count = there if wanted == "all" else int(wanted) if wanted.isdecimal() else 0
    if not 1 <= count <= there:
        raise SettingsError(
            f"--gpus {wanted}: expected all or a number up to {there}, as PyTorch sees {there} GPUs; "
            "--nproc N runs N processes on the CPU"
        )
    return count


def token(settings: Settings) -> str:
    """Shows that a follower is of the same version and installation."""
    key = settings.label_studio_api_key.get_secret_value() if settings.label_studio_api_key else ""
    return hashlib.sha256(f"{version(DISTRIBUTION)} {key}".encode()).hexdigest()


class Followers:
    """The followers on this machine. They end with this process, and when the block ends.

    Args:
        processes: of a round.

    Attributes:
        listener: where the work-horses of machine 0 await all followers; None on other machines, and without any.

    Raises:
        SettingsError: machine 0 cannot listen on its address.
    """

    program: ClassVar[Sequence[str]] = ("-m", "ml_backend.scheduling.followers")

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.listener: socket.socket | None = None
        first = 0 if processes.node_rank else 1  # the work-horse is the first of its machine
        self._running: dict[int, subprocess.Popen[bytes] | None] = dict.fromkeys(range(first, processes.nproc))
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._environ = {"OMP_NUM_THREADS": str(max(1, cores // processes.nproc))}
        if processes.others and not processes.node_rank:
            try:
                self.listener = socket.create_server(processes.address, backlog=processes.others)
            except OSError as error:
                raise SettingsError(
                    f"--master {processes.master}: this machine cannot listen there ({error}): give one of its own "
                    "addresses, and a free port"
                ) from error
            if processes.nnodes == 1 and sys.platform == "linux":
                for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
                    os.environ.setdefault(name, "lo")

    def ensure(self) -> None:
        """Start those that do not run, because they ended or died."""
        address = self.processes.address if self.listener is None else self.listener.getsockname()
        for number, process in self._running.items():
            if process is None or process.poll() is not None:
                arguments = map(str, (*address, number, os.getpid()))
                command = [sys.executable, *self.program, *arguments]
                self._running[number] = subprocess.Popen(command, env=self._environ | os.environ)  # noqa: S603 - ours

    def __enter__(self) -> Self:
        self.ensure()
        return self

    def __exit__(self, *_: object) -> None:
        if self.listener is not None:
            self.listener.close()
        for process in self._running.values():
            if process is not None:
                process.kill()
                process.wait()


def follow_forever(processes: Processes) -> NoReturn:
    """Take part in the rounds of another machine, until this process is ended."""
    with Followers(processes) as followers:
        log.info("waiting for rounds of another machine", master=processes.master, processes=processes.nproc)
        while True:
            time.sleep(1)
            followers.ensure()


def main(host: str, port: str, gpu: str, parent: str) -> None:
    """Run one follower."""
    for one in (signal.SIGTERM, signal.SIGINT):  # its parent decides: it may have to give a round back
        signal.signal(one, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):  # it died before the line above
            os._exit(1)
    settings = Settings.load()
    set_up_logs(settings)
    # Not before: they load PyTorch.
    from ml_backend.model.distributed import follow  # noqa: PLC0415
    from ml_backend.model.distributed_learner import serve  # noqa: PLC0415
    from ml_backend.rounds.live import follower_learner  # noqa: PLC0415

    import_module("torchvision.models")  # it would be loaded with the backbone, while others wait
    follow((host, int(port)), token(settings), int(gpu), partial(serve, partial(follower_learner, settings)))


if __name__ == "__main__":
    main(*sys.argv[1:])
