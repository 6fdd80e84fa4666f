"""Every strategy that can rank the pool. A new one is its function and one entry here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from jaxtyping import Float
from torch import Tensor

from ml_backend.acquisition.probabilities import require_probabilities
from ml_backend.acquisition.ranking import AcquisitionRanking, Ranker, by_batch_bald, by_chance, by_score
from ml_backend.acquisition.scores import bald, entropy, least_confidence, margin, mean_std, variation_ratios

__all__ = ["STRATEGIES", "Need", "StrategySpec", "rank", "spec"]

Need = Literal["probs", "features"]
_PROBS: Final[frozenset[Need]] = frozenset({"probs"})
_GAL: Final = "Gal, Islam & Ghahramani 2017, arXiv:1703.02910"


@dataclass(frozen=True, slots=True)
class StrategySpec:
    """What a user must know about a strategy, and how it ranks."""

    name: str
    summary: str
    unit: str
    range: str  # of a score; C classes, T passes
    needs: frozenset[Need]
    min_passes: int
    source: str
    ranker: Ranker


STRATEGIES: Final[dict[str, StrategySpec]] = {
    "batch_bald": StrategySpec(
        name="batch_bald",
        summary="the batch whose labels together tell most about the network; sees that two images are alike",
        unit="nats",
        range="0 .. log C: what a pick adds to the picks before it; for the rest, its BALD score",
        needs=_PROBS,
        min_passes=2,
        source="Kirsch, van Amersfoort & Gal 2019, arXiv:1906.08158",
        ranker=by_batch_bald,
    ),
    "bald": StrategySpec(
        name="bald",
        summary="what the label would tell about the network: passes that are sure but contradict each other",
        unit="nats",
        range="0 .. log C",
        needs=_PROBS,
        min_passes=2,
        source="Houlsby, Huszár, Ghahramani & Lengyel 2011, arXiv:1112.5745",
        ranker=by_score(bald),
    ),
    "entropy": StrategySpec(
        name="entropy",
        summary="uncertainty of the mean prediction, whether the network or the image is to blame",
        unit="nats",
        range="0 .. log C",
        needs=_PROBS,
        min_passes=1,
        source=_GAL,
        ranker=by_score(entropy),
    ),
    "least_confidence": StrategySpec(
        name="least_confidence",
        summary="probability that the network's own answer is wrong",
        unit="probability",
        range="0 .. 1 - 1/C",
        needs=_PROBS,
        min_passes=1,
        source="Lewis & Gale 1994, arXiv:cmp-lg/9407020",
        ranker=by_score(least_confidence),
    ),
    "margin": StrategySpec(
        name="margin",
        summary="how close the two most probable classes lie",
        unit="probability",
        range="0 .. 1",
        needs=_PROBS,
        min_passes=1,
        source="Scheffer, Decomain & Wrobel 2001, doi:10.1007/3-540-44816-0_31",
        ranker=by_score(margin),
    ),
    "mean_std": StrategySpec(
        name="mean_std",
        summary="disagreement of the passes: standard deviation of a class's probability, averaged over the classes",
        unit="probability",
        range="0 .. sqrt(C - 1) / C",
        needs=_PROBS,
        min_passes=2,
        source=_GAL,
        ranker=by_score(mean_std),
    ),
    "random": StrategySpec(
        name="random",
        summary="a seeded random order that images joining or leaving the pool do not disturb; the baseline",
        unit="place",
        range="above 0 .. 1",
        needs=frozenset(),
        min_passes=1,
        source="none; chance",
        ranker=by_chance,
    ),
    "variation_ratios": StrategySpec(
        name="variation_ratios",
        summary="share of the passes that vote against the most voted class",
        unit="share of the passes",
        range="0 .. 1 - 1/C",
        needs=_PROBS,
        min_passes=2,
        source=f"Freeman 1965; {_GAL}",
        ranker=by_score(variation_ratios),
    ),
}


def spec(name: str) -> StrategySpec:
    """The entry of a strategy.

    Raises:
        ValueError: there is none of that name; the known ones are listed.
    """
    if name not in STRATEGIES:
        raise ValueError(f"unknown strategy {name!r}: known are {', '.join(STRATEGIES)}")
    return STRATEGIES[name]


def rank(
    name: str,
    probs: Float[Tensor, "images passes classes"],
    batch_size: int,
    seed: int = 0,
    *,
    ids: Sequence[str] | None = None,
) -> AcquisitionRanking:
    """Rank the whole pool by one strategy.

    Ties are broken by a seeded draw from each image's id: the same on every device, whatever the thread count.

    Args:
        name: of an entry of ``STRATEGIES``.
        probs: softmax outputs of the stochastic passes; each row sums to 1.
        batch_size: images that will be labelled together; only a batch-aware strategy looks at it.
        seed: of ties, of chance and of BatchBALD's drawn labellings.
        ids: one distinct id an image; positions count as ids where none are given.

    Returns:
        ``order``, the positions of the whole pool, label first at the front, and ``scores`` in the pool's own order.

    Raises:
        ValueError: an unknown name, a batch size below 1, fewer passes than the strategy needs, ids that do not fit,
            or probabilities that are none, with the first bad image named.
    """
    chosen = spec(name)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    ids = [str(position) for position in range(len(probs))] if ids is None else ids
    require_probabilities(probs, ids)
    if len(set(ids)) != len(ids):
        raise ValueError(f"{len(ids)} ids, but only {len(set(ids))} distinct: an image stands in a pool once")
    if (passes := probs.shape[1]) < chosen.min_passes:
        raise ValueError(f"{name} needs at least {chosen.min_passes} passes, got {passes}: draw more")
    return chosen.ranker(probs, batch_size, seed, ids)
