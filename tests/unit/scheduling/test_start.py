"""The worker's parent process must be able to fork a work-horse that uses CUDA."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "torchvision", "label_studio_ml", "ml_backend.rounds")


FORK = """
import os, sys
from ml_backend.config import Settings
from ml_backend.scheduling.worker import preload

preload(Settings(device=sys.argv[1]))
torch = sys.modules.get("torch")
if torch is None:
    sys.exit("no torch")
assert not torch.cuda.is_initialized()
child = os.fork()
if not child:
    torch.set_num_threads(2)
    product = (torch.ones(600, 600, requires_grad=True) @ torch.ones(600, 600)).sum()
    product.backward()
    os._exit(0 if product.item() == 600**3 else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def run_fork(device: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", FORK, device]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


class TestPreload:
    @pytest.mark.parametrize("device", ["auto", "cuda"])
    def test_torch_stays_out_where_there_may_be_a_gpu(self, device):
        done = run_fork(device)

        assert done.stderr.strip() == "no torch"

    def test_a_fork_works_with_what_its_parent_has_loaded(self):
        """On several threads, which is what a fork could break."""
        done = run_fork("cpu")

        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "module",
    [
        "ml_backend.scheduling.worker",
        "ml_backend.scheduling.followers",
        "ml_backend.server.serve",
    ],
)
def test_imports_no_torch(module):
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "[]"
