"""The two views: bars on a terminal, lines in a log."""

import io
from typing import cast

import pytest
from rich.console import Console
from rich.text import Text

from ml_backend.demo import view
from ml_backend.demo.view import LiveView, PlainView, make_view


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=90)


def written(out: Console) -> str:
    return cast(io.StringIO, out.file).getvalue()


class TestMakeView:
    @pytest.mark.parametrize(("terminal", "kind"), [(True, LiveView), (False, PlainView)])
    def test_a_terminal_gets_bars(self, terminal, kind):
        assert isinstance(make_view(console(terminal=terminal)), kind)


class TestPlainView:
    def test_a_step_is_told_when_it_begins_and_when_it_ends(self):
        out = console(terminal=False)
        with PlainView(out) as view:
            for done in (0, 1, 2, 2):
                view.step("uploading", done, 2)

        begun, ended = written(out).splitlines()
        assert begun == "uploading ..."
        assert ended.startswith("uploading: done (0.")

    def test_after_clear_the_same_step_is_told_again(self):
        out = console(terminal=False)
        with PlainView(out) as view:
            view.step("training", 1, 1)
            view.clear()
            view.step("training", 0, 1)

        assert written(out).splitlines()[2:] == ["training ..."]

    def test_a_long_line_stays_one_line_and_brackets_stay_brackets(self):
        out = console(terminal=False)
        line = "label [bold] " + "x" * 200

        PlainView(out).say(line)

        assert written(out) == f"{line}\n"


class TestLiveView:
    def test_shows_a_bar_with_its_count_and_time(self):
        out = console(terminal=True)
        with LiveView(out) as view:
            view.step("training", 3, 9)
            view.say("a line that stays")

        text = written(out)
        assert "training" in text
        assert "3/9" in text
        assert "a line that stays" in text

    def test_a_long_line_breaks_between_words(self):
        out = console(terminal=True)

        LiveView(out).say("a word " * 20)

        first, second = (line.strip() for line in written(out).splitlines())
        assert (first, second) == ("a word " * 12 + "a word", "a word " * 6 + "a word")

    def test_on_a_narrow_terminal_the_bars_give_way(self, monkeypatch):
        """The figures stay on their line."""
        monkeypatch.setattr(view._TimeColumn, "render", lambda *_: Text("14 s, 123 s left"))  # as after some seconds
        out = Console(file=io.StringIO(), width=80)
        bars = LiveView(out)
        bars.step("Label Studio (its first start takes a minute or three)", 1, 100)

        out.print(bars._progress)

        (line,) = written(out).splitlines()
        assert line.endswith("1/100 14 s, 123 s left")

    def test_a_step_that_begins_anew_is_no_longer_through(self):
        view = LiveView(console(terminal=True))
        view.step("labels until the next round", 20, 20)
        assert view._progress.tasks[0].finished

        view.step("labels until the next round", 3, 20)

        (task,) = view._progress.tasks
        assert (task.completed, task.total, task.finished) == (3, 20, False)

    def test_clear_takes_the_bars_away(self):
        view = LiveView(console(terminal=True))
        view.step("training", 3, 9)

        view.clear()

        assert view._progress.tasks == []
