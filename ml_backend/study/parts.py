"""A plan in, the parts of its runs out: the only place of a study that names a concrete learner."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

from ml_backend.engine.ports import Learner, Splitter, no_progress
from ml_backend.engine.split import fixed_split, fold_split, stable_split
from ml_backend.images.folder import FolderSource
from ml_backend.model.committee import Tell, make_learner
from ml_backend.model.feature_table import FeatureTable
from ml_backend.model.learner import McDropoutLearner
from ml_backend.settings import ProjectOptions
from ml_backend.simulation.dataset import DataSet
from ml_backend.study.options import load_data
from ml_backend.study.plan import StudyPlan

__all__ = ["MakeLearner", "Study", "learner_maker", "open_study"]

MakeLearner: TypeAlias = Callable[[ProjectOptions], Learner]
"""A new learner for the options of a run, which hold its seed."""


@dataclass(frozen=True, slots=True)
class Study:
    """A plan, its data, and what learns."""

    plan: StudyPlan
    data: DataSet
    learner: MakeLearner

    def split(self) -> Splitter:
        """The validation side where the study has one; else validation is drawn from the labels, as in a live loop."""
        validation = [label.image.id for label in self.data.labels("val")]
        return fixed_split(validation) if validation else stable_split


def open_study(plan: StudyPlan, out: Path, data: DataSet | None = None) -> Study:
    """The study of a plan.

    Args:
        plan: what to do.
        out: folder of the results; decoded images and features are kept there too.
        data: of the plan, where it was read already.

    Raises:
        SettingsError: a table is wrong, or has changed since the study began.
    """
    data = load_data(plan) if data is None else data
    return Study(plan, data, learner_maker(plan, data, out))


def learner_maker(plan: StudyPlan, data: DataSet, out: Path) -> MakeLearner:
    """What makes the learner of a run: on the table of features where there is one, else on the images."""
    ids = [image.id for image in data.images]
    table = None if data.features is None else FeatureTable(ids, data.features)
    source = FolderSource(out if data.folder is None else data.folder)

    def make(options: ProjectOptions, seed: int, tell: Tell) -> McDropoutLearner:
        return McDropoutLearner(
            options, source, out / "cache", device=plan.device, seed=seed, progress=tell, table=table
        )

    def learner(options: ProjectOptions) -> Learner:
        folds = None if data.labels("val") else partial(fold_split, seed=options.seed)
        return make_learner(make, options, folds, no_progress)

    return learner
