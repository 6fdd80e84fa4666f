"""One round, independent of where its labels come from and where its ranking goes."""

from ml_backend.rounds.interfaces import ConsensusRule, LabelSource, Learner, Strategy
from ml_backend.rounds.run import Project, RoundResult, run_round

__all__ = ["ConsensusRule", "LabelSource", "Learner", "Project", "RoundResult", "Strategy", "run_round"]
