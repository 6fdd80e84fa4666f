"""Decodes the hostile corpus in children of its own, each under limits, and prints what came of it.

One JSON object a line: name, outcome, wanted, seconds of CPU, MiB. Ends with status 1 where a child died.
"""

import gc
import json
import os
import resource
import sys
import time
from collections.abc import Iterator

from ml_backend.errors import ImageError
from ml_backend.images.decode import decode
from tests.unit.images.hostile import Case, corpus

ADDRESS_SPACE = 4 * 2**30  # bytes; libvips' threads reserve stacks that they never touch
CPU_S = 60
ALONE_FROM = "PNG header of 60,000 x 60,000"
"""From here on every file has a child of its own; those before are small, and share one."""


def outcome(case: Case) -> str:
    try:
        pixels = decode(case.content, 64, "x")
    except ImageError as error:
        return error.kind
    return "a film" if pixels.shape == (64, 64) and pixels.dtype.name == "uint8" else repr(pixels)


def in_a_child(cases: list[Case]) -> bool:
    """Whether it lived to the end."""
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
        for case in cases:
            start = time.process_time()
            told: dict[str, object] = {"name": case.name, "wanted": case.wanted, "outcome": outcome(case)}
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            told |= {"seconds": time.process_time() - start, "MiB": round(peak)}
            sys.stdout.write(f"{json.dumps(told)}\n")
        sys.stdout.flush()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def batches() -> Iterator[list[Case]]:
    cases = corpus()
    small: list[Case] = []
    for case in cases:
        if case.name == ALONE_FROM:
            yield small
            yield [case]
            break
        small.append(case)
    for case in cases:
        yield [case]


if __name__ == "__main__":
    lived = True
    for batch in batches():
        lived &= in_a_child(batch)
        gc.collect()
    raise SystemExit(0 if lived else 1)
