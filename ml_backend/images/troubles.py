"""Why an image cannot be read, in a few stable words: what the owner filters by, and what is tried again soon."""

from typing import Literal, TypeAlias, cast, get_args

from ml_backend.errors import ImageError

__all__ = ["OF_THE_FILE", "PASSING", "Trouble", "UndecodableImage", "trouble_of"]

Trouble: TypeAlias = Literal[
    "missing",  # there is no such file
    "forbidden",  # the source does not hand it to us
    "refused",  # the source gave another answer than the file, or the address cannot be one
    "unreachable",  # the source did not answer, or is overloaded
    "timed-out",
    "too-large",  # in bytes or in pixels
    "empty",
    "not-an-image",  # an HTML page, a ZIP archive, noise
    "unsupported",  # an image, but not of a format that browsers show
    "damaged",
]

_TROUBLES = frozenset(get_args(Trouble))

PASSING: frozenset[Trouble] = frozenset({"unreachable", "timed-out"})
"""What may be the fault of the way, and says little about the image itself."""

OF_THE_FILE: frozenset[Trouble] = frozenset({"too-large", "empty", "not-an-image", "unsupported", "damaged"})
"""What stays until the file is another. Of all else the cause may be mended elsewhere: a setting, a right, a disk."""

_BY_STATUS: dict[int, Trouble] = {
    401: "forbidden",
    403: "forbidden",
    404: "missing",
    408: "timed-out",
    410: "missing",
    413: "too-large",
    429: "unreachable",
    502: "unreachable",
    503: "unreachable",
    504: "unreachable",
}

# The first of an error's classes that stands here decides.
_BY_NAME: dict[str, Trouble] = {
    "FileNotFoundError": "missing",
    "NotADirectoryError": "missing",
    "IsADirectoryError": "missing",
    "PermissionError": "forbidden",
    "TimeoutError": "timed-out",
    "TimeoutException": "timed-out",  # httpx's
    "TransportError": "unreachable",  # httpx's: no connection, or one that broke
    "OSError": "unreachable",
}


class UndecodableImage(ImageError):
    """The bytes of an image are there, but no picture can be made of them."""

    def __init__(self, message: str, trouble: Trouble) -> None:
        super().__init__(message)
        self.trouble = trouble


def trouble_of(error: ImageError) -> Trouble:
    """What kind of trouble an error is: as it says itself, else as what caused it says."""
    cause: BaseException | None = error
    while cause is not None:
        if (trouble := _of(cause)) is not None:
            return trouble
        cause = cause.__cause__
    return "refused"


def _of(cause: BaseException) -> Trouble | None:
    if (stated := getattr(cause, "trouble", None)) in _TROUBLES:
        return cast("Trouble", stated)
    # Of HTTP: RequestRefused has one, and what a source raises itself may.
    if isinstance(status := getattr(cause, "status", None), int):
        return _BY_STATUS.get(status, "refused")
    # By name: httpx's errors are no OSErrors, and only the edges of the package may know httpx.
    return next((_BY_NAME[name] for kind in type(cause).__mro__ if (name := kind.__name__) in _BY_NAME), None)
