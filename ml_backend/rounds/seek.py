"""Seeking: images like those of a class with few labels take every second place at the front of a ranking."""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import torch

from ml_backend.acquisition.seek import resemblance
from ml_backend.predictions import ImageFeatures
from ml_backend.schemas import Label, Ranking, natural_order

SHARE: Final = 0.5
"""Of the places at the front, for the sought images."""
REACH: Final = 5
"""Batches at the front of the ranking: by default what is published, the batch and its reserve."""


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
