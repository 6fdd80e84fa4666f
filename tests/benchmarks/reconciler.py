"""Cost of one idle look of the reconciler: CPU, the longest time another thread is kept from running, requests, memory.

python tests/benchmarks/reconciler.py 1000 20000 100000
"""

import resource
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])

import httpx

from ml_backend.config import Settings
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.sync import CachedTask, TaskCache
from ml_backend.scheduling.reconciler import Reconciler
from ml_backend.schemas import Connection, PublishedRanking
from ml_backend.storage import RoundStore
from tests.unit.label_studio.studio import LABEL_CONFIG, FakeStudio
from tests.unit.server.memory import PROJECT, MemoryQueue

SERVED = tuple(map(str, range(1, 81)))


def measure(tasks: int, folder: Path) -> str:
    """A line of figures; the second look is measured, since the first indexes the images."""
    now, store, requests = datetime.now(UTC), RoundStore(folder), list[str]()
    row = FakeStudio().row() | {"task_number": tasks, "model_version": "v"}
    held = {"static": [{"model_version": "v", "count": len(SERVED)}]}

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request.url.path)
        found: Any = held if request.url.path.endswith("model-versions/") else row
        found = {"tasks": [], "total": 0} if request.url.path == "/api/tasks" else found
        return httpx.Response(200, json=found, headers={"date": format_datetime(datetime.now(UTC), usegmt=True)})

    store.connect(Connection(project=PROJECT, hostname="http://ls", label_config=LABEL_CONFIG))
    project = store.project(PROJECT)
    cached = {n: CachedTask(data={"image": f"/data/upload/1/{n:08d}.png"}) for n in range(1, tasks + 1)}
    project.readings.keep_mirror(TaskCache(read_at=now, whole_at=now, tasks=cached, skip_queue="REQUEUE_FOR_OTHERS"))
    del cached
    project.readings.keep_learned("r000001", {})
    project.set_published(
        PublishedRanking(version="v", round_id="r000001", image_ids=SERVED, seconds={}, published_at=now)
    )
    settings = Settings(data_dir=folder, label_studio_url="http://ls", label_studio_api_key="k")
    client = LabelStudioClient("http://ls", "k", transport=httpx.MockTransport(answer))
    reconciler, longest, over = Reconciler(settings, store, MemoryQueue(), lambda *_: client), [0.0], threading.Event()

    def beat() -> None:
        last = time.perf_counter()
        while not over.wait(0.002):
            longest[0], last = max(longest[0], time.perf_counter() - last), time.perf_counter()

    reconciler.look()
    while any(thread.name == "analysis" for thread in threading.enumerate()):
        time.sleep(0.1)
    reconciler.look()  # parses the analysis that was made
    requests.clear()
    thread = threading.Thread(target=beat)
    thread.start()
    began = time.process_time()
    reconciler.look()
    spent = time.process_time() - began
    over.set()
    thread.join()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return f"{tasks:9} tasks: {spent:.3f} CPU s, {longest[0]:.3f} s, {len(requests)} requests, at most {memory} MB"


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as place:
            sys.stdout.write(f"{measure(int(argument), Path(place))}\n")
