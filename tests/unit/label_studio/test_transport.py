"""What Label Studio is told stays with Label Studio."""

import httpx
import pytest

from ml_backend.errors import LabelStudioError, SettingsError
from ml_backend.label_studio.client import LabelStudioClient, Redirected

URL = "http://label-studio.example:8080/annotate"
PERSONAL = "head.eyJ0b2tlbl90eXBlIjoicmVmcmVzaCJ9.signature"


class Web:
    """Every host: Label Studio redirects as the test says, any other one answers."""

    def __init__(self, status: int, location: str) -> None:
        self.redirect = httpx.Response(status, headers={"location": location})
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        here = str(request.url).startswith(URL)
        return self.redirect if here else httpx.Response(200, json={"access": "a.b.c", "id": 1})


def client(web: Web, key: str = "legacy") -> LabelStudioClient:
    return LabelStudioClient(URL, key, transport=httpx.MockTransport(web), retries=1)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize(
    "there", ["http://evil.example", "https://label-studio.example:8080", "http://label-studio.example:8081"]
)
def test_nothing_follows_a_redirect_to_another_origin(status: int, there: str) -> None:
    """A 307 would repeat the body: the personal access token, or the password of the backend."""
    for key in (PERSONAL, "legacy"):
        web = Web(status, f"{there}/api/?signature=s3cret")

        with pytest.raises(LabelStudioError, match=f"was redirected to {there}/api/: set AL_LABEL_STUDIO_URL") as told:
            client(web, key).add_backend({"basic_auth_pass": "secret"})
        assert len(web.asked) == 1
        assert "s3cret" not in str(told.value)


def test_a_file_that_lies_elsewhere_is_named_and_not_fetched() -> None:
    web = Web(303, "https://bucket.example/a.png?sig=x")

    with pytest.raises(Redirected) as redirected:
        client(web).download("/tasks/1/resolve/?fileuri=eA", max_bytes=9)
    assert redirected.value.location == "https://bucket.example/a.png?sig=x"
    assert "sig=x" not in str(redirected.value)
    assert len(web.asked) == 1


def test_an_address_with_a_password_is_refused_without_repeating_it() -> None:
    with pytest.raises(SettingsError, match="holds a user or a password") as told:
        LabelStudioClient("http://me:s3cret@label-studio.example", "key")
    assert "s3cret" not in str(told.value)
