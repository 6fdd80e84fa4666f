"""What a consensus rule hands back."""

from dataclasses import dataclass

from ml_backend.records import Exclusion, Label

__all__ = ["Consensus"]


@dataclass(frozen=True, slots=True)
class Consensus:
    """At most one label an image, and the images that got none; both in the order of their image ids."""

    labels: tuple[Label, ...]
    exclusions: tuple[Exclusion, ...] = ()
