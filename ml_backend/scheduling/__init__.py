"""At most one round running and one waiting per project, and no change lost: rq carries, this room decides.

::

    rounds.py      the queue; its state is one Redis hash a project, changed atomically by state.lua
    claim.py       a round that has begun
    shards.py      who scores which shard of a pool, where several workers do
    status.py      what can be read about a project's rounds
    connection.py  how long Redis is waited for

The only room that knows rq's queues; ``worker`` knows rq's worker.
"""

from ml_backend.scheduling.queue import (
    JOB,
    QUEUE,
    Claim,
    Counted,
    LastError,
    Progress,
    QueueStatus,
    RoundQueue,
    connect_redis,
)
from ml_backend.scheduling.shard_queue import QUEUE_SHARDS, SHARD_JOB, ShardQueue

__all__ = [
    "JOB",
    "QUEUE",
    "QUEUE_SHARDS",
    "SHARD_JOB",
    "Claim",
    "Counted",
    "LastError",
    "Progress",
    "QueueStatus",
    "RoundQueue",
    "ShardQueue",
    "connect_redis",
]
