"""Label Studio and the backend behind one nginx: each under a path, over TLS, with a private authority's certificate.

The server is the one of docs/operators.md, with the ports and files of the test.
"""

import os
import re
import secrets
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Self
from urllib.parse import urljoin

import httpx
import pytest

from ml_backend.config.network import CA_VARIABLES
from ml_backend.demo.options import draw_images
from ml_backend.demo.project import RoundFollower, upload_images
from ml_backend.demo.services import Backend, LabelStudio, Worker
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.formats import parse_label_config
from ml_backend.processes import Service, Valkey, free_port
from ml_backend.scheduling import RoundQueue, connect_redis
from ml_backend.storage import RoundStore
from tests.system.live import LiveProject

pytestmark = pytest.mark.system
PAGE = Path(__file__).parents[2] / "docs" / "operators.md"
[SERVER] = re.findall(r"^```nginx\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
OPTIONS: dict[str, object] = {"image_side": 64, "weights": "none", "passes": 4}
TITLE = "Behind nginx"


@dataclass(frozen=True)
class Certificates:
    """An authority that nobody knows, and a server's certificate that it has signed."""

    authority: Path
    server: Path
    key: Path


def openssl(*words: str, cwd: Path) -> None:
    subprocess.run(["openssl", *words], cwd=cwd, check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    authority = ("-subj", "/CN=Authority of a test", "-addext", "keyUsage=critical,keyCertSign")
    openssl("req", "-x509", *new, *authority, "-keyout", "ca.key", "-out", "ca.pem", cwd=folder)
    openssl("req", *new, "-subj", "/CN=localhost", "-keyout", "server.key", "-out", "request.pem", cwd=folder)
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names")
    openssl("x509", "-req", "-in", "request.pem", *signed, "-out", "server.pem", cwd=folder)
    return Certificates(folder / "ca.pem", folder / "server.pem", folder / "server.key")


class Nginx(Service):
    """nginx with one server on a free port of the loopback interface.

    Args:
        program: nginx.
        folder: for its configuration and what it writes.
        certificates: of the server.
    """

    def __init__(self, program: str, folder: Path, certificates: Certificates) -> None:
        super().__init__("nginx")
        self._program = program
        self._folder = folder
        self._certificates = certificates
        self._port = free_port()
        self._secret = secrets.token_hex(16)
        self.url = f"https://127.0.0.1:{self._port}"
        self.server = SERVER

    def start(self) -> Self:
        """Write the configuration and start the server."""
        places = {
            "listen 443 ssl;": f"listen 127.0.0.1:{self._port} ssl;\nlocation = /mine {{ return 200 {self._secret}; }}",
            "/etc/nginx/server.pem": str(self._certificates.server),
            "/etc/nginx/server.key": str(self._certificates.key),
        }
        for place, own in places.items():
            assert place in self.server
            self.server = self.server.replace(place, own)
        temporary = "".join(
            f"{kind}_temp_path {self._folder}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        # As root, its processes would be another user's, which may not enter the folders of a test.
        user = "user root;\n" if os.geteuid() == 0 else ""
        (self._folder / "nginx.conf").write_text(
            f"{user}daemon off;\npid {self._folder}/nginx.pid;\nevents {{}}\n"
            f"http {{\naccess_log {self._folder}/access.log;\n{temporary}{self.server}}}\n"
        )
        words = ["-p", str(self._folder), "-c", str(self._folder / "nginx.conf"), "-e", str(self._folder / "error.log")]
        self._run([self._program, *words], os.environ, self._folder / "error.log")
        return self

    def forward(self, port: int, url: str) -> None:
        """Send on to ``url`` what the documentation sends to a port."""
        assert f"http://127.0.0.1:{port}/;" in self.server
        self.server = self.server.replace(f"http://127.0.0.1:{port}/;", f"{url}/;")

    def requests(self, path: str) -> list[str]:
        """Method, path and status of the requests so far whose path begins so."""
        log = (self._folder / "access.log").read_text()
        return [" ".join(found) for found in re.findall(rf'"(\w+) ({path}[^ ?]*)[^"]*" (\d+)', log)]

    def is_ready(self) -> bool:
        context = ssl.create_default_context(cafile=self._certificates.authority)
        try:
            answer = httpx.get(f"{self.url}/mine", verify=context, timeout=5, trust_env=False)
        except httpx.TransportError:
            return False
        return answer.text == self._secret


class LabelStudioBehindNginx(LabelStudio):
    """Label Studio that knows the address under which browsers find it, and trusts the authority.

    Args:
        folder: data folder.
        host: that address.
        certificates: of the authority.
    """

    def __init__(self, folder: Path, host: str, certificates: Certificates) -> None:
        super().__init__(folder)
        self._host = host
        self._certificates = certificates

    def _environ(self) -> dict[str, str]:
        own = {"LABEL_STUDIO_HOST": self._host, "REQUESTS_CA_BUNDLE": str(self._certificates.authority)}
        return super()._environ() | own


@dataclass(frozen=True)
class Proxied:
    """An installation of which nobody uses another address than nginx's."""

    nginx: Nginx
    live: LiveProject
    connected: str

    @property
    def url(self) -> str:
        return f"{self.nginx.url}/al"


@pytest.fixture(scope="module")
def proxied(
    start_on_sqlite: Callable[[Callable[[Path], LabelStudio]], AbstractContextManager[LabelStudio]],
    valkey: Valkey,
    certificates: Certificates,
    tmp_path_factory: pytest.TempPathFactory,
    missing: Callable[[str], NoReturn],
) -> Iterator[Proxied]:
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        missing("nginx (Debian: nginx)")
    nginx = Nginx(program, tmp_path_factory.mktemp("nginx"), certificates)
    studio_url = f"{nginx.url}/label-studio"
    data_dir, logs = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("logs")
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(certificates.authority))
        environ = _without_ours(os.environ) | {
            "AL_REDIS_URL": re.sub(r"/0$", "/5", valkey.url),
            "AL_DATA_DIR": str(data_dir),
            "AL_LABEL_STUDIO_URL": studio_url,
            "AL_DEVICE": "cpu",
            "OMP_NUM_THREADS": "1",
        }
        backend, worker = Backend(environ, logs / "backend.log"), Worker({}, logs / "worker.log")
        studio = stack.enter_context(
            start_on_sqlite(lambda folder: LabelStudioBehindNginx(folder, studio_url, certificates))
        )
        backend.environ["AL_LABEL_STUDIO_API_KEY"] = studio.admin.token
        worker.environ = backend.environ
        for service in (backend, worker):
            stack.enter_context(service.start())
        nginx.forward(8080, studio.url)
        nginx.forward(9090, backend.wait().url)
        stack.enter_context(nginx.start()).wait()
        client = stack.enter_context(LabelStudioClient(studio_url, studio.admin.token))

        command = ["connect", "--create", TITLE, "--config", "severity", "--url", f"{nginx.url}/al"]
        options = [word for name, value in OPTIONS.items() for word in ("--option", f"{name}={value}")]
        connected = run(backend.environ, *command, *options)
        assert connected.returncode == 0, connected.stderr
        [row] = client.projects(TITLE)
        config = parse_label_config(client.project(row["id"])["label_config"])
        images = draw_images(6, seed=4, side=64)
        assert list(upload_images(client, studio.admin.token, row["id"], config.image_key, images))[-1] == len(images)
        store, queue = RoundStore(data_dir), RoundQueue(stack.enter_context(connect_redis(environ["AL_REDIS_URL"])))
        follower = RoundFollower(client, store, queue, store.connection(row["id"]).project)
        truth = {image.name: image.label for image in images}
        services = (valkey, backend, worker.wait(180.0), nginx)
        live = LiveProject(row["id"], config, client, follower, truth, OPTIONS, backend, services, stack)
        yield Proxied(nginx, live, connected.stdout)


def run(environ: Mapping[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ml_backend", *words]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300, check=False)


def _without_ours(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if not name.startswith("AL_")}


def test_connect_names_the_addresses_of_a_browser(proxied: Proxied) -> None:
    *_, studio, page = proxied.connected.splitlines()

    assert studio == f"the project in Label Studio: {proxied.live.client.url}/projects/{proxied.live.id}/data"
    assert page == f"the owner's page: {proxied.url}/projects/{proxied.live.follower.project}"


def test_readers_are_served_the_published_order(proxied: Proxied) -> None:
    """Everything on the way goes through nginx: sign-up, images, ranking, answers, and the events about them."""
    _, published = proxied.live.wait_for()
    reader = proxied.live.reader("ann")

    served = []
    while (task := reader.next_task(proxied.live.id, proxied.live.config)) is not None:
        served.append(task.image_id)
        reader.submit(proxied.live.id, task, "normal", proxied.live.config)

    assert len(served) == 6
    assert tuple(served) == published.image_ids
    assert proxied.live.follower.poll().changes == 6
    assert set(proxied.nginx.requests("/al/webhook")) == {"POST /al/webhook 200"}
    imports = f"/label-studio/api/projects/{proxied.live.id}/import/predictions"
    assert set(proxied.nginx.requests(imports)) == {f"POST {imports} 201"}


def test_doctor_finds_nothing(proxied: Proxied) -> None:
    found = proxied.live.run("doctor", "--project", str(proxied.live.id), "--url", proxied.url)

    assert found.returncode == 0, found.stdout
    assert "event arrives" in found.stdout
    assert "3 decoded" in found.stdout


def test_the_page_that_connect_names(proxied: Proxied, certificates: Certificates) -> None:
    context = ssl.create_default_context(cafile=certificates.authority)
    auth = (proxied.live.backend.user, proxied.live.backend.password)
    with httpx.Client(verify=context, auth=auth, headers={"Accept": "text/html"}, trust_env=False) as browser:
        page = browser.get(proxied.connected.split()[-1])
        links = {urljoin(str(page.url), link) for link in re.findall(r'(?:href|src)="([^"#]+)"', page.text)}
        answers = {link: browser.get(link).status_code for link in links if link.startswith(proxied.nginx.url)}

    assert page.status_code == 200
    assert any(link.startswith(f"{proxied.url}/") for link in answers)
    assert {link: status for link, status in answers.items() if status >= 400} == {}


def test_without_the_authority_the_variable_is_named(proxied: Proxied) -> None:
    environ = {name: value for name, value in proxied.live.backend.environ.items() if name not in CA_VARIABLES}

    found = run(environ, "connect", "--project", str(proxied.live.id), "--url", proxied.url)

    assert found.returncode == 1
    assert "is not trusted" in found.stderr
    assert "set SSL_CERT_FILE to a PEM file" in found.stderr
