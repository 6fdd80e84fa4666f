"""What a live round is put together from; the round itself is replaced."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import httpx
import numpy as np
import pytest
from structlog.contextvars import get_contextvars
from structlog.testing import capture_logs

from ml_backend.analytics import INSIGHT, RoundInsight
from ml_backend.analytics.agreement import NOISE, stored_noise, stored_snapshots
from ml_backend.config import ProjectOptions, Settings
from ml_backend.errors import EmptyPool, RequestRefused, RoundError, SettingsError, StorageError, UnknownProject
from ml_backend.images.cache import DiskCache
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.publisher import LabelStudioPublisher
from ml_backend.model import checkpoint, inference
from ml_backend.model.backbones import Backbone
from ml_backend.model.inference import hardware_fingerprint
from ml_backend.model.network import McDropoutClassifier
from ml_backend.predictions import PoolPredictions
from ml_backend.rounds import live
from ml_backend.rounds import live as assembly
from ml_backend.rounds import live as reranking
from ml_backend.rounds import live as rounds
from ml_backend.rounds import live as world
from ml_backend.rounds.interfaces import RoundParts, no_progress
from ml_backend.rounds.reuse import LockedPublisher, RerankParts, StoredPasses
from ml_backend.rounds.sharding import ShardedLearner
from ml_backend.schemas import (
    Connection,
    Label,
    ProjectKey,
    PublishedRanking,
    Ranking,
    RoundReport,
    RoundRequest,
    RoundTrigger,
)
from ml_backend.seeding import derive
from ml_backend.storage import ProjectStore, RoundStore, ScoringFolder, ScoringTask
from ml_backend.storage.project_state import Pause, ReadingStore
from tests.fakes import CLASSES, NOON, FakeLearner, make_fit, make_image, make_report, make_request

KEY = ProjectKey(id=2, created=1795384774)
CHOICES = '<View><Image name="i" value="$image"/><Choices name="c" toName="i">{}</Choices></View>'
TOLD = CHOICES.format('<Choice value="old"/><Choice value="older"/>')
NOW = CHOICES.format('<Choice value="normal"/><Choice value="severe"/>')
PROJECT = {
    "id": 2,
    "created_at": "2026-11-22T21:59:34.027258Z",
    "label_config": NOW,
    "task_number": 0,
    "total_annotations_number": 0,
    "skipped_annotations_number": 0,
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Begins a round of project 2, which ``/setup`` has connected, and hands on what the round is asked."""
    calls: dict[str, Any] = {"project": PROJECT}

    def answer(request: httpx.Request) -> httpx.Response:
        calls["url"] = str(request.url)
        tasks = {"tasks": calls["tasks"], "total": len(calls["tasks"])}
        known: dict[str, Any] = {"/api/tasks": tasks, "/api/ml": [{"id": 1}]}
        return httpx.Response(200, json=known.get(request.url.path, calls["project"]))

    class Client(LabelStudioClient):
        def __init__(self, url: str, api_key: str, **options: Any) -> None:
            calls["options"] = options
            super().__init__(url, api_key, transport=httpx.MockTransport(answer), **options)

    monkeypatch.setattr(world, "LabelStudioClient", Client)

    def keep(request: RoundRequest, parts: RoundParts) -> RoundRequest:
        calls["parts"] = parts
        calls["found"] = calls["during"](parts)
        calls["told"] = get_contextvars()
        return request

    monkeypatch.setattr(rounds, "run_round", keep)
    RoundStore(tmp_path).connect(Connection(project=KEY, hostname="http://told", label_config=TOLD))

    def begin(
        project: dict[str, Any] = PROJECT,
        key: ProjectKey = KEY,
        reason: RoundTrigger = "labels",
        during: Callable[[RoundParts], object] = lambda _parts: None,
        learn: Callable[[], RoundTrigger] = lambda: "forced",
        *,
        tasks: Sequence[dict[str, Any]] = (),
        **settings: Any,
    ) -> Any:
        calls["project"], calls["tasks"] = project, tasks
        calls["during"] = during
        defaults = {"label_studio_url": "http://ls", "label_studio_api_key": "k", "device": "cpu"}
        found = Settings(data_dir=tmp_path, **(defaults | settings))
        return assembly.run_live_round(found, key, reason, learn=learn), calls

    return begin


def test_the_label_config_is_the_one_that_stands_now(run):
    """The event of its change is lost where the web process was down."""
    request, _ = run()

    assert request.classes == ("normal", "severe")


def test_what_is_logged_names_the_round_from_its_number_to_its_end(run):
    """Also of the worker, who tells how it ended."""
    request, calls = run()

    assert calls["told"]["round"] == get_contextvars()["round"] == request.round_id == "r000001"


def test_outlives_a_restart_of_label_studio(run):
    _, calls = run()

    assert calls["options"]["patience_s"] >= 60


def test_a_project_that_was_made_anew_under_the_same_id_is_left_alone(run):
    with pytest.raises(UnknownProject, match=r"project 2\.1795384774 is gone: .* to 2\.1798070400"):
        run(PROJECT | {"created_at": "2026-12-24T00:00:00Z"})


def test_a_project_that_was_never_connected(run):
    with pytest.raises(UnknownProject, match="ml-backend connect --project 3"):
        run(key=ProjectKey(id=3, created=1))


class TestWhereLabelStudioIs:
    def test_where_the_settings_say(self, run):
        assert run()[1]["url"].startswith("http://ls/")

    def test_else_where_setup_said_if_only_label_studio_can_have_said_it(self, run):
        _, calls = run(label_studio_url=None, basic_auth_user="al", basic_auth_pass="secret")

        assert calls["url"].startswith("http://told/")

    def test_the_key_goes_to_no_host_that_anybody_may_have_named(self, run):
        with pytest.raises(SettingsError, match="Set AL_LABEL_STUDIO_URL"):
            run(label_studio_url=None)


class TestTheLearner:
    """What it is made of; that helpers change nothing is tested in tests/unit/rounds/test_sharing.py."""

    @pytest.fixture
    def network(self, tmp_path):
        """A saved round with a network, and a later one without."""
        store = RoundStore(tmp_path).project(KEY)
        store.save(make_report("r000001"), None, FakeLearner())
        store.save(make_report("r000002"), None, None)
        folder = store.folder / "rounds" / "r000001"
        (folder / "model.txt").rename(folder / "model.safetensors")
        return folder

    @pytest.mark.parametrize("retrain", ["scratch", "warm"])
    def test_goes_on_from_the_newest_network_where_the_owner_wants_it(self, run, network, monkeypatch, retrain):
        monkeypatch.setenv("AL_RETRAIN", retrain)

        _, calls = run()

        assert calls["parts"].learner._learner._learner._warm_from == (network if retrain == "warm" else None)

    def test_a_first_warm_round_has_nothing_to_go_on_from(self, run, monkeypatch):
        monkeypatch.setenv("AL_RETRAIN", "warm")

        assert run()[1]["parts"].learner._learner._learner._warm_from is None

    def test_keeps_no_more_than_the_settings_allow(self, run):
        _, calls = run(cache_gb=0.5)

        assert calls["parts"].learner._learner._learner._cache_limit_bytes == 500_000_000

    def test_is_helped_in_the_shards_that_it_scores_in(self, run):
        _, calls = run()

        learner = calls["parts"].learner._learner
        assert isinstance(learner, ShardedLearner)
        assert learner._size == inference.SHARD_IMAGES


class TestTopUp:
    def test_without_a_ranking_there_is_nothing_to_top_up(self, run):
        with pytest.raises(EmptyPool, match="no ranking yet"):
            run(reason="topup")

    def test_where_enough_is_left_the_last_round_is_told(self, run, tmp_path):
        """Two images are served, of a pool that holds none but them."""
        project = RoundStore(tmp_path).project(KEY)
        project.save(make_report(), None, None)
        served = PublishedRanking(version="v", round_id="r000001", image_ids=("2", "1"), seconds={}, published_at=NOON)
        project.set_published(served)

        (report, published), calls = run(reason="topup")

        assert (report, published) == (make_report(), served)
        assert "parts" not in calls


class TestCopies:
    """Images with equal bytes are known as such once a round has read them."""

    TASKS: ClassVar[list[dict[str, Any]]] = [
        {"id": n, "data": {"image": f"http://films.example/{n}.png"}, "annotations": []} for n in (1, 2, 3)
    ]

    def read(self, parts: RoundParts, tmp_path: Path) -> list[str]:
        """What the round looks at; two of the images are one."""
        pool = [image.id for image in parts.labels.unlabelled()[0]]
        hashes = DiskCache(tmp_path / "cache" / "images" / "hashes")
        for number, digest in ((1, b"x"), (2, b"y"), (3, b"x")):
            hashes.put(f"http://films.example/{number}.png", digest)
        return pool

    @pytest.fixture
    def served(self, tmp_path) -> ProjectStore:
        project = RoundStore(tmp_path).project(KEY)
        ranking = Ranking(strategy="random", image_ids=("3", "2", "1"), scores=(0.9, 0.5, 0.1), batch_size=1)
        project.save(make_report().model_copy(update={"ranking": ranking}), None, None)
        project.set_published(
            PublishedRanking(version="v", round_id="r000001", image_ids=("3", "2", "1"), seconds={}, published_at=NOON)
        )
        return project

    def test_leave_the_order_and_the_next_pool(self, run, served, tmp_path, monkeypatch):
        published = []

        def publish(self: object, report: RoundReport, guard: object) -> PublishedRanking:
            published.append(report.ranking.image_ids)
            order = served.published()
            assert order is not None
            changed: PublishedRanking = order.model_copy(update={"image_ids": report.ranking.image_ids})
            return changed

        monkeypatch.setattr(LabelStudioPublisher, "publish", publish)
        run(PROJECT | {"task_number": 3}, tasks=self.TASKS, during=lambda parts: self.read(parts, tmp_path))
        assert published == [("2", "1")]

        _, calls = run(PROJECT | {"task_number": 3}, tasks=self.TASKS, during=lambda p: self.read(p, tmp_path))
        assert calls["found"] == ["1", "2"]
        assert len(published) == 1

    def test_a_label_studio_that_refuses_makes_no_round_fail(self, run, served, tmp_path, monkeypatch):
        def publish(*_: object) -> PublishedRanking:
            raise RequestRefused("busy", 500)

        monkeypatch.setattr(LabelStudioPublisher, "publish", publish)

        with capture_logs() as logs:
            run(PROJECT | {"task_number": 3}, tasks=self.TASKS, during=lambda parts: self.read(parts, tmp_path))
        assert [one["event"] for one in logs if one["log_level"] == "warning"] == [
            "copies of images stay in the order for now"
        ]


class TestServed:
    """A round that would come to what is served already."""

    @pytest.fixture
    def served(self, tmp_path):
        """A published round with the digest "same", which has learned from one annotation."""
        project = RoundStore(tmp_path).project(KEY)
        project.save(make_report().model_copy(update={"inputs": "same"}), None, None)
        ReadingStore(project.folder).keep_learned("r000001", {"1.1": "a"})
        seconds = {"delete": 0.1}
        served = PublishedRanking(version="v", round_id="r000001", image_ids=("2",), seconds=seconds, published_at=NOON)
        project.set_published(served)
        return served

    def test_stands_for_the_annotations_of_now(self, run, served, tmp_path):
        """The label is the same though the annotation behind it is another: it must not count as a change for ever."""

        def read(parts: RoundParts) -> Any:
            assert parts.labels.annotations() == []
            return parts.served("same")

        _, calls = run(PROJECT | {"model_version": "v"}, during=read)

        assert calls["found"][1] == served
        assert ReadingStore(RoundStore(tmp_path).project(KEY).folder).changes_since("r000001", {}) == 0

    def test_is_no_reason_to_leave_another_order_standing(self, run, served):
        _, calls = run(PROJECT | {"model_version": "of somebody else"}, during=lambda parts: parts.served("same"))

        assert calls["found"] is None

    def test_other_inputs_make_a_round(self, run, served):
        _, calls = run(PROJECT | {"model_version": "v"}, during=lambda parts: parts.served("other"))

        assert calls["found"] is None


@pytest.fixture
def ranked(tmp_path, monkeypatch):
    """A published round by entropy with its passes, that has learned from one annotation."""
    project = RoundStore(tmp_path).project(KEY)
    options = ProjectOptions(strategy="entropy", passes=2, backbone="resnet18", weights="none", image_side=32)
    asked = make_request(
        project=KEY,
        classes=("normal", "severe"),
        strategy="entropy",
        batch_size=20,
        options=options.model_dump(mode="json"),
    )
    report = make_report().model_copy(update={"request": asked, "fit": make_fit()})
    outputs = PoolPredictions(("2", "1"), ("normal", "severe"), np.full((2, 2, 2), 0.5, dtype=np.float32))
    ReadingStore(project.folder).keep_learned("r000001", {"1.1": "a"})
    project.save(report, outputs, None)
    served = PublishedRanking(
        version="v", round_id="r000001", image_ids=("2", "1"), seconds={"delete": 0.1}, published_at=NOON
    )
    project.set_published(served)
    found: dict[str, Any] = {}

    def keep(request: RoundRequest, base: RoundReport, parts: RerankParts) -> tuple[RoundReport, PublishedRanking]:
        found.update(request=request, base=base, parts=parts)
        return report, served

    monkeypatch.setattr(reranking, "rerank", keep)
    return project, found


class TestRerank:
    """Another strategy at once; how it ranks is tested in tests/unit/rounds/test_rerank.py."""

    def test_without_a_ranking_there_is_nothing_to_rank_anew(self, run):
        with pytest.raises(EmptyPool, match="no ranking yet"):
            run(reason="rerank")

    def test_nothing_is_done_where_the_order_is_as_chosen(self, run, ranked):
        """A round that ran meanwhile may have ranked so already."""
        project, found = ranked

        (report, _), calls = run(reason="rerank")

        assert report.request.round_id == "r000001"
        assert project.round_ids() == ["r000001"]
        assert (found, "parts" in calls) == ({}, False)

    def test_asks_what_the_earlier_round_was_asked_but_for_what_ranks(self, run, ranked, monkeypatch):
        """``passes`` is another now, and takes effect with the next training: the network drew as many as it was to."""
        monkeypatch.setenv("AL_STRATEGY", "bald")
        monkeypatch.setenv("AL_CONTROL_SHARE", "0.25")
        monkeypatch.setenv("AL_PASSES", "9")
        project, found = ranked

        run(reason="rerank")

        request = found["request"]
        assert (request.strategy, request.control_share, request.reason) == ("bald", 0.25, "rerank")
        assert request.round_id == "r000002"
        assert (request.options["strategy"], request.options["passes"]) == ("bald", 2)
        assert isinstance(found["parts"].scorer, StoredPasses)
        assert found["parts"].strategy.name == "bald"
        assert found["base"] == project.report("r000001")

    def test_knows_no_more_than_its_base_has_learned(self, run, ranked, monkeypatch):
        """Labels of since then go on to count as changes; what the page needs is kept as of any round."""
        monkeypatch.setenv("AL_STRATEGY", "bald")
        project, found = ranked
        run(reason="rerank")
        report = make_report("r000002").model_copy(update={"request": found["request"], "base": "r000001"})

        found["parts"].store.save(report, project.outputs("r000001"), None)

        readings = ReadingStore(project.folder)
        assert readings.changes_since("r000002", {"1.1": "a", "2.2": "b"}) == 1
        insight = project.record("r000002", INSIGHT, RoundInsight)
        assert insight is not None
        assert insight.images == 2

    def test_one_that_was_saved_is_published_and_not_ranked_again(self, run, ranked, monkeypatch):
        monkeypatch.setenv("AL_STRATEGY", "bald")
        project, found = ranked
        asked = project.report("r000001").request.model_copy(
            update={"strategy": "bald", "round_id": "r000002", "reason": "rerank"}
        )
        saved = make_report("r000002").model_copy(update={"request": asked, "base": "r000001"})
        project.save(saved, None, None)
        published: list[RoundReport] = []

        def publish(_self: LockedPublisher, report: RoundReport, _guard: Callable[[], None]) -> PublishedRanking:
            published.append(report)
            return PublishedRanking(version="w", round_id="r000002", image_ids=("2",), seconds={}, published_at=NOON)

        monkeypatch.setattr(LockedPublisher, "publish", publish)

        run(reason="rerank")

        assert (published, found) == ([saved], {})

    def test_other_classes_wait_for_the_next_round(self, run, ranked, monkeypatch):
        monkeypatch.setenv("AL_STRATEGY", "bald")
        _, found = ranked
        other = CHOICES.format('<Choice value="normal"/><Choice value="worse"/>')

        (report, _), _ = run(PROJECT | {"label_config": other}, reason="rerank")

        assert (report.request.round_id, found) == ("r000001", {})


class TestRerankAfterAnUpgrade:
    """Passes and network of a version that wrote them otherwise: nothing is ranked anew, and one line says why."""

    @pytest.fixture
    def upgraded(self, ranked, monkeypatch):
        """A round whose passes and network are of other formats; its owner wants another strategy."""
        project, found = ranked
        folder = project.folder / "rounds" / "r000001"
        with np.load(folder / "outputs.npz") as arrays:
            kept = dict(arrays)
        np.savez(folder / "outputs.npz", **(kept | {"format": np.array(0)}))
        keep_network(folder, monkeypatch, version=0)
        monkeypatch.setenv("AL_STRATEGY", "bald")
        return project, found, folder

    @staticmethod
    def warnings(logs):
        return [line for line in logs if line["log_level"] == "warning"]

    @pytest.mark.parametrize("strategy", ["bald", "core_set"])
    def test_a_round_that_learns_takes_its_place(self, run, upgraded, monkeypatch, strategy):
        monkeypatch.setenv("AL_STRATEGY", strategy)
        _, found, _ = upgraded

        learned: list[str] = []

        def learn() -> RoundTrigger:
            learned.append("changes taken")
            return "connected"

        with capture_logs() as logs:
            request, calls = run(reason="rerank", learn=learn)

        assert (request.strategy, request.reason, found) == (strategy, "connected", {})
        assert learned == ["changes taken"]
        assert calls["told"]["round"] == request.round_id
        [line] = self.warnings(logs)
        assert line["event"] == "the last network cannot rank anew: a round that learns takes its place"
        assert ("outputs.npz is of format 0" in line["why"]) == (strategy == "bald")
        assert "was made for version 0, not 1" in line["why"]

    def test_while_the_owner_holds_the_rounds_it_waits(self, run, upgraded):
        project, found, _ = upgraded
        Pause(project.folder).begin(20)

        with capture_logs() as logs:
            (report, _), calls = run(reason="rerank")

        assert (report.request.round_id, found, "parts" in calls) == ("r000001", {}, False)
        [line] = self.warnings(logs)
        assert line["event"] == "what the owner has chosen takes effect with the next round"

    def test_a_network_that_can_be_used_looks_again(self, run, upgraded, monkeypatch):
        _, found, folder = upgraded
        keep_network(folder, monkeypatch, version=1)

        with capture_logs() as logs:
            run(reason="rerank")

        assert isinstance(found["parts"].scorer, ShardedLearner)
        [line] = self.warnings(logs)
        assert line["event"] == "the network looks at the images once more, since its passes cannot be used"
        assert "outputs.npz is of format 0" in line["why"]

    def test_options_that_this_version_does_not_know(self, run, ranked, monkeypatch):
        """The passes could be read, and what the manifest would say of the network could not."""
        monkeypatch.setenv("AL_STRATEGY", "bald")
        project, found = ranked
        path = project.folder / "rounds" / "r000001" / "report.json"
        path.write_text(path.read_text().replace('"passes":', '"samples": 3, "passes":'))

        with capture_logs() as logs:
            request, _ = run(reason="rerank")

        assert (request.reason, found) == ("forced", {})
        [line] = self.warnings(logs)
        assert line["why"] == "the options of round r000001 are not those of this version (1 mistakes)"


def keep_network(folder: Path, monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    """Write a network into a round of ``ranked``, as a version of that number would have."""
    options = ProjectOptions(strategy="entropy", passes=2, backbone="resnet18", weights="none", image_side=32)
    network = McDropoutClassifier(2, Backbone("resnet18"), dropout=options.dropout)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_VERSION", version)
        checkpoint.save_checkpoint(
            folder / checkpoint.FILE_NAME, network, ("normal", "severe"), options, 0, frozen_backbone=True
        )


class TestWhatIsNoted:
    def test_a_round_notes_what_it_learned_from_before_it_is_saved(self, tmp_path):
        """A served round that lacked it could not say what changed since."""
        project = RoundStore(tmp_path).project(KEY)
        readings = ReadingStore(project.folder)

        class Labels:
            def states(self) -> dict[str, str]:
                return {"1.1": "a"}

        store = live.NotesWhatIsLearned(project, readings, Labels())  # type: ignore[arg-type]
        store.save(make_report(), None, None)

        assert project.round_ids() == ["r000001"]
        assert readings.changes_since("r000001", {"1.1": "a", "2.2": "b"}) == 1
        (tmp_path / "file").write_text("")
        with pytest.raises(StorageError):
            replace(store, readings=ReadingStore(tmp_path / "file")).save(make_report("r000002"), None, None)
        assert project.round_ids() == ["r000001"]

    def test_what_is_published_notes_how_many_annotations_there_were(self, tmp_path):
        project = RoundStore(tmp_path).project(KEY)
        served = PublishedRanking(version="v", round_id="r000001", image_ids=("2",), seconds={}, published_at=NOON)

        class Publisher:
            def publish(self, report: RoundReport, guard: Callable[[], None]) -> PublishedRanking:
                return served

        class Client:
            def project(self, project_id: int) -> dict[str, Any]:
                return PROJECT | {"total_annotations_number": 5, "skipped_annotations_number": 2}

        publisher = live.CountingPublisher(Publisher(), Client(), project, 2)  # type: ignore[arg-type]
        published = publisher.publish(make_report(), lambda: None)

        assert published.annotations == 7
        assert project.published() == published


class TestNoise:
    """A twin of the round's network, trained when readers have their order."""

    @pytest.fixture
    def made(self, monkeypatch):
        """What learns, by whether it is a twin; the real ones need images."""
        found: list[tuple[FakeLearner, bool]] = []

        def learner(_world, _options, _progress, _warm_from=None, *, twin=False):
            found.append((FakeLearner(), twin))
            return found[-1][0]

        monkeypatch.setattr(world.ProjectContext, "learner", learner)
        return found

    @staticmethod
    def trains(parts: RoundParts) -> None:
        """The steps of a round that trains, saved as the next number."""
        labels = [Label(image=make_image(n), value=CLASSES[n % 3], raters=1) for n in range(6)]
        fit = parts.learner.fit(labels[:4], labels[4:], CLASSES)
        outputs = parts.learner.outputs([make_image(n) for n in range(10, 20)], frozenset({"probs"}))
        taken = sorted(path.name for path in Path(parts.store.rounds.project.folder, "rounds").glob(".r*"))  # type: ignore[attr-defined]
        report = make_report(taken[-1].removeprefix(".")).model_copy(update={"fit": fit})
        parts.store.save(report, outputs, None)

    @pytest.mark.parametrize(("every", "expected"), [(1, ["r000001", "r000002"]), (2, ["r000002"]), (0, [])])
    def test_is_measured_after_every_so_many_trained_rounds(self, run, made, tmp_path, *, monkeypatch, every, expected):
        monkeypatch.setenv("AL_NOISE_EVERY", str(every))
        project = RoundStore(tmp_path).project(KEY)

        for _ in range(2):
            run(during=self.trains)

        assert project.rounds_with(NOISE) == expected
        assert [one.round_id for one in stored_snapshots(project)] == ["r000001", "r000002"]
        # The fake answers by the image alone: twins agree on all ten.
        assert {noise.agreed for noise in stored_noise(project, expected).values()} <= {1.0}
        twins = [one for one, twin in made if twin]
        assert [one.fits for one in twins] == [made[0][0].fits] * len(expected)

    def test_a_round_that_trains_nothing_measures_nothing(self, run, made, tmp_path, monkeypatch):
        monkeypatch.setenv("AL_NOISE_EVERY", "1")
        run()

        assert [twin for _, twin in made] == [False]
        assert RoundStore(tmp_path).project(KEY).rounds_with(NOISE) == []

    def test_a_twin_has_another_seed_and_the_same_folds(self, tmp_path, monkeypatch):
        seeds = []

        def note(_make, options, folds, _progress):
            seeds.append((options.seed, folds.keywords["seed"]))

        monkeypatch.setattr(world, "make_learner", note)
        monkeypatch.setenv("AL_LABEL_STUDIO_API_KEY", "k")
        settings = Settings(data_dir=tmp_path, label_studio_url="http://ls", label_studio_api_key="k", device="cpu")
        RoundStore(tmp_path).connect(Connection(project=KEY, hostname="http://told", label_config=TOLD))
        with world.open_project(settings, KEY) as it:
            for twin in (False, True):
                it.learner(ProjectOptions(seed=4), no_progress, twin=twin)

        assert seeds == [(4, 4), (derive(4, "twin"), 4)]


class TestTypicalFirst:
    """``cold_start: typiclust``: the first order is by chance, and a better one follows it at once."""

    @pytest.mark.parametrize(("cold_start", "runs"), [("random", 1), ("typiclust", 2)])
    def test_two_rounds_where_the_owner_wants_it(self, tmp_path, run, monkeypatch, cold_start, runs):
        monkeypatch.setenv("AL_COLD_START", cold_start)
        project = RoundStore(tmp_path).project(KEY)
        served = PublishedRanking(version="v", round_id="r000001", image_ids=("2", "1"), seconds={}, published_at=NOON)
        seen = []

        def random_then_typical(request: RoundRequest, parts: RoundParts) -> tuple[RoundReport, PublishedRanking]:
            seen.append((request.round_id, request.cold_start, parts.serving()))
            report = make_report(request.round_id)
            project.set_published(served)
            return report, served

        monkeypatch.setattr(rounds, "run_round", random_then_typical)
        run()

        assert [(cold, serving) for _, cold, serving in seen] == [(cold_start, False), (cold_start, True)][:runs]
        assert len({round_id for round_id, _, _ in seen}) == runs


class TestShardScorer:
    def scorer(self, tmp_path, folder, **settings):
        defaults = {"label_studio_url": "http://ls", "label_studio_api_key": "k", "device": "cpu"}
        return assembly.shard_scorer(Settings(data_dir=tmp_path, **(defaults | settings)), KEY, folder)

    def lay_out(self, tmp_path, machine: str) -> ScoringFolder:
        task = ScoringTask(options=ProjectOptions(), needs=frozenset({"probs"}), machine=machine, shards=1)
        return RoundStore(tmp_path).project(KEY).begin_scoring("r000001", task, [[make_image(1)]], FakeLearner())

    def test_a_machine_that_would_give_other_bits_does_not_help(self, tmp_path):
        folder = self.lay_out(tmp_path, "torch 2.0, some GPU")

        with (
            pytest.raises(RoundError, match=r"to other bits \(torch .*\) than the round \(torch 2\.0, some GPU\)"),
            self.scorer(tmp_path, folder),
        ):
            pass

    def test_a_round_that_is_over(self, tmp_path):
        folder = self.lay_out(tmp_path, "m")
        folder.remove()

        with pytest.raises(RoundError, match="is over"), self.scorer(tmp_path, folder):
            pass

    def test_a_helper_without_a_key_says_so(self, tmp_path):
        RoundStore(tmp_path).connect(Connection(project=KEY, hostname="http://told", label_config=TOLD))
        folder = self.lay_out(tmp_path, hardware_fingerprint("cpu"))

        with (
            pytest.raises(SettingsError, match="AL_LABEL_STUDIO_API_KEY"),
            self.scorer(tmp_path, folder, label_studio_api_key=None),
        ):
            pass
