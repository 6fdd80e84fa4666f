"""Checks of what connects a project with the backend, and whether its events get through."""

import re
import time

import httpx

from ml_backend.doctor.case import Case
from ml_backend.doctor.check import Check, Outcome, failed, fine
from ml_backend.errors import RequestRefused
from ml_backend.label_studio.connect import (
    CONNECTED,
    ONE_CONNECTION,
    OUR_401,
    PRIVATE_ADDRESS,
    authorization,
    hint,
    other_connections,
    wanted_webhook,
)

__all__ = ["CONNECTION_CHECKS"]

ARRIVES_WITHIN_S = 5.0
POLL_S = 0.1
COUNTER = "al_webhooks_total"
UPDATES = re.compile(rf'^{COUNTER}\{{[^}}]*action="PROJECT_UPDATED"[^}}]*\}} (\S+)$', re.MULTILINE)
UNAUTHORIZED = 401
FORBIDDEN = 403


def _private_addresses(case: Case) -> Outcome:
    """Label Studio judges an address before all else: of requests that can make nothing, it refuses it or the rest."""
    asked = {
        "backends": ("/api/ml", {"url": case.url}),  # without the project that it must name
        "webhooks": ("/api/webhooks/", {"url": f"{case.url}/webhook", "project": case.project_id, "is_active": "?"}),
    }
    blocked = []
    for what, (path, body) in asked.items():
        try:
            case.client.transport.send("POST", path, body=body)
        except RequestRefused as error:
            if error.status == FORBIDDEN:
                blocked.append(what)
                said = str(error)
    if blocked:
        return failed(f"Label Studio allows no {' and no '.join(blocked)} at {case.url}: {said}", PRIVATE_ADDRESS)
    return fine(f"Label Studio may call {case.url}")


def _backend_answers(case: Case) -> Outcome:
    answer = case.ask_backend("/metrics")
    if answer.status_code == UNAUTHORIZED:
        return failed(f"{case.url} refuses our credentials", OUR_401)
    if answer.status_code != httpx.codes.OK or COUNTER not in answer.text:
        return failed(
            f"what answers at {case.url} is not this backend ({answer.status_code} to GET /metrics)",
            "give the backend's address with --url",
        )
    return fine(f"at {case.url}, with the credentials of these settings")


def _backend_connected(case: Case) -> Outcome:
    row = case.backend
    again = f"run `ml-backend connect --project {case.project_id} --url {case.url}`"
    if row is None:
        others = [str(other["url"]) for other in case.backends]
        beside = f"; it has one at {', '.join(others)}" if others else ""
        return failed(f"the project has no backend at {case.url}{beside}", again)
    if row["state"] != CONNECTED:
        problem = str(row.get("error_message") or row.get("readable_state") or row["state"])
        return failed(f"Label Studio cannot work with it: {problem}", hint(problem) or f"mend that, and {again}")
    ours = case.settings.basic_auth_user
    theirs = row.get("basic_auth_user") or None
    if ours != theirs:
        return failed(f"Label Studio calls as user {theirs!r}, and these settings have {ours!r}", again)
    return fine(f"{row.get('title')!r}, as {f'user {ours!r}' if ours else 'nobody in particular'}")


def _webhook(case: Case) -> Outcome:
    row = case.webhook
    if row is None:
        return failed(
            f"the project has no webhook to {case.url}/webhook: it was deleted, or Label Studio was not allowed to "
            "make it beside the backend",
            _connect(case),
        )
    wrong = []
    if not row.get("is_active"):
        wrong.append("is switched off")
    if not row.get("send_payload"):
        wrong.append("sends no payload")
    if not row.get("send_for_all_actions"):
        wrong.append("sends some events only")
    if (row.get("headers") or {}) != wanted_webhook(case.settings, case.url, row)["headers"]:
        held = "Authorization" in (row.get("headers") or {})
        wrong.append("sends another Authorization than these settings" if held else "sends no Authorization")
    if wrong:
        return failed(f"it {', '.join(wrong)}", _connect(case))
    guarded = "with our Authorization" if authorization(case.settings) else "no Authorization is asked for"
    return fine(f"active, with payload, all events; {guarded}")


def _one_connection(case: Case) -> Outcome:
    others = other_connections(case.backends, case.client.webhooks(case.project_id), case.url, case.settings)
    if others:
        return failed(
            f"the project also holds this backend at {', '.join(others)}: it sends every event more than once, and the "
            "options of one connection replace the other's",
            ONE_CONNECTION,
        )
    return fine("no other leads to this backend")


def _event_arrives(case: Case) -> Outcome:
    """Setting the title to what it is makes Label Studio tell PROJECT_UPDATED, and changes nothing."""
    before = _updates(case)
    title = case.client.project(case.project_id)["title"]
    case.client.patch_project(case.project_id, {"title": title})
    start = time.monotonic()
    while (waited_s := time.monotonic() - start) < ARRIVES_WITHIN_S:
        if _updates(case) > before:
            return fine(f"PROJECT_UPDATED came {waited_s:.1f} s after its cause")
        time.sleep(POLL_S)
    return failed(
        f"Label Studio was to tell of a change of the project, and nothing came within {ARRIVES_WITHIN_S:.0f} s",
        f"can Label Studio's machine reach {case.url}? Its log says why a webhook failed; {_connect(case)}",
    )


def _updates(case: Case) -> float:
    told = case.ask_backend("/metrics").text
    return sum(float(count) for count in UPDATES.findall(told))


def _connect(case: Case) -> str:
    return f"run `ml-backend connect --project {case.project_id} --url {case.url}`"


CONNECTION_CHECKS = (
    Check("private addresses", _private_addresses, needs=("project",), remedy="try again when Label Studio answers"),
    Check("backend", _backend_answers, needs=("settings",)),
    Check("connection", _backend_connected, needs=("project",), remedy="try again when Label Studio answers"),
    Check("webhook", _webhook, needs=("connection",), remedy="try again when Label Studio answers"),
    Check("one connection", _one_connection, needs=("connection",), remedy="try again when Label Studio answers"),
    Check("event arrives", _event_arrives, needs=("webhook", "backend"), remedy="look into Label Studio's log"),
)
