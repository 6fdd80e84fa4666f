"""In which numbers and in which memory layout a network runs."""

import logging
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor, nn

from ml_backend.errors import SettingsError

__all__ = ["Arithmetic"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How a device runs a network; the same in training and in scoring.

    Attributes:
        device: where it runs.
        dtype: of the products. The weights, the head's passes and the loss stay in float32 in any case.
        channels_last: images lie as [height, width, channels] in memory, which convolutions are faster in.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    channels_last: bool = True

    @classmethod
    def of(
        cls, device: torch.device, precision: Literal["auto", "float32", "bfloat16"], *, channels_last: bool
    ) -> Self:
        """What a device does for a project's options.

        ``auto`` is bfloat16 where the GPU multiplies it itself (Ampere and later), else float32. ``bfloat16`` is
        done wherever torch can: a CPU and an older GPU, the paper's RTX 2080 among them, emulate it, which gives the
        same numbers several times more slowly, so that the log warns of it. ``float32`` leaves a GPU's convolutions
        free to round to TF32, as torch does unless it is told otherwise.

        Raises:
            SettingsError: bfloat16 on a GPU for which torch has none at all.
        """
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        if precision == "bfloat16" and not native:
            if device.type == "cuda" and not torch.cuda.is_bf16_supported():
                raise SettingsError("precision='bfloat16', but this GPU has none: set precision to auto or float32")
            _LOG.warning("precision=bfloat16 is emulated on this %s and slow: auto would take float32", device.type)
        half = precision == "bfloat16" or (precision == "auto" and native)
        return cls(device, torch.bfloat16 if half else torch.float32, channels_last)

    @property
    def name(self) -> str:
        """A name for everything in here that changes bits: features of a GPU in bfloat16 are not those of a CPU."""
        return f"{self.device.type}|{self.dtype}" + ("" if self.channels_last else "|channels first")

    def autocast(self) -> torch.autocast:
        """Run what is inside in ``dtype``."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def lay_out(self, images: Tensor) -> Tensor:
        """A batch [images, channels, height, width] in the layout."""
        return images.contiguous(memory_format=self._format)

    def place(self, network: nn.Module) -> nn.Module:
        """Move a network to the device, into the layout; the network itself."""
        return network.to(device=self.device, memory_format=self._format)  # type: ignore[call-overload,no-any-return]

    @property
    def _format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format
