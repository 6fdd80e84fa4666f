"""The ``ml-backend`` command: parse, call, exit status.

Sub-commands are imported when they run, so that ``--help`` opens at once.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ml_backend.errors import BackendError, SettingsError

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
) -> None:
    """Run rounds from the queue: train, rank, publish (the process that wants the GPU)."""
    from ml_backend.settings import Settings
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
    from ml_backend.label_studio.connect import connect_project
    from ml_backend.settings import Settings

    if not url.startswith(("http://", "https://")):
        # Label Studio would call it a private address.
        raise SettingsError(f"--url {url!r}: expected http://host:port or https://host")
    for line in connect_project(Settings.load(), project, url, _pairs(option) if option else None):
        typer.echo(line)


@app.command()
def demo(
    *,
    rounds: Annotated[int, typer.Option(help="trained rounds to go through", min=1, envvar="ROUNDS")] = 3,
    readers: Annotated[int, typer.Option(help="simulated readers", min=1, max=20)] = 2,
    images: Annotated[Path | None, typer.Option(help="folder of images instead of drawn ones", envvar="IMAGES")] = None,
    labels: Annotated[Path | None, typer.Option(help="table with path,label", envvar="LABELS")] = None,
    count: Annotated[int, typer.Option(help="images to draw", min=20)] = 160,
    strategy: Annotated[str, typer.Option(help="acquisition function")] = "mean_std",
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
