"""A real worker with small shards, and with a network as slow as the file ``TEST_PAUSE`` says in seconds."""

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ml_backend.config import Settings
from ml_backend.model import inference
from ml_backend.model.learner import McDropoutLearner
from ml_backend.scheduling.worker import work

if __name__ == "__main__":
    sys.path.remove(str(Path(__file__).parent))
    torch.set_num_threads(1)
    inference.SHARD_IMAGES = int(os.environ["TEST_SHARD_IMAGES"])  # type: ignore[misc]
    outputs = McDropoutLearner.outputs

    def slow(self: McDropoutLearner, *args: Any) -> Any:
        time.sleep(float(Path(os.environ["TEST_PAUSE"]).read_text()))
        return outputs(self, *args)

    McDropoutLearner.outputs = slow  # type: ignore[method-assign,assignment]
    work(Settings.load())
