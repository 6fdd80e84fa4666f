"""The decision table: which round a project needs next."""

from dataclasses import replace

import pytest

from ml_backend.config import ProjectOptions
from ml_backend.scheduling.policy import (
    NOTHING,
    RULES,
    Action,
    AnnotationsChanged,
    Compared,
    Connected,
    Event,
    LastError,
    Pressed,
    ProjectState,
    ProjectUpdated,
    QueueStatus,
    RoundEnded,
    SettingsChange,
    TasksImported,
    Tick,
    TrainingStarted,
    decide,
    threshold,
)
from ml_backend.schemas import PublishedRanking, RoundTrigger
from tests.fakes import NOON

OPTIONS = ProjectOptions()  # batch_size 20, reserve 80: 100 images are published, and 40 must be left
TWO = PublishedRanking(version="v", round_id="r000001", image_ids=("1", "2"), seconds={}, published_at=NOON)
HUNDRED = TWO.model_copy(update={"image_ids": tuple(map(str, range(100))), "annotations": 7})
DUE = QueueStatus(changes=20, threshold=20)
CHANGED = SettingsChange(changed=True)
IDLE_CONNECTED = Action("connected", only_if_idle=True)


def failed(kind: str = "LabelStudioError", reason: RoundTrigger | None = None, at: float = 0.0) -> QueueStatus:
    """A queue whose last round failed, and whose reason was not stored unless it is given."""
    return QueueStatus(last_error=LastError(kind=kind, message="m", at=at), error_reason=reason)


def after(
    event: Event,
    queue: QueueStatus = QueueStatus(),  # noqa: B008 - frozen
    published: PublishedRanking | None = TWO,
    options: ProjectOptions | None = OPTIONS,
    *,
    paused: bool = False,
) -> Action:
    return decide(ProjectState(queue, published, paused), event, options)


class TestDue:
    @pytest.mark.parametrize(
        ("status", "due"),
        [
            (QueueStatus(changes=19, threshold=20), False),
            (DUE, True),
            (QueueStatus(changes=1000, threshold=0), False),  # rounds do not start by themselves
            (DUE.model_copy(update={"not_before": 30.0, "read_at": 29.9}), False),  # in the pause after a failure
            (DUE.model_copy(update={"not_before": 30.0, "read_at": 30.0}), True),
        ],
    )
    def test_changes_reach_the_threshold(self, status, due):
        assert status.due is due

    @pytest.mark.parametrize(
        ("options", "automatic", "paused", "number"),
        [
            (ProjectOptions(retrain_after=3), True, False, 3),
            (ProjectOptions(retrain_after=3), False, False, 0),
            (ProjectOptions(retrain_after=3), True, True, 0),
            (None, True, False, None),  # a mistake in the options keeps the former number
            (None, True, True, 0),
        ],
    )
    def test_threshold(self, options, automatic, paused, number):
        assert threshold(options, automatic=automatic, paused=paused) == number


class TestAnnotationsChanged:
    @pytest.mark.parametrize(
        ("annotations", "queue", "published", "action"),
        [
            (None, QueueStatus(changes=19, threshold=20), TWO, NOTHING),
            (None, DUE, TWO, Action("labels")),
            (7 + 60, QueueStatus(), HUNDRED, NOTHING),  # 40 are left
            (7 + 61, QueueStatus(), HUNDRED, Action("topup")),
            (7 + 61, DUE, HUNDRED, Action("labels")),  # labels that earned a round come first
            (7 + 98, QueueStatus(), HUNDRED.model_copy(update={"image_ids": HUNDRED.image_ids[1:]}), NOTHING),  # all
            (7 + 98, QueueStatus(), HUNDRED.model_copy(update={"rereads": ("1",)}), NOTHING),  # likewise
            (1000, QueueStatus(), HUNDRED.model_copy(update={"annotations": None}), NOTHING),  # not known
            (1000, QueueStatus(), None, NOTHING),
        ],
    )
    def test_starts_a_round_or_a_top_up(self, annotations, queue, published, action):
        assert after(AnnotationsChanged(annotations), queue, published) == action

    @pytest.mark.parametrize("options", [None, ProjectOptions(reserve="all")])
    def test_without_a_reserve_nothing_runs_low(self, options):
        assert after(AnnotationsChanged(7 + 99), published=HUNDRED, options=options) == NOTHING

    def test_in_a_pause_readers_get_images(self):
        assert after(AnnotationsChanged(7 + 61), published=HUNDRED, paused=True) == Action("topup")


class TestTasksImported:
    @pytest.mark.parametrize(
        ("annotated", "queue", "published", "paused", "request_"),
        [
            (0, QueueStatus(), None, False, "images"),  # the first images
            (0, QueueStatus(), None, True, "topup"),
            (0, QueueStatus(changes=1), TWO, False, None),  # a ranking is served
            (0, QueueStatus(changes=2), TWO, False, "images"),  # it has run out
            (0, QueueStatus(changes=2), TWO, True, "topup"),
            (0, QueueStatus(changes=2, running="labels"), TWO, False, None),
            (0, failed("EmptyPool"), TWO, False, "images"),
            (0, failed("UnusablePool"), TWO, False, "images"),
            (0, failed("WeightsError"), TWO, False, None),
            (1, DUE, HUNDRED, False, "labels"),
            (0, DUE, HUNDRED, False, None),
        ],
    )
    def test_ranks_new_images_once_nothing_else_is_served(self, annotated, queue, published, paused, request_):
        assert after(TasksImported(annotated), queue, published, paused=paused).request == request_


class TestTrainingStarted:
    @pytest.mark.parametrize(
        ("annotations", "every", "known", "request_"),
        [
            (None, None, None, "forced"),
            (5, 0, 4, "forced"),  # the toggle is off: only the button sends it
            (5, 1, 5, "forced"),  # the annotation was announced before
            (5, 1, 4, None),  # ahead of an annotation's own event
            (6, 2, 5, None),
            (5, 2, 4, "forced"),
            (9, 1_000_000_000, 4, "forced"),
            (5, 1, None, "forced"),
        ],
    )
    def test_the_button_forces_a_round(self, annotations, every, known, request_):
        assert after(TrainingStarted(annotations, every), QueueStatus(annotations=known)).request == request_


FIRST_TRAINING = SettingsChange(changed=True, training=True, cold_start=True)
NEW_ORDER = SettingsChange(changed=True, ranking=True, rerank_due=True)
SETTINGS: list[tuple[SettingsChange, QueueStatus, bool, Action]] = [
    (SettingsChange(), QueueStatus(), False, NOTHING),
    (SettingsChange(), failed(), False, NOTHING),
    (CHANGED, failed(), False, Action("connected")),  # the owner may have mended the cause
    (CHANGED, failed(), True, NOTHING),
    (CHANGED, failed(reason="rerank"), False, NOTHING),
    (CHANGED, QueueStatus(), False, NOTHING),
    (FIRST_TRAINING, QueueStatus(), False, Action("connected")),
    (FIRST_TRAINING, QueueStatus(), True, NOTHING),
    (replace(FIRST_TRAINING, cold_start=False), QueueStatus(), False, NOTHING),  # the next training uses them
    (NEW_ORDER, QueueStatus(), False, Action("rerank")),
    (NEW_ORDER, QueueStatus(), True, Action("rerank")),  # it trains nothing
    (NEW_ORDER, failed(reason="rerank"), False, Action("rerank")),
    (replace(NEW_ORDER, rerank_due=False), QueueStatus(), False, NOTHING),
    (replace(NEW_ORDER, rerank_due=False), QueueStatus(running="labels"), False, Action("rerank")),
    (replace(FIRST_TRAINING, ranking=True, rerank_due=True), QueueStatus(), False, Action("connected")),
    (replace(FIRST_TRAINING, ranking=True, rerank_due=True), QueueStatus(), True, Action("rerank")),
]


class TestSettings:
    @pytest.mark.parametrize(("settings", "queue", "paused", "action"), SETTINGS)
    def test_once_a_ranking_is_served(self, settings, queue, paused, action):
        assert after(Connected(settings), queue, paused=paused) == action
        assert after(ProjectUpdated(settings), queue, paused=paused) == action

    @pytest.mark.parametrize("settings", [SettingsChange(), CHANGED, FIRST_TRAINING, NEW_ORDER])
    def test_before_the_first_ranking(self, settings):
        assert after(Connected(settings), published=None) == IDLE_CONNECTED
        assert after(Connected(settings), published=None, paused=True) == NOTHING
        assert after(ProjectUpdated(settings), published=None) == NOTHING

    @pytest.mark.parametrize(("switched_on", "action"), [(True, Action("labels")), (False, NOTHING)])
    def test_the_toggle_is_switched_on_with_enough_changes(self, switched_on, action):
        """The publisher changes the model version of the project: that starts nothing."""
        assert after(ProjectUpdated(switched_on=switched_on), DUE) == action


SAVED = Compared(newest_round="r000002", left=100)
LOW = Compared(newest_round="r000001", left=39, readable=True, unpublished=True)
RERANK = Compared(newest_round="r000001", left=100, readable=True, rerank_due=True)
LABELS = Compared(newest_round="r000001", left=100, labels_differ=True)
COMPARISONS: list[tuple[Compared, QueueStatus, Action]] = [
    (Compared(newest_round="r000001", left=100), QueueStatus(changes=3, threshold=20), NOTHING),
    (replace(RERANK, unpublished=True, left=0), DUE, Action("labels")),
    # Ground truths count otherwise now.
    (LABELS, QueueStatus(), Action("labels")),
    (LABELS, failed(), NOTHING),
    (replace(LABELS, automatic=False), QueueStatus(), NOTHING),
    # The last round found no image to rank.
    (Compared(image_may_be_read=True, newest_round="r000001"), failed("EmptyPool"), Action("images")),
    (Compared(image_may_be_read=False, newest_round="r000001"), failed("EmptyPool"), NOTHING),
    (Compared(images_changed=True), failed("UnusablePool"), Action("images")),
    (Compared(image_may_be_read=True, now=599.0), failed("UnusablePool"), NOTHING),
    (Compared(image_may_be_read=True, now=600.0), failed("UnusablePool"), Action("images")),
    (Compared(image_may_be_read=True), failed("LabelStudioError"), NOTHING),
    (Compared(image_may_be_read=True, newest_round="r000001"), QueueStatus(), Action("images")),
    (Compared(image_may_be_read=True, readable=True, newest_round="r000001"), QueueStatus(), NOTHING),
    # Another order was chosen.
    (RERANK, QueueStatus(), Action("rerank", only_if_idle=True, otherwise=NOTHING)),
    (replace(RERANK, readable=False), QueueStatus(), NOTHING),
    (replace(RERANK, left=0, unpublished=True), failed(), Action("rerank", True, otherwise=Action("topup"))),
    (replace(RERANK, newest_round="r000002"), QueueStatus(), Action("rerank", True, otherwise=IDLE_CONNECTED)),
    # A round is saved, and not published.
    (SAVED, QueueStatus(), IDLE_CONNECTED),
    (SAVED, failed(), NOTHING),
    (replace(LOW, newest_round="r000002"), QueueStatus(), IDLE_CONNECTED),
    (replace(LOW, newest_round="r000002"), failed(), Action("topup")),
    # The published images run out, or readers are not served them.
    (LOW, QueueStatus(), Action("topup")),
    (replace(LOW, left=40), QueueStatus(), NOTHING),
    (replace(LOW, unpublished=False), QueueStatus(), NOTHING),
    (Compared(left=100, readable=True, copy_published=True), QueueStatus(), Action("topup")),
    (Compared(left=100, readable=False, copy_published=True), QueueStatus(), NOTHING),
    (Compared(left=100, readable=True, order_lost=True), QueueStatus(), Action("topup")),
    (Compared(left=100, readable=False, order_lost=True), QueueStatus(), NOTHING),
    (Compared(left=0, rereads_ended=True), QueueStatus(), Action("topup")),
    (Compared(left=100, readable=True, picked=True), QueueStatus(), Action("topup")),
]


class TestCompared:
    @pytest.mark.parametrize(("found", "queue", "action"), COMPARISONS)
    def test_once_a_ranking_is_served(self, found, queue, action):
        assert after(found, queue) == action

    @pytest.mark.parametrize(
        ("found", "queue", "action"),
        [
            (Compared(), QueueStatus(), IDLE_CONNECTED),  # lost with Redis
            (Compared(), failed("SettingsError"), NOTHING),  # waits for its owner
            (Compared(readable=True, image_may_be_read=True), failed("EmptyPool"), Action("images")),
        ],
    )
    def test_before_the_first_ranking(self, found, queue, action):
        assert after(found, queue, None) == action
        assert after(found, queue, None, paused=True) == NOTHING

    @pytest.mark.parametrize(
        ("found", "action"),
        [
            (LABELS, NOTHING),
            (SAVED, NOTHING),
            (replace(LOW, image_may_be_read=True), Action("topup")),
            (Compared(left=100, readable=True, order_lost=True), Action("topup")),
            (replace(RERANK, order_lost=True), Action("rerank", only_if_idle=True, otherwise=Action("topup"))),
        ],
    )
    @pytest.mark.parametrize("queue", [DUE, failed("EmptyPool")])
    def test_in_a_pause_nothing_trains_and_readers_are_served(self, found, action, queue):
        assert after(found, queue, paused=True) == action


class TestButtons:
    def test_what_the_owner_asks_for_always_runs(self):
        assert after(Pressed("train"), paused=True) == Action("forced")
        assert after(Pressed("topup"), paused=True) == Action("topup")

    @pytest.mark.parametrize(
        ("queue", "published", "action"),
        [
            (DUE, TWO, Action("labels")),
            (QueueStatus(), TWO, NOTHING),
            (QueueStatus(), None, IDLE_CONNECTED),
            (DUE, None, Action("labels")),
        ],
    )
    def test_the_end_of_a_pause(self, queue, published, action):
        assert after(Pressed("resume"), queue, published) == action


PAUSED_RETRY = QueueStatus(failures=1, retry_reason="images", not_before=15.0, read_at=14.0)


class TestTime:
    @pytest.mark.parametrize(
        ("queue", "action"),
        [
            (QueueStatus(changes=19, threshold=20), NOTHING),
            (DUE, Action("labels")),  # its request was lost
            (DUE.model_copy(update={"running": "labels"}), NOTHING),  # its end requests the next
            (DUE.model_copy(update={"waiting": "labels"}), NOTHING),
            (DUE.model_copy(update={"failures": 1}), NOTHING),  # a failure that time does not mend
            (PAUSED_RETRY, NOTHING),
            (PAUSED_RETRY.model_copy(update={"read_at": 15.0}), Action("images")),
            (PAUSED_RETRY.model_copy(update={"read_at": 15.0, "running": "topup"}), Action("images")),
            (PAUSED_RETRY.model_copy(update={"read_at": 15.0, "waiting": "topup"}), NOTHING),
            (QueueStatus(retry_reason="forced"), Action("forced")),  # its job was lost
        ],
    )
    def test_tick(self, queue, action):
        assert after(Tick(), queue, None) == action
        assert after(Tick(), queue, None, paused=True) == NOTHING

    @pytest.mark.parametrize(("queue", "action"), [(DUE, Action("labels")), (QueueStatus(), NOTHING)])
    def test_end_of_a_round(self, queue, action):
        assert after(RoundEnded(), queue) == action


def test_a_round_that_trains_is_stronger_than_one_that_does_not():
    assert max(rule.strength for rule in RULES.values() if not rule.trains) < min(
        rule.strength for rule in RULES.values() if rule.trains
    )
