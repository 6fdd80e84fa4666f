"""Label Studio, the backend and the worker, each as a child of ours on a port of its own.

Every service is started first and waited for later, so that they come up side by side. Being ready always means
that *our own* server answers: a secret or a process id is checked, since anybody may sit on a port.
"""

import json
import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import httpx
import redis
from rq.worker_registration import get_keys

from ml_backend.errors import ServiceError
from ml_backend.processes import Service, free_port, private_folder
from ml_backend.storage import write_atomically

ADMIN = "admin@example.com"
DEFAULT_BINARY = Path(".tools/label-studio/bin/label-studio")
# Empty data folder to answer: 70 to 160 s on a busy two-core machine. Twice that, and something is wrong.
LABEL_STUDIO_TIMEOUT_S = 400.0
# Label Studio looks every setting up under its bare name too (HOST, DEBUG, PORT, ...), so that it gets these alone.
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "LD_LIBRARY_PATH")


@dataclass(frozen=True, slots=True)
class Login:
    """The owner of the demo's Label Studio."""

    email: str
    password: str
    token: str  # legacy API token, 40 hex digits


class LabelStudio(Service):
    """Label Studio from its own environment, with an owner made on its first start.

    Args:
        folder: its data folder; a second start on it keeps users, projects and the owner's password.
        binary: the ``label-studio`` program; default ``AL_LABEL_STUDIO_BIN``, else what ``make setup`` builds.
    """

    def __init__(self, folder: Path, binary: Path | None = None) -> None:
        super().__init__("Label Studio")
        self._folder = private_folder(folder)
        self._binary = binary or self.default_binary()
        self.admin = _login(self._folder / "login.json")
        self.url = ""

    @property
    def api_key(self) -> str:
        return self.admin.token

    @staticmethod
    def default_binary() -> Path:
        return Path(os.environ.get("AL_LABEL_STUDIO_BIN") or DEFAULT_BINARY)

    @property
    def is_new(self) -> bool:
        """Whether this start makes the database, which takes minutes instead of seconds."""
        return not (self._folder / "label_studio.sqlite3").exists()

    def start(self) -> Self:
        """Start it; its first start takes minutes.

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
        """Whether *our* Label Studio answers: it moves to the next port in silence when its own is taken."""
        try:
            if httpx.get(f"{self.url}/health", timeout=5, trust_env=False).status_code != 200:
                return False
            headers = {"Authorization": f"Token {self.admin.token}"}
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
            # In the environment and not on the command line, which everybody on the machine can read.
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
        passed_on = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        return (
            passed_on | {f"LABEL_STUDIO_{k}": v for k, v in own.items()} | {"SENTRY_DSN": "", "FRONTEND_SENTRY_DSN": ""}
        )


class Backend(Service):
    """The web process, ``ml-backend serve``, behind a user name and a password of its own."""

    def __init__(self, environ: Mapping[str, str], log: Path) -> None:
        super().__init__("the backend")
        self.user, self.password = "label-studio", secrets.token_urlsafe(24)
        self.environ = dict(environ) | {"AL_BASIC_AUTH_USER": self.user, "AL_BASIC_AUTH_PASS": self.password}
        self._log = log
        self.url = ""

    def start(self) -> Self:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "ml_backend", "serve", "--host", "127.0.0.1", "--port", str(port)]
        self._run(command, self.environ, self._log)
        return self

    def is_ready(self) -> bool:
        try:
            # Nobody else refuses strangers and knows this password.
            stranger = httpx.get(f"{self.url}/versions", timeout=5, trust_env=False)
            ours = httpx.get(f"{self.url}/versions", timeout=5, auth=(self.user, self.password), trust_env=False)
        except httpx.TransportError:
            return False
        return stranger.status_code == 401 and ours.status_code == 200


class Worker(Service):
    """The process that trains, ``ml-backend work``."""

    # Asked to stop it ends its round first, which nobody waits for any more; cut off, it leaves one whole order.
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
            pids = [connection.hget(key, "pid") for key in get_keys(connection=connection)]
        return str(self.pid) in pids


def _login(path: Path) -> Login:
    """Read the owner's password and token, or draw new ones and keep them for the next start.

    Raises:
        ServiceError: the file is damaged.
    """
    try:
        return Login(**json.loads(path.read_text()))
    except FileNotFoundError:
        login = Login(ADMIN, secrets.token_urlsafe(9), secrets.token_hex(20))
        write_atomically(path, json.dumps(asdict(login)).encode())  # made with mode 0600
        return login
    except (OSError, ValueError, TypeError) as error:
        raise ServiceError(f"{path} cannot be read ({error}): move {path.parent} away to start afresh") from error
