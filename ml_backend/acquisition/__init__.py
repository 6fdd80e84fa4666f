"""Which images to label next: pool outputs in, ranking out.

``scores`` and ``power_bald`` judge images alone; ``batches`` (BatchBALD), ``core_set``, ``badge`` and ``typiclust``
together. ``catalog`` says how every strategy of ``ml_backend.strategies`` ranks; ``strategy`` is the engine's way in,
``rank`` the researcher's.
"""

from ml_backend.acquisition.badge import badge
from ml_backend.acquisition.batches import batch_bald
from ml_backend.acquisition.catalog import rank
from ml_backend.acquisition.core_set import core_set
from ml_backend.acquisition.evidence import Gradients
from ml_backend.acquisition.power_bald import power_bald
from ml_backend.acquisition.ranking import AcquisitionRanking
from ml_backend.acquisition.scores import bald, entropy, least_confidence, margin, mean_std, variation_ratios
from ml_backend.acquisition.strategy import CatalogStrategy, rank_by_features
from ml_backend.acquisition.typiclust import typiclust
from ml_backend.chance import places, seeded_draws, seeded_order
from ml_backend.strategies import STRATEGIES, StrategySpec

__all__ = [
    "STRATEGIES",
    "AcquisitionRanking",
    "CatalogStrategy",
    "Gradients",
    "StrategySpec",
    "badge",
    "bald",
    "batch_bald",
    "core_set",
    "entropy",
    "least_confidence",
    "margin",
    "mean_std",
    "places",
    "power_bald",
    "rank",
    "rank_by_features",
    "seeded_draws",
    "seeded_order",
    "typiclust",
    "variation_ratios",
]
