import pytest
import torch

from ml_backend.model.precision import autocast, precision

CUDA = torch.device("cuda")


class Gpu:
    """Takes bfloat16 like every GPU; ``native`` says whether it multiplies it itself."""

    def __init__(self, native: bool) -> None:
        self.native = native

    def is_bf16_supported(self, including_emulation: bool = True) -> bool:
        return including_emulation or self.native


@pytest.mark.parametrize(("native", "wanted"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_gpu_that_emulates_bfloat16_stays_with_float32(
    native: bool, wanted: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", Gpu(native).is_bf16_supported)

    assert precision(CUDA) == wanted


def test_a_cpu_stays_with_float32() -> None:
    cpu = torch.device("cpu")

    with autocast(cpu):
        product = torch.ones(2, 2) @ torch.ones(2, 2)

    assert precision(cpu) == product.dtype == torch.float32
