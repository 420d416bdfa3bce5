import asyncio
import dataclasses
import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sihlai.logs.v1 import log_line_pb2

from runner.agent.telemetry import definition as definitions
from runner.agent.telemetry.definition import SeriesRefused, definition_of, series_id_of, unit_of
from runner.agent.telemetry.recorder import (
    LINES_A_BATCH_MAX,
    POINTS_A_BATCH_MAX,
    TEXT_CHARACTERS_MAX,
    TIME_UNIX_US_MAX,
    TIME_UNIX_US_MIN,
)
from runner.agent.telemetry.spool.attempt_spool import Spool
from runner.agent.telemetry.spool.disk import SpoolDisk
from runner.report import LINE_CHARACTERS_MAX
from services.metrics import config as metrics_config
from services.metrics import point as metrics_point
from services.metrics.wire import times as metrics_times
from tests.runner.agent.recording import KEY, LIMITS, Recording, Standstill, limits, until


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
    first.settle()
    second = Recording(tmp_path / "s")
    in_loop(lambda: log(second))
    assert [len(batch.new_series) for batch in second.point_batches] == [1, 0]
    assert [batch.sequence for batch in second.point_batches] == [1, 2]
    (definition,) = second.spool.series.values()
    assert (definition.name, dict(definition.context)) == ("train/loss", {"class": "a"})


def test_the_dictionary_of_series_loses_only_a_torn_tail(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "s")
    in_loop(lambda: recording.recorder.points({"a": 1.0, "b": 2.0}, step=1))
    in_loop(recording.recorder.flush)
    recording.settle()
    path = tmp_path / "s" / "series.records"
    path.write_bytes(path.read_bytes()[:-1])
    found = Spool.found(tmp_path / "s", SpoolDisk(LIMITS))
    assert [series.name for series in found.series.values()] == ["a"]


def test_lines_are_numbered_without_gaps_also_after_a_restart(tmp_path: Path) -> None:
    def log(recording: Recording, count: int) -> None:
        for index in range(count):
            recording.recorder.line(f"line {index}")
        recording.recorder.flush()

    first = Recording(tmp_path / "s")
    in_loop(lambda: log(first, LINES_A_BATCH_MAX + 5))
    first.settle()
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
    recording = Recording(tmp_path / "s", limits(bytes_max=40_000, segment_bytes_max=2_000))

    def fill() -> None:
        for index in range(200):
            recording.recorder.line(f"{index} " + "x" * 500)
            recording.recorder.flush()

    in_loop(fill)
    spool = recording.spool.lines
    kept = [text for text in recording.texts if text[0].isdigit()]
    assert kept == [f"{index} " + "x" * 500 for index in range(len(kept))]
    assert spool.rows_dropped == 200 - len(kept) > 0
    assert "lines are dropped from here on" in recording.texts[-1]
    assert spool.size_bytes <= 20_000

    def go_on() -> None:
        recording.disk.writing.post(lambda: spool.release(spool.last_sequence))
        recording.recorder.line("again")
        recording.recorder.flush()

    in_loop(go_on)
    said, *held, last = recording.texts[-9:]
    assert held == [f"{index} " + "x" * 500 for index in range(193, 200)]  # the newest were kept in memory
    assert said.startswith(f"{200 - len(kept) - 7} lines were dropped before this line, because lines holds")
    assert last == "again"
    assert spool.rows_dropped == 200 - len(kept) - 7
    assert spool.rows == len(kept) + 1 + 1 + 7 + 1


def test_a_full_spool_of_points_is_told_in_the_lines(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "s", limits(bytes_max=60_000, segment_bytes_max=2_000))

    def fill() -> None:
        for step in range(1_000):
            recording.recorder.points({"train/loss": 1.0}, step=step)
            recording.recorder.flush()

    in_loop(fill)
    stored = sum(len(column.values) for batch in recording.point_batches for column in batch.columns)
    assert recording.spool.points.rows_dropped == 1_000 - stored > 0
    assert ["points are dropped from here on" in text for text in recording.texts] == [True]


def test_the_last_lines_survive_a_full_spool_warnings_and_errors_first(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "s", limits(bytes_max=40_000, segment_bytes_max=2_000))

    def fill_and_fail() -> None:
        for index in range(100):
            recording.recorder.line(f"{index} " + "x" * 500)
            recording.recorder.flush()
        recording.recorder.line("RuntimeError: the cause", level=log_line_pb2.LOG_LEVEL_ERROR, source="trainer")
        for index in range(100, 200):
            recording.recorder.line(f"{index} " + "x" * 500)
            recording.recorder.flush()
        recording.recorder.line("the attempt ended: failed", level=log_line_pb2.LOG_LEVEL_ERROR)
        recording.recorder.close()

    in_loop(fill_and_fail)
    texts = recording.texts
    assert texts[-1] == "the attempt ended: failed"
    assert "RuntimeError: the cause" in texts
    assert f"199 {'x' * 500}" in texts
    number = texts.index(f"{next(text for text in texts if 'were dropped before this line' in text)}")
    told = int(texts[number].split()[0])
    assert recording.spool.lines.rows_dropped == told
    assert told + sum(text[0].isdigit() and text.endswith("x") for text in texts) == 200
    numbers = [batch.first_number + index for batch in recording.line_batches for index in range(len(batch.lines))]
    assert numbers == list(range(1, len(texts) + 1))
    assert recording.disk.space.used_bytes <= 40_000


def test_a_disk_that_stands_still_holds_up_nobody_and_what_finds_no_room_in_memory_is_counted(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "s", limits(waiting_bytes_max=20_000, stall_seconds_max=0.05))
    standstill = Standstill(recording.disk)

    async def go_on() -> None:
        for step in range(200):
            recording.recorder.points({"train/loss": 1.0}, step=step)
            recording.recorder.line(f"{step} " + "x" * 500)
            recording.recorder.flush()
            await recording.recorder.room()
        with pytest.raises(TimeoutError):
            await recording.recorder.written(0.05)

    asyncio.run(asyncio.wait_for(go_on(), 10))
    standstill.end()
    in_loop(recording.recorder.close)
    texts = recording.texts
    assert any("the disk stands still: lines are dropped from here on" in text for text in texts)
    assert texts[-1].startswith("199 ")
    order = [int(text.split()[0]) for text in texts if text.endswith("x")]
    assert order == sorted(order)
    lines_kept = len(order)
    assert recording.spool.lines.rows_dropped == 200 - lines_kept > 0
    points_kept = sum(len(column.values) for batch in recording.point_batches for column in batch.columns)
    assert recording.spool.points.rows_dropped == 200 - points_kept > 0


def test_who_can_wait_waits_for_a_slow_disk_and_then_nothing_is_dropped(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "s", limits(waiting_bytes_max=20_000))
    text = "x" * 10_000

    async def flood() -> None:
        for _ in range(200):
            recording.recorder.line(text)
            recording.recorder.flush()
            await recording.recorder.room()

    asyncio.run(flood())
    assert len(recording.texts) == 200
    assert recording.spool.lines.rows_dropped == 0


def test_what_does_not_fit_is_dropped_and_counted_with_one_line_a_kind(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "s")
    many = {str(key): "v" for key in range(definitions.CONTEXT_ENTRIES_MAX + 1)}

    def log() -> None:
        recorder = recording.recorder
        for _ in range(3):
            for name in ("", "x" * 257, "a\0b", "\udcff"):
                recorder.points({name: 1.0, "good": 2.0}, step=1)
            recorder.points({"context": 1.0}, step=1, context=many)
            recorder.points({"context": 1.0}, step=1, context={"k": "v" * 257})
            recorder.points({"step": 1.0}, step=2**63)
        recorder.flush()

    in_loop(log)
    (batch,) = recording.point_batches
    assert [(series.name, series.unit) for series in batch.new_series] == [("good", "")]
    assert list(batch.columns[0].values) == [2.0] * 12
    assert recording.spool.points.rows_dropped == 21
    assert sorted(text.split(": ")[1][:20] for text in recording.texts) == [
        "a context has at mos",
        "a series has a name,",
        "steps are whole numb",
    ]


def test_series_beyond_the_limit_are_dropped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(definitions, "SERIES_MAX", 30)
    recording = Recording(tmp_path / "s")

    def log() -> None:
        for _ in range(3):
            recording.recorder.points({f"series/{index}": 1.0 for index in range(40)}, step=1)
        recording.recorder.flush()

    in_loop(log)
    assert sum(len(column.values) for batch in recording.point_batches for column in batch.columns) == 90
    assert recording.spool.points.rows_dropped == 30
    assert len(recording.texts) == 1


def test_large_definitions_are_spread_over_batches(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "s")
    context = {f"{key:0256}": "ü" * 256 for key in range(16)}
    in_loop(lambda: [recording.recorder.points({f"{i}": 1.0}, step=1, context=context) for i in range(20)] and None)
    in_loop(recording.recorder.flush)
    assert sum(len(batch.new_series) for batch in recording.point_batches) == 20
    assert max(batch.ByteSize() for batch in recording.point_batches) < 2 * 2**16


@given(
    name=st.text(max_size=260) | st.sampled_from(["x" * 256, "x" * 257]),
    context=st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=18),
)
def test_what_is_recorded_and_what_metrics_takes_is_the_same(name: str, context: dict[str, str]) -> None:
    try:
        taken = definition_of("0197", name, context)
    except SeriesRefused:
        taken = None
    there = metrics_point.SeriesDefinition(
        series_id=metrics_point.series_id_of("0197", name, context.items()),
        name=name,
        context=tuple(sorted(context.items())),
        unit=unit_of(name),
    )
    assert (taken is None) == bool(metrics_point.definition_violations(there, job_uid="0197", field="f"))
    assert taken is None or taken.series_id == there.series_id


def test_the_limits_are_those_of_metrics() -> None:
    assert definitions.TEXT_CHARACTERS_MAX == metrics_point.NAME_CHARACTERS_MAX
    assert definitions.CONTEXT_ENTRIES_MAX == metrics_point.CONTEXT_ENTRIES_MAX
    defaults = {field.name: field.default for field in dataclasses.fields(metrics_config.Config)}
    assert defaults["series_per_writer_max"] == definitions.SERIES_MAX
    assert defaults["line_characters_max"] >= LINE_CHARACTERS_MAX
    assert max(POINTS_A_BATCH_MAX, LINES_A_BATCH_MAX) <= defaults["message_rows_max"]
    assert (TIME_UNIX_US_MIN, TIME_UNIX_US_MAX) == (metrics_times.TIME_UNIX_US_MIN, metrics_times.TIME_UNIX_US_MAX)


def test_a_line_is_kept_whatever_its_time_and_level_are(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "s")

    def log() -> None:
        recording.recorder.line("a", time_unix_us=2**63 - 1, level=99, source="s\udcff" * 100)
        recording.recorder.line("b", time_unix_us=-(2**80), level=2**40)
        recording.recorder.points({"x": 1.0}, step=1, time_unix_us=2**70)
        recording.recorder.flush()

    in_loop(log)
    (batch,) = recording.line_batches
    assert list(batch.lines) == ["a", "b"]
    assert list(batch.levels) == [0, 0]
    assert batch.times_unix_us[0] in range(1_000_000, 1_000_100)
    assert len(batch.sources[0]) == 64
    assert len(recording.point_batches) == 1


def test_an_immense_text_is_cut_and_says_so(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "s", limits(bytes_max=10**8, waiting_bytes_max=10**7))
    text = "\udcffü" * 50_000_000
    began = time.process_time()
    in_loop(lambda: recording.recorder.line(text))
    in_loop(recording.recorder.flush)
    assert time.process_time() - began < 1
    lines = recording.texts
    assert sum(map(len, lines[:-1])) == TEXT_CHARACTERS_MAX
    assert lines[-1] == f"({100_000_000 - TEXT_CHARACTERS_MAX} more characters were cut off here)"


def test_a_spool_that_was_closed_is_found_closed_and_whose_it_is(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "s")
    in_loop(lambda: recording.recorder.line("last"))
    in_loop(recording.recorder.close)
    recording.settle()
    found = Spool.found(tmp_path / "s", SpoolDisk(LIMITS))
    assert (found.closed, found.key, found.attempt, found.job) == (True, KEY, 2, "projects/p/jobs/j")
    found.delete()
    assert found.disk.space.used_bytes == 0
    assert not (tmp_path / "s").exists()
