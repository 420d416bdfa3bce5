"""Resource names, ids, pages, cursors and request ids as they come over the wire."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from functools import cache
from typing import Any

from services.chassis.errors import InvalidArgument, OutOfRange, Reason, Violation
from services.chassis.ids import is_uuid
from services.scheduler.domain.request import Request
from services.scheduler.specification import CHECKPOINT_ID

ID_PATTERN = "[a-z]([a-z0-9-]{0,61}[a-z0-9])?"
_ID = re.compile(ID_PATTERN)
_UID = re.compile("[a-z0-9-]{1,64}")
"""What the server keys jobs by. Callers may ask for others: there are none."""
ALL_PROJECTS = "-"
PAGE_SIZE_DEFAULT = 50
PAGE_SIZE_MAX = 1_000
SESSION_CHARACTERS_MAX = 64
PARTS_MAX = 6
"""Of a resource name, which are divided by slashes."""
REVISION_MAX = 2**63 - 1
OPAQUE_CHARACTERS_MAX = 1_000
"""Of a page token or a cursor. Ours are shorter."""
NAME_SHOWN_MAX = 300
"""Characters of a wrong name that an error repeats."""


def project_id_of(name: str, field: str = "name") -> str:
    """The id in `projects/{project}`."""
    return _parts(name, "projects/{project}", field)[0]


def job_ids_of(name: str, field: str = "name") -> tuple[str, str]:
    """The ids in `projects/{project}/jobs/{job}`."""
    project_id, job_id = _parts(name, "projects/{project}/jobs/{job}", field)
    return project_id, job_id


def checkpoint_ids_of(name: str, field: str = "name") -> tuple[str, str, str]:
    """The ids in `projects/{project}/jobs/{job}/checkpoints/{checkpoint}`."""
    parts = name.split("/", PARTS_MAX)
    if len(parts) != 6 or parts[4] != "checkpoints" or not CHECKPOINT_ID.fullmatch(parts[5]):
        pattern = "projects/{project}/jobs/{job}/checkpoints/{epoch}-{iteration}, or …/last, …/best, …/final"
        raise wrong_name(name, pattern, field)
    return *job_ids_of("/".join(parts[:4]), field), parts[5]


def runner_id_of(name: str, field: str = "name") -> str:
    """The id in `runners/{runner}`."""
    return _parts(name, "runners/{runner}", field)[0]


def parent_of_jobs(name: str) -> str | None:
    """The project's id in a parent; None for `projects/-`, which means every project."""
    if name == f"projects/{ALL_PROJECTS}":
        return None
    return project_id_of(name, "parent")


def id_violations(value: str, field: str) -> list[Violation]:
    """What is wrong with an id that a caller chose; an empty one is left to the server."""
    if not value or _ID.fullmatch(value):
        return []
    return [Violation(field=field, description=f"is {value[:NAME_SHOWN_MAX]!r}, but must match {ID_PATTERN}")]


def request_id_violations(value: str) -> list[Violation]:
    """What is wrong with a request id; an empty one is allowed, and promises nothing."""
    if not value or is_uuid(value):
        return []
    return [Violation(field="request_id", description=f"is {value[:NAME_SHOWN_MAX]!r}, but must be a UUID")]


def is_uid(text: str) -> bool:
    """Whether a job could have this uid."""
    return _UID.fullmatch(text) is not None


def refuse(violations: list[Violation]) -> None:
    """Raise InvalidArgument with all of them, if there are any."""
    if violations:
        raise InvalidArgument(violations)


def request_of(method: str, message: Any) -> Request:
    """What makes the request the same when it is sent again: everything but its id. InvalidArgument for a wrong id."""
    refuse(request_id_violations(message.request_id))
    request_id = message.request_id
    message.ClearField("request_id")
    body = message.SerializeToString(deterministic=True)
    message.request_id = request_id
    return Request(request_id=request_id.lower(), digest=hashlib.sha256(method.encode() + b"\0" + body).digest())


def page_size_of(size: int) -> int:
    """How many to send: 0 means the default, too many are cut."""
    if size < 0:
        description = f"is {size}, but must not be negative"
        raise InvalidArgument([Violation(field="page_size", description=description)])
    return min(size or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)


def page_token(after: str, scope: str) -> str:
    """Where the next page begins. `scope` says which list it is: parent and filter."""
    return _packed({"after": after, "scope": _short_digest(scope)})


def page_token_after(token: str, scope: str, form: str = ID_PATTERN) -> str:
    """What `page_token` was given, which has this form; empty for the first page. InvalidArgument for other tokens."""
    if not token:
        return ""
    values = _unpacked(token)
    is_ours = values is not None and values.get("scope") == _short_digest(scope)
    if values is None or not is_ours or not re.fullmatch(form, str(values.get("after", ""))):
        description = "is not a token of this list with this filter: start from the first page"
        violation = Violation(field="page_token", description=description, reason=Reason.INVALID_PAGE_TOKEN)
        raise InvalidArgument([violation], reason=Reason.INVALID_PAGE_TOKEN)
    return str(values["after"])


def cursor_from_revision(revision: int) -> str:
    """Where a watch goes on after this revision."""
    return _packed({"revision": revision})


def revision_from_cursor(cursor: str) -> int:
    """The revision of a cursor; 0 for none."""
    if not cursor:
        return 0
    values = _unpacked(cursor)
    revision = values.get("revision") if values is not None else None
    if not isinstance(revision, int) or isinstance(revision, bool) or not 0 <= revision <= REVISION_MAX:
        raise unknown_cursor()
    return revision


def unknown_cursor() -> InvalidArgument:
    """A cursor that no watch of this database gave."""
    description = "is not a cursor of this stream: start without one"
    violation = Violation(field="cursor", description=description, reason=Reason.INVALID_CURSOR)
    return InvalidArgument([violation], reason=Reason.INVALID_CURSOR)


def cursor_too_old(oldest_revision: int) -> OutOfRange:
    """A cursor from before what is kept."""
    oldest = cursor_from_revision(oldest_revision)
    message = f"the cursor is older than what is kept: start without one, or go on from {oldest}"
    return OutOfRange(Reason.CURSOR_TOO_OLD, message, {"oldest": oldest})


def _parts(name: str, pattern: str, field: str) -> list[str]:
    """The ids in `name` where `pattern` has its braces."""
    found = _form_of(pattern).fullmatch(name)
    if found is None:
        raise wrong_name(name, pattern, field)
    return list(found.groups())


@cache
def _form_of(pattern: str) -> re.Pattern[str]:
    an_id = ID_PATTERN.replace("(", "(?:")
    return re.compile("/".join(f"({an_id})" if word.startswith("{") else word for word in pattern.split("/")))


def wrong_name(name: str, pattern: str, field: str) -> InvalidArgument:
    """A name that does not have this form."""
    description = f"is {name[:NAME_SHOWN_MAX]!r}, but must be {pattern}, where ids match {ID_PATTERN}"
    return InvalidArgument([Violation(field=field, description=description)])


def _short_digest(scope: str) -> str:
    return hashlib.sha256(scope.encode()).hexdigest()[:16]


def _packed(values: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(values, separators=(",", ":")).encode()).decode().rstrip("=")


def _unpacked(text: str) -> dict[str, Any] | None:
    """The values of an opaque text; None where it is none of ours."""
    if len(text) > OPAQUE_CHARACTERS_MAX:
        return None
    try:
        values = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None
