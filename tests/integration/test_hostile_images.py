"""Every damaged or hostile file is decoded or refused with a named trouble, in bounded memory and time."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MOST_MIB = 2048  # of one image: 80 million pixels at 16 bytes, and the process around them
MOST_S = 60.0  # of CPU, of one image, on a slow machine


@pytest.fixture(scope="module")
def decoded() -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.decode_hostile_files"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), f"{done.stdout[-500:]}\n{done.stderr[-2000:]}"
    return [json.loads(line) for line in done.stdout.splitlines()]


class TestCorpus:
    def test_every_file_is_decoded_or_refused_by_name(self, decoded):
        wrong = [one for one in decoded if one["outcome"] != (one["wanted"] or one["outcome"])]

        assert wrong == []
        assert len(decoded) > 300
        assert {one["outcome"] for one in decoded} <= {
            "a film",
            "empty",
            "not-an-image",
            "unsupported",
            "damaged",
            "too-large",
        }

    def test_memory_and_time_are_bounded(self, decoded, say):
        largest = max(decoded, key=lambda one: one["MiB"])
        slowest = max(decoded, key=lambda one: one["seconds"])
        say(
            f"{len(decoded)} damaged or hostile images: at most {largest['MiB']} MiB ({largest['name']}) "
            f"and {slowest['seconds']:.1f} CPU-s ({slowest['name']})"
        )

        assert largest["MiB"] < MOST_MIB
        assert slowest["seconds"] < MOST_S
