"""The ``ml-backend`` command: parse, call, exit status. Sub-commands import what they need when they run."""

import json as json_text
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ml_backend.errors import BackendError, SettingsError, UnknownProject, UnknownRound
from ml_backend.registry import STRATEGIES
from ml_backend.seeding import enable_deterministic_blas

if TYPE_CHECKING:
    from ml_backend.config import Settings
    from ml_backend.schemas import ProjectKey

Project = Annotated[int, typer.Option(help="id of the Label Studio project", min=1)]


def proof(project: Project) -> None:
    """Compare what the strategy chose with what came by chance, at equal label counts (trains ten networks).

    Exit status 1 where there are too few labels to compare; it says how many are missing.
    """
    from ml_backend.config import Settings

    settings = Settings.load()
    key = _connected(settings, project)
    # After the look-up: loading PyTorch takes seconds.
    from ml_backend.rounds.evaluation import prove, table

    def tell(stage: str, done: int, total: int) -> None:
        said = f"{done} of {total} networks trained" if stage == "train" else f"reading the labels of project {project}"
        typer.echo(said, err=True)

    found = prove(settings, key, tell)
    typer.echo(table(found))
    typer.echo(found.sentence)


def replay(
    project: Project,
    *,
    only: Annotated[str | None, typer.Option("--round", help="one round, e.g. r000012; default: all")] = None,
    json: Annotated[bool, typer.Option("--json", help="one line of JSON a round")] = False,
) -> None:
    """Make every selection again from what its round has kept, and check its hashes; exit status 1 if any differs."""
    from ml_backend.config import Settings
    from ml_backend.storage import RoundStore

    settings = Settings.load()
    store = RoundStore(settings.data_dir)
    kept = store.project(_connected(settings, project))
    if not kept.round_ids():
        raise UnknownRound(
            f"project {project} has no round yet that could be made again: a worker makes the first one "
            "(`ml-backend work`; `ml-backend doctor` says what keeps it from that)"
        )
    # After the look-up: loading PyTorch takes seconds.
    from ml_backend.rounds.replay import replays

    sound = True
    for one in replays(kept, store.cache, only, settings.device):
        sound &= one.sound
        if json:
            typer.echo(json_text.dumps({**one.model_dump(mode="json"), "sound": one.sound}))
            continue
        typer.echo(one.sentence)
        for fault in one.faults:
            typer.echo(f"    FAULT {fault}")
        for note in one.notes:
            typer.echo(f"    note: {note}")
    raise typer.Exit(0 if sound else 1)


def _connected(settings: "Settings", project_id: int) -> "ProjectKey":
    """The project of this id in the data folder.

    Raises:
        UnknownProject: there is none; says in which folder, and which there are.
        StorageError: what is known of it is damaged.
    """
    from ml_backend.storage import RoundStore

    store = RoundStore(settings.data_dir)
    try:
        return store.connection(project_id).project
    except UnknownProject as error:
        known = sorted({connection.project.id for connection in store.connections()})
        there = f"knows {', '.join(map(str, known))}" if known else "knows no project: is it the backend's?"
        raise UnknownProject(f"{error}; the data folder {settings.data_dir} (AL_DATA_DIR) {there}") from error


app = typer.Typer(
    name="ml-backend",
    help="Active learning for Label Studio: the next image a reader sees is the one that teaches the network most.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on", min=1, max=65535)] = 9090,
    threads: Annotated[int, typer.Option(help="requests answered at the same time", min=1, max=256)] = 8,
) -> None:
    """Serve the ML backend that Label Studio connects to (never trains; needs Redis)."""
    from ml_backend.config import Settings
    from ml_backend.scheduling import connect_redis
    from ml_backend.server.serve import serve as run

    settings = Settings.load()
    # Connects to nothing yet. In gunicorn's worker a wrong address would be a traceback.
    connect_redis(settings.redis_url).close()
    run(settings, host=host, port=port, threads=threads)


@app.command()
def work(
    burst: Annotated[bool, typer.Option("--burst", help="end when the queue is empty")] = False,
    *,
    study: Annotated[bool, typer.Option("--study", help="run studies of `simulate --redis` instead")] = False,
) -> None:
    """Run rounds from the queue: train, rank, publish (the process that wants the GPU)."""
    from ml_backend.config import Settings

    if study:
        from ml_backend.simulation.parallel import work_on_studies

        work_on_studies(Settings.load(), burst=burst)
        return
    from ml_backend.scheduling.worker import work as run

    run(Settings.load(), burst=burst)


@app.command()
def connect(
    project: Annotated[int, typer.Option(help="id of the Label Studio project", min=1)],
    url: Annotated[str, typer.Option(help="where Label Studio reaches this backend")] = "http://127.0.0.1:9090",
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            "-o",
            metavar="NAME=VALUE",
            help="a project option, e.g. -o strategy=batch_bald; those given replace all that the connection had",
        ),
    ] = None,
) -> None:
    """Prepare a project in one go, and say what was changed; a second run changes nothing."""
    from ml_backend.config import Settings, checked_address
    from ml_backend.doctor.checks import CheckContext, ground_truth_note
    from ml_backend.label_studio.connect import connect_project

    # Of an address that is none, Label Studio says that it is private.
    url = checked_address(url, "--url")
    settings = Settings.load()
    for line in connect_project(settings, project, url, _pairs(option) if option else None):
        typer.echo(line)
    with closing(CheckContext(project, url, lambda: settings)) as case:
        if note := ground_truth_note(case):
            typer.echo(note)


@app.command()
def doctor(
    project: Annotated[int, typer.Option(help="id of the Label Studio project", min=1)],
    url: Annotated[str, typer.Option(help="where Label Studio reaches this backend")] = "http://127.0.0.1:9090",
    *,
    json: Annotated[bool, typer.Option("--json", help="all findings as JSON, when the last is known")] = False,
) -> None:
    """Check everything between Label Studio and the worker, a line a check; exit status 1 where one fails."""
    from ml_backend.doctor.runner import run_doctor

    raise typer.Exit(run_doctor(project, url, json=json))


@app.command()
def strategies(
    *,
    markdown: Annotated[bool, typer.Option("--markdown", help="as the table that README shows")] = False,
) -> None:
    """List the acquisition functions: what each labels first, its score and unit, what it needs, its source."""
    from ml_backend.registry import markdown_table

    if markdown:
        typer.echo(markdown_table())
        return
    for spec in STRATEGIES.values():
        typer.echo(f"{spec.name}: {spec.summary}")
        typer.echo(f"    score {spec.range} ({spec.unit}); needs {spec.needed}")
        typer.echo(f"    {spec.source}")


@app.command()
def demo(
    *,
    rounds: Annotated[int, typer.Option(help="trained rounds to go through", min=1, envvar="ROUNDS")] = 3,
    readers: Annotated[int, typer.Option(help="simulated readers", min=1, max=20)] = 2,
    images: Annotated[Path | None, typer.Option(help="folder of images instead of drawn ones", envvar="IMAGES")] = None,
    labels: Annotated[Path | None, typer.Option(help="table with path,label", envvar="LABELS")] = None,
    count: Annotated[int, typer.Option(help="images to draw", min=20)] = 160,
    strategy: Annotated[str, typer.Option(help=f"acquisition function: {', '.join(STRATEGIES)}")] = "mean_std",
    seed: Annotated[int, typer.Option(help="seed of everything that is drawn", min=0)] = 0,
    folder: Annotated[Path, typer.Option(help="where the demo keeps its data; reused by the next run")] = Path(".demo"),
    json: Annotated[Path | None, typer.Option(help="write the table there as JSON")] = None,
    stay: Annotated[
        bool | None,
        typer.Option(help="stay up afterwards, to label by hand; default: only on a terminal"),
    ] = None,
) -> None:
    """Start everything, label through Label Studio with simulated readers, and show what each round did."""
    from ml_backend.demo.options import DemoOptions
    from ml_backend.demo.run import run_demo

    raise typer.Exit(
        run_demo(
            DemoOptions(
                rounds=rounds,
                readers=readers,
                images=images,
                labels=labels,
                count=count,
                strategy=strategy,
                seed=seed,
                folder=folder,
                json=json,
                stay=stay,
            )
        )
    )


@app.command()
def simulate(
    *,
    labels: Annotated[Path, typer.Option(help="table with path,label[,patient_id][,split][,source]")],
    out: Annotated[Path, typer.Option(help="folder of the results; the same command goes on where it was stopped")],
    images: Annotated[Path | None, typer.Option(help="folder that the paths of the table start from")] = None,
    ratings: Annotated[Path | None, typer.Option(help="table with path,rater,label: several readers' answers")] = None,
    features: Annotated[Path | None, typer.Option(help="npz file with X and path: no image is read")] = None,
    strategies: Annotated[
        str, typer.Option(help=f"with commas between them: {', '.join(STRATEGIES)}")
    ] = "entropy,mean_std",
    no_random: Annotated[bool, typer.Option("--no-random", help="do not compare with `random`")] = False,
    seeds: Annotated[str, typer.Option(help="how many (10), or which (3,5,7)")] = "10",
    profile: Annotated[str, typer.Option(help="choices that the options below replace: paper or best")] = "paper",
    task: Annotated[
        str | None, typer.Option(help="classes, least severe first: 'normal=normal;diseased=bacterial,viral'")
    ] = None,
    imbalance: Annotated[str | None, typer.Option(help="shares to subsample to: normal=0.14")] = None,
    loss: Annotated[str, typer.Option(help="weighted, unweighted, or both with a comma: compared")] = "weighted",
    finetune: Annotated[str | None, typer.Option(help="head or full")] = None,
    backbone: Annotated[str | None, typer.Option(help="torchvision name of the network")] = None,
    weights: Annotated[str | None, typer.Option(help="imagenet, none, or a file")] = None,
    passes: Annotated[int | None, typer.Option(help="stochastic forward passes T")] = None,
    batch_size: Annotated[int | None, typer.Option(help="images that a round chooses together")] = None,
    initial: Annotated[int | None, typer.Option(help="labelled images of every class at the start")] = None,
    budget: Annotated[str, typer.Option(help="labels at most, or a share of the training images")] = "0.5",
    workers: Annotated[int, typer.Option(help="processes on this machine, of one thread each", min=1)] = 1,
    redis: Annotated[
        str | None,
        typer.Option(help="Redis of workers anywhere (`ml-backend work --study`) that see the same folders"),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
) -> None:
    """Simulate active learning on labelled images: which strategy, how many labels; one command, one report."""
    from ml_backend.simulation.options import SimulateOptions
    from ml_backend.simulation.study import simulate as run

    run(
        SimulateOptions(
            labels=labels,
            out=out,
            images=images,
            ratings=ratings,
            features=features,
            strategies=strategies,
            no_random=no_random,
            seeds=seeds,
            profile=profile,
            task=task,
            imbalance=imbalance,
            loss=loss,
            finetune=finetune,
            backbone=backbone,
            weights=weights,
            passes=passes,
            batch_size=batch_size,
            initial=initial,
            budget=budget,
            workers=workers,
            redis=redis,
            device=device,
        )
    )


@app.command()
def experiment(
    name: Annotated[str | None, typer.Argument(help="which one; `--list` shows them")] = None,
    *,
    list_all: Annotated[bool, typer.Option("--list", help="say what there is, and run nothing")] = False,
    labels: Annotated[Path | None, typer.Option(help="table as of `simulate`; default: films are drawn")] = None,
    images: Annotated[Path | None, typer.Option(help="folder that the paths of the table start from")] = None,
    ratings: Annotated[Path | None, typer.Option(help="table with path,rater,label")] = None,
    features: Annotated[Path | None, typer.Option(help="npz file with X and path: no image is read")] = None,
    task: Annotated[str | None, typer.Option(help="classes of your table, least severe first")] = None,
    backbone: Annotated[str | None, typer.Option(help="torchvision name of the network")] = None,
    weights: Annotated[str | None, typer.Option(help="imagenet, none, or a file")] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the results; default: below experiments/")] = None,
    seeds: Annotated[int | None, typer.Option(help="how many; default: as the experiment has it", min=1)] = None,
    quick: Annotated[bool, typer.Option("--quick", help="everything tiny: a trial of the experiment itself")] = False,
    workers: Annotated[int, typer.Option(help="processes on this machine, of one thread each", min=1)] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
) -> None:
    """Run an experiment that ships: what it expects, what it found, and whether that is what was expected."""
    from ml_backend.simulation.specs import markdown

    if list_all or name is None:
        typer.echo(markdown())
        return
    # Not for the list: loading PyTorch takes seconds.
    from ml_backend.simulation.experiments import ExperimentOptions, run_experiment

    run_experiment(
        ExperimentOptions(
            name=name,
            labels=labels,
            images=images,
            ratings=ratings,
            features=features,
            task=task,
            backbone=backbone,
            weights=weights,
            out=out,
            seeds=seeds,
            quick=quick,
            workers=workers,
            device=device,
        )
    )


app.command()(proof)
app.command()(replay)


def main() -> None:
    """Run the command; an error that we raise on purpose is one line and exit status 1."""
    enable_deterministic_blas()
    try:
        app()
    except BackendError as error:
        typer.echo(f"ml-backend: {error}", err=True)
        sys.exit(1)


def _pairs(options: list[str]) -> dict[str, object]:
    pairs: dict[str, object] = {}
    for text in options:
        name, equals, value = text.partition("=")
        if not (equals and name):
            raise SettingsError(f"--option {text!r}: expected NAME=VALUE, for example strategy=entropy")
        pairs[name] = value
    return pairs
