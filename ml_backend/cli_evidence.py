"""Sub-commands for those who want evidence; ``cli`` adds them to the ``ml-backend`` command."""

import json as json_text
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["bench", "proof", "replay"]

Project = Annotated[int, typer.Option(help="id of the Label Studio project", min=1)]


def bench(
    *,
    only: Annotated[list[str] | None, typer.Option(help="a case to measure; may be repeated; default: all")] = None,
    repeats: Annotated[int | None, typer.Option(help="of every task; default 5, with --quick 1", min=1)] = None,
    quick: Annotated[bool, typer.Option("--quick", help="everything tiny: a trial of the benchmark itself")] = False,
    peers: Annotated[bool, typer.Option("--peers/--no-peers", help="measure the other libraries beside ours")] = True,
    images: Annotated[Path | None, typer.Option(help="folder of JPEG and PNG to decode instead of drawn films")] = None,
    folder: Annotated[Path, typer.Option(help="where the peers' environment is built, once")] = Path(".bench"),
    json: Annotated[Path | None, typer.Option(help="write every single repeat there as JSON")] = None,
    record: Annotated[Path | None, typer.Option(help="write the picks of batchbald-redux there as JSON")] = None,
) -> None:
    """Measure speed, side by side with other libraries (figures, not a test: a missed floor is no failure)."""
    from ml_backend.bench.run import BenchOptions, run_bench

    run_bench(
        BenchOptions(
            only=tuple(only or ()),
            repeats=repeats,
            quick=quick,
            peers=peers,
            images=images,
            folder=folder,
            json=json,
            record=record,
        )
    )


def proof(project: Project) -> None:
    """Compare what the strategy chose with what came by chance, at equal label counts (trains ten networks)."""
    from ml_backend.assembly.proving import prove
    from ml_backend.settings import Settings
    from ml_backend.storage import RoundStore

    settings = Settings.load()
    typer.echo(prove(settings, RoundStore(settings.data_dir).connection(project).project).sentence)


def replay(
    project: Project,
    *,
    only: Annotated[str | None, typer.Option("--round", help="one round, e.g. r000012; default: all")] = None,
    json: Annotated[bool, typer.Option("--json", help="one line of JSON a round")] = False,
) -> None:
    """Make every selection again from what its round has kept, and check its hashes; exit status 1 if any differs."""
    from ml_backend.engine.replay import replays
    from ml_backend.settings import Settings
    from ml_backend.storage import RoundStore

    store = RoundStore(Settings.load().data_dir)
    sound = True
    for one in replays(store.project(store.connection(project).project), store.cache, only):
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
