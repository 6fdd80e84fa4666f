"""The house is as its map says, and what is committed can be built anywhere."""

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ml_backend

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ml_backend"
BIN = Path(sys.executable).parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = ("requirements.lock", "requirements-label-studio.lock", "tests/benchmarks/peers.lock")


def rooms() -> list[str]:
    """Every module and sub-package directly below the package."""
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    return sorted(modules | packages)


def mapped() -> list[str]:
    """The names that the package's docstring lists, one a line."""
    return re.findall(r"^    (\w+)  +\S", ml_backend.__doc__ or "", re.MULTILINE)


def names_of(module: ast.Module) -> tuple[set[str], set[str], set[str]]:
    """What a module exports, what it binds, and its own public functions and classes.

    A decorated function is somebody else's: a command of the CLI, a route of the server.
    """
    exported: set[str] = set()
    bound: set[str] = set()
    public: set[str] = set()
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
            if not node.name.startswith("_") and (isinstance(node, ast.ClassDef) or not node.decorator_list):
                public.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            bound |= {target.id for target in targets if isinstance(target, ast.Name)}
            if "__all__" in {target.id for target in targets if isinstance(target, ast.Name)} and node.value:
                exported = set(ast.literal_eval(node.value))
    return exported, bound, public


def locked(name: str) -> dict[str, set[str]]:
    """Package -> versions, as one of the lock files pins it; several where platforms differ."""
    pins: dict[str, set[str]] = {}
    for package, version in re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", (ROOT / name).read_text(), re.MULTILINE):
        pins.setdefault(canonicalize_name(package), set()).add(version)
    return pins


def declared() -> list[Requirement]:
    """What pyproject.toml asks for on Linux: the server, every extra, and development."""
    project, own = PYPROJECT["project"], PYPROJECT["project"]["name"]
    groups = [
        project["dependencies"],
        *project["optional-dependencies"].values(),
        *PYPROJECT["dependency-groups"].values(),
    ]
    texts = [text for group in groups for text in group if isinstance(text, str) and not text.startswith(f"{own}[")]
    environment = {**default_environment(), "sys_platform": "linux"}
    found = [Requirement(text) for text in texts]
    return [
        one for one in found if one.marker is None or one.marker.evaluate({k: str(v) for k, v in environment.items()})
    ]


def committed() -> Iterator[Path]:
    """Files that git tracks or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    yield from (path for name in listed.split("\0") if name and (path := ROOT / name).is_file())


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestMap:
    def test_names_every_room_once(self):
        """The docstring of the package lists what is there, no more and no less."""
        assert sorted(mapped()) == rooms()

    def test_every_folder_of_python_is_a_package(self):
        """A forgotten __init__.py hides a room from the map, from import-linter and from the wheel's checks."""
        folders = {path.parent for path in PACKAGE.rglob("*.py")}

        assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []

    def test_contracts_hold(self):
        done = subprocess.run(
            [BIN / "lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
        )

        assert done.returncode == 0, done.stdout

    def test_the_queues_dotted_path_resolves(self):
        """Redis holds the path as text: renaming the function would strand every waiting job."""
        module, _, function = "ml_backend.worker.job.run".rpartition(".")

        assert callable(getattr(importlib.import_module(module), function))

    def test_every_file_says_what_it_is_for(self):
        silent = [path.name for path in PACKAGE.rglob("*.py") if ast.get_docstring(ast.parse(path.read_text())) is None]

        assert silent == []

    def test_exports_are_bound(self):
        """A package lists in ``__all__`` what it re-exports, and binds all of it; other modules have no list."""
        listing = {path.parent for path in PACKAGE.rglob("*.py")} & {PACKAGE / "worker", *PACKAGE.glob("bench/**")}
        wrong = {}
        for path in sorted(PACKAGE.rglob("*.py")):
            exported, bound, _ = names_of(ast.parse(path.read_text()))
            if not exported <= bound or (exported and path.name != "__init__.py" and path.parent not in listing):
                wrong[str(path.relative_to(PACKAGE))] = exported

        assert wrong == {}


class TestImports:
    @pytest.mark.parametrize("words", [["--help"], ["experiment", "--list"], ["strategies"]], ids=" ".join)
    def test_what_only_tells_opens_without_torch(self, words):
        """Half a second, not five: torch, flask and rq are loaded by the sub-command that needs them."""
        loaded = run_python(
            "import sys\n"
            "from typer.testing import CliRunner\n"
            "from ml_backend.cli import app\n"
            f"assert CliRunner().invoke(app, {words}).exit_code == 0\n"
            "print(*(name for name in ('torch', 'flask', 'rq', 'sklearn', 'label_studio_sdk') if name in sys.modules))"
        )

        assert loaded.split() == []

    def test_the_command_itself_shows_its_help(self):
        done = subprocess.run([BIN / "ml-backend", "--help"], capture_output=True, text=True, timeout=60, check=False)

        assert done.returncode == 0
        assert "serve" in done.stdout

    def test_the_web_process_loads_neither_torch_nor_label_studio_ml(self):
        """Import-linter does not look into third-party packages; the interpreter does."""
        loaded = run_python(
            "import sys, ml_backend.server.app\n"
            "print(*(name for name in ('torch', 'torchvision', 'label_studio_ml') if name in sys.modules))"
        )

        assert loaded.split() == []


class TestLock:
    @pytest.mark.parametrize("requirement", declared(), ids=str)
    def test_is_not_older_than_pyproject(self, requirement):
        """Every declared package is locked, in a version that is allowed: else run `make lock`."""
        pins = locked("requirements.lock")
        name = canonicalize_name(requirement.name)

        assert name in pins
        assert all(requirement.specifier.contains(version, prereleases=True) for version in pins[name])

    def test_label_studio_is_the_version_that_we_say(self):
        """Makefile, lock, compose file and README speak of one version."""
        [version] = locked("requirements-label-studio.lock")["label-studio"]

        for name in ("Makefile", "docker/compose.yaml", "README.md"):
            assert version in (ROOT / name).read_text(), name

    @pytest.mark.parametrize("name", LOCKS)
    def test_every_pin_has_hashes(self, name):
        blocks = re.split(r"^(?=[A-Za-z0-9])", (ROOT / name).read_text(), flags=re.MULTILINE)[1:]

        assert blocks
        assert [block.split()[0] for block in blocks if "--hash=sha256:" not in block] == []


class TestCommitted:
    @pytest.mark.parametrize("name", LOCKS)
    def test_a_lock_names_no_address(self, name):
        """Nor an index option: the lock installs from whichever registry the machine uses."""
        text = (ROOT / name).read_text()

        assert "://" not in text
        assert not re.search(r"^\s*(-i|-f|--(extra-)?index-url|--find-links|--trusted-host)\b", text, re.MULTILINE)

    def test_no_registry_host(self):
        """Neither a configured index in pyproject.toml nor the host that this machine happens to install from."""
        assert "index" not in PYPROJECT["tool"]["uv"]
        variables = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")
        urls = [url for variable in variables for url in os.environ.get(variable, "").split()]
        hosts = {host for url in urls if (host := urlsplit(url).hostname)} | {
            ".".join(("files", "pythonhosted", "org"))
        }

        found = [
            (path.name, host)
            for path in committed()
            if path.stat().st_size < 5_000_000
            for host in hosts
            if host.encode() in path.read_bytes()
        ]
        assert found == []
