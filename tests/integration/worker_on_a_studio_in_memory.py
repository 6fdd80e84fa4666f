"""A real worker whose rounds are real but for Label Studio, which is in its memory.

It does the rounds of the data folders that its arguments name, one after the other; each but the first is asked for
once the one before is done. In the stage named by ``TEST_HOLD`` a round takes its first step, makes the file
``held-<stage>`` in the data folder, and waits until its process is asked to stop. The round of the second folder is run
by two processes, of which the other one is begun with ``follow`` as first argument.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])  # not this folder

from ml_backend.config import Settings
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.model import distributed, inference
from ml_backend.scheduling import RoundQueue, followers, worker
from ml_backend.scheduling.queue import SHUTDOWN, Claim
from tests.count_modules import make_studio
from tests.integration.follower_with_mischief import SHARD_IMAGES, misbehave
from tests.integration.processes import PROJECT


def hold(stage: str) -> None:
    """Make rounds wait in this stage."""
    progress = Claim.progress

    def progress_and_wait(self: Claim, now: str, done: int, total: int) -> None:
        progress(self, now, done, total)
        if now == stage and done > 0:
            Path(os.environ["AL_DATA_DIR"], f"held-{stage}").touch()
            while SHUTDOWN.signal is None:
                time.sleep(0.01)

    Claim.progress = progress_and_wait  # type: ignore[method-assign,assignment]


if __name__ == "__main__":
    studio = make_studio()
    from_settings: Any = lambda *_args, **_options: studio.client()  # noqa: E731
    LabelStudioClient.from_settings = from_settings  # type: ignore[method-assign]
    inference.SHARD_IMAGES = SHARD_IMAGES  # type: ignore[misc]
    if sys.argv[1] == "follow":
        misbehave()
        followers.main(*sys.argv[2:])
    followers.Followers.program = (__file__, "follow")
    distributed.JOIN_S = 600.0
    worker.draw_thumbnails = lambda *_: 0
    if stage := os.environ.get("TEST_HOLD"):
        hold(stage)
    for place, folder in enumerate(sys.argv[1:]):
        os.environ["AL_DATA_DIR"] = folder
        settings = Settings.load()
        if place:
            RoundQueue.from_settings(settings).request_round(PROJECT, "labels")
        worker.work(settings, burst=True, processes=followers.Processes(nproc=1 + place))
