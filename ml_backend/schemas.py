"""Records that the rooms exchange, frozen and validated, JSON both ways; and the images that belong together.

``image`` is an element of the pool, ``annotation`` one reader's answer, ``label`` the consensus of the annotations,
``ranking`` the order in which the pool should be labelled, ``round`` one turn of the loop.
"""

import math
import re
from collections.abc import Hashable, Iterable, Mapping
from datetime import datetime
from itertools import accumulate
from typing import Annotated, Final, Literal, Self, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Seconds = Annotated[float, Field(ge=0.0)]
RoundTrigger = Literal["connected", "images", "labels", "forced", "topup", "rerank"]
"""Cause of a round. Two train nothing: ``topup`` publishes more of the last ranking, ``rerank`` ranks the last
predictions again, since the owner chose another strategy."""
ColdStart = Literal["random", "typiclust", "herding"]
"""Orders before the first network."""
ExclusionKind = Literal[
    "no image",
    "label without image",
    "unreadable answer",
    "no class",
    "ignored class",
    "ignored truth",
    "no answer",
    "same image",
    "unreadable image",
    "",
]
"""Kind of problem with an image or its label. ``no image``: a task without a label that holds no image under the label
config's key; ``label without image``: the same of a task with one; ``no answer``: readers skipped the image or called
it unreadable; ``ignored truth``: all answers are ground truths that ``ground_truth=ignore`` leaves out; ``same image``:
another task represents it; empty: anything else."""

Stage = Literal["labels", "train", "score", "rank", "save", "publish", "features", "noise"]
STAGES: Final[dict[str, str]] = {
    "labels": "reads the labels",
    "train": "trains the network",
    "score": "scores the images without a label",
    "rank": "chooses the next images",
    "save": "saves its results",
    "publish": "publishes the new order to Label Studio",
    "features": "computes the features of the images",
    "noise": "trains a second network to measure the variation between seeds; the order is served already",
}
"""Stages of a round in their order, each as the predicate of a sentence about the round."""
AFTER_A_ROUND: Final = ("features", "noise")
"""Stages after the new order is published."""


class FrozenModel(BaseModel):
    """A frozen record that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ProjectKey(FrozenModel):
    """A project, by its id and the time of its creation.

    Label Studio on sqlite reuses ids, so the id alone would mix up the rounds of two projects.
    """

    id: Annotated[int, Field(ge=1)]
    created: Annotated[int, Field(ge=0)]  # unix seconds

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``"<id>.<unix seconds>"``, the form in which Label Studio names a project to a backend.

        Raises:
            ValueError: the text has another form.
        """
        project_id, dot, created = text.partition(".")
        if not (dot and project_id.isdecimal() and created.isdecimal()):
            raise ValueError(f"a project is named '<id>.<unix seconds>', got {text!r}")
        return cls(id=int(project_id), created=int(created))

    def __str__(self) -> str:
        return f"{self.id}.{self.created}"


class Connection(FrozenModel):
    """A connected project, as ``/setup`` described it."""

    project: ProjectKey
    hostname: str  # where Label Studio says it can be reached; settings may override it
    label_config: str
    extra_params: dict[str, object] = {}


class ImageRef(FrozenModel):
    """An image of the pool. ``id`` is Label Studio's task id as text, or a path in a headless run."""

    id: Annotated[str, Field(min_length=1)]
    uri: Annotated[str, Field(min_length=1)]
    patient_id: str | None = None

    @property
    def group(self) -> str:
        """The patient, or the image itself where the patient is unknown; see also ``groups_of``."""
        return f"image {self.id}" if self.patient_id is None else f"patient {self.patient_id}"


# Values that pandas writes for an empty cell, and that people write for an unknown patient.
PATIENT_KEY = "patient_id"
NO_PATIENT = frozenset({"", "nan", "<na>", "nat", "na", "n/a", "#n/a", "none", "null", "unknown", "-", "?"})


def is_patient_key(name: str) -> bool:
    """Whether a column or a key names patients, as public data sets spell it: Patient ID, PatientID, patientId."""
    return re.sub(r"[^a-z]", "", name.casefold()) == PATIENT_KEY.replace("_", "")


def patient_of(value: object) -> str | None:
    """Patient id of a table cell or a task, as text; None where there is none.

    One patient is one text, however it was imported: Label Studio reads the column of a CSV file as numbers, and as
    ``12.0`` where one cell of it is empty.
    """
    text = "" if value is None else str(value).strip()
    if text.casefold() in NO_PATIENT:
        return None
    whole, dot, rest = text.partition(".")
    return whole if dot and whole.isdecimal() and rest.strip("0") == "" else text


def harmless_cell(cell: object) -> str:
    """Text that no spreadsheet takes for a formula; numbers stay numbers."""
    text = "" if cell is None else str(cell)
    if not text.startswith(("=", "+", "-", "@", "\t", "\r")):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def natural_order(image_id: str) -> tuple[int, str]:
    """Sort key of image ids that depends on nothing but the ids: decimal ones come in the order of their numbers."""
    return len(image_id), image_id


class Annotation(FrozenModel):
    """One reader's answer about one image.

    ``value`` is None where the reader skipped it, called it unreadable, or left the question unanswered.
    """

    image: ImageRef
    rater: str
    value: str | None
    unanswered: bool = False  # neither skipped nor answered: the question is optional, or was asked on a condition
    ignored: bool = False  # ``value`` is a class that the option ``ignore_classes`` leaves out
    ground_truth: bool = False
    updated_at: datetime


class Label(FrozenModel):
    """Consensus of the annotations of one image.

    Attributes:
        value: its class.
        raters: number of answers that count.
        disputed: the rule had to choose between classes, or a ground truth overrides an answer: worth an adjudication.
        probabilities: class -> probability by the consensus rule; they add up to 1. Empty if only one answer counts, or
            the rule gives none.
    """

    image: ImageRef
    value: str
    raters: Annotated[int, Field(ge=1)]
    disputed: bool = False
    # Not in JSON if empty: the digests of the labels of earlier versions stay valid.
    probabilities: dict[str, Share] = Field({}, exclude_if=lambda found: not found)

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.probabilities and abs((total := sum(self.probabilities.values())) - 1.0) > 1e-3:
            raise ValueError(f"the probabilities of image {self.image.id} add up to {total:.4g}, not to 1")
        return self


class Exclusion(FrozenModel):
    """An image that a round could not use, with the reason."""

    image_id: str
    reason: str
    kind: ExclusionKind = ""


class HeldOutImage(FrozenModel):
    """Prediction for a labelled image by a network that was not trained on it.

    Attributes:
        label: that the round learned from, or measured by.
        probs: softmax output averaged over the passes, by class; of an ensemble, also over the networks that were not
            trained on the image.
    """

    image_id: str
    label: str
    probs: dict[str, Share]

    @property
    def predicted(self) -> str:
        """The most probable class; of equal ones the least severe."""
        return max(self.probs, key=lambda name: self.probs[name])

    @property
    def confidence(self) -> float:
        """Its probability."""
        return self.probs[self.predicted]


class FitReport(FrozenModel):
    """Result of a training."""

    epochs: Annotated[int, Field(ge=1)]
    best_epoch: Annotated[int, Field(ge=1)]  # counted from 1; the epoch whose weights were restored
    class_weights: dict[str, float]
    train_images: Annotated[int, Field(ge=1)]
    validation_images: Annotated[int, Field(ge=1)]
    validation_loss: float
    validation_accuracy: Share
    validation_auroc: Share | None  # None where validation holds fewer than two classes
    validation_recall: dict[str, Share | None] = {}  # None where validation holds no image of the class
    began: Literal["scratch", "warm"] = "scratch"  # warm: from the last round's network
    exclusions: tuple[Exclusion, ...] = ()
    # Of every validation image. Not part of the report: a round keeps them as a record of their own.
    held_out: tuple[HeldOutImage, ...] = Field((), exclude=True)


class PutOff(FrozenModel):
    """An image that comes in a later batch than the strategy chose it for, with the reason; see ``rounds.spread``."""

    image_id: str
    reason: str


class Reread(FrozenModel):
    """A labelled image that another reader shall read; see ``rounds.reread``.

    Attributes:
        after: number of the ranking's images that come before it.
        value: of another read, 0 to 1, on the scale on which a first read is worth as much or less.
        label_error: cross-entropy of the label minus entropy of a held-out prediction, in nats; None without one.
        answers: number of its annotations then, skips included; where there are more, it has been read again.
    """

    image_id: str
    after: Annotated[int, Field(ge=0)]
    value: Share
    label_error: float | None = None
    answers: Annotated[int, Field(ge=1)]


class Ranking(FrozenModel):
    """The whole pool in the order in which it should be labelled, label first at the front.

    Scores are acquisition values aligned with ``image_ids`` (higher = label first, except that a batch-aware
    acquisition function orders its batch by its picks, that a holdout image has a random place and a sought one every
    second, and that images are put off), in the unit of the function's specification.
    """

    strategy: str
    image_ids: tuple[str, ...]
    scores: tuple[float, ...]
    batch_size: Annotated[int, Field(ge=1)]
    suggestions: dict[str, str] = {}  # image id -> the network's most probable class, where there is a network
    confidences: dict[str, Share] = {}  # image id -> the probability of that class, averaged over the passes
    control: tuple[str, ...] = ()  # the random holdout: images with a random place; see ``rounds.split``
    sought: dict[str, str] = {}  # image id -> the class with few labels that it resembles; see ``rounds.seek``
    put_off: tuple[PutOff, ...] = ()  # in a later batch than the strategy chose them for; see ``rounds.spread``
    near_duplicates: tuple[tuple[str, str], ...] = ()  # each passed over for the second, which its batch has
    exclusions: tuple[Exclusion, ...] = ()
    # Labelled images, not among ``image_ids``, in the order of their places.
    rereads: tuple[Reread, ...] = Field((), exclude_if=lambda found: not found)
    by_hand: tuple[str, ...] = Field((), exclude_if=lambda found: not found)  # in front, as the owner put them there

    def with_first(self, image_ids: Iterable[str]) -> "Ranking":
        """The ranking with those of the images that it holds in front; they are part of the holdout no more.

        Holdout images have places all over the order, and a round reads few of them: one that was moved to the front
        because of its looks has been selected. Left out, they are missing from the holdout only as far as they are of
        the pool.
        """
        scores = dict(zip(self.image_ids, self.scores, strict=True))
        first = dict.fromkeys(image_id for image_id in image_ids if image_id in scores)
        order = (*first, *(image_id for image_id in self.image_ids if image_id not in first))
        before = [0, *accumulate(image_id not in first for image_id in self.image_ids)]
        return self.model_copy(
            update={
                "image_ids": order,
                "scores": tuple(scores[image_id] for image_id in order),
                "control": tuple(image_id for image_id in self.control if image_id not in first),
                "rereads": tuple(
                    one.model_copy(update={"after": len(first) + before[min(one.after, len(before) - 1)]})
                    for one in self.rereads
                ),
                "by_hand": tuple(first),
            }
        )

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        if len(self.image_ids) != len(self.scores):
            raise ValueError(f"{len(self.image_ids)} image ids but {len(self.scores)} scores")
        if len(set(self.image_ids)) != len(self.image_ids):
            raise ValueError("an image occurs in the ranking twice")
        if not all(math.isfinite(score) for score in self.scores):
            raise ValueError("a score is NaN or infinite")
        return self


class RoundRequest(FrozenModel):
    """Request of a round: everything that decides its result, apart from labels and images."""

    project: ProjectKey
    round_id: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    reason: RoundTrigger
    classes: Annotated[tuple[str, ...], Field(min_length=2)]  # ordinal: least severe first
    strategy: str
    batch_size: Annotated[int, Field(ge=1)]
    min_labels_per_class: Annotated[int, Field(ge=2)]
    control_share: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0  # of the ranking's places; see ``rounds.split``
    per_patient: Annotated[int, Field(ge=0)] | None = None  # None: of a version without it, which bounded nothing
    validation_share: Annotated[float, Field(gt=0.0, lt=1.0)]
    cold_start: ColdStart = "random"
    seed: int
    options: dict[str, object] = {}  # all of the project's, those of the learner among them

    @property
    def has_trained_features(self) -> bool:
        """Whether the backbone's weights were trained before: otherwise its features distinguish images poorly."""
        return self.options.get("weights") != "none"


class RoundReport(FrozenModel):
    """One round, as it is saved before it is published. ``fit`` is None while the start set is still growing."""

    request: RoundRequest
    labels_per_class: dict[str, int]
    disputed: tuple[str, ...] = ()
    fit: FitReport | None
    ranking: Ranking
    exclusions: tuple[Exclusion, ...] = ()
    seconds: Mapping[str, Seconds]  # stage -> wall time of its work: labels, train, score, rank
    started_at: datetime
    inputs: str = ""  # digest of what decided the result, see ``rounds.run``
    base: str | None = None  # the earlier round whose network ranked, where this one only ranked anew

    @property
    def trained(self) -> bool:
        """Whether the round trained a network of its own."""
        return self.fit is not None and self.base is None

    @property
    def by_network(self) -> bool:
        """Whether a network made the order: the round's own, or that of ``base``. Not so before the first training."""
        return self.fit is not None or self.base is not None

    def unreadable(self) -> frozenset[str]:
        """Ids of the images that it tried to read in vain: of these, learners give no kind."""
        found = (*self.exclusions, *self.ranking.exclusions)
        return frozenset(one.image_id for one in found if one.kind in ("", "unreadable image"))


class PublishedRanking(FrozenModel):
    """The order that Label Studio serves."""

    version: Annotated[str, Field(min_length=1)]
    round_id: str
    image_ids: tuple[str, ...]  # in the order in which they will be served
    # Those of them that have a label, and are served to another reader.
    rereads: tuple[str, ...] = Field((), exclude_if=lambda found: not found)
    # That the owner put in front, as far as the round ranked them; beyond the reserve they are not served yet.
    by_hand: tuple[str, ...] = Field((), exclude_if=lambda found: not found)
    annotations: int | None = None  # with skips, as Label Studio counted them just before; None: not noted
    seconds: Mapping[str, Seconds]  # import, switch, delete
    published_at: datetime
    imported_at: AwareDatetime | None = None  # by Label Studio's clock, its newest prediction; None: not noted

    @property
    def first_reads(self) -> int:
        """Number of its images that had no label: an only reader is served no others."""
        return len(self.image_ids) - len(self.rereads)

    def completes(self, round_id: str) -> bool:
        """Whether that round is served and, the last step, what no reader can hold any more is deleted."""
        return self.round_id == round_id and "delete" in self.seconds


class HandPick(FrozenModel):
    """Images that the owner put next in the order.

    Attributes:
        by: login of the backend; ``the page`` where it needs none.
        like: the image that they resemble.
    """

    at: AwareDatetime
    by: str
    like: str
    image_ids: tuple[str, ...]


class ImportedVersion(FrozenModel):
    """A model version that this installation has imported into Label Studio, and may delete there.

    Attributes:
        version: name of the model version.
        replaced_at: when another version took its place; None while it is served, and for an import under way.
        deleting: whether no reader can hold it any more: it is deleted in lots, and may be partly deleted.
    """

    version: Annotated[str, Field(min_length=1)]
    replaced_at: AwareDatetime | None = None
    # Left out where it says nothing, so that an earlier version can read the record.
    deleting: bool = Field(False, exclude_if=lambda found: not found)


def round_name(round_id: str) -> str:
    """A round as people name it, within a sentence: ``round 8`` for ``r000008``."""
    number = round_id.removeprefix("r")
    return f"round {int(number) if number.isdecimal() else round_id}"


T = TypeVar("T", bound=Hashable)


def linked(marks_of: Mapping[T, Iterable[Hashable]]) -> dict[T, T]:
    """Connected components: items are connected where they share a mark, also by way of others.

    Args:
        marks_of: item -> what it may share with others. The order of the items decides which one represents the rest.

    Returns:
        Item -> the first item of its component.
    """
    items = list(marks_of)
    parent = list(range(len(items)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    first_with: dict[Hashable, int] = {}
    for place, item in enumerate(items):
        for mark in marks_of[item]:
            one, other = root(first_with.setdefault(mark, place)), root(place)
            parent[max(one, other)] = min(one, other)
    return {item: items[root(place)] for place, item in enumerate(items)}


def groups_of(images: Iterable[ImageRef]) -> dict[str, str]:
    """Image id -> name of the group that a split must not divide.

    Images of one patient are a group, and so are images with one address. Where an address occurs under two patients,
    one of the two names is wrong or both are the same person: all their images are one group.

    Returns:
        ``ImageRef.group`` of each image that shares nothing; else the first patient's, or the first image's.
    """
    in_order = sorted(images, key=lambda image: natural_order(image.id))
    patients = {image.id: image.patient_id for image in in_order}
    first = linked(
        {
            image.id: [("uri", image.uri), *([("patient", image.patient_id)] if image.patient_id is not None else [])]
            for image in in_order
        }
    )
    names: dict[str, list[str]] = {}
    for image in in_order:
        if (patient := patients[image.id]) is not None:
            names.setdefault(first[image.id], []).append(patient)
    patient_of = {lowest: min(found, key=natural_order) for lowest, found in names.items()}
    return {
        image.id: f"patient {patient_of[first[image.id]]}"
        if first[image.id] in patient_of
        else f"image {first[image.id]}"
        for image in in_order
    }
