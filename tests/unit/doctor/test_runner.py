"""The runner: what it runs, prints and returns."""

import json
import os
import pty
import re
import sys

import pytest

from ml_backend.doctor import runner
from ml_backend.doctor.checks import CHECKS, Check, CheckContext, Result, ok, skipped
from ml_backend.doctor.runner import NAME, Finding, as_json, lines_of, run_doctor, summary
from ml_backend.errors import SettingsError
from tests.unit.doctor.installation import failures


def finding(verdict: str, seen: str = "as it must be", remedy: str = "", name: str = "webhook") -> Finding:
    return Finding.model_validate({"name": name, "verdict": verdict, "seen": seen, "remedy": remedy})


class TestExamine:
    def test_skips_what_needs_a_check_that_was_skipped(self, installation):
        checks = (
            Check("first", lambda _: skipped("nothing there yet")),
            Check("second", lambda _: ok("it is"), needs=("first",)),
            Check("third", lambda _: ok("it is"), needs=("second",)),
            Check("fourth", lambda _: ok("it is")),
        )

        found = installation.examine(checks)

        assert [one.verdict for one in found.values()] == ["skip", "skip", "skip", "ok"]
        assert found["third"].seen == "needs: second"

    def test_a_bug_in_a_check_hides_no_other(self, installation):
        def bug(_: object) -> Result:
            raise KeyError("oops")

        found = installation.examine((Check("first", bug), Check("second", lambda _: ok("it is"))))

        assert found["first"].verdict == "FAIL"
        assert "KeyError" in found["first"].seen
        assert found["second"].verdict == "ok"

    def test_hides_secrets_whoever_repeats_them(self, installation):
        """Those of the settings, and the header that is made of them."""
        installation.settings["redis_url"] = "redis://:secret-word@127.0.0.1:6379/0"
        said = f"{'k' * 40} secret-word pass-word YWw6cGFzcy13b3Jk\nand on"

        def tells(case: CheckContext) -> Result:
            assert case.settings is not None  # read, so that its secrets are known
            return ok(said)

        found = installation.examine((Check("tells", tells),))

        assert found["tells"].seen == "(hidden) (hidden) (hidden) (hidden) and on"

    def test_an_address_of_redis_that_is_none_ends_nothing(self, installation):
        installation.settings["redis_url"] = "redis://:secret-word@[::1"
        installation.queue = None

        found = installation.examine()

        assert failures(found) == {"settings"}
        assert "secret-word" not in str(found)


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

    def test_are_as_wide_as_they_may_be(self):
        words = "a remedy that goes on and on " * 9

        assert 100 < max(map(len, lines_of(finding("FAIL", seen=words), 120))) <= 120
        assert len(lines_of(finding("FAIL", seen=words), 1)) > 9  # there is no such terminal; it must not fail

    def test_break_no_address(self):
        """It is there to be copied."""
        address = f"http://backend.example.org:9090/{'x' * 80}"

        assert any(address in line for line in lines_of(finding("FAIL", seen=f"no answer from {address}")))

    def test_break_no_command(self):
        command = "`ml-backend connect --project 7 --url http://backend.internal:9090`"

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


class TestRunDoctor:
    @pytest.mark.parametrize("url", ["127.0.0.1:9090", "ftp://backend"])
    def test_refuses_an_address_that_is_none(self, url):
        with pytest.raises(SettingsError, match="expected http://"):
            run_doctor(7, url, json=False)

    def test_refuses_a_password_in_the_address_and_does_not_repeat_it(self):
        with pytest.raises(SettingsError) as refused:
            run_doctor(7, "http://al:my-secret@backend:9090", json=False)

        assert "my-secret" not in str(refused.value)

    @pytest.mark.parametrize(("verdict", "status"), [("ok", 0), ("skip", 0), ("FAIL", 1)])
    def test_ends_with_1_where_something_fails(self, verdict, status, monkeypatch, capsys):
        monkeypatch.setattr(runner, "examine", lambda _: iter([finding("ok"), finding(verdict, remedy="mend it")]))

        assert run_doctor(7, "http://backend.internal:9090/", json=False) == status
        assert capsys.readouterr().out.splitlines()[0] == "ok    webhook             as it must be"
        assert run_doctor(7, "http://backend.internal:9090/", json=True) == status
        told = json.loads(capsys.readouterr().out)
        assert told["url"] == "http://backend.internal:9090"
        assert told["well"] is (status == 0)

    @pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
    def test_on_a_terminal_it_has_colours_and_its_width(self, no_color, coloured, monkeypatch):
        words = "seen " * 30
        monkeypatch.setattr(runner, "examine", lambda _: iter([finding("FAIL", seen=words, remedy="mend it")]))
        terminal, program = pty.openpty()
        for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLORTERM"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("COLUMNS", "132")  # otherwise that of the terminal in which the tests run
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("NO_COLOR", no_color)
        with os.fdopen(program, "w") as stream:
            monkeypatch.setattr(sys, "stdout", stream)

            assert run_doctor(7, "http://backend.internal:9090/", json=False) == 1

            stream.flush()
            shown = os.read(terminal, 10_000).decode()
            while "begin with" not in shown:
                shown += os.read(terminal, 10_000).decode()
        os.close(terminal)
        assert ("\x1b[1;31mFAIL\x1b[0m" in shown) is coloured
        plain = re.sub(r"\x1b\[[\d;]*m", "", shown).replace("\r\n", "\n")
        assert plain.splitlines() == [
            *lines_of(finding("FAIL", seen=words, remedy="mend it"), 132),
            "",
            "1 of 1 checks failed; begin with: webhook",
        ]
