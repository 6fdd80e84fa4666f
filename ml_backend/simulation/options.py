"""What the user of ``ml-backend simulate`` asks for, read and checked: options in, a plan and its data out.

A plan in, the parts of its runs out: the only place of a study that names a concrete learner.
"""

import hashlib
import platform
import shlex
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from ml_backend.config import ProjectOptions
from ml_backend.errors import SettingsError
from ml_backend.images.source import FolderSource
from ml_backend.model.ensemble import make_learner
from ml_backend.model.features import FeatureTable
from ml_backend.model.learner import LearnerProgress, McDropoutLearner
from ml_backend.registry import STRATEGIES
from ml_backend.rounds.interfaces import Learner, Splitter, no_progress
from ml_backend.rounds.split import fixed_split, fold_split, stable_split
from ml_backend.simulation.dataset import DataSet, load_dataset, parse_task
from ml_backend.simulation.plan import PROFILES, StudyPlan

Loss = Literal["weighted", "unweighted"]
LOSSES: tuple[Loss, ...] = get_args(Loss)
PACKAGES = ("label-studio-active-learning", "torch", "torchvision", "numpy", "scipy", "scikit-learn")


@dataclass(frozen=True, slots=True)
class SimulateOptions:
    """The options of ``ml-backend simulate``, as they are typed.

    Attributes:
        strategies: names, separated by commas.
        seeds: how many (``10`` are 0 to 9), or which (``3,5,7``).
        loss: ``weighted``, ``unweighted`` or both; with both every run is done twice.
        imbalance: ``class=share``, separated by commas.
        budget: labels that a round trains on at most, or as a share of the training side, with a point.
        no_random: leave the strategy ``random`` out, which is else always added.
        workers: processes on this machine.
        redis: of workers anywhere; takes the place of ``workers``.
    """

    labels: Path
    out: Path
    images: Path | None = None
    ratings: Path | None = None
    features: Path | None = None
    strategies: str = "entropy,mean_std"
    seeds: str = "10"
    profile: str = "paper"
    task: str | None = None
    imbalance: str | None = None
    loss: str = "weighted"
    finetune: str | None = None
    backbone: str | None = None
    weights: str | None = None
    passes: int | None = None
    batch_size: int | None = None
    initial: int | None = None
    budget: str = "0.5"
    device: str = "auto"
    no_random: bool = False
    workers: int = 1
    redis: str | None = None

    def command(self) -> str:
        """The command that gives the same numbers; without what only spreads the work."""
        words = ["ml-backend", "simulate"]
        for field in fields(self):
            value = getattr(self, field.name)
            if (
                field.name in {"workers", "redis"}
                or value is None
                or (field.default is not MISSING and value == field.default)
            ):
                continue
            words += [f"--{field.name.replace('_', '-')}", *([] if value is True else [str(value)])]
        return shlex.join(words)


def make_plan(options: SimulateOptions) -> tuple[StudyPlan, DataSet]:
    """Read the tables, and settle everything that decides the numbers.

    Raises:
        SettingsError: an option or a table is wrong; names the value, what is wanted and the way out.
    """
    profile = PROFILES.get(options.profile)
    if profile is None:
        raise SettingsError(f"--profile {options.profile!r}: there is no such profile; known are {', '.join(PROFILES)}")
    strategies = _strategies(options)
    chosen = _project_options(options, strategies, profile.options)
    initial = profile.initial if options.initial is None else options.initial
    if initial < 2:
        raise SettingsError(
            f"--initial {initial}: every class needs 2 labels or more, one to train and one to validate"
        )
    imbalance = _imbalance(options.imbalance)
    data = load_dataset(
        options.images,
        options.labels,
        ratings=options.ratings,
        features=options.features,
        task=None if options.task is None else parse_task(options.task),
        imbalance=imbalance or None,
    )
    digests = dict(data.digests)
    if chosen.weights not in {"imagenet", "none"} and options.features is None:
        digests["weights"] = _sha256(Path(chosen.weights))
    plan = StudyPlan(
        command=options.command(),
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        images=_absolute(options.images),
        labels=str(options.labels.absolute()),
        ratings=_absolute(options.ratings),
        features=_absolute(options.features),
        task=options.task,
        imbalance=imbalance,
        strategies=strategies,
        losses=_losses(options.loss),
        seeds=_seeds(options.seeds),
        profile=options.profile,
        initial=initial,
        budget=_budget(options.budget, data, initial),
        options=chosen.model_dump(mode="json"),
        device=_device(options.device),
        digests=digests,
        versions={"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    )
    return plan, data


def load_data(plan: StudyPlan) -> DataSet:
    """The data of a plan, as a worker reads it again.

    Raises:
        SettingsError: a table is wrong, or has changed since the study began.
    """
    data = load_dataset(
        _path(plan.images),
        Path(plan.labels),
        ratings=_path(plan.ratings),
        features=_path(plan.features),
        task=None if plan.task is None else parse_task(plan.task),
        imbalance=plan.imbalance or None,
    )
    if changed := [name for name, digest in data.digests.items() if plan.digests.get(name) != digest]:
        raise SettingsError(f"the {' and the '.join(changed)} have changed since the study began: give a new --out")
    return data


def _strategies(options: SimulateOptions) -> tuple[str, ...]:
    names = _listed(options.strategies, "--strategies", "entropy,mean_std")
    for name in names:
        if name not in STRATEGIES:
            raise SettingsError(f"--strategies: there is no strategy {name!r}; known are {', '.join(STRATEGIES)}")
    if options.no_random or "random" in names:
        if options.no_random and "random" in names:
            raise SettingsError("--no-random, but --strategies names random: give one of the two")
        return names
    return ("random", *names)


def _project_options(options: SimulateOptions, strategies: Sequence[str], profile: dict[str, object]) -> ProjectOptions:
    given = {name: getattr(options, name) for name in ("finetune", "backbone", "weights", "passes", "batch_size")}
    chosen = profile | {name: value for name, value in given.items() if value is not None}
    if options.features is not None:
        if chosen.get("finetune", "auto") == "full":
            raise SettingsError(
                "--finetune full trains the whole network, which --features cannot feed: "
                "give --images instead, or --finetune head"
            )
        # On a GPU `auto` is full.
        chosen["finetune"] = "head" if chosen.get("finetune", "auto") == "auto" else chosen["finetune"]
    # One T for all: the passes are part of the network that the test side judges.
    needy = "batch_bald" if "batch_bald" in strategies else strategies[0]
    resolved = ProjectOptions.resolve({**chosen, "strategy": needy}, environ={})
    if resolved.weights not in {"imagenet", "none"}:
        # A worker may stand in another folder.
        resolved = resolved.model_copy(update={"weights": str(Path(resolved.weights).absolute())})
    for name in strategies:
        if resolved.passes < STRATEGIES[name].min_passes:
            raise SettingsError(f"--passes {resolved.passes}: {name} needs {STRATEGIES[name].min_passes} or more")
    return resolved


def _losses(text: str) -> tuple[Loss, ...]:
    names = _listed(text, "--loss", "weighted,unweighted")
    chosen = tuple(loss for loss in LOSSES if loss in names)
    if unknown := [name for name in names if name not in LOSSES]:
        raise SettingsError(f"--loss {unknown[0]!r}: wanted weighted, unweighted, or both with a comma between them")
    return chosen


def _seeds(text: str) -> tuple[int, ...]:
    parts = _listed(text, "--seeds", "10, or 3,5,7")
    if not all(part.isdecimal() for part in parts):
        raise SettingsError(f"--seeds {text!r}: wanted how many (10) or which (3,5,7), none below 0")
    numbers = tuple(int(part) for part in parts)
    if "," in text:
        return numbers
    if numbers[0] < 1:
        raise SettingsError("--seeds 0: a study needs 1 seed or more; for the seed 0 alone write `0,`")
    return tuple(range(numbers[0]))


def _imbalance(text: str | None) -> dict[str, float]:
    wanted = "wanted class=share, such as normal=0.14,severe=0.5"
    shares: dict[str, float] = {}
    for part in () if text is None else _listed(text, "--imbalance", "normal=0.14"):
        name, _, share = (piece.strip() for piece in part.partition("="))
        try:
            shares[name] = float(share)
        except ValueError:
            raise SettingsError(f"--imbalance {text!r}: {part!r} is no share; {wanted}") from None
    return shares


def _budget(text: str, data: DataSet, initial: int) -> int:
    train = sum(data.counts()["train"].values())
    wanted = f"wanted labels (200) or a share of the {train} training images (0.5)"
    try:
        labels = int(text) if text.strip().isdecimal() else int(float(text) * train + 1e-9)
        share = 0.0 if text.strip().isdecimal() else float(text)
    except ValueError:
        raise SettingsError(f"--budget {text!r} is no number: {wanted}") from None
    if not 0 <= share <= 1 or labels > train:
        raise SettingsError(f"--budget {text}: there are {train} training images; {wanted}")
    if labels < (start := initial * len(data.classes)):
        raise SettingsError(
            f"--budget {text} are {labels} labels, fewer than the {start} of the start set "
            f"({initial} of each of {len(data.classes)} classes): give a larger --budget or a smaller --initial"
        )
    if short := [f"{name} has {n}" for name, n in data.counts()["train"].items() if n < initial]:
        raise SettingsError(
            f"--initial {initial}: on the training side {' and '.join(short)}; give a smaller --initial or more images"
        )
    return labels


def _listed(text: str, option: str, example: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    if not parts:
        raise SettingsError(f"{option} {text!r} names nothing: wanted, for example, {example}")
    if twice := [part for part in parts if parts.count(part) > 1]:
        raise SettingsError(f"{option} {text!r} names {twice[0]} twice: once is enough")
    return parts


def _device(wanted: str) -> Literal["cpu", "cuda"]:
    if wanted not in {"auto", "cpu", "cuda"}:
        raise SettingsError(f"--device {wanted!r}: wanted auto, cpu or cuda")
    if wanted == "cpu":
        return "cpu"
    import torch  # noqa: PLC0415 - takes seconds, and wrong options are told at once

    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        raise SettingsError("--device cuda, but torch finds no usable GPU: give --device auto or cpu")
    return "cpu"


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise SettingsError(
            f"--weights {str(file)!r} cannot be read: {error}; give imagenet, none or a file"
        ) from error


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


MakeLearner: TypeAlias = Callable[[ProjectOptions], Learner]
"""A new learner for the options of a run, which hold its seed."""


@dataclass(frozen=True, slots=True)
class Study:
    """A plan, its data, and what learns."""

    plan: StudyPlan
    data: DataSet
    learner: MakeLearner

    def split(self) -> Splitter:
        """The validation side where the study has one; else validation is drawn from the labels, as in a live loop."""
        validation = [label.image.id for label in self.data.labels("val")]
        return fixed_split(validation) if validation else stable_split


def open_study(plan: StudyPlan, out: Path, data: DataSet | None = None) -> Study:
    """The study of a plan.

    Args:
        plan: what to do.
        out: folder of the results; decoded images and features are kept there too.
        data: of the plan, where it was read already.

    Raises:
        SettingsError: a table is wrong, or has changed since the study began.
    """
    data = load_data(plan) if data is None else data
    return Study(plan, data, learner_maker(plan, data, out))


def learner_maker(plan: StudyPlan, data: DataSet, out: Path) -> MakeLearner:
    """What makes the learner of a run: on the table of features where there is one, else on the images."""
    ids = [image.id for image in data.images]
    table = None if data.features is None else FeatureTable(ids, data.features)
    source = FolderSource(out if data.folder is None else data.folder)

    def make(options: ProjectOptions, seed: int, tell: LearnerProgress) -> McDropoutLearner:
        return McDropoutLearner(
            options, source, out / "cache", device=plan.device, seed=seed, progress=tell, table=table
        )

    def learner(options: ProjectOptions) -> Learner:
        folds = None if data.labels("val") else partial(fold_split, seed=options.seed)
        return make_learner(make, options, folds, no_progress)

    return learner
