"""Models of readers: the class of each image and the quality of each reader, from their answers alone.

Both fit by expectation maximisation in NumPy: the web process imports this, and must not load scikit-learn or torch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from jaxtyping import Float64, Int64

Indices: TypeAlias = Int64[npt.NDArray[np.int64], " reads"]
Probabilities: TypeAlias = Float64[npt.NDArray[np.float64], "images classes"]
Array: TypeAlias = npt.NDArray[np.float64]

_UNCHANGED: Final = 1e-6
# Reads at which a model counts as much as the plain shares of the answers.
_TRUSTED_READS: Final = 10
# Pseudo-reads of each reader and true class: three right ones, and one wrong one.
_RIGHT, _WRONG = 3.0, 1.0
# Severities within a class, in classes. Extreme images are easier to read: outwards the end classes are twice as wide.
_OFFSETS: Final = np.array([-0.24, -0.12, 0.0, 0.12, 0.24])
# What a reader may be like, and how likely before the first answer: bias in classes (most readers have none: a Cauchy
# prior lets few have much), standard deviation of the error in classes, share of answers that are pure chance.
_BIASES: Final = np.linspace(-1.5, 1.5, 41)
_BIAS_SCALE: Final = 0.1
_ERRORS: Final = np.geomspace(0.15, 2.0, 12)
_ERROR, _ERROR_SPREAD = 0.45, 0.5  # median, and standard deviation of the logarithm
_LAPSES: Final = np.array([0.02, 0.1, 0.3])


@dataclass(frozen=True, slots=True, eq=False)
class Reads:
    """Answers as indices, those of an image together, the images ascending.

    Attributes:
        images: of each read; every image from 0 to ``n - 1`` has one or more, or a truth.
        readers: of each read, from 0.
        answers: class of each read.
        shares: share of each class in the counted answers of each image.
        truths: class of each image where it is known, else -1.
    """

    images: Indices
    readers: Indices
    answers: Indices
    shares: Probabilities
    truths: Int64[npt.NDArray[np.int64], " images"]

    @property
    def classes(self) -> int:
        return int(self.shares.shape[1])

    def per_reader(self) -> Int64[npt.NDArray[np.int64], " readers"]:
        """Number of reads of each reader."""
        found: Int64[npt.NDArray[np.int64], " readers"] = np.bincount(self.readers)
        return found

    def posterior(self, prior: Array, log_likelihood: Array) -> Array:
        """Probability of each state of each image.

        Args:
            prior: log probability [states], or [images, states].
            log_likelihood: of an answer, [readers, answers, states].
        """
        logits = np.broadcast_to(prior, (len(self.shares), log_likelihood.shape[2])).copy()
        if len(self.images):
            starts = np.flatnonzero(np.diff(self.images, prepend=-1))
            logits[self.images[starts]] += np.add.reduceat(log_likelihood[self.readers, self.answers], starts)
        return _softmax(logits)

    def counts(self, states: Array) -> Array:
        """Expected number of answers, [readers, answers, states], given the probability of the states of each image."""
        readers, classes = int(self.readers.max(initial=-1)) + 1, self.classes
        cells = self.readers * classes + self.answers
        found = [np.bincount(cells, weights=column[self.images], minlength=readers * classes) for column in states.T]
        stacked: Array = np.stack(found, axis=1)
        return stacked.reshape(readers, classes, states.shape[1])

    def shrunk(self, probabilities: Probabilities) -> Probabilities:
        """Shrink a model's probabilities to the shares of the answers where its readers have few reads.

        A read counts if it can be compared: the image has another one, or a truth. With ``n`` such reads of the readers
        of an image, on average, the model has the weight ``n / (n + 10)``. A truth keeps its shares.
        """
        per_image = np.bincount(self.images, minlength=len(self.shares))
        known_class = self.truths >= 0
        compared = (per_image > 1) | known_class
        known = np.bincount(self.readers, weights=compared[self.images])
        mean = np.bincount(self.images, known[self.readers], len(self.shares)) / np.maximum(per_image, 1)
        weight = np.where(known_class, 0.0, mean / (mean + _TRUSTED_READS))[:, None]
        mixed: Probabilities = weight * probabilities + (1.0 - weight) * self.shares
        return mixed


def dawid_skene(reads: Reads, right: float = _RIGHT, wrong: float = _WRONG, steps: int = 50) -> Probabilities:
    """Posterior of each image's class, with a confusion matrix per reader.

    ``P(c | answers) ~ p(c) prod_r e_r(answer | c)``; expectation maximisation from the shares of the answers. The class
    frequencies have one pseudo-image a class.

    Args:
        reads: of all images.
        right: pseudo-reads of each reader and true class that are right; with both at 0 it is maximum likelihood.
        wrong: the same, wrong, spread over the other classes.
        steps: at most; it stops where no probability changes by 1e-6.

    Source:
        Dawid & Skene 1979, doi:10.2307/2346806; the Dirichlet prior as in Kim & Ghahramani 2012.
    """
    pseudo = np.full((reads.classes, reads.classes), wrong / (reads.classes - 1))
    np.fill_diagonal(pseudo, right)
    known = _known(reads, np.arange(reads.classes))

    def step(posterior: Array) -> Array:
        counts = reads.counts(posterior) + pseudo
        totals = counts.sum(axis=1, keepdims=True)
        errors = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
        frequencies = posterior.sum(axis=0) + (right + wrong > 0)
        return reads.posterior(known + _log(frequencies / frequencies.sum()), _log(errors))

    return _converged(step, reads.shares, steps)


@dataclass(frozen=True, slots=True, eq=False)
class OrdinalFit:
    """Result of ``ordinal``.

    Attributes:
        probabilities: posterior of each image's class.
        biases: posterior mean of each reader's bias, in classes, at most 1.5 either way.
        precisions: posterior mean of 1 / variance of each reader's error, in 1 / classes^2.
    """

    probabilities: Probabilities
    biases: Array
    precisions: Array


def ordinal(reads: Reads, steps: int = 40) -> OrdinalFit:
    """Posterior of each image's class, from a latent severity per image and a bias and a precision per reader.

    An image of class c has a severity near c; a reader perceives it with a bias and a normal error, and answers the
    class whose bounds, at the half-integers, contain what was perceived; a share of the answers is pure chance. Where
    the classes have other widths, the distribution of severities takes that up: it is estimated. Readers' parameters
    are averaged over a grid, so that a reader with few reads stays near the typical one; biases are relative to most
    readers', since nothing else says where the bounds of the classes are, unless ground truths do.

    Args:
        reads: of all images.
        steps: at most; it stops where no probability changes by 1e-6.

    Source:
        Kim, Lin & Nelson 2021, doi:10.1002/sim.9011 (PMC8277718), whose reader has a bias and a magnifier; there by
        Markov chains, here by variational expectation maximisation (Attias 2000).
    """
    classes = reads.classes
    class_of = np.repeat(np.arange(classes), len(_OFFSETS))
    known = _known(reads, class_of)
    bias, error, prior, table = _ordinal_grid(classes)
    weights: Array = np.empty((0, len(bias)))
    rows, first = _alike(reads)
    counted = replace(reads, images=reads.images[first], readers=rows[first], answers=reads.answers[first])
    by_row = replace(reads, readers=rows)

    def step(posterior: Array) -> Array:
        nonlocal weights
        counts = counted.counts(posterior)
        # einsum and not BLAS, whose threads cost more than they save here, and whose sums depend on their number.
        expected = np.einsum("rc,pc->rp", counts.reshape(-1, table.shape[1]), table)
        weights = _softmax(prior + expected)
        frequencies = posterior.sum(axis=0) + 1.0
        log_likelihood = np.einsum("rp,pc->rc", weights, table).reshape(counts.shape)
        return by_row.posterior(known + _log(frequencies / frequencies.sum()), log_likelihood)

    start = reads.shares[:, class_of] / len(_OFFSETS)
    posterior = _converged(step, start, steps)
    by_class = posterior.reshape(len(posterior), classes, len(_OFFSETS)).sum(axis=2)
    row_of = np.empty(len(reads.per_reader()), int)
    row_of[reads.readers] = rows
    return OrdinalFit(by_class, (weights @ bias)[row_of], (weights @ error**-2.0)[row_of])


def _alike(reads: Reads) -> tuple[Indices, npt.NDArray[np.bool_]]:
    """Row of the model's parameters for each read, and which reads the rows count.

    A reader has a row of their own, except where readers with a single read have given the same answer to images that
    the model cannot tell apart. All that is known about them is the same, and they share the row of the first: answers
    whose author was deleted count as a reader each.
    """
    who = np.where(reads.per_reader()[reads.readers] == 1, -1, reads.readers).tolist()
    answers, images = reads.answers.tolist(), reads.images.tolist()
    of_image: dict[int, list[tuple[int, int]]] = {}
    for image, *read in zip(images, who, answers, strict=True):
        of_image.setdefault(image, []).append((read[0], read[1]))
    seen = {
        image: (tuple(sorted(found)), int(reads.truths[image]), reads.shares[image].tobytes())
        for image, found in of_image.items()
    }
    known: dict[object, int] = {}
    rows, first = [], []
    for image, reader, answer in zip(images, who, answers, strict=True):
        key = reader if reader >= 0 else (answer, seen[image])
        first.append(reader >= 0 or key not in known)
        rows.append(known.setdefault(key, len(known)))
    return np.array(rows, int), np.array(first, bool)


@cache
def _ordinal_grid(classes: int) -> tuple[Array, Array, Array, Array]:
    """The grid of a reader's parameters: bias, standard deviation, log prior, and log probability of an answer.

    The last is [parameters, answers x severities].
    """
    from scipy.special import ndtr  # noqa: PLC0415 - 0.2 s that the web server's start is spared

    offsets = np.tile(_OFFSETS, (classes, 1))
    offsets[0] *= np.where(_OFFSETS < 0, 2.0, 1.0)
    offsets[-1] *= np.where(_OFFSETS > 0, 2.0, 1.0)
    severities = (np.arange(classes)[:, None] + offsets).ravel()
    bias, error, lapse = (axis.ravel() for axis in np.meshgrid(_BIASES, _ERRORS, _LAPSES, indexing="ij"))
    prior = -np.log1p((bias / _BIAS_SCALE) ** 2) - 0.5 * (np.log(error / _ERROR) / _ERROR_SPREAD) ** 2
    bounds = np.concatenate([[-np.inf], np.arange(classes - 1) + 0.5, [np.inf]])
    below = ndtr((bounds[:, None] - severities - bias[:, None, None]) / error[:, None, None])
    answers = (1.0 - lapse[:, None, None]) * np.diff(below, axis=1) + lapse[:, None, None] / classes
    return bias, error, prior, np.log(answers).reshape(len(bias), -1)


def _converged(step: Callable[[Array], Array], start: Array, steps: int) -> Array:
    current = start
    for _ in range(steps):
        before, current = current, step(current)
        if np.abs(current - before).max(initial=0.0) < _UNCHANGED:
            break
    return current


def _softmax(logits: Array) -> Array:
    """Of each row."""
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Array = weights / weights.sum(axis=1, keepdims=True)
    return shares


def _known(reads: Reads, class_of: Any) -> Array:
    """Log prior that rules out all states but those of the true class, where it is known."""
    truths = reads.truths[:, None]
    return np.where((truths >= 0) & (truths != class_of), -np.inf, 0.0)


def _log(values: Array) -> Array:
    # Not -inf: an answer that was ruled out for every class would give NaN.
    found: Array = np.log(np.maximum(values, 1e-300))
    return found
