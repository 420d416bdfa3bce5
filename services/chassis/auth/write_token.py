"""What an attempt may write: a token that the scheduler gives its runner, and metrics asks for with each writer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from services.chassis.errors import PermissionDenied, Reason


@dataclass(frozen=True, kw_only=True)
class WriteToken:
    """What the holder may write: rows of this attempt, until `expires_at` (aware, whole seconds).

    `from_step` is the step that the attempt began at: rows of earlier attempts at or above it no longer count.
    `drain_only`: the attempt is closed; what its spool still holds is taken, new phases are not. `runner` is the
    attempt's own (`runners/gpu-1`): from nobody else it is taken.
    """

    project: str
    job_uid: str
    attempt: int
    epoch: int
    from_step: int
    expires_at: datetime
    drain_only: bool = False
    runner: str = ""

    def require_attempt(self, *, job_uid: str, attempt: int) -> None:
        """Raise PermissionDenied unless the token is for this attempt of this job."""
        if (self.job_uid, self.attempt) == (job_uid, attempt):
            return
        raise PermissionDenied(
            Reason.PERMISSION_DENIED,
            f"the write token is for attempt {self.attempt} of job {self.job_uid}, "
            f"not for attempt {attempt} of job {job_uid}",
            {"principal": f"{self.job_uid}/{self.attempt}", "permission": f"write {job_uid}/{attempt}"},
        )


def claims_from_write_token(token: WriteToken) -> dict[str, Any]:
    """The claims of a write token."""
    return {
        "exp": int(token.expires_at.timestamp()),
        "project": token.project,
        "job_uid": token.job_uid,
        "attempt": token.attempt,
        "epoch": token.epoch,
        "from_step": token.from_step,
        "drain_only": token.drain_only,
        "runner": token.runner,
    }


def write_token_from_claims(claims: Mapping[str, Any]) -> WriteToken:
    """The token; KeyError, TypeError or ValueError where the claims are no write token's."""
    return WriteToken(
        project=str(claims["project"]),
        job_uid=str(claims["job_uid"]),
        attempt=int(claims["attempt"]),
        epoch=int(claims["epoch"]),
        from_step=int(claims["from_step"]),
        expires_at=datetime.fromtimestamp(int(claims["exp"]), UTC),
        drain_only=bool(claims["drain_only"]),
        runner=str(claims["runner"]),
    )
