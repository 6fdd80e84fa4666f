import http.client
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ml_backend.errors import SettingsError, WeightsError
from ml_backend.model import backbones as weights
from ml_backend.model.backbones import Backbone, load_backbone, weights_at_hand


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    """As torchvision writes them: with the last layer."""
    generator = torch.Generator().manual_seed(0)
    plain = {
        name: torch.rand(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for name, tensor in Backbone("shufflenet_v2_x0_5").network.state_dict().items()
    }
    return plain | {"fc.weight": torch.zeros(1000, 1024), "fc.bias": torch.zeros(1000)}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Path]:
    """torch.hub's folder, empty."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path / "hub")
    yield tmp_path / "hub" / "checkpoints"
    torch.hub.set_dir(before)


class TestFile:
    @pytest.mark.parametrize("kind", ["safetensors", "torch", "wrapped", "prefixed", "old"])
    def test_fills_the_backbone(self, tmp_path: Path, tensors: dict[str, Tensor], kind: str) -> None:
        path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
        if kind == "safetensors":
            save_file(tensors, path)
        elif kind == "torch":
            torch.save(tensors, path)
        elif kind == "wrapped":
            torch.save({"epoch": 3, "state_dict": tensors}, path)
        elif kind == "prefixed":
            torch.save({f"module.{name}": tensor for name, tensor in tensors.items()}, path)
        else:
            torch.save({n: t for n, t in tensors.items() if not n.endswith("num_batches_tracked")}, path)

        backbone = load_backbone("shufflenet_v2_x0_5", str(path))

        assert torch.equal(backbone.network.state_dict()["conv1.0.weight"], tensors["conv1.0.weight"])
        assert backbone.weights == str(path)

    def test_another_backbone(self, tmp_path: Path, tensors: dict[str, Tensor]) -> None:
        save_file(tensors, tmp_path / "w.safetensors")

        with pytest.raises(WeightsError, match=r"do not fit backbone=mobilenet_v2: .* is missing.*mismatches in all"):
            load_backbone("mobilenet_v2", str(tmp_path / "w.safetensors"))

    def test_another_shape(self, tmp_path: Path, tensors: dict[str, Tensor]) -> None:
        tensors["conv1.0.weight"] = torch.zeros(24, 1, 3, 3)
        save_file(tensors, tmp_path / "w.safetensors")

        with pytest.raises(WeightsError, match=r"conv1.0.weight is \[24, 1, 3, 3\] instead of \[24, 3, 3, 3\] \(1 "):
            load_backbone("shufflenet_v2_x0_5", str(tmp_path / "w.safetensors"))

    def test_a_larger_network(self, tmp_path: Path, tensors: dict[str, Tensor]) -> None:
        save_file(tensors | {"layer5.conv": torch.zeros(1)}, tmp_path / "w.safetensors")

        with pytest.raises(WeightsError, match=r"layer5\.conv is surplus"):
            load_backbone("shufflenet_v2_x0_5", str(tmp_path / "w.safetensors"))

    def test_nan(self, tmp_path: Path, tensors: dict[str, Tensor]) -> None:
        tensors["conv1.1.bias"] = torch.full((24,), float("nan"))
        save_file(tensors, tmp_path / "w.safetensors")

        with pytest.raises(WeightsError, match=r"hold NaN or infinity in conv1\.1\.bias"):
            load_backbone("shufflenet_v2_x0_5", str(tmp_path / "w.safetensors"))

    @pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
    @pytest.mark.parametrize(
        "content",
        [
            None,
            b"",
            b"not a file of tensors",
            b"hello, a byte that is a KeyError to a pickle reader",
            b"<!doctype html><title>Log in</title>",
            b"version https://git-lfs.github.com/spec/v1",
            b"PK\x03\x04 cut off",
            b"\x80\x02 cut off",
        ],
    )
    def test_missing_or_damaged(self, tmp_path: Path, name: str, content: bytes | None) -> None:
        if content is not None:
            (tmp_path / name).write_bytes(content)

        with pytest.raises(WeightsError, match=f"{name} (cannot be read|hold more)"):
            load_backbone("shufflenet_v2_x0_5", str(tmp_path / name))

    def test_never_runs_a_pickle(self, tmp_path: Path) -> None:
        class Payload:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

        torch.save({"conv1.weight": Payload()}, tmp_path / "w.pth")

        with pytest.raises(WeightsError, match="hold more than tensors"):
            load_backbone("shufflenet_v2_x0_5", str(tmp_path / "w.pth"))
        assert not (tmp_path / "ran").exists()

    def test_not_a_table_of_tensors(self, tmp_path: Path) -> None:
        torch.save([1, 2], tmp_path / "w.pth")

        with pytest.raises(WeightsError, match="are a list, not named tensors"):
            load_backbone("shufflenet_v2_x0_5", str(tmp_path / "w.pth"))


class TestImagenet:
    def test_without_a_network_says_how_to_supply_a_file(self, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # A proxy that nobody listens on: the refusal of a machine without a network.
        monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
        start = time.monotonic()

        with pytest.raises(WeightsError) as error:
            load_backbone("shufflenet_v2_x0_5", "imagenet")

        assert time.monotonic() - start < 8
        for way_out in (str(hub), "weights: /path/file", "model_weights", "AL_WEIGHTS", "weights: none"):
            assert way_out in str(error.value)
        assert not list(hub.glob("*"))

    def test_file_in_the_hub_folder_is_used(
        self, hub: Path, tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert not weights_at_hand("shufflenet_v2_x0_5")
        hub.mkdir(parents=True)
        path = hub / "shufflenetv2_x0.5-f707e7126e.pth"
        torch.save(tensors, path)

        assert weights_at_hand("shufflenet_v2_x0_5")
        with pytest.raises(WeightsError, match=r"damaged: its sha256 begins with .* not f707e7126e: delete it"):
            load_backbone("shufflenet_v2_x0_5", "imagenet")

    def test_download_is_kept(self, hub: Path, tmp_path: Path, tensors: dict[str, Tensor]) -> None:
        torch.save(tensors, tmp_path / "served.pth")

        weights._download((tmp_path / "served.pth").as_uri(), hub / "kept.pth")

        assert (hub / "kept.pth").read_bytes() == (tmp_path / "served.pth").read_bytes()
        assert [path.name for path in hub.iterdir()] == ["kept.pth"]

    def test_damaged_download_is_not_kept(
        self, hub: Path, tmp_path: Path, tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        torch.save(tensors, tmp_path / "served-00000000.pth")
        monkeypatch.setattr(weights, "_imagenet_url", lambda _: (tmp_path / "served-00000000.pth").as_uri())

        with pytest.raises(WeightsError, match=r"is damaged: its sha256 .* try again, or put the file into"):
            load_backbone("shufflenet_v2_x0_5", "imagenet")
        assert not list(hub.iterdir())

    def test_a_server_that_talks_no_http(self, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def urlopen(url: str, timeout: float, context: object) -> None:
            raise http.client.BadStatusLine(f"{url} within {timeout}")

        monkeypatch.setattr(urllib.request, "urlopen", urlopen)

        with pytest.raises(WeightsError, match=r"could not be downloaded from https://x/y\.pth"):
            weights._download("https://x/y.pth", hub / "y.pth")

    def test_unknown_backbone(self) -> None:
        with pytest.raises(SettingsError, match="backbone='resnet5' is not known"):
            weights_at_hand("resnet5")


def test_none_is_untrained() -> None:
    backbone = load_backbone("shufflenet_v2_x0_5", "none")

    assert backbone.weights == "none"
    assert backbone.digest() == Backbone("shufflenet_v2_x0_5").digest()
