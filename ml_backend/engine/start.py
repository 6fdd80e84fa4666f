"""Before the first network: which image comes next when nothing is known about any."""

from collections.abc import Sequence

from ml_backend.acquisition import places, seeded_order
from ml_backend.records import ImageRef, Ranking

__all__ = ["random_order"]


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
