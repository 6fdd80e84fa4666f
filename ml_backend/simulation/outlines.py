"""What each experiment asks, does and expects, in words: its list opens without loading what runs them."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Outline:
    """Of one experiment.

    Attributes:
        name: as it is typed.
        question: in a sentence.
        runs: what it does.
        time: that it takes on drawn films.
        expectation: what should come out.
    """

    name: str
    question: str
    runs: str
    time: str
    expectation: str


OUTLINES: Final = {
    one.name: one
    for one in (
        Outline(
            name="paper-binary",
            question="Does an acquisition function need fewer labels than chance to tell normal from diseased films?",
            runs="entropy, mean_std, bald and batch_bald against random, normal / diseased at 14 / 86 %.",
            time="about 20 minutes on one core, for 10 seeds of drawn films; half of that with `--workers 2`.",
            expectation="entropy, which the paper found best here, lies ahead of random in AU ROC by more than luck.",
        ),
        Outline(
            name="paper-multiclass",
            question="Which of the paper's seven functions needs the fewest labels for three degrees of severity?",
            runs="all seven against random, normal / moderate / severe at 14 / 36 / 50 %.",
            time="about 35 minutes on one core, for 10 seeds of drawn films; half of that with `--workers 2`.",
            expectation="mean_std, which the paper found best here, lies ahead of random in AU ROC by more than luck.",
        ),
        Outline(
            name="loss-ablation",
            question="What does weighting the loss by inverse class frequency change?",
            runs="entropy and random, each with the weighted and with the unweighted loss, in the paper's shares.",
            time="about 17 minutes on one core, for 10 seeds of drawn films; half of that with `--workers 2`.",
            expectation="weighted, the network finds more of the rarest class, its runs differ less from each other, "
            "and training takes about as many epochs (within a third).",
        ),
        Outline(
            name="profiles",
            question="What does the profile `best` give for the same labels?",
            runs="entropy and random with the profiles `paper` and `best`, both with validation drawn from the labels, "
            "as in a live loop.",
            time="about 30 minutes on one core, for 10 seeds of drawn films; half of that with `--workers 2`.",
            expectation="`best` lies ahead of `paper` in AU ROC at equal labels, with both strategies, by more than "
            "luck.",
        ),
        Outline(
            name="acquisition-latency",
            question="How long does each function take to choose a batch from a pool of 1,000?",
            runs="one round of every function on 1,000 images, one after the other: passes and ranking, on the work "
            "only; training is not in it, nor, with a table of features, the backbone.",
            time="about 2 minutes on one core, for 5 seeds of drawn films.",
            expectation="the functions that look at every image alone cost the same within a factor of two, "
            "because the passes are nearly all of it; batch_bald at most half as much again, as in the paper.",
        ),
        Outline(
            name="extreme-imbalance",
            question="Does a class of 5 or of 2 in a hundred get found?",
            runs="entropy and random with both losses, first class at 5 % and at 2 %, 10 labels a class to start with.",
            time="about 30 minutes on one core, for 10 seeds of drawn films; half of that with `--workers 2`.",
            expectation="entropy picks more of the rare class than random, and the weighted loss finds more of it; "
            "both by more than luck, both at 5 and at 2 %.",
        ),
        Outline(
            name="uncertainty-quality",
            question="Does the network doubt where readers disagree?",
            runs="a network on all labels of each seed; its uncertainty about every test image, by every function that "
            "scores images alone, against the share of pairs of readers who disagree about it.",
            time="about 2 minutes on one core, for 10 seeds of drawn films; half of that with `--workers 2`.",
            expectation="the functions of total uncertainty (entropy, least_confidence, margin) rise with the "
            "disagreement by more than luck, entropy at least as closely as bald; the 10 % that entropy is least sure "
            "of hold more than 10 % of the disagreement.",
        ),
        Outline(
            name="cross-centre",
            question="How much is lost on films of another hospital?",
            runs="entropy and random, trained on one `source` and tested on another, both ways, against training on "
            "the tested one; the same test images for both, labels and not readers' answers.",
            time="about 11 minutes on one core, for 10 seeds of drawn films; half of that with `--workers 2`.",
            expectation="a network of the centre itself has the higher AU ROC, both ways, by more than luck.",
        ),
    )
}


def markdown() -> str:
    """All of them as the page ``docs/experiments.md`` has them."""
    return "\n\n".join(
        f"### `ml-backend experiment {one.name}`\n\n{one.question}\n\n- Runs: {one.runs}\n- Time: {one.time}\n"
        f"- Expected: {one.expectation}"
        for one in OUTLINES.values()
    )
