"""The processes that a worker starts beside itself; test_distributed.py has them share out a pool."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest

from ml_backend.config import Settings
from ml_backend.errors import SettingsError
from ml_backend.scheduling import followers, worker
from ml_backend.scheduling.followers import Followers, Processes, count_gpus, token
from tests.command_line import run_cli
from tests.integration.processes import wait_until
from tests.manual import commands_run_by

PARENT = """
import time
from ml_backend.scheduling import followers, worker
from ml_backend.scheduling.followers import Followers, Processes
with Followers(Processes(nproc=2)):
    time.sleep(600)
"""


class TestProcesses:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"nnodes": 2, "node_rank": 2, "master": "h:1"}, "--node-rank 2 of --nnodes 2: expected 0 to 1"),
            ({"nnodes": 2}, "--nnodes 2 without --master"),
            ({"master": "h:1"}, "--nnodes 1 with --master"),
            ({"nnodes": 2, "master": "h"}, "--master 'h': expected HOST:PORT"),
            ({"nnodes": 2, "master": "h:99999"}, "expected HOST:PORT, such as"),
        ],
    )
    def test_refuses(self, given, message):
        with pytest.raises(SettingsError) as refused:
            Processes(**given)

        assert message in str(refused.value)

    def test_counts_those_of_all_machines_but_the_work_horse(self):
        assert (Processes().others, Processes(3, 2, 0, "h:1").others) == (0, 5)

    @pytest.mark.parametrize(
        ("wanted", "count"), [("all", 2), ("1", 1), ("2", 2), ("3", None), ("0", None), ("x", None)]
    )
    def test_counts_gpus(self, monkeypatch, wanted, count):
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=b"2\n"))
        if count is not None:
            assert count_gpus(wanted) == count
            return
        with pytest.raises(SettingsError, match=rf"--gpus {wanted}: expected all or a number up to 2"):
            count_gpus(wanted)


def test_the_manual_s_commands(monkeypatch, tmp_path):
    """Up to where they begin processes."""
    found = list[Processes]()

    def follow(processes: Processes) -> NoReturn:
        found.append(processes)
        sys.exit(0)

    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=b"4\n"))
    monkeypatch.setattr(followers, "follow_forever", follow)
    monkeypatch.setattr(worker, "work", lambda *_, processes, **__: found.append(processes))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for command in commands_run_by(__file__):
        assert run_cli(command.words[1:], {"AL_DATA_DIR": str(tmp_path)}).returncode == 0

    master = "10.0.0.1:29500"
    assert found == [Processes(4), Processes(2), Processes(4, 2, 0, master), Processes(4, 2, 1, master)]


def test_installations_have_tokens_of_their_own():
    assert len({token(Settings(label_studio_api_key=key)) for key in ("a", "b", None)}) == 3


def test_an_address_of_another_machine_cannot_be_used():
    with pytest.raises(SettingsError, match=r"--master 192\.0\.2\.1:29500: this machine cannot listen there"):
        Followers(Processes(1, 2, 0, "192.0.2.1:29500"))


def test_no_process_outlives_a_killed_worker(tmp_path):
    """Whether it has begun or not."""
    environ = os.environ | {"AL_DATA_DIR": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", PARENT], env=environ)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    command = Path("/proc") / wait_until(children.read_text).split()[0] / "cmdline"
    wait_until(lambda: b"followers" in command.read_bytes())

    parent.kill()
    parent.wait()

    wait_until(lambda: not command.exists() or not command.read_bytes())
