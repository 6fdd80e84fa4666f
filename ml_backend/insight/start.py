"""The start set: how many labels of each class are missing, and how many more images that takes."""

import json
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Annotated, Final

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray
from pydantic import Field

from ml_backend.records import Record

__all__ = ["StartEstimate", "start_estimate"]

DRAWS: Final = 4000
"""Of the class shares, each with one course of the labelling: the quantiles are known to about 2 %."""
PRIOR: Final = 1.0
"""Labels that every class is taken to have had beforehand: with none at all, every mix of classes is as likely."""
MOST: Final = 1e9
"""Images: beyond it a pool does not hold enough, and NumPy's Poisson draws overflow later."""
MANY: Final = 10
"""Times as many images as the whole start set needs labels: a class that takes more hardly ever comes."""


class StartEstimate(Record):
    """What is missing until the first network, and the estimate of the images until then.

    Attributes:
        missing: class -> labels that it still lacks; only classes that lack some.
        more: images, the median; None where no label says anything about the classes yet. 0 where none is missing.
        low: 5th percentile, at most the pool.
        high: 95th percentile, at most the pool.
        enough: probability that the pool holds enough of every class; None as with ``more``.
        sentence: for the owner, as it stands.
        ways_out: what else helps where a class will hardly come; empty as long as labelling on is enough.
    """

    missing: dict[str, Annotated[int, Field(ge=1)]]
    more: Annotated[int, Field(ge=0)] | None
    low: Annotated[int, Field(ge=0)] | None
    high: Annotated[int, Field(ge=0)] | None
    enough: Annotated[float, Field(ge=0.0, le=1.0)] | None
    sentence: str
    ways_out: tuple[str, ...] = ()

    @property
    def advice(self) -> str:
        """The sentence and the ways out, on one line."""
        if not self.ways_out:
            return self.sentence
        return f"{self.sentence} Otherwise: {'; or '.join(self.ways_out)}."


def start_estimate(
    labels_per_class: Mapping[str, int],
    minimum: int,
    pool: int,
    seed: int = 0,
    *,
    by_chance: bool = True,
    ignored: Sequence[str] = (),
) -> StartEstimate:
    """How much labelling is left until the first network.

    The shares of the classes are drawn from their posterior, Dirichlet(1 + labels), and for each draw the images until
    the last class is complete. Both for images that come by chance.

    Args:
        labels_per_class: labels so far, of every class.
        minimum: labels that every class needs.
        pool: images without a label.
        seed: of the draws: the same numbers give the same estimate.
        by_chance: whether the order of the start is random; where not, the sentence says that the estimate is for one.
        ignored: what the option ``ignore_classes`` holds already, which a way out must not take back.
    """
    missing = {name: minimum - count for name, count in labels_per_class.items() if count < minimum}
    if not missing:
        sentence = f"Every class has the {minimum} labels that the first training needs."
        return StartEstimate(missing={}, more=0, low=0, high=0, enough=1.0, sentence=sentence)
    needed = f"{_listed(missing)} needed"
    if sum(missing.values()) > pool:
        words = {0: "no image without a label is left", 1: "the one image without a label cannot hold them"}
        said = words.get(pool, f"the {pool} images without a label cannot hold them")
        return StartEstimate(
            missing=missing, more=pool, low=pool, high=pool, enough=0.0,
            sentence=f"{needed}; {said}: import more.", ways_out=_ways_out(labels_per_class, missing, minimum, ignored),
        )  # fmt: skip
    if not sum(labels_per_class.values()):
        sentence = f"{needed}; no label yet, so nothing is known of how many images that takes."
        return StartEstimate(missing=missing, more=None, low=None, high=None, enough=None, sentence=sentence)
    images = _images_until_complete(labels_per_class, minimum, seed)
    enough = float((images <= pool).mean())
    low, more, high = (min(ceil(value), pool) for value in np.quantile(images, (0.05, 0.5, 0.95)))
    if enough < 0.5:
        said = f"at the rate so far the {pool} images without a label will probably not hold enough: import more"
    else:
        said = f"at the rate so far about {more} more image{'' if more == 1 else 's'} ({low} to {high})"
        if enough < 0.95:
            said += f", and the pool of {pool} may not hold enough"
    if not by_chance:
        said += ", told as if images came by chance; those chosen as typical mostly take fewer"
    hardly = enough < 0.5 or more > MANY * minimum * len(labels_per_class)
    return StartEstimate(
        missing=missing, more=more, low=low, high=high, enough=enough, sentence=f"{needed}; {said}.",
        ways_out=_ways_out(labels_per_class, missing, minimum, ignored) if hardly else (),
    )  # fmt: skip


def _images_until_complete(labels: Mapping[str, int], minimum: int, seed: int) -> Int64[NDArray[np.int64], " draws"]:
    """Images until the last class has its labels, one course a draw.

    Taken as if images came at random moments, one a unit of time: then the classes come independently of each other,
    class c complete after a time Gamma(missing_c) / share_c. Until the last one is, each other class has its missing
    images and a Poisson number of further ones, which is exact.
    """
    rng = np.random.default_rng(seed)
    counts = np.array(list(labels.values()), dtype=np.float64)
    missing = np.maximum(minimum - counts, 0.0)
    shares = np.maximum(rng.dirichlet(PRIOR + counts, size=DRAWS), np.finfo(np.float64).tiny)
    complete = rng.standard_gamma(missing, size=shares.shape) / shares
    last = complete.max(axis=1, keepdims=True)
    further = rng.poisson(np.minimum(shares * (last - complete), MOST))
    images: Int64[NDArray[np.int64], " draws"] = (missing + further).sum(axis=1).astype(np.int64)
    return images


def _ways_out(
    labels: Mapping[str, int], missing: Mapping[str, int], minimum: int, ignored: Sequence[str]
) -> tuple[str, ...]:
    """What ends the wait for classes that hardly come; two classes must be left to learn."""
    lower = f"lower the option min_labels_per_class, {minimum} now and 2 at least"
    if len(labels) == 2:
        return (lower,)
    if len(labels) - len(missing) < 2:
        names, whom = "a class that hardly comes", "it"
        option = f"{','.join(ignored)},its name" if ignored else "its name"
    else:
        names, option = " and ".join(map(repr, missing)), _option((*ignored, *missing))
        whom = "it" if len(missing) == 1 else "them"
    return (
        f"take {names} out of the choices of the label config, so that there are fewer classes",
        lower,
        f"go on without {whom}: the option ignore_classes={option} leaves the labels out until it is taken back",
    )


def _option(names: Sequence[str]) -> str:
    """Names as the option takes them; as JSON where commas would cut one."""
    return json.dumps(names, ensure_ascii=False) if any("," in name for name in names) else ",".join(names)


def _listed(missing: Mapping[str, int]) -> str:
    parts = [f"{count} more '{name}'" for name, count in missing.items()]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
