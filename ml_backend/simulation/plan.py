"""The plan of a study: its runs, tables and options, kept as ``plan.json`` beside the results."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Final, Literal

from pydantic import Field

from ml_backend.analytics.few_labels import TRAINABLE
from ml_backend.config import ProjectOptions
from ml_backend.errors import SettingsError
from ml_backend.registry import add_function
from ml_backend.schemas import FrozenModel, ProjectKey, RoundRequest
from ml_backend.simulation.readers import Matrix

RANDOM: Final = "random"
BASELINE: Final = "baseline"  # no strategy: every label of the training side
LOCAL_PROJECT: Final = ProjectKey(id=1, created=0)
LEAST_TO_TRAIN: Final = 2
INITIAL: Final = 25  # images of every class in a given start set, as in Gabriel et al. 2025 (arXiv:2508.21263)
FREE: Final = {"command", "started_at", "strategies", "seeds", "budget", "baseline", "strategy"}
"""Fields of a plan, and of its options, that may differ where a study goes on; see ``StudyPlan.continued``."""

TABLES: Final = ("labels", "ratings", "features")
WITH_FLAGS: Final = (
    "profile", "finetune", "backbone", "weights", "passes", "batch_size", "min_labels_per_class", "cold_start",
)  # fmt: skip
"""Project options that have a flag of their own."""


class Run(FrozenModel):
    """One run: a strategy (or ``BASELINE``) with a seed and a loss."""

    strategy: str
    variant: str  # "" where the study compares strategies only
    seed: int
    loss: str

    @property
    def name(self) -> str:
        """Of its folder, and in the tables."""
        return "-".join([self.strategy, *([self.variant] if self.variant else []), f"s{self.seed}"])

    @property
    def is_baseline(self) -> bool:
        return self.strategy == BASELINE


class StudyPlan(FrozenModel):
    """Everything that decides the numbers of a study; written once, compared with every later command.

    Attributes:
        command: as typed.
        started_at: ISO 8601, UTC.
        images: folder, absolute, so that a worker finds it; likewise the tables.
        start: ``live``: nothing is labelled, and the cold start of the live loop finds the first labels, which count
            like all others; ``given``: a start set is found by the true labels, and a validation side is not counted.
        initial: labelled images of every class in a given start set; 0 in a live start.
        budget: labels that a round trains on at most, or their reads, as ``count`` says.
        readers: synthetic readers; where there are none, the ratings are played back, or the true labels.
        reads: answers an image at most; None for all. Where reads are counted, those of every training image.
        count: what the budget and the learning curves count.
        baseline: whether a network is trained on every label of the training side.
        options: ``ProjectOptions`` as JSON; each run has its own strategy, seed and loss.
        device: resolved, since another one gives other bits.
        digests: labels, ratings, features, weights, strategies as ``module:function`` (their source) -> SHA-256.
        versions: package -> version.
    """

    command: str
    started_at: str
    images: str | None
    labels: str
    ratings: str | None
    features: str | None
    task: str | None
    imbalance: dict[str, float]
    strategies: Annotated[tuple[str, ...], Field(min_length=1)]
    losses: Annotated[tuple[Literal["weighted", "unweighted"], ...], Field(min_length=1)]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    profile: str
    start: Literal["live", "given"] = "given"  # a plan without the field is older than the live start
    initial: Annotated[int, Field(ge=0)]
    budget: Annotated[int, Field(ge=1)]
    readers: dict[str, Matrix] = Field(default_factory=dict)
    reads: Annotated[int, Field(ge=1)] | None = None
    count: Literal["images", "reads"] = "images"
    baseline: bool = True
    options: dict[str, object]
    device: Literal["cpu", "cuda"]
    digests: dict[str, str]
    versions: dict[str, str]

    def add_functions(self) -> None:
        """Make the study's own functions strategies of this process.

        Raises:
            SettingsError: one cannot be imported, or has changed since the study began.
        """
        for name in self.strategies:
            if ":" in name and digest_of_function(name) != self.digests.get(name):
                raise _changed_code(name)

    @property
    def variants(self) -> tuple[str, ...]:
        return self.losses if len(self.losses) > 1 else ("",)

    @property
    def unit(self) -> str:
        """Of the budget and the curves, as a word."""
        return "reads" if self.count == "reads" else "labels"

    @property
    def cost(self) -> int:
        """What an image takes of the budget."""
        return self.reads or 1 if self.count == "reads" else 1

    def runs(self) -> Iterator[Run]:
        """Every run in the order of the tables: by strategy, variant and seed; the baselines last."""
        for strategy in (*self.strategies, *([BASELINE] if self.baseline else [])):
            for variant, loss in zip(self.variants, self.losses, strict=True):
                for seed in self.seeds:
                    yield Run(strategy=strategy, variant=variant, seed=seed, loss=loss)

    def in_turn(self) -> list[Run]:
        """Every run in the order of execution: seed by seed, so that half a study already compares strategies."""
        return sorted(self.runs(), key=lambda run: self.seeds.index(run.seed))

    def run(self, name: str) -> Run:
        """The run of that name.

        Raises:
            SettingsError: there is none.
        """
        for run in self.runs():
            if run.name == name:
                return run
        raise SettingsError(f"the study has no run {name!r}: it was begun by another command, `{self.command}`")

    def options_of(self, run: Run) -> ProjectOptions:
        """The options of one run."""
        own = {"loss": run.loss, "seed": run.seed} | ({} if run.is_baseline else {"strategy": run.strategy})
        return ProjectOptions.resolve({**self.options, **own}, environ={})

    def request(self, run: Run, classes: tuple[str, ...]) -> RoundRequest:
        """The request of a run's rounds; ``round_id`` is that of the first."""
        options = self.options_of(run)
        # Every field that is an option, also one that was added later.
        fields = RoundRequest.model_fields.keys() & ProjectOptions.model_fields.keys()
        chosen = {name: getattr(options, name) for name in fields}
        if self.start == "given" or run.strategy == RANDOM:
            # A given start set is complete. The reference is a team without active learning: its order is random from
            # the first label on, and its networks, which order nothing, are measured as soon as they can be trained.
            chosen |= {"min_labels_per_class": LEAST_TO_TRAIN, "cold_start": "random"}
        if self.start == "given":
            chosen["per_patient"] = 0  # the paper's batches are not bounded
        return RoundRequest(
            project=LOCAL_PROJECT,
            round_id="r000001",
            reason="labels",
            classes=classes,
            **chosen,
            options=options.model_dump(mode="json"),
        )

    def rounds(self, classes: int, train_images: int) -> int:
        """The most rounds of a run: those with no more labels than the budget, and with a pool left to rank."""
        start = classes * self.initial
        last = min(self.budget // self.cost, train_images - 1)
        return max(0, (last - start) // int(str(self.options["batch_size"])) + 1)

    def first_network(self) -> int:
        """The fewest labels on which a live start can train a network that ranks."""
        batch, least = (int(str(self.options[name])) for name in ("batch_size", "min_labels_per_class"))
        if set(self.strategies) == {RANDOM}:
            least = LEAST_TO_TRAIN
        return batch * math.ceil(TRAINABLE * least / batch)

    def continued(self, earlier: "StudyPlan") -> "StudyPlan":
        """The plan with which a study goes on under this command: the earlier one, or one that has grown.

        A study grows by more strategies, more seeds, a larger budget, and baselines if it had none; one of another
        version does not go on.

        Raises:
            SettingsError: the figures could not be compared with those of the study; names every difference.
        """
        now, before = self.model_dump(mode="json"), earlier.model_dump(mode="json")
        # The code of functions that the study grows by.
        known = before["digests"]
        for name in known.keys() & now["digests"].keys() & set(TABLES):  # compared by their contents
            now[name] = before[name]
        now["digests"] = {name: one for name, one in now["digests"].items() if ":" not in name or name in known}
        for name, digest in now["digests"].items():
            if ":" in name and digest != known[name]:
                raise _changed_code(name)
        changed = [f"{name}: {_short(old)} then, {_short(new)} now" for name, old, new in _changes(before, now)]
        grown, refused = self._growth(earlier)
        changed += refused
        if changed:
            raise SettingsError(
                f"--out holds a study begun with another command ({'; '.join(changed)}): give a new --out, repeat "
                f"`{earlier.command}`, or repeat it with more of --strategy, more --seeds or a larger --budget"
            )
        if grown:
            grown |= {"command": self.command, "digests": self.digests}
        moved = {name: path for name in TABLES if (path := getattr(self, name)) != getattr(earlier, name)}
        return earlier.model_copy(update={**moved, **grown}) if moved or grown else earlier

    def _growth(self, earlier: "StudyPlan") -> tuple[dict[str, object], list[str]]:
        """Fields in which this plan has more, and in words those in which it has less."""
        changed: list[str] = []
        grown: dict[str, object] = {}
        for name in ("strategies", "seeds"):
            mine, theirs = getattr(self, name), getattr(earlier, name)
            if lacking := [one for one in theirs if one not in mine]:
                changed.append(f"{_typed('', name)} lacks {_short(lacking)}")
            elif len(mine) > len(theirs):
                grown[name] = mine
        if self.budget < earlier.budget:
            changed.append(f"--budget: {earlier.budget} then, {self.budget} now")
        elif self.budget > earlier.budget:
            grown["budget"] = self.budget
        if earlier.baseline > self.baseline:
            changed.append("--no-baseline: the study has baselines")
        grown |= {"baseline": True} if self.baseline > earlier.baseline else {}
        return grown, changed


def _changed_code(name: str) -> SettingsError:
    return SettingsError(
        f"the code of {name} has changed since the study in --out began, which would mix the figures of two functions: "
        "give a new --out, or restore this one and give the new code another name, added to --strategy"
    )


def digest_of_function(target: str) -> str:
    """Make a function a strategy, see ``registry.add_function``; the SHA-256 of its source."""
    return hashlib.sha256(add_function(target).encode()).hexdigest()


def differences(first: StudyPlan, second: StudyPlan) -> list[tuple[str, str, str]]:
    """Options in which two studies differ besides strategies, seeds, budget and baselines, with both values."""
    # Paths say nothing: the digests tell whether the tables are the same.
    paths = {"labels", "ratings", "features", "images"}
    one, other = (plan.model_dump(mode="json", exclude=paths) for plan in (first, second))
    return [(name, _short(old), _short(new)) for name, old, new in _changes(one, other)]


def _changes(
    before: Mapping[str, object], now: Mapping[str, object], of: str = ""
) -> Iterator[tuple[str, object, object]]:
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old == new or name in FREE:
            continue
        if name == "readers" and not of:
            yield _typed(of, name), _panel(old), _panel(new)
        elif isinstance(old, dict) and isinstance(new, dict):
            yield from _changes(old, new, name)
        else:
            yield _typed(of, name), old, new


def _typed(of: str, name: str) -> str:
    """What is typed for a field of a plan."""
    if of == "versions":
        return f"version of {name}"
    if of == "imbalance":
        return f"--imbalance {name}"
    if of == "options" and name not in WITH_FLAGS:
        return "--loss" if name == "loss" else f"--option {name}"
    if ":" in name:
        return f"code of {name}"
    flag = {"losses": "--loss", "strategies": "--strategy"}.get(name, f"--{name.replace('_', '-')}")
    return f"content of {flag}" if of == "digests" else flag


def _panel(readers: object) -> str:
    if not isinstance(readers, Mapping) or not readers:
        return "none"
    digest = hashlib.sha256(json.dumps(readers, sort_keys=True).encode()).hexdigest()
    return f"matrices {digest[:8]} of {','.join(readers)}"


def _short(value: object) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
