"""A Postgres of our own, and a Label Studio on it."""

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, Self

from ml_backend.demo.services import LabelStudio
from ml_backend.processes import Service, free_port

DEBIAN = Path("/usr/lib/postgresql")  # its folders are major versions; Debian puts no server program on PATH
# What a test writes need not outlive the machine: the migrations take a third less.
FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")
USER = "label_studio"


def postgres_programs() -> Path | None:
    """The folder of the newest Postgres server's programs; None where there is none."""
    found = [path for path in DEBIAN.glob("*/bin") if (path / "postgres").exists() and path.parent.name.isdecimal()]
    if found:
        return max(found, key=lambda path: int(path.parent.name))
    program = shutil.which("postgres")
    return None if program is None else Path(program).resolve().parent


class Postgres(Service):
    """A Postgres on a free port of the loopback interface, with its own data folder and a random password.

    It refuses to run as root, where it runs as Debian's user ``postgres``, or as ``nobody``.

    Args:
        programs: folder with ``initdb``, ``postgres`` and ``psql``.
    """

    def __init__(self, programs: Path) -> None:
        super().__init__("Postgres")
        self._programs = programs
        self.port = 0
        self.password = secrets.token_hex(16)
        # Not below pytest's folders, which only their owner may enter.
        self._folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._as_user: tuple[str, ...] = ()
        if os.geteuid() == 0:
            names = {user.pw_name for user in pwd.getpwall()}
            user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
            os.chown(self._folder, user.pw_uid, user.pw_gid)
            # A change of the user clears the signal with which the kernel ends a child after its parent.
            self._as_user = ("setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups",
                             "--pdeathsig=KILL")  # fmt: skip

    def start(self) -> Self:
        """Create the data folder and start the server."""
        self.port = free_port()
        data = self._folder / "data"
        given = self._folder / "password"
        given.write_text(self.password)
        given.chmod(0o644)  # in a folder that only the server's user may enter
        self._folder.chmod(0o700)
        subprocess.run(
            [*self._as_user, str(self._programs / "initdb"), f"--pgdata={data}", f"--username={USER}",
             f"--pwfile={given}", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"],
            check=True, capture_output=True, cwd="/",
        )  # fmt: skip
        options = ("listen_addresses=127.0.0.1", f"port={self.port}", "unix_socket_directories=", *FAST)
        command = [*self._as_user, str(self._programs / "postgres"), "-D", str(data)]
        command += [word for option in options for word in ("-c", option)]
        self._run(command, os.environ, self._folder / "postgres.log", cwd=Path("/"))
        return self

    def is_ready(self) -> bool:
        return self._psql("select 1").returncode == 0  # no other server knows the password

    def query(self, sql: str) -> list[str]:
        """The rows of an answer, their columns separated by ``|``."""
        return self._psql(sql, check=True).stdout.splitlines()

    def stop(self) -> None:
        super().stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _psql(self, sql: str, *, check: bool = False) -> subprocess.CompletedProcess[str]:
        command = [str(self._programs / "psql"), "--host=127.0.0.1", f"--port={self.port}", f"--username={USER}",
                   "--dbname=postgres", "--no-psqlrc", "--no-password", "--tuples-only", "--no-align",
                   f"--command={sql}"]  # fmt: skip
        environ = {**os.environ, "PGPASSWORD": self.password}
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=check, timeout=60)


class LabelStudioOnPostgres(LabelStudio):
    """A Label Studio whose database is Postgres instead of sqlite."""

    def __init__(self, folder: Path, postgres: Postgres) -> None:
        super().__init__(folder)
        self._postgres = postgres

    def _environ(self) -> dict[str, str]:
        own = {
            "DJANGO_DB": "default",
            "POSTGRE_HOST": "127.0.0.1",
            "POSTGRE_PORT": str(self._postgres.port),
            "POSTGRE_NAME": "postgres",
            "POSTGRE_USER": USER,
            "POSTGRE_PASSWORD": self._postgres.password,
        }
        return super()._environ() | {f"LABEL_STUDIO_{name}": value for name, value in own.items()}


@contextmanager
def label_studio_on_postgres(
    folder: Path, missing: Callable[[str], NoReturn]
) -> Iterator[tuple[LabelStudioOnPostgres, Postgres]]:
    """Both, running; ``missing`` is called where this machine has no Postgres."""
    programs = postgres_programs()
    if programs is None:
        missing("a Postgres server (Debian: postgresql)")
    with Postgres(programs).start() as postgres:
        postgres.wait()
        with LabelStudioOnPostgres(folder, postgres).start() as label_studio:
            yield label_studio.wait(), postgres
