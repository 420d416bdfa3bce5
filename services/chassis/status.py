"""Our errors as google.rpc.Status, and back: a pair.

Every status carries exactly one ErrorInfo (domain "sihlai"); InvalidArgument adds BadRequest, errors that may pass add
RetryInfo. A status travels in HTTP/2 headers, of which a client takes 8 KiB by default: what is longer is cut here,
with a mark, because a client would otherwise see nothing but "metadata too large".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import google.rpc.error_details_pb2 as error_details_pb2
import google.rpc.status_pb2 as status_pb2
import grpc
from google.protobuf.message import DecodeError

from services.chassis import errors
from services.chassis.errors import Reason, SihlaiError, Violation

DOMAIN = "sihlai"
DETAILS_KEY = "grpc-status-details-bin"
MESSAGE_BYTES_MAX = 600
METADATA_BYTES_MAX = 300
"""Of each value."""
VIOLATION_BYTES_MAX = 300
VIOLATIONS_BYTES_MAX = 2_500
CUT_MARK = "…"
TOO_LARGE = "message larger than max"
"""How gRPC itself says that a message is too large, which no repeat will make smaller."""

CODES: Mapping[type[SihlaiError], grpc.StatusCode] = {
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Aborted: grpc.StatusCode.ABORTED,
    errors.OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.Unimplemented: grpc.StatusCode.UNIMPLEMENTED,
    errors.Internal: grpc.StatusCode.INTERNAL,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Cancelled: grpc.StatusCode.CANCELLED,
}

# For statuses without our ErrorInfo: gRPC itself made them, or a proxy.
FOREIGN: Mapping[grpc.StatusCode, tuple[type[SihlaiError], Reason]] = {
    grpc.StatusCode.INVALID_ARGUMENT: (errors.InvalidArgument, Reason.INVALID_FIELDS),
    grpc.StatusCode.PERMISSION_DENIED: (errors.PermissionDenied, Reason.PERMISSION_DENIED),
    grpc.StatusCode.UNAUTHENTICATED: (errors.Unauthenticated, Reason.TOKEN_INVALID),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (errors.ResourceExhausted, Reason.LIMIT_REACHED),
    grpc.StatusCode.UNAVAILABLE: (errors.Unavailable, Reason.SERVICE_UNAVAILABLE),
    grpc.StatusCode.UNIMPLEMENTED: (errors.Unimplemented, Reason.NOT_IMPLEMENTED),
    grpc.StatusCode.DEADLINE_EXCEEDED: (errors.DeadlineExceeded, Reason.DEADLINE_EXCEEDED),
    grpc.StatusCode.CANCELLED: (errors.Cancelled, Reason.CANCELLED),
}


def code_of(error: SihlaiError) -> grpc.StatusCode:
    """The status code of an error's class, or of the nearest class above it that has one."""
    return next(CODES[cls] for cls in type(error).__mro__ if cls in CODES)


def status_from_error(error: SihlaiError) -> status_pb2.Status:
    """The error as google.rpc.Status, cut to what fits into headers."""
    code: int = code_of(error).value[0]
    status = status_pb2.Status(code=code, message=_cut(error.message, MESSAGE_BYTES_MAX))
    metadata = {key: _cut(value, METADATA_BYTES_MAX) for key, value in error.metadata.items()}
    status.details.add().Pack(error_details_pb2.ErrorInfo(domain=DOMAIN, reason=error.reason.value, metadata=metadata))
    if isinstance(error, errors.InvalidArgument):
        status.details.add().Pack(_bad_request(error.violations))
    if isinstance(error, errors.RetryableError):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(error.retry_after_seconds * 1000))
        status.details.add().Pack(retry)
    return status


def error_from_status(status: status_pb2.Status) -> SihlaiError:
    """The error that `status_from_error` was given, as far as it was not cut. Foreign statuses become the nearest."""
    info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    for detail in status.details:
        for message in (info, bad_request, retry):
            detail.Unpack(message)
    code = _code(status.code)
    if info.domain != DOMAIN:
        return _foreign_error(code, status.message)
    metadata = dict(info.metadata)
    foreign_reason = FOREIGN.get(code, (errors.Internal, Reason.INTERNAL))[1]
    reason = Reason.__members__.get(info.reason, foreign_reason)
    if reason != info.reason:
        metadata["reason"] = info.reason  # a newer server's, which this client has no word for
    cls = next((cls for cls, of_class in CODES.items() if of_class is code), errors.Internal)
    if cls is errors.InvalidArgument:
        violations = [_violation_from_proto(v) for v in bad_request.field_violations]
        return errors.InvalidArgument(
            violations or [Violation(field="request", description=status.message)], reason=reason, metadata=metadata
        )
    if issubclass(cls, errors.RetryableError):
        seconds = retry.retry_delay.ToMilliseconds() / 1000
        return cls(reason, status.message, metadata, retry_after_seconds=seconds)
    return cls(reason, status.message, metadata)


def error_from_rpc(exc: grpc.RpcError) -> SihlaiError:
    """Our error from what a gRPC client raised, of either kind (aio or sync)."""
    call: Any = exc
    trailers: Iterable[tuple[str, str | bytes]] = call.trailing_metadata() or ()
    for key, value in trailers:
        if key != DETAILS_KEY or not isinstance(value, bytes):
            continue
        try:
            return error_from_status(status_pb2.Status.FromString(value))
        except DecodeError:
            break
    return _foreign_error(call.code(), call.details() or "")


def _foreign_error(code: grpc.StatusCode, message: str) -> SihlaiError:
    message = message or f"the call ended with {code.name}"
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and TOO_LARGE in message:
        violation = Violation(field="request", description=message, reason=Reason.MESSAGE_TOO_LARGE)
        return errors.InvalidArgument([violation], reason=Reason.MESSAGE_TOO_LARGE)
    cls, reason = FOREIGN.get(code, (errors.Internal, Reason.INTERNAL))
    if cls is errors.InvalidArgument:
        return errors.InvalidArgument([Violation(field="request", description=message)], reason=reason)
    return cls(reason, message)


def _code(number: int) -> grpc.StatusCode:
    return next((code for code in grpc.StatusCode if code.value[0] == number), grpc.StatusCode.UNKNOWN)


def _bad_request(violations: Iterable[Violation]) -> error_details_pb2.BadRequest:
    bad_request = error_details_pb2.BadRequest()
    left_bytes = VIOLATIONS_BYTES_MAX
    left_out = 0
    for violation in violations:
        proto = error_details_pb2.BadRequest.FieldViolation(
            field=_cut(violation.field, VIOLATION_BYTES_MAX),
            description=_cut(violation.description, VIOLATION_BYTES_MAX),
            reason=violation.reason.value if violation.reason is not None else "",
        )
        left_bytes -= proto.ByteSize()
        if left_bytes < 0:
            left_out += 1
        else:
            bad_request.field_violations.append(proto)
    if left_out:
        bad_request.field_violations.add(field="", description=f"{left_out} more violations are left out")
    return bad_request


def _violation_from_proto(proto: error_details_pb2.BadRequest.FieldViolation) -> Violation:
    return Violation(
        field=proto.field, description=proto.description, reason=Reason.__members__.get(proto.reason, None)
    )


def _cut(text: str, bytes_max: int) -> str:
    data = text.encode()
    if len(data) <= bytes_max:
        return text
    return data[: bytes_max - len(CUT_MARK.encode())].decode(errors="ignore") + CUT_MARK
