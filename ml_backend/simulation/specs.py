"""The experiments as a table: question, studies, time and expectation. ``experiments`` runs them.

Imports nothing large, so that ``ml-backend experiment --list`` opens at once.
"""

from dataclasses import dataclass
from typing import Final, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from ml_backend.registry import STRATEGIES

SEVEN: Final = "entropy,mean_std,bald,batch_bald,least_confidence,margin,variation_ratios"
BOTH_LOSSES: Final = "weighted,unweighted"


@dataclass(frozen=True, slots=True)
class StudySpec:
    """One study of an experiment, as differences from ``ml-backend simulate``.

    Attributes:
        name: of its folder in the experiment's; empty where the experiment is this one study.
        title: heading; ``cross-centre`` takes it from the data.
        strategies: besides ``random``.
        tables: derived from the given tables: ``pool`` limits the pool, ``centres`` trains on one centre and tests on
            one, by ``name``.
        start: as of ``SimulateOptions``.
        initial: labels of every class at a given start; of a live one, before the first network.
        least_initial: lower limit of it, also with ``--quick``.
        one_round: train on the start set only.
        budget: as of ``SimulateOptions``, like ``loss`` and ``profile``.
        imbalance: shares of the paper, or a share of the first class.
        one_worker: studies of time cannot share the machine.
        readers: as of ``SimulateOptions``, like ``option``, where the user gives no ratings.
        reads: likewise; budget and curves then count reads, and the budget is the experiment's.
        baseline: train a network on all labels.
        in_quick: run with ``--quick``, too.
    """

    name: str = ""
    title: str = ""
    strategies: str = "entropy"
    tables: Literal["given", "pool", "centres"] = "given"
    start: Literal["given", "live"] = "given"
    initial: int = 25
    least_initial: int = 1
    one_round: bool = False
    budget: str = "0.5"
    loss: str = "weighted"
    imbalance: float | Literal["paper"] | None = None
    profile: str = "paper"
    one_worker: bool = False
    readers: str | None = None
    reads: int | None = None
    option: tuple[str, ...] = ()
    baseline: bool = True
    in_quick: bool = True


@dataclass(frozen=True, slots=True)
class ExperimentSpec:
    """An experiment.

    Attributes:
        name: on the command line.
        question: in a sentence.
        runs: description of the studies.
        minutes: on one core, with synthetic images.
        expectation: the expected result.
        studies: in order.
        seeds: default number.
        classes: number of classes that it requires; None for any.
        images: number of synthetic images, where the user gives no tables.
        centres: of the synthetic images; several make a pool harder to learn from few labels.
    """

    name: str
    question: str
    runs: str
    minutes: int
    expectation: str
    studies: tuple[StudySpec, ...]
    seeds: int = 20
    classes: int | None = None
    images: int = 1_000
    centres: int = 4

    @property
    def time(self) -> str:
        """Expected duration."""
        parallel = "" if self.studies[0].one_worker else "; half of that with `--workers 2`"
        return f"about {self.minutes} minutes on one core, for {self.seeds} seeds of synthetic images{parallel}."


PANEL: Final = "fair*4,poor"
READS: Final = 720
LEAST_READS: Final = 162  # with fewer, the first network of three reads an image exceeds the budget
RULES: Final[dict[str, tuple[str, ...]]] = {
    **{rule: (f"consensus={rule}",) for rule in ("median", "majority", "dawid_skene", "ordinal")},
    "soft": ("consensus=dawid_skene", "soft_labels=true"),
}
"""Compared ways from answers to labels -> their project options."""

EXPERIMENTS: Final = {
    one.name: one
    for one in (
        ExperimentSpec(
            name="paper-binary",
            question="Do acquisition functions need fewer labels than random picks to separate normal from diseased?",
            runs="entropy, mean_std, bald and batch_bald against random, normal / diseased at 14 / 86 %; "
            "the paper's protocol, with a given start.",
            minutes=40,
            expectation="entropy, the best in the paper, is significantly ahead of random in AU ROC.",
            studies=(StudySpec(strategies="entropy,mean_std,bald,batch_bald", imbalance="paper"),),
            classes=2,
        ),
        ExperimentSpec(
            name="paper-multiclass",
            question="Which of the paper's seven functions needs the fewest labels for three degrees of severity?",
            runs="all seven against random, normal / moderate / severe at 14 / 36 / 50 %; the paper's "
            "protocol, with a given start.",
            minutes=70,
            expectation="mean_std, the best in the paper, is significantly ahead of random in AU ROC.",
            studies=(StudySpec(strategies=SEVEN, imbalance="paper"),),
            classes=3,
        ),
        ExperimentSpec(
            name="loss-ablation",
            question="What does weighting the loss by inverse class frequency change?",
            runs="entropy and random, each with the weighted and with the unweighted loss, in the paper's shares and "
            "with its given start.",
            minutes=34,
            expectation="with the weighted loss, the recall of the rarest class is higher, runs differ less from each "
            "other, and training takes about as many epochs (within a third).",
            studies=(StudySpec(loss=BOTH_LOSSES, imbalance="paper"),),
        ),
        ExperimentSpec(
            name="profiles",
            question="What does the profile `best` gain for the same labels?",
            runs="entropy and random with the profiles `paper` and `best`, from a live start: every label counts, the "
            "first ones and those of validation included.",
            minutes=60,
            expectation="`best` is significantly ahead of `paper` in AU ROC at equal labels, with both strategies.",
            studies=tuple(
                # The networks of `best` each validate on a label of every class.
                StudySpec(name, name, start="live", least_initial=5, budget="0.25", profile=name)
                for name in ("paper", "best")
            ),
        ),
        ExperimentSpec(
            name="acquisition-latency",
            question="How long does each function take to choose a batch from a pool of 1,000?",
            runs="one round of every function on 1,000 images, one after the other, after a given start: time of "
            "passes and ranking, without training and, with a table of features, without the backbone.",
            minutes=2,
            expectation="the pointwise functions take the same time within a factor of two, because nearly all of it "
            "is the passes; batch_bald at most half as much again, as in the paper.",
            studies=(
                StudySpec(
                    strategies=",".join(name for name in STRATEGIES if name != "random"),
                    tables="pool",
                    one_round=True,
                    one_worker=True,
                ),
            ),
            seeds=5,
            images=1_850,
        ),
        ExperimentSpec(
            name="extreme-imbalance",
            question="Is a class with a share of 5 or 2 % found?",
            runs="entropy and random with both losses, first class at 5 % and at 2 %, 10 labels a class given to start "
            "with: the labels that it takes to find them are not part of the figures.",
            minutes=60,
            expectation="entropy picks significantly more of the rare class than random, and the weighted loss "
            "significantly raises its recall, both at 5 and at 2 %.",
            studies=tuple(
                StudySpec(
                    f"{percent:02d}-{100 - percent}",
                    f"{percent} / {100 - percent}",
                    initial=10,
                    loss=BOTH_LOSSES,
                    imbalance=percent / 100,
                    budget="0.25",
                )
                for percent in (5, 2)
            ),
            classes=2,
            images=2_000,
        ),
        ExperimentSpec(
            name="uncertainty-quality",
            question="Is the network uncertain where readers disagree?",
            runs="a network on all labels of each seed; its uncertainty about every test image, by every pointwise "
            "function, against the share of pairs of readers who disagree about it.",
            minutes=4,
            expectation="the functions of total uncertainty (entropy, least_confidence, margin) significantly rise "
            "with the disagreement, entropy at least as closely as bald; the 10 % with the highest entropy hold more "
            "than 10 % of the disagreement.",
            studies=(StudySpec(one_round=True),),
            centres=1,
        ),
        ExperimentSpec(
            name="cross-centre",
            question="How much is lost on images of another hospital?",
            runs="entropy and random, trained on one `source` and tested on another, in both directions, against "
            "training on the tested one; the same test images for both, labels and not readers' annotations; "
            "a given start.",
            minutes=22,
            expectation="a network of the centre itself has a significantly higher AU ROC, in both directions.",
            studies=tuple(
                StudySpec(name, tables="centres") for name in ("1-to-1", "2-to-1", "1-to-2", "2-to-2")
            ),
            images=1_200,
            centres=2,
        ),
        ExperimentSpec(
            name="readers",
            question="Which rule makes the best labels of few answers, and is it better to read again or to read new?",
            runs="random picks from a live start, each image read once, twice or three times by turns of five "
            f"synthetic readers, of whom one is poor ({PANEL}); median, majority, dawid_skene, ordinal, and soft "
            f"labels of dawid_skene; budgets count reads, {READS} in all.",
            minutes=12,
            expectation="with two and with three reads an image, labels by dawid_skene and by ordinal are "
            "significantly closer to the truth than by median; with the same number of reads, one read an image is not "
            "significantly worse for the network than two or three.",
            studies=tuple(
                StudySpec(
                    f"{rule}-{reads}",
                    f"{rule}, {reads} {'read' if reads == 1 else 'reads'} an image",
                    strategies="random",
                    start="live",
                    readers=PANEL,
                    reads=reads,
                    option=option,
                    baseline=False,
                    in_quick=(rule, reads) in {("median", 1), ("median", 2), ("soft", 2)},
                )
                for reads in (1, 2, 3)
                for rule, option in RULES.items()
                if reads > 1 or rule == "median"  # of one answer every rule makes that answer
            ),
            images=1_300,
        ),
    )
}  # fmt: skip


def markdown() -> str:
    """All experiments, as in ``docs/experiments.md``."""
    return "\n\n".join(
        f"### `ml-backend experiment {one.name}`\n\n{one.question}\n\n- Runs: {one.runs}\n- Time: {one.time}\n"
        f"- Expected: {one.expectation}"
        for one in EXPERIMENTS.values()
    )


def print_table() -> None:
    """Print name, question, seeds and minutes of each experiment, as wide as the terminal."""
    table = Table(Column("experiment", no_wrap=True), "question", box=SIMPLE_HEAD)
    for heading in ("seeds", "minutes"):
        table.add_column(heading, justify="right")
    for one in EXPERIMENTS.values():
        table.add_row(one.name, one.question, str(one.seeds), str(one.minutes))
    console = Console()
    console.print(table, markup=False)
    console.print(
        "minutes: on one core, with synthetic images. `ml-backend experiment NAME` runs one; `--list` gives more",
        markup=False,
    )
