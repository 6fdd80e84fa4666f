"""Starts everything side by side, and waits until all of it answers.

The demo's story: bring everything up, let readers label, compare what they were served with what was chosen.
"""

import fcntl
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TypeVar

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from ml_backend.config import Settings
from ml_backend.config.network import bypass_proxies, trusted_certificates
from ml_backend.demo.options import DemoOptions
from ml_backend.demo.order_check import compare
from ml_backend.demo.project import (
    Plan,
    RoundBars,
    choose_question,
    create_project,
    label_until,
    make_plan,
    show_labels,
    upload,
    visitors_films,
)
from ml_backend.demo.readers import Answers, Reader, ReadingRoom
from ml_backend.demo.services import Backend, LabelStudio, Login, Worker
from ml_backend.demo.summary import RoundRow, Summary, delay, round_row, summary_table
from ml_backend.demo.view import RoundFollower, View, make_view
from ml_backend.errors import RoundError, ServiceError
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.connect import connect_project
from ml_backend.processes import Service, Valkey, private_folder
from ml_backend.scheduling import RoundQueue, connect_redis
from ml_backend.storage import RoundStore, write_atomically

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Site:
    """Everything that runs, and the ways to it."""

    url: str  # of Label Studio
    admin: Login
    client: LabelStudioClient
    backend: Backend
    settings: Settings  # as the backend has them
    store: RoundStore
    queue: RoundQueue
    services: list[Service]  # that we started


def bring_up(options: DemoOptions, view: View, stack: ExitStack, meanwhile: Callable[[], T]) -> tuple[Site, T]:
    """Start Valkey, Label Studio, the backend and the worker.

    Args:
        options: where to keep data, and what runs already.
        view: told what is waited for.
        stack: stops them again, the last started first; filled as they start, so that a failure half way stops all.
        meanwhile: other work, done while they start.

    Returns:
        What runs, and what ``meanwhile`` gave.

    Raises:
        ServiceError: one of them did not start; with the end of its log.
    """
    folder = private_folder(options.folder.absolute())
    # Rounds that a stopped demo left in the queue belong to its project, not to the new one.
    shutil.rmtree(folder / "valkey", ignore_errors=True)
    label_studio: LabelStudio | None = None
    name = "Label Studio"
    if options.label_studio is None:
        # First, since it takes longest.
        label_studio = LabelStudio(folder / "label-studio")
        name += " (its first start takes a minute or three)" if label_studio.is_new else ""
        stack.enter_context(label_studio.start())
        url, admin = label_studio.url, label_studio.admin
    else:
        url, admin = options.label_studio.url, options.label_studio.admin
    view.step(name, 0, None)
    valkey = stack.enter_context(Valkey(folder / "valkey", options.redis_url).start()).wait()
    environ = _environ(folder, valkey.url, url, admin)
    backend = stack.enter_context(Backend(environ, folder / "backend.log").start())
    worker = stack.enter_context(Worker(backend.environ, folder / "worker.log").start())
    done = meanwhile()
    view.step("Valkey, backend and worker", 0, None)
    backend.wait()
    worker.wait()
    view.step("Valkey, backend and worker", 1, 1)
    if label_studio is not None:
        label_studio.wait()
    view.step(name, 1, 1)
    started: list[Service] = [valkey, backend, worker]
    site = Site(
        url=url,
        admin=admin,
        client=stack.enter_context(LabelStudioClient(url, admin.token)),
        backend=backend,
        settings=Settings.load(**_settings(backend)),
        store=RoundStore(folder / "data"),
        queue=RoundQueue(stack.enter_context(connect_redis(valkey.url))),
        services=started if label_studio is None else [*started, label_studio],
    )
    return site, done


def _environ(folder: Path, redis_url: str, url: str, admin: Login) -> dict[str, str]:
    own = {
        "AL_REDIS_URL": redis_url,
        "AL_DATA_DIR": str(folder / "data"),
        "AL_LABEL_STUDIO_URL": url,
        "AL_LABEL_STUDIO_API_KEY": admin.token,
        # The logs of a demo are read by people, its last lines also where a service has ended.
        "AL_LOG_FORMAT": "console",
    }
    # Said outright, so that the worker loads PyTorch once and not for every round.
    device = {} if "AL_DEVICE" in os.environ or _has_gpu() else {"AL_DEVICE": "cpu"}
    return dict(os.environ) | device | own


def _has_gpu() -> bool:
    """Whether a GPU's device file is there; asked without torch."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()


def _settings(backend: Backend) -> dict[str, str]:
    """The backend's environment as keyword arguments."""
    return {
        name: backend.environ[f"AL_{name.upper()}"]
        for name in (
            "redis_url",
            "data_dir",
            "label_studio_url",
            "label_studio_api_key",
            "basic_auth_user",
            "basic_auth_pass",
        )
    }


STOPPED = 130  # exit status after Ctrl-C, as shells count it
LOOK_S = 0.5


def run_demo(options: DemoOptions) -> int:
    """Run the demo.

    Returns:
        The exit status: 0 if every round was published and the served order was the chosen one, 1 if it was not, 130
        after Ctrl-C or SIGTERM before the end.

    Raises:
        BackendError: in words, why the visitor's images, a service or a round let the demo down.
    """
    trusted_certificates()  # before anything is started that a wrong variable would stop minutes later
    bypass_proxies("127.0.0.1")
    # A log has no width: there lines stay whole.
    console = Console() if sys.stdout.isatty() else Console(width=120)
    try:
        with _stopped_by_signals(), _only_one_in(options.folder), _undisturbed_stop() as stack:
            return _main_job(options, make_view(console), stack, stay=_stays(options, console))
    except KeyboardInterrupt:
        console.print("stopped: everything that the demo had started is down")
        return STOPPED


def _main_job(options: DemoOptions, view: View, stack: ExitStack, *, stay: bool) -> int:
    began = time.monotonic()
    question = choose_question(options)
    given = visitors_films(options, question)
    with view:
        site, plan = bring_up(options, view, stack, lambda: make_plan(options, question, given, view))
        ready = time.monotonic()
        project_id, room, follower = _prepare(options, plan, site, view, stack)
        prepared = time.monotonic()
        label_until(
            options.rounds,
            retrain_after=plan.options.retrain_after,
            room=room,
            follower=follower,
            services=site.services,
            view=view,
        )
        view.clear()
    ended = time.monotonic()
    summary = Summary(
        address=site.url,
        project=project_id,
        images=len(plan.films),
        readers=options.readers,
        weights=plan.options.weights,
        strategy=plan.options.strategy,
        seed=options.seed,
        seconds={"bring-up": ready - began, "project": prepared - ready, "rounds": ended - prepared},
        rounds=_rows(follower, room, plan.options.retrain_after),
    )
    _tell(summary, plan, view)
    if options.json is not None:
        write_atomically(options.json.absolute(), (summary.model_dump_json(indent=1) + "\n").encode())
    if stay:
        _stay(site, project_id, follower, view, plan.options.retrain_after)
    return 0 if summary.exact else 1


def _prepare(
    options: DemoOptions, plan: Plan, site: Site, view: View, stack: ExitStack
) -> tuple[int, ReadingRoom, RoundFollower]:
    """Make the project, put the images into it, connect the backend, and seat the readers."""
    title = f"Active learning demo {datetime.now(UTC):%Y-%m-%d %H:%M}"
    project_id, config = create_project(site.client, title, plan.question.xml)
    view.step("uploading images", 0, len(plan.films))
    for done in upload(site.client, site.admin.token, project_id, config.image_key, plan.films):
        view.step("uploading images", done, len(plan.films))
    view.step("connecting the backend and the readers", 0, None)
    invite = str(site.client.request("GET", "/api/invite", dict)["invite_url"])
    names = [f"reader-{i + 1}" for i in range(options.readers)]
    # Before the first round, whose import of the ranking may keep sqlite locked for who signs up meanwhile.
    readers = [stack.enter_context(Reader(name, site.url)).sign_up(invite) for name in names]
    connect_project(site.settings, project_id, site.backend.url, plan.extra_params, site.client)
    follower = RoundFollower(site.client, site.store, site.queue, site.store.connection(project_id).project)
    truth = {film.name: film.label for film in plan.films}
    answers = Answers(truth, plan.question.classes, options.mistakes, options.seed)
    view.step("connecting the backend and the readers", 1, 1)
    view.say(f"project {project_id} at {site.url}/projects/{project_id}/data: {len(readers)} readers begin to label")
    return project_id, ReadingRoom(readers, project_id, config, answers, follower.version), follower


def _rows(follower: RoundFollower, room: ReadingRoom, retrain_after: int) -> tuple[RoundRow, ...]:
    fidelities = compare(room.served, follower.rankings)
    rows: list[RoundRow] = []
    previous_claim: datetime | None = None
    for report, published in follower.rounds:
        claim = follower.claimed_at[published.version]
        waited = None
        if (visible_at := follower.visible_at.get(published.version)) is not None:
            waited = delay(
                room.submissions,
                retrain_after=retrain_after,
                previous_claim=previous_claim,
                claim=claim,
                report=report,
                published=published,
                visible_at=visible_at,
            )
        rows.append(round_row(report, published, fidelities.pop(published.version), waited))
        previous_claim = claim
    if fidelities:
        # Served under a version that no round has published: no row could show it.
        wrong = [str(deviation) for fidelity in fidelities.values() for deviation in fidelity.deviations]
        raise RoundError(f"Label Studio served by a version that no round published: {'; '.join(wrong)}")
    return tuple(rows)


def _tell(summary: Summary, plan: Plan, view: View) -> None:
    view.say(summary_table(summary.rounds, plan.question.classes))
    for row in summary.rounds:
        for deviation in row.deviations:
            view.say(f"out of order: {deviation}")
    in_order, served = sum(row.in_order for row in summary.rounds), sum(row.served for row in summary.rounds)
    waited = [row.delay.total_s for row in summary.rounds if row.delay is not None and row.training_s is not None]
    view.say(f"{in_order} of {served} images were served in exactly the chosen order")
    if waited:
        longest = max(waited)
        view.say(f"from the label that starts a training to its new order in Label Studio: {longest:.1f} s at most")


def _stay(site: Site, project_id: int, follower: RoundFollower, view: View, retrain_after: int) -> None:
    """Stay up until Ctrl-C; rounds go on with what the visitor labels."""
    lines = [
        f"[bold]{site.url}/projects/{project_id}/data[/bold]",
        f"user      {site.admin.email}",
        f"password  {site.admin.password}",
        "",
        "Press [bold]Label All Tasks[/bold] and label the next image by hand; a few labels more start the next round.",
        "[bold]Ctrl-C[/bold] here stops everything.",
    ]
    view.say(Panel(Text.from_markup("\n".join(lines)), title="It stays up: now you", expand=False))
    told = ""
    bars = RoundBars(view, announced=len(follower.rounds))
    try:
        with view:
            while True:
                for service in site.services:
                    service.check()
                try:
                    status = follower.poll(patient=True)
                    bars.show(follower, status)
                    show_labels(view, status.changes, retrain_after)
                except RoundError as error:
                    # A visitor who labels on may well mend it: told once, and not the end.
                    if str(error) != told:
                        view.say(Text(str(error), style="red"))
                    told = str(error)
                time.sleep(LOOK_S)
    except KeyboardInterrupt:
        view.say("stopping")


def _stays(options: DemoOptions, console: Console) -> bool:
    return console.is_terminal if options.stay is None else options.stay


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Let the ways in which a terminal or a supervisor ends us stop our services too."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _undisturbed_stop() -> Iterator[ExitStack]:
    """A stack of services whose end a second Ctrl-C does not cut short."""
    with ExitStack() as stack:
        try:
            yield stack
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)


@contextmanager
def _only_one_in(folder: Path) -> Iterator[None]:
    """Two demos would run two Label Studios on one database.

    Raises:
        ServiceError: another demo runs in this folder.
    """
    path = private_folder(folder.absolute()) / "lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ServiceError(
                f"another demo (process {file.read().strip() or 'unknown'}) runs in {folder}: "
                "stop it with Ctrl-C, or choose another --folder"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
