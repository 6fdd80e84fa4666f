"""Health check of the worker's container: exit 0 if a worker on this host is registered in Redis, and can store rounds.

rq lets the registration expire when the heartbeats stop, so that a hung or killed worker turns unhealthy.
"""

import os
import socket
import sys
import tempfile

from redis import Redis
from rq import Worker

if __name__ == "__main__":
    tempfile.TemporaryFile(dir=os.environ.get("AL_DATA_DIR")).close()  # an OSError where that cannot be written
    with Redis.from_url(os.environ["AL_REDIS_URL"], socket_timeout=5) as redis:
        here = socket.gethostname()
        sys.exit(not any(worker.hostname == here for worker in Worker.all(connection=redis)))
