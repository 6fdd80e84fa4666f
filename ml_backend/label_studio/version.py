"""Which Label Studio answers at an address; asked without a key."""

import httpx

from ml_backend.errors import LabelStudioError, PayloadError
from ml_backend.label_studio.route import FAILURES, LABEL_STUDIO, Route

__all__ = ["TESTED", "label_studio_version"]

TESTED = "1.23.2"  # the release that this backend is tested with
PATH = "/api/version"


def label_studio_version(url: str, transport: httpx.BaseTransport | None = None) -> str:
    """The release of the Label Studio at an address.

    Args:
        url: where it is, without a slash at the end.
        transport: httpx's own; for tests.

    Raises:
        Unreachable: nobody answers there.
        LabelStudioError: sends us elsewhere.
        SettingsError: a network variable of the environment is wrong.
        PayloadError: somebody else answers.
    """
    route = Route(url, LABEL_STUDIO, transport)
    try:
        with route.client() as http:
            answer = http.get(f"{url}{PATH}", timeout=10.0)
    except FAILURES as error:
        raise route.unreachable(error, f"no answer from {url}") from error
    route.check_answer(answer)
    if answer.is_redirect:
        there = answer.next_request.url.copy_with(query=None, userinfo=b"") if answer.next_request else "elsewhere"
        raise LabelStudioError(f"{url} sends on to {there}")
    try:
        told = answer.json()
    except ValueError:
        told = None
    release = told.get("release") if isinstance(told, dict) else None
    if not isinstance(release, str):
        raise PayloadError(f"what answers at {url} is no Label Studio: {answer.status_code} to GET {PATH}{route.note}")
    return release
