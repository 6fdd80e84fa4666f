"""Real child processes: waited for, explained when they fail, and ended with all that they started."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ml_backend.errors import ServiceError
from ml_backend.processes import Child, free_port


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Callable[[str], Child]]:
    """Makes shell children that are stopped at the end, whatever happens."""
    made: list[Child] = []

    def make(script: str) -> Child:
        child = Child("the thing", ["/bin/sh", "-c", script], os.environ, tmp_path / "logs" / "thing.log")
        made.append(child)
        child.start()
        return child

    yield make
    for child in made:
        child.stop(grace_s=1.0)


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


class TestChild:
    def test_is_waited_for_until_it_is_ready(self, spawn, tmp_path):
        child = spawn(f"sleep 0.2; touch {tmp_path / 'ready'}; sleep 60")

        child.wait_until((tmp_path / "ready").exists, timeout_s=10)

        child.check()

    def test_that_ends_early_is_explained_by_its_log(self, spawn):
        child = spawn("echo the port is taken; exit 3")

        with pytest.raises(ServiceError, match=r"the thing ended by itself with status 3(.|\n)*the port is taken"):
            child.wait_until(lambda: False, timeout_s=10)

    def test_that_is_not_ready_in_time_is_explained_by_its_log(self, spawn):
        child = spawn("echo still migrating; sleep 60")

        with pytest.raises(ServiceError, match=r"not ready after 0 s(.|\n)*still migrating"):
            child.wait_until(lambda: False, timeout_s=0.3)

    def test_a_log_is_appended_to(self, spawn, tmp_path):
        for word in ("first", "second"):
            child = spawn(f"echo {word}")
            wait_for(lambda child=child: child._process.poll() is not None)

        assert (tmp_path / "logs" / "thing.log").read_text() == "first\nsecond\n"

    def test_stop_ends_the_whole_group(self, spawn, tmp_path):
        child = spawn(f"sleep 60 & echo $! > {tmp_path / 'grandchild'}; wait")
        wait_for(lambda: (tmp_path / "grandchild").exists() and (tmp_path / "grandchild").read_text().strip())
        pids = [child.pid, int((tmp_path / "grandchild").read_text())]

        child.stop()

        wait_for(lambda: not any(map(alive, pids)))

    def test_stop_ends_what_does_not_listen(self, spawn, tmp_path):
        child = spawn(f"trap '' TERM; touch {tmp_path / 'deaf'}; while :; do sleep 0.1; done")
        wait_for((tmp_path / "deaf").exists)
        pid = child.pid

        child.stop(grace_s=0.3)

        assert not alive(pid)

    def test_stop_twice_does_nothing(self, spawn):
        child = spawn("sleep 60")

        child.stop()
        child.stop()

    def test_ctrl_c_in_our_terminal_does_not_reach_it(self, spawn):
        """The terminal signals our process group, and the child leads one of its own."""
        child = spawn("sleep 60")

        assert os.getpgid(child.pid) == child.pid != os.getpgid(0)

    def test_a_program_that_is_missing_is_named(self, tmp_path):
        with pytest.raises(ServiceError, match=r"the thing could not be started: /no/such/program"):
            Child("the thing", ["/no/such/program"], {}, tmp_path / "log").start()

    def test_refuses_to_start_from_another_thread(self, tmp_path):
        """Linux would end the child with that thread."""
        raised: list[BaseException] = []

        def start() -> None:
            try:
                Child("the thing", ["/bin/true"], {}, tmp_path / "log").start()
            except RuntimeError as error:
                raised.append(error)

        thread = threading.Thread(target=start)
        thread.start()
        thread.join()

        assert "main thread" in str(raised[0])

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
    def test_dies_with_a_parent_that_is_killed(self, tmp_path):
        script = (
            "import os, pathlib, time\n"
            "from ml_backend.processes import Child\n"
            f"folder = pathlib.Path({str(tmp_path)!r})\n"
            "child = Child('sleeper', ['/bin/sleep', '60'], os.environ, folder / 'log')\n"
            "child.start()\n"
            "(folder / 'pid.part').write_text(str(child.pid))\n"
            "(folder / 'pid.part').rename(folder / 'pid')\n"
            "time.sleep(60)\n"
        )
        parent = subprocess.Popen([sys.executable, "-c", script])
        wait_for((tmp_path / "pid").exists, timeout_s=30)
        pid = int((tmp_path / "pid").read_text())
        assert alive(pid)

        parent.send_signal(signal.SIGKILL)
        parent.wait()

        wait_for(lambda: not alive(pid))


class TestFreePort:
    def test_can_be_listened_on(self):
        assert 1024 <= free_port() <= 65535
