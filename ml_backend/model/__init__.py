"""Labels -> network -> pool outputs: the paper's MC-Dropout classifier, trained and asked cheaply.

Imports torch; ``weights_at_hand`` asks no network.
"""

from ml_backend.model.backbones import weights_at_hand
from ml_backend.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ml_backend.model.learner import McDropoutLearner
from ml_backend.model.network import McDropoutClassifier

__all__ = [
    "Checkpoint",
    "McDropoutClassifier",
    "McDropoutLearner",
    "load_checkpoint",
    "save_checkpoint",
    "weights_at_hand",
]
