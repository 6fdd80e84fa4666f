"""Spread a ranking: few images of one patient, and no near-duplicates, in the same batch.

The strategy's order has what it takes to fill a batch with one patient's images, all of them uncertain for the same
reason. An image that would be one too many is put off: it moves behind the batch, and nothing else changes.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import structlog
from jaxtyping import Float32, Int64

from ml_backend.errors import SettingsError, WeightsError
from ml_backend.predictions import ImageFeatures
from ml_backend.schemas import ImageRef, PutOff, Ranking, RoundRequest

BATCHES: Final = 5
"""Batches that are spread: the batch and, at the default ``reserve``, all that is published behind it."""
LEAST_IMAGES: Final = 20
"""Images from which on their distances tell what is usual."""
NEIGHBOUR: Final = 3
"""The neighbour whose distance is the usual one: not the first, which is a copy where most images have one."""
NEAR: Final = 0.5
"""Near-duplicates are nearer than this fraction of the usual distance."""
REACH: Final = 20
"""Batches at the front of the ranking that the places are filled from: beyond, an image is not worth its place."""
_ROWS = 512

Array: TypeAlias = npt.NDArray[np.float32]
NearDuplicates: TypeAlias = Mapping[str, Set[str]]
"""Image id -> ids of the images that are nearly the same."""

log = structlog.get_logger(__name__)


def spread_batches(
    request: RoundRequest,
    ranking: Ranking,
    pool: Sequence[ImageRef],
    embed: Callable[[Sequence[ImageRef]], ImageFeatures],
) -> Ranking:
    """``spread`` a round's ranking, holdout included, with the near-duplicates among its first images.

    Near-duplicates are looked for among the images of the first ``BATCHES`` batches, by features of the backbone as
    loaded; with an untrained one (``weights=none``) only equal patients count.

    Args:
        request: ``per_patient``; at 0 the ranking is returned unchanged, and so it is in a request of a version that
            did not have the option.
        ranking: of the pool.
        pool: its images, in any order.
        embed: see ``Learner.embed``.

    Raises:
        RoundError: the GPU's memory is too small.
        StaleRound: from the progress callback of ``embed``.
    """
    bound = request.per_patient
    if not bound or ranking.strategy == "random":
        return ranking
    images = {image.id: image for image in pool}
    patients = {image.id: image.patient_id for image in pool}
    bounded = spread(ranking, patients, bound)
    first = bounded.image_ids[: BATCHES * ranking.batch_size]
    front = [images[image_id] for image_id in first if image_id in images]
    if len(front) < LEAST_IMAGES:
        return bounded
    if not request.has_trained_features:
        log.info("near-duplicates are not looked for: weights=none, and an untrained backbone may take others for them")
        return bounded
    try:
        near = near_duplicates(embed(front), patients)
    except (SettingsError, WeightsError) as error:  # where an earlier round's network ranks, its backbone may be gone
        log.warning("near-duplicates are not looked for", error=str(error))
        return bounded
    return spread(ranking, patients, bound, near) if near else bounded


def spread_again(ranking: Ranking, patients: Mapping[str, str | None], per_patient: int, stored: Ranking) -> Ranking:
    """Repeat what ``spread_batches`` made of a ranking, by the near-duplicates that the stored ranking names."""
    if not per_patient or ranking.strategy == "random":
        return ranking
    near: dict[str, set[str]] = {}
    for one, other in stored.near_duplicates:
        near.setdefault(one, set()).add(other)
        near.setdefault(other, set()).add(one)
    return spread(ranking, patients, per_patient, near)


def spread(
    ranking: Ranking, patients: Mapping[str, str | None], per_patient: int, near: NearDuplicates | None = None
) -> Ranking:
    """Put off images of which a batch holds enough like them already.

    Every ``batch_size`` places of the first ``BATCHES`` batches hold at most ``per_patient`` images of a patient, and
    no two near-duplicates. An image that does not fit into a batch comes in the first later one into which it fits,
    ahead of those ranked behind it; beyond the batches that are spread, at the front of the rest. Only if no other
    image of the first ``REACH`` batches fits either, the first of those that do not fit fill the batch: no place stays
    empty.

    Holdout images keep their places, and count as the others do: they are drawn at random, and stay so.

    Args:
        ranking: of the whole pool. One by ``random`` is returned unchanged: it is the reference sample.
        patients: image id -> patient; None, or no entry, where the patient is unknown: such images are not bounded.
        per_patient: most images of a patient in a batch, 1 or more.
        near: near-duplicates, each pair under both of its images.

    Returns:
        The same images with the same scores, which need not fall any more. ``put_off`` names the images that come in a
        later batch than before, ``near_duplicates`` the pairs of which one image was passed over for the other.

    Raises:
        ValueError: ``per_patient`` is below 1.
    """
    if per_patient < 1:
        raise ValueError(f"per_patient must be at least 1, got {per_patient}")
    if ranking.strategy == "random":
        return ranking
    ids, size, control = ranking.image_ids, ranking.batch_size, set(ranking.control)
    waiting = [image_id for image_id in ids if image_id not in control]
    order: list[str] = []
    before = {image_id: place // size for place, image_id in enumerate(ids)}
    reasons: dict[str, str] = {}
    pairs = dict.fromkeys(ranking.near_duplicates)
    while (start := len(order)) < min(len(ids), BATCHES * size):
        places = ids[start : start + size]
        batch = _Batch(patients, per_patient, near or {})
        for image_id in places:
            if image_id in control:
                batch.add(image_id)
        chosen, left = batch.fill(waiting[: REACH * size], sum(image_id not in control for image_id in places))
        waiting = [*left, *waiting[REACH * size :]]
        # What counts is the reason in an image's own batch, if it was passed over there.
        reasons |= {
            one: why for one, why in batch.refused.items() if one not in reasons or start // size <= before[one]
        }
        pairs |= dict.fromkeys(batch.pairs)
        taken = iter(chosen)
        order += [image_id if image_id in control else next(taken) for image_id in places]
    rest = iter(waiting)
    order += [image_id if image_id in control else next(rest) for image_id in ids[len(order) :]]
    later = {image_id for place, image_id in enumerate(order) if place // size > before[image_id]}
    put_off = [PutOff(image_id=image_id, reason=reason) for image_id, reason in reasons.items() if image_id in later]
    scores = dict(zip(ids, ranking.scores, strict=True))
    return ranking.model_copy(
        update={
            "image_ids": tuple(order),
            "scores": tuple(scores[image_id] for image_id in order),
            "put_off": (*ranking.put_off, *put_off),
            "near_duplicates": tuple(pairs),
        }
    )


class _Batch:
    """One batch while it is filled.

    Attributes:
        refused: image id -> why the image did not fit.
        pairs: of these images, each with its near-duplicate in the batch.
    """

    def __init__(self, patients: Mapping[str, str | None], per_patient: int, near: NearDuplicates) -> None:
        self.refused: dict[str, str] = {}
        self.pairs: list[tuple[str, str]] = []
        self._patients, self._per_patient, self._near = patients, per_patient, near
        self._of_patient: Counter[str] = Counter()
        self._like: dict[str, str] = {}  # image -> its near-duplicate in the batch

    def add(self, image_id: str) -> None:
        if (patient := self._patients.get(image_id)) is not None:
            self._of_patient[patient] += 1
        for other in self._near.get(image_id, ()):
            self._like.setdefault(other, image_id)

    def fill(self, waiting: Sequence[str], wanted: int) -> tuple[list[str], list[str]]:
        """Add the first images that fit; where they are too few, the first others.

        Returns:
            The added images and those that go on waiting, both in the order of ``waiting``.
        """
        chosen: list[int] = []
        passed: list[int] = []
        for place, image_id in enumerate(waiting):
            if len(chosen) == wanted:
                break
            patient = self._patients.get(image_id)
            if (like := self._like.get(image_id)) is not None:
                self.refused[image_id] = f"nearly the same image as {like}"
                self.pairs.append((image_id, like))
            elif patient is not None and self._of_patient[patient] >= self._per_patient:
                most = "1 image" if self._per_patient == 1 else f"{self._per_patient} images"
                self.refused[image_id] = f"more than {most} of patient {patient} in the batch"
            else:
                self.add(image_id)
                chosen.append(place)
                continue
            passed.append(place)
        inside = {*chosen, *passed[: wanted - len(chosen)]}
        return (
            [waiting[place] for place in sorted(inside)],
            [image_id for place, image_id in enumerate(waiting) if place not in inside],
        )


def near_duplicates(images: ImageFeatures, patients: Mapping[str, str | None]) -> dict[str, frozenset[str]]:
    """Pairs of images that lie much nearer to each other than images of different patients usually do.

    On features of length 1, the usual distance is that of an image to its third nearest of other patients, in the
    median over the images; nearly the same are two images at less than half of it, of whatever patients. The distance
    in which an image finds ordinary neighbours varies little (0.46 to 0.56 for 80 % of 1,670 chest radiographs of 1,206
    patients), so that no two ordinary ones lie that near.

    Args:
        images: 20 or more, else none are found: too few to know what is usual.
        patients: image id -> patient; an image of an unknown patient counts as of a patient of its own.

    Returns:
        Image id -> its near-duplicates, for each image that has one.
    """
    ids = images.image_ids
    if len(ids) < LEAST_IMAGES:
        return {}
    rows = images.features / np.maximum(np.linalg.norm(images.features, axis=1, keepdims=True), 1e-12)
    # An id, or a patient: a tuple tells the two apart.
    names = [(image_id,) if (name := patients.get(image_id)) is None else ("patient", name) for image_id in ids]
    codes = np.unique([repr(name) for name in names], return_inverse=True)[1].astype(np.int64)
    usual = float(np.median(np.concatenate(list(_neighbour_distances(rows, codes)))))
    if not np.isfinite(usual):  # nearly all images are of one patient
        return {}
    found: dict[str, frozenset[str]] = {}
    for start, distances in _distances(rows):
        for row, near in enumerate(distances < NEAR * usual):
            near[start + row] = False
            if near.any():
                found[ids[start + row]] = frozenset(ids[other] for other in np.flatnonzero(near))
    return found


def _neighbour_distances(
    rows: Float32[Array, "images dims"], codes: Int64[npt.NDArray[np.int64], " images"]
) -> Iterator[Array]:
    for start, distances in _distances(rows):
        distances[codes[start : start + len(distances), None] == codes] = np.inf
        yield np.partition(distances, NEIGHBOUR - 1, axis=1)[:, NEIGHBOUR - 1]


def _distances(rows: Float32[Array, "images dims"]) -> Iterator[tuple[int, Float32[Array, "part images"]]]:
    """Distances of rows of length 1 to all rows, some rows at a time to bound the memory."""
    for start in range(0, len(rows), _ROWS):
        yield start, np.sqrt(np.maximum(2.0 - 2.0 * (rows[start : start + _ROWS] @ rows.T), 0.0))
