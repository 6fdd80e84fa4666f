"""Every strategy that can rank a pool, in words: what README, ``--help`` and the settings know of them.

Torch-free, because the web process and ``--help`` read it; ``acquisition.catalog`` says how each ranks.
"""

from dataclasses import dataclass
from typing import Final, Literal

Need = Literal["probs", "features", "gradients"]
"""What a learner computes for a strategy: softmax outputs of the passes, backbone features (of the labelled images
too), or the factors of the last layer's gradients."""

_NEEDED: Final[dict[Need, str]] = {
    "features": "backbone features",
    "gradients": "last layer's gradients",
    "probs": "probabilities of the passes",
}
_PROBS: Final[frozenset[Need]] = frozenset({"probs"})
_GAL: Final = "Gal, Islam & Ghahramani 2017, arXiv:1703.02910"


@dataclass(frozen=True, slots=True)
class StrategySpec:
    """What a user must know about a strategy."""

    name: str
    summary: str
    unit: str
    range: str  # of a score; C classes, T passes
    needs: frozenset[Need]
    min_passes: int
    source: str

    @property
    def needed(self) -> str:
        """What the learner must compute for it, in words."""
        return " and ".join(_NEEDED[need] for need in sorted(self.needs)) or "nothing"


STRATEGIES: Final[dict[str, StrategySpec]] = {
    spec.name: spec
    for spec in (
        StrategySpec(
            name="badge",
            summary="a spread of images that would each move the last layer far, and in different directions",
            unit="squared gradient length",
            range="0 or more: squared distance to the nearest pick before it, of the first its own squared length; "
            "for the rest, to the nearest pick",
            needs=frozenset({"gradients"}),
            min_passes=1,
            source="Ash, Zhang, Krishnamurthy, Langford & Agarwal 2020, arXiv:1906.03671",
        ),
        StrategySpec(
            name="bald",
            summary="what the label would tell about the network: passes that are sure but contradict each other",
            unit="nats",
            range="0 .. log C",
            needs=_PROBS,
            min_passes=2,
            source="Houlsby, Huszár, Ghahramani & Lengyel 2011, arXiv:1112.5745",
        ),
        StrategySpec(
            name="batch_bald",
            summary="the batch whose labels together tell most about the network; sees that two images are alike",
            unit="nats",
            range="0 .. log C: what a pick adds to the picks before it; for the rest, its BALD score",
            needs=_PROBS,
            min_passes=2,
            source="Kirsch, van Amersfoort & Gal 2019, arXiv:1906.08158",
        ),
        StrategySpec(
            name="core_set",
            summary="images that leave no part of the pool far from a labelled one; looks at no prediction",
            unit="feature distance",
            range="0 or more: distance to the nearest labelled image or earlier pick; for the rest, after all picks",
            needs=frozenset({"features"}),
            min_passes=1,
            source="Sener & Savarese 2018, arXiv:1708.00489",
        ),
        StrategySpec(
            name="entropy",
            summary="uncertainty of the mean prediction, whether the network or the image is to blame",
            unit="nats",
            range="0 .. log C",
            needs=_PROBS,
            min_passes=1,
            source=_GAL,
        ),
        StrategySpec(
            name="least_confidence",
            summary="probability that the network's own answer is wrong",
            unit="probability",
            range="0 .. 1 - 1/C",
            needs=_PROBS,
            min_passes=1,
            source="Lewis & Gale 1994, arXiv:cmp-lg/9407020",
        ),
        StrategySpec(
            name="margin",
            summary="how close the two most probable classes lie",
            unit="probability",
            range="0 .. 1",
            needs=_PROBS,
            min_passes=1,
            source="Scheffer, Decomain & Wrobel 2001, doi:10.1007/3-540-44816-0_31",
        ),
        StrategySpec(
            name="mean_std",
            summary="disagreement of the passes: standard deviation of a class's probability, averaged over classes",
            unit="probability",
            range="0 .. sqrt(C - 1) / C",
            needs=_PROBS,
            min_passes=2,
            source=_GAL,
        ),
        StrategySpec(
            name="power_bald",
            summary="BALD with seeded noise, so that a batch is spread over the pool at almost no cost",
            unit="log nats, with Gumbel noise",
            range="any number",
            needs=_PROBS,
            min_passes=2,
            source="Kirsch, Farquhar, Atighehchian, Jesson, Branchaud-Charron & Gal 2023, arXiv:2106.12059",
        ),
        StrategySpec(
            name="random",
            summary="a seeded random order that images joining or leaving the pool do not disturb; the baseline",
            unit="place",
            range="above 0 .. 1",
            needs=frozenset(),
            min_passes=1,
            source="none; chance",
        ),
        StrategySpec(
            name="typiclust",
            summary="the most typical image of every large group that has no label yet; needs no labels at all",
            unit="1 / feature distance",
            range="above 0 .. 100,000: how close its nearest neighbours in its group lie",
            needs=frozenset({"features"}),
            min_passes=1,
            source="Hacohen, Dekel & Weinshall 2022, arXiv:2202.02794",
        ),
        StrategySpec(
            name="variation_ratios",
            summary="share of the passes that vote against the most voted class",
            unit="share of the passes",
            range="0 .. 1 - 1/C",
            needs=_PROBS,
            min_passes=2,
            source=f"Freeman 1965; {_GAL}",
        ),
    )
}


def strategy_spec(name: str) -> StrategySpec:
    """The entry of a strategy.

    Raises:
        ValueError: there is none of that name; the known ones are listed.
    """
    if name not in STRATEGIES:
        raise ValueError(f"unknown strategy {name!r}: known are {', '.join(STRATEGIES)}")
    return STRATEGIES[name]


def markdown_table() -> str:
    """The catalogue as the table that README shows."""
    rows = [
        f"| `{spec.name}` | {spec.summary} | {spec.range} ({spec.unit}) | {spec.needed} | {spec.source} |"
        for spec in STRATEGIES.values()
    ]
    return "\n".join(["| strategy | labels first | score | needs | source |", "|---|---|---|---|---|", *rows])
