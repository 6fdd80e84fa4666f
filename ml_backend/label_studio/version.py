"""Which Label Studio answers at an address; asked without a key."""

import httpx

from ml_backend.errors import LabelStudioError, PayloadError

__all__ = ["TESTED", "label_studio_version"]

TESTED = "1.23.2"  # the release that this backend is tested with
PATH = "/api/version"


def label_studio_version(url: str, transport: httpx.BaseTransport | None = None) -> str:
    """The release of the Label Studio at an address.

    Args:
        url: where it is, without a slash at the end.
        transport: httpx's own; for tests.

    Raises:
        LabelStudioError: nobody answers there, or sends us elsewhere.
        PayloadError: somebody else answers.
    """
    try:
        with httpx.Client(transport=transport, timeout=10.0) as http:
            answer = http.get(f"{url}{PATH}")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise LabelStudioError(f"no answer from {url} ({type(error).__name__}: {error})") from error
    if answer.is_redirect:
        there = answer.next_request.url.copy_with(query=None, userinfo=b"") if answer.next_request else "elsewhere"
        raise LabelStudioError(f"{url} sends on to {there}")
    try:
        told = answer.json()
    except ValueError:
        told = None
    release = told.get("release") if isinstance(told, dict) else None
    if not isinstance(release, str):
        raise PayloadError(f"what answers at {url} is no Label Studio: {answer.status_code} to GET {PATH}")
    return release
