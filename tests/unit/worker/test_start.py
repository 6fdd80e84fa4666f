"""The worker's parent process must be able to fork a work-horse that uses CUDA."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "torchvision", "label_studio_ml", "ml_backend.assembly")


@pytest.mark.parametrize("module", ["ml_backend.worker.start", "ml_backend.worker.job", "ml_backend.server.serve"])
def test_imports_no_torch(module):
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "[]"
