"""Page tokens: where the next page of a list about some jobs begins. Opaque to clients, and bound to what was asked.

Anybody can write one: what stands in it is read like everything that comes over the wire.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import TypeVar

from services.chassis.errors import InvalidArgument, Reason, Violation
from services.metrics.job import JobFacts

DIGEST_CHARACTERS = 32

Place = TypeVar("Place")


def page_token_to_text(jobs: Sequence[JobFacts], scope: str, last: str) -> str:
    """The token after `last`, the key of a page's last entry."""
    data = json.dumps([_digest(jobs, scope), last], separators=(",", ":"))
    return base64.urlsafe_b64encode(data.encode()).decode()


def place_from_page_token(
    token: str, jobs: Sequence[JobFacts], scope: str, read: Callable[[str], Place]
) -> Place | None:
    """Where the page begins: what `read` makes of the key of the last entry; None for the first page.

    InvalidArgument for a foreign token, and where `read` raises ValueError or TypeError.
    """
    if not token:
        return None
    try:
        digest, last = json.loads(base64.urlsafe_b64decode(token))
        if digest == _digest(jobs, scope) and isinstance(last, str):
            return read(last)
    except (binascii.Error, ValueError, TypeError, RecursionError):
        pass
    violation = Violation(field="page_token", description="is not of this request: begin with the first page")
    raise InvalidArgument([violation], reason=Reason.INVALID_PAGE_TOKEN)


def _digest(jobs: Sequence[JobFacts], scope: str) -> str:
    """Of all that was asked: selectors may be long, and a token is sent back and forth."""
    asked = "\0".join([scope, *(job.uid for job in jobs)])
    return hashlib.sha256(asked.encode()).hexdigest()[:DIGEST_CHARACTERS]
