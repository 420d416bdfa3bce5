"""Ingest on the wire: from protos, with everything that is wrong in a message, and to protos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from sihlai.error.v1 import error_reason_pb2
from sihlai.logs.v1 import log_line_pb2
from sihlai.metrics.v1 import ingest_service_pb2

from services.chassis.errors import InvalidArgument, Violation
from services.metrics.ingest.stream import Answer
from services.metrics.ingest.writer import Opening, Refusal
from services.metrics.log import SOURCE_CHARACTERS_MAX
from services.metrics.rows import LineRows, Lines, PointRows
from services.metrics.wire.points import flat_points
from services.metrics.wire.series import definition_from_proto
from services.metrics.wire.times import times_fit
from services.metrics.writer_key import LINE_NUMBER_MAX, RANK_MAX, SEQUENCE_MAX, Finish, WriterKind

KINDS = {
    ingest_service_pb2.WRITER_KIND_POINTS: WriterKind.POINTS,
    ingest_service_pb2.WRITER_KIND_LINES: WriterKind.LINES,
}
MESSAGE_CHARACTERS_MAX = 2_000
"""Of a refusal: thousands of fields may be wrong."""


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


def sequence_of(request: ingest_service_pb2.IngestRequest) -> int:
    """The number of the message that a request carries; 0 where it carries none."""
    return max(0, request.points.sequence if request.HasField("points") else request.lines.sequence)


def ingest_response_from_answer(answer: Answer) -> ingest_service_pb2.IngestResponse:
    """An answer."""
    response = ingest_service_pb2.IngestResponse(credit_bytes=answer.credit_bytes, going_away=answer.going_away)
    for state in answer.writers:
        response.writers.add(
            writer=state.number,
            stored_sequence=state.stored_sequence,
            finished=state.finished,
            refusal=None if state.refusal is None else _refusal_to_proto(state.refusal),
        )
    return response


def _refusal_to_proto(refusal: Refusal) -> ingest_service_pb2.WriterRefusal:
    return ingest_service_pb2.WriterRefusal(
        reason=error_reason_pb2.ErrorReason.Value(f"ERROR_REASON_{refusal.error.reason.value}"),
        message=refusal.error.message[:MESSAGE_CHARACTERS_MAX],
        permanent=refusal.permanent,
        sequence=refusal.sequence,
    )


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
    if not proto.columns:
        problems.append(_empty("points.columns"))
        raise _invalid(problems)
    points, wrong = flat_points(proto)
    problems += wrong + _row_violations("points.columns", len(points.steps), limits)
    times = points.times_unix_us
    if len(times):
        problems += _time_violations("points.columns", (times.min(), times.max()))
    if problems:
        raise _invalid(problems)
    return PointRows(
        sequence=proto.sequence,
        new_definitions=tuple(definition_from_proto(series) for series in proto.new_series),
        **points._asdict(),
    )


def _line_rows_from_proto(proto: ingest_service_pb2.LineBatch, limits: MessageLimits) -> LineRows:
    problems = _sequence_violations("lines", proto.sequence)
    rows = len(proto.lines)
    problems += [_empty("lines.lines")] if rows == 0 else _row_violations("lines.lines", rows, limits)
    for name in ("times_unix_us", "levels", "sources", "streams", "continued"):
        if len(getattr(proto, name)) != rows:
            description = f"has {len(getattr(proto, name))} values for {rows} lines"
            problems.append(Violation(field=f"lines.{name}", description=description))
    if not 1 <= proto.first_number <= LINE_NUMBER_MAX:
        description = f"is {proto.first_number}, but lines are numbered from 1"
        problems.append(Violation(field="lines.first_number", description=description))
    if proto.times_unix_us:
        problems += _time_violations("lines.times_unix_us", proto.times_unix_us)
    if not set(proto.levels) <= set(log_line_pb2.LogLevel.values()):
        problems.append(Violation(field="lines.levels", description="has a value that is no LogLevel"))
    if not set(proto.streams) <= set(log_line_pb2.LogStream.values()):
        problems.append(Violation(field="lines.streams", description="has a value that is no LogStream"))
    longest_source = max(map(len, proto.sources), default=0)
    if longest_source > SOURCE_CHARACTERS_MAX:
        description = (
            f"has one of {longest_source} characters, but {SOURCE_CHARACTERS_MAX} is the most: name it shorter"
        )
        problems.append(Violation(field="lines.sources", description=description))
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


def _sequence_violations(field: str, sequence: int) -> list[Violation]:
    if 1 <= sequence <= SEQUENCE_MAX:
        return []
    return [Violation(field=f"{field}.sequence", description=f"is {sequence}, but messages are numbered from 1")]


def _empty(field: str) -> Violation:
    return Violation(field=field, description="is empty, but a message carries at least one row")


def _row_violations(field: str, rows: int, limits: MessageLimits) -> list[Violation]:
    if rows > limits.rows:
        return [Violation(field=field, description=f"carries {rows} rows, but {limits.rows} is the most: send less")]
    return []


def _time_violations(field: str, times_unix_us: Sequence[int]) -> list[Violation]:
    if times_fit(times_unix_us):
        return []
    found = f"from {min(times_unix_us)} to {max(times_unix_us)}"
    description = f"has times {found}, but microseconds since 1970 in the years 1 to 9999 are taken"
    return [Violation(field=field, description=description)]


def _invalid(problems: list[Violation]) -> InvalidArgument:
    return InvalidArgument(problems)
