"""Errors as statuses and back."""

import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2

from services.chassis import errors
from services.chassis.errors import Reason, Violation
from services.chassis.status import error_from_status, status_from_error

ERRORS = [
    errors.InvalidArgument([Violation(field="a.b", description="is 1, but must be 2", reason=Reason.INVALID_FIELDS)]),
    errors.InvalidArgument(
        [Violation(field="page_token", description="is none of ours")], reason=Reason.INVALID_PAGE_TOKEN
    ),
    errors.NotFound(Reason.JOB_NOT_FOUND, "there is no job ü", {"name": "ü"}),
    errors.AlreadyExists(Reason.JOB_ALREADY_EXISTS, "there is a job", {"name": "a"}),
    errors.FailedPrecondition(Reason.JOB_STATE, "the job is queued", {"state": "QUEUED"}),
    errors.Aborted(Reason.SEQUENCE_GAP, "5 is not next", {"wanted": "4", "found": "5"}),
    errors.OutOfRange(Reason.CURSOR_TOO_OLD, "the cursor is old", {"oldest": "7"}),
    errors.PermissionDenied(Reason.PERMISSION_DENIED, "you may not"),
    errors.Unauthenticated(Reason.TOKEN_INVALID, "who are you"),
    errors.ResourceExhausted(Reason.LIMIT_REACHED, "too many", {"what": "calls"}, retry_after_seconds=2.5),
    errors.Unavailable(Reason.BUS_UNAVAILABLE, "the bus is away", retry_after_seconds=0.25),
    errors.Unimplemented(Reason.NOT_IMPLEMENTED, "not yet", {"method": "DeleteJob"}),
    errors.Internal(Reason.INTERNAL, "our mistake", {"error_id": "x"}),
    errors.DeadlineExceeded(Reason.DEADLINE_EXCEEDED, "too late"),
    errors.Cancelled(Reason.CANCELLED, "went away"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_error_comes_back_as_it_was(error):
    back = error_from_status(status_from_error(error))
    assert type(back) is type(error)
    assert (back.reason, back.message, dict(back.metadata)) == (error.reason, error.message, dict(error.metadata))
    assert getattr(back, "violations", None) == getattr(error, "violations", None)
    assert getattr(back, "retry_after_seconds", None) == getattr(error, "retry_after_seconds", None)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_status_carries_exactly_one_error_info_of_our_domain(error):
    infos = [d for d in status_from_error(error).details if d.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)]
    info = error_details_pb2.ErrorInfo()
    (packed,) = infos
    packed.Unpack(info)
    assert (info.domain, info.reason) == ("sihlai", error.reason.value)


def test_every_error_has_a_status_of_its_own():
    codes = {status_from_error(error).code for error in ERRORS}
    assert codes == set(code_pb2.Code.values()) - {code_pb2.OK, code_pb2.UNKNOWN, code_pb2.DATA_LOSS}


def test_subclass_has_the_status_of_the_class_above():
    class MissingObject(errors.NotFound):
        pass

    assert status_from_error(MissingObject(Reason.JOB_NOT_FOUND, "gone")).code == code_pb2.NOT_FOUND


def test_status_of_a_huge_error_fits_into_headers_and_says_what_it_left_out():
    violations = [Violation(field=f"spec.heads[{n}].task", description="ü" * 500) for n in range(1_000)]
    status = status_from_error(errors.InvalidArgument(violations, metadata={"text": "x" * 10_000}))
    header_bytes = 3 * len(status.message.encode()) + status.ByteSize() * 4 / 3
    assert header_bytes < 8_192
    back = error_from_status(status)
    assert isinstance(back, errors.InvalidArgument)
    shown = len(back.violations) - 1
    assert back.violations[-1].description == f"{1_000 - shown} more violations are left out"


def test_foreign_status_becomes_the_nearest_error():
    error = error_from_status(status_pb2.Status(code=code_pb2.UNAVAILABLE, message="connection refused"))
    assert isinstance(error, errors.Unavailable)
    assert (error.reason, error.message) == (Reason.SERVICE_UNAVAILABLE, "connection refused")
    assert isinstance(error_from_status(status_pb2.Status(code=code_pb2.DATA_LOSS)), errors.Internal)


def test_reason_of_a_newer_server_is_kept_in_the_metadata():
    status = status_from_error(errors.NotFound(Reason.JOB_NOT_FOUND, "gone"))
    info = error_details_pb2.ErrorInfo(domain="sihlai", reason="MOON_NOT_FOUND")
    status.details[0].Pack(info)
    error = error_from_status(status)
    assert isinstance(error, errors.NotFound)
    assert (error.reason, error.metadata["reason"]) == (Reason.INTERNAL, "MOON_NOT_FOUND")
