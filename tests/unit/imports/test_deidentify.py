import os
import re
import stat
from datetime import date
from unittest.mock import Mock

import pytest

from ml_backend.errors import SettingsError
from ml_backend.imports.deidentify import Deidentifier, key_file

KEY = bytes(range(32))


class TestPatient:
    def test_is_the_keyed_hash(self):
        """HMAC-SHA256 of ``patient|MRN-1``, by ``openssl dgst -mac HMAC`` and ``base32``, of the key 00 01 ... 1f."""
        assert Deidentifier(KEY).patient("MRN-1 ") == "DNGSTOCZJYIDYWDC"

    def test_unlike_under_another_key_or_of_another_patient(self):
        one, other = Deidentifier(KEY), Deidentifier(KEY[::-1])

        assert len({one.patient("MRN-1"), one.patient("MRN-2"), other.patient("MRN-1")}) == 3
        assert one.patient(" ") == ""

    def test_a_key_that_could_be_guessed(self):
        with pytest.raises(ValueError, match="at least 16 bytes is needed, got 3"):
            Deidentifier(b"abc")


class TestDate:
    def test_keeps_the_intervals_of_a_patient(self):
        one = Deidentifier(KEY)

        first, second = (date.fromisoformat(one.date(day, "MRN-1")) for day in ("20200115", "2020-03-01"))

        assert (second - first).days == 46
        assert 1 <= (date(2020, 1, 15) - first).days <= 1826

    def test_moves_patients_by_different_numbers_of_days(self):
        one = Deidentifier(KEY)
        shifts = {one.date("20200115", f"MRN-{n}") for n in range(50)}

        assert len(shifts) > 40

    @pytest.mark.parametrize(("day", "patient_id"), [("", "MRN-1"), ("20200115", "")])
    def test_nothing_to_keep(self, day, patient_id):
        assert Deidentifier(KEY).date(day, patient_id) == ""

    def test_no_date_is_refused_without_repeating_it(self):
        with pytest.raises(ValueError, match="YYYYMMDD or YYYY-MM-DD") as error:
            Deidentifier(KEY).date("20200231", "MRN-1")

        assert "20200231" not in str(error.value)


class TestKeyFile:
    def test_made_once_for_its_owner_alone(self, tmp_path):
        path = tmp_path / "key"

        made, read = key_file(path), key_file(path)

        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert re.fullmatch(r"[0-9a-f]{64}\n", path.read_text())
        assert made.patient("MRN-1") == read.patient("MRN-1") != key_file(tmp_path / "other").patient("MRN-1")

    def test_reaches_the_disk_whole_or_not_at_all(self, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(28, "No space left on device")))

        with pytest.raises(SettingsError, match="No space left"):
            key_file(tmp_path / "key")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("text", ["", "a password", "00ff"])
    def test_of_something_else_is_refused(self, tmp_path, text):
        (tmp_path / "key").write_text(text)

        with pytest.raises(SettingsError, match="holds no key of 32 hexadecimal digits"):
            key_file(tmp_path / "key")
        assert (tmp_path / "key").read_text() == text

    def test_in_a_folder_that_does_not_exist(self, tmp_path):
        with pytest.raises(SettingsError, match="No such file or directory"):
            key_file(tmp_path / "none" / "key")
