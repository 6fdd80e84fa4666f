"""At most one round running and one waiting per project, and no change lost: rq carries, this room decides.

::

    rounds.py      the queue; its state is one Redis hash a project, changed atomically by state.lua
    claim.py       a round that has begun
    shards.py      who scores which shard of a pool, where several workers do
    status.py      what can be read about a project's rounds
    connection.py  how long Redis is waited for

The only room that knows rq's queues; ``worker`` knows rq's worker.
"""

from ml_backend.queueing.claim import Claim
from ml_backend.queueing.connection import connect_redis
from ml_backend.queueing.rounds import JOB, QUEUE, RoundQueue
from ml_backend.queueing.shards import QUEUE_SHARDS, SHARD_JOB, ShardQueue
from ml_backend.queueing.status import Counted, LastError, Progress, QueueStatus

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
