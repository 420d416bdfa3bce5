"""Ingest and logs on the wire: from protos, with everything that is wrong in a request, and to protos.

Protos stop here. Series and queries stand in `wire_series`, jobs in `wire_jobs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from sihlai.logs.v1 import log_line_pb2, log_service_pb2
from sihlai.metrics.v1 import ingest_service_pb2, series_pb2

from services.chassis.errors import InvalidArgument, Violation
from services.metrics.ingest import Answer, Opening
from services.metrics.lines import LogFields
from services.metrics.log import FromBeginning, FromCursor, FromLast, FromTime, LogFilter, Start
from services.metrics.rows import LineRows, Lines, PointColumns, PointRows
from services.metrics.wire_series import definition_from_proto
from services.metrics.writer import ATTEMPT_MAX, RANK_MAX, SEQUENCE_MAX, Finish, WriterKind

KINDS = {
    ingest_service_pb2.WRITER_KIND_POINTS: WriterKind.POINTS,
    ingest_service_pb2.WRITER_KIND_LINES: WriterKind.LINES,
}
TIME_UNIX_US_MIN = -62_135_596_800_000_000
TIME_UNIX_US_MAX = 253_402_300_799_999_999
"""What a Timestamp takes: the years 1 to 9999."""
SHARED_BATCHES_MAX = 32
NUMBER_BYTES = 8
SERIES_ID_BYTES = 9
"""Tag and number of a series' id, the first field of PointColumns."""
COLUMN_TAGS = bytes([0x12, 0x1A, 0x22])
"""Of steps, times and values: fields 2, 3 and 4, packed."""
INTEGERS = np.dtype("<i8")
DOUBLES = np.dtype("<f8")


@dataclass(frozen=True, kw_only=True)
class Renewal:
    """A newer token."""

    token: str


IngestMessage: TypeAlias = Opening | PointRows | LineRows | Renewal | Finish


@dataclass(frozen=True, kw_only=True)
class MessageLimits:
    """What one message of a writer holds at most."""

    rows: int
    line_characters: int


def ingest_message_from_proto(request: ingest_service_pb2.IngestRequest, limits: MessageLimits) -> IngestMessage:
    """What a request carries, or InvalidArgument."""
    match request.WhichOneof("message"):
        case "open":
            return _opening_from_proto(request.open)
        case "points":
            return _point_rows_from_proto(request.points, limits)
        case "lines":
            return _line_rows_from_proto(request.lines, limits)
        case "renew":
            return Renewal(token=request.renew.token)
        case "finish":
            return _finish_from_proto(request.finish)
        case _:
            raise _invalid([Violation(field="message", description="is missing: send open, points, lines, …")])


def ingest_response_from_answer(answer: Answer) -> ingest_service_pb2.IngestResponse:
    """An answer."""
    response = ingest_service_pb2.IngestResponse(credit_bytes=answer.credit_bytes, going_away=answer.going_away)
    for state in answer.writers:
        proto = response.writers.add(
            writer=state.number, stored_sequence=state.stored_sequence, finished=state.finished
        )
        proto.token_expire_time.FromDatetime(state.token_expires_at)
    return response


def _opening_from_proto(proto: ingest_service_pb2.OpenWriter) -> Opening:
    problems = []
    if proto.kind not in KINDS:
        problems.append(Violation(field="open.kind", description="is neither POINTS nor LINES"))
    if not 0 <= proto.rank <= RANK_MAX:
        problems.append(Violation(field="open.rank", description=f"is {proto.rank}, but ranks are 0 to {RANK_MAX}"))
    if not 0 <= proto.first_sequence <= SEQUENCE_MAX:
        description = f"is {proto.first_sequence}, but must be from 0 to {SEQUENCE_MAX}"
        problems.append(Violation(field="open.first_sequence", description=description))
    if problems:
        raise _invalid(problems)
    return Opening(
        token=proto.token,
        rank=proto.rank,
        kind=KINDS[proto.kind],
        protocol_version=proto.protocol_version,
        first_sequence=proto.first_sequence,
        definitions=tuple(definition_from_proto(series) for series in proto.series),
    )


def _finish_from_proto(proto: ingest_service_pb2.FinishWriter) -> Finish:
    if not 0 <= proto.last_sequence <= SEQUENCE_MAX or proto.rows_dropped < 0:
        raise _invalid([Violation(field="finish", description="has a number below zero or too large")])
    return Finish(last_sequence=proto.last_sequence, rows_dropped=proto.rows_dropped)


def _point_rows_from_proto(proto: ingest_service_pb2.PointBatch, limits: MessageLimits) -> PointRows:
    problems = _sequence_violations("points", proto.sequence)
    columns = []
    rows = 0
    for index, part in enumerate(proto.columns):
        taken = _packed_columns(part) or _plain_columns(part)
        length = len(taken.steps)
        if not length or length != len(taken.times_unix_us) or length != len(taken.values):
            found = f"{length} steps, {len(taken.times_unix_us)} times and {len(taken.values)} values"
            description = f"has {found}, but needs the same number of each, at least 1"
            problems.append(Violation(field=f"points.columns[{index}]", description=description))
        rows += length
        columns.append(taken)
    problems += _row_violations("points.columns", rows, limits, empty=not columns)
    if problems:
        raise _invalid(problems)
    return PointRows(
        sequence=proto.sequence,
        columns=tuple(columns),
        new_definitions=tuple(definition_from_proto(series) for series in proto.new_series),
        row_count=rows,
    )


def _packed_columns(proto: series_pb2.PointColumns) -> PointColumns | None:
    """The columns as they lie in the serialized message; None where it is not laid out as is usual.

    Packed numbers are little-endian and without gaps, so numpy can read them in place: a quarter of the time that it
    takes to turn the three fields into arrays one by one, and that is most of what a small message costs.
    """
    data = proto.SerializeToString()
    count = len(proto.steps)
    width = NUMBER_BYTES * count
    head = 2 + (width > 127) + (width > 16_383) + (width > 2_097_151)  # tag, and length as a varint
    field_bytes = head + width
    if len(data) != SERIES_ID_BYTES + 3 * field_bytes or data[SERIES_ID_BYTES::field_bytes] != COLUMN_TAGS:
        return None
    steps = SERIES_ID_BYTES + head
    return PointColumns(
        series_id=proto.series_id,
        steps=np.frombuffer(data, INTEGERS, count, steps),
        times_unix_us=np.frombuffer(data, INTEGERS, count, steps + field_bytes),
        values=np.frombuffer(data, DOUBLES, count, steps + 2 * field_bytes),
    )


def _plain_columns(proto: series_pb2.PointColumns) -> PointColumns:
    return PointColumns(
        series_id=proto.series_id,
        steps=np.array(proto.steps, INTEGERS),
        times_unix_us=np.array(proto.times_unix_us, INTEGERS),
        values=np.array(proto.values, DOUBLES),
    )


def _line_rows_from_proto(proto: ingest_service_pb2.LineBatch, limits: MessageLimits) -> LineRows:
    problems = _sequence_violations("lines", proto.sequence)
    rows = len(proto.lines)
    problems += _row_violations("lines.lines", rows, limits, empty=rows == 0)
    for name in ("times_unix_us", "levels", "sources", "streams", "continued"):
        if len(getattr(proto, name)) != rows:
            description = f"has {len(getattr(proto, name))} values for {rows} lines"
            problems.append(Violation(field=f"lines.{name}", description=description))
    if not 1 <= proto.first_number <= SEQUENCE_MAX:
        description = f"is {proto.first_number}, but lines are numbered from 1"
        problems.append(Violation(field="lines.first_number", description=description))
    if proto.times_unix_us and not _times_fit(proto.times_unix_us):
        problems.append(Violation(field="lines.times_unix_us", description="has a time outside the years 1 to 9999"))
    if not set(proto.levels) <= set(log_line_pb2.LogLevel.values()):
        problems.append(Violation(field="lines.levels", description="has a value that is no LogLevel"))
    if not set(proto.streams) <= set(log_line_pb2.LogStream.values()):
        problems.append(Violation(field="lines.streams", description="has a value that is no LogStream"))
    longest = max(map(len, proto.lines), default=0)
    if longest > limits.line_characters:
        description = f"has a line of {longest} characters, but {limits.line_characters} is the most: split it"
        problems.append(Violation(field="lines.lines", description=description))
    if problems:
        raise _invalid(problems)
    lines = Lines(
        # The attempt and the rank are the writer's: who puts the rows fills them in.
        attempt=0,
        rank=0,
        numbers=list(range(proto.first_number, proto.first_number + rows)),
        times_unix_us=list(proto.times_unix_us),
        levels=list(proto.levels),
        sources=list(proto.sources),
        streams=list(proto.streams),
        texts=list(proto.lines),
        continued=list(proto.continued),
    )
    return LineRows(sequence=proto.sequence, lines=lines)


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
            if not _times_fit([_microseconds(request.since)]):
                raise _invalid([Violation(field="since", description="is no time from the year 1 to 9999")])
            return FromTime(time_unix_us=_microseconds(request.since))
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
    if problems:
        raise _invalid(problems)
    return LogFilter(
        level_min=proto.level_min,
        sources=tuple(proto.sources),
        ranks=tuple(proto.ranks),
        streams=tuple(proto.streams),
        contains=proto.contains,
        regex=proto.regex,
        attempts=tuple(proto.attempts),
    )


@lru_cache(maxsize=SHARED_BATCHES_MAX)
def log_batch_to_proto(lines: Lines) -> log_service_pb2.LogBatch:
    """Lines. Followers of one log get the same live lines: their message is made once. Copy it, never change it."""
    batch = log_service_pb2.LogBatch()
    for index, text in enumerate(lines.texts):
        line = batch.lines.add(
            attempt=lines.attempt,
            rank=lines.rank,
            number=lines.numbers[index],
            level=log_line_pb2.LogLevel.ValueType(lines.levels[index]),
            source=lines.sources[index],
            stream=log_line_pb2.LogStream.ValueType(lines.streams[index]),
            line=text,
            continued=lines.continued[index],
        )
        line.time.FromMicroseconds(lines.times_unix_us[index])
    return batch


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


def _microseconds(time: Timestamp) -> int:
    return time.seconds * 1_000_000 + time.nanos // 1_000


def _times_fit(times_unix_us: Sequence[int]) -> bool:
    return all(TIME_UNIX_US_MIN <= time <= TIME_UNIX_US_MAX for time in (min(times_unix_us), max(times_unix_us)))


def _sequence_violations(field: str, sequence: int) -> list[Violation]:
    if 1 <= sequence <= SEQUENCE_MAX:
        return []
    return [Violation(field=f"{field}.sequence", description=f"is {sequence}, but messages are numbered from 1")]


def _row_violations(field: str, rows: int, limits: MessageLimits, *, empty: bool) -> list[Violation]:
    if empty:
        return [Violation(field=field, description="is empty, but a message carries at least one row")]
    if rows > limits.rows:
        return [Violation(field=field, description=f"carries {rows} rows, but {limits.rows} is the most: send less")]
    return []


def _invalid(problems: list[Violation]) -> InvalidArgument:
    return InvalidArgument(problems)
