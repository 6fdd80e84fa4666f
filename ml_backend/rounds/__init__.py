"""One round, independent of where labels come from and where rankings go."""

from ml_backend.rounds.interfaces import ConsensusRule, LabelSource, Learner, Publisher, RoundParts, Strategy
from ml_backend.rounds.run import run_round

__all__ = ["ConsensusRule", "LabelSource", "Learner", "Publisher", "RoundParts", "Strategy", "run_round"]
