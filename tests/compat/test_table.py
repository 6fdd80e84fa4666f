"""The table of releases, from junit files as pytest writes them."""

from pathlib import Path

import pytest

from tests.compat.table import CAPABILITIES, FILES, Outcome, cells, markdown, read_outcomes

ROOT = Path(__file__).parents[2]
JUNIT = """<testsuites><testsuite>
<testcase classname="tests.system.test_connect" name="test_connects"/>
<testcase classname="tests.system.test_order.TestServedOrder" name="test_a"/>
<testcase classname="tests.system.test_order.TestServedOrder" name="test_b"><error message="failed on setup
  with 404"/></testcase>
<testcase classname="tests.system.test_publisher" name="test_nobody_elses_predictions_are_deleted">
  <failure message="assert 1 == 2"/></testcase>
<testcase classname="tests.system.test_publisher" name="test_dropped"><skipped message="drops none"/></testcase>
</testsuite></testsuites>"""


@pytest.fixture
def outcomes(tmp_path: Path) -> list[Outcome]:
    path = tmp_path / "1.19.0.xml"
    path.write_text(JUNIT)
    return read_outcomes(path)


def test_a_capability_is_as_good_as_its_tests(outcomes: list[Outcome]) -> None:
    assert cells(outcomes) == {
        "connect": "ok",
        "doctor": "not run",
        "order, two readers": "1 of 2 failed",
        "webhooks": "not run",
        "deletion": "1 of 1 failed",
        "publishing": "ok",
    }


def test_what_failed_stands_below_the_table(outcomes: list[Outcome]) -> None:
    assert markdown({"1.19.0": outcomes, "1.23.2": []}).splitlines() == [
        "| Label Studio | connect | doctor | order, two readers | webhooks | deletion | publishing |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| 1.19.0 | ok | not run | 1 of 2 failed | not run | 1 of 1 failed | ok |",
        "| 1.23.2 | not run | not run | not run | not run | not run | not run |",
        "",
        "- 1.19.0: `test_order::TestServedOrder::test_b` failed: failed on setup with 404",
        "- 1.19.0: `test_publisher::test_nobody_elses_predictions_are_deleted` failed: assert 1 == 2",
        "- 1.19.0: `test_publisher::test_dropped` does not apply: drops none",
    ]


def test_a_run_that_did_not_start_has_no_results(tmp_path: Path) -> None:
    assert read_outcomes(tmp_path / "none.xml") == []


def test_every_test_that_shows_a_capability_is_there() -> None:
    """A test that was renamed would leave its capability to the others."""
    files = {Path(name).stem: (ROOT / name).read_text() for name in FILES}
    for begins in CAPABILITIES.values():
        for begin in begins:
            file, _, test = begin.partition("::")
            assert f"def {test.partition('[')[0]}" in files[file]
