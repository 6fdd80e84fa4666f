import logging
from typing import Literal

import pytest
import torch
from torch import nn

from ml_backend.errors import SettingsError
from ml_backend.model.hardware import Arithmetic

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
Precision = Literal["auto", "float32", "bfloat16"]


class Gpu:
    """``native``: multiplies bfloat16 itself; ``emulated``: at least its driver does."""

    def __init__(self, *, native: bool, emulated: bool = True) -> None:
        self.native, self.emulated = native, emulated

    def is_bf16_supported(self, including_emulation: bool = True) -> bool:
        return self.native or (including_emulation and self.emulated)


def on(gpu: Gpu, precision: Precision, monkeypatch: pytest.MonkeyPatch) -> Arithmetic:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", gpu.is_bf16_supported)
    return Arithmetic.of(CUDA, precision, channels_last=True)


@pytest.mark.parametrize(
    ("native", "precision", "wanted"),
    [
        (True, "auto", torch.bfloat16),
        (False, "auto", torch.float32),
        (True, "float32", torch.float32),
        (True, "bfloat16", torch.bfloat16),
    ],
)
def test_a_gpu_that_emulates_bfloat16_stays_with_float32(
    native: bool,
    precision: Precision,
    wanted: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        assert on(Gpu(native=native), precision, monkeypatch).dtype == wanted

    assert caplog.text == ""


def test_what_is_asked_for_is_emulated_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert on(Gpu(native=False), "bfloat16", monkeypatch).dtype == torch.bfloat16
        assert Arithmetic.of(CPU, "bfloat16", channels_last=True).dtype == torch.bfloat16

    assert "emulated on this cuda and slow" in caplog.text
    assert "emulated on this cpu and slow" in caplog.text


def test_a_gpu_without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="precision='bfloat16', but this GPU has none: set precision to auto"):
        on(Gpu(native=False, emulated=False), "bfloat16", monkeypatch)


@pytest.mark.parametrize(
    ("precision", "wanted"), [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_autocast_on_a_cpu(precision: Precision, wanted: torch.dtype) -> None:
    arithmetic = Arithmetic.of(CPU, precision, channels_last=True)

    with arithmetic.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)

    assert arithmetic.dtype == product.dtype == wanted


def test_name_tells_whatever_changes_bits() -> None:
    """The first is what features of earlier versions are kept under."""
    assert Arithmetic(CPU).name == "cpu|torch.float32"
    names = {
        Arithmetic(device, dtype, channels_last).name
        for device in (CPU, CUDA)
        for dtype in (torch.float32, torch.bfloat16)
        for channels_last in (True, False)
    }
    assert len(names) == 8


@pytest.mark.parametrize("channels_last", [True, False])
def test_layout(channels_last: bool) -> None:
    arithmetic = Arithmetic(CPU, channels_last=channels_last)
    convolution = nn.Conv2d(4, 8, 3)
    network = nn.Sequential(convolution, nn.Flatten(), nn.Linear(8, 2))

    placed = arithmetic.place(network)
    images = arithmetic.lay_out(torch.zeros(2, 4, 3, 3))

    assert placed is network
    for tensor in (images, convolution.weight):
        assert tensor.is_contiguous(memory_format=torch.channels_last) == channels_last
        assert tensor.is_contiguous() != channels_last
