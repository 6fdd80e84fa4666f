"""Pool predictions in, ranking out.

``pointwise`` scores images one by one, ``predictive`` (EPIG) by what they say about the others; ``batch`` (BatchBALD,
PowerBALD, class-stratified entropy), ``diversity`` (core-set, BADGE, TypiClust) and ``coverage`` (MaxHerding,
Uncertainty Herding) choose a batch together. Each function has its specification beside it; ``rank`` ranks a pool by
any of them.
"""

from ml_backend.acquisition.batch import batch_bald, class_balanced, power_bald
from ml_backend.acquisition.coverage import facility_location, herding, uherding
from ml_backend.acquisition.diversity import badge, core_set, typiclust
from ml_backend.acquisition.inputs import AcquisitionInputs, Gradients, Selection
from ml_backend.acquisition.pointwise import bald, entropy, least_confidence, margin, mean_std, variation_ratios
from ml_backend.acquisition.predictive import epig
from ml_backend.acquisition.strategy import AcquisitionRanking, CatalogStrategy, rank, rank_by_features
from ml_backend.registry import STRATEGIES, StrategySpec, acquisition_function
from ml_backend.seeding import places, seeded_draws, seeded_order

__all__ = [
    "STRATEGIES",
    "AcquisitionInputs",
    "AcquisitionRanking",
    "CatalogStrategy",
    "Gradients",
    "Selection",
    "StrategySpec",
    "acquisition_function",
    "badge",
    "bald",
    "batch_bald",
    "class_balanced",
    "core_set",
    "entropy",
    "epig",
    "facility_location",
    "herding",
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
    "uherding",
    "variation_ratios",
]
