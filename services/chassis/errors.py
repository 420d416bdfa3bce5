"""The errors that we raise, each with a reason that a program can act on and a message that a person can.

Standard library only: domain modules import this file. It knows no gRPC: `rpc` alone turns these classes into statuses
and statuses back into these classes. One class per status; what went wrong in particular is the reason, whose members
are exactly those of `sihlai.error.v1.ErrorReason` (a test compares the two).

A message says what was wanted, what was found and what to do, in one sentence. Every variable part of it also stands in
`metadata`, because a program must not read prose.
"""

# ruff: noqa: N818, S105 — the classes bear the names of the statuses; the reasons hold no passwords.

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType


class Reason(enum.StrEnum):
    """Why a call was refused or failed. The meaning of each stands beside it in `error_reason.proto`."""

    INVALID_FIELDS = "INVALID_FIELDS"
    INVALID_PAGE_TOKEN = "INVALID_PAGE_TOKEN"
    INVALID_CURSOR = "INVALID_CURSOR"
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    PROJECT_NOT_FOUND = "PROJECT_NOT_FOUND"
    JOB_NOT_FOUND = "JOB_NOT_FOUND"
    CHECKPOINT_NOT_FOUND = "CHECKPOINT_NOT_FOUND"
    RUNNER_NOT_FOUND = "RUNNER_NOT_FOUND"
    SERIES_NOT_FOUND = "SERIES_NOT_FOUND"
    OBJECT_NOT_FOUND = "OBJECT_NOT_FOUND"
    CONVERSION_REPORT_NOT_FOUND = "CONVERSION_REPORT_NOT_FOUND"
    TOKEN_NOT_FOUND = "TOKEN_NOT_FOUND"
    PROJECT_ALREADY_EXISTS = "PROJECT_ALREADY_EXISTS"
    JOB_ALREADY_EXISTS = "JOB_ALREADY_EXISTS"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    OBJECT_ALREADY_EXISTS = "OBJECT_ALREADY_EXISTS"
    PROJECT_HAS_ACTIVE_JOB = "PROJECT_HAS_ACTIVE_JOB"
    JOB_STATE = "JOB_STATE"
    NO_CHECKPOINT = "NO_CHECKPOINT"
    TASK_NOT_REACHABLE = "TASK_NOT_REACHABLE"
    DATASET_INVALID = "DATASET_INVALID"
    DATASET_NOT_FOUND = "DATASET_NOT_FOUND"
    DATASET_CHANGED = "DATASET_CHANGED"
    ETAG_MISMATCH = "ETAG_MISMATCH"
    PROTOCOL_VERSION = "PROTOCOL_VERSION"
    KEY_NOT_REPLACEABLE = "KEY_NOT_REPLACEABLE"
    CURSOR_TOO_OLD = "CURSOR_TOO_OLD"
    OFFSET_BEYOND_END = "OFFSET_BEYOND_END"
    SESSION_REPLACED = "SESSION_REPLACED"
    CALL_SUPERSEDED = "CALL_SUPERSEDED"
    SEQUENCE_GAP = "SEQUENCE_GAP"
    WRITER_TAKEN = "WRITER_TAKEN"
    TOKEN_INVALID = "TOKEN_INVALID"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    URI_NOT_ALLOWED = "URI_NOT_ALLOWED"
    OBJECT_STORE_DENIED = "OBJECT_STORE_DENIED"
    TOKEN_MISSING = "TOKEN_MISSING"
    TOKEN_EXPIRED = "TOKEN_EXPIRED"
    TOKEN_REVOKED = "TOKEN_REVOKED"
    LIMIT_REACHED = "LIMIT_REACHED"
    OBJECT_STORE_UNAVAILABLE = "OBJECT_STORE_UNAVAILABLE"
    DATABASE_UNAVAILABLE = "DATABASE_UNAVAILABLE"
    METRICS_STORE_UNAVAILABLE = "METRICS_STORE_UNAVAILABLE"
    BUS_UNAVAILABLE = "BUS_UNAVAILABLE"
    SERVICE_UNAVAILABLE = "SERVICE_UNAVAILABLE"
    SERVER_STOPPING = "SERVER_STOPPING"
    NOT_IMPLEMENTED = "NOT_IMPLEMENTED"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    INTERNAL = "INTERNAL"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, kw_only=True)
class Violation:
    """One field that is wrong. `field` is its path in the request, such as `spec.trainer.batch_size`."""

    field: str
    description: str
    reason: Reason | None = None


class SihlaiError(Exception):
    """An error with a reason. Raise a subclass: the class decides the status, the reason what happened."""

    def __init__(self, reason: Reason, message: str, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata: Mapping[str, str] = MappingProxyType(dict(metadata or {}))

    def __str__(self) -> str:
        return self.message


class InvalidArgument(SihlaiError):
    """The request is wrong whatever the state of the system. It names every field that is wrong, all at once."""

    def __init__(
        self,
        violations: Iterable[Violation],
        *,
        reason: Reason = Reason.INVALID_FIELDS,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.violations: Sequence[Violation] = tuple(violations)
        assert self.violations, "an InvalidArgument names at least one field"
        super().__init__(reason, "; ".join(f"{v.field}: {v.description}" for v in self.violations), metadata)


class NotFound(SihlaiError):
    """What the request names does not exist."""


class AlreadyExists(SihlaiError):
    """What the request would create exists already."""


class FailedPrecondition(SihlaiError):
    """The system is not in the state that the call needs; a repeat helps only after somebody changed that state."""


class Aborted(SihlaiError):
    """Somebody else was first (an old etag, epoch or session): read again, then decide."""


class OutOfRange(SihlaiError):
    """A cursor or a range lies outside what is kept."""


class PermissionDenied(SihlaiError):
    """The caller is known and may not do this."""


class Unauthenticated(SihlaiError):
    """The caller is not known, or its token does not hold."""


class RetryableError(SihlaiError):
    """The same call may succeed after `retry_after_seconds`."""

    def __init__(
        self,
        reason: Reason,
        message: str,
        metadata: Mapping[str, str] | None = None,
        *,
        retry_after_seconds: float = 1.0,
    ) -> None:
        super().__init__(reason, message, metadata)
        self.retry_after_seconds = retry_after_seconds


class ResourceExhausted(RetryableError):
    """A limit with a name is reached; the metadata names it."""


class Unavailable(RetryableError):
    """A part of the system cannot be reached now."""


class Unimplemented(SihlaiError):
    """The call is part of the interface and not served yet."""


class Internal(SihlaiError):
    """Our mistake. The metadata may hold the id under which the log tells more."""


class DeadlineExceeded(SihlaiError):
    """The call's time was over before its result was there; whether it had an effect is unknown."""


class Cancelled(SihlaiError):
    """The caller went away or cancelled. Rebuilt from a status; a server never raises it."""


class ConfigurationError(Exception):
    """The process cannot start as configured. Not a status: it never leaves the process. Lists all problems at once."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))
