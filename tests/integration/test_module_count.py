"""How much code runs between a reader's answer and the order that it changes."""

import subprocess
import sys
from pathlib import Path

from tests.count_modules import ALLOWED

ROOT = Path(__file__).parents[2]


def test_few_modules_run_between_an_event_and_the_published_order(say):
    """In a process of its own: a worker sets up the logs of its process."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.count_modules"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    *found, sentence = done.stdout.splitlines()

    say(f"between an event and the published order run {sentence}")
    assert {"server.webhook", "scheduling.policy", "rounds.run", "label_studio.publisher"} <= set(found)
    assert int(sentence.split()[0]) <= ALLOWED, found
