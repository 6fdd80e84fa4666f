"""What figures were measured on."""

import os
import platform
from pathlib import Path

from ml_backend.bench.report import Machine

__all__ = ["describe_machine", "load"]


def describe_machine() -> Machine:
    """The processor, the cores that this process may use, the memory and the system."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS or Windows
        cores = os.cpu_count() or 1
    return Machine(
        cpu=_cpu(), cores=cores, memory_gib=_memory_gib(), system=f"{platform.system()} {platform.machine()}"
    )


def load() -> float | None:
    """Processes that run or wait, mean of the last minute; None where the system does not say."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    # They decide more about a matrix product than the model's name.
    units = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    name = (models[0] if models else "") or platform.processor() or platform.machine()
    return f"{name} ({', '.join(units)})" if units else name


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
