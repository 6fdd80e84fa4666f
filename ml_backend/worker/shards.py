"""The dotted path of a shard's job in Redis."""

from ml_backend.scheduling.shard_job import run

__all__ = ["run"]
