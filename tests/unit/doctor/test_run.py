"""The command: what it refuses, what it prints, and its exit status."""

import json

import pytest

from ml_backend.doctor import runner as run
from ml_backend.doctor.runner import run_doctor
from ml_backend.errors import SettingsError
from tests.unit.doctor.test_page import finding


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
        monkeypatch.setattr(run, "examine", lambda _: iter([finding("ok"), finding(verdict, remedy="mend it")]))

        assert run_doctor(7, "http://backend:9090/", json=False) == status
        assert capsys.readouterr().out.splitlines()[0] == "ok    webhook             as it must be"
        assert run_doctor(7, "http://backend:9090/", json=True) == status
        told = json.loads(capsys.readouterr().out)
        assert told["url"] == "http://backend:9090"
        assert told["well"] is (status == 0)
