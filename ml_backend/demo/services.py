"""Label Studio, the backend and the worker, each as a child process on a free port.

All are started first and waited for later, so that they come up at the same time. A service is ready when our own
process answers, identified by a secret or a process id: another program may hold the port.
"""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import httpx
import redis
from rq.worker_registration import get_keys

from ml_backend.config import Settings
from ml_backend.errors import ServiceError
from ml_backend.processes import LOG_LINES, Service, free_port, private_folder
from ml_backend.storage import write_atomically

ADMIN = "admin@example.com"
DEFAULT_BINARY = Path(".tools/label-studio/bin/label-studio")
SHIPPED_LOCK = Path(__file__).parent / "requirements-label-studio.lock"  # in an installed wheel
# The first start takes 70 to 160 s on a busy two-core machine.
LABEL_STUDIO_TIMEOUT_S = 400.0
# Label Studio reads each of its settings under its bare name too (HOST, DEBUG, PORT, ...): only these are passed on.
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "LD_LIBRARY_PATH")


@dataclass(frozen=True, slots=True)
class Login:
    """The owner of the demo's Label Studio; ``token`` is a legacy API token of 40 hex digits."""

    email: str
    password: str
    token: str


def install_label_studio(folder: Path, lock: Path = SHIPPED_LOCK) -> Path:
    """Install Label Studio into an environment of its own, unless it is there already.

    It cannot share ours: it pins an rq that clashes.

    Args:
        folder: of the environment; an unfinished or outdated one is replaced.
        lock: versions and hashes of Label Studio and all that it needs.

    Returns:
        The ``label-studio`` program.

    Raises:
        ServiceError: it could not be installed; with the end of the log.
    """
    done, log = folder / "installed.lock", folder.with_suffix(".log")
    if not (done.is_file() and done.read_bytes() == lock.read_bytes()):
        pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install"]
        with log.open("wb") as output:
            for command in (
                [sys.executable, "-m", "venv", "--clear", str(folder)],
                [*pip, "--require-hashes", "--requirement", str(lock)],
            ):
                if subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode:  # noqa: S603
                    tail = "\n".join(
                        f"  | {line}" for line in log.read_text(errors="replace").splitlines()[-LOG_LINES:]
                    )
                    raise ServiceError(
                        f"Label Studio could not be installed into {folder}: correct what pip reports and try again, "
                        f"or let AL_LABEL_STUDIO_BIN name a label-studio program. The log {log} ends:\n{tail}"
                    )
        write_atomically(done, lock.read_bytes())
    return folder / "bin" / "label-studio"


class LabelStudio(Service):
    """Label Studio from its own environment, with an owner that is created at the first start.

    Args:
        folder: its data folder; a later start on it keeps users, projects and the owner's password.
        binary: the ``label-studio`` program; default ``AL_LABEL_STUDIO_BIN``, else what ``make setup`` builds.
    """

    def __init__(self, folder: Path, binary: Path | None = None) -> None:
        super().__init__("Label Studio")
        self._folder = private_folder(folder)
        self._binary = binary or self.default_binary()
        self.admin = _login(self._folder / "login.json")
        self.url = ""

    @staticmethod
    def default_binary() -> Path:
        return Path(os.environ.get("AL_LABEL_STUDIO_BIN") or DEFAULT_BINARY)

    @property
    def is_new(self) -> bool:
        """Whether the start creates the database, which takes minutes instead of seconds."""
        return not (self._folder / "label_studio.sqlite3").exists()

    def start(self) -> Self:
        """Start it.

        Raises:
            ServiceError: the program is missing.
        """
        if not self._binary.exists():
            raise ServiceError(
                f"{self._binary} does not exist: run `make setup`, or let AL_LABEL_STUDIO_BIN name a "
                "label-studio 1.23 program in an environment of its own"
            )
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [str(self._binary.absolute()), "start", "--no-browser", "--port", str(port), "--internal-host",
                   "127.0.0.1", "--log-level", "INFO", "--enable-legacy-api-token"]  # fmt: skip
        self._run(command, self._environ(), self._folder / "label-studio.log")
        return self

    def wait(self, timeout_s: float = LABEL_STUDIO_TIMEOUT_S) -> Self:
        return super().wait(timeout_s)

    def is_ready(self) -> bool:
        """Whether *our* Label Studio answers: it silently moves to the next port when its own is taken."""
        headers = {"Authorization": f"Token {self.admin.token}"}
        try:
            if httpx.get(f"{self.url}/health", timeout=5, trust_env=False).status_code != 200:
                return False
            answer = httpx.get(f"{self.url}/api/current-user/whoami", headers=headers, timeout=10, trust_env=False)
        except httpx.TransportError:
            return False
        if answer.status_code == 401:
            raise ServiceError(
                f"the Label Studio at {self.url} refuses the token in {self._folder / 'login.json'}: another server "
                "took the port (try again), or the folder was made by another start (move it away)"
            )
        return answer.status_code == 200 and answer.json().get("email") == self.admin.email

    def _environ(self) -> dict[str, str]:
        own = {
            "BASE_DATA_DIR": str(self._folder.absolute()),
            "HOST": self.url,
            # In the environment: everybody on the machine can read a command line.
            "USERNAME": self.admin.email,
            "PASSWORD": self.admin.password,
            "USER_TOKEN": self.admin.token,
            "ENABLE_LEGACY_API_TOKEN": "true",
            # The backend is on this machine; by default Label Studio refuses to call loopback addresses.
            "SSRF_PROTECTION_ENABLED": "false",
            "ML_BLOCK_LOCAL_IP": "false",
            "DISABLE_SIGNUP_WITHOUT_LINK": "true",
            "COLLECT_ANALYTICS": "false",
            "LATEST_VERSION_CHECK": "false",
        }
        return {
            **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
            **{f"LABEL_STUDIO_{name}": value for name, value in own.items()},
            "SENTRY_DSN": "",
            "FRONTEND_SENTRY_DSN": "",
        }


class Backend(Service):
    """The web process, ``ml-backend serve``, behind a user name and a password of its own."""

    def __init__(self, environ: Mapping[str, str], log: Path) -> None:
        super().__init__("the backend")
        self.user, self.password = "label-studio", secrets.token_urlsafe(24)
        self.environ = dict(environ) | {"AL_BASIC_AUTH_USER": self.user, "AL_BASIC_AUTH_PASS": self.password}
        self._log = log
        self.url = ""

    @property
    def settings(self) -> Settings:
        """Addresses, folders and credentials as the backend has them."""
        names = ("redis_url", "data_dir", "label_studio_url", "label_studio_api_key")
        own = {name: self.environ[f"AL_{name.upper()}"] for name in names}
        return Settings.load(**own, basic_auth_user=self.user, basic_auth_pass=self.password)

    def start(self) -> Self:
        """Start it, a second time on the same port."""
        self.url = self.url or f"http://127.0.0.1:{free_port()}"
        port = self.url.rpartition(":")[2]
        command = [sys.executable, "-m", "ml_backend", "serve", "--host", "127.0.0.1", "--port", port]
        self._run(command, self.environ, self._log)
        return self

    def is_ready(self) -> bool:
        try:
            # No other program refuses strangers and knows this password.
            stranger = httpx.get(f"{self.url}/versions", timeout=5, trust_env=False)
            ours = httpx.get(f"{self.url}/versions", timeout=5, auth=(self.user, self.password), trust_env=False)
        except httpx.TransportError:
            return False
        return stranger.status_code == 401 and ours.status_code == 200


class Worker(Service):
    """The process that trains, ``ml-backend work``."""

    # On SIGTERM a worker finishes the step of its round; nobody goes on with it, and a kill leaves one complete order.
    grace_s = 1.0

    def __init__(self, environ: Mapping[str, str], log: Path) -> None:
        super().__init__("the worker")
        self.environ = dict(environ)
        self._log = log

    def start(self) -> Self:
        self._run([sys.executable, "-m", "ml_backend", "work"], self.environ, self._log)
        return self

    def is_ready(self) -> bool:
        with redis.Redis.from_url(self.environ["AL_REDIS_URL"], decode_responses=True) as connection:
            return str(self.pid) in [connection.hget(key, "pid") for key in get_keys(connection=connection)]


def _login(path: Path) -> Login:
    """Read the owner's login, or draw one and keep it for the next start.

    Raises:
        ServiceError: the file is damaged.
    """
    try:
        return Login(**json.loads(path.read_text()))
    except FileNotFoundError:
        login = Login(ADMIN, secrets.token_urlsafe(9), secrets.token_hex(20))
        write_atomically(path, json.dumps(asdict(login)).encode())  # with mode 0600
        return login
    except (OSError, ValueError, TypeError) as error:
        raise ServiceError(f"{path} cannot be read ({error}): move {path.parent} away to start afresh") from error
