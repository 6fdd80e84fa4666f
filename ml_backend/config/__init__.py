"""Settings of the installation (environment) and options of a project (its owner's choice).

Both are read once, validated whole (every bad value is reported at once), and passed on; nothing reads the
environment later.

::

    installation.py   Settings
    options.py        ProjectOptions
    addresses.py      where images may come from; what an address may be, and what of it may be shown
    network.py        the environment's certificates and proxies; why a connection failed
    refusals.py       validation errors in words
"""

from ml_backend.config.settings import (
    OPTION_PREFIX,
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
    "ImageHosts",
    "ProjectOptions",
    "Settings",
    "StrategyName",
    "checked_address",
    "is_data_uri",
    "shown_address",
]
