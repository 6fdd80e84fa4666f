"""The demo's story: bring everything up, let readers label, compare what they were served with what was chosen."""

import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from ml_backend.demo.bringup import Site, bring_up
from ml_backend.demo.fidelity import compare
from ml_backend.demo.labelling import RoundBars, label_until, show_labels
from ml_backend.demo.options import DemoOptions
from ml_backend.demo.plan import Plan, choose_question, make_plan, visitors_films
from ml_backend.demo.project import create_project, upload
from ml_backend.demo.readers import Answers, Reader, ReadingRoom
from ml_backend.demo.summary import RoundRow, Summary, delay, round_row, summary_table
from ml_backend.demo.view import View, make_view
from ml_backend.demo.watch import RoundFollower
from ml_backend.errors import RoundError, ServiceError
from ml_backend.label_studio.connect import connect_project
from ml_backend.processes.process import private_folder
from ml_backend.settings.network import bypass_proxies, trusted_certificates
from ml_backend.storage import write_atomically

__all__ = ["DemoOptions", "run_demo"]

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
    invite = str(site.client.transport.ask("GET", "/api/invite", dict)["invite_url"])
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
