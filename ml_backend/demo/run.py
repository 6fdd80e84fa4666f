"""The demo: start the services, create a project, let readers label, compare the served order with the chosen one."""

import fcntl
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.text import Text

from ml_backend.config import ProjectOptions
from ml_backend.config.network import bypass_proxies, trusted_certificates
from ml_backend.demo.options import DemoOptions, Plan, choose_question, make_plan, read_images
from ml_backend.demo.project import (
    RoundFollower,
    RoundProgress,
    create_project,
    label_until,
    show_labels,
    upload_images,
)
from ml_backend.demo.readers import Reader, ReadingRoom, SimulatedLabels
from ml_backend.demo.services import SHIPPED_LOCK, Backend, LabelStudio, Login, Worker, install_label_studio
from ml_backend.demo.summary import RoundRow, Summary, View, check_order, measure_delay, summary_table
from ml_backend.errors import RoundError, ServiceError
from ml_backend.label_studio.client import LabelStudioClient
from ml_backend.label_studio.connect import connect_project
from ml_backend.processes import Service, Valkey, private_folder
from ml_backend.scheduling import RoundQueue, connect_redis
from ml_backend.schemas import ProjectKey
from ml_backend.storage import RoundStore, write_atomically

INTERRUPTED = 130  # exit status after Ctrl-C, as in a shell
POLL_S = 0.5
EXPORTS = "exports.sh"  # in the demo's folder
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_demo(options: DemoOptions) -> int:
    """Run the demo.

    Returns:
        The exit status: 0 if every round was published and every image was served in the chosen order, 1 if not, 130
        after Ctrl-C or SIGTERM before the end.

    Raises:
        BackendError: the visitor's images, a service or a round failed.
    """
    trusted_certificates()  # before anything is started that a wrong variable would stop minutes later
    bypass_proxies("127.0.0.1")
    console = Console() if sys.stdout.isatty() else Console(width=120)
    try:
        with _service_stack() as stack:
            stack.enter_context(_locked(options.folder))
            stay = console.is_terminal if options.stay is None else options.stay
            return _run(options, View(console), stack, stay=stay)
    except KeyboardInterrupt:
        console.print("stopped: everything that the demo had started is down")
        return INTERRUPTED


def _run(options: DemoOptions, view: View, stack: ExitStack, *, stay: bool) -> int:
    began = time.monotonic()
    # Before anything starts: a table may have bad rows.
    question = choose_question(options.labels)
    given = None
    if options.images is not None and options.labels is not None:
        given = read_images(options.images, options.labels, question.classes)
    with view:
        services = _start(options, view, stack)
        plan = make_plan(options, question, given, view)
        services.wait(view)
        ready = time.monotonic()
        project_id, room, follower = _prepare(options, plan, services, view, stack)
        prepared = time.monotonic()
        label_until(
            options.rounds,
            retrain_after=plan.options.retrain_after,
            room=room,
            follower=follower,
            services=services.started,
            view=view,
        )
        view.clear()
    summary = Summary(
        address=services.url,
        project=project_id,
        images=len(plan.images),
        readers=options.readers,
        weights=plan.options.weights,
        strategy=plan.options.strategy,
        seed=options.seed,
        seconds={"bring-up": ready - began, "project": prepared - ready, "rounds": time.monotonic() - prepared},
        rounds=_rows(follower, room, plan.options.retrain_after),
    )
    _print_summary(summary, plan, view)
    if options.json is not None:
        write_atomically(options.json.absolute(), (summary.model_dump_json(indent=1) + "\n").encode())
    if stay:
        _stay(services, project_id, follower, view, plan.options)
    view.print(
        f"Label Studio, backend and worker end now{'' if stay else ' (--stay keeps them)'}. To repeat the choice of "
        f"every round without them: `. {services.exports} && ml-backend replay --project {project_id}`"
    )
    return 0 if summary.exact else 1


@dataclass(frozen=True, slots=True)
class Services:
    """The services, of which the demo has started all but perhaps Label Studio and Redis."""

    url: str  # of Label Studio
    admin: Login
    redis_url: str
    backend: Backend
    started: list[Service]
    label_studio_step: str
    exports: str  # file for the shell, quoted

    def wait(self, view: View) -> None:
        """Wait until all of them answer.

        Raises:
            ServiceError: one of them did not start; with the end of its log.
        """
        view.step("Valkey, backend and worker", 0, None)
        for service in self.started:
            if isinstance(service, LabelStudio):
                view.step("Valkey, backend and worker", 1, 1)
            service.wait()
        view.step("Valkey, backend and worker", 1, 1)
        view.step(self.label_studio_step, 1, 1)


def _start(options: DemoOptions, view: View, stack: ExitStack) -> Services:
    """Start Valkey, Label Studio, the backend and the worker, which ``stack`` will stop.

    Raises:
        ServiceError: a program is missing, or Valkey did not start.
    """
    folder = private_folder(options.folder.absolute())
    # Rounds that a stopped demo left in the queue belong to its project, not to the new one.
    shutil.rmtree(folder / "valkey", ignore_errors=True)
    step = "Label Studio"
    own: list[Service] = []
    if options.label_studio is None:
        label_studio = LabelStudio(folder / "label-studio", _label_studio_program(folder, view))
        if label_studio.is_new:
            step += " (its first start takes a minute or three)"
        own.append(stack.enter_context(label_studio.start()))  # first, since it takes longest
        url, admin = label_studio.url, label_studio.admin
    else:
        url, admin = options.label_studio.url, options.label_studio.admin
    view.step(step, 0, None)
    valkey = stack.enter_context(Valkey(folder / "valkey", options.redis_url).start()).wait()
    environ = {
        **os.environ,
        "AL_REDIS_URL": valkey.url,
        "AL_DATA_DIR": str(folder / "data"),
        "AL_LABEL_STUDIO_URL": url,
        "AL_LABEL_STUDIO_API_KEY": admin.token,
        # People read a demo's logs; an error shows their last lines.
        "AL_LOG_FORMAT": "console",
    }
    if not ("AL_DEVICE" in os.environ or any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()):
        # Set, so that without a GPU the worker loads PyTorch once and not for every round.
        environ["AL_DEVICE"] = "cpu"
    backend = stack.enter_context(Backend(environ, folder / "backend.log").start())
    worker = stack.enter_context(Worker(backend.environ, folder / "worker.log").start())
    write_atomically(folder / EXPORTS, _exports(backend.environ).encode())  # with mode 0600
    exports = shell_path(options.folder)
    return Services(url, admin, valkey.url, backend, [valkey, backend, worker, *own], step, exports)


def shell_path(folder: Path) -> str:
    """The demo's file for the shell, quoted; ``./exports.sh`` in the working folder, since ``.`` looks in PATH."""
    return shlex.quote(f"{folder}/{EXPORTS}")


def _exports(environ: Mapping[str, str]) -> str:
    """Lines of a shell that let `ml-backend` work on the demo's project in another terminal."""
    names = [name for name in sorted(environ) if name.startswith("AL_") or name.lower() == "no_proxy"]
    lines = [f"export {name}={shlex.quote(environ[name])}" for name in names]
    return "\n".join([*lines, f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"', ""])


def _label_studio_program(folder: Path, view: View) -> Path:
    """The program that is named or that `make setup` has built; without a checkout it is installed into the folder.

    Raises:
        ServiceError: it could not be installed.
    """
    program = LabelStudio.default_binary()
    if program.exists() or "AL_LABEL_STUDIO_BIN" in os.environ or not SHIPPED_LOCK.exists():
        return program
    environment = folder / "label-studio-environment"
    step = f"Label Studio's environment in {environment} (once; 0.9 GB)"
    view.step(step, 0, None)
    program = install_label_studio(environment)
    view.step(step, 1, 1)
    return program


def _prepare(
    options: DemoOptions, plan: Plan, services: Services, view: View, stack: ExitStack
) -> tuple[int, ReadingRoom, RoundFollower]:
    """Create the project, upload the images, sign the readers up and connect the backend."""
    client = stack.enter_context(LabelStudioClient(services.url, services.admin.token))
    title = f"Active learning demo {datetime.now(UTC):%Y-%m-%d %H:%M}"
    project_id, config = create_project(client, title, plan.question.xml)
    view.step("uploading images", 0, len(plan.images))
    for done in upload_images(client, services.admin.token, project_id, config.image_key, plan.images):
        view.step("uploading images", done, len(plan.images))
    view.step("connecting the backend and the readers", 0, None)
    invite = str(client.request("GET", "/api/invite", dict)["invite_url"])
    names = [f"reader-{i + 1}" for i in range(options.readers)]
    # Before the first round: while its ranking is imported, sqlite may be locked, and a sign-up would fail.
    readers = [stack.enter_context(Reader(name, services.url)).sign_up(invite) for name in names]
    settings = services.backend.settings
    connect_project(settings, project_id, services.backend.url, plan.extra_params, client)
    store = RoundStore(settings.data_dir)
    queue = RoundQueue(stack.enter_context(connect_redis(services.redis_url)))
    follower = RoundFollower(client, store, queue, store.connection(project_id).project)
    truth = {image.name: image.label for image in plan.images}
    labels = SimulatedLabels(truth, plan.question.classes, options.mistakes, options.seed)
    view.step("connecting the backend and the readers", 1, 1)
    view.print(
        f"project {project_id} at {services.url}/projects/{project_id}/data: {len(readers)} readers begin to label"
    )
    return project_id, ReadingRoom(readers, project_id, config, labels, follower.version), follower


def _rows(follower: RoundFollower, room: ReadingRoom, retrain_after: int) -> tuple[RoundRow, ...]:
    checks = check_order(room.served, follower.rankings, follower.rereads)
    rows: list[RoundRow] = []
    previous_claim: datetime | None = None
    for report, published in follower.rounds:
        claim, delay = follower.claimed_at[published.version], None
        if (visible_at := follower.visible_at.get(published.version)) is not None:
            delay = measure_delay(
                room.submissions,
                retrain_after=retrain_after,
                previous_claim=previous_claim,
                claim=claim,
                report=report,
                published=published,
                visible_at=visible_at,
            )
        rows.append(RoundRow.of(report, published, checks.pop(published.version), delay))
        previous_claim = claim
    if checks:
        # No row could show them.
        wrong = "; ".join(deviation for check in checks.values() for deviation in check.deviations)
        raise RoundError(f"Label Studio served a version that no round published: {wrong}")
    return tuple(rows)


def _print_summary(summary: Summary, plan: Plan, view: View) -> None:
    view.print(summary_table(summary.rounds, plan.question.classes))
    for row in summary.rounds:
        for deviation in row.deviations:
            view.print(f"out of order: {deviation}")
    in_order, served = sum(row.in_order for row in summary.rounds), sum(row.served for row in summary.rounds)
    view.print(f"{in_order} of {served} images were served in exactly the chosen order")
    delays = [row.delay.total_s for row in summary.rounds if row.delay is not None and row.training_s is not None]
    if delays:
        view.print(
            f"from the label that starts a training to its new order in Label Studio: {max(delays):.1f} s at most"
        )


def by_hand(services: Services, project_id: int, project: ProjectKey, *, holdout: bool) -> Text:
    """Where the visitor goes on, and with which passwords.

    Args:
        services: that run.
        project_id: of Label Studio.
        project: its key.
        holdout: whether the demo has one.
    """
    backend = services.backend
    lines = [
        f"Label Studio  [bold]{services.url}/projects/{project_id}/data[/bold]",
        f"    user      {services.admin.email}",
        f"    password  {services.admin.password}",
        "Press [bold]Label All Tasks[/bold] and label the next image by hand; a few labels more start the next round.",
        "",
        f"Owner's page  [bold]{backend.url}/projects/{project}[/bold]",
        f"    user      {backend.user}",
        f"    password  {backend.password}",
        "",
        "In another terminal, in this folder:",
        f"    . {escape(services.exports)}",
        f"    ml-backend doctor --project {project_id} --url {backend.url}",
        f"    ml-backend replay --project {project_id}",
        # It needs a holdout: with AL_CONTROL_SHARE the demo has one.
        *([f"    ml-backend proof --project {project_id}"] if holdout else []),
        "",
        "[bold]Ctrl-C[/bold] here stops everything.",
    ]
    return Text.from_markup("\n".join(lines))


def _stay(services: Services, project_id: int, follower: RoundFollower, view: View, options: ProjectOptions) -> None:
    """Stay up until Ctrl-C; rounds go on with what the visitor labels."""
    view.print(
        Panel(
            by_hand(services, project_id, follower.project, holdout=bool(options.control_share)),
            title="Now label by hand",
            expand=False,
        )
    )
    shown = ""
    bars = RoundProgress(view, announced=len(follower.rounds))
    try:
        with view:
            while True:
                for service in services.started:
                    check_or_restart(service, view)
                try:
                    status = follower.poll(patient=True)
                    bars.show(follower, status)
                    show_labels(view, status.changes, options.retrain_after)
                except RoundError as error:
                    # Not the end: more labels may solve it. Printed once.
                    if str(error) != shown:
                        view.print(Text(str(error), style="red"))
                    shown = str(error)
                time.sleep(POLL_S)
    except KeyboardInterrupt:
        view.print("stopping")


def check_or_restart(service: Service, view: View) -> None:
    """Start the worker again where it has ended: it goes on with its round.

    Raises:
        ServiceError: another service has ended, or the worker does not start.
    """
    try:
        service.check()
    except ServiceError as error:
        if not isinstance(service, Worker):
            raise
        view.print(Text(f"{error}\nThe worker is started again.", style="red"))
        service.start().wait()


@contextmanager
def _service_stack() -> Iterator[ExitStack]:
    """Yield a stack that SIGINT, SIGTERM and SIGHUP unwind too; a second Ctrl-C does not interrupt that."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        with ExitStack() as stack:
            try:
                yield stack
            finally:
                for number in SIGNALS:
                    signal.signal(number, signal.SIG_IGN)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a second demo out of the folder: it would run a second Label Studio on the same database.

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
                "stop it with Ctrl-C, or choose another --out"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
