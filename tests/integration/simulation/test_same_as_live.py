"""A simulation and the live loop choose the same images, round by round, on the same real learner."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import pytest

from ml_backend.acquisition.strategy import CatalogStrategy
from ml_backend.config import ProjectOptions
from ml_backend.consensus import median
from ml_backend.images.source import FolderSource
from ml_backend.model.hardware import one_thread
from ml_backend.model.learner import McDropoutLearner
from ml_backend.rounds.run import Project, run_round
from ml_backend.schemas import Annotation, Exclusion, ImageRef, Label, PublishedRanking, RoundReport
from ml_backend.simulation.oracle import Oracle
from ml_backend.simulation.plan import StudyPlan
from ml_backend.simulation.run import do_run, open_study
from ml_backend.simulation.run_log import RoundRow, RunLog
from tests.integration.studies import CLASSES, LIVE, OPTIONS, begin_study, draw_table


class FakeLabelStudio(Project):
    """A project with one reader, who labels what is served first; its own ``LabelSource``.

    Tasks have numbers as ids and come newest first, as Label Studio lists them: neither may change the order.
    """

    def __init__(self, truth: Sequence[Label], start: Sequence[str], batch_size: int) -> None:
        self._truth = {label.image.id: label for label in truth}
        self._batch_size = batch_size
        self._answers: list[Annotation] = []
        self.served: list[tuple[str, ...]] = []
        self.labels = self
        self.consensus = median
        self._label(start)

    def annotations(self) -> Sequence[Annotation]:
        return list(reversed(self._answers))

    def unlabelled(self) -> tuple[Sequence[ImageRef], Sequence[Exclusion]]:
        answered = {answer.image.id for answer in self._answers}
        return [label.image for name, label in reversed(self._truth.items()) if name not in answered], []

    def publish(self, report: RoundReport) -> PublishedRanking:
        batch = report.ranking.image_ids[: self._batch_size]
        self.served.append(batch)
        self._label(batch)
        return PublishedRanking(
            version=f"live-{report.request.round_id}",
            round_id=report.request.round_id,
            image_ids=report.ranking.image_ids,
            seconds={},
            published_at=datetime.now(UTC),
        )

    def _label(self, image_ids: Sequence[str]) -> None:
        for image_id in image_ids:
            label = self._truth[image_id]
            at = datetime(2026, 1, 1, tzinfo=UTC)
            self._answers.append(Annotation(image=label.image, rater="ann", value=label.value, updated_at=at))


@pytest.mark.parametrize("strategy", ["entropy", "batch_bald", "core_set", "badge", "random"])
def test_the_batches_are_the_same(tmp_path: Path, strategy: str) -> None:
    """The study has no validation side, so that both draw validation from the labels."""
    draw_table(tmp_path / "data", validation=False)
    plan = begin_study(tmp_path / "data", tmp_path / "out", strategies=(strategy,), seeds=(3,), budget=18)

    assert simulated_as_live(tmp_path, plan) == [True] * 4


@pytest.mark.parametrize("cold_start", get_args(ProjectOptions.model_fields["cold_start"].annotation))
def test_those_of_a_live_start_too(tmp_path: Path, cold_start: str) -> None:
    """From the first label on; the images of the validation side are on the training side."""
    options = {**OPTIONS, "min_labels_per_class": 3, "cold_start": cold_start}
    chosen = ProjectOptions.resolve(options, environ={}).model_dump(mode="json")
    draw_table(tmp_path / "data")
    changes = {**LIVE, "options": chosen, "strategies": ("entropy",), "seeds": (3,)}
    plan = begin_study(tmp_path / "data", tmp_path / "out", **changes)

    trained = simulated_as_live(tmp_path, plan)

    assert len(trained) == 7
    assert trained == sorted(trained)
    assert len(set(trained)) == 2


def simulated_as_live(tmp_path: Path, plan: StudyPlan) -> list[bool]:
    """Do the first run of a plan and the rounds of a live loop: whether each round, the same in both, has trained."""
    [run, _] = plan.runs()
    study = open_study(plan, tmp_path / "out")
    do_run(run, study, RunLog(tmp_path / "out", run.name))
    rounds, chosen = RunLog(tmp_path / "out", run.name).read()

    truth = study.data.labels("train")
    options = plan.options_of(run)
    site = FakeLabelStudio(truth, Oracle(truth).start_set(plan.initial, run.seed), options.batch_size)
    source = FolderSource(tmp_path / "data/images")
    with one_thread():
        for _ in rounds:
            # Each live round has a learner of its own.
            learner = McDropoutLearner(options, source, tmp_path / "live", device="cpu", seed=options.seed)
            run_round(plan.request(run, CLASSES), site, learner, CatalogStrategy(run.strategy))

    assert site.served == [
        tuple(row.image_id for row in chosen if row.round == number) for number in range(1, len(rounds) + 1)
    ]
    return [isinstance(row, RoundRow) for row in rounds]
