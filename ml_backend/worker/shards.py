"""The dotted path of a shard's job in Redis."""

from ml_backend.scheduling.shards import run

__all__ = ["run"]
