"""The dotted path of a round's job in Redis."""

from ml_backend.scheduling.worker import run

__all__ = ["run"]
