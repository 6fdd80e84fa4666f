"""What server and worker log: one line an event, with the project and the round that it is about.

Whoever begins to work for a project binds ``project``, and ``round`` from the moment that it has a number; what is
logged on the way carries both, also the lines of libraries. Threads that work for the same round run in a copy of the
context of who started them.
"""

import logging
import math
import sys
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Final, TextIO

import structlog
from structlog.typing import EventDict, Processor

from ml_backend.config import Settings

HIDDEN: Final = "***"

SHORTEST_SECRET: Final = 4
"""Characters; a shorter one is not looked for: it stands in half of all words, and protects nothing."""

SAFE: Final = frozenset({"level", "logger", "timestamp"})
"""What nobody but we ourselves fill in."""

OURS: Final = ("ml_backend", "__main__", "gunicorn.error")
"""The loggers that follow AL_LOG_LEVEL; rq is told by its worker. Any other library tells warnings only: at DEBUG some
of them print headers."""


class _Stdout(logging.StreamHandler[TextIO]):
    """Whatever is standard output at the moment of the line."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override] # as logging's own handler of last resort has it
        return sys.stdout


def set_up_logs(settings: Settings) -> None:
    """Log to standard output from now on, in the form of ``AL_LOG_FORMAT``; may be called again.

    Secrets of the settings are made unreadable wherever they stand in a line, and tracebacks come without the values
    of variables, which hold images, requests and passwords.
    """
    before: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    handler = _Stdout()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_rendering(settings),
            ],
        )
    )
    root = logging.getLogger()
    for old in [one for one in root.handlers if isinstance(one, _Stdout)]:
        root.removeHandler(old)
    root.addHandler(handler)
    # An image's damage is told by the image's own line; libvips would add one for every tile.
    logging.getLogger("pyvips").setLevel(logging.CRITICAL)
    for name in OURS:
        logging.getLogger(name).setLevel(settings.log_level)
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_the_end
    structlog.configure(
        processors=[*before, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(settings.log_level),
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


def _rendering(settings: Settings) -> list[Processor]:
    """From an event to the text of its line."""
    hide, terminal = _Hiding(settings.secrets), sys.stdout.isatty()
    if settings.log_format == "console" or (settings.log_format == "auto" and terminal):
        return [
            structlog.processors.format_exc_info,
            hide,
            # Its own tracebacks would print the values of local variables.
            structlog.dev.ConsoleRenderer(colors=terminal, exception_formatter=structlog.dev.plain_traceback),
        ]
    tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [
        structlog.processors.ExceptionRenderer(tracebacks),
        hide,
        structlog.processors.JSONRenderer(ensure_ascii=False, allow_nan=False),
    ]


class _Hiding:
    """Takes secrets out of everything that was logged, and makes plain JSON of it."""

    def __init__(self, secrets: Iterable[str]) -> None:
        # The longest first: one may be part of another.
        self._secrets = sorted((text for text in secrets if len(text) >= SHORTEST_SECRET), key=len, reverse=True)

    def __call__(self, _logger: Any, _method: str, event: EventDict) -> EventDict:
        return {name: value if name in SAFE else self._plain(value) for name, value in event.items()}

    def _plain(self, value: object) -> Any:
        if isinstance(value, Mapping):
            return {self._text(str(name)): self._plain(inner) for name, inner in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self._plain(inner) for inner in value]
        if value is None or isinstance(value, bool | int):
            return value
        if isinstance(value, float) and math.isfinite(value):  # JSON has no other
            return value
        return self._text(value if isinstance(value, str) else repr(value))

    def _text(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return text


def _log_the_end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A process that ends by an error that nobody caught says so in a line like any other."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    structlog.get_logger(__name__).critical("ended by an unexpected error", exc_info=(kind, error, trace))
