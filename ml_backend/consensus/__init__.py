"""Several readers' answers about an image in, at most one label out: one file a rule, ``catalog`` names them."""

from ml_backend.consensus.catalog import RULES, Rule, rule
from ml_backend.consensus.median import median
from ml_backend.consensus.outcome import Consensus

__all__ = ["RULES", "Consensus", "Rule", "median", "rule"]
