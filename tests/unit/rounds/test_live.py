"""Rounds, rerankings and top-ups of a connected project, on a fake Label Studio; ``run_round`` itself is replaced."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import httpx
import numpy as np
import pytest
from PIL import Image
from structlog.contextvars import get_contextvars
from structlog.testing import capture_logs

from ml_backend.analytics import INSIGHT, RoundInsight
from ml_backend.analytics.agreement import NOISE, stored_noise, stored_snapshots
from ml_backend.analytics.history import HELD_OUT, PREVIEWS, HeldOutPredictions, StrategyPreviews
from ml_backend.config import ProjectOptions, Settings
from ml_backend.consensus import Consensus
from ml_backend.errors import (
    EmptyPool,
    ImageError,
    RequestRefused,
    SettingsError,
    StorageError,
    UnknownProject,
)
from ml_backend.images import ImageSource
from ml_backend.images.cache import DiskCache
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.publisher import LabelStudioPublisher
from ml_backend.label_studio.sync import LabelStudioLabels
from ml_backend.model import checkpoint
from ml_backend.model.backbones import Backbone
from ml_backend.model.distributed_learner import DistributedLearner
from ml_backend.model.learner import McDropoutLearner
from ml_backend.model.network import McDropoutClassifier
from ml_backend.predictions import PoolPredictions
from ml_backend.rounds import live
from ml_backend.rounds.interfaces import no_progress
from ml_backend.rounds.live import LiveProject
from ml_backend.rounds.reuse import StoredPasses
from ml_backend.rounds.run import ProjectData, RoundResult, run_round
from ml_backend.scheduling.worker import keep_previews
from ml_backend.schemas import (
    Connection,
    HandPick,
    HeldOutImage,
    ImageRef,
    ProjectKey,
    PublishedRanking,
    Ranking,
    RoundReport,
    RoundRequest,
    RoundTrigger,
)
from ml_backend.seeding import derive
from ml_backend.storage import ProjectStore, RoundStore
from ml_backend.storage.project_state import Pause, Quarantine, ReadingStore
from ml_backend.storage.rounds import RANKING, write_ranking
from tests.fakes import (
    CLASSES,
    NOON,
    FakeLabels,
    FakeLearner,
    make_annotation,
    make_fit,
    make_image,
    make_report,
    make_request,
    one_reader,
)

KEY = ProjectKey(id=2, created=1795384774)
CHOICES = '<View><Image name="i" value="$image"/><Choices name="c" toName="i">{}</Choices></View>'
AT_SETUP = CHOICES.format('<Choice value="old"/><Choice value="older"/>')
NOW = CHOICES.format('<Choice value="normal"/><Choice value="severe"/>')
PROJECT = {
    "id": 2,
    "created_at": "2026-11-22T21:59:34.027258Z",
    "label_config": NOW,
    "task_number": 0,
    "total_annotations_number": 0,
    "skipped_annotations_number": 0,
}


def order(version: str = "v", image_ids: Sequence[str] = ("2", "1"), **seconds: float) -> PublishedRanking:
    return PublishedRanking(
        version=version, round_id="r000001", image_ids=tuple(image_ids), seconds=seconds, published_at=NOON
    )


class LiveRun:
    """Runs of project 2, which ``/setup`` has connected.

    Attributes:
        rounds: the arguments of each call of ``run_round``.
        during: called with the project instead of a round; its result is in ``found``.
    """

    def __init__(self, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.data_dir = data_dir
        self.store: ProjectStore = RoundStore(data_dir).project(KEY)
        self.rounds: list[tuple[RoundRequest, LiveProject, DistributedLearner, Any]] = []
        self.context: dict[str, Any] = {}
        self.found: Any = None
        self.during: Callable[[LiveProject], object] = lambda _: None
        self.row, self.tasks, self.urls = dict(PROJECT), list[dict[str, Any]](), list[str]()
        self.options: dict[str, Any] = {}
        run = self

        class Client(LabelStudioClient):
            def __init__(self, url: str, api_key: str, **options: Any) -> None:
                run.options = options
                super().__init__(url, api_key, transport=httpx.MockTransport(run._answer), **options)

        monkeypatch.setattr(live, "LabelStudioClient", Client)
        monkeypatch.setattr(live, "run_round", self._run_round)
        RoundStore(data_dir).connect(Connection(project=KEY, hostname="http://told", label_config=AT_SETUP))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.urls.append(str(request.url))
        known: dict[str, Any] = {"/api/tasks": {"tasks": self.tasks, "total": len(self.tasks)}, "/api/ml/": [{"id": 1}]}
        return httpx.Response(200, json=known.get(request.url.path, self.row))

    def _run_round(self, request: RoundRequest, project: LiveProject, learner: Any, strategy: Any) -> RoundResult:
        self.rounds.append((request, project, learner, strategy))
        self.found = self.during(project)
        self.context = get_contextvars()
        report = make_report(request.round_id).model_copy(update={"request": request})
        return RoundResult(report, order())

    def settings(self, **changes: Any) -> Settings:
        defaults = {"label_studio_url": "http://ls", "label_studio_api_key": "k", "device": "cpu"}
        return Settings(data_dir=self.data_dir, **(defaults | changes))

    def __call__(
        self,
        key: ProjectKey = KEY,
        reason: RoundTrigger = "labels",
        learn: Callable[[], RoundTrigger] = lambda: "forced",
        **settings: Any,
    ) -> tuple[RoundReport, PublishedRanking]:
        return live.run_live_round(self.settings(**settings), key, reason, learn=learn)


@pytest.fixture
def run(tmp_path, monkeypatch) -> LiveRun:
    return LiveRun(tmp_path, monkeypatch)


class TestOpenProject:
    def test_the_label_config_is_the_current_one(self, run):
        """The event of its change is lost where the web process was down."""
        assert run()[0].request.classes == ("normal", "severe")

    def test_log_lines_name_the_round_from_its_number_on(self, run):
        """Also the worker's, which logs how it ended."""
        report, _ = run()

        assert run.context["round"] == get_contextvars()["round"] == report.request.round_id == "r000001"

    def test_outlives_a_restart_of_label_studio(self, run):
        run()

        assert run.options["patience_s"] >= 60

    def test_a_project_that_was_recreated_under_the_same_id(self, run):
        run.row["created_at"] = "2026-12-24T00:00:00Z"

        with pytest.raises(UnknownProject, match=r"project 2\.1795384774 is gone: .* 2\.1798070400"):
            run()

    def test_a_project_that_was_never_connected(self, run):
        with pytest.raises(UnknownProject, match="ml-backend connect --project 3"):
            run(key=ProjectKey(id=3, created=1))

    @pytest.mark.parametrize(
        ("settings", "host"),
        [
            ({}, "http://ls/"),
            # Only Label Studio can have named its address to a server that asks for a password.
            ({"label_studio_url": None, "basic_auth_user": "al", "basic_auth_pass": "secret"}, "http://told/"),
        ],
        ids=["of the settings", "of the setup"],
    )
    def test_label_studio_is_found(self, run, settings, host):
        run(**settings)

        assert all(url.startswith(host) for url in run.urls)

    def test_the_key_goes_to_no_host_that_anybody_may_have_named(self, run):
        with pytest.raises(SettingsError, match="Set AL_LABEL_STUDIO_URL"):
            run(label_studio_url=None)


class TestLearner:
    """That several processes change nothing is tested in test_distributed.py."""

    @pytest.fixture
    def made(self, monkeypatch) -> list[dict[str, Any]]:
        """The arguments of each network."""
        found: list[dict[str, Any]] = []

        class Noted(McDropoutLearner):
            def __init__(self, **arguments: Any) -> None:
                found.append(arguments)
                super().__init__(**arguments)

        monkeypatch.setattr(live, "McDropoutLearner", Noted)
        return found

    @pytest.mark.parametrize(
        ("retrain", "saved", "warm"), [("scratch", True, False), ("warm", True, True), ("warm", False, False)]
    )
    def test_continues_from_the_newest_network_where_the_owner_wants_it(
        self, run, made, monkeypatch, *, retrain, saved, warm
    ):
        monkeypatch.setenv("AL_RETRAIN", retrain)
        network = run.store.folder / "rounds" / "r000001"
        if saved:
            run.store.save(make_report("r000001"), None, FakeLearner())
            run.store.save(make_report("r000002"), None, None)
            (network / "model.txt").rename(network / "model.safetensors")

        run(cache_gb=0.5)

        assert made[0]["warm_from"] == (network if warm else None)
        assert made[0]["cache_limit_bytes"] == 500_000_000

    def test_may_share_out_its_work(self, run):
        run()

        [(_, _, learner, _)] = run.rounds
        assert isinstance(learner, DistributedLearner)

    def test_a_seed_replicate_has_another_seed_and_the_same_folds(self, run, monkeypatch):
        seeds = []
        monkeypatch.setattr(
            live, "make_learner", lambda _, options, folds, __: seeds.append((options.seed, folds.keywords["seed"]))
        )

        with live.open_project(run.settings(), KEY) as context:
            for replicate in (False, True):
                context.learner(ProjectOptions(seed=4), no_progress, replicate=replicate)

        assert seeds == [(4, 4), (derive(4, "twin"), 4)]


class TestTopUp:
    def test_without_a_ranking(self, run):
        with pytest.raises(EmptyPool, match="no ranking to top up"):
            run(reason="topup")

    def test_where_enough_is_left_the_last_round_is_returned(self, run):
        """Two images are served, of a pool without others."""
        run.store.save(make_report(), None, None)
        run.store.set_published(order())

        run.row["maximum_annotations"] = 1
        run.store.set_asked_again([5])  # before re-reads were switched off

        assert run(reason="topup") == (make_report(), order())
        assert run.rounds == []
        assert run.store.asked_again() == ()

    @pytest.mark.parametrize(
        ("skips", "served"),
        [([], (("1", "2"), ("1", "2"))), ([{"id": 5, "was_cancelled": True}], (("1", "2"), ("1",)))],
    )
    def test_what_was_put_next_is_served_first_and_the_round_stays_as_it_was(self, run, monkeypatch, skips, served):
        """The last pick in front; image 9 is not the project's, and a skipped one keeps its place behind the others."""
        run.tasks = [{"id": n, "data": {"image": f"http://films.example/{n}.png"}, "annotations": []} for n in (1, 2)]
        run.tasks[1]["annotations"] = skips
        run.row["task_number"] = 2
        run.store.save(make_report(), None, None)
        run.store.set_published(order())
        for picked in (("1",), ("2", "9"))[:: 1 if skips else -1]:
            run.store.add_hand_pick(HandPick(at=NOON, by="owner", like="2", image_ids=picked))
        published = []

        def publish(self: object, report: RoundReport, guard: object) -> PublishedRanking:
            published.append(report.ranking)
            return order(delete=1.0)

        monkeypatch.setattr(LabelStudioPublisher, "publish", publish)
        run(reason="topup")

        assert [(one.image_ids, one.by_hand) for one in published] == [served]
        assert run.store.report("r000001") == make_report()


class TestCopies:
    """Images with equal bytes are known as such once a round has read them."""

    TASKS: ClassVar[list[dict[str, Any]]] = [
        {"id": n, "data": {"image": f"http://films.example/{n}.png"}, "annotations": []} for n in (1, 2, 3)
    ]

    @pytest.fixture
    def served(self, run: LiveRun) -> ProjectStore:
        """Three images are served; the round reads them, and 1 and 3 are equal."""

        def read(project: LiveProject) -> list[str]:
            hashes = DiskCache(run.data_dir / "cache" / "images" / "hashes")
            for number, digest in ((1, b"x"), (2, b"y"), (3, b"x")):
                hashes.put(f"http://films.example/{number}.png", digest)
            return [image.id for image in project.labels.unlabelled()[0]]

        run.during, run.tasks = read, self.TASKS
        run.row["task_number"] = 3
        ranking = Ranking(strategy="random", image_ids=("3", "2", "1"), scores=(0.9, 0.5, 0.1), batch_size=1)
        run.store.save(make_report().model_copy(update={"ranking": ranking}), None, None)
        run.store.set_published(order(image_ids=("3", "2", "1")))
        return run.store

    def test_leave_the_order_and_the_next_pool(self, run, served, monkeypatch):
        published = []

        def publish(self: object, report: RoundReport, guard: object) -> PublishedRanking:
            published.append(report.ranking.image_ids)
            return order(image_ids=report.ranking.image_ids)

        monkeypatch.setattr(LabelStudioPublisher, "publish", publish)
        _, now = run()
        assert published == [("2", "1")]
        assert now.image_ids == ("2", "1")

        run()
        assert run.found == ["1", "2"]
        assert len(published) == 1

    def test_a_label_studio_that_refuses_makes_no_round_fail(self, run, served, monkeypatch):
        def publish(*_: object) -> PublishedRanking:
            raise RequestRefused("busy", 500)

        monkeypatch.setattr(LabelStudioPublisher, "publish", publish)

        with capture_logs() as logs:
            run()
        assert [one["event"] for one in logs if one["log_level"] == "warning"] == [
            "useless images stay in the order for now"
        ]


class Reader(FakeLearner):
    """Reads images, and prepares nothing."""

    def __init__(self, source: ImageSource) -> None:
        super().__init__()
        self._source = source

    def prepare(self, images: Sequence[ImageRef]) -> None:
        for image in images:
            with suppress(ImageError):
                self._source.fetch(image)


class TestUnreadableImages:
    """Rounds of a random start over three images."""

    @pytest.fixture
    def start(self, run: LiveRun, monkeypatch, tmp_path):
        """Runs a round with these images unreadable, so many seconds after noon: the ids that are published."""
        lost, now = set[str](), [NOON]
        for number in (1, 2, 3):
            Image.fromarray(np.full((32, 32), number, np.uint8)).save(tmp_path / f"{number}.png")
        usual = run._answer

        def answer(request: httpx.Request) -> httpx.Response:
            if not request.url.path.startswith("/data/"):
                return usual(request)
            if (number := request.url.path[-5]) in lost:
                return httpx.Response(404)
            return httpx.Response(200, content=(tmp_path / f"{number}.png").read_bytes())

        def publish(_self: object, report: RoundReport, _guard: object) -> PublishedRanking:
            orders.append("".join(sorted(report.ranking.image_ids)))
            round_id = report.request.round_id
            return order(image_ids=report.ranking.image_ids, delete=0.1).model_copy(update={"round_id": round_id})

        orders = list[str]()
        run.tasks = [{"id": n, "data": {"image": f"/data/upload/2/{n}.png"}, "annotations": []} for n in (1, 2, 3)]
        run.row["task_number"] = 3
        monkeypatch.setattr(run, "_answer", answer)
        monkeypatch.setattr(live, "run_round", run_round)
        monkeypatch.setattr(live, "is_lost", lambda _: False)
        monkeypatch.setattr(live, "Quarantine", lambda folder: Quarantine(folder, lambda: now[0]))
        monkeypatch.setattr(LabelStudioPublisher, "publish", publish)
        monkeypatch.setattr(live.ProjectContext, "learner", lambda context, *_, **_more: Reader(context.images))

        def start(unreadable: str, after_s: float = 0.0) -> list[str]:
            lost.clear()
            lost.update(unreadable)
            now[0] = NOON + timedelta(seconds=after_s)
            orders.clear()
            run(reason="forced")
            return list(orders)

        return start

    def test_leave_the_order_until_they_can_be_read(self, run, start):
        assert start("2") == ["123", "13"]
        assert start("2", 1) == ["13"]
        assert [one.image_id for one in run.store.report("r000002").exclusions] == ["2"]
        assert start("2", 61) == ["13"]
        assert start("", 999) == ["123"]
        assert start("", 1000) == ["123"]

    def test_readers_go_on_where_none_can_be_read(self, start):
        assert [start("123", after_s) for after_s in (0, 1, 999)] == [["123"]] * 3
        assert start("", 9999) == ["123"]


def test_annotations_are_counted_whether_they_can_be_read_or_not(run):
    answers = [{"id": 1, "was_cancelled": True, "result": []}, {"id": 2, "result": "damaged"}]
    run.tasks = [{"id": 1, "data": {"image": "http://films.example/1.png"}, "annotations": answers}]
    run.row["task_number"], run.during = 1, LiveProject.annotation_counts

    run()

    assert run.found == {"1": 2}


class TestServedRound:
    """A round with the inputs of the one that is served."""

    @pytest.fixture
    def served(self, run) -> PublishedRanking:
        """A published round with the digest "same", which has learned from one annotation."""
        run.store.save(make_report().model_copy(update={"inputs": "same"}), None, None)
        ReadingStore(run.store.folder).keep_learned("r000001", {"1.1": "a"})
        run.store.set_published(order(delete=0.1))
        run.row["model_version"] = "v"
        return order(delete=0.1)

    def test_counts_changes_from_the_annotations_of_now(self, run, served):
        """The label is the same though the annotation behind it is another: it must not count as a change for ever."""

        def read(project: LiveProject) -> Any:
            assert project.labels.annotations() == []
            return project.served_round("same")

        run.during = read
        run()

        assert run.found[1] == served
        assert ReadingStore(run.store.folder).changes_since("r000001", {}) == 0

    @pytest.mark.parametrize(
        ("version", "digest"), [("of somebody else", "same"), ("v", "other")], ids=["another order", "other inputs"]
    )
    def test_none_where_label_studio_serves_another_order_or_inputs_differ(self, run, served, version, digest):
        run.row["model_version"] = version
        run.during = lambda project: project.served_round(digest)

        run()

        assert run.found is None


@pytest.fixture
def ranked(run, monkeypatch) -> dict[str, Any]:
    """A published round by entropy with its passes, which has learned from one annotation; what is reranked."""
    options = ProjectOptions(strategy="entropy", passes=2, backbone="resnet18", weights="none", image_side=32)
    request = make_request(
        project=KEY,
        classes=("normal", "severe"),
        strategy="entropy",
        batch_size=20,
        options=options.model_dump(mode="json"),
    )
    report = make_report().model_copy(update={"request": request, "fit": make_fit()})
    passes = PoolPredictions(("2", "1"), ("normal", "severe"), np.full((2, 2, 2), 0.5, dtype=np.float32))
    ReadingStore(run.store.folder).keep_learned("r000001", {"1.1": "a"})
    run.store.save(report, passes, None)
    run.store.set_published(order(delete=0.1))
    found: dict[str, Any] = {}

    def rerank(
        request: RoundRequest, base: RoundReport, project: LiveProject, scorer: Any, strategy: Any, *, learner: Any
    ) -> RoundResult:
        found.update(request=request, base=base, project=project, scorer=scorer, strategy=strategy)
        reranked = make_report("r000002").model_copy(update={"request": request, "base": "r000001"})
        project.save(reranked, passes, None, ProjectData([], Consensus(()), [], []))
        return RoundResult(report, order())

    monkeypatch.setattr(live, "rerank", rerank)
    return found


class TestRerank:
    """Another strategy at once; how it ranks is tested in test_reuse.py."""

    def test_without_a_ranking(self, run):
        with pytest.raises(EmptyPool, match="no ranking to top up"):
            run(reason="rerank")

    def test_nothing_is_done_where_the_order_is_as_chosen(self, run, ranked):
        """A round that ran meanwhile may have ranked so already."""
        report, _ = run(reason="rerank")

        assert report.request.round_id == "r000001"
        assert run.store.round_ids() == ["r000001"]
        assert (ranked, run.rounds) == ({}, [])

    def test_takes_from_the_new_options_only_what_ranks(self, run, ranked, monkeypatch):
        """``passes`` has changed too, and takes effect with the next training: the passes were drawn before."""
        monkeypatch.setenv("AL_STRATEGY", "bald")
        monkeypatch.setenv("AL_CONTROL_SHARE", "0.25")
        monkeypatch.setenv("AL_PASSES", "9")

        run(reason="rerank")

        request = ranked["request"]
        assert (request.strategy, request.control_share, request.reason) == ("bald", 0.25, "rerank")
        assert request.round_id == "r000002"
        assert (request.options["strategy"], request.options["passes"]) == ("bald", 2)
        assert isinstance(ranked["scorer"], StoredPasses)
        assert ranked["strategy"].name == "bald"
        assert ranked["base"] == run.store.report("r000001")

    def test_has_learned_from_no_more_than_its_base(self, run, ranked, monkeypatch):
        """Labels of since then still count as changes; what the page needs is kept as of any round."""
        monkeypatch.setenv("AL_STRATEGY", "bald")

        run(reason="rerank")

        assert ReadingStore(run.store.folder).changes_since("r000002", {"1.1": "a", "2.2": "b"}) == 1
        insight = run.store.record("r000002", INSIGHT, RoundInsight)
        assert insight is not None
        assert insight.images == 2

    def test_one_that_was_saved_is_published_and_not_ranked_again(self, run, ranked, monkeypatch):
        monkeypatch.setenv("AL_STRATEGY", "bald")
        request = run.store.report("r000001").request.model_copy(
            update={"strategy": "bald", "round_id": "r000002", "reason": "rerank"}
        )
        saved = make_report("r000002").model_copy(update={"request": request, "base": "r000001"})
        run.store.save(saved, None, None)
        published: list[RoundReport] = []

        def publish(_self: object, report: RoundReport, _guard: Callable[[], None]) -> PublishedRanking:
            published.append(report)
            return order("w")

        monkeypatch.setattr(LabelStudioPublisher, "publish", publish)

        run(reason="rerank")

        assert (published, ranked) == ([saved], {})

    def test_other_classes_wait_for_the_next_round(self, run, ranked, monkeypatch):
        monkeypatch.setenv("AL_STRATEGY", "bald")
        run.row["label_config"] = CHOICES.format('<Choice value="normal"/><Choice value="worse"/>')

        report, _ = run(reason="rerank")

        assert (report.request.round_id, ranked) == ("r000001", {})


class TestRerankAfterAnUpgrade:
    """Passes and network of a version with other formats: nothing is ranked anew, and one line says why."""

    @pytest.fixture
    def folder(self, run, ranked, monkeypatch) -> Path:
        """Of a round whose passes and network are of other formats; its owner has chosen another strategy."""
        folder: Path = run.store.folder / "rounds" / "r000001"
        with np.load(folder / "outputs.npz") as arrays:
            kept = dict(arrays)
        np.savez(folder / "outputs.npz", **(kept | {"format": np.array(0)}))
        self.save_network(folder, monkeypatch, version=0)
        monkeypatch.setenv("AL_STRATEGY", "bald")
        return folder

    @staticmethod
    def save_network(folder: Path, monkeypatch: pytest.MonkeyPatch, version: int) -> None:
        options = ProjectOptions(strategy="entropy", passes=2, backbone="resnet18", weights="none", image_side=32)
        network = McDropoutClassifier(2, Backbone("resnet18"), dropout=options.dropout)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "_VERSION", version)
            checkpoint.save_checkpoint(
                folder / checkpoint.FILE_NAME, network, ("normal", "severe"), options, 0, frozen_backbone=True
            )

    @staticmethod
    def warning(logs):
        [line] = [line for line in logs if line["log_level"] == "warning"]
        return line

    @pytest.mark.parametrize("strategy", ["bald", "core_set"])
    def test_a_round_that_trains_takes_its_place(self, run, ranked, folder, monkeypatch, strategy):
        monkeypatch.setenv("AL_STRATEGY", strategy)
        learned: list[str] = []

        def learn() -> RoundTrigger:
            learned.append("changes taken")
            return "connected"

        with capture_logs() as logs:
            report, _ = run(reason="rerank", learn=learn)

        assert (report.request.strategy, report.request.reason, ranked) == (strategy, "connected", {})
        assert learned == ["changes taken"]
        assert run.context["round"] == report.request.round_id
        line = self.warning(logs)
        assert line["event"] == "the last network cannot rank again: a round with training takes its place"
        assert ("outputs.npz is of format 0" in line["why"]) == (strategy == "bald")
        assert "was made for version 0, not 1" in line["why"]

    def test_while_the_rounds_are_paused_it_waits(self, run, ranked, folder):
        Pause(run.store.folder).begin(20)

        with capture_logs() as logs:
            report, _ = run(reason="rerank")

        assert (report.request.round_id, ranked, run.rounds) == ("r000001", {}, [])
        assert self.warning(logs)["event"] == "what the owner has chosen takes effect with the next round"

    def test_a_network_that_can_be_used_predicts_again(self, run, ranked, folder, monkeypatch):
        self.save_network(folder, monkeypatch, version=1)

        with capture_logs() as logs:
            run(reason="rerank")

        assert isinstance(ranked["scorer"], DistributedLearner)
        line = self.warning(logs)
        assert line["event"] == "the network looks at the images once more, since its passes cannot be used"
        assert "outputs.npz is of format 0" in line["why"]

    def test_options_that_this_version_does_not_know(self, run, ranked, monkeypatch):
        """The passes could be read, but not what they were made with."""
        monkeypatch.setenv("AL_STRATEGY", "bald")
        made = run.store.report("r000001")
        request = made.request.model_copy(update={"options": {**made.request.options, "samples": 3}})
        write_ranking(run.store.folder / "rounds/r000001" / RANKING, made.model_copy(update={"request": request}))

        with capture_logs() as logs:
            report, _ = run(reason="rerank")

        assert (report.request.reason, ranked) == ("forced", {})
        assert self.warning(logs)["why"] == "the options of round r000001 are not those of this version (1 mistakes)"


class TestSaveAndPublish:
    def test_what_a_round_learned_from_is_noted_before_it_is_saved(self, run, monkeypatch):
        """A served round without the note could not say what changed since."""
        data = ProjectData([], Consensus(()), [], [])
        monkeypatch.setattr(LabelStudioLabels, "states", lambda _: {"1.1": "a"})
        run.during = lambda project: project.save(make_report(), None, None, data)
        run()

        readings = ReadingStore(run.store.folder)
        assert run.store.round_ids() == ["r000001"]
        assert readings.changes_since("r000001", {"1.1": "a", "2.2": "b"}) == 1

        def full_disk(*_: object) -> None:
            raise StorageError("no space left")

        monkeypatch.setattr(ReadingStore, "keep_learned", full_disk)
        run.during = lambda project: project.save(make_report("r000002"), None, None, data)
        with pytest.raises(StorageError):
            run()
        assert run.store.round_ids() == ["r000001"]

    def test_keeps_what_networks_predict_for_images_that_they_were_not_trained_on(self, run):
        image = HeldOutImage(image_id="4", label="severe", probs={"normal": 0.9, "moderate": 0.1, "severe": 0.0})
        fit = make_fit().model_copy(update={"held_out": (image,)})
        report = make_report().model_copy(update={"fit": fit})
        probs = np.full((2, 4, 3), 1 / 3, np.float32)
        predictions = PoolPredictions(report.ranking.image_ids[:2], tuple(image.probs), probs)
        data = ProjectData([], Consensus(()), [], [])
        run.during = lambda project: project.save(report, predictions, None, data)
        run()

        kept = run.store.record("r000001", HELD_OUT, HeldOutPredictions)
        assert kept is not None
        assert [(one.predicted, one.label) for one in kept.disagreements()] == [("normal", "severe")]
        keep_previews(run.store, report)
        previews = run.store.record("r000001", PREVIEWS, StrategyPreviews)
        assert previews is not None
        assert {one.image_id for one in previews.first["bald"]} == set(predictions.image_ids)
        assert b"held_out" not in (run.store.folder / "rounds/r000001/report.json").read_bytes()

    def test_a_published_order_notes_how_many_annotations_there_were(self, run, monkeypatch):
        run.row |= {"total_annotations_number": 5, "skipped_annotations_number": 2}
        monkeypatch.setattr(LabelStudioPublisher, "publish", lambda *_: order())
        run.during = lambda project: project.publish(make_report())

        run()

        assert run.found.annotations == 7
        assert run.store.published() == run.found

    def test_of_two_threads_one_publishes_at_a_time(self, run, monkeypatch):
        """A top-up, while the round publishes."""
        entered, leave, active = threading.Event(), threading.Event(), list[int]()

        def publish(*_: object) -> PublishedRanking:
            active.append(len(active) + 1)
            entered.set()
            assert leave.wait(30)
            return order()

        def both(project: LiveProject) -> None:
            threads = [threading.Thread(target=project.publish, args=(make_report(),)) for _ in range(2)]
            for thread in threads:
                thread.start()
            assert entered.wait(30)
            time.sleep(0.05)
            assert len(active) == 1
            leave.set()
            for thread in threads:
                thread.join(30)

        monkeypatch.setattr(LabelStudioPublisher, "publish", publish)
        run.during = both

        run()

        assert len(active) == 2


class TestSeedNoise:
    """A seed replicate of the round's network, trained when readers have their order."""

    @pytest.fixture
    def made(self, run, monkeypatch) -> list[tuple[FakeLearner, bool]]:
        """Learners, and whether they are replicates, of rounds that train."""
        found: list[tuple[FakeLearner, bool]] = []

        def learner(_context, _options, _progress, _warm_from=None, *, replicate=False, **_more):
            found.append((FakeLearner(), replicate))
            return found[-1][0]

        def run_on_fakes(request, project, learner, strategy):
            project.labels = FakeLabels(
                [make_annotation(n, CLASSES[n % 3]) for n in range(12)], [make_image(n) for n in range(100, 110)]
            )
            project.labels.states = dict
            project.labels.images = list
            project.consensus = one_reader
            return run_round(request.model_copy(update={"classes": CLASSES}), project, learner, strategy)

        def publish(_self: object, report: RoundReport, _guard: object) -> PublishedRanking:
            return order(delete=0.1).model_copy(update={"round_id": report.request.round_id})

        monkeypatch.setattr(live.ProjectContext, "learner", learner)
        monkeypatch.setattr(live, "run_round", run_on_fakes)
        monkeypatch.setattr(LabelStudioPublisher, "publish", publish)
        monkeypatch.setenv("AL_WEIGHTS", "none")
        monkeypatch.setenv("AL_MIN_LABELS_PER_CLASS", "2")
        return found

    @pytest.mark.parametrize(("every", "expected"), [(1, ["r000001", "r000002"]), (2, ["r000002"]), (0, [])])
    def test_is_measured_after_every_so_many_trained_rounds(self, run, made, monkeypatch, every, expected):
        monkeypatch.setenv("AL_NOISE_EVERY", str(every))

        for _ in range(2):
            run(reason="forced")

        assert run.store.rounds_with(NOISE) == expected
        assert [one.round_id for one in stored_snapshots(run.store)] == ["r000001", "r000002"]
        # The fake predicts by the image alone: replicates agree on all ten.
        assert {noise.agreed for noise in stored_noise(run.store, expected).values()} <= {1.0}
        assert [one.fits for one, replicate in made if replicate] == [made[0][0].fits] * len(expected)

    def test_a_round_that_trains_nothing_measures_nothing(self, run, made, monkeypatch):
        monkeypatch.setenv("AL_NOISE_EVERY", "1")
        monkeypatch.setenv("AL_MIN_LABELS_PER_CLASS", "9")

        run()

        assert [replicate for _, replicate in made] == [False]
        assert run.store.rounds_with(NOISE) == []


@pytest.mark.parametrize(("cold_start", "rounds"), [("random", 1), ("typiclust", 2)])
def test_a_typical_order_follows_the_first_random_one_at_once(run, monkeypatch, cold_start, rounds):
    monkeypatch.setenv("AL_COLD_START", cold_start)

    def publish(project: LiveProject) -> bool:
        had_order = project.has_order()
        run.store.set_published(order())
        seen.append(had_order)
        return had_order

    seen: list[bool] = []
    run.during = publish
    run()

    assert seen == [False, True][:rounds]
    assert [request.cold_start for request, *_ in run.rounds] == [cold_start] * rounds
    assert len({request.round_id for request, *_ in run.rounds}) == rounds
