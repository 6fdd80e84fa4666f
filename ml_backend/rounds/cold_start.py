"""Before the first network: which image comes next when nothing is known about any but how it looks."""

from collections.abc import Sequence

from ml_backend.acquisition import places, rank_by_features, seeded_order
from ml_backend.errors import UnusablePool
from ml_backend.rounds.interfaces import Learner
from ml_backend.schemas import ImageRef, Ranking


def random_order(pool: Sequence[ImageRef], batch_size: int, seed: int) -> Ranking:
    """A seeded random order of the pool, the one that the strategy ``random`` gives.

    An image's place follows from the seed and its own id, so that the order does not depend on how the pool arrives,
    and images that are labelled away or imported later leave the rest in the order that readers already see.

    Returns:
        Scores are places: distinct, from 1 for the first, falling, above 0.
    """
    ids = [image.id for image in pool]
    order = seeded_order(ids, seed)
    return Ranking(
        strategy="random",
        image_ids=tuple(ids[i] for i in order),
        scores=tuple(places(len(ids)).tolist()),
        batch_size=batch_size,
    )


def typical_order(
    learner: Learner, labelled: Sequence[ImageRef], pool: Sequence[ImageRef], batch_size: int, seed: int
) -> Ranking:
    """The order that the strategy ``typiclust`` gives on what the backbone sees before it has learned anything.

    Groups of images that look alike and hold a labelled one count as covered.

    Raises:
        UnusablePool: no image of the pool could be read.
        WeightsError, SettingsError, RoundError: see ``Learner.embed``.
    """
    seen = learner.embed(pool)
    if not seen.image_ids:
        raise UnusablePool(
            f"none of the {len(pool)} unlabelled images could be read; the first: {seen.exclusions[0].reason}"
        )
    covered = learner.embed(labelled).features if labelled else None
    return rank_by_features("typiclust", seen, covered, batch_size, seed)
