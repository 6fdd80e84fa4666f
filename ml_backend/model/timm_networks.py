"""Networks of timm without their last layer, and the radiograph networks that are published in other layouts."""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import torch
from torch import Tensor, nn

from ml_backend.errors import SettingsError
from ml_backend.images.transforms import Normalisation

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

PREFIX: Final = "timm/"
"""Begins the name of a backbone that is one of timm's."""


class HubFile(NamedTuple):
    """A file on the Hugging Face hub."""

    repository: str
    name: str


@dataclass(frozen=True, slots=True)
class TimmNetwork:
    """What is known of a network before it is built.

    Attributes:
        name: the backbone's.
        architecture: timm's name.
        side: of the input that it was trained with, in pixels.
        fixed_side: it is built for one side, as a transformer is.
        normalisation: that it was trained with.
        published: its weights; None if they are not on the hub.
        unused: names, with their parts, that a file of weights may hold beside the pooled network.
    """

    name: str
    architecture: str
    side: int
    fixed_side: bool
    normalisation: Normalisation
    published: HubFile | None
    unused: tuple[str, ...]

    def build(self, side: int) -> nn.Module:
        """The untrained network: images [images, channels, side, side] to pooled features.

        Raises:
            SettingsError: it cannot be built for this side.
        """
        import timm  # noqa: PLC0415 - takes seconds

        arguments: dict[str, Any] = {"num_classes": 0, "in_chans": self.normalisation.channels}
        if self.fixed_side:
            arguments["img_size"] = side
        try:
            network = timm.create_model(self.architecture, **arguments)
        except (TypeError, AssertionError, ValueError, RuntimeError) as error:
            raise SettingsError(
                f"image_side={side}, but backbone={self.name!r} cannot be built for it: {error}: "
                f"leave image_side out for its own {self.side} pixels"
            ) from error
        patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
        if isinstance(patch, tuple) and side % patch[0]:
            raise SettingsError(
                f"image_side={side}, but backbone={self.name!r} divides images into patches of {patch[0]} pixels: "
                f"give a multiple of that, or leave image_side out for its own {self.side} pixels"
            )
        return network

    def convert(self, network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Bring weights into timm's layout, and positions of a transformer to the network's side.

        Known are timm's own layout, those that timm converts itself (DINOv2's own, and open_clip's, as of BiomedCLIP),
        torchxrayvision's, and that of Hugging Face's ``Dinov2Model``. Others are returned as they are.

        Raises:
            ValueError: positions cannot be resized.
        """
        import timm  # noqa: PLC0415

        converted = _from_huggingface_dinov2(tensors)
        # timm's modules name their conversion alike.
        module = sys.modules[timm.model_entrypoint(self.architecture).__module__]
        if (convert := getattr(module, "checkpoint_filter_fn", None)) is not None:
            try:
                converted = convert(converted, network)
            except (RuntimeError, LookupError, TypeError, AttributeError, AssertionError) as error:
                raise ValueError(str(error)) from error
        return {
            name: tensor
            for name, tensor in converted.items()
            if not any(name == unused or name.startswith(f"{unused}.") for unused in self.unused)
        }


class _Radiographs(NamedTuple):
    """A network for radiographs: timm's architecture with other weights and another input."""

    architecture: str
    normalisation: Normalisation
    published: HubFile | None


RADIOGRAPHS: Final[dict[str, _Radiographs]] = {
    # preprocessor_config.json in the repository.
    "rad-dino": _Radiographs(
        "vit_base_patch14_dinov2",
        Normalisation((0.5307,) * 3, (0.2583,) * 3),
        HubFile("microsoft/rad-dino", "model.safetensors"),
    ),
    # open_clip_config.json in the repository: CLIP's. The trunk's features, before the projection.
    "biomedclip": _Radiographs(
        "vit_base_patch16_224",
        Normalisation((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        HubFile("microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224", "open_clip_pytorch_model.bin"),
    ),
    # One channel from -1024 to 1024; the published file is a pickled module, which is never read here.
    "xrv-densenet121": _Radiographs("densenet121", Normalisation((0.5,), (1 / 2048,)), None),
}
"""Backbone -> its network."""


def find_network(name: str) -> TimmNetwork | None:
    """A network of timm by its backbone's name; None for a name of another kind.

    Args:
        name: ``timm/`` and timm's name, with or without the tag of its weights, or a name in ``RADIOGRAPHS``.

    Raises:
        SettingsError: timm has no such network, or no such weights of it.
    """
    if (known := RADIOGRAPHS.get(name)) is not None:
        config = _configuration(name, known.architecture)
        return _network(name, config, known.architecture, known.normalisation, known.published)
    if not name.startswith(PREFIX):
        return None
    architecture = name.removeprefix(PREFIX)
    config = _configuration(name, architecture)
    published = HubFile(config.hf_hub_id, config.hf_hub_filename or "model.safetensors") if config.hf_hub_id else None
    return _network(name, config, architecture, Normalisation(config.mean, config.std), published)


def _network(
    name: str, config: "PretrainedCfg", architecture: str, normalisation: Normalisation, published: HubFile | None
) -> TimmNetwork:
    classifier = config.classifier or ()
    return TimmNetwork(
        name=name,
        architecture=architecture,
        side=config.input_size[-1],
        fixed_side=bool(config.fixed_input_size),
        normalisation=normalisation,
        published=published,
        # torchxrayvision's thresholds.
        unused=(*((classifier,) if isinstance(classifier, str) else classifier), "op_threshs"),
    )


def _configuration(name: str, architecture: str) -> "PretrainedCfg":
    import timm  # noqa: PLC0415
    from timm.models import PretrainedCfg, get_pretrained_cfg  # noqa: PLC0415

    if not timm.is_model(architecture):
        bare = architecture.partition(".")[0]
        listed = ", ".join(PREFIX + near for near in get_close_matches(bare, timm.list_models(), n=5, cutoff=0.0))
        raise SettingsError(f"backbone={name!r} is not known: timm has no such network; the most similar are {listed}")
    try:
        return get_pretrained_cfg(architecture) or PretrainedCfg()
    except RuntimeError as error:
        raise SettingsError(f"backbone={name!r} is not known: {error}") from error


_DINOV2_NAMES: Final = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.", "blocks."),
    (r"^layernorm\.", "norm."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
)
_DINOV2_PART: Final = re.compile(r"(.+)\.attention\.attention\.(query|key|value)\.(weight|bias)")
_DINOV2_MARK: Final = "embeddings.cls_token"


def _from_huggingface_dinov2(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of Hugging Face's ``Dinov2Model``, alone or within another model; others stay as they are."""
    mark = next((name for name in tensors if name.endswith(_DINOV2_MARK)), None)
    if mark is None:
        return dict(tensors)
    prefix = mark.removesuffix(_DINOV2_MARK)
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = name.removeprefix(prefix)
        # The mask token served the pretraining; what is outside the model is another's head.
        if not name.startswith(prefix) or plain == "embeddings.mask_token":
            continue
        for pattern, replacement in _DINOV2_NAMES:
            plain = re.sub(pattern, replacement, plain)
        renamed[plain] = tensor
    joined = {name: tensor for name, tensor in renamed.items() if _DINOV2_PART.fullmatch(name) is None}
    for name in renamed:
        if (part := _DINOV2_PART.fullmatch(name)) is not None and part[2] == "query":
            parts = [
                renamed.get(f"{part[1]}.attention.attention.{each}.{part[3]}") for each in ("query", "key", "value")
            ]
            if all(tensor is not None for tensor in parts):
                joined[f"{part[1]}.attn.qkv.{part[3]}"] = torch.cat(cast("list[Tensor]", parts))
    return joined
