"""Which images to label next: pool outputs in, ranking out.

``scores`` and ``power_bald`` judge images alone; ``batches`` (BatchBALD), ``core_set``, ``badge`` and ``typiclust``
together. ``catalog`` says how every strategy of ``ml_backend.registry`` ranks; ``strategy`` is the engine's way in,
``rank`` the researcher's.
"""

from ml_backend.acquisition.batch import batch_bald, power_bald
from ml_backend.acquisition.diversity import badge, core_set, typiclust
from ml_backend.acquisition.inputs import Gradients
from ml_backend.acquisition.pointwise import bald, entropy, least_confidence, margin, mean_std, variation_ratios
from ml_backend.acquisition.strategy import AcquisitionRanking, CatalogStrategy, rank, rank_by_features
from ml_backend.registry import STRATEGIES, StrategySpec
from ml_backend.seeding import places, seeded_draws, seeded_order

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
