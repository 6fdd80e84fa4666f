"""A study in sentences: the headline, and how numbers are written. Honest where intervals overlap or seeds are few."""

from collections.abc import Sequence
from typing import Final

from ml_backend.simulation.compare import LabelsNeeded, PairedDifference, Spread
from ml_backend.study.report_answers import RANDOM, MetricAnswer

__all__ = ["difference_words", "headline", "share_words", "verdict"]

SEEDS_FOR_A_CLAIM: Final = 10
NAMED: Final = 3  # strategies of a sentence, besides random
REACHED: Final = {
    "95 % of the baseline": "to reach 95 % of the {} of all labels",
    "baseline - 1 point": "to come within a point of the {} of all labels",
}
"""Targets that a headline speaks of, the more telling last."""


def share_words(share: Spread) -> str:
    """``35 % [28–40]``: median and quartiles of shares; ``never`` where they are infinite."""

    def percent(value: float | None) -> str:
        if value is None:
            return "never"
        # Early on, half a per cent is a batch.
        return f"{100 * value:.0f}" if value >= 0.0995 else f"{100 * value:.1f}"

    if share.q25 is None:
        return "never"
    middle = "never" if share.median is None else f"{percent(share.median)} %"
    return f"{middle} [{percent(share.q25)}–{percent(share.q75)}]"


def difference_words(difference: PairedDifference) -> str:
    """``+0.021 [+0.012 to +0.030]``: mean and 95 % interval; one seed has none."""
    if difference.low is None or difference.high is None:
        return f"{difference.mean:+.3f} (one seed)"
    return f"{difference.mean:+.3f} [{difference.low:+.3f} to {difference.high:+.3f}]"


def headline(answers: Sequence[MetricAnswer]) -> tuple[str, ...]:
    """What a study found, most important first: labels needed, whether that is more than luck, and by other metrics.

    The target is the baseline less one point, if any strategy got there in half of its runs; else 95 % of it.

    Args:
        answers: of the metrics to speak of, the most important first; at least one.
    """
    first = answers[0]
    target = next((name for name in reversed(REACHED) if _reached(first, name)), None)
    if not first.needed:
        begin = "There is no network trained on all labels yet, so that labels needed cannot be told."
    elif target is None:
        begin = (
            f"On these images no strategy came to 95 % of the {_title(first)} of all labels in half of its runs: label "
            "more of the pool before ending a run."
        )
    else:
        seeds = max(row.runs for row in first.needed)
        begin = f"On these images, {_needed_words(first, target)} (Median [quartiles] of {seeds} seeds.)"
    others = [f"Likewise, {_needed_words(one, target)}" for one in answers[1:] if one.needed and target]
    return (begin, verdict(first), *others)


def _title(answer: MetricAnswer) -> str:
    title = answer.metric.title
    return title if title[:2].isupper() else title[0].lower() + title[1:]


def _reached(answer: MetricAnswer, target: str) -> bool:
    return any(row.labels.median is not None for row in answer.needed if row.target == target)


def _needed_words(answer: MetricAnswer, target: str) -> str:
    """The best strategies, then random: no more of them than a sentence holds; whoever got there comes first."""
    rows = [row for row in answer.needed if row.target == target]
    informed = sorted((row for row in rows if not _is_random(row)), key=_median)
    named = [*informed[:NAMED], *(row for row in rows if _is_random(row))]
    first, *others = ordered = sorted(named, key=lambda row: row.labels.median is None)
    values = [answer.baseline_of(variant) for variant in dict.fromkeys(variant for variant, _ in answer.baselines)]
    reach = " and ".join(f"{value:.3f}" for value in values if value is not None)
    goal = f"{REACHED[target].format(_title(answer))} ({reach})"
    if first.labels.median is None:
        return f"no strategy managed in half of its runs {goal}."
    rest = "".join(f"; {_spoken(row.name)} {_got_there(row)}" for row in others)
    left = len(informed) - NAMED
    more = f" The other {left} needed as many or more." if left > 0 else ""
    begin = f"{_spoken(first.name)} needed {share_words(first.share)} of the labels {goal}"
    return f"{begin}{rest}.{more}{_overlap(ordered)}"


def _got_there(row: LabelsNeeded) -> str:
    if row.labels.median is None:
        return f"did not get there in {row.never} of {row.runs} runs"
    return f"needed {share_words(row.share)}"


def _overlap(ordered: Sequence[LabelsNeeded]) -> str:
    """Of the first strategy and its variant's random, in one sentence; empty where there is no pair."""
    best = ordered[0]
    variant = best.name.partition(", ")[2]
    chance = next((row for row in ordered if row.name == (f"{RANDOM}, {variant}" if variant else RANDOM)), None)
    if chance is None or chance is best or best.share.median is None or chance.share.q25 is None:
        return ""
    apart = best.share.q75 is not None and best.share.q75 < chance.share.q25
    return (
        f" The middle halves of {_spoken(best.name)} and {_spoken(chance.name)} {'lie apart' if apart else 'overlap'}."
    )


def _spoken(name: str) -> str:
    """``entropy (weighted)``: within a sentence the comma of a variant would divide it."""
    strategy, _, variant = name.partition(", ")
    return f"{strategy} ({variant})" if variant else strategy


def _is_random(row: LabelsNeeded) -> bool:
    return row.name == RANDOM or row.name.startswith(f"{RANDOM}, ")


def _median(row: LabelsNeeded) -> float:
    return float("inf") if row.share.median is None else row.share.median


def verdict(answer: MetricAnswer) -> str:
    """Whether choosing images beats random picks by this metric, and how sure that is.

    The strategy with the largest mean difference of the areas under the curves is named, and that it was the best of
    how many: its p-value does not know that.
    """
    differences = answer.against_random
    if not differences:
        return "Nothing was held against random, so that this study does not tell what choosing images is worth."
    name, best = max(differences.items(), key=lambda named: named[1].mean)
    among = f", the best of {len(differences)}" if len(differences) > 1 else ""
    p = "" if best.p is None else f", Wilcoxon p = {best.p:.2g}"
    seen = (
        f"the learning curve of {_spoken(name)}{among and among + ','} lies {difference_words(best)} from random's in "
        f"{_title(answer)}, on average over {best.pairs} {'seed' if best.pairs == 1 else 'seeds'}{p}"
    )
    if best.pairs < SEEDS_FOR_A_CLAIM:
        return f"Too few seeds for a claim ({SEEDS_FOR_A_CLAIM} are wanted): {seen}."
    if best.low is not None and best.low > 0:
        return f"Choosing images pays here: {seen}.{_luck(len(differences))}"
    if best.high is not None and best.high < 0:
        return f"Choosing images does not pay here, random picks are ahead of every strategy: {seen}."
    return f"Not shown that choosing images pays here, the interval holds 0: {seen}."


def _luck(tried: int) -> str:
    return f" With {tried} tried, the best is a little lucky: expect somewhat less." if tried > 1 else ""
