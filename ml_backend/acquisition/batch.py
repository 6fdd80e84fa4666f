"""Batches of dissimilar images, or of every class: BatchBALD, PowerBALD at almost no cost, class-stratified entropy."""

import math
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import structlog
import torch
from jaxtyping import Bool, Float, Int64, UInt64
from torch import Tensor

from ml_backend.acquisition.inputs import AcquisitionInputs, Selection, float_tensor, given, largest
from ml_backend.acquisition.pointwise import bald, entropy
from ml_backend.registry import PASSES_PER_PICK, acquisition_function
from ml_backend.seeding import gumbel, seeded_draws, seeded_order

_log = structlog.get_logger(__name__)

Values = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]
_TIE_NATS = 1e-6
"""Gains closer than float32 products can tell apart are level, so that no thread count decides between them."""

# Constants and not settings: which candidates are scored must not depend on the machine. On pools of 1,000 to 100,000
# with near-duplicates and 2 or 3 classes, the joint information stays within 0.3 % either way, and within 0.1 % on the
# mean of six pools, of that of scoring in full every candidate that may win.
_SLACK_NATS = 0.01
"""How far a sampled gain may lie under the truth: a candidate is passed over only if its bound falls short by more."""
_LEADERS = 32
"""Candidates with the highest bounds, scored first: who cannot reach them is not scored at all."""
_FEW = 100
"""Labellings over which the others are scored, to see who comes near."""
_FINALISTS = 32
"""The best of these, scored over all."""
_BLOCK = 1024
"""Candidates scored at once, so that memory does not grow with the pool."""
_TINY = 1e-300
"""Nats that stand in for 0 under a logarithm: such an image comes last, and its score stays a number."""
STRATIFIED: Final = 0.66
"""Fraction of the batch that is divided over the classes."""


@acquisition_function(
    "power_bald",
    summary="BALD with seeded noise, which spreads the batch over the pool at almost no cost",
    unit="log nats, with Gumbel noise",
    range="any real number",
    min_passes=2,
    source="Kirsch, Farquhar, Atighehchian, Jesson, Branchaud-Charron & Gal 2023, arXiv:2106.12059",
    batch=True,
)
def rank_power_bald(inputs: AcquisitionInputs, batch_size: int, seed: int) -> Float[Tensor, " images"]:
    """BALD with seeded noise; the batch size has no influence."""
    del batch_size
    return power_bald(given(inputs.probs, "probs", "power_bald"), seeded_draws(inputs.ids, seed, "power_bald "))


def power_bald(
    probs: Float[Tensor, "images passes classes"], draws: UInt64[npt.NDArray[np.uint64], " images"]
) -> Float[Tensor, " images"]:
    """BALD on a logarithmic scale, with Gumbel noise.

    ``score(x) = log I(y; w | x) + Gumbel noise``, beta = 1: image x ranks first with a probability proportional to its
    BALD score, and the next ones likewise among the remaining images. Copies of the best image therefore do not fill
    the batch, at the cost of BALD.

    Args:
        probs: softmax outputs of the stochastic passes; each row sums to 1.
        draws: one uniform draw per image, from which its noise is computed.

    Returns:
        Scores, log nats with noise: any number, always finite.

    Raises:
        ValueError: fewer than 2 passes.

    Source:
        Kirsch, Farquhar, Atighehchian, Jesson, Branchaud-Charron & Gal 2023, arXiv:2106.12059.
    """
    return bald(probs).cpu().clamp_(min=_TINY).log_() + torch.from_numpy(gumbel(draws))


@acquisition_function(
    "batch_bald",
    summary="the batch with the largest mutual information between its labels and the weights; avoids similar images",
    unit="nats",
    range="0 .. log C: gain over the earlier picks; for the rest, its BALD score",
    min_passes=2,
    source="Kirsch, van Amersfoort & Gal 2019, arXiv:1906.08158",
    batch=True,
)
def rank_batch_bald(inputs: AcquisitionInputs, batch_size: int, seed: int) -> Selection:
    """The batch by ``batch_bald``, each image scored by what it adds; then the rest by BALD alone."""
    probs = given(inputs.probs, "probs", "batch_bald")
    images, passes, _ = probs.shape
    wanted = PASSES_PER_PICK * min(batch_size, images)
    if passes < wanted:
        _log.warning(
            "few_passes_for_batch_bald",
            passes=passes,
            batch_size=batch_size,
            wanted=wanted,
            hint="the gains of the last picks are lost in noise: raise passes or lower batch_size",
        )
    picks = batch_bald(probs, batch_size, seed=seed, ties=inputs.ties(seed))
    scores = bald(probs).cpu()
    scores[picks.images] = picks.gains
    return Selection(picks.images, scores)


class Picks(NamedTuple):
    """A batch in the order in which it was picked."""

    images: Int64[Tensor, " picks"]
    """Positions in the pool."""
    gains: Float[Tensor, " picks"]
    """Mutual information that each pick adds to that of the earlier picks, in nats."""


def batch_bald(
    probs: Float[Tensor, "images passes classes"],
    batch_size: int,
    *,
    seed: int = 0,
    ties: Int64[Places, " images"] | None = None,
    configurations: int = 500,
) -> Picks:
    """Select greedily the batch with the largest mutual information between its labels and the weights.

    Each pick maximises ``I(y_1 .. y_b; w) = H(y_1 .. y_b) - Σ_i mean_t H(y_i | w_t)`` given the earlier picks. The
    gain of image x is the entropy of its prediction under the posterior over the T masks that a labelling of the picks
    implies, averaged over their labellings, minus its mean entropy over the masks. All ``C^b`` labellings are
    enumerated up to ``configurations``; beyond, that many are drawn again at each step, since the greedy selection
    would overfit a fixed set.

    Args:
        probs: softmax outputs of the stochastic passes; each row sums to 1. Pass t must be the same network (one
            dropout mask) for every image, or their joint means nothing.
        batch_size: images to pick; a smaller pool is picked whole.
        seed: of the drawn labellings, and of the ties where ``ties`` is not given.
        ties: place of each image in the order that settles ties; the lower wins.
        configurations: labellings of the picks that are averaged over.

    Returns:
        Picks in order. Gains are nats: the first is the pool's best BALD score; together they cannot exceed
        ``log T`` but for sampling error.

    Raises:
        ValueError: ``batch_size`` or ``configurations`` below 1, or fewer than 2 passes.

    Source:
        Kirsch, van Amersfoort & Gal 2019, arXiv:1906.08158. Greedy is within ``1 - 1/e`` of the best batch, and
        lazily so: Minoux 1978, doi:10.1007/BFb0006528.
    """
    if batch_size < 1 or configurations < 1:
        raise ValueError(f"batch_size and configurations must be at least 1, got {batch_size} and {configurations}")
    probs = float_tensor("probs", probs)
    if ties is None:
        ties = np.argsort(seeded_order([str(i) for i in range(len(probs))], seed))
    with torch.inference_mode():  # thousands of small operations: nothing is noted for a gradient
        picks, gains = _greedy(probs, batch_size, seed, ties, configurations)
    return Picks(torch.tensor(picks, dtype=torch.int64), torch.tensor(gains, dtype=torch.float64))


def _greedy(
    probs: Float[Tensor, "images passes classes"],
    batch_size: int,
    seed: int,
    ties: Int64[Places, " images"],
    configurations: int,
) -> tuple[list[int], list[float]]:
    single = bald(probs)
    candidates = _Candidates(probs, single)
    # What an image adds can only shrink as the batch grows (the joint information is submodular): the gain last
    # computed bounds the next one, and most candidates never need to be scored again.
    bounds = single.cpu().numpy().copy()
    batch = _Batch(configurations, candidates.dtype)
    picks: list[int] = []
    gains: list[float] = []
    for step in range(min(batch_size, len(probs))):
        if step == 0:
            pick = int(np.lexsort((ties, -bounds))[0])
        else:
            given = batch.posteriors(np.random.default_rng([seed % 2**64, step]))
            pick = _next_pick(candidates, candidates.matching(given), bounds, ties)
        picks.append(pick)
        gains.append(max(float(bounds[pick]), 0.0))
        bounds[pick] = -np.inf
        batch.add(probs[pick])
    return picks, gains


class _Posteriors(NamedTuple):
    """What labellings of the picks say about the masks."""

    masks: Float[Tensor, "configurations passes"]
    """Each row the posterior over the T masks, given one labelling."""
    weights: Float[Tensor, " configurations"]
    """Probability of each labelling, or equal shares where they were drawn."""
    drawn: bool

    def few(self) -> "_Posteriors | None":
        """Every n-th of the labellings, which are drawn mask by mask; None where that would save little."""
        step = len(self.masks) // _FEW
        if not self.drawn or step < 2:
            return None
        masks = self.masks[::step].contiguous()
        return _Posteriors(masks, masks.new_full((len(masks),), 1.0 / len(masks)), drawn=True)


class _Candidates:
    """The pool, laid out so that the predictions of many candidates are one matrix product.

    Args:
        probs: [images, passes, classes].
        single: their BALD scores.
    """

    def __init__(self, probs: Float[Tensor, "images passes classes"], single: Float[Tensor, " images"]) -> None:
        self.dtype = torch.promote_types(probs.dtype, torch.float32)
        # The last class is what the others leave of 1.
        self._columns = [column.to(self.dtype).contiguous() for column in probs.unbind(dim=-1)[:-1]]
        self._noise = entropy(probs) - single  # mean entropy over the masks, nats
        self._smallest = torch.finfo(self.dtype).tiny

    def matching(self, given: _Posteriors) -> _Posteriors:
        """The posteriors where the candidates lie, in their precision."""
        like = self._columns[0]
        return _Posteriors(given.masks.to(like), given.weights.to(like), given.drawn)

    def gains(self, images: Int64[Places, " some"], given: _Posteriors) -> Float[Values, " some"]:
        """What each of these images adds, in nats."""
        if len(images) <= _BLOCK:
            return self._gains(images, given)
        blocks = np.split(images, range(_BLOCK, len(images), _BLOCK))
        return np.concatenate([self._gains(block, given) for block in blocks])

    def _gains(self, images: Int64[Places, " some"], given: _Posteriors) -> Float[Values, " some"]:
        block = torch.from_numpy(images).to(self._noise.device)
        predictive = [given.masks @ column[block].T for column in self._columns]
        rest = torch.rsub(predictive[0], 1.0)
        for part in predictive[1:]:
            rest -= part
        rest.clamp_(min=self._smallest)
        information = rest.log().mul_(rest)  # Σ_c q_c log q_c
        for part in predictive:
            part.clamp_(min=self._smallest)
            information.addcmul_(part, part.log())
        gains: Values = (-(given.weights @ information).double() - self._noise[block]).cpu().numpy()
        return gains


class _Batch:
    """The picks so far, and what their labels would say about the masks.

    Args:
        limit: labellings at most, but for one a mask.
        dtype: of the posteriors.
    """

    def __init__(self, limit: int, dtype: torch.dtype) -> None:
        self._limit = limit
        self._dtype = dtype
        self._cumulative: list[Tensor] = []  # of each pick, over the classes: passes, classes - 1
        self._odds: list[Tensor] = []  # log p of each class but the last, less that of the last: classes - 1, passes
        self._last: list[Tensor] = []  # log p of the last class: passes

    def add(self, probs: Float[Tensor, "passes classes"]) -> None:
        """One pick more."""
        probs = probs.double().cpu()
        cumulative = probs.cumsum(dim=-1)
        # A draw never falls on a class of probability 0: its threshold is its neighbour's.
        self._cumulative.append(cumulative[:, :-1] / cumulative[:, -1:])
        logs = probs.clamp(min=_TINY).log().T
        self._odds.append(logs[:-1] - logs[-1])
        self._last.append(logs[-1])

    def posteriors(self, generator: np.random.Generator) -> _Posteriors:
        """Over all labellings, or as many as the limit allows, drawn."""
        odds = torch.stack(self._odds)  # picks, classes - 1, passes
        picks, others, passes = odds.shape
        drawn = (others + 1) ** picks > self._limit
        # Which pick has which class but the last, as ones and zeros: one product instead of a gather a pick.
        chosen = self._draw(generator) if drawn else _all_labellings(picks, others + 1)
        log_joint = torch.addmm(
            torch.stack(self._last).sum(dim=0), chosen.flatten(start_dim=1).double(), odds.flatten(end_dim=1)
        )
        if drawn:
            weights = log_joint.new_full((len(chosen),), 1.0 / len(chosen))
        else:
            weights = log_joint.logsumexp(dim=1).exp() / passes
        # In float64 until no large number is left.
        shifted = (log_joint - log_joint.amax(dim=1, keepdim=True)).to(self._dtype)
        return _Posteriors(shifted.softmax(dim=1), weights, drawn)

    def _draw(self, generator: np.random.Generator) -> Bool[Tensor, "configurations picks others"]:
        """Equally many labellings from each mask, those of one mask spread like a Latin hypercube."""
        thresholds = torch.stack(self._cumulative)  # picks, passes, classes - 1
        picks, passes, others = thresholds.shape
        each = -(-self._limit // passes)
        strata = generator.permuted(np.broadcast_to(np.arange(each), (picks, passes, each)), axis=-1)
        uniform = torch.from_numpy((strata + generator.random((picks, passes, each))) / each)
        above = [uniform >= thresholds[..., label, None] for label in range(others)]
        # Class c: above all thresholds before its own, and not above that.
        chosen = [~above[0], *(before & ~own for before, own in pairwise(above))]
        return torch.stack(chosen, dim=-1).flatten(start_dim=1, end_dim=2).transpose(0, 1)


def _all_labellings(picks: int, classes: int) -> Bool[Tensor, "configurations picks others"]:
    labels = torch.from_numpy(np.indices((classes,) * picks).reshape(picks, -1).T)
    return labels[..., None] == torch.arange(classes - 1)


def _next_pick(
    candidates: _Candidates, given: _Posteriors, bounds: Float[Values, " images"], ties: Int64[Places, " images"]
) -> int:
    """The image that adds most; writes what it finds out into ``bounds``.

    Who may still win is scored over few labellings, and only the best of them over all.
    """
    left = int(np.isfinite(bounds).sum())  # a picked image has minus infinity
    leaders = _highest(bounds, min(_LEADERS, left), ties)
    bounds[leaders] = candidates.gains(leaders, given)
    near = bounds + _SLACK_NATS >= bounds[leaders].max()
    near[leaders] = False
    waiting = np.flatnonzero(near)
    if len(waiting) > _FINALISTS and (few := given.few()) is not None:
        rough = candidates.gains(waiting, few)
        bounds[waiting] = np.minimum(bounds[waiting], rough)
        waiting = waiting[_highest(rough, _FINALISTS, ties[waiting])]
    if len(waiting):
        # In one order, however the pool arrives: a product's last bit depends on its place in the block.
        waiting = waiting[np.argsort(ties[waiting])]
        bounds[waiting] = candidates.gains(waiting, given)
    scored = np.concatenate([leaders, waiting])
    level = scored[bounds[scored] >= bounds[scored].max() - _TIE_NATS]
    return int(level[ties[level].argmin()])


def _highest(values: Float[Values, " some"], count: int, ties: Int64[Places, " some"]) -> Int64[Places, " count"]:
    """Positions of the highest values, level ones at the border by their ties; in the order of ties."""
    rounded = np.round(values / _TIE_NATS)
    border = -np.partition(-rounded, count - 1)[count - 1]
    above, level = np.flatnonzero(rounded > border), np.flatnonzero(rounded == border)
    chosen = np.concatenate([above, level[np.argsort(ties[level])[: count - len(above)]]])
    return chosen[np.argsort(ties[chosen])]


@acquisition_function(
    "class_balanced",
    summary="uncertain images of every class: more places for the classes whose predictions are less sure",
    unit="nats",
    range="0 .. log C: entropy, of a pick for a class times the probability of the class",
    source="after Lüth, Traub, Kahl et al. 2026, arXiv:2601.13677",
    batch=True,
)
def rank_class_balanced(inputs: AcquisitionInputs, batch_size: int, seed: int) -> Selection:
    """The batch by ``class_balanced``, then the rest by entropy."""
    return class_balanced(given(inputs.probs, "probs", "class_balanced"), batch_size, ties=inputs.ties(seed))


def class_balanced(
    probs: Float[Tensor, "images passes classes"], batch_size: int, *, ties: Int64[npt.NDArray[np.int64], " images"]
) -> Selection:
    """Select for every class the images that are uncertain and likely of that class, and others by uncertainty alone.

    Of the batch, 66 % is divided over the classes: the best images by ``p̄_c(x) H(p̄(x))`` for class c, the rest by
    ``H(p̄(x))``. Class c gets places in proportion to the mean entropy of the images that are predicted as c: an easy
    class needs few, though it may be rare. Places are filled in turn, so that every part of the batch is divided alike.

    The paper divides evenly, and adds noise to the logarithm of the scores, less of it the more labels there are.
    Neither is done here; see docs/researchers.md#strategies.

    Args:
        probs: softmax outputs of the stochastic passes; each row sums to 1.
        batch_size: images to pick; a smaller pool is picked whole.
        ties: place of each image in the order that settles ties; the lower wins.

    Returns:
        Picks in order. Scores in nats: of an image picked for a class ``p̄_c H(p̄)``, of every other ``H(p̄)``; 0 to
        ``log C``.

    Source:
        After Lüth, Traub, Kahl et al. 2026, arXiv:2601.13677 (ClaSP PE).
    """
    probs = float_tensor("probs", probs)
    uncertainty = entropy(probs).cpu().numpy()
    mean = probs.mean(dim=1, dtype=torch.float64).cpu().numpy()
    quotas = np.append(STRATIFIED * _shares(mean, uncertainty), 1.0 - STRATIFIED)
    by_kind = np.vstack([mean.T * uncertainty, uncertainty])
    waiting, scores = by_kind.copy(), uncertainty.copy()
    taken = np.zeros(len(quotas))
    picks: list[int] = []
    while len(picks) < min(batch_size, len(uncertainty)):
        kind = int(np.argmax(quotas * (len(picks) + 1) - taken))
        pick = largest(waiting[kind], ties)
        picks.append(pick)
        taken[kind] += 1
        scores[pick] = by_kind[kind, pick]
        waiting[:, pick] = -1.0
    return Selection(torch.tensor(picks, dtype=torch.int64), torch.from_numpy(scores))


def _shares(
    mean: Float[npt.NDArray[np.float64], "images classes"], uncertainty: Float[npt.NDArray[np.float64], " images"]
) -> Float[npt.NDArray[np.float64], " classes"]:
    """Of each class in the stratified part of the batch; together 1."""
    predicted = mean.argmax(axis=1)
    of_class = [uncertainty[predicted == label] for label in range(mean.shape[1])]
    # A class that is predicted nowhere counts as the pool as a whole.
    groups = [one if len(one) else uncertainty for one in of_class]
    # The exact sum, so that the order of arrival has no influence.
    doubt = np.array([math.fsum(one) / max(1, len(one)) for one in groups])
    return doubt / doubt.sum() if doubt.sum() > 0 else np.full(len(doubt), 1.0 / len(doubt))
