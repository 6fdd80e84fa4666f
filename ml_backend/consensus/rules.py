"""Consensus rules: the annotations of several readers in, at most one label per image out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, cast

import numpy as np
import numpy.typing as npt

from ml_backend.config.settings import CONSENSUS_RULES
from ml_backend.consensus import readers as models
from ml_backend.consensus.readers import Probabilities, Reads
from ml_backend.registry import load_plugin
from ml_backend.schemas import Annotation, Exclusion, ImageRef, Label, natural_order
from ml_backend.seeding import seeded_draws


@dataclass(frozen=True, slots=True)
class ReaderEstimate:
    """What a rule found out about one reader.

    Attributes:
        rater: as in the annotations.
        reads: answers that are classes, those that a ground truth overrides among them.
        bias: by how many classes the reader answers too severely on average; negative: too mildly.
        precision: inverse variance of the reader's error, in 1 / classes^2; higher is better.
    """

    rater: str
    reads: int
    bias: float
    precision: float


@dataclass(frozen=True, slots=True)
class Consensus:
    """At most one label per image, and the images without one; both in the order of their image ids.

    ``readers`` are in the order of their names; only ``ordinal`` estimates them.
    """

    labels: tuple[Label, ...]
    exclusions: tuple[Exclusion, ...] = ()
    readers: tuple[ReaderEstimate, ...] = ()


@dataclass(frozen=True, slots=True)
class Answers:
    """The votes about one image: never empty, every one a class.

    Attributes:
        image: as the latest of its annotations has it.
        votes: index of the class in the ordinal list, least severe first; one a reader, in ascending order. Where
            annotations are marked as ground truth, one for each of these instead.
        ground_truth: the votes are ground truths, which override the readers.
        overridden: answers of readers that a ground truth overrides, without skips; a value need not be a class.
        unsure: one ground truth gives a class, and another says that none can be given.
        reads: reader and class of each reader's answer, the latest last; those that a ground truth overrides too.
    """

    image: ImageRef
    votes: tuple[int, ...]
    ground_truth: bool = False
    overridden: tuple[str, ...] = ()
    unsure: bool = False
    reads: tuple[tuple[str, int], ...] = ()

    def disputes(self, value: str) -> int:
        """How many readers' answers a ground truth overrides with this label."""
        return sum(answer != value for answer in self.overridden)


def gather(annotations: Sequence[Annotation], classes: Sequence[str]) -> tuple[list[Answers], list[Exclusion]]:
    """Sort the annotations by image and keep those that count.

    Of one reader's annotations of an image the latest counts. If annotations of the image are marked as ground truth,
    those alone count, each of them: Label Studio marks every imported annotation so, and gives those without an author
    to the user who imports, so that neither time nor author says which of them is right. A reader who skipped the image
    or called it unreadable casts no vote. An image to which a counted annotation gives an ignored class has no label:
    without that answer the consensus would be another.

    Args:
        annotations: in any order.
        classes: ordinal, least severe first.

    Returns:
        Images with at least one vote, and the images that can have no label, each with the reason; both in the order
        of their ids, however the annotations came.
    """
    severity = {name: index for index, name in enumerate(classes)}
    by_image: dict[str, list[Annotation]] = {}
    for annotation in annotations:
        by_image.setdefault(annotation.image.id, []).append(annotation)
    answers: list[Answers] = []
    exclusions: list[Exclusion] = []
    for image_id in sorted(by_image, key=natural_order):
        found = _of_one_image(by_image[image_id], severity)
        if isinstance(found, Answers):
            answers.append(found)
        else:
            exclusions.append(found)
    return answers, exclusions


def _of_one_image(annotations: Sequence[Annotation], severity: Mapping[str, int]) -> Answers | Exclusion:
    # Equal times must not leave the choice to the order of arrival: then the more severe answer counts.
    in_time = sorted(
        annotations,
        key=lambda a: (a.updated_at, severity.get(a.value or "", -1), a.value or "", a.rater, a.ground_truth),
    )
    image = in_time[-1].image
    truths = [annotation for annotation in in_time if annotation.ground_truth]
    last_of = {annotation.rater: place for place, annotation in enumerate(in_time)}
    latest = [in_time[place] for place in sorted(last_of.values())]
    counted = truths or latest
    values = [annotation.value for annotation in counted if annotation.value is not None]
    ignored = sorted({annotation.value or "" for annotation in counted if annotation.ignored})
    if unknown := sorted(set(values) - severity.keys() - set(ignored)):
        return Exclusion(
            image_id=image.id,
            kind="no class",
            reason=f"image {image.id} is labelled {', '.join(map(repr, unknown))}, which is not a class of this "
            f"project: known are {', '.join(severity)}; correct the annotation, or, if a class was renamed in Label "
            f"Studio, add alias={unknown[0]!r} to its Choice, which keeps these labels",
        )
    if ignored:
        return Exclusion(
            image_id=image.id,
            kind="ignored class",
            reason=f"image {image.id} is labelled {', '.join(map(repr, ignored))}, which ignore_classes leaves out",
        )
    if not values:
        who = "its ground truth" if truths else "its reader" if len(counted) == 1 else f"all {len(counted)} readers"
        if all(annotation.unanswered for annotation in counted):
            return Exclusion(
                image_id=image.id,
                kind="no answer",
                reason=f"{who} gave image {image.id} no answer to the question: it is optional, or its "
                "condition was not met",
            )
        return Exclusion(
            image_id=image.id,
            kind="no answer",
            reason=f"{who} skipped image {image.id} or gave it no class",
        )
    votes = tuple(sorted(severity[value] for value in values))
    reads = tuple(
        (one.rater, severity[one.value or ""])
        for one in latest
        if not one.ground_truth and (one.value or "") in severity
    )
    if not truths:
        return Answers(image, votes, reads=reads)
    # A reader whose latest annotation is the ground truth has no other answer: it was given up for that.
    overridden = tuple(one.value for one in latest if not one.ground_truth and one.value is not None)
    unsure = any(one.value is None and not one.unanswered for one in truths)
    return Answers(image, votes, ground_truth=True, overridden=overridden, unsure=unsure, reads=reads)


def median(annotations: Sequence[Annotation], classes: Sequence[str]) -> Consensus:
    """The ordinal median of each image's answers.

    With an odd number of readers it is the middle answer. With an even number the two middle answers can differ; then
    the more severe one is taken, since overlooking a disease costs more than suspecting one, and the label is marked as
    disputed. The same holds for ``normal`` against ``severe``: an ordinal scale has no midpoint, and no reader
    answered ``moderate``. Ground truths are treated in the same way; the label is marked as disputed
    if any two of them differ, or if they override a reader's answer that differs.

    Args:
        annotations: in any order; which of them count, see ``gather``.
        classes: ordinal, least severe first.

    Returns:
        Labels and exclusions in the order of the image ids. ``raters`` of a label is the number of answers that count,
        or of ground truths if these decide; ``probabilities`` are the shares of these.

    Source:
        Gabriel et al. 2025, arXiv:2508.21263, for the median; the even case is not in the paper.
    """
    answers, exclusions = gather(annotations, classes)
    shares = _shares(answers, len(classes))
    return _consensus(answers, exclusions, classes, _middle(shares), shares)


def majority(annotations: Sequence[Annotation], classes: Sequence[str]) -> Consensus:
    """The most frequent answer of each image; the classes need no order.

    Of several that are equally frequent one is drawn, by a hash of the image's id, so that the same one is drawn in
    every round; the label is marked as disputed.

    The arguments and the result are those of ``median``.
    """
    answers, exclusions = gather(annotations, classes)
    shares = _shares(answers, len(classes))
    return _consensus(answers, exclusions, classes, _most_frequent(answers, shares), shares)


def dawid_skene(annotations: Sequence[Annotation], classes: Sequence[str]) -> Consensus:
    """The most probable class of each image, with a confusion matrix per reader; the classes need no order.

    See ``readers.dawid_skene``; where readers have few reads the probabilities are shrunk to the shares of the answers.
    Ground truths override, and show how their readers err. A label is marked as disputed if no reader gave it, or
    answers differ and no class has two thirds of the probability.

    The arguments and the result are those of ``median``.
    """
    answers, exclusions = gather(annotations, classes)
    shares = _shares(answers, len(classes))
    reads, _ = _reads(answers, shares, _most_frequent(answers, shares)[0])
    found = reads.shrunk(models.dawid_skene(reads))
    chosen = _most_frequent(answers, found)
    return _consensus(answers, exclusions, classes, _doubted(chosen, shares, found), found)


def ordinal(annotations: Sequence[Annotation], classes: Sequence[str]) -> Consensus:
    """The median of each image's class under a model of its severity, and of each reader's bias and precision.

    See ``readers.ordinal``; where readers have few reads the probabilities are shrunk to the shares of the answers,
    whose median is that of ``median``, ties apart. Ground truths override, and show how their readers err. A label is
    marked as disputed if no reader gave it, or answers differ and no class has two thirds of the probability.

    The arguments and the result are those of ``median``; ``Consensus.readers`` has the estimates.
    """
    answers, exclusions = gather(annotations, classes)
    shares = _shares(answers, len(classes))
    reads, raters = _reads(answers, shares, _middle(shares)[0])
    fit = models.ordinal(reads)
    found = reads.shrunk(fit.probabilities)
    chosen = _doubted(_middle(found), shares, found)
    estimates = tuple(
        ReaderEstimate(*one)
        for one in zip(raters, reads.per_reader().tolist(), fit.biases.tolist(), fit.precisions.tolist(), strict=True)
    )
    return replace(_consensus(answers, exclusions, classes, chosen, found), readers=estimates)


def latest(annotations: Sequence[Annotation], classes: Sequence[str]) -> Consensus:
    """The latest answer of each image, whoever gave it; the classes need no order.

    Of several at the same time the most severe counts. Ground truths count as under ``majority``: neither time nor
    author says which of them is right. A label has no probabilities, and is disputed only by ground truths.

    The arguments and the result are those of ``median``.
    """
    answers, exclusions = gather(annotations, classes)
    chosen, _ = _most_frequent(answers, _shares(answers, len(classes)))
    last = [index if one.ground_truth else one.reads[-1][1] for one, index in zip(answers, chosen, strict=True)]
    return _consensus(answers, exclusions, classes, (np.array(last, int), np.zeros(len(answers), bool)))


_EQUAL: Final = 1e-9  # shares and probabilities that differ by less are equal
_DIGITS: Final = 6  # of a probability


def _shares(answers: Sequence[Answers], classes: int) -> Probabilities:
    """Share of each class in the votes of each image."""
    counts = np.array([len(one.votes) for one in answers], int)
    cells = np.repeat(np.arange(len(answers)) * classes, counts) + [vote for one in answers for vote in one.votes]
    found = np.bincount(cells.astype(int), minlength=len(answers) * classes).reshape(len(answers), classes)
    shares: Probabilities = found / counts[:, None]
    return shares


def _reads(answers: Sequence[Answers], shares: Probabilities, truths: npt.NDArray[np.int64]) -> tuple[Reads, list[str]]:
    """The answers as the models take them, and the names of the readers.

    Args:
        answers: of each image.
        shares: see ``_shares``.
        truths: the class of each image that has a ground truth, as the rule chooses it where several differ.
    """
    raters = sorted({rater for one in answers for rater, _ in one.reads})
    index = {rater: place for place, rater in enumerate(raters)}
    rows = [(image, index[rater], vote) for image, one in enumerate(answers) for rater, vote in one.reads]
    images, readers, votes = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    known = np.where([one.ground_truth for one in answers], truths, -1)
    return Reads(images, readers, votes, shares, known), raters


Chosen = tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]
"""Index of each image's class, and whether it was a tie."""


def _middle(probabilities: Probabilities) -> Chosen:
    """The least severe class up to which there is more than half."""
    below = np.cumsum(probabilities, axis=1)[:, :-1]
    tied = np.any(np.abs(below - 0.5) <= _EQUAL, axis=1)
    return (below <= 0.5 + _EQUAL).sum(axis=1), tied


def _most_frequent(answers: Sequence[Answers], probabilities: Probabilities) -> Chosen:
    """The class with the most; of equal ones one by a hash of the image's id."""
    best = probabilities >= probabilities.max(axis=1, keepdims=True, initial=0.0) - _EQUAL
    count = best.sum(axis=1)
    draws = seeded_draws([one.image.id for one in answers], 0, "majority ")
    nth = (draws % np.maximum(count, 1).astype(np.uint64)).astype(int)
    return (np.cumsum(best, axis=1) > nth[:, None]).argmax(axis=1), count > 1


def _doubted(chosen: Chosen, shares: Probabilities, probabilities: Probabilities) -> Chosen:
    """The choice, with ties also where no reader gave it, or answers differ and no class has two thirds."""
    index, tied = chosen
    invented = np.take_along_axis(shares, index[:, None], axis=1)[:, 0] == 0.0
    differ, doubt = shares.max(axis=1, initial=0.0) < 1.0, probabilities.max(axis=1, initial=0.0) < 2 / 3 - _EQUAL
    return index, tied | invented | (differ & doubt)


def _consensus(
    answers: Sequence[Answers],
    exclusions: Sequence[Exclusion],
    classes: Sequence[str],
    chosen: Chosen,
    probabilities: Probabilities | None = None,
) -> Consensus:
    rows = [()] * len(answers) if probabilities is None else np.round(probabilities, _DIGITS).tolist()
    labels = []
    for answer, index, tied, row in zip(answers, chosen[0].tolist(), chosen[1].tolist(), rows, strict=True):
        value = classes[index]
        differs = len(set(answer.votes)) > 1 or answer.unsure or answer.disputes(value) > 0
        labels.append(
            Label(
                image=answer.image,
                value=value,
                raters=len(answer.votes),
                disputed=differs if answer.ground_truth else tied,
                probabilities=dict(zip(classes, row, strict=True)) if row and len(answer.votes) > 1 else {},
            )
        )
    return Consensus(tuple(labels), tuple(exclusions))


def adjudication(annotations: Sequence[Annotation], classes: Sequence[str], ordered: bool) -> tuple[str, ...]:
    """Images whose readers disagree so far that somebody should decide: those without a ground truth.

    Args:
        annotations: in any order; which of them count, see ``gather``.
        classes: least severe first, if they are ordered.
        ordered: two answers must lie two classes apart, or one class where there are only two classes; otherwise any
            difference counts.

    Returns:
        Image ids, the widest disagreement first: by the distance of the extreme answers (unordered: the number of
        different ones), then by the share of answers that differ from the most frequent one, then by id.
    """
    wide = 2 if ordered and len(classes) > 2 else 1
    found = []
    for answer in gather(annotations, classes)[0]:
        votes = answer.votes
        distance = votes[-1] - votes[0] if ordered else len(set(votes)) - 1
        if distance >= wide and not answer.ground_truth:
            minority = 1.0 - max(map(votes.count, votes)) / len(votes)
            found.append((-distance, -minority, natural_order(answer.image.id), answer.image.id))
    return tuple(image_id for *_, image_id in sorted(found))


Rule = Callable[[Sequence[Annotation], Sequence[str]], Consensus]
"""Called with all annotations of a project and its classes, least severe first."""

RULES: Final[dict[str, Rule]] = {
    "median": median,
    "majority": majority,
    "dawid_skene": dawid_skene,
    "ordinal": ordinal,
    "latest": latest,
}
"""The rules of this package, by name; installed packages add more."""


def rule(name: str) -> Rule:
    """Look up a consensus rule of this package or of an installed one.

    Raises:
        ValueError: there is none; the known ones are listed.
        SettingsError: it cannot be imported.
    """
    if name in RULES:
        return RULES[name]
    if name not in CONSENSUS_RULES:
        raise ValueError(f"unknown consensus rule {name!r}: known are {', '.join(CONSENSUS_RULES)}")
    return cast("Rule", load_plugin("consensus", name))
