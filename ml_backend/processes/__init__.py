"""Programs that we start, wait for and stop: they never outlive us.

::

    process.py   a child of ours, and a service that runs as one
    valkey.py    the queue's Redis: a running one, or a Valkey of ours
"""

from ml_backend.processes.process import TIMEOUT_S, Child, Service, free_port, private_folder
from ml_backend.processes.valkey import Valkey

__all__ = ["TIMEOUT_S", "Child", "Service", "Valkey", "free_port", "private_folder"]
