"""The manual's commands on tables and images, as a reader types them in the folder in which these lie."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from redis import Redis
from torchvision.models import mobilenet_v2

from ml_backend.registry import STRATEGIES
from ml_backend.simulation.synthetic import write_synthetic_study
from ml_backend.simulation.tables import read_labels
from tests.command_line import run_cli
from tests.integration.processes import wait_until
from tests.manual import Command, commands_run_by, pages

BIN = Path(sys.executable).parent
COMMANDS = commands_run_by(__file__)
IMAGES = 80
DRAWN = ("normal", "moderate", "severe")
CAUSES = ("normal", "viral", "bacterial")  # of the images that docs/experiments.md is about
DIMENSIONS = 16

Run = Callable[[Command], str]
TypeIn = Callable[[str], subprocess.Popen[str]]


def lay_out(folder: Path, classes: tuple[str, ...]) -> Path:
    """What a reader has: images, their labels and features, the weights of a network."""
    study = write_synthetic_study(
        folder / "images", count=IMAGES, shares=dict.fromkeys(classes, 1 / 3), seed=0, side=64
    )
    (folder / "labels.csv").write_bytes(study.labels.read_bytes())
    (folder / "ratings.csv").write_bytes(study.ratings.read_bytes())
    rows = read_labels(study.labels)
    rng = np.random.default_rng(0)
    means = np.array([classes.index(str(row.label)) for row in rows])[:, None]
    values = (means + rng.normal(0, 1, (len(rows), DIMENSIONS))).astype(np.float32)
    np.savez(folder / "features.npz", X=values, path=np.array([row.path for row in rows]))
    torch.save(mobilenet_v2(weights=None).state_dict(), folder / "mobilenet_v2_imagenet.pt")
    return folder


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """With classes by cause, or not."""
    return {
        by_cause: lay_out(tmp_path_factory.mktemp("reader"), CAUSES if by_cause else DRAWN)
        for by_cause in (True, False)
    }


@pytest.fixture
def at_the_desk(places: dict[bool, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """The folder of the test, with what a line is about."""
    # Undone at the end: a function of the reader's own becomes a strategy of this process.
    monkeypatch.setitem(STRATEGIES, "mine:rare", STRATEGIES["random"])
    monkeypatch.setattr(sys, "path", [*sys.path])

    def laid_out(line: str) -> Path:
        for thing in places[any(cause in line for cause in CAUSES[1:])].iterdir():
            if not (tmp_path / thing.name).exists():
                (tmp_path / thing.name).symlink_to(thing)
        if "digits" in line:
            [files] = re.findall(r"```bash\n(cat > mine.py .*?)```", pages()["docs/researchers.md"], re.DOTALL)
            subprocess.run(["bash", "-euc", f"{files}{sys.executable} digits.py"], cwd=tmp_path, check=True)
        return tmp_path

    return laid_out


@pytest.fixture
def shell(environ: dict[str, str]) -> dict[str, str]:
    """The environment of a reader's shell."""
    return environ | {"PATH": f"{BIN}{os.pathsep}{environ['PATH']}", "COLUMNS": "200", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def type_in(at_the_desk: Callable[[str], Path], shell: dict[str, str]) -> TypeIn:
    """Start a line in a shell, in the folder of the test."""

    def typed(line: str) -> subprocess.Popen[str]:
        folder, pipe = at_the_desk(line), subprocess.PIPE
        return subprocess.Popen(["bash", "-euc", line], cwd=folder, env=shell, stdout=pipe, stderr=pipe, text=True)

    return typed


@pytest.fixture
def run(type_in: TypeIn) -> Run:
    """Run a command to its end in a shell; what it printed."""

    def to_its_end(command: Command) -> str:
        with type_in(command.run_as) as running:
            told, complaint = running.communicate(timeout=540)
        assert running.returncode == 0, f"{command.run_as}\n{told}{complaint}"
        return told

    return to_its_end


@pytest.fixture
def run_here(at_the_desk: Callable[[str], Path], shell: dict[str, str]) -> Run:
    """Run one of ours to its end, in the folder of the test and the process of the tests; what it printed."""

    def to_its_end(command: Command) -> str:
        program, *words = shlex.split(command.run_as)
        assert program.endswith("ml-backend")
        done = run_cli(words, shell, at_the_desk(command.run_as))
        assert done.returncode == 0, f"{command.run_as}\n{done.stdout}{done.stderr}"
        return done.stdout

    return to_its_end


def those(*begins: str) -> pytest.MarkDecorator:
    """The commands that begin so; there are some."""
    found = [one for one in COMMANDS if one.text.startswith(begins)]
    assert found, begins
    return pytest.mark.parametrize("command", found, ids=[one.text for one in found])


def options(command: Command) -> dict[str, str]:
    """Option -> value, the last one where it stands twice."""
    words = shlex.split(command.run_as)
    return {word: after for word, after in zip(words, [*words[1:], ""], strict=True) if word.startswith("--")}


@those("ml-backend simulate")
def test_a_study_is_done_as_it_was_asked_for(command: Command, run_here: Run, tmp_path: Path) -> None:
    printed, asked = run_here(command), options(command)

    out = tmp_path / asked["--out"]
    assert printed.rstrip().endswith(f" {Path(asked['--out'], 'report.html')}")
    assert (out / "report.html").stat().st_size > 10_000
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["strategies"]) == {"random", *asked["--strategy"].split(",")}
    assert len(summary["seeds"]) == int(asked["--seeds"])
    assert summary["variants"] == asked.get("--loss", "").split(",")
    if "--task" in asked:
        assert list(summary["classes"]) == re.findall(r"(?:^|;)(\w+)", asked["--task"])
    assert summary["rounds"] >= 1


def test_a_study_in_python(at_the_desk: Callable[[str], Path], shell: dict[str, str]) -> None:
    """With the options that make it small; it prints the accuracy of every strategy by labels."""
    [code] = re.findall(r"```python\n(import ml_backend\n.*?)```", pages()["docs/researchers.md"], re.DOTALL)
    small = (
        'seeds=1, min_labels_per_class=3, backbone="shufflenet_v2_x0_5", weights="none", finetune="head", passes=10,'
    )
    folder = at_the_desk("images")
    (folder / "study.py").write_text(code.replace("seeds=20,", small))

    done = subprocess.run(
        [sys.executable, "study.py"], cwd=folder, env=shell, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert re.search(r"^strategy +bald +entropy +random$", done.stdout, re.MULTILINE)


def test_labels_of_rules_in_python(
    at_the_desk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three reads of readers who are right three times in four, or every other time: better than one, with any rule."""
    [code] = re.findall(r"```python\n([^`]*answers_of[^`]*)```", pages()["docs/researchers.md"])
    monkeypatch.chdir(at_the_desk("images"))

    exec(code, {})

    right = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert list(right) == ["median", "majority", "dawid_skene", "ordinal"]
    assert all(0.7 < float(share) < 1 for share in right.values())


@those("ml-backend strategies")
def test_the_manual_has_what_is_printed(command: Command, run: Run) -> None:
    printed = run(command).strip()

    assert printed.count("\n") > 10
    assert printed in pages()[command.page]


@those("ml-backend experiment loss-ablation", "ml-backend experiment profiles")
def test_an_experiment_says_what_it_found(command: Command, run_here: Run, tmp_path: Path) -> None:
    printed, name = run_here(command), command.words[2]

    [file] = tmp_path.glob(f"experiments/{name}*/experiment.json")
    report = json.loads(file.read_text())
    assert report["name"] == name
    assert not report["drawn"]
    assert all(sentence in printed for sentence in report["found"])
    assert printed.rstrip().splitlines()[-1].startswith("not judged: ")


@those("ml-backend demo --help")
def test_help_lists_all_options(command: Command, run: Run) -> None:
    printed = run(command)

    assert {"--rounds", "--readers", "--images", "--labels", "--summary", "--stay"} <= set(
        re.findall(r"--\w+", printed)
    )


@those("ml-backend work --study")
def test_a_worker_elsewhere_does_a_study(command: Command, run: Run, run_here: Run, redis: Redis, environ) -> None:
    """The study of another command, which waits for it."""
    study = next(one for one in COMMANDS if one.text.startswith("ml-backend simulate --start given --labels"))
    text = f"{study.text} --strategy entropy --no-random --redis {environ['AL_REDIS_URL']}"

    def work() -> str:
        wait_until(redis.dbsize)
        return run(command)

    with ThreadPoolExecutor() as elsewhere:
        worker = elsewhere.submit(work)
        printed = run_here(Command(text, study.page))
        worker.result()

    assert printed.rstrip().endswith("/report.html")


def test_every_command_is_asked_about() -> None:
    """By one of the tests above."""
    begins = ("simulate", "experiment", "strategies", "demo --help", "work --study")
    asked = ("python digits.py", *(f"ml-backend {words}" for words in begins))

    assert [one.text for one in COMMANDS if not one.text.startswith(asked)] == []
