"""Structured logs of server and worker: one line per event, with project and round, without secrets.

Code that works for a project binds ``project``, and ``round`` once it has a number; every line on the way carries both,
also those of libraries. Threads of a round run in a copy of the context of the thread that starts them.
"""

import logging
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, TextIO

import structlog
from structlog.typing import EventDict, Processor

from ml_backend.config import Settings

HIDDEN: Final = "***"

SHORTEST_SECRET: Final = 4
"""Characters; a shorter secret is not replaced: it is part of many words, and protects nothing."""

SAFE: Final = frozenset({"level", "logger", "timestamp"})
"""Fields that never hold foreign text."""

OURS: Final = ("ml_backend", "__main__", "gunicorn.error")
"""Loggers that follow AL_LOG_LEVEL, as rq's does in the worker. Other libraries log from warnings up: at DEBUG some
print headers."""


class _Stdout(logging.StreamHandler[TextIO]):
    """Writes to ``sys.stdout`` as it is at the moment of the line."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override] # as in logging's own handler of last resort
        return sys.stdout


def set_up_logs(settings: Settings) -> None:
    """Log to standard output from now on, in the form of ``AL_LOG_FORMAT``; may be called again.

    The settings' secrets are replaced in every line. Tracebacks omit the values of variables, which may hold images,
    requests and passwords.
    """
    before: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    rendering = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_rendering(settings)]
    handler = _Stdout()
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=before, processors=rendering))
    root = logging.getLogger()
    for old in [one for one in root.handlers if isinstance(one, _Stdout)]:
        root.removeHandler(old)
    root.addHandler(handler)
    # A damaged image has a line of its own; libvips would add one for every tile.
    logging.getLogger("pyvips").setLevel(logging.CRITICAL)
    for name in OURS:
        logging.getLogger(name).setLevel(settings.log_level)
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_uncaught
    structlog.configure(
        processors=[*before, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(settings.log_level),
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


@contextmanager
def logs_on_stderr() -> Iterator[None]:
    """Log to standard error within the block, for a command whose standard output is its result."""
    before = structlog.get_config()
    structlog.reset_defaults()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    try:
        yield
    finally:
        structlog.configure(**before)


def _rendering(settings: Settings) -> list[Processor]:
    """The processors from an event to the text of its line."""
    hide, terminal = _SecretFilter(settings.secrets), sys.stdout.isatty()
    if settings.log_format == "console" or (settings.log_format == "auto" and terminal):
        # structlog's own tracebacks print the values of local variables.
        plain = structlog.dev.plain_traceback
        console = structlog.dev.ConsoleRenderer(colors=terminal, exception_formatter=plain)
        return [structlog.processors.format_exc_info, hide, console]
    tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    json = structlog.processors.JSONRenderer(ensure_ascii=False, allow_nan=False)
    return [structlog.processors.ExceptionRenderer(tracebacks), hide, json]


class _SecretFilter:
    """Replaces secrets in all fields of an event, and converts them to JSON types."""

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
        if isinstance(value, float) and math.isfinite(value):  # JSON has neither NaN nor infinity
            return value
        return self._text(value if isinstance(value, str) else repr(value))

    def _text(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return text


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Log the uncaught error that ends the process."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    structlog.get_logger(__name__).critical("ended by an unexpected error", exc_info=(kind, error, trace))
