"""Which machine this is, as far as that decides the bits of a result."""

from pathlib import Path
from typing import Literal

import torch

from ml_backend.model.scoring import SHARD_IMAGES

__all__ = ["machine"]


def machine(device: Literal["auto", "cpu", "cuda"]) -> str:
    """What decides the bits of a result, besides the network and the image: two equal answers, equal bits.

    Args:
        device: that the installation asks for.
    """
    facts = [f"torch {torch.__version__}", f"shards of {SHARD_IMAGES}"]
    if device != "cpu" and torch.cuda.is_available():
        facts += [torch.cuda.get_device_name(), f"CUDA {torch.version.cuda}"]
    else:
        # Libraries choose their kernels, and in which order these add up, by all three.
        facts += [_cpu(), torch.backends.cpu.get_cpu_capability(), f"{torch.get_num_threads()} threads"]
    return ", ".join(facts)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # no Linux
        return "CPU"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
