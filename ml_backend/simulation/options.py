"""The options of ``ml-backend simulate``: parsed and checked, they become a plan and its data."""

import platform
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final, Literal, get_args

from ml_backend.config import PROFILES, ProjectOptions
from ml_backend.config.settings import NEED_ORDER
from ml_backend.errors import SettingsError, did_you_mean
from ml_backend.images.dataset import copy_files
from ml_backend.registry import STRATEGIES
from ml_backend.simulation.dataset import DataSet, load_dataset, parse_task, sha256
from ml_backend.simulation.plan import INITIAL, WITH_FLAGS, StudyPlan, digest_of_function
from ml_backend.simulation.readers import Matrix, answers_of, read_readers
from ml_backend.simulation.tables import first_ten, read_labels

Loss = Literal["weighted", "unweighted"]
LOSSES: Final[tuple[Loss, ...]] = get_args(Loss)
OF_THE_STUDY: Final = {"strategy": "--strategy", "seed": "--seeds", "loss": "--loss"}
SEEDS: Final = "20"
PACKAGES: Final = ("label-studio-active-learning", "torch", "torchvision", "numpy", "scipy", "scikit-learn")


@dataclass(frozen=True, slots=True)
class SimulateOptions:
    """The options of ``ml-backend simulate``, as strings of the command line; its ``--help`` describes all of them."""

    labels: Path
    out: Path
    images: Path | str | None = None
    ratings: Path | None = None
    features: Path | None = None
    strategies: str = "entropy,mean_std"
    seeds: str | None = None
    profile: str = "paper"
    start: str | None = None
    task: str | None = None
    imbalance: str | None = None
    loss: str = "weighted"
    finetune: str | None = None
    backbone: str | None = None
    weights: str | None = None
    passes: int | None = None
    batch_size: int | None = None
    initial: int | None = None
    min_labels_per_class: int | None = None
    cold_start: str | None = None
    option: Sequence[str] = ()
    budget: str = "0.5"
    device: str = "auto"
    no_random: bool = False
    readers: str | None = None
    reads: int | None = None
    count: str = "images"
    no_baseline: bool = False
    workers: int = 1
    redis: str | None = None

    def command(self) -> str:
        """The command that gives the same numbers; without ``workers`` and ``redis``."""
        words = ["ml-backend", "simulate"]
        for field in fields(self):
            value = getattr(self, field.name)
            is_default = value is None or (field.default is not MISSING and value == field.default)
            if field.name in {"workers", "redis"} or is_default:
                continue
            for one in value if field.name == "option" else [value]:
                flag = "strategy" if field.name == "strategies" else field.name.replace("_", "-")
                words += [f"--{flag}", *([] if one is True else [str(one)])]
        return shlex.join(words)


def make_plan(options: SimulateOptions) -> tuple[StudyPlan, DataSet]:
    """Read the tables, and settle everything that decides the numbers.

    Raises:
        SettingsError: an option or a table is wrong; gives the value, the expected one and the way out.
    """
    _check(options)
    start = _start(options)
    strategies = _strategies(options)
    chosen = _project_options(options, strategies)
    initial = INITIAL if options.initial is None else options.initial
    if start == "live":
        initial = 0
    elif initial < 2:
        raise SettingsError(
            f"--initial {initial}: every class needs 2 labels or more, one to train and one to validate"
        )
    imbalance = _imbalance(options.imbalance)
    images = _local_images(options)
    data = load_dataset(
        images,
        options.labels,
        ratings=options.ratings,
        features=options.features,
        task=None if options.task is None else parse_task(options.task),
        imbalance=imbalance,
        join_validation=start == "live",
    )
    _check_live_only(chosen, data.classes)
    readers = _readers(options, data)
    reads, cost = options.reads, 1
    if options.count == "reads":
        reads = cost = _reads_of_every_image(data, readers, reads)
    if options.reads and (few := [i for i, times in _ratings_of(data).items() if times < options.reads]):
        note = (
            f"{len(few)} images have fewer than {options.reads} ratings, all of which are used: {first_ten(few, ', ')}"
        )
        data = replace(data, notes=(*data.notes, note))
    digests = {**data.digests, **{name: digest_of_function(name) for name in strategies if ":" in name}}
    if chosen.weights not in {"imagenet", "none"} and options.features is None:
        try:
            digests["weights"] = sha256(Path(chosen.weights))
        except OSError as error:
            raise SettingsError(
                f"--weights {chosen.weights!r} cannot be read: {error}; give imagenet, none or a file"
            ) from error
    plan = StudyPlan(
        command=options.command(),
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        images=_absolute(images),
        labels=str(options.labels.absolute()),
        ratings=_absolute(options.ratings),
        features=_absolute(options.features),
        task=options.task,
        imbalance=imbalance,
        strategies=strategies,
        losses=_losses(options.loss),
        seeds=_seeds(SEEDS if options.seeds is None else options.seeds),
        profile=options.profile,
        start=start,
        initial=initial,
        budget=_budget(options, data, initial, cost),
        readers=readers,
        reads=reads,
        count=options.count,
        baseline=not options.no_baseline,
        options=chosen.model_dump(mode="json"),
        device=usable_device(options.device),
        digests=digests,
        versions={"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    )
    if plan.start == "live" and plan.budget < (first := plan.first_network() * plan.cost):
        raise SettingsError(
            f"--budget {options.budget}: the first network needs {first} {plan.unit}, not {plan.budget} "
            "(--min-labels-per-class of two classes, in batches of --batch-size); raise --budget, or lower one of these"
        )
    return plan, data


def _check(options: SimulateOptions) -> None:
    if options.workers < 1:
        raise SettingsError(f"--workers {options.workers}: expected 1 or more")
    if options.readers is not None and options.ratings is not None:
        raise SettingsError(
            "--readers and --ratings: synthetic readers answer instead of real ones; give one of the two"
        )
    if options.profile not in PROFILES:
        known = f"known are {', '.join(PROFILES)}{did_you_mean(options.profile, PROFILES)}"
        raise SettingsError(f"--profile {options.profile!r}: there is no such profile; {known}")


def _start(options: SimulateOptions) -> Literal["live", "given"]:
    if options.start in {None, "live"}:
        if options.initial is not None:
            raise SettingsError(
                f"--initial {options.initial}: a live start has no start set, its labels are found; give "
                f"--min-labels-per-class {options.initial} for the labels before the first network, or --start given"
            )
        return "live"
    if options.start == "given":
        for name in ("min_labels_per_class", "cold_start"):
            if (value := getattr(options, name)) is not None:
                raise SettingsError(
                    f"--{name.replace('_', '-')} {value}: a given start has no cold start; leave it away, or give "
                    "--start live"
                )
        if (bound := _others(options.option).get("per_patient")) not in {None, "0"}:
            raise SettingsError(
                f"--option per_patient={bound}: batches of a given start, the paper's protocol, are not bounded; leave "
                "it away, or give --start live"
            )
        return "given"
    raise SettingsError(f"--start {options.start!r}: expected live or given")


def _strategies(options: SimulateOptions) -> tuple[str, ...]:
    names = _listed(options.strategies, "--strategy", "entropy,mean_std")
    for name in names:
        if ":" in name:
            digest_of_function(name)
        elif name not in STRATEGIES:
            raise SettingsError(
                f"--strategy: there is no strategy {name!r}; known are {', '.join(STRATEGIES)}, or module:function"
                f"{did_you_mean(name, STRATEGIES)}"
            )
    if options.no_random and "random" in names:
        raise SettingsError("--no-random, but --strategy names random: give one of the two")
    return names if options.no_random or "random" in names else ("random", *names)


def _project_options(options: SimulateOptions, strategies: Sequence[str]) -> ProjectOptions:
    given = {name: getattr(options, name) for name in WITH_FLAGS}
    chosen = {name: value for name, value in given.items() if value is not None} | _others(options.option)
    if options.features is not None:
        if chosen.get("finetune") == "full":
            raise SettingsError(
                "--finetune full trains the whole network, which --features cannot feed: "
                "give --images instead, or --finetune head"
            )
        if ignored := [f"--{name} {chosen[name]}" for name in ("weights", "backbone") if name in chosen]:
            raise SettingsError(
                f"{ignored[0]}: the network trains on --features, whatever they were made with; leave it away, or "
                "give --images instead of --features"
            )
        # On a GPU `auto` is full.
        chosen["finetune"] = "head" if chosen.get("finetune", "auto") == "auto" else chosen["finetune"]
    # One T for all strategies: the passes are part of the network that is measured on the test side.
    strategy = "batch_bald" if "batch_bald" in strategies else strategies[0]
    resolved = ProjectOptions.resolve(
        {**chosen, "strategy": strategy},
        environ={},
        spell=lambda name: f"--{name.replace('_', '-')}" if name in WITH_FLAGS else f"-o {name}",
    )
    if resolved.weights not in {"imagenet", "none"}:
        # A worker may run in another folder.
        resolved = resolved.model_copy(update={"weights": str(Path(resolved.weights).absolute())})
    for name in strategies:
        if resolved.passes < STRATEGIES[name].min_passes:
            raise SettingsError(f"--passes {resolved.passes}: {name} needs {STRATEGIES[name].min_passes} or more")
    return resolved


def _check_live_only(chosen: ProjectOptions, classes: Sequence[str]) -> None:
    """Refuse what a study would ignore, or a live project refuses."""
    if not chosen.ordered(classes) and chosen.consensus in NEED_ORDER:
        raise SettingsError(
            f"-o ordinal=false: consensus={chosen.consensus} needs the order of the classes; give -o "
            "consensus=majority or dawid_skene too, or leave -o ordinal=false away"
        )
    if not isinstance(chosen.ordinal, bool):
        raise SettingsError(
            f"-o ordinal={','.join(chosen.ordinal)}: the classes of a study have the order of --task; leave it away"
        )
    if chosen.reread_share:
        raise SettingsError(
            f"-o reread_share={chosen.reread_share:g}: a study reads no image again later; leave it away, and give "
            "--reads for the answers an image"
        )


def _others(pairs: Sequence[str]) -> dict[str, object]:
    """Options as ``NAME=VALUE`` that have no flag of their own."""
    found: dict[str, object] = {}
    for text in pairs:
        name, equals, value = (piece.strip() for piece in text.partition("="))
        if not (equals and name):
            raise SettingsError(f"--option {text!r}: expected NAME=VALUE, for example committee=5")
        if name in OF_THE_STUDY or name in WITH_FLAGS:
            flag = OF_THE_STUDY.get(name, f"--{name.replace('_', '-')}")
            raise SettingsError(f"--option {text!r}: {name} has a flag of its own; give {flag}")
        if name in found:
            raise SettingsError(f"--option {text!r}: {name} is given twice; once is enough")
        found[name] = value
    return found


def _losses(text: str) -> tuple[Loss, ...]:
    names = _listed(text, "--loss", "weighted,unweighted")
    if unknown := [name for name in names if name not in LOSSES]:
        raise SettingsError(f"--loss {unknown[0]!r}: expected weighted, unweighted, or both with a comma between them")
    return tuple(loss for loss in LOSSES if loss in names)


def _seeds(text: str) -> tuple[int, ...]:
    parts = _listed(text, "--seeds", "10, or 3,5,7")
    if not all(part.isdecimal() for part in parts):
        raise SettingsError(f"--seeds {text!r}: expected how many (10) or which (3,5,7), none below 0")
    numbers = tuple(int(part) for part in parts)
    if "," in text:
        return numbers
    if numbers[0] < 1:
        raise SettingsError("--seeds 0: a study needs 1 seed or more; for the seed 0 alone write `0,`")
    return tuple(range(numbers[0]))


def _imbalance(text: str | None) -> dict[str, float]:
    shares: dict[str, float] = {}
    for part in () if text is None else _listed(text, "--imbalance", "normal=0.14"):
        name, _, share = (piece.strip() for piece in part.partition("="))
        try:
            shares[name] = float(share)
        except ValueError:
            raise SettingsError(
                f"--imbalance {text!r}: {part!r} is not a fraction; expected class=share, as in normal=0.14,severe=0.5"
            ) from None
    return shares


def _readers(options: SimulateOptions, data: DataSet) -> dict[str, Matrix]:
    """The synthetic readers, checked against the other options."""
    if options.count not in {"images", "reads"}:
        raise SettingsError(f"--count {options.count!r}: expected images or reads")
    readers = {} if options.readers is None else read_readers(options.readers, data.classes)
    for flag, given in (("--count reads", options.count == "reads"), (f"--reads {options.reads}", options.reads)):
        if given and not readers and not data.ratings:
            raise SettingsError(f"{flag} needs readers: give --ratings, or --readers such as good*4,poor")
    most = len(readers) or max(_ratings_of(data).values(), default=1)
    if options.reads is not None and not 1 <= options.reads <= most:
        raise SettingsError(f"--reads {options.reads}: expected 1 to {most}, the most readers of an image")
    return readers


def _ratings_of(data: DataSet) -> Counter[str]:
    """Number of ratings by image."""
    return Counter(rating.image.id for rating in data.ratings)


def _reads_of_every_image(data: DataSet, readers: Mapping[str, Matrix], reads: int | None) -> int:
    """Answers about each training image, as many for all: curves of other seeds would have other counts of reads."""
    times = Counter(answer.image.id for answer in answers_of(data, readers, reads, 0))
    found = {times[label.image.id] for label in data.labels("train")}
    fewest, most = min(found), max(found)
    if fewest < most:
        raise SettingsError(
            f"--count reads: training images have {fewest} to {most} ratings each, so that the runs would have no "
            f"count of reads in common; give --reads {fewest}, the fewest ratings of a training image, or --count "
            "images"
        )
    return fewest


def _budget(options: SimulateOptions, data: DataSet, initial: int, cost: int) -> int:
    """The budget; ``cost`` is what an image takes of it."""
    text, counts, reads = options.budget, data.counts()["train"], options.count == "reads"
    train, unit = sum(counts.values()) * cost, "reads of the training images" if reads else "training images"
    words, of_each = ("reads", f", {cost} reads an image") if reads else ("labels", "")
    expected = f"expected {words} (200) or a fraction of the {train} {unit} (0.5)"
    try:
        budget = int(text) if text.strip().isdecimal() else int(float(text) * train + 1e-9)
        share = 0.0 if text.strip().isdecimal() else float(text)
    except ValueError:
        raise SettingsError(f"--budget {text!r} is not a number: {expected}") from None
    if budget < 1:
        raise SettingsError(f"--budget {text}: {expected}")
    if share > 1 or budget > train:
        raise SettingsError(f"--budget {text}: there are {train} {unit}; {expected}")
    if budget < (start := initial * len(data.classes) * cost):
        raise SettingsError(
            f"--budget {text} is {budget} {words}, fewer than the {start} of the start set "
            f"({initial} of each of {len(data.classes)} classes{of_each}): give a larger --budget or a smaller "
            "--initial"
        )
    if short := [f"{name} has {n}" for name, n in counts.items() if n < initial]:
        raise SettingsError(
            f"--initial {initial}: on the training side {' and '.join(short)}; give a smaller --initial or more images"
        )
    return budget


def _listed(text: str, option: str, example: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    if not parts:
        raise SettingsError(f"{option} {text!r} names nothing: expected, for example, {example}")
    if twice := [part for part in parts if parts.count(part) > 1]:
        raise SettingsError(f"{option} {text!r} names {twice[0]} twice: once is enough")
    return parts


def usable_device(name: str) -> Literal["cpu", "cuda"]:
    """The device that ``--device`` means here.

    Raises:
        SettingsError: it is another word, or there is no such device.
    """
    if name not in {"auto", "cpu", "cuda"}:
        raise SettingsError(f"--device {name!r}: expected auto, cpu or cuda")
    if name == "cpu":
        return "cpu"
    import torch  # noqa: PLC0415 - takes seconds, and wrong options are refused at once

    if torch.cuda.is_available():
        return "cuda"
    if name == "cuda":
        raise SettingsError("--device cuda, but torch finds no usable GPU: give --device auto or cpu")
    return "cpu"


def _local_images(options: SimulateOptions) -> Path | None:
    """The folder of the images; those of a bucket are copied into the study's own first."""
    if "://" not in str(options.images):
        return None if options.images is None else Path(options.images)
    meant = () if options.task is None else parse_task(options.task).of
    rows = read_labels(options.labels, rated=options.ratings is not None, meant=meant)
    return copy_files(str(options.images), [row.path for row in rows], options.out / "images")


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())
