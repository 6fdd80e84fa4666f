"""The content of log lines, and what is kept out of them."""

import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from pydantic import SecretStr

from ml_backend.config import Settings
from ml_backend.logs import set_up_logs

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore the logging of the process after each test."""
    root, names = logging.getLogger(), ("ml_backend", "__main__", "gunicorn.error")
    handlers, levels = list(root.handlers), {name: logging.getLogger(name).level for name in names}
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    yield
    root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Lines:
    """The lines since the last call; every line must be JSON."""
    return lambda: [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def settings(**given: object) -> Settings:
    return Settings.model_validate({"log_format": "json"} | given)


class TestJson:
    def test_a_line(self, lines: Lines) -> None:
        set_up_logs(settings())

        with structlog.contextvars.bound_contextvars(project="2.1", round="r000001"):
            structlog.get_logger("ml_backend.server").info("webhook", changes=3)

        [line] = lines()
        assert str(line.pop("timestamp")).endswith("Z")
        assert line == {
            "event": "webhook",
            "level": "info",
            "logger": "ml_backend.server",
            "project": "2.1",
            "round": "r000001",
            "changes": 3,
        }

    def test_what_a_line_says_itself_goes_before_what_is_bound(self, lines: Lines) -> None:
        set_up_logs(settings())

        with structlog.contextvars.bound_contextvars(round="r000002"):
            structlog.get_logger("ml_backend").info("published", round="r000001")

        assert lines()[0]["round"] == "r000001"

    def test_the_lines_of_libraries(self, lines: Lines) -> None:
        """With what is bound; and of those that are not ours only the warnings."""
        set_up_logs(settings(log_level="DEBUG"))

        with structlog.contextvars.bound_contextvars(project="2.1"):
            logging.getLogger("ml_backend.model").info("%d epochs", 3)
            logging.getLogger("httpcore").debug("headers: cookie")
            logging.getLogger("rq.worker").warning("horse %s", "gone")
            with warnings.catch_warnings():
                warnings.simplefilter("default")
                logging.captureWarnings(capture=True)
                warnings.warn("soon no longer", FutureWarning, stacklevel=1)

        found = lines()
        assert [(line["event"], line["logger"]) for line in found[:2]] == [
            ("3 epochs", "ml_backend.model"),
            ("horse gone", "rq.worker"),
        ]
        assert "soon no longer" in str(found[2]["event"])
        assert {line["project"] for line in found} == {"2.1"}

    def test_levels(self, lines: Lines) -> None:
        set_up_logs(settings(log_level="WARNING"))

        structlog.get_logger("ml_backend").info("quiet")
        logging.getLogger("ml_backend.model").info("quiet")
        structlog.get_logger("ml_backend").warning("loud")

        assert [line["event"] for line in lines()] == ["loud"]

    def test_set_up_twice_writes_once(self, lines: Lines) -> None:
        set_up_logs(settings())
        set_up_logs(settings())

        structlog.get_logger("ml_backend").info("once")

        assert len(lines()) == 1

    def test_what_libvips_says_of_every_tile_of_a_bad_image_is_left_out(self, lines: Lines) -> None:
        set_up_logs(settings())

        logging.getLogger("pyvips").warning("VIPS: not enough data")

        assert lines() == []

    def test_a_traceback_without_values(self, lines: Lines) -> None:
        """Local variables hold images, requests and passwords."""
        set_up_logs(settings())
        patient = "Jane Doe"

        try:
            int("no number")
        except ValueError:
            structlog.get_logger("ml_backend").exception("it failed")
        assert patient

        [line] = lines()
        [error] = line["exception"]
        assert (error["exc_type"], error["exc_value"]) == (
            "ValueError",
            "invalid literal for int() with base 10: 'no number'",
        )
        assert error["frames"][0]["name"] == "test_a_traceback_without_values"
        assert "Jane Doe" not in json.dumps(line)

    def test_what_json_does_not_know(self, lines: Lines) -> None:
        set_up_logs(settings())

        structlog.get_logger("ml_backend").info("odd", loss=float("nan"), of={1, 2}, key=SecretStr("0123456789"))

        [line] = lines()
        assert (line["loss"], line["of"]) == ("nan", [1, 2])
        assert line["key"] == "SecretStr('**********')"

    def test_an_error_that_nobody_caught(self, lines: Lines) -> None:
        set_up_logs(settings())
        error = RuntimeError("a bug")

        sys.excepthook(RuntimeError, error, None)

        [line] = lines()
        assert (line["level"], line["event"]) == ("critical", "ended by an unexpected error")
        assert line["exception"][0]["exc_value"] == "a bug"


class TestConsole:
    @pytest.mark.parametrize("form", ["console", "auto"])
    def test_for_people(self, form: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        """On a terminal by itself."""
        monkeypatch.setattr(sys.stdout, "isatty", lambda: form == "auto")
        set_up_logs(settings(log_format=form))

        structlog.get_logger("ml_backend").info("round begins", project="2.1")

        out = capsys.readouterr().out
        assert "round begins" in out
        assert "\x1b[" in out if form == "auto" else "project=2.1" in out
        with pytest.raises(ValueError, match=r"Expecting value|Extra data"):
            json.loads(out)

    def test_auto_is_json_elsewhere(self, lines: Lines) -> None:
        set_up_logs(settings(log_format="auto"))

        structlog.get_logger("ml_backend").info("round begins")

        assert lines()[0]["event"] == "round begins"

    def test_a_traceback_without_values(self, capsys: pytest.CaptureFixture[str]) -> None:
        set_up_logs(settings(log_format="console", basic_auth_user="ls", basic_auth_pass="in-the-message"))
        patient = "Jane Doe"

        try:
            int("in-the-message")
        except ValueError:
            structlog.get_logger("ml_backend").exception("it failed")
        assert patient

        out = capsys.readouterr().out
        assert "ValueError: invalid literal for int() with base 10: '***'" in out
        assert "Jane Doe" not in out


class TestSecrets:
    GIVEN = settings(
        redis_url="redis://:pass%2Fof-redis@127.0.0.1:1/0",
        label_studio_url="http://user:pass-of-proxy@ls.example",
        label_studio_api_key="key-of-label-studio",
        basic_auth_user="ls",
        basic_auth_pass="key",
    )

    def test_of_the_settings(self) -> None:
        assert set(self.GIVEN.secrets) == {
            "pass%2Fof-redis",
            "pass/of-redis",
            "pass-of-proxy",
            "key-of-label-studio",
            "key",
        }
        assert settings(redis_url="redis://[").secrets == ()

    def test_are_hidden_wherever_they_stand(self, lines: Lines) -> None:
        set_up_logs(self.GIVEN)

        refused = RuntimeError("Token key-of-label-studio was refused")
        deep = [{"a": ("pass-of-proxy",)}]
        structlog.get_logger("ml_backend").error("no pass/of-redis", exc_info=refused, deep=deep)
        logging.getLogger("urllib3").warning("GET http://user:%s@ls.example", "pass-of-proxy")

        first, second = lines()
        assert first["event"] == "no ***"
        assert first["deep"] == [{"a": ["***"]}]
        assert first["exception"][0]["exc_value"] == "Token *** was refused"
        assert second["event"] == "GET http://user:***@ls.example"

    def test_a_password_of_three_characters_does_not_garble_the_log(self, lines: Lines) -> None:
        set_up_logs(self.GIVEN)

        structlog.get_logger("ml_backend").info("a keyboard")

        assert lines()[0]["event"] == "a keyboard"
