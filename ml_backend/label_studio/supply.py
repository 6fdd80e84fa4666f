"""How many of the published images are left for readers, and how few are too few. No I/O."""

from ml_backend.records import Published
from ml_backend.settings import ProjectOptions

__all__ = ["left_at_least", "low_water", "wanted"]


def wanted(options: ProjectOptions) -> int | None:
    """Images that are published together, where there are so many; None for all."""
    return None if options.reserve == "all" else options.batch_size + options.reserve


def low_water(options: ProjectOptions) -> int:
    """Images that must be left of what is published; with fewer it is topped up from the last ranking.

    Half of the reserve, and no fewer than half a batch: time enough to publish more, also while a round trains. 0
    where all is published anyway.
    """
    return 0 if options.reserve == "all" else max(options.reserve // 2, options.batch_size // 2, 1)


def left_at_least(published: Published, annotations: int | None) -> int:
    """Published images that surely nobody has answered or skipped yet.

    Args:
        published: what is served.
        annotations: with skips, as Label Studio counts them now; None: not told, and nothing seems used up.
    """
    if annotations is None or published.annotations is None:
        return len(published.image_ids)
    return len(published.image_ids) - max(0, annotations - published.annotations)
