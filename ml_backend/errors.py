"""Everything that this backend refuses, and why.

::

    BackendError                 the root; ``cli.py`` prints it as one line, ``server/app.py`` answers it as JSON
    ├── SettingsError            a setting or a project option is wrong (400)
    ├── MissingExtra             a command needs packages that are not installed
    ├── LabelStudioError         Label Studio refused, did not answer, or answered something else (502)
    │   ├── Unreachable          it did not answer, or the way to it is closed (502)
    │   ├── RequestRefused       it answered one of our requests, but not with success (502)
    │   ├── PayloadError         what Label Studio sent us cannot be read (400)
    │   └── UnknownProject       the project is not connected to this backend (404)
    ├── RoundError               a round cannot go on
    │   ├── TooFewLabels         there is nothing to train or to validate on
    │   ├── EmptyPool            no image waits for a label: where all are labelled, the project is complete
    │   │   └── UnusablePool     images wait, and none of them can be used
    │   ├── WeightsError         the backbone's weights cannot be had, or do not fit
    │   └── StaleRound           a newer run of the same project holds the fencing token
    │       └── WorkerStopping   this worker was asked to stop: another one goes on with the round
    ├── ImageError               an image cannot be fetched or decoded
    ├── StorageError             the store cannot be read or written
    │   ├── UnknownRound         there is no such round, or no such picture of one (404)
    │   └── OtherFormat          a file is whole, and of another version of this backend
    ├── QueueError               Redis does not answer (503)
    └── ServiceError             a service that we started did not start, or has ended

A message gives the value seen, the value wanted and the way out.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Literal, TypeAlias

ImageErrorKind: TypeAlias = Literal[
    "missing",  # there is no such file
    "forbidden",  # the source does not hand it out to this backend
    "refused",  # the source gave another answer than the file, or the address cannot be one
    "unreachable",  # the source did not answer, or is overloaded
    "timed-out",
    "too-large",  # in bytes or in pixels
    "empty",
    "not-an-image",  # an HTML page, a ZIP archive, noise
    "unsupported",  # an image, but of a format or a coding that is not read
    "damaged",
]


class BackendError(Exception):
    """The root of every error that this backend raises on purpose."""

    http_status = 500


class SettingsError(BackendError):
    """A setting or a project option has a wrong name or value."""

    http_status = 400


class MissingExtra(BackendError):
    """A command needs packages that are not installed; the message names the extra that brings them."""


class LabelStudioError(BackendError):
    """Label Studio refused, did not answer, or answered something unexpected."""

    http_status = 502


class Unreachable(LabelStudioError):
    """A server did not answer: ``what`` failed, and the ``remedy``."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}; {remedy}")
        self.what = what
        self.remedy = remedy


class RequestRefused(LabelStudioError):
    """Label Studio answered, but not with success; ``status`` is that of HTTP."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class PayloadError(LabelStudioError):
    """What Label Studio sent cannot be read."""

    http_status = 400


class UnknownProject(LabelStudioError):
    """The project was never connected to this backend."""

    http_status = 404


class RoundError(BackendError):
    """A round cannot go on."""


class TooFewLabels(RoundError):
    """There is nothing to train on, or nothing to validate on."""


class EmptyPool(RoundError):
    """No image is left to rank; no fault where all of them are labelled."""


class UnusablePool(EmptyPool):
    """Images wait for a label, and none of them can be used; the message gives the reason of the first."""


class WeightsError(RoundError):
    """The backbone's weights cannot be had, or belong to another network."""


class StaleRound(RoundError):
    """A newer run of the same project holds the fencing token."""


class WorkerStopping(StaleRound):
    """The worker of a round was asked to stop, and another one goes on with the round."""


class ImageError(BackendError):
    """An image cannot be fetched or decoded; the message names it.

    Attributes:
        kind: the owner filters by it, and it decides when the image is tried again.
    """

    def __init__(self, message: str, kind: ImageErrorKind = "refused") -> None:
        super().__init__(message)
        self.kind = kind

    @staticmethod
    def kind_of(error: OSError) -> ImageErrorKind:
        """The kind that an error of the operating system or of a connection is."""
        if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
            return "missing"
        if isinstance(error, PermissionError):
            return "forbidden"
        return "timed-out" if isinstance(error, TimeoutError) else "unreachable"


class StorageError(BackendError):
    """The round store cannot be read or written."""


class UnknownRound(StorageError):
    """There is no such round of the project, or no such picture of it."""

    http_status = 404


class OtherFormat(StorageError):
    """A file is whole, and another version of this backend wrote it in a format that this one does not read."""


class QueueError(BackendError):
    """Redis does not answer, so that nothing can be counted or queued."""

    http_status = 503


class ServiceError(BackendError):
    """A service did not start, or ended by itself; the message ends with the last lines of its log."""


def did_you_mean(value: str, known: Iterable[str]) -> str:
    """The end of a message: ``; did you mean 'entropy'?`` for the name most like a wrong one, empty where none is."""
    names = {name.lower(): name for name in known}
    return "".join(f"; did you mean {names[name]!r}?" for name in get_close_matches(value.lower(), names, n=1))
