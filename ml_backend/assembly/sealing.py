"""A live round is kept with what it saw and a manifest of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from ml_backend.engine.inputs import NotedInputs
from ml_backend.engine.manifest import sealed
from ml_backend.engine.ports import Learner
from ml_backend.engine.start_features import START_FEATURES, StartFeatures
from ml_backend.pool_outputs import PoolOutputs
from ml_backend.records import Record, RoundReport
from ml_backend.storage import ProjectStore
from ml_backend.storage.manifests import INPUTS

__all__ = ["SealedRounds"]


def _nothing_seen() -> None:
    """No order was made from features alone."""


@dataclass(frozen=True, slots=True)
class SealedRounds:
    """The rounds of a project.

    Attributes:
        project: where they are kept.
        inputs: what the round has seen when it is saved.
        device: that the installation asks for.
        features: where those are kept that an order before the first network was made from; None where there are none.
    """

    project: ProjectStore
    inputs: NotedInputs
    device: Literal["auto", "cpu", "cuda"]
    features: Callable[[], StartFeatures | None] = _nothing_seen

    def save(
        self, report: RoundReport, outputs: PoolOutputs | None, learner: Learner | None, beside: Mapping[str, Record]
    ) -> None:
        """See ``ProjectStore.save``."""
        noted, features = self.inputs.noted(), self.features()
        seen: dict[str, Record] = {} if features is None else {START_FEATURES: features}
        self.project.save(
            report,
            outputs,
            learner,
            {**beside, INPUTS: noted, **seen},
            seal=lambda folder: sealed(self.project, report, noted, folder, self.device),
        )
