"""Sum up pytest's junit files in pytest's own words, and refuse a run whose system or browser tests were skipped.

Standard library only: it runs outside the project's environment.

    python3 .ci/closing_line.py FOLDER
"""

import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree as ET

ORDER = ("failed", "passed", "skipped", "xfailed", "error")  # as pytest lists them
MUST_RUN = {"system": "tests.system.", "browser": "tests.system.test_browser"}


def outcome(case):
    """What became of one test, and the reason it was skipped."""
    if case.find("error") is not None:
        return "error", ""
    if case.find("failure") is not None:
        return "failed", ""
    skipped = case.find("skipped")
    if skipped is None:
        return "passed", ""
    return ("xfailed" if skipped.get("type") == "pytest.xfail" else "skipped"), skipped.get("message", "")


def complaints(results):
    """Every system or browser test that was skipped, and every such kind of which none ran."""
    found = [
        f"skipped: {name}: {reason}"
        for name, (what, reason) in results.items()
        if what == "skipped" and any(name.startswith(prefix) for prefix in MUST_RUN.values())
    ]
    for kind, prefix in MUST_RUN.items():
        ran = [name for name, (what, _) in results.items() if name.startswith(prefix) and what != "skipped"]
        if not ran:
            found.append(f"no {kind} test ran")
    return found


def main(folder):
    """Print the closing line; the exit status of the whole."""
    results, seconds = {}, 0.0
    for path in sorted(Path(folder).glob("*.xml")):
        root = ET.parse(path).getroot()  # noqa: S314 - written by our own pytest a moment ago
        seconds += sum(float(suite.get("time", 0)) for suite in root.iter("testsuite"))
        for case in root.iter("testcase"):
            # A module that was skipped as a whole has its name in `name` alone.
            name = ".".join(filter(None, (case.get("classname"), case.get("name"))))
            results[name] = outcome(case)
    found = complaints(results)
    for line in found:
        sys.stdout.write(f"closing_line: {line}\n")
    counts = Counter(what for what, _ in results.values())
    parts = ", ".join(f"{counts[what]} {what}" for what in ORDER if counts[what]) or "no tests ran"
    sys.stdout.write(f"{f' {parts} in {seconds:.2f}s ':=^100}\n")
    return 1 if found or counts["failed"] or counts["error"] or not results else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
