import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ml_backend.blas import available_cores, enable_deterministic_blas, use_threads
from ml_backend.cli import main
from ml_backend.errors import SettingsError

PRODUCTS = """
from ml_backend.blas import enable_deterministic_blas
enable_deterministic_blas()
import torch
torch.manual_seed(0)
rows, weights = torch.randn(500, 512), torch.randn(512, 1024)
torch.set_num_threads(1)
wanted = rows @ weights
room = torch.empty(rows.numel() + 16)
different = 0
for threads in (1, 2):
    torch.set_num_threads(threads)
    different += sum(int((rows[:few] @ weights != wanted[:few]).sum()) for few in (1, 4, 7, 50, 499))
    for place in range(1, 16, 5):
        moved = room[place : place + rows.numel()].view_as(rows).copy_(rows)
        different += int((moved @ weights != wanted).sum())
print(different)
"""


def test_products_have_the_same_bits_in_parts_on_threads_and_anywhere_in_memory():
    """In a process of its own: this one's MKL may have begun before it could be asked."""
    if "Intel" not in Path("/proc/cpuinfo").read_text() or not torch.backends.mkl.is_available():
        pytest.skip("only MKL on a CPU of Intel's is asked")
    environ = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}

    done = subprocess.run(
        [sys.executable, "-c", PRODUCTS], env=environ, capture_output=True, text=True, timeout=120, check=True
    )

    assert done.stdout.split() == ["0"]


@pytest.mark.parametrize(
    ("cpu", "before", "after"),
    [
        ("vendor_id : GenuineIntel", {}, {"MKL_CBWR": "AUTO,STRICT"}),
        ("vendor_id : GenuineIntel", {"MKL_CBWR": "AVX2"}, {"MKL_CBWR": "AVX2"}),
        ("vendor_id : AuthenticAMD", {}, {}),
        (None, {}, {}),
    ],
)
def test_asks_on_intel_and_leaves_a_choice_alone(tmp_path, cpu, before, after):
    file = tmp_path / "cpuinfo"
    if cpu is not None:
        file.write_text(cpu)
    environ = dict(before)

    enable_deterministic_blas(environ, file)

    assert environ == after


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 8), ("250000 100000", 2), ("10000 100000", 1), ("9900000 100000", 8), (None, 8)]
)
def test_cores_of_a_container(tmp_path, monkeypatch, quota, cores):
    """The host's 8 cores do not count where a quota leaves fewer; a service's group lies deeper than a container's."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    if quota is not None:
        for path, text in (("proc/self/cgroup", "0::/a/b.service\n"), ("sys/fs/cgroup/a/b.service/cpu.max", quota)):
            (tmp_path / path).parent.mkdir(parents=True)
            (tmp_path / path).write_text(text)

    assert available_cores(tmp_path) == cores


@pytest.mark.parametrize(
    ("given", "omp", "mkl"),
    [
        ({"AL_THREADS": "3", "MKL_NUM_THREADS": "7"}, "3", "3"),
        ({"OMP_NUM_THREADS": "2"}, "2", "2"),
        ({"MKL_NUM_THREADS": "7"}, str(available_cores()), "7"),
    ],
)
def test_threads_of_a_process(given, omp, mkl):
    environ = dict(given)

    use_threads(environ)

    assert environ["OMP_NUM_THREADS"] == environ["OPENBLAS_NUM_THREADS"] == omp
    assert (environ["MKL_NUM_THREADS"], environ["OMP_WAIT_POLICY"]) == (mkl, "PASSIVE")


@pytest.mark.parametrize("given", ["0", "two", "-1"])
def test_a_wrong_number_of_threads_is_named(given):
    with pytest.raises(SettingsError, match=f"AL_THREADS='{given}': expected a number of threads"):
        use_threads({"AL_THREADS": given})


def test_the_command_refuses_it(monkeypatch, capsys):
    monkeypatch.setenv("AL_THREADS", "two")

    with pytest.raises(SystemExit) as ended:
        main()

    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("ml-backend: AL_THREADS='two': expected")
