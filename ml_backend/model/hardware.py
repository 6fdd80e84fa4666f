"""The torch runtime: device, precision, threads, seeded generators, and the batch size that fits into GPU memory."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Self, TypeVar

import torch
from torch import Tensor, nn

from ml_backend.errors import RoundError, SettingsError
from ml_backend.seeding import derive

_LOG = logging.getLogger(__name__)

# cuBLAS and cuDNN report a full GPU as a plain RuntimeError.
_OUT_OF_MEMORY = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "CUDA error: out of memory")

T = TypeVar("T")


def choose_device(wanted: str) -> torch.device:
    """Resolve a device setting.

    Args:
        wanted: ``cpu``, ``cuda``, or ``auto``: the GPU if there is one.

    Raises:
        SettingsError: ``cuda`` on a machine without a usable GPU.
    """
    if wanted != "cpu" and torch.cuda.is_available():
        return torch.device("cuda")
    if wanted == "cuda":
        raise SettingsError("device='cuda', but torch finds no usable GPU: set AL_DEVICE=auto or cpu")
    return torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Precision:
    """Device, number format and memory layout of a network; the same in training and in inference.

    Attributes:
        device: where the network runs.
        dtype: of the matrix products. Weights, the head's passes and the loss are always float32.
        channels_last: store images as [height, width, channels], which makes convolutions faster.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    channels_last: bool = True

    @classmethod
    def from_options(
        cls, device: torch.device, precision: Literal["auto", "float32", "bfloat16"], *, channels_last: bool
    ) -> Self:
        """Resolve a project's options for a device.

        ``auto`` is bfloat16 on GPUs with native support (Ampere and later), else float32. An explicit ``bfloat16`` is
        emulated on CPUs and older GPUs: same numbers, several times slower, with a warning. With ``float32``,
        convolutions on a GPU may still round to TF32, which is torch's default.

        Raises:
            SettingsError: bfloat16 on a GPU that cannot even emulate it.
        """
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        if precision == "bfloat16" and not native:
            if device.type == "cuda" and not torch.cuda.is_bf16_supported():
                raise SettingsError("precision='bfloat16', but this GPU has none: set precision to auto or float32")
            _LOG.warning("precision=bfloat16 is emulated on this %s and slow: auto would take float32", device.type)
        bfloat16 = precision == "bfloat16" or (precision == "auto" and native)
        return cls(device, torch.bfloat16 if bfloat16 else torch.float32, channels_last)

    @property
    def name(self) -> str:
        """Cache key of the settings that change results: bfloat16 features differ from float32 features."""
        return f"{self.device.type}|{self.dtype}" + ("" if self.channels_last else "|channels first")

    def autocast(self) -> torch.autocast:
        """Context in which products are computed in ``dtype``."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def format_images(self, images: Tensor) -> Tensor:
        """Bring a batch [images, channels, height, width] into the memory layout."""
        return images.contiguous(memory_format=self._memory_format)

    def place(self, network: nn.Module) -> nn.Module:
        """Move a network to the device and into the memory layout, in place; returns it."""
        return network.to(device=self.device, memory_format=self._memory_format)  # type: ignore[call-overload,no-any-return]

    @property
    def _memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread, in this whole process.

    The layers of a head take less time than waking a second thread, and one thread gives the same bits on any number
    of cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator seeded for one purpose: the same numbers on every device."""
    return torch.Generator().manual_seed(derive(seed, purpose))


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """Seed torch's global generators, from which layers draw weights and dropout, and restore them afterwards."""
    # Not the CUDA devices of a process that has not touched them: asking would initialise CUDA.
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive(seed, purpose))
        yield


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error is a GPU's that is full."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY)


def find_executable_batch_size(
    function: Callable[[int], T], starting_batch_size: int, advice: str, setting: str | None = None
) -> T:
    """Call a function with a batch size, and with half of it after each out-of-memory error.

    Args:
        function: takes the batch size; starts over at each call.
        starting_batch_size: images of the first attempt.
        advice: ends the error message if not even 2 images fit: which setting to change.
        setting: that ``starting_batch_size`` came from; if a smaller size fits, the log says what to set it to.

    Raises:
        RoundError: not even 2 images fit.
    """
    batch_size = starting_batch_size
    while True:
        try:
            result = function(batch_size)
            break
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if batch_size <= 2:
                raise RoundError(f"the GPU's memory is full with {batch_size} images at once: {advice}") from error
        # Outside the handler: the traceback would keep the tensors alive.
        torch.cuda.empty_cache()
        smaller = max(2, batch_size // 2)
        _LOG.warning("the GPU's memory is full with %d images at once, trying %d", batch_size, smaller)
        batch_size = smaller
    if setting is not None and batch_size < starting_batch_size:
        _LOG.warning("%d images at once fit: set %s=%d to avoid failed attempts", batch_size, setting, batch_size)
    return result
