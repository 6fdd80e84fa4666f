"""CPU seconds and memory of every acquisition function on a synthetic pool, each in a process of its own.

Usage: python tests/benchmarks/rank_scale.py [--images 100000] [--dims 2048] [--passes 20] [--labelled 200]
"""

import argparse
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ml_backend.acquisition import STRATEGIES, Gradients, rank

CLASSES, BATCH, GROUPS = 3, 20, 300
_BLOCK = 4096  # images made at once, so that making them takes less memory than ranking them


def inputs(name: str, images: int, dims: int, passes: int, labelled: int) -> dict[str, Any]:
    """What the function needs, from a generator: passes that disagree, and features in groups, none below 0."""
    rng, needs = np.random.default_rng(0), STRATEGIES[name].needs
    probs = _probabilities(rng, images, passes if "probs" in needs else 1)
    values: dict[str, Any] = {"probs": probs if "probs" in needs else None, "ids": [str(i) for i in range(images)]}
    if needs & {"features", "gradients"}:
        centres = 1.5 * rng.standard_normal((GROUPS, dims), dtype=np.float32)
        rows = np.empty((images + labelled, dims), dtype=np.float32)
        for start in range(0, len(rows), _BLOCK):
            part = rows[start : start + _BLOCK]
            rng.standard_normal(out=part, dtype=np.float32)
            part += centres[rng.integers(GROUPS, size=len(part))]
            np.maximum(part, 0.0, out=part)
        features = torch.from_numpy(rows[:images])
        if "features" in needs:
            values |= {"features": features, "labelled_features": rows[images:]}
        else:
            residuals = probs[:, 0] - np.eye(CLASSES, dtype=np.float32)[probs[:, 0].argmax(axis=1)]
            values["gradients"] = Gradients(torch.from_numpy(residuals), features)
    return values


def _probabilities(rng: np.random.Generator, images: int, passes: int) -> npt.NDArray[np.float32]:
    probs = np.empty((images, passes, CLASSES), dtype=np.float32)
    for start in range(0, images, _BLOCK):
        part = probs[start : start + _BLOCK]
        rng.standard_normal(out=part, dtype=np.float32)
        part += 2.0 * rng.standard_normal((len(part), 1, CLASSES), dtype=np.float32)
        np.exp(part, out=part)
        part /= part.sum(axis=-1, keepdims=True)
    return probs


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for option, default in {"images": 100_000, "dims": 2048, "passes": 20, "labelled": 200}.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--only", choices=STRATEGIES)
    args = parser.parse_args()
    if args.only is None:
        for name in STRATEGIES:
            subprocess.run([sys.executable, *sys.argv, "--only", name], check=True)
        return
    values = inputs(args.only, args.images, args.dims, args.passes, args.labelled)
    before, start = _peak_mb(), time.process_time()
    rank(args.only, batch_size=BATCH, **values)
    seconds = time.process_time() - start
    sys.stdout.write(f"{args.only}: {seconds:.2f} CPU s, {_peak_mb() - before:.0f} MB beside the inputs\n")


if __name__ == "__main__":
    main()
