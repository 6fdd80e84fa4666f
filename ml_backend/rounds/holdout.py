"""Random holdout: a share of a ranking's places goes to randomly drawn images, which measure what the strategy gains.

Readers cannot recognise such an image: its place follows no pattern, and nothing that Label Studio receives differs.
Only the stored ranking names it, as ``control``. The share is the option ``control_share``.
"""

import math

from ml_backend.acquisition import seeded_draws
from ml_backend.schemas import Ranking

# Salts: draws independent of the order of ``random``, of every tie, and of each other.
IMAGES, PLACES = "control images ", "control places "


def mix_in_holdout(ranking: Ranking, share: float, seed: int, round_id: str) -> Ranking:
    """Give a share of the places to randomly drawn images.

    The images are the first of one permutation of all images of a project, fixed by the seed. They are removed from
    the strategy's order before it fills the other places: to skip images that the strategy has placed already would
    leave a sample of those it rejects. Labels and strategies do not change the permutation, so in whichever round its
    images are labelled, they are a uniform sample of the images available then.

    Args:
        ranking: of the whole pool. A ranking by ``random`` is returned unchanged: all of it is random.
        share: of the places, 0 to 0.5; at 0 the ranking is returned unchanged.
        seed: of the images and of the places.
        round_id: each round draws other places.

    Returns:
        The same images with the same scores, which need not fall any more; ``control`` names the randomly drawn ones
        in the order of the ranking.

    Raises:
        ValueError: the share is below 0 or above 0.5.
    """
    ids = ranking.image_ids
    places = set(holdout_places(len(ids), share, seed, round_id))
    if not places or ranking.strategy == "random":
        return ranking
    draws = seeded_draws(ids, seed, IMAGES).tolist()
    # The id breaks ties.
    holdout = [image_id for _, image_id in sorted(zip(draws, ids, strict=True))[: len(places)]]
    drawn = set(holdout)
    from_holdout, from_strategy = iter(holdout), (image_id for image_id in ids if image_id not in drawn)
    order = [next(from_holdout if place in places else from_strategy) for place in range(1, len(ids) + 1)]
    scores = dict(zip(ids, ranking.scores, strict=True))
    return ranking.model_copy(
        update={
            "image_ids": tuple(order),
            "scores": tuple(scores[image_id] for image_id in order),
            "control": tuple(holdout),
        }
    )


def holdout_places(length: int, share: float, seed: int, round_id: str) -> list[int]:
    """The places of a ranking that the holdout takes, ascending, from 1.

    One, drawn by the seed, of every ``1 / share`` consecutive places: among the first k places their number differs
    from ``k * share`` by less than one, and still no place can be predicted.

    Raises:
        ValueError: the share is below 0 or above 0.5.
    """
    if not 0.0 <= share <= 0.5:
        raise ValueError(f"control_share must lie between 0 and 0.5, got {share}")
    if share == 0.0:
        return []
    most = math.ceil(length * share) + 1
    draws = seeded_draws([str(number) for number in range(most)], seed, f"{PLACES}{round_id} ").tolist()
    places: list[int] = []
    for number, draw in enumerate(draws):
        before, last = math.floor(number / share), math.floor((number + 1) / share)
        if before < length and (place := before + 1 + draw % (last - before)) <= length:
            places.append(place)
    return places
