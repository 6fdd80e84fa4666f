"""A real follower with small shards; the file ``TEST_MISCHIEF`` says what it does where it has images to score."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])  # not this folder

import torch

from ml_backend.errors import ImageError
from ml_backend.label_studio.images import LabelStudioImages
from ml_backend.model import inference
from ml_backend.model.learner import McDropoutLearner
from ml_backend.scheduling.followers import main

SHARD_IMAGES = 16


def blind(*_: object) -> Any:
    raise ImageError("not to be had from here")


def misbehave() -> None:
    """Change what this process does with images."""
    outputs, path = McDropoutLearner.outputs, Path(os.environ["TEST_MISCHIEF"])

    def score(self: McDropoutLearner, *args: Any) -> Any:
        step, _, rank = path.read_text().partition(" ") if path.exists() else ("", "", "")
        if rank in {"", str(torch.distributed.get_rank())}:
            if step == "die":
                path.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            elif step == "fail":
                raise RuntimeError("a bug")
            elif step == "sleep":
                time.sleep(1.5)
            elif step == "blind":
                LabelStudioImages.fetch = blind  # type: ignore[method-assign,assignment]
        return outputs(self, *args)

    McDropoutLearner.outputs = score  # type: ignore[method-assign,assignment]


if __name__ == "__main__":
    inference.SHARD_IMAGES = SHARD_IMAGES  # type: ignore[misc]
    misbehave()
    main(*sys.argv[1:])
