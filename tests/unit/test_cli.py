"""The command line: help, options, and errors as one line with exit status 1."""

import sys

import pytest
from typer.testing import CliRunner

from ml_backend import cli
from ml_backend.errors import SettingsError

RUNNER = CliRunner()


class TestHelp:
    def test_names_every_command(self):
        result = RUNNER.invoke(cli.app, ["--help"])

        assert result.exit_code == 0
        assert all(name in result.output for name in ("serve", "work", "connect", "demo"))

    @pytest.mark.parametrize("command", ["serve", "work", "connect", "demo"])
    def test_of_a_command_opens(self, command):
        assert RUNNER.invoke(cli.app, [command, "--help"]).exit_code == 0


class TestConnect:
    @pytest.mark.parametrize("text", ["strategy", "=entropy", ""])
    def test_refuses_an_option_that_is_no_pair(self, text):
        result = RUNNER.invoke(cli.app, ["connect", "--project", "1", "--option", text])

        assert isinstance(result.exception, SettingsError)
        assert "NAME=VALUE" in str(result.exception)

    @pytest.mark.parametrize("url", ["127.0.0.1:9090", "backend:9090", "ftp://backend"])
    def test_refuses_an_address_that_is_no_url(self, url):
        """Label Studio answers it with 403, which would pass for a refused private address."""
        result = RUNNER.invoke(cli.app, ["connect", "--project", "1", "--url", url])

        assert isinstance(result.exception, SettingsError)
        assert f"--url '{url}': expected http://" in str(result.exception)

    def test_keeps_what_follows_the_first_equals_sign(self):
        assert cli._pairs(["weights=/models/a=b.pt", "seed=3"]) == {"weights": "/models/a=b.pt", "seed": "3"}


class TestServe:
    def test_refuses_an_address_of_redis_that_is_none(self, monkeypatch):
        monkeypatch.setattr("ml_backend.server.serve.serve", lambda *_args, **_options: pytest.fail("it serves"))
        monkeypatch.setenv("AL_REDIS_URL", "nonsense")

        result = RUNNER.invoke(cli.app, ["serve"])

        assert isinstance(result.exception, SettingsError)
        assert "AL_REDIS_URL='nonsense'" in str(result.exception)


class TestMain:
    def test_turns_our_errors_into_one_line(self, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["ml-backend", "connect", "--project", "1", "--option", "nonsense"])

        with pytest.raises(SystemExit) as stop:
            cli.main()

        assert stop.value.code == 1
        assert capsys.readouterr().err == (
            "ml-backend: --option 'nonsense': expected NAME=VALUE, for example strategy=entropy\n"
        )

    def test_names_a_bad_setting(self, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["ml-backend", "work"])
        monkeypatch.setenv("AL_TIMEOUT_S", "soon")

        with pytest.raises(SystemExit) as stop:
            cli.main()

        assert stop.value.code == 1
        assert "AL_TIMEOUT_S='soon'" in capsys.readouterr().err
