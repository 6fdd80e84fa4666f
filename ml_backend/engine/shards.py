"""A pool in parts, and the whole again: nothing is computed here, so that no bit changes."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from ml_backend.pool_outputs import LastLayerGradients, PoolOutputs
from ml_backend.records import ImageRef

__all__ = ["cut", "join", "misfit"]

T = TypeVar("T")


def cut(pool: Sequence[T], size: int) -> list[Sequence[T]]:
    """Cut a pool into consecutive shards of ``size``; the last may be smaller.

    Raises:
        ValueError: a shard would be empty.
    """
    if size < 1:
        raise ValueError(f"a shard needs at least 1 image, got size={size}")
    return [pool[start : start + size] for start in range(0, len(pool), size)]


def join(parts: Sequence[PoolOutputs]) -> PoolOutputs:
    """Put the outputs of consecutive shards together.

    The features of labelled images come from the first part that knows them.

    Raises:
        ValueError: there is no part, or the parts are not of one network: other classes, or features of some only.
    """
    if not parts:
        raise ValueError("nothing to join: at least one shard is needed")
    if others := {part.classes for part in parts} - {parts[0].classes}:
        raise ValueError(f"shards of different networks: classes {parts[0].classes} and {others.pop()}")
    features = _all_or_none([part.features for part in parts], "features")
    gradients = _all_or_none([part.gradients for part in parts], "gradients")
    return PoolOutputs(
        image_ids=tuple(image for part in parts for image in part.image_ids),
        classes=parts[0].classes,
        probs=np.concatenate([part.probs for part in parts]),
        features=np.concatenate(features) if features else None,
        labelled_features=next((p.labelled_features for p in parts if p.labelled_features is not None), None),
        gradients=LastLayerGradients(
            np.concatenate([one.residuals for one in gradients]), np.concatenate([one.hidden for one in gradients])
        )
        if gradients
        else None,
        exclusions=tuple(exclusion for part in parts for exclusion in part.exclusions),
    )


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


def _all_or_none(found: Sequence[T | None], name: str) -> list[T]:
    """Those of all shards; an empty list where no shard has them."""
    there = [one for one in found if one is not None]
    if there and len(there) < len(found):
        raise ValueError(f"{name} of {len(there)} shards only, out of {len(found)}")
    return there
