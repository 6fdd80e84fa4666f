"""Decides which round a project needs next: ``decide(state, event, options) -> Action``, pure, without I/O or a clock.

Webhook, ``/setup``, reconciler, buttons, queue and worker collect the facts, call ``decide``, and perform the action
with ``RoundQueue.perform``. What must be atomic (one round waits, one runs, no change is lost) is in ``state.lua``.
"""

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias, assert_never

from pydantic import Field

from ml_backend.config import ProjectOptions
from ml_backend.errors import EmptyPool, TooFewLabels, UnknownProject, UnusablePool
from ml_backend.label_studio.publisher import low_water, publication_size, remaining_published
from ml_backend.schemas import FrozenModel, PublishedRanking, RoundTrigger


class Rule(NamedTuple):
    """What a round's reason means to the queue."""

    strength: int  # the stronger of two reasons is that of the one round that waits
    trains: bool = True  # takes the counted changes; a failure is retried after a pause
    ends_pause: bool = False  # the pause after a failure ends when such a round is requested


# A round for "labels" ends early where no label has changed; the reasons above it never do.
RULES: Final[dict[RoundTrigger, Rule]] = {
    "topup": Rule(0, trains=False),
    "rerank": Rule(1, trains=False),
    "labels": Rule(2),
    "images": Rule(3, ends_pause=True),
    "connected": Rule(3, ends_pause=True),
    "forced": Rule(4, ends_pause=True),
}
FIRST_PAUSE_S: Final = 15
"""Between a failure and the next attempt; it doubles with every further failure."""
LONGEST_PAUSE_S: Final = 3600
IDLE_COOLDOWN_S: Final = 60.0
"""After any request, one with ``only_if_idle`` is refused for so long."""
UNUSABLE_POOL_RETRY_S: Final = 600.0
"""A round that finds no usable image may have trained before: unchanged images are not tried every minute."""
# Time alone does not help these: images, labels and connections arrive with an event.
WAITS_FOR_EVENT: Final = (EmptyPool, TooFewLabels, UnknownProject)


class LastError(FrozenModel):
    """Why the last round failed."""

    kind: str  # name of the error's class
    message: str
    at: float  # unix seconds


class Progress(FrozenModel):
    """Position of the running round."""

    generation: int
    stage: str
    done: int
    total: int
    started: float  # unix seconds: the round
    stage_started: float  # unix seconds: the stage
    updated: float  # unix seconds


class QueueStatus(FrozenModel):
    """A project's rounds, as Redis holds them. Times are unix seconds of Redis's clock."""

    changes: int = 0  # annotations changed since the last round took them
    threshold: int = 0  # changes that start a round; 0: rounds do not start by themselves
    annotations: int | None = None  # as Label Studio counted them in its last event
    waiting: RoundTrigger | None = None
    running: RoundTrigger | None = None
    progress: Progress | None = None
    last_error: LastError | None = None  # of the last round, if it failed
    error_reason: RoundTrigger | None = None  # that round's reason
    failures: int = 0  # failed rounds in a row
    next_attempt: float | None = None  # when a failed round is retried; None: not by itself
    rounds_finished: int = 0
    rounds_failed: int = 0
    told_twice_at: float | None = None  # when an event last arrived at a second address
    generation: int = Field(default=0, exclude=True)  # number of the last requested round
    retry_reason: RoundTrigger | None = Field(default=None, exclude=True)  # of the round that is retried
    not_before: float = Field(default=0.0, exclude=True)  # end of the pause after a failure
    read_at: float = Field(default=0.0, exclude=True)

    @property
    def due(self) -> bool:
        """Whether enough annotations have changed to start a round; never in the pause after a failure."""
        # A failed round returns its changes: without the pause every further annotation would start it again.
        return 0 < self.threshold <= self.changes and self.read_at >= self.not_before

    @property
    def ran_out(self) -> bool:
        """Whether the last round found no image to rank; the standing of the project tells whether that is a fault."""
        return self.last_error is not None and self.last_error.kind in (EmptyPool.__name__, UnusablePool.__name__)

    @property
    def failing(self) -> bool:
        """Whether the last round failed for another reason than that every image is labelled."""
        return self.last_error is not None and self.last_error.kind != EmptyPool.__name__

    @property
    def training_failed(self) -> bool:
        """Whether the last round failed, and would have trained."""
        return self.last_error is not None and (self.error_reason is None or RULES[self.error_reason].trains)


@dataclass(frozen=True, slots=True)
class ProjectState:
    """A project when an event arrives.

    Attributes:
        queue: its rounds, read after the event's changes were counted.
        published: the ranking that readers are served; None before the first.
        paused: whether its owner has paused the rounds.
    """

    queue: QueueStatus
    published: PublishedRanking | None = None
    paused: bool = False


@dataclass(frozen=True, slots=True)
class AnnotationsChanged:
    """Annotations were created, changed or deleted. ``annotations``: how many there are now, skips included."""

    annotations: int | None = None


@dataclass(frozen=True, slots=True)
class TasksImported:
    """Tasks were imported, ``annotated`` of them with annotations."""

    annotated: int = 0


@dataclass(frozen=True, slots=True)
class TrainingStarted:
    """Label Studio sent START_TRAINING: its button was pressed, or an annotation is about to be announced.

    Attributes:
        annotations: how many there are now, skips included.
        every: with n, Label Studio sends START_TRAINING ahead of the event of every nth annotation; 0: never.
    """

    annotations: int | None = None
    every: int | None = None


@dataclass(frozen=True, slots=True)
class SettingsChange:
    """Differences between a project's stored label config and options and those just received.

    Attributes:
        changed: whether there is any.
        training: whether the classes or the minimum of labels per class differ.
        ranking: whether the options that rank images differ.
        cold_start: whether the newest round trained no network.
        rerank_due: whether the newest order is not the chosen one, and can be made without training.
    """

    changed: bool = False
    training: bool = False
    ranking: bool = False
    cold_start: bool = False
    rerank_due: bool = False


@dataclass(frozen=True, slots=True)
class Connected:
    """Label Studio called ``/setup``; it does so often, in pairs, and on every view of a settings page."""

    settings: SettingsChange


@dataclass(frozen=True, slots=True)
class ProjectUpdated:
    """The project's row changed. ``switched_on``: rounds did not start by themselves before."""

    settings: SettingsChange = SettingsChange()
    switched_on: bool = False


@dataclass(frozen=True, slots=True)
class Compared:
    """The reconciler compared a project without a running round with Label Studio.

    Attributes:
        automatic: whether the project's toggle lets rounds start by themselves.
        newest_round: id of the newest saved round; empty if there is none.
        left: published images that have no answer yet.
        readable: whether an image that waits for a reader is not in quarantine.
        unpublished: whether one of these is not published.
        copy_published: whether a published image has its answer in another task.
        order_lost: whether Label Studio no longer holds the published order.
        picked: whether an image that the owner put next, and that can be read, was not published as such.
        rereads_ended: whether tasks are open to another reader although the owner has switched re-reads off.
        rerank_due: whether the newest order is not the chosen one, and can be made without training.
        labels_differ: whether labels differ by how ground truths count now.
        images_changed: whether a task that waits has changed since the last comparison.
        image_may_be_read: whether an image that waits is not in quarantine, or is to be tried again.
        now: unix seconds.
    """

    automatic: bool = True
    newest_round: str = ""
    left: int = 0
    readable: bool = False
    unpublished: bool = False
    copy_published: bool = False
    order_lost: bool = False
    picked: bool = False
    rereads_ended: bool = False
    rerank_due: bool = False
    labels_differ: bool = False
    images_changed: bool = False
    image_may_be_read: bool = False
    now: float = 0.0


@dataclass(frozen=True, slots=True)
class Pressed:
    """The owner pressed a button of the project's page."""

    button: Literal["train", "topup", "resume"]


@dataclass(frozen=True, slots=True)
class RoundEnded:
    """A round was published, or failed."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Some seconds have passed."""


Event: TypeAlias = (
    AnnotationsChanged
    | TasksImported
    | TrainingStarted
    | Connected
    | ProjectUpdated
    | Compared
    | Pressed
    | RoundEnded
    | Tick
)


@dataclass(frozen=True, slots=True)
class Action:
    """What is requested of the queue.

    Attributes:
        request: reason of the round to request; None for no round.
        only_if_idle: refused while a round runs, in the pause after a failure, and soon after another request.
        otherwise: the action if this request is refused.
        why: why no round is requested, for Label Studio's log.
    """

    request: RoundTrigger | None = None
    only_if_idle: bool = False
    otherwise: "Action | None" = None
    why: str | None = None


NOTHING: Final = Action()


def threshold(options: ProjectOptions | None, *, automatic: bool, paused: bool) -> int | None:
    """Number of changes that start a round.

    Args:
        options: of the project; None if they cannot be read.
        automatic: whether the project's toggle lets rounds start by themselves.
        paused: whether its owner has paused the rounds.

    Returns:
        0 if changes start no round; None to keep the former number.
    """
    if paused or not automatic:
        return 0
    return None if options is None else options.retrain_after


def decide(  # noqa: C901, PLR0911, PLR0912 - one case an event
    state: ProjectState, event: Event, options: ProjectOptions | None = None
) -> Action:
    """The round that a project needs after an event, if any.

    Args:
        state: of the project.
        event: what happened.
        options: of the project; None if they cannot be read.
    """
    queue, published = state.queue, state.published
    match event:
        case AnnotationsChanged():
            if queue.due:
                return Action("labels")
            low = options is not None and published is not None and _is_low_on_images(published, event, options)
            return Action("topup") if low else NOTHING
        case TasksImported():
            return _on_import(state, event)
        case TrainingStarted():
            if _is_own_write(queue, event):
                return Action(why="Label Studio announces an annotation; its own event follows and counts")
            return Action("forced")
        case Connected(settings):
            if settings.changed and queue.training_failed and not state.paused:
                return Action("connected")
            if published is None:
                return NOTHING if state.paused else Action("connected", only_if_idle=True)
            return _on_settings(state, settings)
        case ProjectUpdated(settings):
            if settings.changed and queue.training_failed and not state.paused:
                return Action("connected")
            if queue.due and event.switched_on:
                return Action("labels")
            return _on_settings(state, settings)
        case Compared():
            return _on_comparison(state, event, options)
        case Pressed():
            if event.button != "resume":
                return Action("forced" if event.button == "train" else "topup")
            if queue.due:
                return Action("labels")
            return Action("connected", only_if_idle=True) if published is None else NOTHING
        case RoundEnded():
            return Action("labels") if queue.due else NOTHING
        case Tick():
            return _on_tick(state)
    assert_never(event)


def _on_import(state: ProjectState, event: TasksImported) -> Action:
    queue, published = state.queue, state.published
    if event.annotated and queue.due:
        return Action("labels")
    used_up = published is not None and queue.running is None and queue.changes >= published.first_reads
    if published is None or queue.ran_out or used_up:
        # In a pause nothing trains, but readers get the new images.
        return Action("topup" if state.paused else "images")
    return Action(why="the ranking that is served has not run out")


def _on_settings(state: ProjectState, settings: SettingsChange) -> Action:
    """The owner has changed options or label config: the first training, or another order, may be possible now."""
    if state.published is None or not settings.changed:
        return NOTHING
    if settings.training and settings.cold_start and not state.paused:
        return Action("connected")
    # A running round may have begun before the change; after it the order is compared again.
    if settings.ranking and (state.queue.running is not None or settings.rerank_due):
        return Action("rerank")
    return NOTHING


def _on_comparison(state: ProjectState, found: Compared, options: ProjectOptions | None) -> Action:
    queue, published = state.queue, state.published
    failed = queue.last_error is not None
    if not state.paused:
        # After a failure the changes alone count, so that the round comes after its pause.
        if queue.due or (found.automatic and found.labels_differ and published is not None and not failed):
            return Action("labels")
        if published is None and not failed:
            return Action("connected", only_if_idle=True)  # the request was lost with Redis
        if (queue.ran_out and _may_find_an_image(queue, found)) or (
            not failed and not found.readable and found.image_may_be_read
        ):
            return Action("images")
    if published is None:
        return NOTHING
    action = Action("topup") if _top_up_is_due(found, options) else NOTHING
    if found.newest_round > published.round_id and not failed and not state.paused:
        action = Action("connected", only_if_idle=True)  # saved, not published, and its retry was lost with Redis
    if found.readable and found.rerank_due:
        # A new order makes a top-up of the old one needless, unless it has to wait.
        action = Action("rerank", only_if_idle=True, otherwise=action)
    return action


def _on_tick(state: ProjectState) -> Action:
    queue = state.queue
    if state.paused or queue.waiting is not None:
        return NOTHING
    if queue.retry_reason is not None and queue.read_at >= queue.not_before:
        return Action(queue.retry_reason)
    # Its request was lost with the process that counted the changes.
    return Action("labels") if queue.running is None and queue.failures == 0 and queue.due else NOTHING


def _is_own_write(queue: QueueStatus, event: TrainingStarted) -> bool:
    """Whether Label Studio sent START_TRAINING by itself: only an annotation not announced yet tells it from a button.

    It does so ahead of the event of every nth annotation, n being 1 if the toggle was switched on by hand.
    """
    if not event.every or event.annotations is None or queue.annotations is None:
        return False
    return event.annotations > queue.annotations and event.annotations % event.every == 0


def _is_low_on_images(published: PublishedRanking, event: AnnotationsChanged, options: ProjectOptions) -> bool:
    """Whether readers may soon have answered what is published; the top-up counts, and publishes nothing if not."""
    together = publication_size(options)
    # Fewer are published only if there are no more: every further label would request a top-up of nothing.
    if together is None or published.first_reads < together:
        return False
    return remaining_published(published, event.annotations) < low_water(options)


def _top_up_is_due(found: Compared, options: ProjectOptions | None) -> bool:
    """Whether a top-up would publish something that readers need; it would be requested every minute otherwise."""
    runs_low = options is not None and found.left < low_water(options) and found.unpublished
    return (
        runs_low
        or found.rereads_ended
        or found.picked
        or (found.readable and (found.copy_published or found.order_lost))
    )


def _may_find_an_image(queue: QueueStatus, found: Compared) -> bool:
    """Whether a round may find an image to rank that the last one did not."""
    if found.images_changed:
        return True
    error = queue.last_error
    if error is not None and error.kind == UnusablePool.__name__ and found.now - error.at < UNUSABLE_POOL_RETRY_S:
        return False
    return found.image_may_be_read
