"""Page tokens: where the next page of a list about one job begins. Opaque to clients, and bound to what was asked."""

from __future__ import annotations

import base64
import binascii
import json

from services.chassis.errors import InvalidArgument, Reason, Violation
from services.metrics.job import JobFacts


def page_token_to_text(job: JobFacts, scope: str, last: str) -> str:
    """The token after `last`, the key of a page's last entry."""
    data = json.dumps([job.uid, scope, last], separators=(",", ":"))
    return base64.urlsafe_b64encode(data.encode()).decode()


def last_from_page_token(token: str, job: JobFacts, scope: str) -> str | None:
    """The key after which the page begins; None for the first page. InvalidArgument for a foreign token."""
    if not token:
        return None
    try:
        job_uid, its_scope, last = json.loads(base64.urlsafe_b64decode(token))
        if (job_uid, its_scope) == (job.uid, scope) and isinstance(last, str):
            return last
    except (binascii.Error, ValueError, TypeError):
        pass
    violation = Violation(field="page_token", description="is not of this job and request: begin with the first page")
    raise InvalidArgument([violation], reason=Reason.INVALID_PAGE_TOKEN)
