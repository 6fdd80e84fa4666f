"""Arrays as the acquisition functions compute with them: from tensors with gradients, from NumPy, from any device."""

from typing import Any, Final

import torch
from torch import Tensor

from ml_backend.pool_outputs import float_array

__all__ = ["float_tensor"]

_DTYPES: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_DEVICES: Final = ("cpu", "cuda")


def float_tensor(name: str, value: Any) -> Tensor:
    """A detached, dense and contiguous tensor of floats, from a tensor or an array.

    Contiguous, since torch adds up strided values in another order, and the last bit may decide between two images.
    The caller's values are never changed; they are copied only where the layout or the device asks for it.

    Args:
        name: what an error calls the value.
        value: tensor of float16, bfloat16, float32 or float64, with or without a gradient; or what ``float_array``
            takes. A tensor on a device other than a CPU or a CUDA device is moved to the CPU.

    Raises:
        ValueError: the value is no array of a floating type, or a tensor without values (on the meta device).
    """
    if not isinstance(value, Tensor):
        array = float_array(name, value)
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    if value.dtype not in _DTYPES:
        raise ValueError(
            f"{name} must be a torch tensor or a NumPy array of a floating type (float16, bfloat16, float32 or "
            f"float64), got {value.dtype}: convert it with .float()"
        )
    if value.is_meta or value.is_nested:
        kind = "on the meta device, without values" if value.is_meta else "a nested tensor"
        raise ValueError(f"{name} must be a dense tensor with values, got {kind}")
    rows = value.detach()
    rows = rows if rows.layout == torch.strided else rows.to_dense()
    return (rows if rows.device.type in _DEVICES else rows.cpu()).contiguous()
