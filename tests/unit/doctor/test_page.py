"""What is printed fits a terminal of 80 columns, and says all."""

import json

from ml_backend.doctor.checks import Finding
from ml_backend.doctor.runner import CHECKS, NAME, as_json, lines_of, summary


def finding(verdict: str, seen: str = "as it must be", remedy: str = "", name: str = "webhook") -> Finding:
    return Finding.model_validate({"name": name, "verdict": verdict, "seen": seen, "remedy": remedy})


class TestLines:
    def test_are_aligned(self):
        assert lines_of(finding("ok")) == ["ok    webhook             as it must be"]
        assert lines_of(finding("FAIL", remedy="mend it")) == [
            "FAIL  webhook             as it must be",
            "                          -> mend it",
        ]

    def test_have_80_columns_at_most_and_lose_no_word(self):
        words = "a remedy that goes on and on until it has been told in full and twice over " * 3
        lines = lines_of(finding("FAIL", seen=words, remedy=words))

        assert max(map(len, lines)) <= 80
        assert " ".join(lines).replace("->", "").split()[2:] == (words * 2).split()

    def test_break_no_address(self):
        """It is there to be copied."""
        address = f"http://backend.example.org:9090/{'x' * 80}"

        assert any(address in line for line in lines_of(finding("FAIL", seen=f"no answer from {address}")))

    def test_break_no_command(self):
        command = "`ml-backend connect --project 7 --url http://backend:9090`"

        lines = lines_of(finding("FAIL", remedy=f"somebody who knows what is to be done would run {command}"))

        assert lines[-1] == f"{' ' * 29}{command}"

    def test_have_room_for_every_name(self):
        assert max(len(check.name) for check in CHECKS) <= NAME


class TestSummary:
    def test_counts(self):
        found = [finding("ok"), finding("skip"), finding("FAIL", name="Redis"), finding("FAIL")]

        assert summary(found) == "2 of 4 checks failed, 1 skipped; begin with: Redis"
        assert summary(found[:1]) == "all is well: 1 checks passed"
        assert summary(found[:2]) == "all is well: 1 checks passed, 1 skipped"


class TestJson:
    def test_holds_every_finding(self):
        told = json.loads(as_json(7, "http://b", [finding("ok"), finding("FAIL", remedy="mend it")]))

        assert (told["project"], told["url"], told["well"]) == (7, "http://b", False)
        assert told["findings"][1] == {
            "name": "webhook", "verdict": "FAIL", "seen": "as it must be", "remedy": "mend it",
        }  # fmt: skip

    def test_skips_are_no_failure(self):
        assert json.loads(as_json(7, "http://b", [finding("skip")]))["well"] is True
