"""What a project's page is made of; a damaged round is named and hides nothing."""

import gc
import os
import weakref
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from ml_backend.analytics import INSIGHT, ImageInsight, RoundInsight
from ml_backend.analytics.agreement import AGREEMENT, NOISE, Agreement, PredictionSnapshot
from ml_backend.analytics.evaluation import PROOF, ActiveAgainstRandom
from ml_backend.analytics.history import HELD_OUT, PREVIEWS, HeldOutPredictions, StrategyPreviews
from ml_backend.analytics.overview import CONTROL, Overview, analyse, overview, reason, reason_unseen
from ml_backend.config import ProjectOptions
from ml_backend.label_studio.formats import parse_label_config
from ml_backend.label_studio.sync import CachedTask, TaskCache
from ml_backend.registry import STRATEGIES
from ml_backend.schemas import Connection, HeldOutImage, PublishedRanking
from ml_backend.storage import ProjectStore, RoundStore
from ml_backend.storage.project_state import ReadingStore
from tests.fakes import CLASSES, NOON, make_fit, make_report
from tests.unit.server.memory import PROJECT


@pytest.fixture
def project(tmp_path):
    found = RoundStore(tmp_path).project(PROJECT)
    for number in (1, 2, 3):
        found.save(make_report(f"r{number:06d}"), None, None)
    return found


XML = (
    '<View><Image name="image" value="$image"/><Choices name="severity" toName="image">'
    '<Choice value="normal"/><Choice value="moderate"/><Choice value="severe"/></Choices></View>'
)
CONFIG = parse_label_config(XML)


def shown(project: ProjectStore) -> Overview:
    return overview(project, analyse(project, CONFIG, ProjectOptions()))


def task(value: str, at: datetime) -> CachedTask:
    choice = {"from_name": "severity", "type": "choices", "value": {"choices": [value]}}
    answer = {
        "id": 1,
        "completed_by": 1,
        "was_cancelled": False,
        "result": [choice],
        "created_at": at.isoformat(),
        "updated_at": at.isoformat(),
        "lead_time": 9.0,
    }
    return CachedTask(data={"image": "/data/upload/1.png"}, annotations=(answer,))


def answered(images: int) -> TaskCache:
    """So many images that readers called severe, a minute after the order."""
    tasks = {number: task("severe", NOON + timedelta(minutes=number)) for number in range(1, images + 1)}
    return TaskCache(read_at=NOON, whole_at=NOON, tasks=tasks)


class TestControl:
    @pytest.fixture
    def project(self, tmp_path):
        """Image 1 came by chance and was taken for severe; image 2 was chosen. Readers call both severe."""
        found = RoundStore(tmp_path).project(PROJECT)
        report = make_report("r000001")
        request = report.request.model_copy(update={"control_share": 0.5, "strategy": "entropy"})
        ranking = report.ranking.model_copy(update={"strategy": "entropy"})
        trained = {"request": request, "ranking": ranking, "fit": make_fit()}
        said = {"normal": 0.1, "moderate": 0.2, "severe": 0.7}
        by_chance = ImageInsight(
            image_id="1", place=2, probs=said, score=0.1, aleatoric=0.5, epistemic=0.1, control=True
        )
        insight = RoundInsight(images=2, expected=said, predicted={}, batch=(), control=(by_chance,))
        found.save(report.model_copy(update=trained), None, None, {INSIGHT: insight})
        answered = NOON + timedelta(minutes=1)
        tasks = {1: task("severe", answered), 2: task("severe", answered)}
        ReadingStore(found.folder).keep_mirror(TaskCache(read_at=NOON, whole_at=NOON, tasks=tasks))
        return found

    def test_only_what_came_by_chance_counts(self, project):
        found = shown(project).control

        assert found is not None
        assert (found.n, found.correct, found.enough) == (1, 1, False)

    @pytest.mark.parametrize("images", [29, 30])
    def test_what_came_by_chance_is_evidence_of_when_to_stop(self, project, images):
        """After three rounds of 30 validation images; the first round, of two, does not count."""
        for number in (2, 3, 4):
            fit = make_fit().model_copy(update={"validation_images": images})
            later = {"fit": fit, "started_at": NOON + timedelta(hours=number)}
            report = make_report(f"r{number:06d}").model_copy(update=later)
            marks = PredictionSnapshot(
                round_id=report.request.round_id, labels=9, accuracy=0.5, classes=CLASSES, predicted={"5": 0, "6": 1}
            )
            project.save(report, None, None, {AGREEMENT: marks})
        project.set_record("r000001", AGREEMENT, marks.model_copy(update={"round_id": "r000001"}))

        found = shown(project).stopping

        assert found is not None
        assert ["1 of them has a label, 60 are needed" in one for one in found.evidence[-1:]] == [True] * (images == 30)

    def test_none_where_nothing_ever_came_by_chance(self, tmp_path):
        without = RoundStore(tmp_path).project(PROJECT)
        without.save(make_report().model_copy(update={"fit": make_fit()}), None, None)
        tasks = {1: task("severe", NOON + timedelta(minutes=1))}
        ReadingStore(without.folder).keep_mirror(TaskCache(read_at=NOON, whole_at=NOON, tasks=tasks))

        assert shown(without).control is None

    def test_a_comparison_that_was_made(self, project):
        made = ActiveAgainstRandom(
            images=40, labels=(50,), chosen=(20,), active_correct=30, random_correct=25, only_active=9, only_random=4,
            difference=0.125, low=-0.02, high=0.27, p=0.27, seed=0, made_at=NOON, sentence="Not told from luck.",
        )  # fmt: skip
        project.set_project_record(PROOF, made)

        assert overview(project).proof == made


class TestConfusions:
    def test_counted_once_a_round_however_labels_change(self, project, monkeypatch):
        images = tuple(
            HeldOutImage(image_id=str(number), label="severe", probs={"normal": 0.1, "moderate": 0.2, "severe": 0.7})
            for number in range(3)
        )
        read, record = list[str](), ProjectStore.record

        def noted(self: ProjectStore, round_id: str, name: str, kind: type[Any]) -> Any:
            if name == HELD_OUT:
                read.append(round_id)
            return record(self, round_id, name, kind)

        monkeypatch.setattr(ProjectStore, "record", noted)
        readings = ReadingStore(project.folder)
        for number in (1, 2):
            project.set_record(f"r{number:06d}", HELD_OUT, HeldOutPredictions(images=images[number:]))
            readings.keep_mirror(answered(number))
            found = shown(project).confusions

        assert read == ["r000001", "r000002"]
        assert [found[name]["severe"]["severe"] for name in found] == [2, 1]


class TestReading:
    """The tasks of a project are one file, of megabytes: three parts of the page are told from it."""

    @pytest.fixture
    def project(self, tmp_path):
        """Order, answers, a network and a control share: each of the three has something to tell."""
        found = RoundStore(tmp_path).project(PROJECT)
        report = make_report("r000001")
        request = report.request.model_copy(update={"control_share": 0.5})
        found.save(report.model_copy(update={"request": request, "fit": make_fit()}), None, None)
        found.set_published(
            PublishedRanking(version="v", round_id="r000001", image_ids=("2", "1"), seconds={}, published_at=NOON)
        )
        ReadingStore(found.folder).keep_mirror(answered(1))
        return found

    @pytest.fixture
    def readings(self, monkeypatch):
        """The mirrors that were read."""
        found, read = [], ReadingStore.mirror

        def noted(self: ReadingStore, kind: type[TaskCache]) -> TaskCache | None:
            mirror = read(self, kind)
            found.append(weakref.ref(mirror))
            return mirror

        monkeypatch.setattr(ReadingStore, "mirror", noted)
        return found

    def test_is_shared_by_all_parts_of_a_page_and_not_kept(self, project, readings):

        found = shown(project)
        gc.collect()

        assert None not in (found.fidelity, found.stopping, found.control)
        assert [reading() for reading in readings] == [None]
        assert shown(project) == found
        assert len(readings) == 1

    def test_of_another_request_is_another(self, project, readings):
        shown(project)
        ReadingStore(project.folder).keep_mirror(answered(2))

        found = shown(project).fidelity

        assert found is not None
        assert (found.answered, len(readings)) == (2, 2)

    def test_what_is_written_while_it_is_read_is_seen_by_the_next_request(self, project, monkeypatch):
        read = ReadingStore.mirror

        def overtaken(self: ReadingStore, kind: type[TaskCache]) -> TaskCache | None:
            mirror = read(self, kind)
            self.keep_mirror(answered(2))
            return mirror

        with monkeypatch.context() as patched:
            patched.setattr(ReadingStore, "mirror", overtaken)
            before = shown(project)
        after = shown(project)

        assert before.fidelity is not None
        assert after.fidelity is not None
        assert (before.fidelity.answered, after.fidelity.answered) == (1, 2)


class TestAnalysis:
    """Is computed again where something that it was computed from has changed, and only there."""

    @pytest.fixture
    def project(self, tmp_path):
        found = RoundStore(tmp_path).project(PROJECT)
        found.save(make_report("r000001").model_copy(update={"fit": make_fit()}), None, None)
        found.readings.keep_mirror(answered(1))
        return found

    @pytest.mark.parametrize(
        "change",
        [
            lambda project: project.readings.keep_mirror(answered(2)),
            lambda project: project.readings.keep_digests({"a": "x", "b": "x"}),
            lambda project: project.save(make_report("r000002"), None, None),
            lambda project: project.set_record("r000001", NOISE, Agreement(images=2, agreed=1.0)),
            lambda project: project.set_record("r000001", PREVIEWS, StrategyPreviews(first={})),
            lambda project: project.set_published(
                PublishedRanking(version="v", round_id="r000001", image_ids=("2",), seconds={}, published_at=NOON)
            ),
            lambda project: project.set_project_record("quarantine", make_fit()),
        ],
    )
    def test_after_a_change(self, project, change):
        before = analyse(project, CONFIG, ProjectOptions())
        change(project)

        assert analyse(project, CONFIG, ProjectOptions()).inputs != before.inputs

    def test_what_waits_of_an_order(self, project):
        """Image 3 for its first reader, and 1 for another: 2 and 4 have had their further read since."""
        tasks = answered(4).tasks
        first = tasks[3].model_copy(update={"annotations": (), "data": {"image": "/3.png"}})
        project.readings.keep_mirror(answered(4).model_copy(update={"tasks": {**tasks, 3: first}}))
        at = NOON + timedelta(seconds=90)
        order = PublishedRanking(
            version="v", round_id="r000001", image_ids=tuple("1324"), rereads=tuple("124"), seconds={}, published_at=at
        )
        project.set_published(order)
        found = analyse(project, CONFIG, ProjectOptions())

        assert (found.published_left, found.rereads_left) == (1, 1)

    def test_after_another_option(self, project):
        before = analyse(project, CONFIG, ProjectOptions())

        assert analyse(project, CONFIG, ProjectOptions(batch_size=7)).inputs != before.inputs

    def test_is_kept_for_other_processes(self, project, monkeypatch):
        before = analyse(project, CONFIG, ProjectOptions())
        monkeypatch.setattr(ReadingStore, "mirror", None)

        assert analyse(ProjectStore(project.folder), CONFIG, ProjectOptions()) == before
        assert before.standing is not None

    def test_that_of_a_large_project_is_refreshed_by_the_reconciler_in_a_process_of_its_own(self, project, monkeypatch):
        RoundStore(project.folder.parents[1]).connect(Connection(project=PROJECT, hostname="", label_config=XML))
        before = analyse(project, CONFIG, ProjectOptions())
        project.readings.keep_mirror(answered(2))
        monkeypatch.setattr("ml_backend.analytics.overview.LARGE", 2)
        with monkeypatch.context() as patched:
            patched.setattr("ml_backend.analytics.overview._analysis", lambda *_: pytest.fail("in this process"))
            assert analyse(project, CONFIG, ProjectOptions()) == before
            found = analyse(project, CONFIG, ProjectOptions(), refresh=True)

        assert found.standing is not None
        assert found.standing.tasks == 2
        assert analyse(project, CONFIG, ProjectOptions()) == found

    def test_a_set_in_another_order_changes_nothing(self, project):
        class Backwards(frozenset[str]):
            def __iter__(self) -> Iterator[str]:
                return iter([*super().__iter__()][::-1])

        names = frozenset({"a", "b", "c"})
        one, other = (replace(CONFIG, other_questions=found) for found in (names, Backwards(names)))

        assert analyse(project, one, ProjectOptions()) == analyse(project, other, ProjectOptions())

    def test_a_damaged_round_hides_no_readers(self, project):
        [first] = task("severe", NOON).annotations
        two = CachedTask(
            data={"image": "/data/upload/1.png"}, annotations=(first, first | {"id": 2, "completed_by": 2})
        )
        project.readings.keep_mirror(TaskCache(read_at=NOON, whole_at=NOON, tasks={1: two}))
        project.readings.keep_digests({"a": "x"})
        project.set_record("r000001", INSIGHT, RoundInsight(images=9, expected={}, predicted={}, batch=()))
        (project.folder / "rounds/r000001/insight.json").write_text("{")

        found = analyse(project, CONFIG, ProjectOptions()).readers

        assert found is not None
        assert [one.rater for one in found.readers] == ["1", "2"]

    def test_a_damaged_one_is_computed_again(self, project):
        before = analyse(project, CONFIG, ProjectOptions())
        (project.folder / "analysis.json").write_text("{")

        assert analyse(project, CONFIG, ProjectOptions()) == before


class TestOverview:
    def test_a_cold_start_round_shows_its_batch_without_a_network(self, project):
        found = overview(project)

        assert [line.round_id for line in found.rounds] == ["r000001", "r000002", "r000003"]
        assert found.chosen is not None
        assert [(one.image_id, one.place, one.said) for one in found.chosen.batch] == [("2", 1, None)]
        assert found.fidelity is None

    def test_shows_the_round_that_is_served(self, project):
        found = overview(project, served="r000001")

        assert found.chosen is not None
        assert found.chosen.round_id == "r000001"

    def test_a_damaged_round_is_named_and_hides_no_other(self, project):
        (project.folder / "rounds/r000002/report.json").write_text("{")
        (project.folder / "rounds/r000003/insight.json").write_text("{")

        found = overview(project, served="r000002")

        assert [line.round_id for line in found.rounds] == ["r000001", "r000003"]
        [damaged] = found.damaged
        assert "r000002" in damaged
        assert found.chosen is not None
        assert found.chosen.insight is None

    def test_remembers_a_report_until_its_file_changes(self, project):
        before = overview(project).rounds[0]
        assert overview(project).rounds[0] is before

        path = project.folder / "rounds/r000001/report.json"
        os.utime(path, ns=(1, 1))

        assert overview(project).rounds[0] is not before

    def test_a_project_without_a_round(self, tmp_path):
        assert overview(RoundStore(tmp_path).project(PROJECT)).rounds == ()


IMAGE = ImageInsight(
    image_id="4",
    place=1,
    probs={"normal": 0.09, "moderate": 0.48, "severe": 0.43},
    score=0.25,
    aleatoric=0.6,
    epistemic=0.31,
)
SAID = {
    "badge": "differs from the others of its batch",
    "bald": "its prediction varies from pass to pass, by 28 % of the maximum",  # 0.31 of log 3
    "batch_bald": "differs from the others of its batch: adds 23 % of what a label can hold",
    "class_balanced": "undecided between moderate 48 % and severe 43 %, in a batch that is divided over the classes",
    "core_set": "differs from the others of its batch: 0.25 from the nearest",
    "entropy": "undecided between moderate 48 % and severe 43 %",
    "epig": "tells about the other images: 23 % of what a label can hold",
    "herding": "differs from the others of its batch: represents images",
    "least_confidence": "least sure prediction: moderate 48 %",
    "margin": "small margin between moderate 48 % and severe 43 %",
    "mean_std": "its prediction varies from pass to pass, by 25 points",
    "power_bald": "its prediction varies from pass to pass, by 28 % of the maximum; spread over the pool at random",
    "random": "drawn at random",
    "typiclust": "differs from the others of its batch: typical",
    "uherding": "stands for uncertain images near it that no labelled image represents",
    "variation_ratios": "25 % of the passes vote against",
}


class TestReason:
    def test_every_strategy_has_its_own(self):
        assert set(SAID) == set(STRATEGIES)
        assert len({reason(name, IMAGE) for name in STRATEGIES}) == len(STRATEGIES)

    @pytest.mark.parametrize("strategy", SAID)
    def test_says_what_the_strategy_saw(self, strategy):
        assert reason(strategy, IMAGE).startswith(SAID[strategy])

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_a_control_image_is_there_by_chance_whatever_ranks_the_others(self, strategy):
        assert reason(strategy, IMAGE.model_copy(update={"control": True})) == CONTROL
        assert reason_unseen(strategy, control=True) == CONTROL

    @pytest.mark.parametrize(
        ("strategy", "words"), [("entropy", "among the least certain:"), ("margin", "among the smallest margins:")]
    )
    def test_calls_nothing_undecided_that_is_not(self, strategy, words):
        sure = IMAGE.model_copy(update={"probs": {"normal": 0.10, "moderate": 0.21, "severe": 0.69}})
        assert reason(strategy, sure) == f"{words} severe 69 % and moderate 21 %"

    def test_a_strategy_that_is_no_more_shows_its_score(self):
        assert reason("gone", IMAGE) == "score 0.25"

    def test_without_a_network(self):
        assert reason_unseen("random") == "drawn at random"
        assert "typical" in reason_unseen("typiclust")
        assert reason_unseen("gone")
