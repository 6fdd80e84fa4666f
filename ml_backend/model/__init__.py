"""The paper's MC-dropout classifier: labels -> network -> pool predictions. Imports torch."""

from ml_backend.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ml_backend.model.learner import McDropoutLearner
from ml_backend.model.network import McDropoutClassifier

__all__ = [
    "Checkpoint",
    "McDropoutClassifier",
    "McDropoutLearner",
    "load_checkpoint",
    "save_checkpoint",
]
