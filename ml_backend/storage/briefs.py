"""What a round was asked and whose network ranked, without its ranking: for whoever must answer in milliseconds."""

from typing import Final

from ml_backend.records import Record, RoundReport, RoundRequest

__all__ = ["BRIEF", "RoundBrief"]

BRIEF: Final = "brief"
"""The name under which it stands in a round's folder."""


class RoundBrief(Record):
    """A round's report without what grows with the pool.

    Attributes:
        trained: whether it trained a network.
        base: the earlier round whose network ranked, where this one only ranked anew.
    """

    request: RoundRequest
    trained: bool
    base: str | None

    @property
    def by_network(self) -> bool:
        """Whether a network made the order; see ``RoundReport.by_network``."""
        return self.trained or self.base is not None

    @classmethod
    def of(cls, report: RoundReport) -> "RoundBrief":
        """The brief of a report."""
        return cls(request=report.request, trained=report.trained, base=report.base)
