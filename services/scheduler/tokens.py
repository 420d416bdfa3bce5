"""Write tokens for attempts: made when they are first wanted, the same one given until half of its life is over."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from services.chassis.auth.write_token import WriteToken
from services.scheduler.domain.job import Attempt
from services.scheduler.domain.lease import AttemptKey, key_of
from services.scheduler.keyring import Keyring

TOKENS_KEPT = 20_000


@dataclass(frozen=True, kw_only=True)
class SignedToken:
    """A token and until when it works."""

    key: AttemptKey
    text: str
    expire_time_us: int


class TokenMint:
    """Signs tokens that live for `minutes`. `now` is aware."""

    def __init__(self, keyring: Keyring, *, minutes: float, now: Callable[[], datetime]) -> None:
        self._keyring = keyring
        self._life = timedelta(minutes=minutes)
        self._now = now
        self._kept: OrderedDict[tuple[AttemptKey, bool, str], tuple[datetime, SignedToken]] = OrderedDict()

    def token(self, attempt: Attempt, project_id: str, *, drain_only: bool) -> SignedToken:
        """A token for the attempt with at least half of its life before it, signed by the key of the moment."""
        kept_as, now = (key_of(attempt), drain_only, self._keyring.key_id), self._now()
        known = self._kept.get(kept_as)
        if known is not None and now < known[0] + self._life / 2:
            return known[1]
        # Tokens hold whole seconds.
        expires_at = datetime.fromtimestamp(int((now + self._life).timestamp()), UTC)
        text = self._keyring.sign(
            WriteToken(
                project=project_id,
                job_uid=attempt.job_uid,
                attempt=attempt.number,
                epoch=attempt.epoch,
                from_step=attempt.from_step,
                expires_at=expires_at,
                drain_only=drain_only,
                runner=f"runners/{attempt.runner_id}",
            )
        )
        token = SignedToken(key=key_of(attempt), text=text, expire_time_us=int(expires_at.timestamp()) * 1_000_000)
        self._kept[kept_as] = (now, token)
        while len(self._kept) > TOKENS_KEPT:
            self._kept.popitem(last=False)
        return token
