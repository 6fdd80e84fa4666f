"""What can be done to the processes of an installation, and how each is mended."""

import contextlib
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from ml_backend.processes import Service, Valkey, valkey_program

__all__ = ["SmallDisk", "SteadyValkey", "children", "kill", "stopped"]


class SteadyValkey(Valkey):
    """Starts again on the port and the append-only file of its first start."""

    def start(self) -> Self:
        if not self.url:
            return super().start()
        self._run([valkey_program(), "valkey.conf"], os.environ, self._folder / "valkey.log", cwd=self._folder)
        return self


def kill(service: Service, *, group: bool = False) -> None:
    """End it with SIGKILL, alone or with its whole process group, as the end of a container does."""
    process = service._process
    assert process is not None
    (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
    process.wait()


def children(pid: int) -> list[int]:
    """The processes that it has forked; none where it is gone."""
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


@contextlib.contextmanager
def stopped(url: str, seconds: float) -> Iterator[None]:
    """Stop the Label Studio there for the block and so many seconds more; it neither answers nor hangs up."""
    port = str(urlsplit(url).port).encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if any(word.endswith(b"label-studio") for word in words) and port in words:
                found.append(int(folder.name))
    assert found, f"no process of this machine is the Label Studio at {url}"
    for pid in found:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
        time.sleep(seconds)
    finally:
        for pid in found:
            os.kill(pid, signal.SIGCONT)


class SmallDisk:
    """A disk that can be filled: a tmpfs of its own, where we may mount one, which then really has no space left.

    Where we may not, the work-horse alone is refused each further byte, its log's as well.

    Args:
        folder: where it is mounted; made here.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.is_mounted = False

    @property
    def way(self) -> str:
        return "tmpfs, ENOSPC" if self.is_mounted else "RLIMIT_FSIZE of the work-horse, EFBIG"

    def fill(self, horse: int) -> None:
        """From now on nothing more can be written."""
        if not self.is_mounted:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(horse, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            return
        for _ in range(100):
            disk = os.statvfs(self.folder)
            used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize
            # Refused where somebody has written in between.
            if self._mount(f"remount,size={max(used, disk.f_frsize)}"):
                return
        raise AssertionError("the disk could not be filled")

    def free(self) -> None:
        """There is space again; a work-horse that was limited ends by itself."""
        assert not self.is_mounted or self._mount("remount,size=1g")

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        self.is_mounted = os.geteuid() == 0 and self._mount("size=1g")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.is_mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True, capture_output=True)

    def _mount(self, options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
