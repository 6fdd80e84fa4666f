"""Every command of the manual is run by a test, or ``manual.RUNNERS`` gives the reason why not."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.compat.table import FILES
from tests.manual import ROOT, RUNNERS, Command, commands, commands_run_by, pages, runner_of, unmarked

CI = (ROOT / ".ci" / "run").read_text()
CHECKED_HERE = {one.text for one in commands_run_by(__file__)}
IN_CI = ("setup", "lint", "types", "imports")
ASKS_A_REGISTRY = ("lock", "audit")


def make(*words: str) -> list[str]:
    """The lines that make prints, without the environment of a `make test` that runs this."""
    done = subprocess.run(
        ["env", "-u", "MAKEFLAGS", "-u", "MAKELEVEL", "-u", "MFLAGS", "make", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def recipe(target: str) -> list[str]:
    """Everything that a target does on a machine where nothing is there yet, and nothing of it done."""
    return make("--dry-run", "--always-make", target)


class TestAccounts:
    def test_every_command_has_one(self):
        missing = [f"{one.page}: {one.text}" for one in commands() if runner_of(one) is None]

        assert missing == []

    @pytest.mark.parametrize(
        "text",
        [
            "curl --user label-studio:secret http://backend.example.org:9090/metrics",
            "ml-backend brew --pot 7",
            "make coffee",
            "make demolish",
            "uv pip uninstall torch",
            "docker run hello-world",
        ],
    )
    @pytest.mark.parametrize("form", ["Like this:\n\n```sh\n{}   # so\n```\n", "Type\n`{}`, and wait."])
    def test_a_command_that_nobody_runs_is_noticed(self, text, form):
        [found] = commands({"docs/new.md": form.format(text)})

        assert found == Command(text, "docs/new.md")
        assert runner_of(found) is None
        with pytest.raises(AssertionError, match=r"docs/new\.md: no test runs"):
            _ = found.runner

    def test_a_new_command_of_a_known_kind_is_run_with_the_others(self):
        """Nobody has to write it down a second time."""
        [found] = commands({"docs/new.md": "```sh\nml-backend replay --project 7 --round r000003\n```\n"})

        assert found.runner.by == "tests/system/test_manual_project.py"

    def test_no_account_is_left_over(self):
        used = {runner_of(one) for one in commands()}

        assert [one.begins for one in RUNNERS if one not in used] == []

    @pytest.mark.parametrize("by", sorted({one.by for one in RUNNERS}))
    def test_every_file_that_is_named_asks_for_its_commands(self, by):
        assert "commands_run_by(__file__)" in (ROOT / by).read_text()


class TestFound:
    def test_lines_of_a_block_also_in_a_list_and_continued(self):
        page = "1. Do\n   ```sh\n   # first\n   cp a \\\n       b   # so\n\n   make x\n   ```\n"

        assert [one.text for one in commands({"page": page})] == ["cp a b", "make x"]

    def test_code_in_a_sentence_but_not_the_bare_name_of_a_command(self):
        page = "`ml-backend work` or `ml-backend work --study`, `make x`, `make`, `AL_A=1 pytest\ntests`, `passes`."

        assert [one.text for one in commands({"page": page})] == [
            "ml-backend work --study", "make x", "AL_A=1 pytest tests"
        ]  # fmt: skip

    def test_the_same_command_once_from_the_first_page(self):
        found = commands({"a": "`make x`", "b": "```sh\nmake x\n```\n"})

        assert found == [Command("make x", "a")]

    @pytest.mark.parametrize("page", pages())
    def test_no_block_hides_a_command(self, page):
        assert unmarked(pages()[page]) == []

    def test_a_hidden_command_would_be_seen(self):
        assert unmarked("```\nml-backend simulate \\\n    --out a\n```\n") == ["ml-backend simulate \\"]


class TestMake:
    def test_ci_runs_make_test(self):
        assert "make test || status=$?" in CI.splitlines()
        assert "make test" in CHECKED_HERE

    @pytest.mark.parametrize("target", IN_CI)
    def test_does_what_make_test_does_first(self, target):
        own = recipe(target)

        assert f"make {target}" in CHECKED_HERE
        assert own
        assert set(own) <= set(recipe("test"))

    @pytest.mark.parametrize(("target", "folder"), [("unit", "tests/unit"), ("system", "tests/system")])
    def test_runs_tests_that_make_test_runs_too(self, target, folder):
        [alone] = [line for line in recipe(target) if "pytest" in line]
        lines = [line for line in recipe("test") if "pytest" in line]

        assert f"make {target}" in CHECKED_HERE
        assert f"pytest {folder} " in alone
        assert any(f"pytest {folder} " in line or 'pytest tests -m "not system" ' in line for line in lines)

    def test_chaos_kills_more_often_what_make_test_kills_too(self):
        [line] = [line for line in recipe("chaos") if "pytest" in line]

        assert "make chaos" in CHECKED_HERE
        assert "AL_CHAOS_KILLS=24 " in line
        assert "pytest tests/system/test_chaos.py" in line

    def test_release_resolves_more_extras_than_make_test_does(self):
        [line] = [line for line in recipe("release") if "pytest" in line]

        assert "make release" in CHECKED_HERE
        assert "AL_EACH_EXTRA=1 " in line
        assert "pytest -q tests/test_package.py" in line

    def test_compat_runs_on_other_releases_what_make_test_runs_too(self):
        [line] = [line for line in recipe("compat") if "tests.compat" in line]

        assert "make compat" in CHECKED_HERE
        assert line.split()[-2:] == ["-m", "tests.compat"]
        assert {Path(name).parent for name in FILES} == {Path("tests/system")}

    def test_laws_tries_more_examples_of_what_make_test_runs_too(self):
        [line] = [line for line in recipe("laws") if "pytest" in line]

        assert "make laws" in CHECKED_HERE
        assert "AL_LAWS_EXAMPLES=300 " in line
        assert "pytest tests/integration/test_queueing_laws.py" in line

    def test_gpu_check_is_the_command_that_a_test_runs_on_a_cpu(self):
        [line] = [line for line in recipe("gpu-check") if "-m tests" in line]

        assert "make gpu-check" in CHECKED_HERE
        assert line.split(maxsplit=1)[1].split() == ["-m", "tests.benchmarks.gpu_check"]

    def test_help_lists_every_target_that_the_manual_names(self):
        listed = {line.split()[1] for line in make("help")}

        assert "make help" in CHECKED_HERE
        assert {one.words[1] for one in commands() if one.words[0] == "make"} <= listed

    @pytest.mark.parametrize("target", ASKS_A_REGISTRY)
    def test_can_be_read_by_make(self, target):
        """No more: what it would find is another thing every day."""
        assert f"make {target}" in CHECKED_HERE
        assert any(f" {word} " in line for line in recipe(target) for word in ("compile", "pip-audit"))


class TestNotRun:
    def test_hf_knows_the_options(self):
        found = [one for one in commands_run_by(__file__) if one.words[0] == "hf"]
        hf = Path(sys.executable).with_name("hf")  # of the worker's packages
        data = subprocess.run([hf, "download", "--help"], capture_output=True, text=True, timeout=60, check=True)

        assert {word for one in found for word in one.words if word.startswith("--")} == {"--local-dir"}
        assert "--local-dir" in data.stdout

    def test_uv_knows_the_options(self):
        [command] = [one for one in commands_run_by(__file__) if one.words[0] == "uv"]
        uv = shutil.which("uv") or str(ROOT / ".tools" / "uv" / "bin" / "uv")
        data = subprocess.run([uv, "pip", "install", "--help"], capture_output=True, text=True, timeout=60, check=True)

        options = [word.partition("=")[0] for word in command.words if word.startswith("--")]
        assert options
        assert [one for one in options if one not in data.stdout] == []

    def test_the_test_that_draws_the_pictures_runs_and_reads_the_variable(self):
        [command] = [one for one in commands_run_by(__file__) if one.text.startswith("AL_SCREENSHOTS")]

        file = Path(command.words[-1])
        assert file.parent == Path("tests/system")
        assert 'os.environ.get("AL_SCREENSHOTS")' in (ROOT / file).read_text()

    def test_nothing_else_is_left_to_this_file(self):
        """What is not asked about above."""
        targets = (
            *(*IN_CI, *ASKS_A_REGISTRY, "test", "unit", "system", "chaos", "compat", "laws", "release", "gpu-check"),
            "help",
        )
        rest = CHECKED_HERE - {f"make {target}" for target in targets}

        assert {text.split()[0] for text in rest} == {"uv", "hf", "AL_SCREENSHOTS=docs"}
