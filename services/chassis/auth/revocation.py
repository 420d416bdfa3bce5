"""Tokens that hold no more although they have not ended: which they are, and who is to hear of it at once.

The scheduler keeps the truth, in its database. The other services follow it on a stream, and keep what they heard in a
file, so that a restart with the scheduler away takes no revoked token. With it comes which keys have handed over to the
next.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
from sihlai.auth.v1 import token_service_pb2, token_service_pb2_grpc

from services.chassis.backoff import Backoff
from services.chassis.files import replace_file
from services.chassis.log import get_logger
from services.chassis.status import error_from_rpc

log = get_logger(__name__)

RETRY_SECONDS_FIRST = 0.2
RETRY_SECONDS_MAX = 2.0
"""How long a broken stream of revocations may stay broken before it is opened again."""
WRITE_SECONDS_FIRST = 0.2
WRITE_SECONDS_MAX = 10.0
"""How long a file that the disk does not take waits until it is written again."""


class Revocations:
    """The ids of revoked tokens, and the successions of keys. `file` keeps them over a restart, while `keep` runs."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._ids, self.successions = _read(file)
        self._unwritten = asyncio.Event()
        self._streams: dict[str, set[Callable[[], None]]] = {}

    def __contains__(self, token_id: str) -> bool:
        return token_id in self._ids

    def replace(self, ids: Iterable[str], *, successions: Sequence[str] = ()) -> None:
        """These are revoked, and no others. Streams of those that are new are told."""
        ids, successions = frozenset(ids), tuple(successions)
        new = ids - self._ids
        if (ids, successions) != (self._ids, self.successions):
            self._ids, self.successions = ids, successions
            self._unwritten.set()
        for token_id in new:
            for tell in tuple(self._streams.get(token_id, ())):
                tell()

    def add(self, token_id: str) -> None:
        """This one is revoked too."""
        self.replace(self._ids | {token_id}, successions=self.successions)

    async def keep(self) -> None:
        """Write each change to the file, until cancelled. What the disk does not take is written later: nobody who is
        told waits for it.
        """
        backoff = _backoff(WRITE_SECONDS_FIRST, WRITE_SECONDS_MAX)
        while True:
            await self._unwritten.wait()
            self._unwritten.clear()
            try:
                await asyncio.to_thread(_write, self._file, self._ids, self.successions)
            except OSError as error:
                log.error("revocations_not_kept", path=str(self._file), problem=str(error))
                self._unwritten.set()
                await asyncio.sleep(backoff.next_seconds())
            else:
                backoff.reset()

    @contextlib.contextmanager
    def told(self, token_id: str, tell: Callable[[], None]) -> Iterator[None]:
        """Call `tell` when the token is revoked meanwhile."""
        told = self._streams.setdefault(token_id, set())
        told.add(tell)
        try:
            yield
        finally:
            told.discard(tell)
            if not told and self._streams.get(token_id) is told:
                del self._streams[token_id]


async def follow_revocations(
    revocations: Revocations, channel: grpc.aio.Channel, learn: Callable[[Sequence[str]], None]
) -> None:
    """Keep `revocations`, and their file, as the scheduler has them, until cancelled. With it away what was heard last
    holds.

    `learn` gets the successions of keys, at once those that were kept.
    """
    learn(revocations.successions)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(revocations.keep())
        tasks.create_task(_hear(revocations, channel, learn))


async def _hear(revocations: Revocations, channel: grpc.aio.Channel, learn: Callable[[Sequence[str]], None]) -> None:
    stub = token_service_pb2_grpc.TokenServiceStub(channel)
    backoff = _backoff(RETRY_SECONDS_FIRST, RETRY_SECONDS_MAX)
    while True:
        try:
            async for response in stub.StreamRevocations(token_service_pb2.StreamRevocationsRequest()):
                backoff.reset()
                learn(response.key_successions)
                revocations.replace(response.token_ids, successions=response.key_successions)
        except grpc.aio.AioRpcError as rpc_error:
            error = error_from_rpc(rpc_error)
            log.info("revocations_not_heard", reason=error.reason.value, message=error.message)
        await asyncio.sleep(backoff.next_seconds())


def key_revocation(key_id: str) -> str:
    """What a revocation names instead of a token, where nothing holds any more that the key signed."""
    return f"key-{key_id}"


def _backoff(seconds_first: float, seconds_max: float) -> Backoff:
    randomness = random.Random()  # noqa: S311  # spreads retries, guards nothing
    return Backoff(seconds_first=seconds_first, seconds_max=seconds_max, randomness=randomness)


def _write(file: Path | None, ids: Iterable[str], successions: Sequence[str]) -> None:
    if file is not None:
        content = {"token_ids": sorted(ids), "key_successions": successions}
        replace_file(file, json.dumps(content).encode(), mode=0o600)


def _read(file: Path | None) -> tuple[frozenset[str], tuple[str, ...]]:
    if file is None or not file.exists():
        return frozenset(), ()
    try:
        found: Any = json.loads(file.read_bytes())
        ids, successions = found["token_ids"], found["key_successions"]
        return frozenset(str(each) for each in ids), tuple(str(each) for each in successions)
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.error("revocations_file_damaged", path=str(file), problem=str(error))
        return frozenset(), ()
