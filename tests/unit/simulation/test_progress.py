"""How far a study is: lines where there is no terminal, a bar with the time left where there is one."""

import io

import pytest
from rich.console import Console

from ml_backend.simulation import parallel as progress
from ml_backend.simulation.parallel import StudyProgress


class Clock:
    """Time that the test turns on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


class TestPlain:
    def test_tells_now_and_then_with_the_time_left(self, clock):
        """From 20 of 100, 10 rounds in 60 s: 70 more take 7 minutes."""
        text = io.StringIO()
        with StudyProgress(Console(file=text), 100) as told:
            told.show(20)
            clock.now += 10
            told.show(22)
            clock.now += 50
            told.show(30)
            told.say("note: [bold] is no markup")

        assert text.getvalue().splitlines() == [
            "30 of 100 rounds, about 7 min left",
            "note: [bold] is no markup",
        ]

    def test_does_not_guess_before_a_round_is_done(self, clock):
        text = io.StringIO()
        with StudyProgress(Console(file=text), 100) as told:
            told.show(20)
            clock.now += 60
            told.show(20)

        assert text.getvalue() == "20 of 100 rounds\n"

    def test_says_so_when_it_is_nearly_through(self, clock):
        text = io.StringIO()
        with StudyProgress(Console(file=text), 100) as told:
            told.show(0)
            clock.now += 60
            told.show(99)

        assert text.getvalue() == "99 of 100 rounds, less than a minute left\n"


class TestTerminal:
    def test_shows_a_bar(self):
        text = io.StringIO()
        console = Console(file=text, force_terminal=True, width=100)
        with StudyProgress(console, 100) as told:
            told.show(20)
            told.show(30)

        assert "30/100" in text.getvalue()
        assert "left" in text.getvalue()
