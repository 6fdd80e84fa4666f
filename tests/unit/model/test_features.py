import io
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ml_backend.errors import ImageError
from ml_backend.images.cache import ImageCache
from ml_backend.images.transforms import to_input
from ml_backend.model.backbones import Backbone
from ml_backend.model.features import FeatureExtractor
from ml_backend.model.hardware import Arithmetic
from ml_backend.schemas import ImageRef

CPU = Arithmetic(torch.device("cpu"))


class Films:
    """Random films, drawn when they are asked for; number 3 cannot be read."""

    def __init__(self) -> None:
        self.fetched: list[str] = []

    def fetch(self, image: ImageRef) -> bytes:
        self.fetched.append(image.uri)
        if image.uri == "3":
            raise ImageError("image 3 is gone")
        levels = np.random.default_rng(int(image.uri)).integers(0, 256, (32, 32), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(levels).save(file, "PNG")
        return file.getvalue()

    def cache_key(self, image: ImageRef) -> str:
        return image.uri


def refs(count: int) -> Sequence[ImageRef]:
    return [ImageRef(id=f"task {index}", uri=str(index)) for index in range(count)]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    backbone = Backbone("shufflenet_v2_x0_5")
    # Normalisations that are not the identity, so that folding them shows.
    for name, buffer in backbone.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0.0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
    return backbone.eval()


def test_features_of_the_readable_images_in_order(tmp_path: Path, backbone: Backbone) -> None:
    cache = ImageCache(Films(), tmp_path / "images", 32)
    seen: list[int] = []

    batch = FeatureExtractor(backbone, cache, CPU, tmp_path / "features").all(refs(20), seen.append)

    assert [image.uri for image in batch.images] == [str(index) for index in range(20) if index != 3]
    assert [exclusion.image_id for exclusion in batch.exclusions] == ["task 3"]
    assert batch.exclusions[0].reason == "image 3 is gone"
    assert seen[-1] == 20
    pixels = torch.stack([torch.from_numpy(cache.read(image).pixels.copy()) for image in batch.images])
    with torch.inference_mode():
        expected = backbone(to_input(pixels))
    # Folded and channels_last: the same to rounding.
    assert torch.allclose(batch.features, expected, rtol=1e-3, atol=1e-5)


def test_computed_once_an_image(tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    films = Films()
    cache = ImageCache(films, tmp_path / "images", 32)
    first = FeatureExtractor(backbone, cache, CPU, tmp_path / "features").all(refs(3), list[int]().append)
    again = FeatureExtractor(backbone, cache, CPU, tmp_path / "features")

    def refuse(pixels: object) -> None:
        raise AssertionError("the backbone ran again")

    monkeypatch.setattr(again, "run", refuse)
    # Whatever the task is called, and without its pixels.
    shutil.rmtree(tmp_path / "images" / "pixels")
    renamed = [ImageRef(id=f"new {image.id}", uri=image.uri) for image in refs(3)]

    assert torch.equal(again.all(renamed, list[int]().append).features, first.features)
    assert sorted(films.fetched) == ["0", "1", "2"]


def test_other_weights_have_other_features(tmp_path: Path, backbone: Backbone) -> None:
    cache = ImageCache(Films(), tmp_path / "images", 32)
    first = FeatureExtractor(backbone, cache, CPU, tmp_path / "features").all(refs(2), list[int]().append)
    untrained = FeatureExtractor(Backbone("shufflenet_v2_x0_5"), cache, CPU, tmp_path / "features")

    assert not torch.allclose(untrained.all(refs(2), list[int]().append).features, first.features)


@pytest.mark.parametrize("arithmetic", [replace(CPU, channels_last=False), replace(CPU, dtype=torch.bfloat16)])
def test_other_arithmetic_has_features_of_its_own(tmp_path: Path, backbone: Backbone, arithmetic: Arithmetic) -> None:
    """Almost the same ones, and each is kept under its own name."""
    cache = ImageCache(Films(), tmp_path / "images", 32)
    found = [
        FeatureExtractor(backbone, cache, each, tmp_path / "features").all(refs(2), list[int]().append).features
        for each in (CPU, arithmetic, CPU)
    ]

    assert torch.equal(found[0], found[2])
    assert found[1].dtype == torch.float32
    assert torch.allclose(found[0], found[1], atol=0.1 * float(found[0].abs().max()))
    assert len(list((tmp_path / "features").glob("*/*"))) == 4


def test_kept_features_are_bounded(tmp_path: Path, backbone: Backbone) -> None:
    """4,128 bytes each, two blocks on the disk."""
    cache = ImageCache(Films(), tmp_path / "images", 32)
    extractor = FeatureExtractor(backbone, cache, CPU, tmp_path / "features", limit_bytes=20_000)

    extractor.all(refs(3), list[int]().append)
    extractor.trim()

    assert len(list((tmp_path / "features").glob("*/*"))) == 2


def test_damaged_entries_are_computed_again(tmp_path: Path, backbone: Backbone) -> None:
    cache = ImageCache(Films(), tmp_path / "images", 32)
    first = FeatureExtractor(backbone, cache, CPU, tmp_path / "features").all(refs(3), list[int]().append)
    damaged = list((tmp_path / "features").glob("*/*"))
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-4])

    again = FeatureExtractor(backbone, cache, CPU, tmp_path / "features").all(refs(3), list[int]().append)

    assert len(damaged) == 3
    assert torch.allclose(again.features, first.features)


def test_without_a_folder_nothing_is_kept(tmp_path: Path, backbone: Backbone) -> None:
    cache = ImageCache(Films(), tmp_path / "images", 32)
    FeatureExtractor(backbone, cache, CPU, None).all(refs(2), list[int]().append)

    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_backbone_itself_is_left_alone(tmp_path: Path) -> None:
    backbone = Backbone("shufflenet_v2_x0_5").train()
    before = backbone.digest()
    FeatureExtractor(backbone, ImageCache(Films(), tmp_path, 32), CPU, None).all(refs(2), list[int]().append)

    assert backbone.training
    assert backbone.digest() == before


def test_no_image(tmp_path: Path, backbone: Backbone) -> None:
    extractor = FeatureExtractor(backbone, ImageCache(Films(), tmp_path, 32), CPU, None)

    assert extractor.all([], list[int]().append).features.shape == (0, 1024)
    assert extractor.all(refs(4)[3:], list[int]().append).features.shape == (0, 1024)
