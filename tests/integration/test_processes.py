"""Real child processes: waited for, explained when they fail, ended with all that they started; Valkey among them."""

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from rq import Queue, Worker

from ml_backend.errors import ServiceError
from ml_backend.processes import Valkey, free_port
from tests.command_line import ShellService


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Callable[..., ShellService]]:
    """Starts shell lines, and stops them at the end."""
    made: list[ShellService] = []
    (tmp_path / "logs").mkdir()

    def make(line: str, ready: Callable[[], bool] = lambda: False) -> ShellService:
        made.append(ShellService(line, tmp_path / "logs" / "thing.log", ready))
        return made[-1].start()

    yield make
    for service in made:
        service.stop()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


class TestService:
    def test_is_waited_for_until_it_is_ready(self, spawn, tmp_path):
        service = spawn(f"sleep 0.2; touch {tmp_path / 'ready'}; sleep 60", (tmp_path / "ready").exists)

        service.wait(10).check()

        assert (tmp_path / "ready").exists()

    @pytest.mark.parametrize(
        ("line", "timeout_s", "problem"),
        [
            ("echo the port is taken; exit 3", 10, r"ended by itself with status 3(.|\n)*the port is taken"),
            ("echo still migrating; sleep 60", 0.3, r"not ready after 0 s(.|\n)*still migrating"),
        ],
    )
    def test_that_does_not_get_ready_is_explained_by_its_log(self, spawn, line, timeout_s, problem):
        with pytest.raises(ServiceError, match=problem):
            spawn(line).wait(timeout_s)

    def test_a_log_is_appended_to(self, spawn, tmp_path):
        for word in ("first", "second"):
            service = spawn(f"echo {word}")
            wait_for(lambda service=service: service._process.poll() is not None)

        assert (tmp_path / "logs" / "thing.log").read_text() == "first\nsecond\n"

    def test_stop_ends_the_whole_group(self, spawn, tmp_path):
        service = spawn(f"sleep 60 & echo $! > {tmp_path / 'grandchild'}; wait")
        wait_for(lambda: (tmp_path / "grandchild").exists() and (tmp_path / "grandchild").read_text().strip())
        pids = [service.pid, int((tmp_path / "grandchild").read_text())]

        service.stop()
        service.stop()

        wait_for(lambda: not any(map(alive, pids)))

    def test_stop_ends_what_ignores_the_first_signal(self, spawn, tmp_path):
        service = spawn(f"trap '' TERM; touch {tmp_path / 'deaf'}; while :; do sleep 0.1; done")
        wait_for((tmp_path / "deaf").exists)
        pid = service.pid

        service.grace_s = 0.3
        service.stop()

        assert not alive(pid)

    def test_ctrl_c_in_our_terminal_does_not_reach_it(self, spawn):
        """The terminal signals our process group, and the child leads one of its own."""
        service = spawn("sleep 60")

        assert os.getpgid(service.pid) == service.pid != os.getpgid(0)

    def test_a_program_that_is_missing_is_named(self, tmp_path):
        service = ShellService("thing", tmp_path / "log")
        service._command = ["/no/such/program"]

        with pytest.raises(ServiceError, match=r"thing could not be started: /no/such/program"):
            service.start()
        with pytest.raises(ServiceError, match="was not started"):
            _ = service.pid

    def test_refuses_to_start_from_another_thread(self, tmp_path):
        """Linux would end the child with that thread."""
        raised: list[BaseException] = []

        def start() -> None:
            try:
                ShellService("true", tmp_path / "log").start()
            except RuntimeError as error:
                raised.append(error)

        thread = threading.Thread(target=start)
        thread.start()
        thread.join()

        assert "main thread" in str(raised[0])

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
    def test_dies_with_a_parent_that_is_killed(self, tmp_path):
        script = (
            "import pathlib, time\n"
            "from tests.command_line import ShellService\n"
            f"folder = pathlib.Path({str(tmp_path)!r})\n"
            "child = ShellService('exec sleep 60', folder / 'log').start()\n"
            "(folder / 'pid.part').write_text(str(child.pid))\n"
            "(folder / 'pid.part').rename(folder / 'pid')\n"
            "time.sleep(60)\n"
        )
        parent = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
        wait_for((tmp_path / "pid").exists, timeout_s=30)
        pid = int((tmp_path / "pid").read_text())
        assert alive(pid)

        parent.send_signal(signal.SIGKILL)
        parent.wait()

        wait_for(lambda: not alive(pid))


class TestFreePort:
    def test_can_be_listened_on(self):
        assert 1024 <= free_port() <= 65535


class TestValkey:
    def test_answers_to_its_password_alone(self, tmp_path):
        with Valkey(tmp_path / "valkey").start().wait() as valkey:
            with redis.Redis.from_url(valkey.url) as friend:
                assert friend.ping()
            stranger = valkey.url.partition("@")[2]
            with (
                redis.Redis.from_url(f"redis://{stranger}") as connection,
                pytest.raises(redis.AuthenticationError),
            ):
                connection.ping()

    def test_nobody_else_can_read_the_password(self, tmp_path):
        with Valkey(tmp_path / "valkey").start().wait() as valkey:
            assert stat.S_IMODE((tmp_path / "valkey" / "valkey.conf").stat().st_mode) == 0o600
            password = valkey.url.split(":")[2].partition("@")[0]
            assert password not in Path(f"/proc/{valkey.pid}/cmdline").read_text()

    def test_keeps_what_was_written_when_it_stops(self, tmp_path):
        with (
            Valkey(tmp_path / "valkey").start().wait() as first,
            redis.Redis.from_url(first.url) as connection,
        ):
            connection.set("round", "7")
        with (
            Valkey(tmp_path / "valkey").start().wait() as second,
            redis.Redis.from_url(second.url) as connection,
        ):
            assert connection.get("round") == b"7"

    def test_uses_a_running_one_and_does_not_stop_it(self, tmp_path):
        with Valkey(tmp_path / "running").start().wait() as running:
            with Valkey(tmp_path / "other", url=running.url).start().wait() as other:
                assert other.url == running.url
            with redis.Redis.from_url(running.url) as connection:
                assert connection.ping()

    def test_a_given_one_that_does_not_answer_is_named_without_its_password(self, tmp_path):
        port = free_port()

        with pytest.raises(ServiceError, match=f"127.0.0.1:{port}, where no Redis answers") as error:
            Valkey(tmp_path, url=f"redis://:secret@127.0.0.1:{port}/0").start()

        assert "secret" not in str(error.value)

    def test_a_given_one_with_workers_is_refused_because_they_would_take_the_rounds(self, tmp_path):
        with (
            Valkey(tmp_path / "running").start().wait() as running,
            redis.Redis.from_url(running.url) as connection,
        ):
            worker = Worker([Queue("rounds", connection=connection)], connection=connection)
            worker.register_birth()

            with pytest.raises(ServiceError, match=r"1 worker\(s\) run already"):
                Valkey(tmp_path / "other", url=running.url).start()

            other_database = running.url.removesuffix("/0") + "/1"
            assert Valkey(tmp_path / "other", url=other_database).start().url == other_database
            worker.register_death()
