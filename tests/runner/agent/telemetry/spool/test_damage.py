"""A spool whose files were damaged while nobody looked, in any place."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.agent.telemetry.spool import writer_spool
from runner.agent.telemetry.spool.counts import SLOT_BYTES, SLOTS
from runner.agent.telemetry.spool.inventory import ROWS_SKIPPED, SEQUENCES_SKIPPED
from runner.agent.telemetry.spool.segment import HEAD, RECORD
from runner.agent.telemetry.spool.space import Space
from runner.agent.telemetry.spool.writer_spool import COUNTS_FILE, WriterSpool
from tests.runner.agent.recording import records_of

SEGMENT_BYTES_MAX = 300


def opened(folder: Path) -> WriterSpool:
    return WriterSpool(folder, space=Space(bytes_max=10**7, disk_free_bytes_min=0), segment_bytes_max=SEGMENT_BYTES_MAX)


@dataclass
class Damage:
    """What happens to the bytes from `start` to `end` of a file."""

    how: str
    start: int
    end: int

    def strike(self, path: Path) -> None:
        content = bytearray(path.read_bytes())
        match self.how:
            case "flip":
                content[self.start : self.end] = bytes(byte ^ 0xFF for byte in content[self.start : self.end])
            case "zero":
                content[self.start : self.end] = bytes(self.end - self.start)
            case "cut":
                del content[self.start :]
            case "delete":
                path.unlink()
                return
        path.write_bytes(content)


@st.composite
def damages(draw: st.DrawFn, size_bytes: int) -> Damage:
    how = draw(st.sampled_from(["flip", "zero", "cut", "delete"]))
    start = draw(st.integers(0, size_bytes - 1))
    return Damage(how, 0 if how == "delete" else start, draw(st.integers(start + 1, size_bytes)))


@given(data=st.data(), bodies=st.lists(st.binary(min_size=1, max_size=90), min_size=1, max_size=30))
@settings(max_examples=300, deadline=None)
def test_damage_anywhere_loses_only_what_lies_behind_it_in_its_segment_and_all_of_that_is_counted(
    data: st.DataObject, bodies: list[bytes]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spool = opened(folder)
        for number, body in enumerate(bodies, start=1):
            assert spool.append(b"\xaa" + body, rows=number) == number
        struck = data.draw(st.sampled_from(sorted(folder.glob("*.segment"))))
        content = struck.read_bytes()
        damage = data.draw(damages(len(content)))
        damage.strike(struck)
        position, lost = HEAD.size, []
        for sequence in range(int(struck.stem), len(bodies) + 1):
            if position >= len(content):
                break
            end = position + RECORD.size + 1 + len(bodies[sequence - 1])
            touched = damage.how in ("cut", "delete") or content[position:end] != struck.read_bytes()[position:end]
            if lost or (end > damage.start and touched):
                lost.append(sequence)
            position = end

        again = opened(folder)
        assert [(record.sequence, record.body[1:]) for record in records_of(again)] == [
            (number, body) for number, body in enumerate(bodies, start=1) if number not in lost
        ]
        assert again.rows_dropped == sum(lost)
        assert again.rows == sum(range(len(bodies) + 1))
        assert again.append(b"next", rows=1) == len(bodies) + 1
        once_more = opened(folder)
        assert once_more.rows_dropped == sum(lost)
        assert records_of(once_more)[-1][::2] == (len(bodies) + 1, b"next")


@given(data=st.data(), count=st.integers(1, 30))
@settings(max_examples=200, deadline=None)
def test_with_the_counts_gone_too_no_number_is_used_twice_and_what_is_whole_is_kept(
    data: st.DataObject, count: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spool = opened(folder)
        for _ in range(count):
            spool.append(b"x" * 40, rows=3)
        counts = folder / COUNTS_FILE
        data.draw(st.sampled_from([Damage("zero", 0, SLOT_BYTES * SLOTS), Damage("delete", 0, 0)])).strike(counts)
        struck = data.draw(st.sampled_from([None, *sorted(folder.glob("*.segment"))]))
        if struck is not None:
            ends = st.integers(HEAD.size, struck.stat().st_size - 1).map(lambda each: each - (each - HEAD.size) % 60)
            between = ends.map(lambda end: Damage("cut", end, end + 1))  # two records: what is left looks whole
            damage = data.draw(between | damages(struck.stat().st_size).filter(lambda each: each.how != "delete"))
            damage.strike(struck)
        again = opened(folder)
        found = [record.sequence for record in records_of(again)]
        assert len(found) >= (count if struck is None else count - SEGMENT_BYTES_MAX // (RECORD.size + 40))
        assert again.append(b"next", rows=1) > count
        assert again.rows > 3 * count
        assert again.rows_dropped <= 3 * count


@given(data=st.data(), count=st.integers(1, 30))
@settings(max_examples=100, deadline=None)
def test_with_counts_and_any_of_the_segments_gone_no_number_is_used_twice_and_the_next_opening_tells_of_a_gap(
    data: st.DataObject, count: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spool = opened(folder)
        for _ in range(count):
            spool.append(b"x" * 40, rows=3)
        (folder / COUNTS_FILE).unlink()
        segments = sorted(folder.glob("*.segment"))
        for gone in data.draw(st.sets(st.sampled_from(segments))):
            gone.unlink()
        again = WriterSpool(
            folder, space=Space(bytes_max=10**7, disk_free_bytes_min=0), segment_bytes_max=300, begun=True
        )
        found = [record.sequence for record in records_of(again)]
        assert again.last_sequence > count  # also where nothing is appended any more, an end behind it tells of a gap
        assert again.rows >= 3 * count
        assert again.append(b"next", rows=1) > count
        assert [record.sequence for record in records_of(again)][:-1] == found


def test_a_slot_of_the_counts_that_was_torn_leaves_the_other(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    spool.append(b"x", rows=5)
    spool.drop(7)
    spool.drop(1)
    counts = tmp_path / COUNTS_FILE
    content = counts.read_bytes()
    for slot in range(SLOTS):
        Damage("zero", slot * SLOT_BYTES, (slot + 1) * SLOT_BYTES).strike(counts)
        again = opened(tmp_path)
        assert again.rows_dropped in (7, 8)
        assert again.next_numbers() == (2, 6)
        counts.write_bytes(content)


def test_after_a_loss_of_power_numbers_go_on_far_behind_those_that_may_have_been_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = opened(tmp_path)
    spool.append(b"x", rows=5)
    monkeypatch.setattr(writer_spool, "this_boot", lambda: 1)
    again = opened(tmp_path)
    assert again.last_sequence == 1  # nothing is left out before there is something to number
    assert again.next_numbers() == (2 + SEQUENCES_SKIPPED, 6 + ROWS_SKIPPED)
    assert again.append(b"y", rows=1) == 2 + SEQUENCES_SKIPPED
    assert [record.sequence for record in records_of(opened(tmp_path))] == [1, 2 + SEQUENCES_SKIPPED]
    assert opened(tmp_path).append(b"z", rows=1) == 3 + SEQUENCES_SKIPPED


def test_rows_that_were_stored_before_their_segment_was_lost_are_not_counted_as_dropped(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    for _ in range(30):
        spool.append(b"x" * 40, rows=1)
    spool.release(30)
    for segment in tmp_path.glob("*.segment"):
        segment.unlink()
    again = opened(tmp_path)
    assert (again.rows_dropped, again.append(b"y", rows=1)) == (0, 31)


def test_damage_that_a_reader_finds_is_counted_and_the_writer_goes_on_in_a_new_segment(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    for number in range(1, 4):
        spool.append(b"x" * 40, rows=number)
    Damage("flip", HEAD.size + RECORD.size + 41, HEAD.size + RECORD.size + 42).strike(next(tmp_path.glob("*.segment")))
    reader_found = records_of(spool)
    assert [record.sequence for record in reader_found] == [1]
    segment = spool.segment_after(0)
    assert segment is not None
    assert spool.cut_damage(segment) == 5
    assert spool.append(b"next", rows=1) == 4
    assert (spool.rows_dropped, spool.rows) == (5, 7)
    assert [record.sequence for record in records_of(spool)] == [1, 4]
    assert [record.sequence for record in records_of(opened(tmp_path))] == [1, 4]
    assert opened(tmp_path).rows_dropped == 5
