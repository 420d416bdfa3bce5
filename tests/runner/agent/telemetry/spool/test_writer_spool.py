import contextlib
import errno
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runner.agent.telemetry.spool.reader import SpoolReader
from runner.agent.telemetry.spool.segment import HEAD, RECORD, Record
from runner.agent.telemetry.spool.space import Space, SpoolFull
from runner.agent.telemetry.spool.writer_spool import WriterSpool
from tests.runner.agent.recording import records_of


def opened(folder: Path, *, bytes_max: int = 1_000_000, segment_bytes_max: int = 200) -> WriterSpool:
    space = Space(bytes_max=bytes_max, disk_free_bytes_min=0)
    return WriterSpool(folder, space=space, segment_bytes_max=segment_bytes_max)


def fill(spool: WriterSpool) -> None:
    """Append until the spool takes no more."""
    with contextlib.suppress(SpoolFull):
        while spool.append(b"x" * 40, rows=1) < 100:
            pass
    with pytest.raises(SpoolFull, match="of its share of"):
        spool.append(b"x" * 40, rows=1)


def test_what_is_appended_is_read_back_in_order_after_a_restart(tmp_path: Path) -> None:
    spool = opened(tmp_path / "w")
    bodies = [f"record {i}".encode() for i in range(50)]
    for body in bodies:
        spool.append(body, rows=2)
    again = opened(tmp_path / "w")
    assert records_of(again) == [Record(i + 1, 2, body) for i, body in enumerate(bodies)]
    assert (again.next_numbers()[0], again.rows) == (51, 100)


def test_a_torn_tail_is_cut_at_the_last_whole_record_wherever_it_was_torn(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    spool = opened(whole, segment_bytes_max=10_000)
    bodies = [b"a" * 10, b"", b"c" * 30]
    ends = [HEAD.size]
    for body in bodies:
        spool.append(body, rows=1)
        ends.append(ends[-1] + RECORD.size + len(body))
    content = next(whole.glob("*.segment")).read_bytes()
    assert len(content) == ends[-1]
    for cut in range(HEAD.size, len(content) + 1):
        torn = tmp_path / f"torn-{cut}"
        torn.mkdir()
        (torn / "00000000000000000001.segment").write_bytes(content[:cut])
        survivor = opened(torn)
        kept = sum(end <= cut for end in ends[1:])
        assert [record.body for record in records_of(survivor)] == bodies[:kept]
        number = survivor.append(b"next", rows=1)
        assert number > len(bodies), "without the counts nobody knows that nothing was behind it"
        assert [record.body for record in records_of(opened(torn))] == [*bodies[:kept], b"next"]
        shutil.rmtree(torn)


def test_a_head_that_was_torn_off_loses_nothing_of_the_segments_before(tmp_path: Path) -> None:
    spool = opened(tmp_path / "w", segment_bytes_max=100)
    for i in range(6):
        spool.append(b"x" * 40, rows=i)
    newest = max((tmp_path / "w").glob("*.segment"))
    os.truncate(newest, HEAD.size - 1)
    again = opened(tmp_path / "w")
    assert [record.sequence for record in records_of(again)] == [1, 2, 3, 4, 5]
    assert (again.next_numbers()[0], again.rows_dropped) == (7, 5)


def test_segments_are_let_go_only_when_all_in_them_is_stored(tmp_path: Path) -> None:
    spool = opened(tmp_path / "w", segment_bytes_max=100)
    for _ in range(10):
        spool.append(b"x" * 40, rows=1)
    before = spool.size_bytes
    spool.release(5)
    assert [record.sequence for record in records_of(spool, after=5)] == [6, 7, 8, 9, 10]
    assert spool.size_bytes < before
    assert spool.first_after(5) == 6
    spool.release(10)
    assert len(list((tmp_path / "w").glob("*.segment"))) == 1


def test_sequence_and_row_numbers_go_on_when_everything_was_let_go_before_the_restart(tmp_path: Path) -> None:
    spool = opened(tmp_path / "w", segment_bytes_max=100)
    for _ in range(10):
        spool.append(b"x" * 40, rows=3)
        spool.release(spool.next_numbers()[0] - 1)
    again = opened(tmp_path / "w", segment_bytes_max=100)
    assert (again.next_numbers()[0], again.rows) == (11, 30)


def test_a_full_spool_refuses_and_takes_again_after_something_was_let_go(tmp_path: Path) -> None:
    spool = opened(tmp_path / "w", bytes_max=1_200, segment_bytes_max=150)
    fill(spool)
    held = spool.next_numbers()[0] - 1
    assert [record.sequence for record in records_of(spool)] == list(range(1, held + 1))
    assert 500 <= spool.size_bytes <= 600
    spool.release(held)
    assert spool.append(b"y", rows=1) == held + 1


def test_what_is_urgent_may_take_all_that_is_left(tmp_path: Path) -> None:
    spool = opened(tmp_path / "w", bytes_max=1_200)
    fill(spool)
    spool.append(b"x" * 400, rows=1, urgent=True)
    with pytest.raises(SpoolFull, match="the spools hold"):
        spool.append(b"x" * 400, rows=1, urgent=True)


def test_how_many_rows_were_dropped_is_known_after_a_restart(tmp_path: Path) -> None:
    spool = opened(tmp_path / "w")
    spool.append(b"x", rows=1)
    spool.drop(7)
    again = opened(tmp_path / "w")  # nobody closed it
    assert again.rows_dropped == 7
    assert [record.body for record in records_of(again)] == [b"x"]


def test_a_reader_goes_on_with_what_is_appended_later(tmp_path: Path) -> None:
    spool = opened(tmp_path / "w", segment_bytes_max=100)
    reader = SpoolReader(spool, after=0)
    seen = []
    for i in range(20):
        spool.append(bytes([i]) * 30, rows=1)
        (record,) = reader.read()
        seen.append(record.sequence)
        assert reader.read() == []
        spool.release(i)
    assert seen == list(range(1, 21))


def test_behind_a_damaged_segment_the_first_sequence_tells_of_the_gap(tmp_path: Path) -> None:
    spool = opened(tmp_path / "w", segment_bytes_max=100)
    for _ in range(6):
        spool.append(b"x" * 40, rows=1)
    first = min((tmp_path / "w").glob("*.segment"))
    os.truncate(first, HEAD.size)
    again = opened(tmp_path / "w", segment_bytes_max=100)
    sequences = [record.sequence for record in records_of(again)]
    assert sequences[-1] == 6
    assert again.first_after(0) == sequences[0] > 1
    assert again.rows_dropped == sequences[0] - 1


class SpoolMachine(RuleBasedStateMachine):
    """Appends, acknowledgements, restarts and torn tails in any order, held against a list."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.spool = opened(self.folder, bytes_max=8_000, segment_bytes_max=150)
        self.model: dict[int, bytes] = {}
        self.stored = 0

    @rule(body=st.binary(max_size=80))
    def append(self, body: bytes) -> None:
        wanted = self.spool.next_numbers()[0]
        try:
            assert self.spool.append(body, rows=1) == wanted
            self.model[wanted] = body
        except SpoolFull:
            assert self.spool.next_numbers()[0] == wanted

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        self.stored = max(self.stored, data.draw(st.integers(0, self.spool.next_numbers()[0] - 1)))
        self.spool.release(self.stored)

    @rule()
    def restart(self) -> None:
        self.spool = opened(self.folder, bytes_max=8_000, segment_bytes_max=150)
        self.spool.release(self.stored)

    @precondition(lambda self: self.model)
    @rule(garbage=st.binary(min_size=1, max_size=30))
    def tear(self, garbage: bytes) -> None:
        newest = max(self.folder.glob("*.segment"))
        with newest.open("ab") as file:
            file.write(garbage)
        self.restart()

    @invariant()
    def nothing_that_is_not_stored_is_lost_or_changed(self) -> None:
        found = {record.sequence: record.body for record in records_of(self.spool, after=self.stored)}
        assert found == {sequence: body for sequence, body in self.model.items() if sequence > self.stored}
        assert self.spool.next_numbers()[0] == len(self.model) + 1

    def teardown(self) -> None:
        shutil.rmtree(self.folder)


def test_an_open_that_fails_in_a_rotation_closes_nothing_twice_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = opened(tmp_path / "w", segment_bytes_max=100)
    spool.append(b"x" * 50, rows=1)
    really_open, closed = os.open, []
    really_close = os.close

    def fail(path: Path, *arguments: int) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    def close(descriptor: int) -> None:
        closed.append(descriptor)
        really_close(descriptor)

    monkeypatch.setattr(os, "open", fail)
    monkeypatch.setattr(os, "close", close)
    for _ in range(3):
        with pytest.raises(SpoolFull, match="too many open files"):
            spool.append(b"y" * 50, rows=1)
    assert closed == []
    monkeypatch.setattr(os, "open", really_open)
    stranger = os.open(tmp_path / "stranger", os.O_RDWR | os.O_CREAT)  # gets the number of whatever was closed
    assert spool.append(b"z" * 50, rows=1) == 2
    spool.close()
    assert os.fstat(stranger).st_size == 0
    really_close(stranger)
    assert [record.body[:1] for record in records_of(opened(tmp_path / "w"))] == [b"x", b"z"]


def test_a_descriptor_that_fails_begins_a_new_segment_and_what_is_torn_hides_nothing(tmp_path: Path) -> None:
    spool = opened(tmp_path / "w", segment_bytes_max=10_000)
    spool.append(b"x" * 50, rows=1)
    os.close(spool._file)  # the disk takes neither the record nor the cut
    spool._file = os.open(next((tmp_path / "w").glob("*.segment")), os.O_RDONLY)
    with pytest.raises(SpoolFull, match="cannot be written"):
        spool.append(b"y" * 50, rows=1)
    with next((tmp_path / "w").glob("*.segment")).open("ab") as file:
        file.write(b"torn")
    assert spool.append(b"z" * 50, rows=1) == 2
    assert [record.body[:1] for record in records_of(spool)] == [b"x", b"z"]
    again = opened(tmp_path / "w", segment_bytes_max=10_000)
    assert [record.body[:1] for record in records_of(again)] == [b"x", b"z"]


def test_every_writer_may_take_half_of_what_the_others_leave(tmp_path: Path) -> None:
    space = Space(bytes_max=100_000, disk_free_bytes_min=0)
    sizes = []
    for number in range(4):
        spool = WriterSpool(tmp_path / str(number), space=space, segment_bytes_max=1_000)
        with contextlib.suppress(SpoolFull):
            while True:
                spool.append(b"x" * 40, rows=1)
        sizes.append(spool.size_bytes)
    assert [round(size / 1_000) for size in sizes] == [50, 25, 12, 6]
    assert space.used_bytes == sum(sizes)


def test_with_too_little_free_disk_a_spool_is_full(tmp_path: Path) -> None:
    space = Space(bytes_max=100_000, disk_free_bytes_min=2**62)
    spool = WriterSpool(tmp_path / "w", space=space, segment_bytes_max=1_000)
    with pytest.raises(SpoolFull, match="the disk has less than"):
        spool.append(b"x", rows=1)
    assert spool.append(b"x", rows=1, urgent=True) == 1


def test_what_was_set_aside_takes_a_record_when_nothing_else_does_and_is_found_again(tmp_path: Path) -> None:
    spool = opened(tmp_path / "w", bytes_max=4_000)
    assert spool.reserve(500)
    fill(spool)
    again = opened(tmp_path / "w", bytes_max=4_000)  # an agent was killed
    assert again.reserve(500)
    held = again.append_reserved(b"r" * 500, rows=9)
    with pytest.raises(SpoolFull, match="0 bytes were set aside"):
        again.append_reserved(b"r", rows=1)
    again.close()
    records = records_of(opened(tmp_path / "w", bytes_max=4_000))
    assert [record.sequence for record in records] == list(range(1, held + 1))
    assert (records[-1].rows, records[-1].body) == (9, b"r" * 500)


SpoolMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestSpoolMachine = SpoolMachine.TestCase
