"""All checks, one after the other; one that fails hides none that does not need it."""

from collections.abc import Iterator, Sequence

from ml_backend.doctor.asked_connection import CONNECTION_CHECKS
from ml_backend.doctor.asked_images import IMAGES_CHECKS
from ml_backend.doctor.asked_machine import MACHINE_CHECKS
from ml_backend.doctor.asked_order import ORDER_CHECKS
from ml_backend.doctor.asked_studio import STUDIO_CHECKS
from ml_backend.doctor.asked_worker import WORKER_CHECKS
from ml_backend.doctor.case import Case
from ml_backend.doctor.check import Check, Finding, Outcome, failed, skipped
from ml_backend.errors import BackendError, Unreachable

__all__ = ["CHECKS", "examine"]

CHECKS: tuple[Check, ...] = (
    *STUDIO_CHECKS,
    *CONNECTION_CHECKS,
    *ORDER_CHECKS,
    *IMAGES_CHECKS,
    *WORKER_CHECKS,
    *MACHINE_CHECKS,
)
HIDDEN = "(hidden)"
SHORTEST_SECRET = 4  # characters: what is shorter would hide half of every message


def examine(case: Case, checks: Sequence[Check] = CHECKS) -> Iterator[Finding]:
    """Look at a project, check by check.

    Args:
        case: the project.
        checks: each after those that it needs.

    Yields:
        What came of each, as soon as it is known. A check that needs one that is not "ok" is skipped.
    """
    sound: set[str] = set()
    for check in checks:
        missing = [name for name in check.needs if name not in sound]
        outcome = skipped(f"needs: {', '.join(missing)}") if missing else _looked(check, case)
        if outcome.verdict == "ok":
            sound.add(check.name)
        yield Finding(
            name=check.name,
            verdict=outcome.verdict,
            seen=_hidden(outcome.seen, case),
            remedy=_hidden(outcome.remedy, case),
        )


def _looked(check: Check, case: Case) -> Outcome:
    try:
        return check.look(case)
    except Unreachable as error:
        return failed(error.what, error.remedy)
    except BackendError as error:
        return failed(str(error), check.remedy)
    except Exception as error:  # noqa: BLE001 - a bug in one check must not hide what the others find
        return failed(f"unexpected {type(error).__name__}: {error}", "this check itself is broken: please report it")


def _hidden(text: str, case: Case) -> str:
    """Without secrets, should a message of somebody else's repeat one; and on one line."""
    for secret in case.secrets():
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, HIDDEN)
    return " ".join(text.split())
