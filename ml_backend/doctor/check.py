"""What a check is, and what comes of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ml_backend.doctor.case import Case
from ml_backend.records import Record

__all__ = ["Check", "Finding", "Outcome", "Verdict", "failed", "fine", "skipped"]

Verdict: TypeAlias = Literal["ok", "FAIL", "skip"]


class Outcome(Record):
    """What a check has seen, and what helps where that is a failure."""

    verdict: Verdict
    seen: str
    remedy: str = ""


class Finding(Outcome):
    """The outcome of the check of that name."""

    name: str


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must be right.

    Attributes:
        name: as it is printed.
        look: looks at it. An error of ours that it raises is a failure, with ``remedy`` as what helps.
        needs: names of the checks without which it makes no sense.
        remedy: see ``look``.
    """

    name: str
    look: Callable[[Case], Outcome]
    needs: tuple[str, ...] = ()
    remedy: str = ""


def fine(seen: str) -> Outcome:
    """It is as it must be."""
    return Outcome(verdict="ok", seen=seen)


def failed(seen: str, remedy: str) -> Outcome:
    """It is not, and this helps."""
    return Outcome(verdict="FAIL", seen=seen, remedy=remedy)


def skipped(why: str) -> Outcome:
    """There is nothing to look at yet."""
    return Outcome(verdict="skip", seen=why)
