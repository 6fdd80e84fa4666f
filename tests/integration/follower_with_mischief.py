"""A real follower with small shards; the file ``TEST_MISCHIEF`` says what it does when it scores images."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])  # not this folder

from ml_backend.errors import ImageError
from ml_backend.label_studio.images import LabelStudioImages
from ml_backend.model import inference
from ml_backend.model.learner import McDropoutLearner
from ml_backend.scheduling.followers import main

SHARD_IMAGES = 8


def blind(*_: object) -> Any:
    raise ImageError("image 13 does not answer here")


if __name__ == "__main__":
    inference.SHARD_IMAGES = SHARD_IMAGES  # type: ignore[misc]
    outputs = McDropoutLearner.outputs

    def score(self: McDropoutLearner, *args: Any) -> Any:
        step = Path(os.environ["TEST_MISCHIEF"]).read_text()
        if step == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif step == "fail":
            raise RuntimeError("a bug")
        elif step == "sleep":
            time.sleep(1.5)
        elif step == "blind":
            LabelStudioImages.fetch = blind  # type: ignore[method-assign,assignment]
        return outputs(self, *args)

    McDropoutLearner.outputs = score  # type: ignore[method-assign,assignment]
    main(*sys.argv[1:])
