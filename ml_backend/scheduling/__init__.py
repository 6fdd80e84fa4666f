"""Decides when a round runs, and runs it on a worker: at most one round of a project runs, one waits.

::

    policy.py        which round a project needs next: a pure decision table
    queue.py         the queue of rounds; state.lua changes a project's state in Redis atomically
    connections.py   projects that Label Studio has connected: label config, options, /setup
    reconciler.py    compares every project with Label Studio, for events that were lost
    worker.py        waits for jobs and forks a process for each
    followers.py     processes that take part in a worker's rounds
"""

from ml_backend.scheduling.policy import LastError, Progress, QueueStatus
from ml_backend.scheduling.queue import JOB, QUEUE, Claim, RoundQueue, connect_redis

__all__ = ["JOB", "QUEUE", "Claim", "LastError", "Progress", "QueueStatus", "RoundQueue", "connect_redis"]
