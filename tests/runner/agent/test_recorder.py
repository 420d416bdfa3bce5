import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sihlai.logs.v1 import log_line_pb2

from runner.agent.recorder import GAP_RESERVE_BYTES, LINES_A_BATCH_MAX, POINTS_A_BATCH_MAX, Spool, series_id_of, unit_of
from runner.report import LINE_CHARACTERS_MAX
from tests.runner.agent.recording import KEY, LIMITS, Recording, until


def in_loop(work: Callable[[], None]) -> None:
    async def run() -> None:
        work()

    asyncio.run(run())


def test_a_series_id_is_what_the_proto_defines() -> None:
    text = b"0197\0digits/valid/precision\0class\0seven\0split\0valid\0"
    expected = int.from_bytes(hashlib.sha256(text).digest()[:8], "little")
    assert series_id_of("0197", "digits/valid/precision", {"split": "valid", "class": "seven"}) == expected


@pytest.mark.parametrize(
    ("name", "unit"), [("system/step_seconds", "s"), ("system/gpu_memory_bytes", "bytes"), ("train/loss", "")]
)
def test_a_unit_is_read_off_the_name(name: str, unit: str) -> None:
    assert unit_of(name) == unit


def test_points_are_gathered_and_written_by_the_time_that_is_allowed(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "s")

    async def log() -> None:
        for step in range(1, 11):
            recording.recorder.points({"train/loss": 1 / step, "a/train/loss": 0.5}, step=step)
        assert recording.appends == 0
        await until(lambda: recording.appends == 1)

    asyncio.run(log())
    (batch,) = recording.point_batches
    assert batch.sequence == 1
    assert [series.name for series in batch.new_series] == ["train/loss", "a/train/loss"]
    assert list(batch.columns[0].steps) == list(range(1, 11))
    assert list(batch.columns[1].values) == [0.5] * 10


def test_enough_points_are_written_at_once_and_a_huge_report_is_cut_into_batches(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "s")
    many = {f"series/{index}": float(index) for index in range(2 * POINTS_A_BATCH_MAX + 10)}
    in_loop(lambda: recording.recorder.points(many, step=1))
    batches = recording.point_batches
    assert [sum(len(column.values) for column in batch.columns) for batch in batches] == [2000, 2000, 10][
        : len(batches)
    ]
    assert [batch.sequence for batch in batches] == list(range(1, len(batches) + 1))
    assert len(batches) >= 2


def test_series_are_sent_once_and_known_again_after_a_restart(tmp_path: Path) -> None:
    def log(recording: Recording) -> None:
        recording.recorder.points({"train/loss": 1.0}, step=1, context={"class": "a"})
        recording.recorder.flush()

    first = Recording(tmp_path / "s")
    in_loop(lambda: log(first))
    second = Recording(tmp_path / "s")
    in_loop(lambda: log(second))
    assert [len(batch.new_series) for batch in second.point_batches] == [1, 0]
    assert [batch.sequence for batch in second.point_batches] == [1, 2]
    (definition,) = second.spool.series.values()
    assert (definition.name, dict(definition.context)) == ("train/loss", {"class": "a"})


def test_the_dictionary_of_series_loses_only_a_torn_tail(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "s")
    in_loop(lambda: recording.recorder.points({"a": 1.0, "b": 2.0}, step=1))
    path = tmp_path / "s" / "series.records"
    path.write_bytes(path.read_bytes()[:-1])
    found = Spool.found(tmp_path / "s", LIMITS)
    assert [series.name for series in found.series.values()] == ["a"]


def test_lines_are_numbered_without_gaps_also_after_a_restart(tmp_path: Path) -> None:
    def log(recording: Recording, count: int) -> None:
        for index in range(count):
            recording.recorder.line(f"line {index}")
        recording.recorder.flush()

    in_loop(lambda: log(Recording(tmp_path / "s"), LINES_A_BATCH_MAX + 5))
    again = Recording(tmp_path / "s")
    in_loop(lambda: log(again, 2))
    batches = again.line_batches
    assert [(batch.first_number, len(batch.lines)) for batch in batches] == [(1, 200), (201, 5), (206, 2)]


def test_a_long_line_is_split_and_the_parts_say_that_they_go_on(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "s")

    def log() -> None:
        recording.recorder.line("x" * (LINE_CHARACTERS_MAX + 1), source="trainer", level=log_line_pb2.LOG_LEVEL_ERROR)
        recording.recorder.flush()

    in_loop(log)
    (batch,) = recording.line_batches
    assert [len(line) for line in batch.lines] == [LINE_CHARACTERS_MAX, 1]
    assert list(batch.continued) == [True, False]


def test_text_that_is_no_unicode_is_replaced_and_not_refused(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "s")

    def log() -> None:
        recording.recorder.line("bad \udcff path")
        recording.recorder.flush()

    in_loop(log)
    assert recording.texts == ["bad ? path"]


def test_a_full_spool_drops_and_counts_and_the_log_tells_of_the_gap(tmp_path: Path) -> None:
    limits = replace(LIMITS, bytes_max=20_000, segment_bytes_max=2_000)
    recording = Recording(tmp_path / "s", limits)

    def fill() -> None:
        for index in range(200):
            recording.recorder.line(f"{index} " + "x" * 500)
            recording.recorder.flush()

    in_loop(fill)
    spool = recording.spool.lines
    kept = [text for text in recording.texts if text[0].isdigit()]
    assert kept == [f"{index} " + "x" * 500 for index in range(len(kept))]
    assert spool.rows_dropped == 200 - len(kept) > 0
    assert "the spool is full" in recording.texts[-1]
    assert spool.size_bytes <= 20_000

    def go_on() -> None:
        spool.release(spool.next_sequence - 1)
        recording.recorder.line("again")
        recording.recorder.flush()

    in_loop(go_on)
    assert recording.texts[-2:] == [
        "again",
        f"{200 - len(kept)} lines were dropped before this line, because the spool was full",
    ]
    assert spool.rows == len(kept) + 3
    assert GAP_RESERVE_BYTES < 20_000


def test_a_full_spool_of_points_is_told_in_the_lines(tmp_path: Path) -> None:
    limits = replace(LIMITS, bytes_max=20_000, segment_bytes_max=2_000)
    recording = Recording(tmp_path / "s", limits)

    def fill() -> None:
        for step in range(1_000):
            recording.recorder.points({"train/loss": 1.0}, step=step)
            recording.recorder.flush()

    in_loop(fill)
    stored = sum(len(column.values) for batch in recording.point_batches for column in batch.columns)
    assert recording.spool.points.rows_dropped == 1_000 - stored > 0
    assert ["points are dropped from here on" in text for text in recording.texts] == [True]


def test_a_spool_that_was_closed_is_found_closed_and_whose_it_is(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "s")
    in_loop(lambda: recording.recorder.line("last"))
    in_loop(recording.recorder.close)
    found = Spool.found(tmp_path / "s", LIMITS)
    assert (found.closed, found.key, found.attempt, found.job) == (True, KEY, 2, "projects/p/jobs/j")
    found.delete()
    assert not (tmp_path / "s").exists()
