"""What is compared, and the floor that it must reach: name -> case. A new one is its function and one line here."""

from collections.abc import Callable
from typing import Final

from ml_backend.bench.cases.batches import batch_bald_k2, batch_bald_k3, batch_bald_large
from ml_backend.bench.cases.bench import FULL, QUICK, Bench, Scale
from ml_backend.bench.cases.decoding import decode_jpeg, decode_png
from ml_backend.bench.cases.network import batch_bald_share, mc_scoring, training
from ml_backend.bench.cases.scores import others, pointwise
from ml_backend.bench.report import CaseReport

__all__ = ["CASES", "FULL", "QUICK", "Bench", "Scale"]

CASES: Final[dict[str, Callable[[Bench], CaseReport]]] = {
    "mc_scoring": mc_scoring,
    "batch_bald_1000_k2": batch_bald_k2,
    "batch_bald_1000_k3": batch_bald_k3,
    "batch_bald_100000": batch_bald_large,
    "batch_bald_share": batch_bald_share,
    "pointwise": pointwise,
    "decode_jpeg": decode_jpeg,
    "decode_png": decode_png,
    "others": others,
    "training": training,
}
