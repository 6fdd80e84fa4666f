import logging

import pytest
import torch

from ml_backend.errors import RoundError
from ml_backend.model.hardware import halving

FULL = torch.OutOfMemoryError("CUDA out of memory")


class Gpu:
    """Holds so many images at once."""

    def __init__(self, room: int, error: Exception = FULL) -> None:
        self.room, self.error, self.tried = room, error, list[int]()

    def run(self, batch: int) -> str:
        self.tried.append(batch)
        if batch > self.room:
            raise self.error
        return "done"


def test_halves_until_it_fits(caplog: pytest.LogCaptureFixture) -> None:
    gpu = Gpu(10)

    with caplog.at_level(logging.WARNING):
        assert halving(33, gpu.run, "", setting="train_batch") == "done"

    assert gpu.tried == [33, 16, 8]
    assert "full with 33 images at once, trying 16" in caplog.text
    assert "set train_batch=8 to spare the failed attempts" in caplog.text


def test_nothing_to_set_where_the_first_fits(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert halving(8, Gpu(8).run, "", setting="train_batch") == "done"

    assert caplog.text == ""


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: out of memory",
    ],
)
def test_libraries_below_that_find_no_memory(message: str) -> None:
    gpu = Gpu(4, RuntimeError(message))

    assert halving(8, gpu.run, "") == "done"
    assert gpu.tried == [8, 4]


def test_names_the_setting_when_nothing_fits() -> None:
    gpu = Gpu(1)

    with pytest.raises(RoundError, match="full with 2 images at once: set a smaller image_side"):
        halving(5, gpu.run, "set a smaller image_side")
    assert gpu.tried == [5, 2]


@pytest.mark.parametrize("error", [ZeroDivisionError("by 0"), RuntimeError("CUDA error: device-side assert triggered")])
def test_any_other_error_goes_through(error: Exception) -> None:
    gpu = Gpu(0, error)

    with pytest.raises(type(error), match=str(error)):
        halving(4, gpu.run, "")
    assert gpu.tried == [4]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_real_gpu_that_is_full() -> None:
    """Each image of 1 / 8 of what is free: 32 and 16 cannot fit, 4 does, with room for what torch keeps aside."""
    free, _ = torch.cuda.mem_get_info()

    def run(batch: int) -> int:
        return len(torch.empty(batch, free // 8, dtype=torch.uint8, device="cuda"))

    fitted = halving(32, run, "")
    torch.cuda.empty_cache()
    assert fitted in (4, 8)
    with pytest.raises(RoundError, match="full with 2 images at once"):
        halving(2, lambda batch: run(16 * batch), "")
