"""Deterministic matrix products and their threads. Imports no NumPy: `ml-backend --help` opens at once."""

import os
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path

from ml_backend.errors import SettingsError

CPUS = Path("/proc/cpuinfo")
_POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def enable_deterministic_blas(environ: MutableMapping[str, str] = os.environ, cpus: Path = CPUS) -> None:
    """Make matrix products independent of the thread count and of memory alignment, where MKL runs on an Intel CPU.

    On other CPUs MKL's usual path is kept, since the strict one may be slow. Call it before the first product of the
    process. A value that the operator has set is kept.

    Args:
        environ: of the process.
        cpus: Linux's description of the CPUs; on other systems nothing is set.
    """
    try:
        intel = "GenuineIntel" in cpus.read_text(errors="replace")
    except OSError:
        return
    if intel:
        environ.setdefault("MKL_CBWR", "AUTO,STRICT")


def available_cores(root: Path = Path("/")) -> int:
    """Cores that this process may use: of its affinity, and of its container's or service's quota (cgroup v2).

    Args:
        root: of the file system.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # not Linux, cgroup v1, or "max": no quota
        group = (root / "proc/self/cgroup").read_text().rpartition("::/")[2].strip()
        quota, period = (root / "sys/fs/cgroup" / group / "cpu.max").read_text().split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


def thread_count(environ: Mapping[str, str] = os.environ) -> int:
    """Threads of a process: ``AL_THREADS``, else ``OMP_NUM_THREADS``, else the available cores.

    Raises:
        SettingsError: ``AL_THREADS`` is not a number of 1 or more.
    """
    if (given := environ.get("AL_THREADS", "").strip()) and not (given.isdecimal() and int(given)):
        raise SettingsError(f"AL_THREADS={given!r}: expected a number of threads, 1 or more")
    usual = environ.get("OMP_NUM_THREADS", "")
    return int(given or (usual if usual.isdecimal() and int(usual) else available_cores()))


def use_threads(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set the threads of torch and BLAS, in this process and those that it starts; call it before either is imported.

    Threads that wait for each other sleep: by default they spin, which on busy cores takes many times the work's CPU
    time. A value of another library's own variable is kept unless ``AL_THREADS`` is set.

    Raises:
        SettingsError: see ``thread_count``.
    """
    count = str(thread_count(environ))
    for name in _POOLS:
        environ[name] = count if environ.get("AL_THREADS", "").strip() else environ.get(name, count)
    environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
