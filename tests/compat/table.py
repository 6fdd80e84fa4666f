"""The table of releases and capabilities, read from pytest's junit files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

CAPABILITIES: Mapping[str, tuple[str, ...]] = {
    "connect": ("test_connect::",),
    "doctor": ("test_doctor::",),
    "order, two readers": ("test_order::",),
    "webhooks": ("test_webhooks::",),
    "deletion": (
        "test_publisher::test_nobody_elses_predictions_are_deleted",
        "test_publisher::test_an_image_held_across_many_rankings_can_be_answered",
        "test_publisher::test_a_crash_before_any_step_leaves_one_whole_order[delete_model_version]",
    ),
    "publishing": ("test_publisher::",),
}
"""Capability -> beginnings of the tests that show it. A test counts for the first one that names it."""

FILES = tuple(
    dict.fromkeys(f"tests/system/{begin.split('::')[0]}.py" for begins in CAPABILITIES.values() for begin in begins)
)
EXCERPT = 300


@dataclass(frozen=True)
class Outcome:
    """What became of one test.

    Attributes:
        test: its file, class and name.
        failed: whether it failed.
        reason: why it failed, or does not apply to this release; empty where it passed.
    """

    test: str
    failed: bool
    reason: str

    @property
    def capability(self) -> str | None:
        return next((name for name, begins in CAPABILITIES.items() if self.test.startswith(begins)), None)


def read_outcomes(path: Path) -> list[Outcome]:
    """The tests of a junit file; empty where there is none, since pytest did not get that far."""
    if not path.exists():
        return []
    found = []
    for case in ET.parse(path).getroot().iter("testcase"):
        test = f"{str(case.get('classname')).removeprefix('tests.system.').replace('.', '::')}::{case.get('name')}"
        bad = next((case.find(kind) for kind in ("failure", "error", "skipped") if case.find(kind) is not None), None)
        reason = "" if bad is None else " ".join(str(bad.get("message") or bad.tag).split())[:EXCERPT]
        found.append(Outcome(test, failed=bad is not None and bad.tag != "skipped", reason=reason))
    return found


def cells(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Capability -> ``ok``, or how many of its tests failed."""
    found = {}
    for capability in CAPABILITIES:
        its = [one for one in outcomes if one.capability == capability]
        failed = sum(one.failed for one in its)
        found[capability] = "not run" if not its else f"{failed} of {len(its)} failed" if failed else "ok"
    return found


def markdown(rows: Mapping[str, Sequence[Outcome]]) -> str:
    """A Markdown table of the releases by capability, and below it each test that failed or does not apply."""
    lines = [["Label Studio", *CAPABILITIES], ["---"] * (len(CAPABILITIES) + 1)]
    lines += [[release, *cells(outcomes).values()] for release, outcomes in rows.items()]
    table = [f"| {' | '.join(line)} |" for line in lines]
    notes = [
        f"- {release}: `{one.test}` {'failed' if one.failed else 'does not apply'}: {one.reason}"
        for release, outcomes in rows.items()
        for one in outcomes
        if one.reason
    ]
    return "\n".join([*table, *([""] if notes else []), *notes])
