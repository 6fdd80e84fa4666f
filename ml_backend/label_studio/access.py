"""The two kinds of API key, and what each must put in a request's Authorization header."""

import base64
import json
import threading
import time
from collections.abc import Callable

from ml_backend.errors import SettingsError

__all__ = ["ApiKey"]

RENEW_AT = 0.7  # share of an access token's life after which the next one is fetched


class ApiKey:
    """A legacy token, sent as it is, or a personal access token, exchanged for access tokens of five minutes.

    Args:
        key: as the user copied it from Label Studio.
        refresh: exchanges a personal access token for an access token.

    Raises:
        SettingsError: the key is empty, or an access token, which would be dead in five minutes.
    """

    def __init__(self, key: str, refresh: Callable[[str], str]) -> None:
        self._key = key.strip()
        self._refresh = refresh
        self._access = ""
        self._renew_at = 0.0
        self._lock = threading.Lock()
        if not self._key:
            raise SettingsError("AL_LABEL_STUDIO_API_KEY is empty: make a personal access token in Label Studio")
        self.is_personal = self._key.count(".") == 2
        if self.is_personal and _claims(self._key).get("token_type") == "access":
            raise SettingsError(
                "AL_LABEL_STUDIO_API_KEY is an access token, which lasts five minutes: give the personal access "
                "token itself, as Label Studio shows it under Account & Settings"
            )

    def header(self) -> str:
        """The Authorization header to send now."""
        if not self.is_personal:
            return f"Token {self._key}"
        with self._lock:
            if time.monotonic() >= self._renew_at:
                self._access = self._refresh(self._key)
                self._renew_at = time.monotonic() + RENEW_AT * _lifetime_s(self._access)
            return f"Bearer {self._access}"

    def expire(self, refused: str) -> None:
        """Label Studio refused an access token: fetch another before the next request.

        Args:
            refused: the header that was sent; where another thread has fetched a newer token since, that one is kept.
        """
        with self._lock:
            if refused == f"Bearer {self._access}":
                self._renew_at = 0.0


def _lifetime_s(access: str) -> float:
    """Seconds that an access token lives; by its own two stamps, so that our clock may be wrong."""
    claims = _claims(access)
    try:
        return max(0.0, float(str(claims["exp"])) - float(str(claims["iat"])))
    except (KeyError, ValueError):
        return 0.0


def _claims(token: str) -> dict[str, object]:
    """What a JWT says about itself, unverified; nothing where it is none."""
    body = token.split(".")[1]
    try:
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except ValueError:
        return {}
    return claims if isinstance(claims, dict) else {}
