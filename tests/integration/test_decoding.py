"""Decoding in a process that forks: the worker's parent imports, its work-horses decode in threads."""

import subprocess
import sys

import pytest

FORKED = """
import io, os, sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from PIL import Image
from ml_backend.images import decode

def encode(kind, mode="L"):
    file = io.BytesIO()
    Image.fromarray(np.full((600, 500), 77, np.uint8)).convert(mode).save(file, kind)
    return file.getvalue()

FILES = [encode("PNG"), encode("PNG", "RGBA"), encode("JPEG"), encode("JPEG", "CMYK")] * 8

def decode_in_threads():
    with ThreadPoolExecutor(16) as pool:
        for pixels in pool.map(lambda content: decode(content, 64, "x"), FILES):
            assert abs(pixels.astype(int) - 77).max() <= 2

def decode_in_child():
    child = os.fork()
    if child == 0:
        try:
            decode_in_threads()
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

assert not {"pyvips", "simplejpeg"} & sys.modules.keys(), "a native decoder was imported before the fork"
decode_in_child()
decode_in_child()
assert not {"pyvips", "simplejpeg"} & sys.modules.keys()
# Nobody does this in the product; it must not hang all the same.
decode_in_threads()
decode_in_child()
import pyvips
assert pyvips.concurrency_get() == 1
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)


def test_children_decode_in_threads() -> None:
    done = run(FORKED)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("module", ["server.app", "cli", "scheduling.worker", "worker.job"])
def test_nobody_imports_a_decoder_before_the_first_image(module: str) -> None:
    """Because libvips starts threads, which a process that forks must not have."""
    native = {"pyvips", "_libvips", "simplejpeg"}

    done = run(f"import sys, ml_backend.{module}; print({native} & sys.modules.keys())")

    assert done.stdout == "set()\n", done.stderr
