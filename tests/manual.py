"""The commands of the manual, and who runs each of them.

The manual is README and the pages of docs. What a reader may type stands there in ``sh`` blocks, a line a command, or
as code within a sentence. ``ACCOUNTS`` names the test file that runs it, straight from the text, and says what is not
as a reader has it. A test file asks for its own by ``told_to(__file__)``; ``test_manual.py`` refuses what has no
account.
"""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ACCOUNTS", "ROOT", "Account", "Command", "account_of", "commands", "pages", "told_to", "unmarked"]

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
PROGRAMS = (
    *("make", "ml-backend", "label-studio", "label-studio-ml", "redis-server", "valkey-server", "docker", "git"),
    *("uv", "pip", "python3?", "pytest", "curl", "export", "cp", "cd", "apt-get"),
)
TYPED = re.compile(rf"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(?:{'|'.join(PROGRAMS)}) +\S")
NAME_ALONE = re.compile(r"ml-backend [a-z-]+")  # of a command, and nothing that anybody would type so


@dataclass(frozen=True)
class Account:
    """Who runs the commands that begin so.

    Attributes:
        begins: whole words.
        by: the test file.
        added: options that the test appends, as a reader could.
        why: what is not as a reader has it, and the reason.
    """

    begins: str
    by: str
    added: str = ""
    why: str = ""


@dataclass(frozen=True)
class Command:
    """As a reader types it, in one line; ``page`` is the first that has it."""

    text: str
    page: str

    @property
    def bare(self) -> str:
        """Without the folder of the program."""
        return self.text.removeprefix(".venv/bin/")

    @property
    def words(self) -> list[str]:
        """As a shell takes it apart."""
        return shlex.split(self.bare)

    @property
    def account(self) -> Account:
        """Its own; there is one."""
        found = account_of(self)
        assert found is not None, f"{self.page}: no test runs `{self.text}`: see tests/manual.py"
        return found

    @property
    def run_as(self) -> str:
        """With what its test appends."""
        return f"{self.text} {self.account.added}".strip()


_TABLES = "tests/integration/test_manual_tables.py"
_BENCH = "tests/benchmarks/test_bench.py"
_EXPERIMENTS = "tests/integration/simulation/test_experiments.py"
_PROJECT = "tests/system/test_manual_project.py"
_HERE = "tests/test_manual.py"
_DOCKER = "tests/test_docker.py"
_FEW = "with 25 labels of a class before the first round, 80 films would not do"
_ALONE = "each worker loads PyTorch for seconds, and those of docs/researchers.md are started"
_STANDS = "project, addresses, keys and folders are those of the test"
_CI = "CI has run all of it with `make test`"

ACCOUNTS: tuple[Account, ...] = (
    # In a folder with tables, 80 films of 64 pixels, their features and weights drawn by chance.
    Account("ml-backend simulate --labels", _TABLES, "--seeds 1 --initial 3 --workers 1", f"{_FEW}; {_ALONE}"),
    Account(
        "ml-backend simulate --images films/",
        _TABLES,
        "--seeds 1 --initial 3 --backbone resnet18 --weights none",
        f"{_FEW}; no test downloads ImageNet weights",
    ),
    Account("ml-backend simulate --images films", _TABLES, "--seeds 1 --initial 3 --workers 1", f"{_FEW}; {_ALONE}"),
    Account("ml-backend experiment loss-ablation --labels", _TABLES, "--quick --workers 1", f"else minutes; {_ALONE}"),
    Account("ml-backend experiment profiles --labels", _TABLES, "--quick --workers 1", f"else minutes; {_ALONE}"),
    Account(
        "ml-backend experiment --list", "tests/unit/simulation/test_experiments.py", why="in the process of the test"
    ),
    Account("ml-backend strategies", _TABLES),
    Account("ml-backend demo --help", _TABLES),
    Account("ml-backend work --study", _TABLES, "--burst", "it ends when the study is done"),
    Account("make bench", _BENCH, why="with --quick among the ARGS; else it takes a quarter of an hour"),
    Account(
        "python -m tests.benchmarks.stopping",
        "tests/benchmarks/test_stopping.py",
        "--films 320 --seeds 1 --rounds 5",
        "in the process of the test; else it takes minutes",
    ),
    Account("ml-backend experiment", _EXPERIMENTS, "--quick", "all eight in the process of the test: they share films"),
    # On a live project, with a Redis, a backend and a worker that were started as the manual has it.
    Account("export", _PROJECT, why=_STANDS),
    Account("redis-server", _PROJECT, "--port 6379", f"{_STANDS}, and so is the port"),
    Account("ml-backend serve", _PROJECT, why=_STANDS),
    Account("ml-backend work", _PROJECT, why=_STANDS),
    Account("ml-backend connect", _PROJECT, why=_STANDS),
    Account("ml-backend connect --project 7 --option", _PROJECT, "--url http://backend.example.org:9090", _STANDS),
    Account("ml-backend doctor", _PROJECT, why=_STANDS),
    Account("ml-backend replay", _PROJECT, why=_STANDS),
    Account("ml-backend proof", _PROJECT, why=_STANDS),
    Account("label-studio-ml start", "tests/integration/test_wsgi.py", why="on a port that is free, with a password"),
    Account(
        "make demo",
        "tests/system/test_demo.py",
        why="in one round, or two where it says how many, with options of the environment that make it small, on a "
        "Label Studio that runs; what asks for nothing that a longer one does not ask for too is not run a second time",
    ),
    # Of what CI calls.
    Account("make test", _HERE, why="it is what runs here; the test reads .ci/run"),
    Account("make setup", _HERE, why=_CI),
    Account("make lint", _HERE, why=_CI),
    Account("make types", _HERE, why=_CI),
    Account("make imports", _HERE, why=_CI),
    Account("make unit", _HERE, why=_CI),
    Account("make system", _HERE, why=_CI),
    Account("make help", _HERE),
    # NOT run, and why; what can be known of them without running is checked.
    Account("make chaos", _HERE, why="NOT run: 24 minutes; `make test` runs the same file with fewer kills"),
    Account("make laws", _HERE, why="NOT run: `make test` runs the same file with fewer examples"),
    Account("make lock", _HERE, why="NOT run: it asks a registry for today's versions; make reads the line"),
    Account("make audit", _HERE, why="NOT run: it asks a registry for what is known today; make reads the line"),
    Account("uv pip install", _HERE, why="NOT run: gigabytes, and the environment of the tests; uv knows its options"),
    Account("AL_SCREENSHOTS=docs", _HERE, why="NOT run: it writes into docs; the file that it names runs"),
    Account("docker compose", _DOCKER, why="NOT run: no engine here; Compose itself reads files and options"),
    Account("cp docker/example.env", _DOCKER, why="in a copy of the folder"),
)


def account_of(command: Command) -> Account | None:
    """The account with the most words that the command begins with; None where there is none."""
    fitting = [one for one in ACCOUNTS if f"{command.bare} ".startswith(f"{one.begins} ")]
    return max(fitting, key=lambda one: len(one.begins), default=None)


def pages() -> dict[str, str]:
    """Path below the repository -> text."""
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return {str(path.relative_to(ROOT)): path.read_text() for path in paths}


def commands(manual: Mapping[str, str] | None = None) -> list[Command]:
    """Every command of the manual, each once, in the order of the pages."""
    found: dict[str, Command] = {}
    for page, text in (pages() if manual is None else manual).items():
        for told in (*_in_blocks(text), *_in_sentences(text)):
            found.setdefault(told, Command(told, page))
    return list(found.values())


def told_to(file: str) -> list[Command]:
    """The commands that this test file accounts for."""
    own = str(Path(file).resolve().relative_to(ROOT))
    return [one for one in commands() if (account := account_of(one)) is not None and account.by == own]


def unmarked(text: str) -> list[str]:
    """Commands in a block that does not say that it is ``sh``, where ``commands`` would not see them."""
    blocks = (body for kind, body in FENCE.findall(text) if kind != "sh")
    return [line.strip() for body in blocks for line in body.splitlines() if TYPED.match(line.strip())]


def _in_blocks(text: str) -> Iterator[str]:
    for kind, body in FENCE.findall(text):
        lines = body.replace("\\\n", " ").splitlines() if kind == "sh" else ()
        told = (re.sub(r"(^|\s)#.*$", "", line) for line in lines)
        yield from (" ".join(line.split()) for line in told if line.strip())


def _in_sentences(text: str) -> Iterator[str]:
    for code in CODE.findall(FENCE.sub("", text)):
        told = " ".join(code.split())
        if TYPED.match(told) and not NAME_ALONE.fullmatch(told):
            yield told
