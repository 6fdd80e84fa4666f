"""In which precision a device runs a network."""

import torch

__all__ = ["autocast", "precision"]


def precision(device: torch.device) -> torch.dtype:
    """bfloat16 where the GPU multiplies it itself (Ampere and later), else float32.

    Older GPUs, the paper's RTX 2080 among them, emulate it: slower than float32. A CPU takes seven times as long.
    """
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float32


def autocast(device: torch.device) -> torch.autocast:
    """Run what is inside in ``precision(device)``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision(device) == torch.bfloat16)
