"""The ``ml-backend`` command: parse, call, exit status. Each sub-command imports what it needs when it runs."""

import json as json_text
import signal
import sys
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from ml_backend.blas import enable_deterministic_blas, use_threads
from ml_backend.errors import BackendError, SettingsError, UnknownProject, UnknownRound
from ml_backend.extras import DISTRIBUTION, require
from ml_backend.registry import STRATEGIES

if TYPE_CHECKING:
    from ml_backend.config import Settings
    from ml_backend.schemas import ProjectKey

Project = Annotated[int, typer.Option(help="id of the Label Studio project", min=1)]
BackendUrl = Annotated[str, typer.Option(help="address of this backend as Label Studio reaches it")]
RENAMED = {
    ("simulate", "--strategies"): "--strategy",
    ("demo", "--folder"): "--out",
    ("demo", "--json"): "--summary",
}
"""Options of a command by their names up to version 0.2 -> their names now. Old names go with version 0.4."""


class _Command(TyperCommand):
    """A command that also takes the old names of its options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for i, word in enumerate(args):
            old, equals, value = word.partition("=")
            if new := RENAMED.get((self.name or "", old)):
                args[i] = f"{new}{equals}{value}"
                typer.echo(f"ml-backend: {old} is deprecated: it is called {new} now", err=True)
        return super().parse_args(ctx, args)


def _strategies(incomplete: str) -> Iterator[str]:
    """Completions of names with commas between them."""
    before, comma, name = incomplete.rpartition(",")
    return (f"{before}{comma}{known}" for known in STRATEGIES if known.startswith(name))


def _options(incomplete: str) -> Iterator[str]:
    """Completions of NAME=VALUE."""
    from ml_backend.config import ProjectOptions

    return (f"{name}=" for name in ProjectOptions.model_fields if name.startswith(incomplete))


def _experiments(incomplete: str) -> Iterator[str]:
    from ml_backend.simulation.specs import EXPERIMENTS

    return (name for name in EXPERIMENTS if name.startswith(incomplete))


app = typer.Typer(
    name="ml-backend",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ml-backend {version(DISTRIBUTION)}")
        raise typer.Exit


@app.callback()
def common(
    show_version: Annotated[
        bool, typer.Option("--version", help="print the version", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Active learning for Label Studio: readers see the most informative images first."""


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on", min=1, max=65535)] = 9090,
    threads: Annotated[int, typer.Option(help="requests answered at the same time", min=1, max=256)] = 8,
) -> None:
    """Serve the ML backend for Label Studio (does not train; needs Redis)."""
    from ml_backend.config import Settings
    from ml_backend.scheduling import connect_redis
    from ml_backend.server.serve import serve as run

    settings = Settings.load()
    # Only parses the address: in gunicorn's worker a wrong one would be a traceback.
    connect_redis(settings.redis_url).close()
    run(settings, host=host, port=port, threads=threads)


@app.command()
def work(
    burst: Annotated[bool, typer.Option("--burst", help="end when the queue is empty")] = False,
    *,
    study: Annotated[bool, typer.Option("--study", help="run studies of `simulate --redis` instead")] = False,
    nproc: Annotated[int, typer.Option(help="processes of a round on this machine, which share its cores", min=1)] = 1,
    gpus: Annotated[
        str | None, typer.Option(help="instead of --nproc: number of GPUs, or all; one process each")
    ] = None,
    nnodes: Annotated[int, typer.Option(help="machines that run a round together", min=1)] = 1,
    node_rank: Annotated[int, typer.Option(help="number of this machine; machine 0 takes the jobs", min=0)] = 0,
    master: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="of machine 0, where the others reach it")
    ] = None,
) -> None:
    """Run rounds from the queue: train, rank, publish (the process that uses the GPU)."""
    # Before anything is imported: process 1 of a container would ignore a signal that it does not handle.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    require("simulate" if study else "worker", "`work`")
    if sys.stderr.isatty():
        typer.echo("ml-backend: loading the worker's libraries, which takes some seconds", err=True)
    import structlog

    from ml_backend.config import Settings
    from ml_backend.logs import set_up_logs

    settings = Settings.load()
    set_up_logs(settings)
    structlog.get_logger(__name__).info(
        "worker starts", data_folder=str(settings.data_dir.absolute()), device=settings.device
    )
    if study:
        from ml_backend.simulation.parallel import work_on_studies

        work_on_studies(settings, burst=burst)
        return
    from ml_backend.scheduling.followers import Processes, count_gpus, follow_forever
    from ml_backend.scheduling.worker import work as run

    nproc = nproc if gpus is None else count_gpus(gpus)
    processes = Processes(nproc, nnodes, node_rank, master)
    if node_rank:
        follow_forever(processes)
    run(settings, burst=burst, processes=processes)


@app.command()
def connect(
    project: Annotated[int | None, typer.Option(help="id of the Label Studio project", min=1)] = None,
    url: BackendUrl = "http://127.0.0.1:9090",
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            "-o",
            metavar="NAME=VALUE",
            autocompletion=_options,
            help="a project option, e.g. -o strategy=batch_bald; replaces all options of the connection "
            "but its profile; a new connection has profile=best unless profile=paper is given",
        ),
    ] = None,
    create: Annotated[
        str | None, typer.Option(metavar="TITLE", help="instead of --project: its title; made where there is none")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="label config of a new project: severity, normal_diseased, or an XML file"),
    ] = None,
) -> None:
    """Prepare a project, and list the changes; a second run changes nothing."""
    from ml_backend.config import Settings, checked_address
    from ml_backend.doctor.checks import CheckContext, connect_notes
    from ml_backend.label_studio.client import LabelStudioClient, label_studio_version
    from ml_backend.label_studio.connect import check_backend_address, choose_project, connect_project, version_note

    # Label Studio calls an invalid address a private one.
    url = checked_address(url, "--url")
    options = _pairs(option) if option else None
    settings = Settings.load()
    check_backend_address(url)
    with LabelStudioClient.from_settings(settings) as client:
        # First, as an old release may refuse what comes.
        release = label_studio_version(client.url)
        typer.echo(f"Label Studio {release}: {version_note(release)}")
        number, found = choose_project(client, project, create, config, options)
        if found:
            typer.echo(found)
        for line in connect_project(settings, number, url, options, client, profile="best"):
            typer.echo(line)
    with closing(CheckContext(number, url, lambda: settings)) as context:
        for line in connect_notes(context):
            typer.echo(line)


@app.command(name="import")
def import_files(
    source: Annotated[
        str,
        typer.Argument(
            help="folder, ZIP archive, CSV file with path[,patient_id][,study_date][,view], or s3://, gs://"
        ),
    ],
    *,
    title: Annotated[str | None, typer.Option(help="of the project, which is made where there is none")] = None,
    project: Annotated[int | None, typer.Option(help="instead of --title: id of the project", min=1)] = None,
    label_config: Annotated[str, typer.Option(help="of a new project: a name, or an XML file")] = "severity",
    url: BackendUrl = "http://127.0.0.1:9090",
    side: Annotated[int, typer.Option(help="longest side of an uploaded image, in pixels", min=64)] = 2048,
    views: Annotated[
        str | None,
        typer.Option(
            help="view positions to take, such as PA,AP; images that name none are taken; default: not lateral"
        ),
    ] = None,
    modalities: Annotated[
        str | None,
        typer.Option(help="of DICOM to take, or any; files that name none are taken; default: CR,DX,DR,RG,MG,OT"),
    ] = None,
    columns: Annotated[str | None, typer.Option(help="of the CSV file that go into the tasks as they are")] = None,
    refuse_burned_in: Annotated[
        bool, typer.Option("--refuse-burned-in", help="refuse images that may show text")
    ] = False,
    first_frame: Annotated[
        bool, typer.Option("--first-frame", help="take the first frame of a file of several, instead of refusing it")
    ] = False,
    leave_in_place: Annotated[
        bool,
        typer.Option("--leave-in-place", help="upload nothing: Label Studio shows the files, their metadata and names"),
    ] = False,
    document_root: Annotated[
        Path | None,
        typer.Option(
            help="of Label Studio's local files, for --leave-in-place in a folder",
            envvar="LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT",
        ),
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option(help="key of the pseudonyms; default: in the folder of --out")
    ] = None,
    out: Annotated[Path, typer.Option(help="folder of the key and of what was rendered; keep it")] = Path(
        "import-state"
    ),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="read the files, and change nothing")] = False,
    json: Annotated[bool, typer.Option("--json", help="print the result as JSON, and the progress to stderr")] = False,
) -> None:
    """Make a project of a folder of studies, de-identified and connected, and wait for its first order.

    The same command goes on where it was stopped. Exit status 1 if a file was refused.
    """
    given = {**locals()}  # the options, before any other local variable
    from ml_backend.imports.run import ImportOptions, run_import

    raise typer.Exit(run_import(ImportOptions(**given)))


@app.command()
def doctor(
    project: Project,
    url: BackendUrl = "http://127.0.0.1:9090",
    *,
    json: Annotated[bool, typer.Option("--json", help="all findings as JSON, at the end")] = False,
) -> None:
    """Check everything between Label Studio and the worker, one line per check; exit status 1 if one fails."""
    from ml_backend.doctor.runner import run_doctor

    raise typer.Exit(run_doctor(project, url, json=json))


@app.command()
def strategies(
    *,
    markdown: Annotated[bool, typer.Option("--markdown", help="as the table that README shows")] = False,
) -> None:
    """List the acquisition functions: what each ranks first, its score and unit, its inputs, its source."""
    from ml_backend.registry import markdown_table

    if markdown:
        typer.echo(markdown_table())
        return
    for spec in STRATEGIES.values():
        typer.echo(f"{spec.name}: {spec.summary}")
        typer.echo(f"    score {spec.range} ({spec.unit}); needs {spec.needed}")
        typer.echo(f"    {spec.source}")


@app.command(cls=_Command)
def demo(
    *,
    rounds: Annotated[int, typer.Option(help="rounds with a trained network", min=1, envvar="ROUNDS")] = 3,
    readers: Annotated[int, typer.Option(help="simulated readers", min=1, max=20)] = 2,
    images: Annotated[Path | None, typer.Option(help="folder; default: synthetic images", envvar="IMAGES")] = None,
    labels: Annotated[Path | None, typer.Option(help="CSV file with path,label", envvar="LABELS")] = None,
    count: Annotated[int, typer.Option(help="images to draw", min=20)] = 160,
    strategy: Annotated[
        str, typer.Option(help=f"acquisition function: {', '.join(STRATEGIES)}", autocompletion=_strategies)
    ] = "mean_std",
    seed: Annotated[int, typer.Option(help="random seed", min=0)] = 0,
    folder: Annotated[Path, typer.Option("--out", help="data folder of the demo; reused by the next run")] = Path(
        ".demo"
    ),
    json: Annotated[Path | None, typer.Option("--summary", help="file for the summary as JSON")] = None,
    stay: Annotated[
        bool | None,
        typer.Option(help="keep running at the end, to label by hand; default: only on a terminal"),
    ] = None,
) -> None:
    """Start all services, label in Label Studio with simulated readers, and show the result of each round."""
    given = {**locals()}  # the options, before any other local variable
    require("worker", "`demo`")
    from ml_backend.demo.options import DemoOptions
    from ml_backend.demo.run import run_demo

    raise typer.Exit(run_demo(DemoOptions(**given)))


@app.command(cls=_Command)
def simulate(
    *,
    labels: Annotated[Path, typer.Option(help="CSV file with path,label[,patient_id][,split][,source]")],
    out: Annotated[Path, typer.Option(help="folder of the results; the same command resumes a stopped run")],
    images: Annotated[
        str | None, typer.Option(help="root of the paths in the table: a folder, or s3://bucket/prefix")
    ] = None,
    ratings: Annotated[
        Path | None,
        typer.Option(help="CSV file with path,rater,label: the readers' answers, played through `-o consensus=RULE`"),
    ] = None,
    features: Annotated[Path | None, typer.Option(help="npz file with X and path, instead of images")] = None,
    strategies: Annotated[
        str,
        typer.Option(
            "--strategy",
            help=f"acquisition functions, separated by commas: {', '.join(STRATEGIES)}; or module:function",
            autocompletion=_strategies,
        ),
    ] = "entropy,mean_std",
    no_random: Annotated[bool, typer.Option("--no-random", help="leave out the baseline `random`")] = False,
    readers: Annotated[
        str | None,
        typer.Option(
            help="synthetic readers instead of --ratings: good*4,poor (good, fair, poor, severe, mild), or a "
            "CSV or JSON file of confusion matrices"
        ),
    ] = None,
    reads: Annotated[int | None, typer.Option(help="answers an image at most; default: all", min=1)] = None,
    count: Annotated[str, typer.Option(help="what the budget and the curves count: images or reads")] = "images",
    no_baseline: Annotated[bool, typer.Option("--no-baseline", help="train no network on all labels")] = False,
    seeds: Annotated[str | None, typer.Option(help="number of seeds, or the seeds (3,5,7); default: 20")] = None,
    profile: Annotated[str, typer.Option(help="defaults of the options below: paper or best")] = "paper",
    start: Annotated[
        str | None,
        typer.Option(
            help="live (default): the first labels are found as in a live loop, and every label counts; "
            "given: a start set is found by the true labels, as in the paper"
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="classes, least severe first: 'normal=normal;diseased=bacterial,viral'")
    ] = None,
    imbalance: Annotated[str | None, typer.Option(help="fractions to subsample to: normal=0.14")] = None,
    loss: Annotated[str, typer.Option(help="weighted, unweighted, or both: weighted,unweighted")] = "weighted",
    finetune: Annotated[str | None, typer.Option(help="head or full")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="network: torchvision's name, timm/NAME, or one for radiographs")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="imagenet, none, or a file")] = None,
    passes: Annotated[int | None, typer.Option(help="stochastic forward passes T")] = None,
    batch_size: Annotated[int | None, typer.Option(help="images per round")] = None,
    initial: Annotated[int | None, typer.Option(help="labelled images per class in a given start")] = None,
    min_labels_per_class: Annotated[
        int | None, typer.Option(help="labels of two classes before the first network of a live start")
    ] = None,
    cold_start: Annotated[
        str | None, typer.Option(help="order before the first network of a live start; `random` keeps to random")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            "-o",
            metavar="NAME=VALUE",
            autocompletion=_options,
            help="another project option, e.g. -o committee=5",
        ),
    ] = None,
    budget: Annotated[
        str, typer.Option(help="maximum number of labels or, as --count says, of reads; or fraction of all")
    ] = "0.5",
    workers: Annotated[int, typer.Option(help="processes on this machine, each with one thread", min=1)] = 1,
    redis: Annotated[
        str | None,
        typer.Option(help="Redis of workers (`ml-backend work --study`) that share the folders"),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
) -> None:
    """Simulate active learning on labelled images: compare strategies by their labels needed, in one report.

    Exit status 1 where no network was trained.
    """
    given = {**locals()}  # the options, before any other local variable
    require("simulate", "`simulate`")
    from ml_backend.simulation.options import SimulateOptions
    from ml_backend.simulation.study import simulate as run

    if not run(SimulateOptions(**given | {"option": option or ()})).rounds:
        raise typer.Exit(1)


@app.command()
def compare(
    study1: Annotated[Path, typer.Argument(help="folder of a finished study (--out of `simulate`), the reference")],
    study2: Annotated[Path | None, typer.Argument(help="folder of another one")] = None,
    *,
    reference: Annotated[
        str | None, typer.Option(help="of one study: the strategy to compare its others with; default: random")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Compare two studies strategy by strategy, or the strategies of one study with one of them.

    Runs are compared in pairs where they ran the same seeds on the same data.
    """
    require("simulate", "`compare`")
    from rich.console import Console

    from ml_backend.simulation.compare import compare as run
    from ml_backend.simulation.compare import compare_strategies, print_comparison

    if study2 is not None and reference is not None:
        raise SettingsError(
            f"--reference {reference} compares strategies of one study: leave out {study2}, or --reference"
        )
    found = compare_strategies(study1, reference or "random") if study2 is None else run(study1, study2)
    if json:
        typer.echo(found.model_dump_json(indent=1))
    else:
        print_comparison(found, Console())


@app.command()
def experiment(
    name: Annotated[
        str | None, typer.Argument(help="name of the experiment; none: a table of them", autocompletion=_experiments)
    ] = None,
    *,
    list_all: Annotated[bool, typer.Option("--list", help="list the experiments with all that is known")] = False,
    labels: Annotated[Path | None, typer.Option(help="CSV file as for `simulate`; default: synthetic images")] = None,
    images: Annotated[Path | None, typer.Option(help="root of the paths in the table")] = None,
    ratings: Annotated[Path | None, typer.Option(help="CSV file with path,rater,label")] = None,
    features: Annotated[Path | None, typer.Option(help="npz file with X and path, instead of images")] = None,
    task: Annotated[str | None, typer.Option(help="classes of the table, least severe first")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="network: torchvision's name, timm/NAME, or one for radiographs")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="imagenet, none, or a file")] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the results; default: in experiments/")] = None,
    seeds: Annotated[int | None, typer.Option(help="number of seeds; default: that of the experiment", min=1)] = None,
    quick: Annotated[bool, typer.Option("--quick", help="tiny sizes, to try out the experiment")] = False,
    workers: Annotated[int, typer.Option(help="processes on this machine, each with one thread", min=1)] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
) -> None:
    """Run one of the shipped experiments, and compare its result with the expected one."""
    given = {**locals()}  # the options, before any other local variable
    from ml_backend.simulation.specs import markdown, print_table

    if given.pop("list_all"):
        typer.echo(markdown())
        return
    if name is None:
        defaults = {"quick": False, "workers": 1, "device": "auto"}
        if typed := [option for option, value in given.items() if value != defaults.get(option)]:
            raise SettingsError(
                f"--{typed[0]} without an experiment: give its name (`ml-backend experiment` lists them)"
            )
        print_table()
        return
    require("simulate", "`experiment`")
    # Not for the list: loading PyTorch takes seconds.
    from ml_backend.simulation.experiments import ExperimentOptions, run_experiment

    run_experiment(ExperimentOptions(**given))


@app.command()
def proof(project: Project) -> None:
    """Compare the chosen images with the random holdout at equal label counts (trains ten networks).

    Exit status 1 where there are too few labels to compare, with the number that is missing.
    """
    require("worker", "`proof`")
    from ml_backend.config import Settings

    settings = Settings.load()
    key = _connected(settings, project)
    # After the look-up: loading PyTorch takes seconds.
    from ml_backend.rounds.evaluation import prove, table

    def show(stage: str, done: int, total: int) -> None:
        training = f"{done} of {total} networks trained"
        typer.echo(training if stage == "train" else f"reading the labels of project {project}", err=True)

    found = prove(settings, key, show)
    typer.echo(table(found))
    typer.echo(found.sentence)


@app.command()
def replay(
    project: Project,
    *,
    only: Annotated[str | None, typer.Option("--round", help="one round, e.g. r000012; default: all")] = None,
    json: Annotated[bool, typer.Option("--json", help="one line of JSON a round")] = False,
) -> None:
    """Repeat every selection from the stored data of its round, and check the hashes; exit status 1 if any differs."""
    require("worker", "`replay`")
    from ml_backend.config import Settings
    from ml_backend.storage import RoundStore

    settings = Settings.load()
    store = RoundStore(settings.data_dir)
    kept = store.project(_connected(settings, project))
    if not kept.round_ids():
        raise UnknownRound(
            f"project {project} has no round to replay yet: a worker runs the first one (`ml-backend work`; "
            "`ml-backend doctor` shows what prevents it)"
        )
    # After the look-up: loading PyTorch takes seconds.
    from ml_backend.logs import logs_on_stderr
    from ml_backend.rounds.replay import replays

    sound = True
    with logs_on_stderr():
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


@app.command()
def export(
    project: Project,
    out: Annotated[Path, typer.Option(help="new folder for the model")],
    *,
    only: Annotated[
        str | None, typer.Option("--round", help="its number, e.g. 12; default: the newest with a network")
    ] = None,
    onnx: Annotated[bool, typer.Option(help="also write ONNX files; needs the extra `export`")] = True,
) -> None:
    """Write the network of a round into a folder: safetensors, ONNX, and a model card."""
    require("export" if onnx else "worker", "`export`")
    from ml_backend.config import Settings

    settings = Settings.load()
    key = _connected(settings, project)
    # After the look-up: loading PyTorch takes seconds.
    from ml_backend.rounds.export import export_round

    card = export_round(settings, key, out, only, onnx=onnx)
    typer.echo(f"round {int(card.round_id[1:])} of project {project}: {card.backbone}, {card.passes} passes, in {out}")
    if card.onnx is not None:
        typer.echo(
            f"model.onnx, without dropout, differs from the mean over the passes by {card.onnx.approximation_mean:.3f} "
            f"on average and {card.onnx.approximation_largest:.3f} at most, on {card.onnx.images} {card.onnx.of} images"
        )
    typer.echo(card.notice)


@app.command()
def predict(
    model: Annotated[Path, typer.Option(help="folder that `ml-backend export` wrote")],
    *,
    images: Annotated[
        str | None, typer.Option(help="folder, ZIP archive, CSV file with the column path, or address (s3://...)")
    ] = None,
    out: Annotated[Path, typer.Option(help="CSV file, one row an image")] = Path("predictions.csv"),
    patients: Annotated[Path | None, typer.Option(help="CSV file, one row a patient")] = None,
    to_project: Annotated[
        int | None, typer.Option(help="instead of --images: project whose unlabelled tasks are predicted", min=1)
    ] = None,
    shape: Annotated[
        Literal["prelabels", "order"], typer.Option("--as", help="what its readers get: prelabels or order")
    ] = "prelabels",
) -> None:
    """Predict images with an exported model: probabilities, entropy and mutual information.

    Exit status 1 where an image could not be read; the others are predicted.
    """
    require("worker", "`predict`")
    if (images is None) == (to_project is None):
        raise SettingsError("give either --images or --to-project: what should be predicted?")
    from ml_backend.config import Settings

    settings = Settings.load()
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    from ml_backend.logs import logs_on_stderr
    from ml_backend.rounds.predict import predict_files, predict_project

    columns = TextColumn("{task.completed:,.0f} images"), TimeElapsedColumn()
    with (
        logs_on_stderr(),
        Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar,
    ):
        task = bar.add_task("", total=None)

        def show(done: int) -> None:
            bar.update(task, completed=done)

        if to_project is not None:
            published, unreadable = predict_project(settings, model, to_project, shape, show)
            done = f"{len(published.image_ids)} tasks of project {to_project} have predictions: {published.version}"
        else:
            found = predict_files(
                model,
                str(images),
                out,
                cache=settings.data_dir / "cache",
                patients=patients,
                device=settings.device,
                cache_gb=settings.cache_gb,
                progress=show,
            )
            unreadable = found.unreadable
            unknown = f", {found.unknown_patient} without a patient" if patients is not None else ""
            done = f"{found.images} images in {out}{unknown}"
            for name, reason in found.skipped:
                typer.echo(f"skipped: {name}: {reason}", err=True)
    typer.echo(done)
    for name, reason in unreadable:
        typer.echo(f"not predicted: {name}: {reason}", err=True)
    raise typer.Exit(1 if unreadable else 0)


def _connected(settings: "Settings", project_id: int) -> "ProjectKey":
    """The project of this id in the data folder.

    Raises:
        UnknownProject: there is none; names the folder and the projects in it.
        StorageError: its record is damaged.
    """
    from ml_backend.storage import RoundStore

    store = RoundStore(settings.data_dir)
    try:
        return store.connection(project_id).project
    except UnknownProject as error:
        known = sorted({connection.project.id for connection in store.connections()})
        there = f"knows {', '.join(map(str, known))}" if known else "knows no project: is it the backend's?"
        raise UnknownProject(f"{error}; the data folder {settings.data_dir} (AL_DATA_DIR) {there}") from error


def main() -> None:
    """Run the command; a BackendError is printed as one line, with exit status 1."""
    enable_deterministic_blas()
    try:
        use_threads()
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
