"""What ``/health`` tells besides UP, which it says as long as this process answers.

Label Studio and a container's health check look at the status alone: neither can mend a worker or a failing round, and
Label Studio would take the backend for disconnected. It asks for no password, so it counts and names nothing.
"""

from ml_backend.errors import BackendError
from ml_backend.queueing import RoundQueue
from ml_backend.storage import RoundStore

__all__ = ["degraded"]


def degraded(store: RoundStore, queue: RoundQueue) -> list[str]:
    """What does not work just now, in words; nothing where all does. Never raises, and answers within a second."""
    try:
        states = [queue.status(connection.project) for connection in store.connections()]
        workers = queue.workers()
    except BackendError:
        return ["Redis does not answer"]
    except OSError:
        return ["the data folder cannot be read"]
    found: list[str] = []
    if states and not workers:
        found.append("no worker runs")
    if failing := sum(state.failing for state in states):
        found.append(f"the last round of {failing} of {len(states)} projects failed")
    return found
