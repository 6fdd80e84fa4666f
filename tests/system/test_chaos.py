"""Chaos on a real installation: whatever dies in whatever phase, no label is lost and one whole order is served.

Each step lets readers label until a round stands in the step's phase, does the step's deed to it, lets them label on,
mends the damage as an operator or a container's restart would, and then waits, with nobody labelling, for the order
that all labels have earned. ``AL_CHAOS_KILLS`` says how many steps, ``AL_CHAOS_SEED`` which; `make chaos` sets them.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Protocol

import pytest

from ml_backend.schemas import PublishedRanking, RoundReport
from tests.system.chaos.installation import RETRAIN_AFTER, Installation, Ward
from tests.system.chaos.plan import DEEDS, PHASES, Step, plan
from tests.system.chaos.strike import Strike

KILLS = int(os.environ.get("AL_CHAOS_KILLS", "8"))
SEED = int(os.environ.get("AL_CHAOS_SEED", "7"))
STOP_S = 3.0 if KILLS <= 8 else 30.0  # that Label Studio is stopped
# Two minutes until a killed worker's round begins again, and what a round takes on a busy machine.
WITHIN_S = 240.0
STEPS_IN_A_PROJECT = 24
IMAGES_OF_A_STEP = 18
FEWEST_LEFT = 60  # images, with which a new project is begun

STEPS = plan(KILLS, SEED, most_labels=RETRAIN_AFTER)

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


class Running(Protocol):
    """What the fixture ``label_studio`` offers."""

    @property
    def url(self) -> str: ...

    @property
    def api_key(self) -> str: ...


class Hospital:
    """The installation and the project that is labelled now; a used up one makes room for the next."""

    def __init__(self, here: Installation) -> None:
        self.here = here
        self.tally: list[str] = []
        self._ward: Ward | None = None
        self._steps = 0

    def ward(self) -> Ward:
        """A project with images left to label, and an order that is served."""
        if self._ward is not None and (self._steps >= STEPS_IN_A_PROJECT or self._ward.left() < FEWEST_LEFT):
            self.close()
        if self._ward is None:
            images = FEWEST_LEFT + IMAGES_OF_A_STEP * min(KILLS + 1, STEPS_IN_A_PROJECT)
            self._ward = Ward(self.here, images, SEED)
            self._steps = 0
            self._ward.await_order(WITHIN_S)
        self._steps += 1
        return self._ward

    def close(self) -> None:
        if self._ward is not None:
            self._ward.close()
            self._ward = None


@pytest.fixture(scope="module")
def hospital(label_studio: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    with Installation(tmp_path_factory.mktemp("chaos"), label_studio.url, label_studio.api_key) as here:
        hospital = Hospital(here)
        yield hospital
        hospital.close()


def check_learned(ward: Ward, round_ids: list[str]) -> None:
    """Each round has learned from every label that was there when it began, and from each once."""
    labelled = ward.readers.labelled()
    for round_id in round_ids:
        report = ward.folder.report(round_id)
        learned = ward.learned(round_id)
        missed = {task for task, at in labelled.items() if at < report.started_at} - learned
        assert not missed, f"{round_id} has not learned from {sorted(missed)}"
        assert sum(report.labels_per_class.values()) == len(learned), round_id
        assert report.fit is not None
        assert report.fit.train_images + report.fit.validation_images == len(learned), round_id


def check_spared(ward: Ward, round_ids: list[str]) -> None:
    """No training was run for nothing: each that labels called for has seen something else than those before it."""
    reports = [ward.folder.report(round_id) for round_id in round_ids]
    seen = [report.inputs for report in reports if report.fit is not None and report.request.reason == "labels"]
    assert len(seen) == len(set(seen)), f"trained twice on the same: {round_ids}"


def check_order(ward: Ward, report: RoundReport, published: PublishedRanking) -> None:
    """Label Studio serves the whole of the stored ranking, each image once."""
    ranked = [image for image in report.ranking.image_ids if image in set(published.image_ids)]
    assert list(published.image_ids) == ranked
    skipped = set(report.ranking.image_ids[: report.ranking.image_ids.index(ranked[-1])]) - set(ranked)
    assert skipped <= ward.readers.labelled().keys(), "the ranking has holes"
    assert ward.order() == list(published.image_ids)
    assert ward.versions()[published.version] == len(published.image_ids), "predictions stand there twice"


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_whatever_dies_the_order_comes(hospital: Hospital, step: Step, say: Callable[[str], None]) -> None:
    ward = hospital.ward()
    before = set(ward.folder.round_ids())
    strike = Strike(ward, step, STOP_S)
    try:
        strike.run()
    finally:
        hospital.here.relay.forget()
    labelled = len(ward.readers.labelled())
    report, published = ward.await_order(WITHIN_S)
    seconds = time.monotonic() - strike.at

    check_learned(ward, [round_id for round_id in ward.folder.round_ids() if round_id not in before])
    check_spared(ward, ward.folder.round_ids())
    check_order(ward, report, published)
    left_over = len(ward.versions()) - 1
    line = (
        f"chaos seed {SEED} {step.number:3d}/{KILLS} {step.deed:17s} in {step.phase:9s} ({strike.met}): order "
        f"{published.round_id} of {labelled} labels after {seconds:5.1f} s, {left_over} replaced version(s)"
    )
    hospital.tally.append(line)
    say(line)


def test_in_the_end_one_order_is_left(hospital: Hospital, say: Callable[[str], None]) -> None:
    """Whatever was killed, every version that Label Studio holds is on record, and so is deleted in time."""
    ward = hospital.ward()
    ward.readers.submit(2 * RETRAIN_AFTER)
    report, published = ward.await_order(WITHIN_S)

    check_order(ward, report, published)
    assert ward.versions().keys() <= {one.version for one in ward.folder.imported_versions()}
    assert not list(ward.folder.folder.glob("scoring/*"))
    assert not list(ward.folder.folder.glob(".*"))
    refused = len(ward.readers.refused)
    say(
        f"chaos seed {SEED}: {len(hospital.tally)} of {KILLS} steps; disk: {hospital.here.disk.way}; {refused} refusals"
    )


def test_a_plan_holds_every_phase_and_every_deed() -> None:
    """The short run too: its eight steps are one of each phase, and every deed is among them."""
    short = plan(8, 7, most_labels=RETRAIN_AFTER)

    assert Counter(step.phase for step in short) == Counter(PHASES)
    assert {step.deed for step in short} == set(DEEDS)
