"""Blocks of rows, as ClickHouse takes them in one insert, made of messages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from services.metrics.rows import LineRows, Message, PointRows


def point_block(messages: Sequence[Message]) -> pa.Table:
    """The rows of messages of points. `row` counts the points of a message, in the order they were logged in."""
    pairs = [(message, message.rows) for message in messages if isinstance(message.rows, PointRows)]
    rows = [rows for _, rows in pairs]
    lengths = np.concatenate([each.lengths for each in rows])
    by_time = [
        message.definitions[series_id].is_system for message, each in pairs for series_id in each.series_ids.tolist()
    ]
    return pa.table(
        {
            **_writer_columns(messages, [each.row_count for each in rows]),
            "row": np.concatenate([np.arange(each.row_count, dtype=np.uint32) for each in rows]),
            "by_time": pa.array(np.repeat(np.array(by_time, bool), lengths)),
            "series_id": np.repeat(np.concatenate([each.series_ids for each in rows]), lengths),
            "step": np.concatenate([each.steps for each in rows]),
            "time_unix_us": np.concatenate([each.times_unix_us for each in rows]),
            "value": np.concatenate([each.values for each in rows]),
        }
    )


def line_block(messages: Sequence[Message]) -> pa.Table:
    """The rows of messages of lines."""
    parts = [message.rows.lines for message in messages if isinstance(message.rows, LineRows)]
    return pa.table(
        {
            **_writer_columns(messages, [message.rows.row_count for message in messages]),
            "number": pa.array([number for part in parts for number in part.numbers], pa.uint64()),
            "time_unix_us": pa.array([time for part in parts for time in part.times_unix_us], pa.int64()),
            "level": pa.array([level for part in parts for level in part.levels], pa.uint8()),
            "source": pa.array([source for part in parts for source in part.sources]).dictionary_encode(),
            "stream": pa.array([stream for part in parts for stream in part.streams], pa.uint8()),
            "continued": pa.array([flag for part in parts for flag in part.continued], pa.bool_()),
            "line": pa.array([text for part in parts for text in part.texts], pa.string()),
        }
    )


def _writer_columns(messages: Sequence[Message], lengths: Sequence[int]) -> dict[str, pa.Array]:
    job_uids = sorted({message.key.job_uid for message in messages})
    place = {job_uid: index for index, job_uid in enumerate(job_uids)}
    indexes = np.repeat(np.array([place[message.key.job_uid] for message in messages], np.int32), lengths)
    return {
        "job_uid": pa.DictionaryArray.from_arrays(pa.array(indexes), pa.array(job_uids)),
        "attempt": pa.array(np.repeat(np.array([message.key.attempt for message in messages], np.uint16), lengths)),
        "rank": pa.array(np.repeat(np.array([message.key.rank for message in messages], np.uint16), lengths)),
        "seq": pa.array(np.repeat(np.array([message.rows.sequence for message in messages], np.uint64), lengths)),
    }
