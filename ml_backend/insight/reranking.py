"""How the newest order stands to what the owner has chosen: whether it can be made anew without a training.

The web process asks this to know whether a worker should be called, and the worker to know what to do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from ml_backend.records import RoundRequest
from ml_backend.settings import ProjectOptions
from ml_backend.storage import ProjectStore
from ml_backend.storage.briefs import RoundBrief
from ml_backend.storage.outputs import OUTPUTS
from ml_backend.strategies import strategy_spec

__all__ = ["RANKING_OPTIONS", "OrderStanding", "as_chosen", "order_standing"]

RANKING_OPTIONS: Final = ("strategy", "batch_size", "control_share")
"""Options that say how a network's outputs are ranked, and not what the network is."""

Verdict = Literal["as chosen", "saved", "passes", "network", "next round"]


@dataclass(frozen=True, slots=True)
class OrderStanding:
    """How the newest order stands to what the owner has chosen.

    Attributes:
        verdict: ``as chosen``: nothing is to be done; ``saved``: it is, but readers are not served it yet; ``passes``
            and ``network``: from them it can be ranked anew at once; ``next round``: not before the next training.
        why: of ``next round``, for the log.
        latest: the newest round, where there is one.
        base: the round whose network ranked it, where one did.
    """

    verdict: Verdict
    why: str = ""
    latest: RoundBrief | None = None
    base: RoundBrief | None = None

    @property
    def due(self) -> bool:
        """Whether a worker has something to do that no other round does anyway."""
        saved_anew = self.verdict == "saved" and self.latest is not None and self.latest.base is not None
        return saved_anew or self.verdict in ("passes", "network")


def as_chosen(request: RoundRequest, options: ProjectOptions) -> bool:
    """Whether a round ranked as these options want it."""
    return all(getattr(request, name) == getattr(options, name) for name in RANKING_OPTIONS)


def order_standing(project: ProjectStore, options: ProjectOptions, classes: Sequence[str]) -> OrderStanding:
    """Compare the newest round with what the owner has chosen since.

    Args:
        project: with its rounds.
        options: the owner's, as they are now.
        classes: that the project's question has now.

    Raises:
        StorageError: the newest round, or the one whose network ranked it, is damaged.
    """
    ids = project.round_ids()
    latest = project.brief(ids[-1]) if ids else None
    if latest is None or not latest.by_network:
        return OrderStanding("next round", "no network has ranked the images yet", latest)
    base = latest if latest.base is None else project.brief(latest.base)
    if base.request.classes != tuple(classes):
        return OrderStanding("next round", "the network knows other classes than the question has now", latest, base)
    if as_chosen(latest.request, options):
        published = project.published()
        done = published is not None and published.completes(latest.request.round_id)
        return OrderStanding("as chosen" if done else "saved", "", latest, base)
    round_id = base.request.round_id
    if (
        strategy_spec(options.strategy).needs <= {"probs"}
        and (project.folder / "rounds" / round_id / OUTPUTS).is_file()
    ):
        return OrderStanding("passes", "", latest, base)
    if project.network(round_id) is not None:
        return OrderStanding("network", "", latest, base)
    return OrderStanding("next round", f"neither passes nor network of round {round_id} are kept", latest, base)
