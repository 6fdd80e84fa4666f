import logging
from typing import Literal

import pytest
import torch
from torch import nn

from ml_backend.errors import RoundError, SettingsError
from ml_backend.model.hardware import (
    Precision,
    choose_device,
    find_executable_batch_size,
    generator,
    one_thread,
    seeded,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
Setting = Literal["auto", "float32", "bfloat16"]


class TestPrecision:
    @staticmethod
    def on_gpu(setting: Setting, monkeypatch: pytest.MonkeyPatch, *, native: bool, emulated: bool = True) -> Precision:
        """On a GPU with native bfloat16, or whose driver emulates it, or neither."""

        def supported(including_emulation: bool = True) -> bool:
            return native or (including_emulation and emulated)

        monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
        return Precision.from_options(CUDA, setting, channels_last=True)

    @pytest.mark.parametrize(
        ("native", "setting", "dtype"),
        [
            (True, "auto", torch.bfloat16),
            (False, "auto", torch.float32),
            (True, "float32", torch.float32),
            (True, "bfloat16", torch.bfloat16),
        ],
    )
    def test_auto_is_bfloat16_only_where_it_is_native(
        self,
        native: bool,
        setting: Setting,
        dtype: torch.dtype,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        with caplog.at_level(logging.WARNING):
            assert self.on_gpu(setting, monkeypatch, native=native).dtype == dtype

        assert caplog.text == ""

    def test_explicit_bfloat16_is_emulated_with_a_warning(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING):
            assert self.on_gpu("bfloat16", monkeypatch, native=False).dtype == torch.bfloat16
            assert Precision.from_options(CPU, "bfloat16", channels_last=True).dtype == torch.bfloat16

        assert "emulated on this cuda and slow" in caplog.text
        assert "emulated on this cpu and slow" in caplog.text

    def test_a_gpu_without_bfloat16(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(SettingsError, match="precision='bfloat16', but this GPU has none: set precision to auto"):
            self.on_gpu("bfloat16", monkeypatch, native=False, emulated=False)

    @pytest.mark.parametrize(
        ("setting", "dtype"), [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)]
    )
    def test_autocast_on_a_cpu(self, setting: Setting, dtype: torch.dtype) -> None:
        precision = Precision.from_options(CPU, setting, channels_last=True)

        with precision.autocast():
            product = torch.ones(2, 2) @ torch.ones(2, 2)

        assert precision.dtype == product.dtype == dtype

    def test_name_is_unique(self) -> None:
        """The first is the key of cached features of earlier versions."""
        assert Precision(CPU).name == "cpu|torch.float32"
        names = {
            Precision(device, dtype, channels_last).name
            for device in (CPU, CUDA)
            for dtype in (torch.float32, torch.bfloat16)
            for channels_last in (True, False)
        }
        assert len(names) == 8

    @pytest.mark.parametrize("channels_last", [True, False])
    def test_memory_layout(self, *, channels_last: bool) -> None:
        precision = Precision(CPU, channels_last=channels_last)
        convolution = nn.Conv2d(4, 8, 3)
        network = nn.Sequential(convolution, nn.Flatten(), nn.Linear(8, 2))

        placed = precision.place(network)
        images = precision.format_images(torch.zeros(2, 4, 3, 3))

        assert placed is network
        for tensor in (images, convolution.weight):
            assert tensor.is_contiguous(memory_format=torch.channels_last) == channels_last
            assert tensor.is_contiguous() != channels_last


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_device_without_a_gpu() -> None:
    assert choose_device("auto") == choose_device("cpu") == CPU
    with pytest.raises(SettingsError, match="no usable GPU: set AL_DEVICE=auto or cpu"):
        choose_device("cuda")


def test_one_thread_restores_the_number_after_an_error() -> None:
    before = torch.get_num_threads()
    seen = []

    def fail() -> None:
        with one_thread():
            seen.append(torch.get_num_threads())
            raise KeyError

    with pytest.raises(KeyError):
        fail()

    assert seen == [1]
    assert torch.get_num_threads() == before


class TestGenerators:
    def test_generator_is_seeded(self) -> None:
        assert torch.equal(torch.rand(4, generator=generator(3, "a")), torch.rand(4, generator=generator(3, "a")))
        assert not torch.equal(torch.rand(4, generator=generator(3, "a")), torch.rand(4, generator=generator(4, "a")))

    def test_seeded_restores_the_global_state(self) -> None:
        torch.manual_seed(11)
        expected = torch.rand(3)
        torch.manual_seed(11)
        with seeded(0, "x"):
            inside = torch.rand(3)
        with seeded(0, "x"):
            assert torch.equal(torch.rand(3), inside)

        assert torch.equal(torch.rand(3), expected)


class TestFindExecutableBatchSize:
    class Gpu:
        """Holds so many images at once."""

        def __init__(self, room: int, error: Exception | None = None) -> None:
            self.room, self.tried = room, list[int]()
            self.error = torch.OutOfMemoryError("CUDA out of memory") if error is None else error

        def run(self, batch: int) -> str:
            self.tried.append(batch)
            if batch > self.room:
                raise self.error
            return "done"

    def test_halves_until_it_fits(self, caplog: pytest.LogCaptureFixture) -> None:
        gpu = self.Gpu(10)

        with caplog.at_level(logging.WARNING):
            assert find_executable_batch_size(gpu.run, 33, "", setting="train_batch") == "done"

        assert gpu.tried == [33, 16, 8]
        assert "full with 33 images at once, trying 16" in caplog.text
        assert "set train_batch=8 to avoid failed attempts" in caplog.text

    def test_no_advice_if_the_first_fits(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            assert find_executable_batch_size(self.Gpu(8).run, 8, "", setting="train_batch") == "done"

        assert caplog.text == ""

    @pytest.mark.parametrize(
        "message",
        [
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
            "CUDA error: out of memory",
        ],
    )
    def test_out_of_memory_of_the_libraries_below_torch(self, message: str) -> None:
        gpu = self.Gpu(4, RuntimeError(message))

        assert find_executable_batch_size(gpu.run, 8, "") == "done"
        assert gpu.tried == [8, 4]

    def test_advice_if_nothing_fits(self) -> None:
        gpu = self.Gpu(1)

        with pytest.raises(RoundError, match="full with 2 images at once: set a smaller image_side"):
            find_executable_batch_size(gpu.run, 5, "set a smaller image_side")
        assert gpu.tried == [5, 2]

    @pytest.mark.parametrize(
        "error", [ZeroDivisionError("by 0"), RuntimeError("CUDA error: device-side assert triggered")]
    )
    def test_other_errors_propagate(self, error: Exception) -> None:
        gpu = self.Gpu(0, error)

        with pytest.raises(type(error), match=str(error)):
            find_executable_batch_size(gpu.run, 4, "")
        assert gpu.tried == [4]

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_a_real_gpu_that_is_full(self) -> None:
        """Each image takes 1 / 8 of the free memory: 32 and 16 cannot fit, 4 does, with torch's own overhead."""
        free, _ = torch.cuda.mem_get_info()

        def run(batch: int) -> int:
            return len(torch.empty(batch, free // 8, dtype=torch.uint8, device="cuda"))

        fitted = find_executable_batch_size(run, 32, "")
        torch.cuda.empty_cache()
        assert fitted in (4, 8)
        with pytest.raises(RoundError, match="full with 2 images at once"):
            find_executable_batch_size(lambda batch: run(16 * batch), 2, "")
