"""Which device a network runs on.

One thread for small work on a CPU.
In which numbers and in which memory layout a network runs.
What to do when the GPU's memory is full.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Self, TypeVar

import torch
from torch import Tensor, nn

from ml_backend.errors import RoundError, SettingsError


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


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread for a while, in this whole process.

    The layers of a head take less time than waking a second thread. On two cores that other processes use too,
    30 epochs on 107 images took 0.6 s with one thread and 29 s with two. It also gives the same bits on any number
    of cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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


# What the libraries below torch say when it is they who find no memory; to torch a plain RuntimeError.
_FULL = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "CUDA error: out of memory")

T = TypeVar("T")


def halving(batch: int, attempt: Callable[[int], T], way_out: str, setting: str | None = None) -> T:
    """Try with a batch, and after every out-of-memory with half of it.

    Args:
        batch: images that are tried first.
        attempt: starts over each time that it is called.
        way_out: what helps when not even 2 images fit: settings and the numbers to set.
        setting: that ``batch`` came from; the log says what to set it to when a smaller one did fit.

    Raises:
        RoundError: not even 2 images fit.
    """
    tried = batch
    while True:
        try:
            result = attempt(tried)
            break
        except RuntimeError as error:
            if not (isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _FULL)):
                raise
            if tried <= 2:
                raise RoundError(f"the GPU's memory is full with {tried} images at once: {way_out}") from error
        # Not in the handler: there the traceback still holds the tensors.
        torch.cuda.empty_cache()
        _LOG.warning("the GPU's memory is full with %d images at once, trying %d", tried, max(2, tried // 2))
        tried = max(2, tried // 2)
    if setting is not None and tried < batch:
        _LOG.warning("%d images at once did fit: set %s=%d to spare the failed attempts", tried, setting, tried)
    return result
