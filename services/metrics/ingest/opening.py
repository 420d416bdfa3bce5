"""How a writer is opened: who had it lets go, ClickHouse is asked what it has, and what is new is recorded.

Before a writer is opened again, what its earlier opening was storing is settled, in this process and in any other: then
the answer of ClickHouse is the truth, whoever died before.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from services.chassis.auth.principal import ANY_RUNNER, Kind, Principal, current_principal
from services.chassis.auth.write_token import WriteToken
from services.chassis.errors import (
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    Reason,
    ResourceExhausted,
    Unavailable,
    Violation,
)
from services.chassis.log import get_logger
from services.metrics.clickhouse.ownership import Ownership
from services.metrics.clickhouse.store import Store
from services.metrics.ingest.inserter import Inserter
from services.metrics.ingest.registry import Registry
from services.metrics.ingest.writer import Opening, Writer
from services.metrics.point import SeriesDefinition, definition_violations
from services.metrics.writer_key import (
    ATTEMPT_MAX,
    PROTOCOL_VERSION_MAX,
    PROTOCOL_VERSION_MIN,
    WriterKey,
    WriterKind,
    WriterRecord,
)

log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Openings:
    """What opens writers."""

    store: Store
    ownership: Ownership
    inserter: Inserter
    registry: Registry

    def key(self, opening: Opening) -> tuple[WriterKey, WriteToken]:
        """Whose rows the opening is for; raises what is wrong with it whatever is stored."""
        if not PROTOCOL_VERSION_MIN <= opening.protocol_version <= PROTOCOL_VERSION_MAX:
            wanted = f"{PROTOCOL_VERSION_MIN} to {PROTOCOL_VERSION_MAX}"
            raise FailedPrecondition(
                Reason.PROTOCOL_VERSION,
                f"the writer speaks protocol version {opening.protocol_version}, this server {wanted}",
                {"found": str(opening.protocol_version), "wanted": wanted},
            )
        token = self.registry.verify(opening.token)
        if not 1 <= token.attempt <= ATTEMPT_MAX:
            description = f"is for attempt {token.attempt}, but attempts are from 1 to {ATTEMPT_MAX}"
            raise InvalidArgument([Violation(field="open.token", description=description)])
        _require_own_runner(token, current_principal())
        key = WriterKey(job_uid=token.job_uid, attempt=token.attempt, rank=opening.rank, kind=opening.kind)
        check_definitions(opening.definitions, key, "open.series")
        self.require_room(len(opening.definitions))
        return key, token

    def require_room(self, series: int) -> None:
        """Raise where one writer names more series than it may."""
        limit = self.registry.limits.series_per_writer
        if series > limit:
            message = f"the writer names {series} series, but series_per_writer_max is {limit}: name fewer"
            raise ResourceExhausted(
                Reason.LIMIT_REACHED, message, {"what": "series_per_writer_max", "limit": str(limit)}
            )

    def hold(self, writer: Writer, definitions: tuple[SeriesDefinition, ...]) -> None:
        """Keep definitions with their writer. Raises Unavailable where all writers together hold too many."""
        new = {definition.series_id: definition for definition in definitions}
        grown = len(new.keys() - writer.definitions.keys())
        limit = self.registry.limits.series
        if self.registry.series_held + grown > limit:
            message = f"all writers together name {self.registry.series_held} series, and series_max is {limit}"
            raise Unavailable(Reason.METRICS_STORE_UNAVAILABLE, message, {"what": "series_max", "limit": str(limit)})
        self.registry.series_held += grown
        writer.series_held += grown
        writer.definitions.update(new)

    async def open(self, writer: Writer, opening: Opening, before: Writer | None) -> None:
        """Make the writer `WRITING`, or `FINISHED` where its end is recorded; raises what it is refused for."""
        if before is not None:
            await self._quiet(before)
        record = await self.store.writer_record(writer.key)
        self._check(writer, record)
        if record is not None and record.finished:
            writer.stored_sequence = record.stored_sequence
            writer.finished()
            return
        await self.ownership.take(writer.key)
        # Only now does the answer hold: nobody else stores anything of this writer any more.
        progress = await self.store.progress(writer.key)
        if record is None:
            await self._record(writer)
        stored = max(progress.sequence, opening.first_sequence - 1)
        if stored > progress.sequence:
            await self._record_gap(writer.key, first=progress.sequence + 1, last=stored)
        await self._define(writer, opening)
        writer.opened(stored_sequence=stored, next_line_number=progress.line_number + 1)

    async def _quiet(self, before: Writer) -> None:
        self.inserter.flush()
        try:
            async with asyncio.timeout(self.registry.limits.settle_seconds):
                await before.quiet()
        except TimeoutError:
            message = "rows of this writer's earlier stream are still on their way"
            raise Unavailable(Reason.METRICS_STORE_UNAVAILABLE, message) from None

    def _check(self, writer: Writer, record: WriterRecord | None) -> None:
        token, key = writer.token, writer.key
        if record is not None and record.epoch != token.epoch:
            raise _denied(key, f"attempt {key.attempt} is of epoch {record.epoch}, but the token of {token.epoch}")
        if record is None and token.drain_only and key.rank > 0:
            # What rank 0 wrote may come late, all of it, where this service was away for a whole attempt.
            raise _denied(key, "the attempt is closed and this process of it never wrote: the token may only drain")

    async def _record(self, writer: Writer) -> None:
        token = writer.token
        await self.store.record_writer(
            writer.key, epoch=token.epoch, from_step=token.from_step, now=self.registry.clock()
        )

    async def _record_gap(self, key: WriterKey, *, first: int, last: int) -> None:
        await self.store.record_gap(key, first=first, last=last, now=self.registry.clock())
        log.warning("writer_gap", writer=key.shown, first=first, last=last)

    async def _define(self, writer: Writer, opening: Opening) -> None:
        if writer.key.kind is not WriterKind.POINTS or not opening.definitions:
            return
        self.hold(writer, opening.definitions)
        known = await self.store.series_ids(writer.key.job_uid)
        new = [(writer.key.job_uid, each) for each in opening.definitions if each.series_id not in known]
        if new:
            await self.store.record_series(new)


def check_definitions(definitions: tuple[SeriesDefinition, ...], key: WriterKey, field: str) -> None:
    """Raise InvalidArgument with all that is wrong with the definitions of a writer."""
    violations = [
        violation
        for index, definition in enumerate(definitions)
        for violation in definition_violations(
            definition, job_uid=key.job_uid, rank=key.rank, field=f"{field}[{index}]"
        )
    ]
    if violations:
        raise InvalidArgument(violations)


def _require_own_runner(token: WriteToken, caller: Principal) -> None:
    """Raise PermissionDenied where the token is another runner's: one that was stolen opens nothing."""
    if caller.kind is not Kind.RUNNER or caller.subject in (ANY_RUNNER, token.runner):
        return
    raise PermissionDenied(
        Reason.PERMISSION_DENIED,
        f"the write token is of {token.runner}, but {caller.subject} shows it",
        {"principal": caller.subject, "permission": f"write as {token.runner}"},
    )


def _denied(key: WriterKey, message: str) -> PermissionDenied:
    return PermissionDenied(
        Reason.PERMISSION_DENIED, f"{key.shown}: {message}", {"principal": key.job_uid, "permission": "write"}
    )
