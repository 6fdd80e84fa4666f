"""Deterministic matrix products. Imports no NumPy: `ml-backend --help` opens at once."""

import os
from collections.abc import MutableMapping
from pathlib import Path

CPUS = Path("/proc/cpuinfo")


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
