"""Which Label Studio answers, and what is said where none does."""

import httpx
import pytest

from ml_backend.errors import LabelStudioError, PayloadError
from ml_backend.label_studio.client import label_studio_version


def asked(answer: httpx.Response) -> str:
    return label_studio_version("http://ls", httpx.MockTransport(lambda _: answer))


def test_its_release() -> None:
    assert asked(httpx.Response(200, json={"release": "1.23.2", "edition": "Community"})) == "1.23.2"


def test_nobody_answers() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("Connection refused", request=request)

    with pytest.raises(LabelStudioError, match="no answer from http://ls: ConnectError: Connection refused"):
        label_studio_version("http://ls", httpx.MockTransport(refuse))


def test_a_redirect_is_told_and_not_followed() -> None:
    """Its target without what may be a secret in it."""
    there = httpx.Response(301, headers={"location": "https://me:pass@studio.example/api/version?token=x"})

    with pytest.raises(LabelStudioError, match=r"redirects to https://studio\.example/api/version$"):
        asked(there)


@pytest.mark.parametrize("answer", [{"json": {"version": 5}}, {"json": []}, {"text": "<html>hello"}])
def test_somebody_else(answer: dict[str, object]) -> None:
    with pytest.raises(PayloadError, match="is no Label Studio: 200 to GET /api/version"):
        asked(httpx.Response(200, **answer))  # type: ignore[arg-type]
