"""The catalogue as the engine wants it: ids and records on the outside, tensors within."""

from dataclasses import dataclass

import torch

from ml_backend.acquisition.catalog import Need, rank, spec
from ml_backend.pool_outputs import PoolOutputs
from ml_backend.records import Ranking, natural_order

__all__ = ["CatalogStrategy"]


@dataclass(frozen=True, slots=True)
class CatalogStrategy:
    """A strategy of the catalogue. Satisfies ``engine.ports.Strategy``.

    Raises:
        ValueError: the catalogue has no such name.
    """

    name: str

    def __post_init__(self) -> None:
        spec(self.name)

    @property
    def needs(self) -> frozenset[Need]:
        """What the learner must compute for it."""
        return spec(self.name).needs

    def rank(self, outputs: PoolOutputs, batch_size: int, seed: int) -> Ranking:
        """The whole pool, label first at the front; the same however the pool arrives.

        Raises:
            ValueError: see ``catalog.rank``.
        """
        arrival = sorted(range(len(outputs.image_ids)), key=lambda i: natural_order(outputs.image_ids[i]))
        ids = [outputs.image_ids[i] for i in arrival]
        ranking = rank(self.name, torch.from_numpy(outputs.probs[arrival]), batch_size, seed, ids=ids)
        return Ranking(
            strategy=self.name,
            image_ids=tuple(ids[i] for i in ranking.order.tolist()),
            scores=tuple(ranking.scores[ranking.order].tolist()),
            batch_size=batch_size,
            suggestions=outputs.suggestions(),
            exclusions=outputs.exclusions,
        )
