"""The ``ml-backend`` command: parse, call, exit status.

Sub-commands are imported when they run, so that ``--help`` opens at once.
"""

import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from ml_backend.cli_evidence import bench, proof, replay
from ml_backend.errors import BackendError, SettingsError
from ml_backend.strategies import STRATEGIES

__all__ = ["app", "main"]

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
    from ml_backend.queueing import connect_redis
    from ml_backend.server.serve import serve as run
    from ml_backend.settings import Settings

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
    from ml_backend.settings import Settings

    if study:
        from ml_backend.study.worker import work_on_studies

        work_on_studies(Settings.load(), burst=burst)
        return
    from ml_backend.worker.start import work as run

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
    from ml_backend.doctor.asked_images import ground_truth_note
    from ml_backend.doctor.case import Case
    from ml_backend.label_studio.connect import connect_project
    from ml_backend.settings import Settings, checked_address

    # Of an address that is none, Label Studio says that it is private.
    url = checked_address(url, "--url")
    settings = Settings.load()
    for line in connect_project(settings, project, url, _pairs(option) if option else None):
        typer.echo(line)
    with closing(Case(project, url, lambda: settings)) as case:
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
    from ml_backend.doctor.run import run_doctor

    raise typer.Exit(run_doctor(project, url, json=json))


@app.command()
def strategies(
    *,
    markdown: Annotated[bool, typer.Option("--markdown", help="as the table that README shows")] = False,
) -> None:
    """List the acquisition functions: what each labels first, its score and unit, what it needs, its source."""
    from ml_backend.strategies import markdown_table

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
    from ml_backend.demo.run import DemoOptions, run_demo

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
    from ml_backend.study.options import SimulateOptions
    from ml_backend.study.simulate import run_study

    raise typer.Exit(
        run_study(
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
    from ml_backend.study.experiment_outlines import markdown

    if list_all or name is None:
        typer.echo(markdown())
        return
    # Not for the list: loading PyTorch takes seconds.
    from ml_backend.study.experiments import ExperimentOptions, run_experiment

    raise typer.Exit(
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
    )


app.command()(bench)
app.command()(proof)
app.command()(replay)


def main() -> None:
    """Run the command; an error that we raise on purpose is one line and exit status 1."""
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
