"""The catalogue as the engine wants it: ids and records on the outside, tensors within."""

from dataclasses import dataclass

import torch

from ml_backend.acquisition.catalog import rank
from ml_backend.acquisition.evidence import Gradients
from ml_backend.pool_outputs import PoolOutputs
from ml_backend.records import Ranking, natural_order
from ml_backend.strategies import Need, strategy_spec

__all__ = ["CatalogStrategy"]


@dataclass(frozen=True, slots=True)
class CatalogStrategy:
    """A strategy of the catalogue. Satisfies ``engine.ports.Strategy``.

    Raises:
        ValueError: the catalogue has no such name.
    """

    name: str

    def __post_init__(self) -> None:
        strategy_spec(self.name)

    @property
    def needs(self) -> frozenset[Need]:
        """What the learner must compute for it."""
        return strategy_spec(self.name).needs

    def rank(self, outputs: PoolOutputs, batch_size: int, seed: int) -> Ranking:
        """The whole pool, label first at the front; the same however the pool arrives.

        Raises:
            ValueError: see ``catalog.rank``.
        """
        arrival = sorted(range(len(outputs.image_ids)), key=lambda i: natural_order(outputs.image_ids[i]))
        ids = [outputs.image_ids[i] for i in arrival]
        gradients = outputs.gradients
        ranking = rank(
            self.name,
            torch.from_numpy(outputs.probs[arrival]),
            batch_size,
            seed,
            ids=ids,
            features=None if outputs.features is None else torch.from_numpy(outputs.features[arrival]),
            labelled_features=None if outputs.labelled_features is None else torch.tensor(outputs.labelled_features),
            gradients=None
            if gradients is None
            else Gradients(torch.from_numpy(gradients.residuals[arrival]), torch.from_numpy(gradients.hidden[arrival])),
        )
        return Ranking(
            strategy=self.name,
            image_ids=tuple(ids[i] for i in ranking.order.tolist()),
            scores=tuple(ranking.scores[ranking.order].tolist()),
            batch_size=batch_size,
            suggestions=outputs.suggestions(),
            exclusions=outputs.exclusions,
        )
