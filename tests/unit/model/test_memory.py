import pytest
import torch

from ml_backend.errors import RoundError
from ml_backend.model.memory import halving


class Gpu:
    """Holds so many images at once."""

    def __init__(self, room: int) -> None:
        self.room, self.tried = room, list[int]()

    def run(self, batch: int) -> str:
        self.tried.append(batch)
        if batch > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"


def test_halves_until_it_fits() -> None:
    gpu = Gpu(10)

    assert halving(33, gpu.run, "") == "done"
    assert gpu.tried == [33, 16, 8]


def test_names_the_setting_when_nothing_fits() -> None:
    gpu = Gpu(1)

    with pytest.raises(RoundError, match="full with 2 images at once: set a smaller image_side"):
        halving(5, gpu.run, "set a smaller image_side")
    assert gpu.tried == [5, 2]


def test_any_other_error_goes_through() -> None:
    with pytest.raises(ZeroDivisionError):
        halving(4, lambda batch: str(1 // (batch - 4)), "")
