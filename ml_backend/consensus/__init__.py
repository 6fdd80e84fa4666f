"""Several readers' answers about an image in, at most one label out: one file a rule, ``catalog`` names them."""

from ml_backend.consensus.rules import RULES, Consensus, Rule, median, rule

__all__ = ["RULES", "Consensus", "Rule", "median", "rule"]
