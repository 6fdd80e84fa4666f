"""Options of a project: its owner's choice."""

import json
import os
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from ml_backend.config.settings import explain
from ml_backend.errors import SettingsError
from ml_backend.registry import STRATEGIES, plugins, strategy_spec

OPTION_PREFIX = "model_"  # of an option that is an attribute of the Choices tag


def _known_strategy(name: str) -> str:
    return strategy_spec(name).name


StrategyName = Annotated[
    str, AfterValidator(_known_strategy), WithJsonSchema({"type": "string", "enum": list(STRATEGIES)})
]


CONSENSUS_RULES = tuple(sorted({"median", *plugins("consensus")}))
"""Names of the consensus rules, of this package and of installed ones; not imported here."""


def _known_rule(name: str) -> str:
    if name not in CONSENSUS_RULES:
        raise ValueError(f"unknown consensus rule {name!r}: known are {', '.join(CONSENSUS_RULES)}")
    return name


ConsensusName = Annotated[
    str, AfterValidator(_known_rule), WithJsonSchema({"type": "string", "enum": list(CONSENSUS_RULES)})
]


class ProjectOptions(BaseModel):
    """Options of a project.

    Set as ``extra_params`` of the connection, else as ``model_<name>`` attributes of the Choices tag, else as
    ``AL_<NAME>`` in the backend's environment, else as the default below.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: StrategyName = Field("entropy", description="acquisition function that ranks the pool")
    batch_size: int = Field(20, ge=1, le=1000, description="images that a round chooses together")
    reserve: int | Literal["all"] = Field(
        80, description="ranked images published after the batch, so that readers never run dry; or `all`"
    )
    retrain_after: int = Field(20, ge=1, description="changed annotations that start the next round")
    min_labels_per_class: int = Field(
        25, ge=2, description="labels that every class needs before the first training; random order until then"
    )
    cold_start: Literal["random", "typiclust"] = Field(
        "random", description="order until then: random, or the most typical image of every cluster first"
    )
    control_share: float = Field(
        0.0,
        ge=0.0,
        le=0.5,
        description="fraction of the published images drawn at random, as a holdout that measures the gain",
    )
    noise_every: int = Field(
        5, ge=0, description="measure the variation between seeds again every so many trained rounds; 0: never"
    )
    unreadable: str = Field(
        "unreadable",
        description="the choice that means `no label can be given`, by its value or its alias; never a class",
    )
    ignore_classes: tuple[str, ...] = Field(
        default_factory=tuple,
        description="classes that are not learned, by value or alias, with commas between them: their labels are left "
        "out until the option is taken back",
    )
    consensus: ConsensusName = Field("median", description="rule that turns several readers' answers into a label")
    ground_truth: Literal["override", "reader", "ignore"] = Field(
        "override",
        description="what an annotation marked as ground truth, as Label Studio marks every imported one, does: "
        "`override` the readers, count as one more `reader`'s answer, or `ignore`: it is left out",
    )
    annotations_per_task: int = Field(1, ge=1, le=20, description="readers an image is shown to")
    prelabel: bool = Field(
        False,
        description="show the network's answer to the reader, pre-selected: it biases, and the hotkey of that very "
        "class switches it off",
    )
    passes: int = Field(
        # T networks tell apart log T nats at most: too little for a batch of 20 where T = 50.
        default_factory=lambda chosen: 100 if chosen.get("strategy") == "batch_bald" else 50,
        ge=2,
        le=1000,
        description="stochastic forward passes T; by default 50, and 100 for `batch_bald`",
    )
    committee: int = Field(
        1, ge=1, le=20, description="networks, each validated on other labels; the passes are shared among them"
    )
    dropout: float = Field(0.5, gt=0.0, lt=1.0, description="dropout rate of the head")
    backbone: str = Field("resnet50", min_length=1, description="torchvision name of the network")
    weights: str = Field("imagenet", min_length=1, description="`imagenet`, `none`, or a file (safetensors or torch)")
    finetune: Literal["auto", "head", "full"] = Field(
        "auto", description="train the head on cached features, or the whole network; auto: full on a GPU"
    )
    loss: Literal["weighted", "unweighted"] = Field(
        "weighted", description="cross-entropy, weighted by inverse class frequency or not"
    )
    retrain: Literal["scratch", "warm"] = Field(
        "scratch", description="begin each round anew, or go on from the last round's network: faster, but it drifts"
    )
    epochs: int = Field(50, ge=1, description="epochs at most; three times as many where only the head is trained")
    min_epochs: int = Field(1, ge=1, description="epochs before training may stop; likewise, and then at least 10")
    patience: int = Field(
        3, ge=1, description="epochs without a better validation loss before training stops, once it no longer guesses"
    )
    learning_rate: float | None = Field(
        None, gt=0.0, description="Adam's learning rate; by default 0.0001, and 0.0003 where only the head is trained"
    )
    weight_decay: float = Field(1e-4, ge=0.0, description="Adam's weight decay")
    train_batch: int = Field(32, ge=2, description="images in a training step")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="arithmetic of the network; auto: bfloat16 on a GPU that multiplies it itself"
    )
    channels_last: bool = Field(True, description="memory layout that convolutions are faster in")
    image_side: int = Field(224, ge=32, le=1024, description="side of the network's square input in pixels")
    validation_share: float = Field(0.2, gt=0.0, lt=1.0, description="share of the patients kept for validation")
    seed: int = Field(0, ge=0, description="seed of the split, the training, the masks and every tie")

    @field_validator("ignore_classes", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        """Text is split at its commas; a list, also as JSON in text, may hold names with commas in them."""
        parts = value
        if isinstance(value, str):
            try:
                parts = json.loads(value) if value.lstrip().startswith("[") else value.split(",")
            except ValueError:
                parts = value.split(",")  # names that begin with a bracket
        if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
            raise ValueError("must be names of classes, with commas between them")
        return tuple(dict.fromkeys(name for part in parts if (name := part.strip())))

    @field_validator("reserve")
    @classmethod
    def _reserve_not_negative(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 0:
            raise ValueError("must be 0 or more, or 'all'")
        return value

    @field_validator("committee")
    @classmethod
    def _two_passes_each(cls, value: int, info: ValidationInfo) -> int:
        if value > 1 and 2 * value > (passes := info.data.get("passes", 2 * value)):
            raise ValueError(f"must be at most half of passes, which is {passes}: every network draws two or more")
        return value

    @field_validator("retrain")
    @classmethod
    def _committees_begin_anew(cls, value: str, info: ValidationInfo) -> str:
        if value == "warm" and (networks := info.data.get("committee", 1)) > 1:
            raise ValueError(f"must be scratch with committee={networks}: a warm start goes on from one network")
        return value

    @field_validator("min_epochs")
    @classmethod
    def _no_more_than_all(cls, value: int, info: ValidationInfo) -> int:
        if value > (epochs := info.data.get("epochs", value)):
            raise ValueError(f"must be at most epochs, which is {epochs}")
        return value

    @classmethod
    def resolve(
        cls,
        extra_params: Mapping[str, object] | None = None,
        attributes: Mapping[str, str] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Self:
        """Merge the three sources, the most specific first, and validate the whole.

        Args:
            extra_params: of the connection; keys are option names.
            attributes: of the Choices tag; only those that begin with ``model_`` count.
            environ: the process environment by default; only ``AL_<NAME>`` of a known option counts.

        Raises:
            SettingsError: names every wrong key and value, where each came from, and what is allowed.
        """
        environ = os.environ if environ is None else environ
        layers: list[tuple[str, dict[str, object]]] = [
            ("environment", {n: environ[v] for n in cls.model_fields if (v := f"AL_{n.upper()}") in environ}),
            (
                "Choices tag",
                {
                    k.removeprefix(OPTION_PREFIX): v
                    for k, v in (attributes or {}).items()
                    if k.startswith(OPTION_PREFIX)
                },
            ),
            ("extra_params", dict(extra_params or {})),
        ]
        merged: dict[str, object] = {}
        origin: dict[str, str] = {}
        for name, layer in layers:
            merged |= layer
            origin |= dict.fromkeys(layer, name)
        try:
            return cls.model_validate(merged)
        except ValidationError as error:
            raise SettingsError(explain(error, cls.model_fields, str, origin)) from None
