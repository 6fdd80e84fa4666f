"""Which images to label next: pool outputs in, ranking out.

``scores`` judges images alone, ``batches`` together; ``catalog`` names every strategy; ``strategy`` is the engine's
way in, ``rank`` the researcher's.
"""

from ml_backend.acquisition.batches import batch_bald
from ml_backend.acquisition.catalog import STRATEGIES, StrategySpec, rank
from ml_backend.acquisition.chance import places, seeded_draws, seeded_order
from ml_backend.acquisition.ranking import AcquisitionRanking
from ml_backend.acquisition.scores import bald, entropy, least_confidence, margin, mean_std, variation_ratios
from ml_backend.acquisition.strategy import CatalogStrategy

__all__ = [
    "STRATEGIES",
    "AcquisitionRanking",
    "CatalogStrategy",
    "StrategySpec",
    "bald",
    "batch_bald",
    "entropy",
    "least_confidence",
    "margin",
    "mean_std",
    "places",
    "rank",
    "seeded_draws",
    "seeded_order",
    "variation_ratios",
]
