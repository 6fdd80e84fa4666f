import pytest
import torch

from ml_backend.errors import SettingsError
from ml_backend.model.backbones import Backbone


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


def test_untrained_is_the_same_whatever_was_drawn_before() -> None:
    torch.manual_seed(1)
    first = Backbone("resnet18")
    torch.rand(1000)

    assert Backbone("resnet18").digest() == first.digest()


def test_building_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    Backbone("mobilenet_v2")

    assert torch.equal(torch.rand(1), expected)


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
