"""The experiments that ship: each an outline, the studies that answer its question, and how these are read."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Final

from ml_backend.errors import SettingsError
from ml_backend.settings import ProjectOptions
from ml_backend.strategies import STRATEGIES
from ml_backend.study.experiment_answers import read_centres, read_imbalance, read_latency, read_losses, read_paper
from ml_backend.study.experiment_ground import Arm, Ground
from ml_backend.study.experiment_outlines import OUTLINES, Outline
from ml_backend.study.experiment_profiles import BEST, PAPER, read_profiles
from ml_backend.study.experiment_reading import Finished, Reading
from ml_backend.study.experiment_tables import across_centres, two_centres, with_pool_of, without_validation
from ml_backend.study.experiment_uncertainty import read_uncertainty
from ml_backend.study.plan import PROFILES

__all__ = ["EXPERIMENTS", "Experiment"]

SEVEN: Final = "entropy,mean_std,bald,batch_bald,least_confidence,margin,variation_ratios"
POOL: Final = 1_000
QUICK_POOL: Final = 100
FEW_INITIAL: Final = 10  # of a class that is hardly there


@dataclass(frozen=True, slots=True)
class Experiment:
    """One of the experiments.

    Attributes:
        outline: what it asks and expects.
        arms: its studies.
        read: what they say.
        seeds: unless others are asked for.
        classes: that it is about; None where any number will do.
        films: that are drawn where there are no tables.
        centres: that they come from.
    """

    outline: Outline
    arms: Callable[[Ground], Iterable[Arm]]
    read: Callable[[Sequence[Finished]], Reading]
    seeds: int = 10
    classes: int | None = None
    films: int = 1_000
    centres: int = 4  # other machines make a pool harder to learn from few labels


def _paper(strategies: str) -> Callable[[Ground], Sequence[Arm]]:
    return lambda ground: [ground.arm(strategies=strategies, imbalance=ground.paper_shares())]


def _losses(ground: Ground) -> Sequence[Arm]:
    return [ground.arm(strategies="entropy", loss="weighted,unweighted", imbalance=ground.paper_shares())]


def _latency(ground: Ground) -> Sequence[Arm]:
    # Side by side they would wait for each other.
    ground = replace(ground, workers=1)
    pool, initial = (QUICK_POOL if ground.quick else POOL), ground.initial()
    tables = with_pool_of(
        ground.tables, ground.tables.load(), pool, initial, ground.out / "tables" / f"pool-{pool}.csv"
    )
    every = ",".join(name for name in STRATEGIES if name != "random")
    return [ground.arm(strategies=every, tables=tables, one_round=True)]


def _imbalance(ground: Ground) -> Iterator[Arm]:
    rare = ground.tables.classes[0]
    for percent in (5, 2):
        yield ground.arm(
            name=f"{percent:02d}-{100 - percent}",
            title=f"{percent} / {100 - percent}",
            strategies="entropy",
            initial=FEW_INITIAL,
            loss="weighted,unweighted",
            imbalance=f"{rare}={percent / 100:g}",
            budget="0.25",
        )


def _uncertainty_study(ground: Ground) -> Sequence[Arm]:
    if ground.tables.ratings is None:
        raise SettingsError("uncertainty-quality holds a network against readers: give --ratings with path,rater,label")
    return [ground.arm(strategies="entropy", one_round=True)]


def _centres(ground: Ground) -> Iterator[Arm]:
    data = ground.tables.load()
    centres = tuple(enumerate(two_centres(data), start=1))
    for (there, tested), (here, trained) in product(centres, repeat=2):
        name = f"{here}-to-{there}"
        yield ground.arm(
            name=name,
            title=f"{trained} -> {tested}",
            strategies="entropy",
            tables=across_centres(ground.tables, data, trained, tested, ground.out / "tables" / f"{name}.csv"),
        )


def _profiles(ground: Ground) -> Iterator[Arm]:
    data = ground.tables.load()
    tables = without_validation(ground.tables, data, ground.out / "tables" / "two-sides.csv")
    # Each network is validated on a label of every class.
    networks = ProjectOptions.model_validate(PROFILES[BEST].options).committee
    for profile in (PAPER, BEST):
        yield ground.arm(
            name=profile,
            title=profile,
            strategies="entropy",
            tables=tables,
            least_initial=networks,
            budget="0.25",
            profile=profile,
        )


def _by_name(experiments: Sequence[Experiment]) -> dict[str, Experiment]:
    return {one.outline.name: one for one in experiments}


EXPERIMENTS: Final = _by_name(
    [
        Experiment(
            OUTLINES["paper-binary"],
            arms=_paper("entropy,mean_std,bald,batch_bald"),
            read=read_paper("entropy"),
            classes=2,
        ),
        Experiment(
            OUTLINES["paper-multiclass"],
            arms=_paper(SEVEN),
            read=read_paper("mean_std"),
            classes=3,
        ),
        Experiment(
            OUTLINES["loss-ablation"],
            arms=_losses,
            read=read_losses,
        ),
        Experiment(
            OUTLINES["profiles"],
            arms=_profiles,
            read=read_profiles,
        ),
        Experiment(
            OUTLINES["acquisition-latency"],
            arms=_latency,
            read=read_latency,
            seeds=5,
            films=1_850,
        ),
        Experiment(
            OUTLINES["extreme-imbalance"],
            arms=_imbalance,
            read=read_imbalance,
            classes=2,
            films=2_000,
        ),
        Experiment(
            OUTLINES["uncertainty-quality"],
            arms=_uncertainty_study,
            read=read_uncertainty,
            centres=1,
        ),
        Experiment(
            OUTLINES["cross-centre"],
            arms=_centres,
            read=read_centres,
            films=1_200,
            centres=2,
        ),
    ]
)
