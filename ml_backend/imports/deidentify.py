"""Replaces patients' names and dates by what only the holder of a key can lead back.

docs/security.md says what this promises and what it does not.
"""

import base64
import hmac
import secrets
from datetime import date, timedelta
from pathlib import Path

from ml_backend.errors import SettingsError
from ml_backend.storage.atomic import write_atomically

_KEY_BYTES = 32
_SHIFT_DAYS = 1826  # five years


class Deidentifier:
    """Keyed pseudonyms and shifted dates: the same under the same key, and unrelated under another.

    Args:
        key: a secret of at least 16 bytes.

    Raises:
        ValueError: the key is shorter, so that it could be guessed.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) < 16:
            raise ValueError(f"a key of at least 16 bytes is needed, got {len(key)}")
        self._key = key

    def patient(self, patient_id: str) -> str:
        """Pseudonym of a patient: 16 letters and digits (80 bits of HMAC-SHA256); "" for an unknown patient."""
        patient_id = patient_id.strip()
        return base64.b32encode(self._digest("patient", patient_id)[:10]).decode() if patient_id else ""

    def date(self, date_: str, patient_id: str) -> str:
        """A date, moved 1 to 1,826 days into the past.

        All dates of a patient move by the same number of days, so that the intervals between them stay.

        Args:
            date_: ``YYYYMMDD`` or ``YYYY-MM-DD``.
            patient_id: as in the file; without one nothing could be kept, and the date is dropped.

        Returns:
            ``YYYY-MM-DD``; "" without a date or without a patient.

        Raises:
            ValueError: it is no date. The message does not repeat it.
        """
        date_, patient_id = date_.strip(), patient_id.strip()
        if not date_ or not patient_id:
            return ""
        days = 1 + int.from_bytes(self._digest("date", patient_id)[:8]) % _SHIFT_DAYS
        try:
            return (date.fromisoformat(date_) - timedelta(days=days)).isoformat()
        except (ValueError, OverflowError):
            raise ValueError("a study date is no date: write it as YYYYMMDD or YYYY-MM-DD") from None

    def _digest(self, purpose: str, patient_id: str) -> bytes:
        return hmac.digest(self._key, f"{purpose}|{patient_id}".encode(), "sha256")


def key_file(path: Path) -> Deidentifier:
    """The de-identifier of the key in a file, which is made where there is none, readable by its owner alone.

    Raises:
        SettingsError: the file cannot be read or written, or holds no key.
    """
    try:
        if not path.exists():
            write_atomically(path, f"{secrets.token_hex(_KEY_BYTES)}\n".encode(), parents=False)
        return Deidentifier(bytes.fromhex(path.read_text().strip()))
    except OSError as error:
        raise SettingsError(f"the key file {path} cannot be read or made: {error.strerror or error}") from error
    except ValueError as error:
        raise SettingsError(
            f"{path} holds no key of 32 hexadecimal digits or more: give the key file of the earlier imports, or a "
            "path where there is none yet; with another key the same patients get other pseudonyms"
        ) from error
