"""The catalogue as the engine wants it: ids and records on the outside, tensors within."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float32

from ml_backend.acquisition.catalog import rank
from ml_backend.acquisition.evidence import Gradients
from ml_backend.pool_outputs import ImageFeatures, PoolOutputs
from ml_backend.records import Ranking, natural_order
from ml_backend.strategies import Need, strategy_spec

__all__ = ["CatalogStrategy", "rank_by_features"]


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
            confidences=outputs.confidences(),
            exclusions=outputs.exclusions,
        )


def rank_by_features(
    name: str,
    images: ImageFeatures,
    labelled: Float32[npt.NDArray[np.float32], "labelled dims"] | None,
    batch_size: int,
    seed: int,
) -> Ranking:
    """Rank by a strategy that needs features and no network; the same however the images arrive.

    Args:
        name: of the strategy.
        images: the pool, those that could be read.
        labelled: features of the images that have a label; None where there are none.
        batch_size: images that are chosen together.
        seed: of ties and of k-means.

    Raises:
        ValueError: the strategy needs more than features; or see ``catalog.rank``.
    """
    arrival = sorted(range(len(images.image_ids)), key=lambda i: natural_order(images.image_ids[i]))
    ids = [images.image_ids[i] for i in arrival]
    ranking = rank(
        name,
        None,
        batch_size,
        seed,
        ids=ids,
        features=torch.from_numpy(images.features[arrival]),
        labelled_features=None if labelled is None else torch.tensor(labelled),
    )
    return Ranking(
        strategy=name,
        image_ids=tuple(ids[i] for i in ranking.order.tolist()),
        scores=tuple(ranking.scores[ranking.order].tolist()),
        batch_size=batch_size,
        exclusions=images.exclusions,
    )
