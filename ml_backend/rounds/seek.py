"""Seeking: images like those of a class with few labels take every second place at the front of a ranking."""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ml_backend.acquisition.diversity import computable, in_one_order, nearest, of_length_1
from ml_backend.acquisition.inputs import float_tensor, one_thread
from ml_backend.predictions import ImageFeatures
from ml_backend.schemas import Label, Ranking, natural_order

SHARE: Final = 0.5
"""Of the places at the front, for the sought images."""
REACH: Final = 5
"""Batches at the front of the ranking: by default what is published, the batch and its reserve."""
BLOCK_ROWS: Final = 8192
"""Images whose features are normalised and scored at once: 64 MiB of 2,048 float32 each."""


def seek(
    ranking: Ranking, pool: ImageFeatures, labelled: ImageFeatures, labels: Sequence[Label], sought: Sequence[str]
) -> Ranking:
    """Move the images that resemble the sought classes into every second place at the front of a ranking.

    The classes take turns; see ``resemblance``. The other places keep the order of the ranking.

    Args:
        ranking: of the pool; its first ``REACH`` batches change.
        pool: features of its images; an image without features is not sought.
        labelled: features of the labelled images.
        labels: of these images.
        sought: classes; one without a labelled image with features is left out.

    Returns:
        The same images with the same scores, which need not fall any more; ``sought`` names the moved ones with their
        class.
    """
    class_of = {label.image.id: label.value for label in labels}
    classes = np.array([class_of.get(image_id, "") for image_id in labelled.image_ids], dtype=object)
    known = torch.from_numpy(labelled.features)
    turns = []
    for name in sought:
        if not (own := torch.from_numpy(classes == name)).any():
            continue
        scores = resemblance(torch.from_numpy(pool.features), known[own], known[~own])
        best = sorted(zip((-scores).tolist(), map(natural_order, pool.image_ids), strict=True))
        turns.append((name, iter([image_id for _, (_, image_id) in best])))
    if not turns:
        return ranking
    places = min(REACH * ranking.batch_size, len(ranking.image_ids))
    moved: dict[str, str] = {}
    front = list(_merged(ranking.image_ids, turns, places, moved))
    chosen = set(front)
    order = (*front, *(image_id for image_id in ranking.image_ids if image_id not in chosen))
    scores_of = dict(zip(ranking.image_ids, ranking.scores, strict=True))
    return ranking.model_copy(
        update={"image_ids": order, "scores": tuple(scores_of[image_id] for image_id in order), "sought": moved}
    )


def _merged(
    ranked: Sequence[str], turns: Sequence[tuple[str, Iterator[str]]], places: int, moved: dict[str, str]
) -> Iterator[str]:
    """The images at the front; the sought ones are added to ``moved`` with their class."""
    allowed, used = set(ranked), set[str]()
    explored = iter(ranked)
    for place in range(1, places + 1):
        number = int(place * SHARE)
        name, found = turns[(number - 1) % len(turns)] if number > int((place - 1) * SHARE) else ("", explored)
        image_id = next((one for one in found if one in allowed and one not in used), None)
        if image_id is None:  # every image of the pool with features has been placed
            name, image_id = "", next(one for one in explored if one not in used)
        if name:
            moved[image_id] = name
        used.add(image_id)
        yield image_id


def resemblance(
    features: Float[Tensor, "images dims"],
    own: Float[Tensor, "own dims"],
    others: Float[Tensor, "others dims"],
) -> Float[Tensor, " images"]:
    """How much nearer an image is to a class than to the other ones.

    ``score(x) = max_i cos(x, own_i) - max_j cos(x, others_j)``; without ``others``, the first term alone.

    Args:
        features: of the images.
        own: of the labelled images of the class; 1 or more.
        others: of the labelled images of all other classes.

    Returns:
        Scores in cosine similarity, float64: -2 to 2, and -1 to 1 without ``others``; the same to the last bit
        whatever the thread count and the order of the images.
    """
    rows = float_tensor("features", features)
    like = computable(rows[:0])
    with one_thread():
        labelled = [
            of_length_1(in_one_order(float_tensor("labelled features", centres).to(like))) for centres in (own, others)
        ]
        return torch.cat([_scores(of_length_1(computable(part)), *labelled) for part in torch.split(rows, BLOCK_ROWS)])


def _scores(
    rows: Float[Tensor, "images dims"], own: Float[Tensor, "own dims"], others: Float[Tensor, "others dims"]
) -> Float[Tensor, " images"]:
    near = _similarity(rows, own)
    return near - _similarity(rows, others) if len(others) else near


def _similarity(rows: Float[Tensor, "images dims"], centres: Float[Tensor, "centres dims"]) -> Float[Tensor, " images"]:
    # Of rows of length 1: |x - c|² = 2 - 2 cos(x, c).
    return torch.as_tensor(1.0 - nearest(rows, centres) / 2.0).cpu()
