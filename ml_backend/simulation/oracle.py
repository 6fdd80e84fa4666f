"""An oracle in place of Label Studio: it knows all labels of a study, and reveals those that a round asks for."""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from ml_backend.schemas import Annotation, Exclusion, ImageRef, Label, natural_order
from ml_backend.seeding import seeded_order
from ml_backend.simulation.dataset import DataSet

RATER = "oracle"
FIRST_ANSWER = datetime(2000, 1, 1, tzinfo=UTC)  # a fixed clock, so that two runs write the same annotations


class Oracle:
    """All labels of a data set, revealed image by image: the ``LabelSource`` and the ``Publisher`` of a round.

    Args:
        truth: one label for each image that a round may ask for.
        ratings: readers' answers, see ``readers.answers_of``; an image that has some is answered by all of them in
            their order, any other by its true label. Answers about images that are not in the truth are ignored.
        always_known: labels of images that are answered from the start and never in the pool: a fixed validation set.

    Raises:
        ValueError: an image has two labels, or the truth is empty.
    """

    def __init__(
        self, truth: Iterable[Label], ratings: Iterable[Annotation] = (), always_known: Iterable[Label] = ()
    ) -> None:
        # Sorted: neither the pool nor the answers depend on the order of the tables' rows.
        pool, known = (
            sorted(labels, key=lambda label: natural_order(label.image.id)) for labels in (truth, always_known)
        )
        repeated = [i for i, times in Counter(label.image.id for label in (*pool, *known)).items() if times > 1]
        if repeated:
            raise ValueError(f"image {repeated[0]!r} has more than one true label: keep one row an image")
        if not pool:
            raise ValueError("the truth holds no image: give at least one")
        self._truth = {label.image.id: label for label in pool}
        self._ratings: dict[str, list[Annotation]] = {}
        for rating in ratings:
            self._ratings.setdefault(rating.image.id, []).append(rating)
        self._annotations: list[Annotation] = []
        self._revealed: dict[str, None] = {}  # in the order of the answers
        for label in known:
            self._answer(label)
        self._known = len(self._annotations)

    @classmethod
    def of(cls, data: DataSet, ratings: Iterable[Annotation] = ()) -> "Oracle":
        """The pool is the training side, and the validation side is always known; the test side is left out."""
        return cls(data.labels("train"), ratings, always_known=data.labels("val"))

    @property
    def revealed(self) -> tuple[str, ...]:
        """The images that were asked for so far, in the order in which they were labelled."""
        return tuple(self._revealed)

    @property
    def reads(self) -> int:
        """The number of answers about the revealed images."""
        return len(self._annotations) - self._known

    def annotations(self) -> Sequence[Annotation]:
        """Every answer about the images that are always known, then about the revealed ones; a second apart."""
        return list(self._annotations)

    def unlabelled(self) -> tuple[Sequence[ImageRef], Sequence[Exclusion]]:
        """The pool: every image that a round may ask for and has not."""
        return [label.image for image_id, label in self._truth.items() if image_id not in self._revealed], []

    def reveal(self, image_ids: Iterable[str]) -> None:
        """Label these images, in this order.

        Raises:
            ValueError: an image is not in the pool; nothing is revealed then.
        """
        asked = list(image_ids)
        if wrong := [image_id for image_id in asked if image_id not in self._truth or image_id in self._revealed]:
            raise ValueError(f"image {wrong[0]!r} is not in the oracle's pool, or was labelled before")
        for image_id in asked:
            self._revealed[image_id] = None
            self._answer(self._truth[image_id])

    def start_set(self, per_class: int, seed: int) -> tuple[str, ...]:
        """Draw the images that are labelled before the first round.

        Args:
            per_class: images of every class, by the true label.
            seed: of the draw; the order of the truth's rows does not matter.

        Raises:
            ValueError: a class has fewer images.
        """
        by_class: dict[str, list[str]] = {}
        for label in self._truth.values():
            by_class.setdefault(label.value, []).append(label.image.id)
        start: list[str] = []
        for name, ids in sorted(by_class.items()):
            if len(ids) < per_class:
                raise ValueError(f"class {name!r} has {len(ids)} images but the start set needs {per_class}")
            # Not by the bare ids: the strategy `random` orders by those. A start set from the front of that order,
            # deeper into a rare class than into a frequent one, would leave `random` no rare image at its front.
            order = seeded_order([f"start {image_id}" for image_id in ids], seed)
            start += [ids[place] for place in order[:per_class]]
        return tuple(start)

    def _answer(self, label: Label) -> None:
        answers = self._ratings.get(label.image.id) or [
            Annotation(image=label.image, rater=RATER, value=label.value, updated_at=FIRST_ANSWER)
        ]
        for answer in answers:
            at = FIRST_ANSWER + timedelta(seconds=len(self._annotations))
            self._annotations.append(answer.model_copy(update={"image": label.image, "updated_at": at}))
