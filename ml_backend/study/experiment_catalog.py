"""The experiments that ship: each a question, the studies that answer it, and what is expected of them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Final

from ml_backend.errors import SettingsError
from ml_backend.settings import ProjectOptions
from ml_backend.strategies import STRATEGIES
from ml_backend.study.experiment_answers import read_centres, read_imbalance, read_latency, read_losses, read_paper
from ml_backend.study.experiment_ground import Arm, Ground
from ml_backend.study.experiment_profiles import BEST, PAPER, read_profiles
from ml_backend.study.experiment_reading import Finished, Reading
from ml_backend.study.experiment_tables import across_centres, two_centres, with_pool_of, without_validation
from ml_backend.study.experiment_uncertainty import read_uncertainty
from ml_backend.study.plan import PROFILES

__all__ = ["EXPERIMENTS", "Experiment", "markdown"]

SEVEN: Final = "entropy,mean_std,bald,batch_bald,least_confidence,margin,variation_ratios"
POOL: Final = 1_000
QUICK_POOL: Final = 100
FEW_INITIAL: Final = 10  # of a class that is hardly there


@dataclass(frozen=True, slots=True)
class Experiment:
    """One of the experiments.

    Attributes:
        name: as it is typed.
        question: in a sentence.
        runs: what it does, in words.
        time: that it takes on drawn films, in words.
        expectation: what should come out, in words.
        arms: its studies.
        read: what they say.
        seeds: unless others are asked for.
        classes: that it is about; None where any number will do.
        films: that are drawn where there are no tables.
        centres: that they come from.
    """

    name: str
    question: str
    runs: str
    time: str
    expectation: str
    arms: Callable[[Ground], Iterable[Arm]]
    read: Callable[[Sequence[Finished]], Reading]
    seeds: int = 10
    classes: int | None = None
    films: int = 1_000
    centres: int = 4  # other machines make a pool harder to learn from few labels


def markdown() -> str:
    """The catalogue as the page ``docs/experiments.md`` has it."""
    return "\n\n".join(
        f"### `ml-backend experiment {one.name}`\n\n{one.question}\n\n- Runs: {one.runs}\n- Time: {one.time}\n"
        f"- Expected: {one.expectation}"
        for one in EXPERIMENTS.values()
    )


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


def _uncertainty(ground: Ground) -> Sequence[Arm]:
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
    return {one.name: one for one in experiments}


EXPERIMENTS: Final = _by_name(
    [
        Experiment(
            name="paper-binary",
            question="Does an acquisition function need fewer labels than chance to tell normal from diseased films?",
            runs="entropy, mean_std, bald and batch_bald against random, normal / diseased at 14 / 86 %.",
            time="about 15 minutes on one core, for 10 seeds of drawn films; half of that with `--workers 2`.",
            expectation="entropy, which the paper found best here, lies ahead of random in AU ROC by more than luck.",
            arms=_paper("entropy,mean_std,bald,batch_bald"),
            read=read_paper("entropy"),
            classes=2,
        ),
        Experiment(
            name="paper-multiclass",
            question="Which of the paper's seven functions needs the fewest labels for three degrees of severity?",
            runs="all seven against random, normal / moderate / severe at 14 / 36 / 50 %.",
            time="about 25 minutes on one core, for 10 seeds of drawn films; half of that with `--workers 2`.",
            expectation="mean_std, which the paper found best here, lies ahead of random in AU ROC by more than luck.",
            arms=_paper(SEVEN),
            read=read_paper("mean_std"),
            classes=3,
        ),
        Experiment(
            name="loss-ablation",
            question="What does weighting the loss by inverse class frequency change?",
            runs="entropy and random, each with the weighted and with the unweighted loss, in the paper's shares.",
            time="about 12 minutes on one core, for 10 seeds of drawn films; half of that with `--workers 2`.",
            expectation="weighted, the network finds more of the rarest class, its runs differ less from each other, "
            "and training takes about as many epochs (within a third).",
            arms=_losses,
            read=read_losses,
        ),
        Experiment(
            name="profiles",
            question="What does the profile `best` give for the same labels?",
            runs="entropy and random with the profiles `paper` and `best`, both with validation drawn from the labels, "
            "as in a live loop.",
            time="about 10 minutes on one core, for 10 seeds of drawn films; half of that with `--workers 2`.",
            expectation="`best` lies ahead of `paper` in AU ROC at equal labels, with both strategies, by more than "
            "luck.",
            arms=_profiles,
            read=read_profiles,
        ),
        Experiment(
            name="acquisition-latency",
            question="How long does each function take to choose a batch from a pool of 1,000?",
            runs="one round of every function on 1,000 images, one after the other: passes and ranking, on the work "
            "only; training is not in it, nor, with a table of features, the backbone.",
            time="about 2 minutes on one core, for 5 seeds of drawn films.",
            expectation="the functions that look at every image alone cost the same within a factor of two, "
            "because the passes are nearly all of it; batch_bald at most half as much again, as in the paper.",
            arms=_latency,
            read=read_latency,
            seeds=5,
            films=1_850,
        ),
        Experiment(
            name="extreme-imbalance",
            question="Does a class of 5 or of 2 in a hundred get found?",
            runs="entropy and random with both losses, first class at 5 % and at 2 %, 10 labels a class to start with.",
            time="about 25 minutes on one core, for 10 seeds of drawn films; half of that with `--workers 2`.",
            expectation="entropy picks more of the rare class than random, and the weighted loss finds more of it; "
            "both by more than luck, both at 5 and at 2 %.",
            arms=_imbalance,
            read=read_imbalance,
            classes=2,
            films=2_000,
        ),
        Experiment(
            name="uncertainty-quality",
            question="Does the network doubt where readers disagree?",
            runs="a network on all labels of each seed; its uncertainty about every test image, by every function that "
            "scores images alone, against the share of pairs of readers who disagree about it.",
            time="about 2 minutes on one core, for 10 seeds of drawn films; half of that with `--workers 2`.",
            expectation="the functions of total uncertainty (entropy, least_confidence, margin) rise with the "
            "disagreement by more than luck, entropy at least as closely as bald; the 10 % that entropy is least sure "
            "of hold more than 10 % of the disagreement.",
            arms=_uncertainty,
            read=read_uncertainty,
            centres=1,
        ),
        Experiment(
            name="cross-centre",
            question="How much is lost on films of another hospital?",
            runs="entropy and random, trained on one `source` and tested on another, both ways, against training on "
            "the tested one; the same test images for both, labels and not readers' answers.",
            time="about 15 minutes on one core, for 10 seeds of drawn films; half of that with `--workers 2`.",
            expectation="a network of the centre itself has the higher AU ROC, both ways, by more than luck.",
            arms=_centres,
            read=read_centres,
            films=1_200,
            centres=2,
        ),
    ]
)
