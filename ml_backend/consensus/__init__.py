"""Annotations of several readers in, at most one label an image out."""

from ml_backend.consensus.rules import RULES, Consensus, ReaderEstimate, Rule, adjudication, median, rule

__all__ = ["RULES", "Consensus", "ReaderEstimate", "Rule", "adjudication", "median", "rule"]
