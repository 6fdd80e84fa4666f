"""How the services are prepared; that they come up for real is in the system tests."""

import json
import stat

import pytest

from ml_backend.demo.services import Backend, LabelStudio
from ml_backend.errors import ServiceError


class TestLabelStudio:
    def test_its_owner_is_drawn_once_and_kept_in_private(self, tmp_path):
        first = LabelStudio(tmp_path / "ls", binary=tmp_path / "program").admin

        assert LabelStudio(tmp_path / "ls", binary=tmp_path / "program").admin == first
        assert stat.S_IMODE((tmp_path / "ls" / "login.json").stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "ls").stat().st_mode) == 0o700
        assert len(first.token) == 40
        assert len(first.password) >= 8  # Label Studio refuses less

    def test_two_folders_have_two_owners(self, tmp_path):
        one, other = (LabelStudio(tmp_path / name, binary=tmp_path / "program").admin for name in ("a", "b"))

        assert one.password != other.password
        assert one.token != other.token

    @pytest.mark.parametrize("content", ["not json", "{}", json.dumps({"email": "a"}), "[1, 2]"])
    def test_a_damaged_login_is_named_with_the_way_out(self, tmp_path, content):
        (tmp_path / "login.json").write_text(content)

        with pytest.raises(ServiceError, match=r"login.json cannot be read.*move .* away"):
            LabelStudio(tmp_path, binary=tmp_path / "program")

    def test_a_missing_program_says_how_to_get_it(self, tmp_path):
        with pytest.raises(ServiceError, match=r"/label-studio does not exist: run `make setup`"):
            LabelStudio(tmp_path / "ls", binary=tmp_path / "label-studio").start()

    def test_the_program_can_be_named_in_the_environment(self, monkeypatch):
        monkeypatch.setenv("AL_LABEL_STUDIO_BIN", "/opt/label-studio")

        assert str(LabelStudio.default_binary()) == "/opt/label-studio"

    def test_gets_none_of_our_environment_that_it_would_take_for_a_setting(self, tmp_path, monkeypatch):
        """Label Studio reads HOST, DEBUG and every other setting under its bare name too."""
        for name in ("HOST", "DEBUG", "DATABASE_NAME", "LABEL_STUDIO_DATABASE", "SENTRY_DSN"):
            monkeypatch.setenv(name, "mine")

        environ = LabelStudio(tmp_path / "ls", binary=tmp_path / "program")._environ()

        assert "mine" not in environ.values()


class TestBackend:
    def test_draws_its_own_credentials(self, tmp_path):
        one, other = Backend({"A": "b"}, tmp_path / "log"), Backend({}, tmp_path / "log")

        assert one.password != other.password
        assert one.environ == {"A": "b", "AL_BASIC_AUTH_USER": one.user, "AL_BASIC_AUTH_PASS": one.password}
