"""Features of all images of a project on few axes, by which its pages find similar images and draw the map.

They are computed after the order is published, from the backbone as loaded, and only where
images were added, left the queue or changed, or could not be read: then all of them anew.
"""

import hashlib
import json
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import structlog
from jaxtyping import Float32

from ml_backend.errors import BackendError, StaleRound
from ml_backend.predictions import ImageFeatures
from ml_backend.rounds.interfaces import Learner
from ml_backend.schemas import ImageRef, RoundRequest
from ml_backend.seeding import fixed_set
from ml_backend.storage import ProjectStore
from ml_backend.storage.outputs import Embedding

AXES = 64
FITTED = 4096  # images that the axes are fitted on
CHUNK = 4096  # images whose features are in memory together

log = structlog.get_logger(__name__)


def keep_embedding(
    store: ProjectStore, request: RoundRequest, learner: Learner, raise_if_preempted: Callable[[], None]
) -> None:
    """Compute the embedding of a saved round's labelled and unlabelled images, and keep it in the project's folder.

    Does nothing where the kept one has all of these images. Errors are logged: the round is published.

    Args:
        store: of the project.
        request: of the round.
        learner: see ``Learner.embed``.
        raise_if_preempted: raises where another round is due.
    """
    try:
        inputs = store.inputs(request.round_id)
        images = [] if inputs is None else [*(label.image for label in inputs.labels), *inputs.pool]
        kept, source = store.embedding(), source_of(request, images)
        if not images or (kept is not None and kept.source == source and len(kept.image_ids) == len(images)):
            return
        found = embedding_of(request, source, images, learner.embed, raise_if_preempted)
        if found.image_ids:
            store.set_embedding(found)
    except StaleRound as reason:
        log.info("the images are embedded another time", reason=str(reason))
    except BackendError as error:
        log.warning("the images could not be embedded", error=str(error), kind=type(error).__name__)
    except Exception:
        log.exception("the images could not be embedded")


def source_of(request: RoundRequest, images: Sequence[ImageRef]) -> str:
    """Digest of what decides an embedding: options of the backbone, and every image's id and address."""
    options = [request.options.get(name) for name in ("backbone", "weights", "image_side")]
    rows = sorted((image.id, image.uri) for image in images)
    return hashlib.sha256(json.dumps([options, request.seed, rows]).encode()).hexdigest()


def embedding_of(
    request: RoundRequest,
    source: str,
    images: Sequence[ImageRef],
    embed: Callable[[Sequence[ImageRef]], ImageFeatures],
    raise_if_preempted: Callable[[], None],
) -> Embedding:
    """Project the features of images, each divided by its length, on their first ``AXES`` principal axes.

    The axes are fitted on a fixed random set of at most ``FITTED`` images, so that memory does not grow with the pool.

    Args:
        request: names the round and its seed.
        source: see ``source_of``.
        images: at least one.
        embed: see ``Learner.embed``.
        raise_if_preempted: called before each ``CHUNK`` images.

    Raises:
        BackendError: see ``Learner.embed``.
    """
    raise_if_preempted()
    drawn = set(fixed_set([image.id for image in images], request.seed, FITTED))
    mean, axes, explained = principal_axes(_unit(embed([image for image in images if image.id in drawn]).features))
    image_ids: list[str] = []
    parts: list[npt.NDArray[np.float16]] = []
    for start in range(0, len(images), CHUNK):
        raise_if_preempted()
        found = embed(images[start : start + CHUNK])
        image_ids += found.image_ids
        parts.append(((_unit(found.features) - mean) @ axes).astype(np.float16))
    return Embedding(request.round_id, source, tuple(image_ids), np.concatenate(parts), explained)


def principal_axes(
    features: Float32[npt.NDArray[np.float32], "images dims"], most: int = AXES
) -> tuple[Float32[npt.NDArray[np.float32], " dims"], Float32[npt.NDArray[np.float32], "dims axes"], float]:
    """Principal component analysis.

    Args:
        features: of any number of images.
        most: axes at most; there are no more than dimensions.

    Returns:
        The mean; orthonormal axes, that of most variance first, each turned so that its largest entry is positive; and
        the fraction of the variance on the first two, 0 where nothing varies.
    """
    if not len(features):
        return np.zeros(features.shape[1], np.float32), np.eye(features.shape[1], most, dtype=np.float32), 0.0
    mean = features.mean(axis=0, dtype=np.float64)
    centred = features - mean
    variances, vectors = np.linalg.eigh(centred.T @ centred)  # ascending
    variances, vectors = variances[::-1].clip(0.0), vectors[:, ::-1][:, :most]
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])]
    explained = float(variances[:2].sum() / total) if (total := variances.sum()) > 0 else 0.0
    return mean.astype(np.float32), (vectors * np.sign(largest)).astype(np.float32), explained


def _unit(features: Float32[npt.NDArray[np.float32], "images dims"]) -> Float32[npt.NDArray[np.float32], "images dims"]:
    """Each row divided by its length; a row of zeros stays."""
    lengths = np.sqrt(np.square(features).sum(axis=1, keepdims=True))
    unit: npt.NDArray[np.float32] = features / np.maximum(lengths, np.finfo(np.float32).tiny)
    return unit
