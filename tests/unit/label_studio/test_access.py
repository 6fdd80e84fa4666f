import base64
import json

import pytest

from ml_backend.errors import SettingsError
from ml_backend.label_studio.client import ApiKey


def jwt(**claims: object) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"head.{body}.signature"


class Clock:
    """Stands in for time.monotonic."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Refreshes:
    """Hands out numbered access tokens that live for ``life_s``."""

    def __init__(self, life_s: float = 300.0) -> None:
        self.life_s = life_s
        self.count = 0

    def __call__(self, key: str) -> str:
        assert key == PERSONAL
        self.count += 1
        # Stamped by a clock that is years off: only the difference counts.
        return jwt(token_type="access", iat=5, exp=5 + self.life_s, n=self.count)


PERSONAL = jwt(token_type="refresh", exp=9e9)


class TestApiKey:
    def test_a_legacy_token_is_sent_as_it_is(self) -> None:
        refreshes = Refreshes()

        assert ApiKey(" abc\n", refreshes).header() == "Token abc"
        assert refreshes.count == 0

    def test_a_personal_token_is_exchanged_and_renewed_in_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """300 s long: kept at 209 s, renewed at 210 s."""
        clock, refreshes = Clock(), Refreshes()
        monkeypatch.setattr("ml_backend.label_studio.client.time.monotonic", clock)
        key = ApiKey(PERSONAL, refreshes)

        first = key.header()
        clock.now += 209
        assert key.header() == first
        clock.now += 1
        assert key.header() != first
        assert refreshes.count == 2

    def test_expire(self) -> None:
        """Of two threads that were refused with the same token, the second keeps the first one's new one."""
        refreshes = Refreshes()
        key = ApiKey(PERSONAL, refreshes)
        dead = key.header()
        key.expire(dead)
        renewed = key.header()
        key.expire(dead)

        assert renewed != dead
        assert key.header() == renewed
        assert refreshes.count == 2

    def test_an_access_token_is_refused_with_the_way_out(self) -> None:
        with pytest.raises(SettingsError, match="give the personal access token itself"):
            ApiKey(jwt(token_type="access"), Refreshes())

    def test_an_empty_key_is_refused(self) -> None:
        with pytest.raises(SettingsError, match="is empty"):
            ApiKey("  ", Refreshes())

    def test_what_only_looks_like_a_personal_token_is_left_to_label_studio(self) -> None:
        assert ApiKey("a.b.c", Refreshes()).is_personal
