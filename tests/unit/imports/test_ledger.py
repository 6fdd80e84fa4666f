import sqlite3

import pytest

from ml_backend.errors import SettingsError, StorageError
from ml_backend.imports.ledger import NEAR, open_ledger


def bits(*ones: int) -> bytes:
    return sum(1 << one for one in ones).to_bytes(32)


def test_remembers_what_was_rendered(tmp_path):
    folder = tmp_path / "a" / "state"
    with open_ledger(folder) as ledger:
        ledger.add("file", "pixels", "P", bits(), ["may show\ntext"])
    with open_ledger(folder) as ledger:
        assert ledger.find("file") == ("pixels", ["may show\ntext"])
        assert ledger.find("other") is None
    assert folder.stat().st_mode & 0o777 == 0o700


def test_is_for_its_owner_alone_in_a_folder_for_all(tmp_path):
    tmp_path.chmod(0o755)
    with open_ledger(tmp_path) as ledger:
        ledger.add("file", "pixels", "P", bits())
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_similar_images_of_one_patient():
    with open_ledger(None) as ledger:
        ledger.add("file", "pixels", "P", bits(255))

        def similar(patient: str, pixels: str, *ones: int) -> bool:
            return ledger.has_similar(patient, pixels, bits(255, *ones), {"pixels"}.__contains__)

        assert similar("P", "other", *range(NEAR))
        assert not similar("P", "other", *range(NEAR + 1))
        assert not similar("Q", "other")
        assert not similar("P", "pixels")
        assert not ledger.has_similar("P", "other", bits(255), {"of this project"}.__contains__)


def test_one_import_at_a_time(tmp_path):
    with open_ledger(tmp_path), pytest.raises(SettingsError, match="another import runs"), open_ledger(tmp_path):
        pass
    with open_ledger(tmp_path):
        pass


def test_a_damaged_ledger_and_a_closed_folder_are_named(tmp_path):
    (tmp_path / "ledger.sqlite3").write_bytes(b"no database" * 100)
    with pytest.raises(StorageError, match="delete it"), open_ledger(tmp_path):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="--out"), open_ledger(tmp_path / "file" / "state"):
        pass


def test_holds_no_name(tmp_path):
    with open_ledger(tmp_path) as ledger:
        ledger.add("f", "p", "hash", bits())
    with sqlite3.connect(tmp_path / "ledger.sqlite3") as database:
        assert [row[1] for row in database.execute("PRAGMA table_info(rendered)")] == [
            *("file", "pixels", "patient", "fingerprint", "notes")
        ]
    database.close()
