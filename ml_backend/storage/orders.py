"""The orders that readers were served, one after the other: what served images are held against."""

from pathlib import Path

import structlog

from ml_backend.errors import StorageError
from ml_backend.records import Published
from ml_backend.storage.files import read_record, write_record

__all__ = ["keep_order", "kept_orders"]

KEPT = 500  # a batch and a reserve each

log = structlog.get_logger()


def keep_order(folder: Path, published: Published) -> None:
    """Add an order, or complete the figures of one that is there. Never raises: it is served all the same."""
    try:
        # Of one version the moment stays the same, however often its other figures are completed.
        write_record(folder / f"{published.published_at:%Y%m%dT%H%M%S%f}.json", published)
        for old in sorted(folder.glob("2*.json"))[:-KEPT]:
            old.unlink(missing_ok=True)
    except (StorageError, OSError) as error:
        log.warning("the order is served, and will be missing where earlier orders are told", error=str(error))


def kept_orders(folder: Path) -> list[Published]:
    """All that are kept, oldest first. One that is damaged is left out, and logged."""
    found: list[Published] = []
    for path in sorted(folder.glob("2*.json")):
        try:
            order = read_record(path, Published)
        except StorageError as error:
            log.warning("an earlier order is left out", error=str(error))
            continue
        if order is not None:
            found.append(order)
    return found
