"""The key that signs tokens, and how another one takes its place while everything runs."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from services.chassis.auth.keys import TokenSigner, TokenVerifier, remove_ended_keys, rotate_key
from services.chassis.auth.principal import Principal
from services.chassis.auth.write_token import WriteToken
from services.chassis.errors import ConfigurationError, FailedPrecondition, Reason
from services.chassis.log import get_logger

log = get_logger(__name__)


class Keyring:
    """Signs with the key of one file. `verifier` is this process's own: it knows a new key at once."""

    def __init__(self, path: Path, verifier: TokenVerifier, *, now: Callable[[], datetime]) -> None:
        self._path = path
        self._verifier = verifier
        self._now = now
        self._signer = TokenSigner.from_file(path)

    @property
    def key_id(self) -> str:
        """The id of the key that signs."""
        return self._signer.key_id

    @property
    def successions(self) -> tuple[str, ...]:
        """How the keys before it handed over, oldest first; what other services believe."""
        return self._signer.successions

    def sign(self, token: WriteToken) -> str:
        """See TokenSigner."""
        return self._signer.sign(token)

    def sign_access(self, principal: Principal) -> str:
        """See TokenSigner."""
        return self._signer.sign_access(principal)

    def rotate(self, *, ends_at: datetime) -> str:
        """Sign with another key from now on; the id of the old one, whose tokens hold until then at most.

        FailedPrecondition where the file cannot be written, or is not the one that was read at the start.
        """
        old = self.key_id
        try:
            if TokenSigner.from_file(self._path).key_id != old:
                raise _not_replaceable(self._path, "holds another key than the one that signs")
            self._signer = rotate_key(self._path, ends_at=ends_at)
        except (OSError, ConfigurationError) as error:
            raise _not_replaceable(self._path, f"cannot be written: {error}") from error
        self._verifier.learn(self._signer.successions)
        log.info("token_key_rotated", key=self.key_id, old_key=old, old_key_ends=ends_at.isoformat())
        return old

    def forget_ended(self) -> None:
        """Delete what is left of keys whose last token has ended. They are refused, whether that works or not."""
        try:
            for key_id in remove_ended_keys(self._path, now=self._now()):
                log.info("token_key_forgotten", key=key_id)
        except (OSError, ConfigurationError) as error:
            log.warning("token_keys_not_forgotten", problem=str(error))


def _not_replaceable(path: Path, problem: str) -> FailedPrecondition:
    message = f"the key file {path} {problem}: put a key there by hand, and start the scheduler again"
    return FailedPrecondition(Reason.KEY_NOT_REPLACEABLE, message, {"path": str(path)})
