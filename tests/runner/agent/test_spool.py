import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runner.agent.spool import HEAD, RECORD, Record, SpoolFull, SpoolReader, WriterSpool


def opened(folder: Path, *, bytes_max: int = 1_000_000, segment_bytes_max: int = 200) -> WriterSpool:
    return WriterSpool(folder, bytes_max=bytes_max, segment_bytes_max=segment_bytes_max)


def records_of(spool: WriterSpool, *, after: int = 0) -> list[Record]:
    reader = SpoolReader(spool, after=after)
    found = []
    while (record := reader.read()) is not None:
        found.append(record)
    reader.close()
    return found


def test_what_is_appended_is_read_back_in_order_after_a_restart(tmp_path: Path) -> None:
    spool = opened(tmp_path / "w")
    bodies = [f"record {i}".encode() for i in range(50)]
    for body in bodies:
        spool.append(body, rows=2)
    again = opened(tmp_path / "w")
    assert records_of(again) == [Record(i + 1, 2, body) for i, body in enumerate(bodies)]
    assert (again.next_sequence, again.rows) == (51, 100)


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
        assert survivor.append(b"next", rows=1) == kept + 1
        assert [record.body for record in records_of(opened(torn))] == [*bodies[:kept], b"next"]
        shutil.rmtree(torn)


def test_a_head_that_was_torn_off_loses_nothing_of_the_segments_before(tmp_path: Path) -> None:
    spool = opened(tmp_path / "w", segment_bytes_max=100)
    for i in range(6):
        spool.append(b"x" * 40, rows=i)
    newest = max((tmp_path / "w").glob("*.segment"))
    os.truncate(newest, HEAD.size - 1)
    again = opened(tmp_path / "w")
    assert [record.sequence for record in records_of(again)] == list(range(1, again.next_sequence))


@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_a_flipped_bit_is_never_read_as_a_record(position: int, bit: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        spool = opened(Path(folder), segment_bytes_max=10_000)
        bodies = [bytes([i]) * 20 for i in range(10)]
        for body in bodies:
            spool.append(body, rows=1)
        segment = next(Path(folder).glob("*.segment"))
        content = bytearray(segment.read_bytes())
        content[position % len(content)] ^= 1 << bit
        segment.write_bytes(content)
        found = [record.body for record in records_of(opened(Path(folder)))]
        assert found == bodies[: len(found)]


def test_segments_are_let_go_only_when_all_in_them_is_stored(tmp_path: Path) -> None:
    spool = opened(tmp_path / "w", segment_bytes_max=100)
    for _ in range(10):
        spool.append(b"x" * 40, rows=1)
    before = spool.size_bytes
    spool.release(5)
    assert [record.sequence for record in records_of(spool, after=5)] == [6, 7, 8, 9, 10]
    assert spool.size_bytes < before
    assert spool.first_sequence == 6
    spool.release(10)
    assert len(list((tmp_path / "w").glob("*.segment"))) == 1


def test_sequence_and_row_numbers_go_on_when_everything_was_let_go_before_the_restart(tmp_path: Path) -> None:
    spool = opened(tmp_path / "w", segment_bytes_max=100)
    for _ in range(10):
        spool.append(b"x" * 40, rows=3)
        spool.release(spool.next_sequence - 1)
    again = opened(tmp_path / "w", segment_bytes_max=100)
    assert (again.next_sequence, again.rows) == (11, 30)


def test_a_full_spool_refuses_and_takes_again_after_something_was_let_go(tmp_path: Path) -> None:
    spool = opened(tmp_path / "w", bytes_max=600, segment_bytes_max=150)
    while spool.size_bytes + RECORD.size + 40 <= 600:
        spool.append(b"x" * 40, rows=1)
    with pytest.raises(SpoolFull):
        spool.append(b"x" * 40, rows=1)
    held = spool.next_sequence - 1
    assert [record.sequence for record in records_of(spool)] == list(range(1, held + 1))
    assert spool.size_bytes <= 600
    spool.release(held)
    assert spool.append(b"y", rows=1) == held + 1


def test_how_many_rows_were_dropped_is_known_after_a_restart(tmp_path: Path) -> None:
    spool = opened(tmp_path / "w")
    spool.append(b"x", rows=1)
    spool.rows_dropped += 7
    spool.close()
    again = opened(tmp_path / "w")
    assert again.rows_dropped == 7
    assert [record.body for record in records_of(again)] == [b"x"]


def test_a_reader_goes_on_with_what_is_appended_later(tmp_path: Path) -> None:
    spool = opened(tmp_path / "w", segment_bytes_max=100)
    reader = SpoolReader(spool, after=0)
    seen = []
    for i in range(20):
        spool.append(bytes([i]) * 30, rows=1)
        record = reader.read()
        assert record is not None
        seen.append(record.sequence)
        assert reader.read() is None
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
    assert again.first_sequence == sequences[0] > 1


class SpoolMachine(RuleBasedStateMachine):
    """Appends, acknowledgements, restarts and torn tails in any order, held against a list."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.spool = opened(self.folder, bytes_max=4_000, segment_bytes_max=150)
        self.model: dict[int, bytes] = {}
        self.stored = 0

    @rule(body=st.binary(max_size=80))
    def append(self, body: bytes) -> None:
        wanted = self.spool.next_sequence
        try:
            assert self.spool.append(body, rows=1) == wanted
            self.model[wanted] = body
        except SpoolFull:
            assert self.spool.next_sequence == wanted

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        self.stored = max(self.stored, data.draw(st.integers(0, self.spool.next_sequence - 1)))
        self.spool.release(self.stored)

    @rule()
    def restart(self) -> None:
        self.spool = opened(self.folder, bytes_max=4_000, segment_bytes_max=150)
        self.spool.release(self.stored)

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
        assert self.spool.next_sequence == len(self.model) + 1

    def teardown(self) -> None:
        shutil.rmtree(self.folder)


SpoolMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestSpoolMachine = SpoolMachine.TestCase
