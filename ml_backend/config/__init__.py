"""Settings of the installation (environment) and options of a project (its owner's choice).

Both are read once, validated whole (every bad value is reported at once), and passed on; nothing reads the
environment later.
"""

from ml_backend.config.settings import (
    OPTION_PREFIX,
    PROFILES,
    ImageHosts,
    ProjectOptions,
    Settings,
    StrategyName,
    checked_address,
    is_data_uri,
    shown_address,
)

__all__ = [
    "OPTION_PREFIX",
    "PROFILES",
    "ImageHosts",
    "ProjectOptions",
    "Settings",
    "StrategyName",
    "checked_address",
    "is_data_uri",
    "shown_address",
]
