from hypothesis import given
from hypothesis import strategies as st
from sihlai.logs.v1 import log_line_pb2
from sihlai.metrics.v1 import ingest_service_pb2 as ingest

from runner.agent.telemetry.last_lines import CHARACTERS_MAX, LastLines, batch_of


def batch(*lines: tuple[str, log_line_pb2.LogLevel.ValueType]) -> ingest.LineBatch:
    count = len(lines)
    return ingest.LineBatch(
        times_unix_us=[1] * count,
        levels=[level for _, level in lines],
        sources=["trainer"] * count,
        streams=[log_line_pb2.LOG_STREAM_STDERR] * count,
        lines=[text for text, _ in lines],
        continued=[False] * count,
    )


@given(
    st.lists(st.tuples(st.text(alphabet="aü\N{SNOWMAN}", max_size=300), st.sampled_from([0, 2, 3, 4])), max_size=60),
    st.integers(1_000, 8_000),
)
def test_the_newest_stay_in_order_within_the_limit_and_warnings_stay_longest(
    lines: list[tuple[str, log_line_pb2.LogLevel.ValueType]], bytes_max: int
) -> None:
    held = LastLines(bytes_max)
    for line in lines:
        held.add(batch(line))
    kept = held.take()
    assert [line.order for line in kept] == sorted(line.order for line in kept)
    assert batch_of(kept).ByteSize() <= bytes_max
    for grave in (True, False):
        of_kind = [order for order, (_, level) in enumerate(lines, start=1) if (level >= 3) == grave]
        kept_of_kind = [line.order for line in kept if (line.level >= 3) == grave]
        assert kept_of_kind == of_kind[len(of_kind) - len(kept_of_kind) :]
    if len(kept) < len(lines):
        assert sum(line.size_bytes for line in kept) > bytes_max - 2 * (CHARACTERS_MAX + 100)


def test_what_is_put_back_comes_before_what_is_added_later() -> None:
    held, later = LastLines(10_000), LastLines(10_000)
    held.add(batch(("a", 2), ("b", 4)))
    held.put_back(held.take())
    later.add(batch(("c", 4), ("d", 2)))
    held.add_all(later.take())
    assert [line.text for line in held.take()] == ["a", "b", "c", "d"]
