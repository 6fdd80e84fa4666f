"""Annotations of several readers in, at most one label an image out."""

from ml_backend.consensus.rules import RULES, Consensus, Rule, median, rule

__all__ = ["RULES", "Consensus", "Rule", "median", "rule"]
