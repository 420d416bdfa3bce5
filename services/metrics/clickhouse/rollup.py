"""What the rollups of points hold, as SQL: the expressions of migration 2, letter by letter, or none is used.

A series goes by its steps, or, with the flag `by_time`, by its times. A point's place is one number: the step or time,
then attempt, sequence and row. The best value with its first step is one number too (see `decoded_bests`). A query
names the projection that shall answer it: to try them all takes ClickHouse longer than to read the rows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from services.metrics.writer_key import ATTEMPT_BITS, ROW_BITS, SEQUENCE_BITS

OWN_AXIS = "if(by_time, time_unix_us, step)"
TURN = f"bitShiftLeft(toUInt64(attempt), {SEQUENCE_BITS + ROW_BITS}) + bitShiftLeft(seq, {ROW_BITS}) + row"
assert ATTEMPT_BITS + SEQUENCE_BITS + ROW_BITS == 64, "the migration has the same widths"
VALUE_BITS = "reinterpretAsInt64(value + 0.)"
"""Minus zero is zero here: neither is lower than the other."""
VALUE_ORDER = f"bitXor({VALUE_BITS}, bitAnd(bitShiftRight({VALUE_BITS}, 63), 9223372036854775807))"
BEST_ORDER = f"bitShiftLeft(toInt128({VALUE_ORDER}), 64)"
SUM_SCALE = 2.0**-64
"""Values are scaled before they are added: no sum of finite ones overflows."""

FEW = "SETTINGS optimize_use_projections = 0"
"""For a query that no projection can answer: to look for one costs more than to read some rows."""
BY_SERIES = "SETTINGS preferred_optimize_projection_name = 'by_series', max_threads = 1"
BY_WRITER = "SETTINGS preferred_optimize_projection_name = 'by_writer', max_threads = 1"
"""So few rows that more threads cost more than they bring."""

_VALUE_COUNTS = """
    countIf(isNaN(value)) AS nan_count,
    countIf(value = inf) AS positive_infinity_count,
    countIf(value = -inf) AS negative_infinity_count"""
_BESTS = f"""
    minIf({BEST_ORDER} + step, isFinite(value)) AS lowest,
    maxIf({BEST_ORDER} - step, isFinite(value)) AS highest,"""


def place(axis: str) -> str:
    """A point's place where points are ordered by `axis`."""
    return f"bitShiftLeft(toInt128({axis}), 64) + toInt128({TURN})"


SUMMARY_COLUMNS = f"""
    count() AS count,
    min({OWN_AXIS}) AS axis_min,
    max({OWN_AXIS}) AS axis_max,
    min(time_unix_us) AS time_min,
    max(time_unix_us) AS time_max,
    argMax(value, {place(OWN_AXIS)}) AS last,
    argMax(step, {place(OWN_AXIS)}) AS last_step,
    argMax(time_unix_us, {place(OWN_AXIS)}) AS last_time_unix_us,{_BESTS}{_VALUE_COUNTS}"""
"""What `by_series` holds of each job, series and attempt."""


def block_columns(axis: str) -> str:
    """What `by_64` and `by_4096` hold, with the own axis of a series, of each of its blocks."""
    return f"""
    count() AS count,
    min({axis}) AS axis_min,
    max({axis}) AS axis_max,
    argMin(value, {place(axis)}) AS first,
    argMax(value, {place(axis)}) AS last,
    argMax(time_unix_us, {place(axis)}) AS last_time_unix_us,{_BESTS}
    sumIf(value * {SUM_SCALE!r}, isFinite(value)) AS scaled_sum,{_VALUE_COUNTS}"""


def block(level: int) -> str:
    """The number of a point's block in the projection of a level, 1 or 2."""
    by_time, by_step = ((26, 6), (32, 12))[level - 1]
    return f"bitShiftRight({OWN_AXIS}, if(by_time, {by_time}, {by_step}))"


def block_bits(level: int, *, by_time: bool) -> int:
    """A block of this level spans two to the power of so many steps, or microseconds. Level 0: rows."""
    return ((0, 0), (6, 26), (12, 32))[level][by_time]


def block_settings(level: int) -> str:
    """For a query of blocks of this level."""
    if not level:
        return FEW
    return f"SETTINGS preferred_optimize_projection_name = '{('by_64', 'by_4096')[level - 1]}', max_threads = 2"


def decoded_bests(column: pa.ChunkedArray, *, highest: bool) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """The values and steps in a column `lowest` or `highest`, which has one number of 128 bits for each row.

    The upper half is the value's bits, turned into a whole number that is greater where the value is. The step was
    added to it, or, for the highest value, taken away from it, so that the first step wins among equal values.
    """
    raw = b"".join(bytes(chunk.buffers()[1])[16 * chunk.offset :][: 16 * len(chunk)] for chunk in column.chunks)
    halves = np.frombuffer(raw, np.int64).reshape(-1, 2)
    low, order = halves[:, 0], halves[:, 1]
    with np.errstate(over="ignore"):
        steps = -low if highest else low
        borrowed = steps > 0 if highest else steps < 0
        order = order + borrowed
        bits = np.where(order < 0, order ^ np.int64(2**63 - 1), order)
    return bits.view(np.float64), steps
