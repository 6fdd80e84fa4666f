"""Every consensus rule. A new one is its own file and one entry here."""

from collections.abc import Callable, Sequence
from typing import Final

from ml_backend.consensus.median import median
from ml_backend.consensus.outcome import Consensus
from ml_backend.records import Annotation

__all__ = ["RULES", "Rule", "rule"]

Rule = Callable[[Sequence[Annotation], Sequence[str]], Consensus]
"""Called with all annotations of a project and its classes, least severe first."""

RULES: Final[dict[str, Rule]] = {
    "median": median,
}


def rule(name: str) -> Rule:
    """The rule of that name.

    Raises:
        ValueError: there is none; the known ones are listed.
    """
    if name not in RULES:
        raise ValueError(f"unknown consensus rule {name!r}: known are {', '.join(RULES)}")
    return RULES[name]
