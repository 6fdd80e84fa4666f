"""Which labelled images are worth another read, on one scale with first reads of the pool.

The scale is ActiveLab's: how far a label, or the network's best guess, is expected to be from the truth. A read of the
image with the highest value is the best use of a reader's time, whether the image has a label or not.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence, Set
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from jaxtyping import Float64, Int64

from ml_backend.label_studio.formats import NO_AUTHOR
from ml_backend.predictions import PoolPredictions
from ml_backend.schemas import Annotation, HeldOutImage, Label, Ranking, Reread

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]

FEW: Final = 10
"""Images with two readers or more below which readers and network are weighted alike: their agreement says little."""
_LEAST: Final = 1e-6  # weight of a reader, or of a network, no better than always answering the commonest class


def closeness(classes: int, *, ordered: bool) -> Float64[Floats, "classes classes"]:
    """How close each class is to each other one: 1 on the diagonal, 0 between the ends of an ordered scale.

    ``S[a, b] = 1 - |a - b| / (C - 1)`` for ordered classes; without an order, 1 for equal classes and 0 for others.
    """
    if not ordered:
        return np.eye(classes)
    places = np.arange(classes)
    return 1.0 - np.abs(places[:, None] - places) / (classes - 1)


class ReadValues(NamedTuple):
    """Values of reads, 0 to 1; higher = read first.

    Attributes:
        again: of another read of each labelled image; NaN where nothing tells whether its label is right.
        first: of a first read of each image of the pool.
    """

    again: Float64[Floats, " labelled"]
    first: Float64[Floats, " pool"]


def read_values(
    answers: Int64[Ints, "labelled readers"],
    labels: Int64[Ints, " labelled"],
    held_out: Float64[Floats, "labelled classes"],
    pool: Float64[Floats, "pool classes"],
    *,
    ordered: bool,
) -> ReadValues:
    """ActiveLab's values of another read and of a first one.

    An image's label is worth ``q = (w_M m + sum_j w_j r_j) / (w_M + sum_j w_j)``: ``m`` is the closeness to the label
    that the network expects, ``r_j`` what the answer of reader ``j`` lets expect, and the weights are the gain of
    network and readers over always answering the commonest class. Another read is worth
    ``1 - (W q + w u) / (W + w)`` with ``W = w_M + sum_j w_j``, the readers' mean weight ``w`` and the closeness ``u``
    of a random answer. A first read has no reader's term, and the network's best guess for a label. Without an order
    these are ActiveLab's numbers, except that probabilities are not tempered, and that all weights are 1 and an answer
    is taken at its word while fewer than ``FEW`` images have two readers. ActiveLab gives single answers no weight of
    their own: a network that knows nothing yet would have every label at an end of the scale read again.

    Args:
        answers: index of the class, -1 where a reader has not answered; every image has an answer.
        labels: index of the class, by any consensus rule.
        held_out: prediction by a network that did not learn from the image; NaN where there is none: then the readers
            alone decide, and an image with one reader has no value.
        pool: the network's predictions.
        ordered: whether the classes have an order; then a near miss counts less than a far one.

    Source:
        Goh & Mueller 2023, arXiv:2301.11856; the ordinal closeness is ours.
    """
    near = closeness(pool.shape[1], ordered=ordered)
    given = answers >= 0
    reads = given.sum(axis=1)
    known = np.asarray(np.isfinite(held_out).all(axis=1))
    several = np.asarray(reads > 1)
    guesses: Ints = np.where(known, np.nan_to_num(held_out).argmax(axis=1), 0)
    right = np.where(given, near[answers, labels[:, None]], 0.0)  # closeness of each answer to the label
    model_weight, from_readers = 1.0, right
    reader_weights: Floats = np.ones(answers.shape[1])
    if several.sum() >= FEW:
        exact = np.where(given, answers == labels[:, None], 0.0)
        likely = float((exact[several].sum(axis=1) / reads[several]).mean())
        commonest = np.bincount(labels[several]).argmax()
        chance = max(float((1.0 - near[labels[several], commonest]).mean()), _LEAST)
        reader_weights = np.maximum(1.0 - (1.0 - _agreement(answers, near)) / chance, _LEAST)
        if (judged := several & known).any():
            error = float((1.0 - near[guesses[judged], labels[judged]]).mean())
            model_weight = max(1.0 - error / chance, _LEAST) * float(np.sqrt(reads.mean()))
        # A reader is right with the probability that readers have; the other classes are equally likely.
        spoken = np.full_like(near, (1.0 - likely) / (len(near) - 1))
        np.fill_diagonal(spoken, likely)
        from_readers = np.where(given, (spoken @ near)[answers, labels[:, None]], 0.0)
    weights = given * reader_weights
    expected = np.where(known, (np.nan_to_num(held_out) * near[labels]).sum(axis=1), 0.0)
    total = known * model_weight + weights.sum(axis=1)
    mean_weight = float(reader_weights.mean())
    sums = known * model_weight * expected + (weights * from_readers).sum(axis=1)
    again = 1.0 - (sums + mean_weight * near.mean(axis=0)[labels]) / (total + mean_weight)
    close = pool @ near
    best, at_random = close.max(axis=1), near.mean(axis=0)[close.argmax(axis=1)]
    first = 1.0 - (model_weight * best + mean_weight * at_random) / (model_weight + mean_weight)
    return ReadValues(np.where(known | several, again, np.nan), first)


def _agreement(answers: Int64[Ints, "labelled readers"], near: Float64[Floats, "classes classes"]) -> Floats:
    """Mean closeness of each reader's answers to those of others; of a reader without any to compare, the mean."""
    given = answers >= 0
    counts = np.stack([(answers == index).sum(axis=1) for index in range(len(near))], axis=1)
    # Of an answer to all of its image, less its own.
    sums = np.where(given, np.take_along_axis(counts @ near, np.maximum(answers, 0), axis=1) - 1.0, 0.0).sum(axis=0)
    pairs = (given * (given.sum(axis=1) - 1)[:, None]).sum(axis=0)
    found = np.divide(sums, pairs, out=np.zeros_like(sums), where=pairs > 0)
    return np.where(pairs > 0, found, found[pairs > 0].mean())


def _answers(annotations: Sequence[Annotation], classes: Sequence[str]) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Image -> reader -> class of the latest answer, -1 where there is none; and the readers who have answered."""
    seen: dict[str, dict[str, int]] = {}
    answered: set[str] = set()
    for one in sorted(annotations, key=lambda one: one.updated_at):
        of_image = seen.setdefault(one.image.id, {})
        reader = _reader(one, of_image)
        of_image[reader] = classes.index(one.value) if one.value in classes else -1
        if not one.ground_truth and one.value is not None:
            answered.add(reader)
    return seen, sorted(answered)


def _reader(annotation: Annotation, of_image: Collection[str]) -> str:
    """Who gave it: answers of one reader that count each have a suffix; see ``label_studio.sync``.

    Answers without an author are numbered in each image, so that they stay few readers.
    """
    if annotation.rater.startswith(NO_AUTHOR):
        return f"{NO_AUTHOR}{sum(name.startswith(NO_AUTHOR) for name in of_image)}"
    return annotation.rater.partition(",")[0]


def label_error(one: HeldOutImage) -> float:
    """Cross-entropy of a label minus the entropy of the prediction, in nats: high where a sure network contradicts.

    A hard image, of which the network is not sure, is no suspect.

    Source:
        Bernhardt et al. 2022, arXiv:2109.00574.
    """
    probs = np.clip(np.array(list(one.probs.values())), 1e-12, 1.0)
    return float(-np.log(max(one.probs[one.label], 1e-12)) + (probs * np.log(probs)).sum())


def with_rereads(
    ranking: Ranking,
    share: float,
    *,
    annotations: Sequence[Annotation],
    labels: Sequence[Label],
    held_out: Sequence[HeldOutImage],
    predictions: PoolPredictions,
    ordered: bool = True,
    counts: Mapping[str, int] | None = None,
    barred: Set[str] = frozenset(),
) -> Ranking:
    """The ranking with re-reads among its batch, where another read is worth more than the first read it displaces.

    The first reads that leave the batch are its last; the random holdout stays. Re-reads are spread evenly, so that
    every beginning of the batch holds about their share. Of equal values the likelier label error comes first.

    An answer without an author is a read of its image, and makes nobody a reader who could be waited for.

    Not asked again are an image that every reader of the project has had, one with a ground truth, and one about which
    nothing is known: with one answer, and without a prediction by a network that did not learn from it.

    Args:
        ranking: of the pool, by a network.
        share: of the batch that may be re-reads at most, 0 to 0.5; at 0 the ranking is returned unchanged.
        annotations: of the project.
        labels: their consensus.
        held_out: the round's; of one network those of its validation images only, of an ensemble of every label.
        predictions: of the pool.
        ordered: see ``read_values``.
        counts: number of annotations of each image, where it has others than those.
        barred: images that are not asked again, such as those that cannot be read, and those that several tasks hold:
            a reader of one would be served the other.

    Raises:
        ValueError: the share is below 0 or above 0.5.
    """
    if not 0.0 <= share <= 0.5:
        raise ValueError(f"reread_share must lie between 0 and 0.5, got {share}")
    budget, classes = int(share * ranking.batch_size + 1e-9), predictions.classes
    seen, readers = _answers(annotations, classes)
    numbers = Counter(one.image.id for one in annotations) | Counter(counts or {})
    truths = {one.image.id for one in annotations if one.ground_truth}
    named = {reader for reader in readers if not reader.startswith(NO_AUTHOR)}
    judged = [label for label in labels if label.image.id not in truths and label.value in classes]
    if not budget or not judged or not predictions.image_ids:
        return ranking
    column = {rater: place for place, rater in enumerate(readers)}
    answers = np.full((len(judged), len(readers)), -1, dtype=np.int64)
    for row, label in enumerate(judged):
        for rater, value in seen[label.image.id].items():
            if rater in column:
                answers[row, column[rater]] = value
    by_image = {one.image_id: one for one in held_out}
    known = np.array(
        [
            [by_image[label.image.id].probs[name] for name in classes]
            if label.image.id in by_image
            else [np.nan] * len(classes)
            for label in judged
        ]
    )
    values = read_values(
        answers,
        np.array([classes.index(label.value) for label in judged], dtype=np.int64),
        known,
        predictions.probs.mean(axis=1, dtype=np.float64),
        ordered=ordered,
    )
    errors: Mapping[str, float] = {name: label_error(one) for name, one in by_image.items()}
    offered = sorted(
        (-float(value), -errors.get(label.image.id, 0.0), len(label.image.id), label.image.id)
        for value, label in zip(values.again, judged, strict=True)
        if not np.isnan(value) and label.image.id not in barred and named - seen[label.image.id].keys()
    )
    first = dict(zip(predictions.image_ids, values.first.tolist(), strict=True))
    control, batch = set(ranking.control), ranking.image_ids[: ranking.batch_size]
    displaced = [first[image_id] for image_id in reversed(batch) if image_id not in control and image_id in first]
    chosen = []
    for (negative, _, _, image_id), other in zip(offered[:budget], displaced, strict=False):
        if -negative <= other:
            break
        chosen.append((image_id, -negative))
    left = len(batch) - len(chosen)
    rereads = tuple(
        Reread(
            image_id=image_id,
            after=place * left // len(chosen),
            value=value,
            label_error=errors.get(image_id),
            answers=numbers[image_id],
        )
        for place, (image_id, value) in enumerate(chosen)
    )
    return ranking.model_copy(update={"rereads": rereads})
