"""A pool in parts, and what somebody else made of one."""

from collections.abc import Sequence
from typing import TypeVar

from ml_backend.pool_outputs import PoolOutputs
from ml_backend.records import ImageRef

__all__ = ["cut", "misfit"]

T = TypeVar("T")


def cut(pool: Sequence[T], size: int) -> list[Sequence[T]]:
    """Cut a pool into consecutive shards of ``size``; the last may be smaller.

    Raises:
        ValueError: a shard would be empty.
    """
    if size < 1:
        raise ValueError(f"a shard needs at least 1 image, got size={size}")
    return [pool[start : start + size] for start in range(0, len(pool), size)]


def misfit(shard: Sequence[ImageRef], outputs: PoolOutputs, other: PoolOutputs) -> str | None:
    """Why these cannot be the outputs of the shard; None where they can.

    Args:
        shard: what was to be scored.
        outputs: what somebody made of it.
        other: outputs of another shard of the same pool, which are known to be right.
    """
    excluded = {exclusion.image_id for exclusion in outputs.exclusions}
    wanted = tuple(image.id for image in shard if image.id not in excluded)
    if outputs.image_ids != wanted or len(wanted) + len(excluded) != len(shard):
        return f"other images: {len(outputs.image_ids)} scored and {len(excluded)} excluded of {len(shard)}"
    if outputs.classes != other.classes:
        return f"other classes: {outputs.classes} instead of {other.classes}"
    if (found := _form(outputs)) != (expected := _form(other)):
        return f"other arrays: {found} instead of {expected}"
    return None


def _form(outputs: PoolOutputs) -> dict[str, str]:
    """Kind of number and lengths of the axes, apart from the images'."""
    arrays = {"probs": outputs.probs}
    if outputs.features is not None:
        arrays["features"] = outputs.features
    if outputs.gradients is not None:
        arrays |= {"residuals": outputs.gradients.residuals, "hidden": outputs.gradients.hidden}
    return {name: f"{array.dtype}{list(array.shape[1:])}" for name, array in arrays.items()}
