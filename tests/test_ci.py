"""CI may not pass on tests that did not run."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / ".ci" / "closing_line.py"
FAST = '<testcase classname="tests.unit.test_a.TestA" name="test_one" time="0.1"/>'
ORDER = '<testcase classname="tests.system.test_order" name="test_order" time="2"/>'
BROWSER = '<testcase classname="tests.system.test_browser" name="test_hotkey" time="2"/>'
NO_BROWSER = (
    '<testcase classname="tests.system.test_browser" name="test_hotkey" time="0">'
    '<skipped type="pytest.skip" message="no Chromium">x</skipped></testcase>'
)
NO_MODULE = (
    '<testcase classname="" name="tests.system.test_order" time="0">'
    '<skipped type="pytest.skip" message="no Label Studio">x</skipped></testcase>'
)
OTHER_SKIPPED = (
    '<testcase classname="tests.unit.test_a" name="test_gpu" time="0">'
    '<skipped type="pytest.skip" message="no GPU"/></testcase>'
)
FAILED = (
    '<testcase classname="tests.unit.test_b" name="test_b" time="0.1"><failure message="no">no</failure></testcase>'
)
BROKEN = '<testcase classname="tests.unit.test_c" name="test_c" time="0.1"><error message="no">no</error></testcase>'


def closing(folder: Path, fast: str, system: str) -> tuple[int, list[str]]:
    for name, cases in (("fast", fast), ("system", system)):
        (folder / f"{name}.xml").write_text(
            f'<testsuites><testsuite name="pytest" time="1.5">{cases}</testsuite></testsuites>'
        )
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)], capture_output=True, text=True, timeout=30, check=False
    )
    return done.returncode, done.stdout.splitlines()


class TestClosingLine:
    def test_everything_ran(self, tmp_path):
        status, lines = closing(tmp_path, FAST, ORDER + BROWSER)

        assert status == 0
        assert [line.strip("= ") for line in lines] == ["3 passed in 3.00s"]

    def test_a_skip_elsewhere_is_counted_and_allowed(self, tmp_path):
        status, lines = closing(tmp_path, FAST + OTHER_SKIPPED, ORDER + BROWSER)

        assert status == 0
        assert lines[-1].strip("= ") == "3 passed, 1 skipped in 3.00s"

    @pytest.mark.parametrize(
        ("system", "complaint"),
        [
            (ORDER + NO_BROWSER, "skipped: tests.system.test_browser.test_hotkey: no Chromium"),
            (BROWSER + NO_MODULE, "skipped: tests.system.test_order: no Label Studio"),
            (ORDER, "no browser test ran"),
            ("", "no system test ran"),
        ],
    )
    def test_a_missing_system_or_browser_test_fails_and_is_named(self, tmp_path, system, complaint):
        status, lines = closing(tmp_path, FAST, system)

        assert status == 1
        assert f"closing_line: {complaint}" in lines

    @pytest.mark.parametrize(("case", "words"), [(FAILED, "1 failed, 3 passed"), (BROKEN, "3 passed, 1 error")])
    def test_a_failure_fails(self, tmp_path, case, words):
        status, lines = closing(tmp_path, FAST + case, ORDER + BROWSER)

        assert status == 1
        assert lines[-1].strip("= ") == f"{words} in 3.00s"

    def test_no_results_at_all(self, tmp_path):
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(tmp_path)], capture_output=True, text=True, timeout=30, check=False
        )

        assert done.returncode == 1
        assert "no tests ran" in done.stdout

    def test_the_script_is_executable_and_parses(self):
        run = SCRIPT.parent / "run"

        assert run.stat().st_mode & 0o111
        subprocess.run(["bash", "-n", str(run)], check=True, timeout=30)
