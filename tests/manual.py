"""The commands of the manual, and the tests that run them.

The manual is README, CONTRIBUTING and the pages of docs. Its commands are the lines of ``sh`` blocks and code within
sentences. ``RUNNERS`` names the test file that runs each, taken from the text, and how a run differs from a reader's.
A test file gets its commands by ``commands_run_by(__file__)``; ``test_manual.py`` refuses a command without a runner.
"""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
PROGRAMS = (
    *("make", "ml-backend", "label-studio", "label-studio-ml", "redis-server", "valkey-server", "docker", "git"),
    *("uv", "pip", "python3?", "pytest", "curl", "export", "cp", "cd", "apt-get"),
)
TYPED = re.compile(rf"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(?:{'|'.join(PROGRAMS)}) +\S")
NAME_ALONE = re.compile(r"ml-backend [a-z-]+")  # of a command, not a line to type


@dataclass(frozen=True)
class Runner:
    """The test that runs the commands with a given beginning.

    Attributes:
        begins: whole words.
        by: test file.
        added: options that the test appends.
        why: how the run differs from a reader's, and the reason.
    """

    begins: str
    by: str
    added: str = ""
    why: str = ""


@dataclass(frozen=True)
class Command:
    """A command in one line, and the first page with it."""

    text: str
    page: str

    @property
    def bare(self) -> str:
        """The command without the folder of the program."""
        return self.text.removeprefix(".venv/bin/")

    @property
    def words(self) -> list[str]:
        """The words as a shell splits them."""
        return shlex.split(self.bare)

    @property
    def runner(self) -> Runner:
        """The test that runs it."""
        found = runner_of(self)
        assert found is not None, f"{self.page}: no test runs `{self.text}`: see tests/manual.py"
        return found

    @property
    def run_as(self) -> str:
        """The command with the options that its test appends."""
        return f"{self.text} {self.runner.added}".strip()


_TABLES = "tests/integration/test_manual_tables.py"
_BENCH = "tests/benchmarks/test_bench.py"
_EXPERIMENTS = "tests/integration/simulation/test_experiments.py"
_PROJECT = "tests/system/test_manual_project.py"
_EXPORT = "tests/unit/rounds/test_export.py"
_HERE = "tests/test_manual.py"
_DOCKER = "tests/test_docker.py"
_FEW = "with 25 labels of a class before the first network, 80 images would not do"
_ALONE = "each worker loads PyTorch for seconds, and those of docs/researchers.md are started"
_FOLLOWERS = "tests/unit/scheduling/test_followers.py"
_STANDS = "project, addresses, keys and folders are those of the test"
_ENGINE = "no engine here, see tests/containers/run"
_CI = "CI has run all of it with `make test`"

RUNNERS: tuple[Runner, ...] = (
    # In a folder with tables, 80 images of 64 pixels, random features and weights.
    Runner(
        "ml-backend simulate --start given --labels", _TABLES, "--seeds 1 --initial 3 --workers 1", f"{_FEW}; {_ALONE}"
    ),
    Runner(
        "ml-backend simulate --labels",
        _TABLES,
        "--seeds 1 --budget 40 --passes 10 --workers 1",
        f"an ensemble and twenty seeds take minutes; {_ALONE}",
    ),
    Runner("python digits.py", _TABLES, why="before the study that reads its tables"),
    Runner(
        "ml-backend simulate --images images/",
        _TABLES,
        "--seeds 1 --min-labels-per-class 3 --backbone shufflenet_v2_x0_5 --weights none",
        f"{_FEW}; no test downloads ImageNet weights",
    ),
    Runner(
        "ml-backend simulate --images images/ --labels labels.csv --task",
        _TABLES,
        "--seeds 1 --min-labels-per-class 3 --backbone shufflenet_v2_x0_5 --weights none --finetune head --workers 1",
        f"{_FEW}; the study without a task trains all layers; {_ALONE}",
    ),
    Runner(
        "ml-backend simulate --start given --images images",
        _TABLES,
        "--seeds 1 --initial 3 --workers 1",
        f"{_FEW}; {_ALONE}",
    ),
    Runner("ml-backend experiment loss-ablation --labels", _TABLES, "--quick --workers 1", f"else minutes; {_ALONE}"),
    Runner(
        "ml-backend experiment profiles --labels", _TABLES, "--quick --seeds 1 --workers 1", f"else minutes; {_ALONE}"
    ),
    Runner(
        "ml-backend experiment --list", "tests/unit/simulation/test_experiments.py", why="in the process of the test"
    ),
    Runner(
        "ml-backend compare",
        "tests/unit/simulation/test_compare.py",
        why="in the process of the test, on studies that it writes",
    ),
    Runner("ml-backend strategies", _TABLES),
    Runner("ml-backend demo --help", _TABLES),
    Runner("ml-backend work --study", _TABLES, "--burst", "it ends when the study is done"),
    Runner("make bench", _BENCH, why="with --quick among the ARGS; else it takes a quarter of an hour"),
    Runner(
        "python -m tests.benchmarks.stopping",
        "tests/benchmarks/test_stopping.py",
        "--images 320 --seeds 1 --rounds 5",
        "in the process of the test; else it takes minutes",
    ),
    Runner(
        "python -m tests.benchmarks.gpu_check",
        "tests/benchmarks/test_gpu_check.py",
        "--tiny",
        "else it needs a GPU",
    ),
    Runner("ml-backend experiment", _EXPERIMENTS, "--quick", "all nine in the process of the test: they share images"),
    # On a live project, with a Redis, a backend and a worker that were started as the manual has it.
    Runner("export", _PROJECT, why=_STANDS),
    Runner("redis-server", _PROJECT, "--port 6379", f"{_STANDS}, and so is the port"),
    Runner("ml-backend serve", _PROJECT, why=_STANDS),
    Runner("ml-backend work", _PROJECT, why=_STANDS),
    Runner("ml-backend work --gpus", _FOLLOWERS, why="up to its processes; test_distributed.py runs these on CPUs"),
    Runner("ml-backend work --nproc", _FOLLOWERS, why="likewise"),
    Runner("ml-backend connect", _PROJECT, why=_STANDS),
    Runner("ml-backend connect --project 7 --option", _PROJECT, "--url http://backend.example.org:9090", _STANDS),
    Runner("ml-backend import", "tests/system/test_import.py", why=_STANDS),
    Runner("ml-backend doctor", _PROJECT, why=_STANDS),
    Runner("ml-backend replay", _PROJECT, why=_STANDS),
    Runner("ml-backend proof", _PROJECT, why=_STANDS),
    Runner("ml-backend export", _EXPORT, why=f"in the process of the test; {_STANDS}"),
    Runner("ml-backend predict --model model --images", _EXPORT, why=f"in the process of the test; {_STANDS}"),
    Runner("ml-backend predict --model model --to-project", "tests/system/test_publisher.py", why=_STANDS),
    Runner("label-studio-ml start", "tests/integration/test_wsgi.py", why="on a port that is free, with a password"),
    Runner(
        "make demo",
        "tests/system/test_demo.py",
        why="in one round, or two where it says how many, with options of the environment that make it small, on a "
        "Label Studio that runs; what asks for nothing that a longer one does not ask for too is not run a second time",
    ),
    # Of what CI calls.
    Runner("make test", _HERE, why="it is what runs here; the test reads .ci/run"),
    Runner("make setup", _HERE, why=_CI),
    Runner("make lint", _HERE, why=_CI),
    Runner("make types", _HERE, why=_CI),
    Runner("make imports", _HERE, why=_CI),
    Runner("make unit", _HERE, why=_CI),
    Runner("make system", _HERE, why=_CI),
    Runner("make docs", "tests/test_docs.py", why="into a folder of the test"),
    Runner("make help", _HERE),
    # NOT run, and why; what can be known of them without running is checked.
    Runner("make chaos", _HERE, why="NOT run: 24 minutes; `make test` runs the same file with fewer kills"),
    Runner("make compat", _HERE, why="NOT run: an hour; `make test` runs the same files on one Label Studio"),
    Runner("make laws", _HERE, why="NOT run: `make test` runs the same file with fewer examples"),
    Runner("make gpu-check", _HERE, why="NOT run: a test runs the command behind it with --tiny; make reads the line"),
    Runner("make lock", _HERE, why="NOT run: it asks a registry for today's versions; make reads the line"),
    Runner("make release", _HERE, why="NOT run: eight minutes; `make test` runs the same file with the extra `all`"),
    Runner(
        "pip install", "tests/test_package.py", why="resolved, not installed; tests/system/test_install.py installs"
    ),
    Runner("hf download", _HERE, why="NOT run: it downloads gigabytes; tests load files of the same layout"),
    Runner("make audit", _HERE, why="NOT run: it asks a registry for what is known today; make reads the line"),
    Runner("uv pip install", _HERE, why="NOT run: gigabytes, and the environment of the tests; uv knows its options"),
    Runner("AL_SCREENSHOTS=docs", _HERE, why="NOT run: it writes into docs; the file that it names runs"),
    Runner("docker compose", _DOCKER, why=f"NOT run: {_ENGINE}; Compose itself reads files and options"),
    Runner("docker save", _DOCKER, why=f"NOT run: {_ENGINE}"),
    Runner("docker load --input images.tar", _DOCKER, why=f"NOT run: {_ENGINE}"),
    Runner("docker run --rm --volume", _DOCKER, why=f"NOT run: {_ENGINE}, and gigabytes"),
    Runner("kubectl", _DOCKER, why="NOT run: no cluster here; the manifests are validated"),
    Runner("cp docker/example.env", _DOCKER, why="in a copy of the folder"),
)


def runner_of(command: Command) -> Runner | None:
    """The runner with the longest beginning of the command; None without one."""
    fitting = [one for one in RUNNERS if f"{command.bare} ".startswith(f"{one.begins} ")]
    return max(fitting, key=lambda one: len(one.begins), default=None)


def pages() -> dict[str, str]:
    """Path below the repository -> text."""
    paths = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    return {str(path.relative_to(ROOT)): path.read_text() for path in paths}


def commands(manual: Mapping[str, str] | None = None) -> list[Command]:
    """Every command of the manual, each once, in the order of the pages."""
    found: dict[str, Command] = {}
    for page, content in (pages() if manual is None else manual).items():
        for text in (*_in_blocks(content), *_in_sentences(content)):
            found.setdefault(text, Command(text, page))
    return list(found.values())


def commands_run_by(file: str) -> list[Command]:
    """The commands that this test file runs."""
    own = str(Path(file).resolve().relative_to(ROOT))
    return [one for one in commands() if (runner := runner_of(one)) is not None and runner.by == own]


def unmarked(text: str) -> list[str]:
    """Commands in blocks that are not marked as ``sh``, which ``commands`` ignores."""
    blocks = (body for kind, body in FENCE.findall(text) if kind != "sh")
    return [line.strip() for body in blocks for line in body.splitlines() if TYPED.match(line.strip())]


def _in_blocks(text: str) -> Iterator[str]:
    for kind, body in FENCE.findall(text):
        lines = body.replace("\\\n", " ").splitlines() if kind == "sh" else ()
        typed = (re.sub(r"(^|\s)#.*$", "", line) for line in lines)
        yield from (" ".join(line.split()) for line in typed if line.strip())


def _in_sentences(text: str) -> Iterator[str]:
    for code in CODE.findall(FENCE.sub("", text)):
        typed = " ".join(code.split())
        if TYPED.match(typed) and not NAME_ALONE.fullmatch(typed):
            yield typed
