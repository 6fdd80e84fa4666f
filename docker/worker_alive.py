"""Health check of the worker's container: exit 0 if a worker on this host is registered in Redis.

rq lets the registration expire when the heartbeats stop, so that a hung or killed worker turns unhealthy.
"""

import os
import socket
import sys

from redis import Redis
from rq import Worker

if __name__ == "__main__":
    with Redis.from_url(os.environ["AL_REDIS_URL"], socket_timeout=5) as redis:
        here = socket.gethostname()
        sys.exit(not any(worker.hostname == here for worker in Worker.all(connection=redis)))
