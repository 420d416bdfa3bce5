"""The log: events with fields, one JSON object a line on stderr, or colours at a terminal.

structlog and the standard library's logging end in the same handler, so that a library's line looks like ours. Ids of
the request, job and trace are bound with `bound_contextvars` and then stand on every line of that task, whoever logs
it. Log events, not prose: `log.info("job_claimed", job=name)`. Never log credentials or tokens.
"""

# ruff: noqa: A001, A002 — `format` is what the setting is called everywhere else.

from __future__ import annotations

import logging
import sys
from typing import IO, Any

import structlog
from structlog.contextvars import bind_contextvars, bound_contextvars, clear_contextvars, get_contextvars

from services.chassis.config import LogFormat, LogLevel

__all__ = ["bind_contextvars", "bound_contextvars", "clear_contextvars", "configure", "get_contextvars", "get_logger"]

# Libraries that tell at INFO what we log ourselves, or nothing that anybody needs.
QUIET_LIBRARIES = ("alembic", "asyncio", "grpc", "nats", "sqlalchemy", "urllib3")


def configure(
    service: str,
    *,
    format: LogFormat | str = LogFormat.AUTO,
    level: LogLevel | str = LogLevel.INFO,
    stream: IO[str] | None = None,
) -> None:
    """Route all logging of this process to `stream` (stderr). Each line has time, level, event and `service`."""
    stream = stream if stream is not None else sys.stderr
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
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.PositionalArgumentsFormatter()],
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
        return [structlog.dev.ConsoleRenderer(colors=True, exception_formatter=structlog.dev.plain_traceback)]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
