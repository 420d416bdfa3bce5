"""An issuer's keys, as they were seen last: fetched in the background, kept while the issuer is away, in a file too."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.chassis.auth.oidc.documents import Documents, IssuerKey, keys_in
from services.chassis.auth.oidc.settings import IssuerSettings
from services.chassis.errors import Reason, Unauthenticated, Unavailable
from services.chassis.files import replace_file
from services.chassis.log import get_logger
from services.chassis.loop import LoopLimits, keep_turning

log = get_logger(__name__)

RETRY = LoopLimits(retry_seconds_first=0.5, retry_seconds_max=15.0)


@dataclass(frozen=True, kw_only=True)
class KeyLimits:
    """How often keys are fetched: now and then, and at most every `unknown_seconds` because a token names another."""

    refresh_seconds: float
    unknown_seconds: float


class Issuer:
    """An issuer and its keys. `find` never waits; `run` fetches. `file` keeps the keys over a restart."""

    def __init__(
        self,
        settings: IssuerSettings,
        documents: Documents,
        limits: KeyLimits,
        *,
        file: Path | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self._documents = documents
        self._limits = limits
        self._file = file
        self._monotonic = monotonic
        self._shown = _read(file, settings.issuer)
        self._keys: Mapping[str, IssuerKey] | None = None if self._shown is None else keys_in(self._shown)
        self._is_away = False
        self._is_kept = True
        self._wanted = asyncio.Event()
        self._wanted_at = float("-inf")

    def find(self, key_id: str) -> IssuerKey:
        """The key. Unavailable while it is not known whether the issuer has it, Unauthenticated where it has not."""
        if self._keys is not None and key_id in self._keys:
            return self._keys[key_id]
        if self._keys is None or self._is_away:
            raise _unknown_yet("the issuer of this token does not answer, and the token's key is not known here")
        if self._monotonic() - self._wanted_at >= self._limits.unknown_seconds:
            self._wanted_at = self._monotonic()
            self._wanted.set()
        if self._wanted.is_set():
            raise _unknown_yet("the token's key is not known here, and its issuer is being asked for it")
        raise Unauthenticated(Reason.TOKEN_INVALID, "the token is signed by a key that its issuer does not show")

    async def run(self) -> None:
        """Fetch the keys at once, now and then, and when a token names one that is not there; until cancelled."""
        await keep_turning("issuer", self._turn, limits=RETRY)

    async def _turn(self) -> None:
        try:
            shown = await asyncio.to_thread(self._documents.keys, self.settings.issuer)
        except Unavailable:
            self._is_away = True
            raise
        finally:
            self._wanted.clear()
        if self._is_away or self._shown != shown:
            keys = keys_in(shown)
            log.info("issuer_keys_fetched", issuer=self.settings.issuer, key_ids=sorted(keys))
            self._keys, self._shown, self._is_away, self._is_kept = keys, shown, False, False
        if not self._is_kept:
            self._is_kept = await asyncio.to_thread(self._keep)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.refresh_seconds):
                await self._wanted.wait()

    def _keep(self) -> bool:
        """Whether the file has the keys; where it has not, it is written when they are fetched the next time."""
        if self._file is None:
            return True
        content = {"issuer": self.settings.issuer, "keys": self._shown}
        try:
            replace_file(self._file, json.dumps(content).encode(), mode=0o600)
        except OSError as error:
            log.error("issuer_keys_not_kept", path=str(self._file), problem=str(error))
            return False
        return True


def _read(file: Path | None, issuer: str) -> list[Any] | None:
    """The keys that were kept of this issuer; None where there are none."""
    if file is None or not file.exists():
        return None
    try:
        found = json.loads(file.read_bytes())
        return list(found["keys"]) if found["issuer"] == issuer else None
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.error("issuer_keys_file_damaged", path=str(file), problem=str(error))
        return None


def _unknown_yet(message: str) -> Unavailable:
    return Unavailable(Reason.SERVICE_UNAVAILABLE, message, {"service": "the token's issuer"})
