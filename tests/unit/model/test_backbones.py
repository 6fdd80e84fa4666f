import http.client
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ml_backend.errors import SettingsError, WeightsError
from ml_backend.model import backbones
from ml_backend.model.backbones import Backbone, load_backbone, weights_file


@pytest.mark.parametrize(
    ("name", "dims"),
    [("resnet18", 512), ("mobilenet_v2", 1280), ("shufflenet_v2_x0_5", 1024), ("mobilenet_v3_small", 576)],
)
def test_pools_to_one_vector_an_image(name: str, dims: int) -> None:
    backbone = Backbone(name).eval()

    assert backbone.dims == dims
    with torch.inference_mode():
        # Another side than the one that was measured with: the pooling is global.
        assert backbone(torch.zeros(2, 3, 96, 96)).shape == (2, dims)


def test_untrained_is_always_the_same_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first = Backbone("resnet18")

    assert torch.equal(torch.rand(1), expected)
    assert Backbone("resnet18").digest() == first.digest()


def test_digest_follows_the_weights() -> None:
    backbone = Backbone("resnet18")
    before = backbone.digest()
    with torch.no_grad():
        next(backbone.parameters()).view(-1)[0] += 1e-3

    assert backbone.digest() != before


@pytest.mark.parametrize("name", ["resnet", "vgg16", "googlenet", "no_such_net", "ResNet50 "])
def test_unknown_name_says_what_is_known(name: str) -> None:
    with pytest.raises(SettingsError, match=r"backbone=.* is not known; known are .*mobilenet_v2.*resnet50"):
        Backbone(name)


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
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch.hub's folder: empty. By its variable: ``set_dir`` would outlast the test."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


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

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"conv1.0.weight": torch.zeros(24, 1, 3, 3)},
                r"conv1.0.weight is \[24, 1, 3, 3\] instead of \[24, 3, 3, 3\] \(1 ",
            ),
            ({"layer5.conv": torch.zeros(1)}, r"layer5\.conv is surplus"),
            ({"conv1.1.bias": torch.full((24,), float("nan"))}, r"hold NaN or infinity in conv1\.1\.bias"),
        ],
    )
    def test_another_network(
        self, tmp_path: Path, tensors: dict[str, Tensor], changes: dict[str, Tensor], message: str
    ) -> None:
        save_file(tensors | changes, tmp_path / "w.safetensors")

        with pytest.raises(WeightsError, match=message):
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
    def test_without_a_network_the_error_says_how_to_supply_a_file(
        self, hub: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # A proxy without a listener: the connection is refused, as on a machine without a network.
        monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
        start = time.monotonic()

        with pytest.raises(WeightsError) as error:
            load_backbone("shufflenet_v2_x0_5", "imagenet")

        assert time.monotonic() - start < 8
        for advice in (str(hub), "weights: /path/file", "model_weights", "AL_WEIGHTS", "weights: none"):
            assert advice in str(error.value)
        assert not list(hub.glob("*"))

    def test_file_in_the_hub_folder_is_used(
        self, hub: Path, tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert weights_file("shufflenet_v2_x0_5", "imagenet") is None
        hub.mkdir(parents=True)
        path = hub / "shufflenetv2_x0.5-f707e7126e.pth"
        torch.save(tensors, path)

        assert weights_file("shufflenet_v2_x0_5", "imagenet") == path
        with pytest.raises(WeightsError, match=r"damaged: its sha256 begins with .* not f707e7126e: delete it"):
            load_backbone("shufflenet_v2_x0_5", "imagenet")

    def test_download_is_kept(self, hub: Path, tmp_path: Path, tensors: dict[str, Tensor]) -> None:
        torch.save(tensors, tmp_path / "served.pth")

        backbones._download((tmp_path / "served.pth").as_uri(), hub / "kept.pth")

        assert (hub / "kept.pth").read_bytes() == (tmp_path / "served.pth").read_bytes()
        assert [path.name for path in hub.iterdir()] == ["kept.pth"]

    def test_damaged_download_is_not_kept(
        self, hub: Path, tmp_path: Path, tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        torch.save(tensors, tmp_path / "served-00000000.pth")
        monkeypatch.setattr(backbones, "_imagenet_url", lambda _: (tmp_path / "served-00000000.pth").as_uri())

        with pytest.raises(WeightsError, match=r"is damaged: its sha256 .* try again, or put the file there as"):
            load_backbone("shufflenet_v2_x0_5", "imagenet")
        assert not list(hub.iterdir())

    def test_a_server_without_http(self, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def urlopen(url: str, timeout: float, context: object) -> None:
            raise http.client.BadStatusLine(f"{url} within {timeout}")

        monkeypatch.setattr(urllib.request, "urlopen", urlopen)

        with pytest.raises(WeightsError, match=r"could not be downloaded from https://x/y\.pth"):
            backbones._download("https://x/y.pth", hub / "y.pth")

    def test_unknown_backbone(self) -> None:
        with pytest.raises(SettingsError, match="backbone='resnet5' is not known"):
            weights_file("resnet5", "imagenet")


def test_weights_file(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"")

    assert weights_file("resnet18", str(tmp_path / "w.pth")) == tmp_path / "w.pth"
    assert weights_file("resnet18", str(tmp_path / "missing.pth")) is None
    assert weights_file("resnet18", "none") is None


def test_none_is_untrained() -> None:
    backbone = load_backbone("shufflenet_v2_x0_5", "none")

    assert backbone.weights == "none"
    assert backbone.digest() == Backbone("shufflenet_v2_x0_5").digest()
