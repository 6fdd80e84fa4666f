"""Which device a network runs on."""

import torch

from ml_backend.errors import SettingsError

__all__ = ["choose_device"]


def choose_device(wanted: str) -> torch.device:
    """The one that is wanted.

    Args:
        wanted: ``cpu``, ``cuda``, or ``auto`` for the GPU where there is one.

    Raises:
        SettingsError: a GPU is wanted, and there is none that can be used.
    """
    if wanted != "cpu" and torch.cuda.is_available():
        return torch.device("cuda")
    if wanted == "cuda":
        raise SettingsError("device='cuda', but torch finds no usable GPU: set AL_DEVICE=auto or cpu")
    return torch.device("cpu")
