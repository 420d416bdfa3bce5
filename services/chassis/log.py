"""The log: events with fields, one JSON object a line on stderr, or colours at a terminal.

structlog and the standard library's logging end in the same handler, so that a library's line looks like ours. Ids of
the request, job and trace are bound with `bound_contextvars` and then stand on every line of that task, whoever logs
it. Log events, not prose: `log.info("job_claimed", job=name)`. Never log credentials or tokens. What callers send may
stand in a line: each value of it is cut, so that no request makes a line of megabytes. Whoever logs waits for nobody
(see `log_writer`).
"""

# ruff: noqa: A001, A002 — `format` is what the setting is called everywhere else.

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import IO, Any, TextIO

import structlog
from structlog.contextvars import bind_contextvars, bound_contextvars, clear_contextvars, get_contextvars

from services.chassis.config import LogFormat, LogLevel
from services.chassis.log_writer import DROPPED_LINES, LogLimits, LogWriter, standard_error

__all__ = [
    "LogLimits",
    "bind_contextvars",
    "bound_contextvars",
    "clear_contextvars",
    "configure",
    "flush",
    "get_contextvars",
    "get_logger",
]

# Libraries that tell at INFO what we log ourselves, or nothing that anybody needs.
QUIET_LIBRARIES = ("alembic", "asyncio", "grpc", "nats", "sqlalchemy", "urllib3")


TEXT_CHARACTERS_MAX = 2_000
VALUE_CHARACTERS_MAX = 16_000
"""Of a list or a mapping, all its texts together, and of a traceback, of which the beginning and the end are kept."""
EXCEPTION_INFO = "exc_info"
TRACEBACK = "exception"


def configure(
    service: str,
    *,
    format: LogFormat | str = LogFormat.AUTO,
    level: LogLevel | str = LogLevel.INFO,
    stream: IO[str] | None = None,
    limits: LogLimits | None = None,
) -> None:
    """Route all logging of this process to `stream` (stderr). Each line has time, level, event and `service`.

    Nobody who logs waits for the stream; `flush` does.
    """
    stream = stream if stream is not None else standard_error()
    format, level = LogFormat(format), LogLevel(level)
    console = format is LogFormat.CONSOLE or (format is LogFormat.AUTO and stream.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _service_adder(service),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ExtraAdder(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        # Loggers are module constants and tests configure more than once: a cached logger would keep the old stream.
        cache_logger_on_first_use=False,
    )
    handler = LogWriter(stream, limits or LogLimits())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                *shared,
                structlog.stdlib.PositionalArgumentsFormatter(),
                structlog.stdlib.ExtraAdder(allow=[DROPPED_LINES]),
            ],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_rendered(console),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for library in QUIET_LIBRARIES:
        logging.getLogger(library).setLevel(max(logging.WARNING, root.level))


def flush() -> None:
    """Wait until what was logged is written, for `flush_seconds_max` at most; the end of the process does the same."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger for a module: `log = get_logger(__name__)`."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def _service_adder(service: str) -> Any:
    def add_service(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
        event.setdefault("service", service)
        return event

    return add_service


def _rendered(console: bool) -> list[Any]:
    # Plain tracebacks in both: structlog's own show local variables, and so would write tokens and credentials.
    if console:
        return [_bounded, structlog.dev.ConsoleRenderer(colors=True, exception_formatter=_write_traceback)]
    return [structlog.processors.format_exc_info, _bounded, structlog.processors.JSONRenderer()]


def _bounded(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    """The line with every value cut to what a person can read."""
    return {key: _value_cut(key, value) for key, value in event.items()}


def _value_cut(key: str, value: Any) -> Any:
    if key == EXCEPTION_INFO:
        return value
    return _middle_cut(value) if key == TRACEBACK and isinstance(value, str) else _cut(value, [VALUE_CHARACTERS_MAX])


def _cut(value: Any, left: list[int]) -> Any:
    """The value with at most so many characters as `left` still holds, which is lowered by what it takes."""
    if value is None or isinstance(value, bool | int | float):
        left[0] -= 1
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return f"({len(value)} bytes)"
    if isinstance(value, Mapping):
        return dict(_taken(((str(_cut(str(key), left)), each) for key, each in value.items()), left, len(value)))
    if isinstance(value, Sequence | Set) and not isinstance(value, str):
        return [each for _, each in _taken((("", each) for each in value), left, len(value))]
    text = str(value)
    length = min(TEXT_CHARACTERS_MAX, max(left[0], 0))
    left[0] -= min(len(text), length) + 1
    return text if len(text) <= length else f"{text[:length]}… ({len(text)} characters)"


def _taken(items: Iterable[tuple[str, Any]], left: list[int], count: int) -> Iterator[tuple[str, Any]]:
    """Cut items until nothing is left, then how many more there are."""
    for index, (key, value) in enumerate(items):
        if left[0] <= 0:
            yield "…", f"… {count - index} more"
            return
        yield key, _cut(value, left)


def _write_traceback(stream: TextIO, info: Any) -> None:
    stream.write("\n" + _middle_cut("".join(traceback.format_exception(*info))))


def _middle_cut(text: str) -> str:
    if len(text) <= VALUE_CHARACTERS_MAX:
        return text
    half = VALUE_CHARACTERS_MAX // 2
    return f"{text[:half]}\n… ({len(text) - 2 * half} characters)\n{text[-half:]}"
