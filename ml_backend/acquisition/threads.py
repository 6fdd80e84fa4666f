"""One thread, so that the last bit of a sum does not depend on how many cores a machine has."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["one_thread"]


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread for a while, in this whole process.

    With two, a matrix product in float32 is cut elsewhere on some CPUs (seen on an Intel Xeon, not on an AMD EPYC), and
    its last bit is another one. Ranking takes milliseconds: a second thread saves nothing that anybody would notice.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
