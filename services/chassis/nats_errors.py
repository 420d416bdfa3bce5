"""What nats-py raises, and what it means to who publishes: wait and send again, or never send this again."""

from __future__ import annotations

import nats.errors
import nats.js.errors

AWAY = (
    OSError,  # the socket's own
    TimeoutError,
    nats.errors.ConnectionClosedError,
    nats.errors.ConnectionDrainingError,
    nats.errors.ConnectionReconnectingError,
    nats.errors.NoRespondersError,
    nats.errors.OutboundBufferLimitError,
    nats.errors.StaleConnectionError,
    nats.js.errors.NoStreamResponseError,
    nats.js.errors.ServerError,
    nats.js.errors.ServiceUnavailableError,
)
"""What nats-py raises where the server, the connection or the stream is not there. Anything else is our mistake."""
NEVER = (nats.errors.MaxPayloadError, nats.errors.BadSubjectError)
"""What it raises for a message that no try will get through."""
NEVER_CODES = (10_054, 10_097)
"""By which JetStream says the same: message or header are too large. It answers 400 also where an account is full."""


def is_never(error: BaseException) -> bool:
    """Whether the error is one of the message itself."""
    return isinstance(error, NEVER) or getattr(error, "err_code", None) in NEVER_CODES


def described(error: BaseException) -> str:
    """The error's kind, and what it says."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
