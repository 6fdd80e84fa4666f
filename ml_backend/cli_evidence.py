"""Sub-commands for those who want evidence; ``cli`` adds them to the ``ml-backend`` command."""

import json as json_text
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ml_backend.errors import UnknownProject, UnknownRound

if TYPE_CHECKING:
    from ml_backend.records import ProjectKey
    from ml_backend.settings import Settings

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
    """Compare what the strategy chose with what came by chance, at equal label counts (trains ten networks).

    Exit status 1 where there are too few labels to compare; it says how many are missing.
    """
    from ml_backend.settings import Settings

    settings = Settings.load()
    key = _connected(settings, project)
    # After the look-up: loading PyTorch takes seconds.
    from ml_backend.assembly.comparing import table
    from ml_backend.assembly.proving import prove

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
    from ml_backend.settings import Settings
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
    from ml_backend.engine.replay import replays

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
