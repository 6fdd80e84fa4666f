"""Faults of a real installation: in every phase of a round, no label is lost and one complete order is served.

Each step lets readers label until a round is in the step's phase, injects the step's fault, lets them label on, repairs
as an operator or a container's restart would, and then waits, with nobody labelling, for the order that has learned
from all labels. ``AL_CHAOS_KILLS`` says how many steps, ``AL_CHAOS_SEED`` which; `make chaos` sets them.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from ml_backend.schemas import PublishedRanking, RoundReport
from tests.system.chaos.faults import FAULTS, PHASES, FaultInjector, Step, plan
from tests.system.chaos.installation import RETRAIN_AFTER, Installation, LabelledProject
from tests.system.live import RunningLabelStudio

KILLS = int(os.environ.get("AL_CHAOS_KILLS", "8"))
SEED = int(os.environ.get("AL_CHAOS_SEED", "7"))
IS_SHORT = KILLS <= 8
STOP_S = 3.0 if IS_SHORT else 30.0  # that Label Studio is stopped
# Two minutes until a killed worker's round begins again, and what a round takes on a busy machine.
WITHIN_S = 240.0
STEPS_IN_A_PROJECT = 24
IMAGES_OF_A_STEP = 24
FEWEST_LEFT = 60  # images, with which a new project is begun

STEPS = plan(KILLS, SEED, most_labels=RETRAIN_AFTER)

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


class LiveSystem:
    """The installation and its current project; a used-up project is replaced by a new one."""

    def __init__(self, installation: Installation) -> None:
        self.installation = installation
        self.tally: list[str] = []
        self._project: LabelledProject | None = None
        self._steps = 0

    def project(self) -> LabelledProject:
        """A project with unlabelled images and a served order."""
        if self._project is not None and (self._steps >= STEPS_IN_A_PROJECT or self._project.left() < FEWEST_LEFT):
            self.close()
        if self._project is None:
            images = FEWEST_LEFT + IMAGES_OF_A_STEP * min(KILLS + 1, STEPS_IN_A_PROJECT)
            self._project = LabelledProject(self.installation, images, SEED)
            self._steps = 0
            self._project.await_order(WITHIN_S)
        self._steps += 1
        return self._project

    def close(self) -> None:
        if self._project is not None:
            self._project.close()
            self._project = None


@pytest.fixture(scope="module")
def system(label_studio: RunningLabelStudio, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveSystem]:
    with Installation(tmp_path_factory.mktemp("chaos"), label_studio.url, label_studio.api_key) as installation:
        system = LiveSystem(installation)
        yield system
        system.close()


def check_learned(project: LabelledProject, round_ids: list[str]) -> None:
    """Each round has learned from every label that was there when it began, and from each once."""
    labelled = project.readers.labelled()
    for round_id in round_ids:
        report = project.folder.report(round_id)
        learned = project.learned(round_id)
        missed = {task for task, at in labelled.items() if at < report.started_at} - learned
        assert not missed, f"{round_id} has not learned from {sorted(missed)}"
        assert sum(report.labels_per_class.values()) == len(learned), round_id
        assert report.fit is not None
        assert report.fit.train_images + report.fit.validation_images == len(learned), round_id


def check_spared(project: LabelledProject, round_ids: list[str]) -> None:
    """Each training that labels started has seen other inputs than those before it."""
    reports = [project.folder.report(round_id) for round_id in round_ids]
    seen = [report.inputs for report in reports if report.fit is not None and report.request.reason == "labels"]
    assert len(seen) == len(set(seen)), f"trained twice on the same: {round_ids}"


def check_order(project: LabelledProject, report: RoundReport, published: PublishedRanking) -> None:
    """Label Studio serves the whole of the stored ranking, each image once."""
    ranked = [image for image in report.ranking.image_ids if image in set(published.image_ids)]
    assert list(published.image_ids) == ranked
    skipped = set(report.ranking.image_ids[: report.ranking.image_ids.index(ranked[-1])]) - set(ranked)
    assert skipped <= project.readers.labelled().keys(), "the ranking has holes"
    assert project.order() == list(published.image_ids)
    assert project.versions()[published.version] == len(published.image_ids), "predictions are there twice"


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_after_a_fault_the_order_is_served(system: LiveSystem, step: Step, say: Callable[[str], None]) -> None:
    project = system.project()
    before = set(project.folder.round_ids())
    injector = FaultInjector(project, step, STOP_S, waits=not IS_SHORT)
    try:
        injector.run()
    finally:
        system.installation.relay.forget()
    labelled = len(project.readers.labelled())
    report, published = project.await_order(WITHIN_S)
    seconds = time.monotonic() - injector.at

    check_learned(project, [round_id for round_id in project.folder.round_ids() if round_id not in before])
    check_spared(project, project.folder.round_ids())
    check_order(project, report, published)
    left_over = len(project.versions()) - 1
    line = (
        f"chaos seed {SEED} {step.number:3d}/{KILLS} {step.fault:17s} in {step.phase:9s} ({injector.met}): order "
        f"{published.round_id} of {labelled} labels after {seconds:5.1f} s, {left_over} replaced version(s)"
    )
    system.tally.append(line)
    say(line)


def test_in_the_end_one_order_is_left(system: LiveSystem, say: Callable[[str], None]) -> None:
    """Every version that Label Studio holds is on record, and so is deleted in time."""
    project = system.project()
    project.readers.submit(2 * RETRAIN_AFTER)
    report, published = project.await_order(WITHIN_S)

    check_order(project, report, published)
    assert project.versions().keys() <= {one.version for one in project.folder.imported_versions()}
    assert not list(project.folder.folder.glob("scoring/*"))
    assert not list(project.folder.folder.glob(".*"))
    refused = len(project.readers.refused)
    disk = system.installation.disk.way
    say(f"chaos seed {SEED}: {len(system.tally)} of {KILLS} steps; disk: {disk}; {refused} refusals")


def test_a_plan_holds_every_phase_and_every_deed() -> None:
    """The short run too: its eight steps are one of each phase, and every deed is among them."""
    short = plan(8, 7, most_labels=RETRAIN_AFTER)

    assert Counter(step.phase for step in short) == Counter(PHASES)
    assert {step.fault for step in short} == set(FAULTS)
