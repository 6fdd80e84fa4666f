"""The same bits from the same product, whatever the thread count and wherever its numbers lie in memory.

Intel's MKL, on which PyTorch multiplies on a CPU, promises neither unless it is asked. On an Intel Xeon, rows of a
float32 product differed in their last bit with the number of threads and of other rows; asked, they did not, at the
same speed. A ranking is only provably the one chosen where another run gives the same bits.

Source:
    Intel oneMKL Developer Guide, "Getting Reproducible Results" (conditional numerical reproducibility, strict mode).
"""

import os
from collections.abc import MutableMapping
from pathlib import Path

__all__ = ["ask_for_the_same_bits"]

CPUS = Path("/proc/cpuinfo")


def ask_for_the_same_bits(environ: MutableMapping[str, str] = os.environ, cpus: Path = CPUS) -> None:
    """Ask MKL, where it runs on a CPU of Intel's; on others its usual path is kept, since the strict one may be slow.

    Works before MKL's first product in this process. A choice of the operator's own stands.

    Args:
        environ: of the process.
        cpus: what Linux says of them; elsewhere nothing is asked.
    """
    try:
        intel = "GenuineIntel" in cpus.read_text(errors="replace")
    except OSError:
        return
    if intel:
        environ.setdefault("MKL_CBWR", "AUTO,STRICT")
