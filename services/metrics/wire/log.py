"""Logs on the wire: what a tail asks for, from protos; lines and fields, to protos."""

from __future__ import annotations

from collections.abc import Sequence

from sihlai.logs.v1 import log_line_pb2, log_service_pb2
from sihlai.scheduler.v1 import job_pb2

from services.chassis.errors import InvalidArgument, Violation
from services.metrics.clickhouse.lines import LogFields
from services.metrics.log import FromBeginning, FromCursor, FromLast, FromTime, LogFilter, Start
from services.metrics.rows import Lines
from services.metrics.wire.field import LENGTH_DELIMITED, delimited, tag
from services.metrics.wire.times import microseconds, times_fit
from services.metrics.writer_key import ATTEMPT_MAX, RANK_MAX

SOURCES_MAX = 100
RANKS_MAX = 1_000
STREAMS_MAX = 10
ATTEMPTS_MAX = 1_000
"""Values of one filter."""
FILTER_CHARACTERS_MAX = 1_000
"""Of each text of a filter."""
FIELDS = log_service_pb2.TailLogsResponse.DESCRIPTOR.fields_by_name
CURSOR = tag(FIELDS["cursor"].number, LENGTH_DELIMITED)
BATCH = tag(FIELDS["batch"].number, LENGTH_DELIMITED)


def start_from_proto(request: log_service_pb2.TailLogsRequest, *, tail_last_max: int) -> Start:
    """Where a tail starts."""
    match request.WhichOneof("start"):
        case "cursor":
            return FromCursor(cursor=request.cursor) if request.cursor else FromBeginning()
        case "tail_last":
            if not 0 <= request.tail_last <= tail_last_max:
                description = f"is {request.tail_last}, but must be from 0 to {tail_last_max}"
                raise _invalid([Violation(field="tail_last", description=description)])
            return FromLast(lines=request.tail_last)
        case "since":
            if not times_fit([microseconds(request.since)]):
                raise _invalid([Violation(field="since", description="is no time from the year 1 to 9999")])
            return FromTime(time_unix_us=microseconds(request.since))
        case _:
            return FromBeginning()


def log_filter_from_proto(proto: log_service_pb2.LogFilter) -> LogFilter:
    """Which lines are meant."""
    problems = []
    if proto.level_min not in log_line_pb2.LogLevel.values():
        problems.append(Violation(field="filter.level_min", description=f"is {proto.level_min}, which is no LogLevel"))
    if not set(proto.streams) <= set(log_line_pb2.LogStream.values()):
        problems.append(Violation(field="filter.streams", description="has a value that is no LogStream"))
    if any(not 0 <= rank <= RANK_MAX for rank in proto.ranks):
        problems.append(Violation(field="filter.ranks", description=f"has a rank outside 0 to {RANK_MAX}"))
    if any(not 1 <= attempt <= ATTEMPT_MAX for attempt in proto.attempts):
        problems.append(Violation(field="filter.attempts", description=f"has one outside 1 to {ATTEMPT_MAX}"))
    for name, count, most in (
        ("sources", len(proto.sources), SOURCES_MAX),
        ("ranks", len(proto.ranks), RANKS_MAX),
        ("streams", len(proto.streams), STREAMS_MAX),
        ("attempts", len(proto.attempts), ATTEMPTS_MAX),
    ):
        if count > most:
            description = f"has {count} values, but {most} is the most: leave it out to take all"
            problems.append(Violation(field=f"filter.{name}", description=description))
    texts = [("contains", proto.contains), ("regex", proto.regex), *(("sources", source) for source in proto.sources)]
    for name, text in texts:
        if len(text) > FILTER_CHARACTERS_MAX:
            description = f"has a text of {len(text)} characters, but {FILTER_CHARACTERS_MAX} is the most"
            problems.append(Violation(field=f"filter.{name}", description=description))
    if problems:
        raise _invalid(problems)
    return LogFilter(
        level_min=proto.level_min,
        # In one order: who wants the same shares it.
        sources=tuple(sorted(set(proto.sources))),
        ranks=tuple(sorted(set(proto.ranks))),
        streams=tuple(sorted(set(proto.streams))),
        contains=proto.contains,
        regex=proto.regex,
        attempts=tuple(sorted(set(proto.attempts))),
    )


class LogWire:
    """Tails as bytes. A batch is put together of bodies that many tails share."""

    def body(self, lines: Lines) -> bytes:
        """What stands in a LogBatch."""
        batch = log_service_pb2.LogBatch()
        attempt, rank = lines.attempt, lines.rank
        columns = zip(
            lines.numbers,
            lines.times_unix_us,
            lines.levels,
            lines.sources,
            lines.streams,
            lines.texts,
            lines.continued,
            strict=True,
        )
        for number, time_unix_us, level, source, stream, text, continued in columns:
            # Field by field: arguments of `add` take half as long again.
            line = batch.lines.add()
            line.attempt, line.rank, line.number = attempt, rank, number
            seconds, microseconds = divmod(time_unix_us, 1_000_000)
            time = line.time
            time.seconds, time.nanos = seconds, microseconds * 1_000
            line.level = log_line_pb2.LogLevel.ValueType(level)
            line.source = source
            line.stream = log_line_pb2.LogStream.ValueType(stream)
            line.line = text
            line.continued = continued
        return batch.SerializeToString()

    def rows(self, body: bytes, cursor: str) -> bytes:
        """Lines."""
        return delimited(CURSOR, cursor.encode()) + delimited(BATCH, body)

    def caught_up(self, cursor: str) -> bytes:
        """All lines that were stored when the call began have been sent."""
        mark = log_service_pb2.LogCaughtUp()
        return log_service_pb2.TailLogsResponse(cursor=cursor, caught_up=mark).SerializeToString()

    def heartbeat(self, cursor: str) -> bytes:
        """Nothing happened."""
        mark = log_service_pb2.LogHeartbeat()
        return log_service_pb2.TailLogsResponse(cursor=cursor, heartbeat=mark).SerializeToString()

    def ended(self, cursor: str, *, state: int, complete: bool) -> bytes:
        """The job has ended."""
        mark = log_service_pb2.LogEnded(state=job_pb2.JobState.ValueType(state), logs_complete=complete)
        return log_service_pb2.TailLogsResponse(cursor=cursor, ended=mark).SerializeToString()


def log_fields_to_proto(
    fields: LogFields, *, sources: Sequence[str], is_first: bool, next_page_token: str
) -> log_service_pb2.ListLogFieldsResponse:
    """A page of the sources that occur; the other values stand in the first page."""
    if not is_first:
        return log_service_pb2.ListLogFieldsResponse(sources=sources, next_page_token=next_page_token)
    return log_service_pb2.ListLogFieldsResponse(
        sources=sources,
        next_page_token=next_page_token,
        ranks=fields.ranks,
        streams=[log_line_pb2.LogStream.ValueType(stream) for stream in fields.streams],
        levels=[log_line_pb2.LogLevel.ValueType(level) for level in fields.levels],
        attempts=fields.attempts,
    )


def _invalid(problems: list[Violation]) -> InvalidArgument:
    return InvalidArgument(problems)
