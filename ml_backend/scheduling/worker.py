"""The worker: its parent process waits for jobs and forks a work-horse for each; ``run`` is the job of a round."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from functools import partial
from importlib import import_module
from itertools import chain, zip_longest
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import structlog
from redis import RedisError
from redis.client import Pipeline
from rq import Queue, Worker, get_current_job, worker_registration
from rq.exceptions import DeserializationError
from rq.executions import Execution
from rq.job import Job
from rq.serializers import JSONSerializer

from ml_backend.analytics.history import HELD_OUT, PREVIEWS, SHOWN_PREVIEW, HeldOutPredictions, StrategyPreviews
from ml_backend.analytics.similar import neighbours_of
from ml_backend.blas import enable_deterministic_blas
from ml_backend.config import Settings
from ml_backend.errors import (
    BackendError,
    EmptyPool,
    QueueError,
    StaleRound,
    StorageError,
    UnusablePool,
    WorkerStopping,
)
from ml_backend.images import ImageSource
from ml_backend.images.decode import decode_image
from ml_backend.images.source import with_plugins
from ml_backend.images.thumbnail import SIDE, is_current, thumbnail
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.formats import LabelConfig, read_image
from ml_backend.label_studio.images import LabelStudioImages
from ml_backend.label_studio.sync import TaskCache
from ml_backend.logs import set_up_logs
from ml_backend.scheduling.connections import configuration
from ml_backend.scheduling.followers import PR_SET_PDEATHSIG, Followers, Processes, token
from ml_backend.scheduling.queue import QUEUE, SHUTDOWN, Claim, RoundQueue
from ml_backend.schemas import ImageRef, ProjectKey, PublishedRanking, RoundReport, RoundTrigger, Stage
from ml_backend.storage import ProjectStore, RoundStore, check_writable
from ml_backend.storage.project_state import Pause, ReadingStore, Thumbnails
from ml_backend.storage.rounds import HEAD_IMAGES

if TYPE_CHECKING:
    from ml_backend.model.distributed import Crew

# With rq's own intervals a round whose machine died begins again after 13 minutes, with these within one.
MONITORING_S = 5
MAINTENANCE_S = 5
WORKER_TTL_S = 30
LOST_AFTER_S = 40  # without a heartbeat; a restart of Redis delays one for less than this
LOCK_S = 30  # of rq's maintenance, which takes milliseconds

# torchvision and torch's optimisers load the last two at their first use.
PRELOADED = ("ml_backend.rounds", "torchvision.models", "torch._dynamo")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
OLD_QUEUE = "shards"  # of version 0.2, whose idle workers helped with a round
FOLLOWER_LOST = 70  # exit status of a work-horse
LOST = "lost"  # in the meta of its job: the reason

log = structlog.get_logger()


class JobQueue(Queue):
    """An rq queue that remembers the job it gave last.

    Attributes:
        taken: key of the list and id of a job that no work-horse has begun; of this process.
    """

    taken: ClassVar[tuple[bytes, bytes] | None] = None

    @classmethod
    def lpop(cls, *args: Any, **kwargs: Any) -> Any:
        JobQueue.taken = super().lpop(*args, **kwargs)
        return JobQueue.taken

    @classmethod
    def lmove(cls, connection: Any, queue_key: str, timeout: int | None) -> Any:
        """Take a job; rq would set it aside, and fail it where the worker stops before it begins."""
        return cls.lpop([queue_key], timeout, connection=connection)


class RoundWorker(Worker):
    """An rq worker whose work-horse dies with it, and which survives a Redis that restarts or is emptied.

    Otherwise the orphan of a killed worker would go on training next to the run that has replaced it.

    At SIGTERM or SIGINT it takes no further job, and passes the signal on to the work-horse, whose ``SHUTDOWN`` ends
    the job at its next step. At a second signal, a second or more later, it kills the work-horse.
    """

    queue_class = JobQueue

    stop_signal = signal.SIGTERM
    """That has ended this worker."""

    log_fields: tuple[str, ...] = ("project",)
    """Names of a job's first arguments in every log line about it."""

    followers: ClassVar[Followers | None] = None
    """Of this process; its work-horses inherit their listener."""

    housekeeping: Callable[[], object] | None = None
    """Called every few seconds while no job runs."""

    @property
    def dequeue_timeout(self) -> int:
        """Seconds after which an idle worker does its maintenance."""
        return MAINTENANCE_S

    def execute_job(self, job: Job, queue: Queue) -> None:
        # The work-horse is forked inside, and rq's own lines about the job name its project too.
        try:
            fields = dict(zip(self.log_fields, job.args, strict=False))
        except DeserializationError:  # the work-horse refuses it and logs why
            fields = {}
        with structlog.contextvars.bound_contextvars(**fields):
            super().execute_job(job, queue)

    def work(self, *args: Any, **kwargs: Any) -> bool:
        worked = super().work(*args, **kwargs)
        # Stopped between taking a job and beginning it: for rq it would be gone. Not after an error of rq about the
        # job, which the next worker would meet too.
        if JobQueue.taken is not None and self._shutdown_requested_date is not None:
            try:
                self.connection.lpush(*JobQueue.taken)
            except RedisError as error:
                log.warning("a job that was not begun is not returned to the queue", error=str(error))
        return worked

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        self.stop_signal = signal.Signals(signum)
        log.info("stopping", signal=self.stop_signal.name)
        super().request_stop(signum, frame)  # type: ignore[no-untyped-call] # of rq

    def handle_warm_shutdown_request(self) -> None:
        """Pass the signal on; rq would only wait for the job to end."""
        if self.horse_pid:
            # Not rq's kill_horse: a work-horse that has just begun is still in this process's own group.
            with suppress(ProcessLookupError):
                os.kill(self.horse_pid, self.stop_signal)

    def fork_work_horse(self, job: Job, queue: Queue) -> None:
        JobQueue.taken = None
        if self.followers is not None:
            self.followers.ensure()
        # Until the work-horse has handlers of its own, a signal to it waits.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            super().fork_work_horse(job, queue)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        if self._stop_requested:  # before there was a work-horse
            self.handle_warm_shutdown_request()

    def setup_work_horse_signals(self) -> None:
        for one in STOP_SIGNALS:
            signal.signal(one, SHUTDOWN.request)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def main_work_horse(self, job: Job, queue: Queue) -> None:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != self.pid:  # it died before the line above
                os._exit(1)
        super().main_work_horse(job, queue)

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        """Seconds after a heartbeat until another worker begins the round again."""
        del job, working_time
        return LOST_AFTER_S

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:
        super().heartbeat(timeout, pipeline)
        # Every time: in an emptied Redis an unlisted worker counts as dead.
        connection: Any = self.connection if pipeline is None else pipeline
        if not self.is_horse and self.birth_date is not None:
            connection.hset(self.key, mapping=self.serialize())
            worker_registration.register(self, connection)

    def maintain_heartbeats(self, job: Job, execution: Execution) -> None:
        try:
            super().maintain_heartbeats(job, execution)
        except RedisError as error:
            # rq would end the worker, and with it the round; the next heartbeat may get through.
            log.warning("the round continues without Redis", error=str(error))

    def run_maintenance_tasks(self) -> None:
        for queue in self.queues:
            # A worker killed in its maintenance would block that of all others for 15 minutes.
            self.connection.expire(queue.registry_cleaning_key, LOCK_S, lt=True)
        super().run_maintenance_tasks()  # type: ignore[no-untyped-call] # of rq
        if self.housekeeping is not None:
            self.housekeeping()


def work(settings: Settings, burst: bool = False, processes: Processes = Processes()) -> None:  # noqa: B008 - frozen
    """Run rounds until stopped: at SIGTERM or Ctrl-C the running round is given back, a second one kills it.

    Args:
        settings: of the installation; the work-horse reads the same environment again.
        burst: end when the queue is empty.
        processes: that run a round together.

    Raises:
        SettingsError: the address of this machine for the other processes cannot be used.
        StorageError: the data folder cannot be written.
        QueueError: Redis does not answer at the start; later the worker waits for it.
    """
    # Until rq has handlers of its own. Process 1 of a container would ignore a signal that it does not handle.
    for one in STOP_SIGNALS:
        signal.signal(one, lambda *_: sys.exit(0))
    enable_deterministic_blas()
    set_up_logs(settings)
    check_writable(settings.data_dir, make=True)
    impatient = RoundQueue.from_settings(settings)
    impatient.ping()
    impatient.redis.close()
    rounds = RoundQueue.from_settings(settings, patient=True)
    worker = RoundWorker(
        [QUEUE],
        connection=rounds.redis,
        serializer=JSONSerializer,
        job_monitoring_interval=MONITORING_S,
        maintenance_interval=MAINTENANCE_S,
        worker_ttl=WORKER_TTL_S,
        work_horse_killed_handler=lambda job, _pid, status, _usage: _report_killed(rounds, job, status),
    )
    if count := Queue(OLD_QUEUE, connection=rounds.redis, serializer=JSONSerializer).empty():  # type: ignore[no-untyped-call]
        log.info("requests for help of an earlier version are dropped: rounds share out their work now", jobs=count)
    store = RoundStore(settings.data_dir)
    with Followers(processes) as followers:

        def keep_house() -> None:
            followers.ensure()
            _request_due_rounds(rounds, store)

        RoundWorker.followers = followers
        worker.housekeeping = keep_house
        preload(settings)
        log.info("waiting for rounds", redis=rounds.address, processes=processes.others + 1)
        # rq logs its maintenance every five seconds.
        worker.work(burst=burst, logging_level="DEBUG" if settings.log_level == "DEBUG" else "WARNING")


def preload(settings: Settings) -> None:
    """Load what every round needs, if that cannot initialise a GPU."""
    if settings.device == "cpu":
        for name in PRELOADED:
            import_module(name)


def _request_due_rounds(rounds: RoundQueue, store: RoundStore) -> None:
    try:
        if count := rounds.request_due_rounds(lambda project: Pause(store.project(project).folder).holds):
            log.info("due rounds are requested", rounds=count)
    except QueueError as error:
        log.warning("due rounds are not requested", error=str(error))


def _report_killed(rounds: RoundQueue, job: Job, status: int) -> None:
    """Log why a work-horse died, and fail its round at the second time; rq begins it again after the first."""
    project = job.args[0]
    cause = (
        f"signal {os.WTERMSIG(status)}"
        if os.WIFSIGNALED(status)
        else f"exit status {os.waitstatus_to_exitcode(status)}"
    )
    sentence = (
        f"the process of the round ended twice with {cause}; signal 9 mostly means that memory ran out: "
        "choose a smaller train_batch or image_side"
    )
    if cause == f"exit status {FOLLOWER_LOST}":
        cause = job.get_meta(refresh=True).get(LOST, cause)
        sentence = (
            f"a process of the round was lost twice: {cause}. Mostly memory ran out: start `ml-backend work` with "
            "fewer processes, or choose a smaller train_batch or image_side"
        )
    log.error("work-horse gone", project=project, cause=cause, again=job.should_retry)
    if not job.should_retry:
        rounds.fail_lost_round(ProjectKey.parse(project), job.args[1], sentence)


def _new_crew(settings: Settings) -> Callable[[], "Crew"] | None:
    """Makes the other processes of a round of this work-horse; None without any."""
    followers, job = RoundWorker.followers, get_current_job()
    if followers is None or followers.listener is None:
        return None
    listener, processes = followers.listener, followers.processes

    def new() -> "Crew":
        from ml_backend.model.distributed import Crew  # noqa: PLC0415 - imports torch

        return Crew(listener, processes.others, processes.nproc, token(settings), partial(end_round, job))

    return new


def end_round(job: Job | None, reason: str) -> NoReturn:
    """End this work-horse, one of whose followers is gone; rq begins its round again, as that of a killed one.

    Its main thread may wait for the follower in a collective for ever.
    """
    log.error("the round ends, since one of its processes is gone", reason=reason)
    if job is not None:
        with suppress(RedisError):
            job.meta[LOST] = reason
            job.save_meta()  # type: ignore[no-untyped-call]
    os._exit(FOLLOWER_LOST)


MAX_THUMBNAILS = 500  # of a round
DRAWN_ALIKE = 200  # of a round, that resemble its batch
DRAWN_EACH = 6  # with a label, and as many without, for each image of the batch
DRAWN_DISAGREEMENTS = 60  # of a round
DRAWN_LATER = 100  # of a round's previews, behind what is shown first
REDRAWN_ROUNDS = 3  # earlier rounds after each round: the next one waits meanwhile
PATIENCE_S = 10.0
SHOWN_WITHIN_S = 10.0  # a round that waits for the worker waits no longer for previews and pictures of the last one


def run(project: str, generation: int, reason: RoundTrigger) -> dict[str, str]:
    """Run a requested round; rq keeps the result for a day.

    Args:
        project: ``"<id>.<unix seconds>"``.
        generation: number of the request.
        reason: of the request, shown by rq's tools; the claim holds a stronger one that came while it waited.

    Raises:
        SettingsError: the environment is wrong.
        QueueError: Redis does not answer.
    """
    del reason
    settings = Settings.load()
    set_up_logs(settings)
    key = ProjectKey.parse(project)
    # Bound beyond this function: the process ends with the job, and rq's own last lines name project and round too.
    structlog.contextvars.unbind_contextvars("round")
    structlog.contextvars.bind_contextvars(project=project, generation=generation)
    claim = RoundQueue.from_settings(settings, patient=True).claim(key, generation)
    if claim is None:
        log.info("nothing to do: the round was run already, or a newer one has taken its place")
        return {"outcome": "superseded"}
    log.info("round begins", reason=claim.reason, changes=claim.changes)
    try:
        report, published = _run_round(settings, claim)
    except WorkerStopping as stop:
        claim.give_back()
        log.info("round given back", why=str(stop))
        return {"outcome": "given back"}
    except BackendError as error:
        if isinstance(error, EmptyPool) and not isinstance(error, UnusablePool):
            log.info("nothing to rank", why=str(error))
            claim.fail(error)
            return {"outcome": "nothing to rank"}
        log.error("round failed", error=str(error), kind=type(error).__name__)  # noqa: TRY400 - not a bug of ours
        claim.fail(error)
        return {"outcome": "failed", "error": str(error)}
    except Exception as error:
        log.exception("round failed", kind=type(error).__name__)
        claim.fail(error)
        raise
    claim.finish()
    outcome = {"round": report.request.round_id, "version": published.version}
    structlog.contextvars.bind_contextvars(round=report.request.round_id)
    log.info("round published", **outcome, seconds=dict(report.seconds))
    _show_chosen_images(settings, claim, report)
    if os.environ.get("MLFLOW_TRACKING_URI"):
        from ml_backend.rounds.tracking import track_round  # noqa: PLC0415 - imports torch, and is rarely wanted

        track_round(settings, claim.project, report, _stopping)
    return {"outcome": "published", **outcome}


def _run_round(settings: Settings, claim: Claim) -> tuple[RoundReport, PublishedRanking]:
    # Imports torch, which only the forked process may do if there is a GPU.
    from ml_backend.rounds.live import run_live_round  # noqa: PLC0415

    project = RoundStore(settings.data_dir).project(claim.project)
    project.begin_run(claim.token)

    def ensure_current() -> None:
        claim.ensure_current()
        # An emptied Redis has forgotten newer runs, the store has not.
        project.require_newest(claim.token)

    def progress(stage: Stage, done: int, total: int) -> None:
        claim.progress(stage, done, total)
        SHUTDOWN.raise_if_requested(stage, done, total)

    def raise_if_preempted() -> None:
        SHUTDOWN.raise_if_requested("noise", 0, 1)
        ensure_current()
        claim.raise_if_preempted()

    return run_live_round(
        settings,
        claim.project,
        claim.reason,
        progress,
        ensure_current,
        crew=_new_crew(settings),
        raise_if_preempted=raise_if_preempted,
        learn=claim.start_training,
    )


def _show_chosen_images(settings: Settings, claim: Claim, report: RoundReport) -> None:
    began = time.monotonic()

    def awaited() -> bool:
        late = time.monotonic() - began > SHOWN_WITHIN_S
        return _stopping() or (late and claim.queue.round_waits(claim.project))

    try:
        # After the order is published: at a pool of 100,000 the previews take 25 s.
        keep_previews(RoundStore(settings.data_dir).project(claim.project), report, awaited)
    except StaleRound as reason:
        log.info("the strategies have no previews", why=str(reason))
    except Exception as error:  # noqa: BLE001 - the round is published and settled; only previews are missing
        log.warning("the strategies have no previews", error=str(error))
    try:
        log.debug("thumbnails drawn", images=draw_thumbnails(settings, claim.project, report, awaited))
    except Exception as error:  # noqa: BLE001 - likewise
        log.warning("the chosen images are not shown", error=str(error))


def _stopping() -> bool:
    return SHUTDOWN.signal is not None


def keep_previews(project: ProjectStore, report: RoundReport, awaited: Callable[[], bool] = _stopping) -> None:
    """Note which images each strategy would have put first, where the round has predictions.

    Args:
        project: its store.
        report: of the round.
        awaited: whether the worker is needed elsewhere; asked before each strategy.

    Raises:
        StaleRound: it is, and nothing is noted.
        StorageError: these are damaged, or the disk refuses.
    """

    def make_way() -> None:
        if awaited():
            raise StaleRound("the worker is needed for another round, or stops")

    round_id = report.request.round_id
    if (outputs := project.outputs(round_id)) is not None:
        from ml_backend.rounds.live import strategy_previews  # noqa: PLC0415 - imports torch

        request = report.request
        found = strategy_previews(outputs, request.seed, request.batch_size, request.strategy, make_way)
        project.set_record(round_id, PREVIEWS, found)


def draw_thumbnails(
    settings: Settings, key: ProjectKey, report: RoundReport, awaited: Callable[[], bool] = _stopping
) -> int:
    """Draw the images of a round's batch and of its holdout; returns the number of this round's pictures.

    An unreadable image is left out: its page shows a placeholder. A picture that an earlier round keeps is taken over.
    Some earlier rounds are drawn again, newest first, if their thumbnails are those of a version that drew every image
    as a square.

    Args:
        settings: of the installation.
        key: of the project.
        report: of the round.
        awaited: whether the worker is needed elsewhere: no further image is fetched then.

    Raises:
        BackendError: the project is not connected, or its options are wrong.
        OSError: the disk refuses.
    """
    store = RoundStore(settings.data_dir)
    project = store.project(key)
    connection, mirror = project.connection(), ReadingStore(project.folder).mirror(TaskCache)
    if connection is None or mirror is None:
        return 0
    config, _ = configuration(connection)
    hostname = settings.trusted_hostname(connection.hostname)
    thumbnails = Thumbnails(project.folder)
    with (
        LabelStudioClient.from_settings(settings, hostname, patience_s=PATIENCE_S) as client,
        closing(LabelStudioImages(client, connection.hostname, hosts=settings.allowed_image_hosts)) as source,
    ):
        # Not by the cache of pixels: what the network sees is too small to be looked at, and these would displace it.
        originals = with_plugins(source)

        def pictures(one: RoundReport) -> list[tuple[str, bytes]]:
            images = _images(chosen_images(one, _more_images(project, one)), mirror, config)
            return list(draw_images(images, originals, _kept_pictures(thumbnails), awaited))

        drawn = thumbnails.keep(report.request.round_id, pictures(report))
        for round_id in thumbnails.squashed()[:REDRAWN_ROUNDS]:
            try:
                drawn_again = pictures(project.report(round_id))
                if awaited():  # the squares are better than half of the pictures
                    break
                thumbnails.keep(round_id, drawn_again)
            except StorageError as error:
                log.debug("thumbnails not drawn again", round=round_id, error=str(error))
        return drawn


def _images(image_ids: Iterable[str], mirror: TaskCache, config: LabelConfig) -> Iterator[ImageRef]:
    """The images whose tasks still exist."""
    for image_id in image_ids:
        task = mirror.tasks.get(int(image_id)) if image_id.isdecimal() else None
        if task is not None:
            try:
                yield read_image({"id": int(image_id), "data": task.data}, config)
            except BackendError as error:
                log.debug("not drawn", image=image_id, error=str(error))


def chosen_images(report: RoundReport, more: Iterable[str] = ()) -> list[str]:
    """Ids of the images to draw: the batch, the holdout behind it, and further ones."""
    ranking, holdout = report.ranking, set(report.ranking.control)
    batch = ranking.image_ids[: ranking.batch_size]
    behind = (name for name in ranking.image_ids[ranking.batch_size :] if name in holdout)
    return list(dict.fromkeys([*batch, *behind, *more]))[:MAX_THUMBNAILS]


def _more_images(project: ProjectStore, report: RoundReport) -> list[str]:
    """The other images that pages show: of previews, like those of the batch, and where network and label disagree."""
    round_id, ranking, embedding = report.request.round_id, report.ranking, project.embedding()
    batch = ranking.image_ids[: min(ranking.batch_size, HEAD_IMAGES)]
    alike = neighbours_of(embedding, batch, ranking.image_ids, DRAWN_EACH)[:DRAWN_ALIKE] if embedding else []
    try:
        previews = project.record(round_id, PREVIEWS, StrategyPreviews)
        held_out = project.record(round_id, HELD_OUT, HeldOutPredictions)
    except StorageError as error:
        log.debug("not drawn", error=str(error))
        return []
    places = zip_longest(*previews.first.values()) if previews else ()
    previewed = [[one.image_id for one in place if one] for place in places]
    first, later = (list(chain(*part)) for part in (previewed[:SHOWN_PREVIEW], previewed[SHOWN_PREVIEW:]))
    disputed = [one.image_id for one in held_out.disagreements()[:DRAWN_DISAGREEMENTS]] if held_out else []
    return [*first, *alike, *disputed, *list(dict.fromkeys(later))[:DRAWN_LATER]]


def _kept_pictures(thumbnails: Thumbnails) -> Callable[[str], bytes | None]:
    """A function that reads the newest picture of an image that earlier rounds keep, as this version draws them."""
    squashed = set(thumbnails.squashed())
    rounds = [one for one in reversed(thumbnails.rounds()) if one not in squashed]
    round_of = {image_id: one for one in rounds for image_id in thumbnails.of_round(one)}

    def kept(image_id: str) -> bytes | None:
        found = thumbnails.read(round_of[image_id], image_id) if image_id in round_of else None
        return found if found is not None and is_current(found) else None

    return kept


def draw_images(
    images: Iterable[ImageRef],
    originals: ImageSource,
    kept: Callable[[str], bytes | None] = lambda _: None,
    awaited: Callable[[], bool] = _stopping,
) -> Iterator[tuple[str, bytes]]:
    """Image ids with a JPEG each, in the proportions of the original; unreadable images are left out.

    Args:
        images: to draw.
        originals: where they are fetched, one after the other.
        kept: the picture of an image that need not be drawn.
        awaited: whether the worker is needed elsewhere: then only kept pictures come, and a page shows a placeholder
            for the rest.
    """
    for image in images:
        if (picture := kept(image.id)) is not None:
            yield image.id, picture
            continue
        if awaited():
            continue
        try:
            decoded = decode_image(originals.fetch(image), SIDE, image.id)
            yield image.id, thumbnail(decoded.pixels, decoded.size)
        except BackendError as error:
            log.debug("not drawn", image=image.id, error=str(error))
