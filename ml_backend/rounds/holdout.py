"""The control share: some places of a ranking go to images that come by chance, so that they show what the rest gains.

Readers cannot tell such an image: it stands among the others, at places that no rhythm gives away, and nothing that
Label Studio is told differs. Only the stored ranking names it.
"""

import math
from collections.abc import Iterator
from itertools import count

from ml_backend.acquisition import seeded_draws
from ml_backend.schemas import Ranking

IMAGES, PLACES = "control images ", "control places "
"""Salts: independent of the order that ``random`` gives, of every tie, and of each other."""


def mixed(ranking: Ranking, share: float, seed: int, round_id: str) -> Ranking:
    """Give a share of the places to images that come by chance.

    They are the first of one permutation, fixed by the seed, of all images of a project, and are taken out of the
    strategy's order before it fills the places that are left. To skip what the strategy has placed already would leave
    a sample of what it does not want. So over the whole ranking a set of images is put aside by chance, which labels
    and strategies do not disturb: in whichever round its images are labelled, they are a uniform sample of the images
    that there were to choose from, the strategy's favourites among them.

    Args:
        ranking: of the whole pool. One of ``random`` comes back as it is: all of it is by chance.
        share: of the places, 0 to 0.5; at 0 the ranking comes back as it is.
        seed: of the images and of the places.
        round_id: the places of another round are others.

    Returns:
        The same images with the same scores, which need not fall any more; ``control`` names those that stand there
        by chance, in the order of the ranking.

    Raises:
        ValueError: the share is below 0 or above 0.5.
    """
    places = control_places(len(ranking.image_ids), share, seed, round_id)
    if not places or ranking.strategy == "random":
        return ranking
    drawn = _drawn_first(ranking.image_ids, len(places), seed)
    chosen = set(drawn)
    by_chance = iter(drawn)
    by_strategy = (image_id for image_id in ranking.image_ids if image_id not in chosen)
    taken = set(places)
    order = [next(by_chance if place in taken else by_strategy) for place in range(1, len(ranking.image_ids) + 1)]
    scores = dict(zip(ranking.image_ids, ranking.scores, strict=True))
    return ranking.model_copy(
        update={
            "image_ids": tuple(order),
            "scores": tuple(scores[image_id] for image_id in order),
            "control": tuple(drawn),
        }
    )


def _drawn_first(image_ids: tuple[str, ...], number: int, seed: int) -> list[str]:
    """The first images of the project's permutation, as far as they are among these."""
    draws = seeded_draws(image_ids, seed, IMAGES).tolist()
    # The name settles the case of two equal draws.
    return [image_id for _, image_id in sorted(zip(draws, image_ids, strict=True))[:number]]


def control_places(length: int, share: float, seed: int, round_id: str) -> list[int]:
    """The places of a ranking that images come to by chance, rising, from 1.

    One, drawn by the seed, of every ``1 / share`` consecutive places: among the first k places they are fewer than one
    more or less than ``k * share``, and yet nobody can count them out.

    Raises:
        ValueError: the share is below 0 or above 0.5.
    """
    if not 0.0 <= share <= 0.5:
        raise ValueError(f"a control share lies between 0 and 0.5, got {share}")
    return [] if share == 0.0 else list(_drawn_places(length, share, seed, round_id))


def _drawn_places(length: int, share: float, seed: int, round_id: str) -> Iterator[int]:
    most = math.ceil(length * share) + 1
    draws = seeded_draws([str(number) for number in range(most)], seed, f"{PLACES}{round_id} ").tolist()
    for number in count():
        before, last = math.floor(number / share), math.floor((number + 1) / share)
        if before >= length:
            return
        if (place := before + 1 + draws[number] % (last - before)) <= length:
            yield place
