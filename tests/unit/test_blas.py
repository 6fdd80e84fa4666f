import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ml_backend.blas import enable_deterministic_blas

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
