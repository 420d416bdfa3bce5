"""Points as a live stream brings them."""

from sihlai.metrics.v1.metrics_service_pb2 import LivePoints, MetricsEnded, WatchMetricsResponse
from sihlai.metrics.v1.series_pb2 import PointColumns, SeriesDefinition
from sihlai.scheduler.v1 import job_pb2

from services.cli.view.live_series import LiveSeries

LOSS = SeriesDefinition(series_id=1, name="train/loss")
MEMORY = SeriesDefinition(series_id=2, name="system/memory_bytes")


def answer(series: SeriesDefinition, steps: list[int], *, attempt: int = 1, from_step: int = 0) -> WatchMetricsResponse:
    columns = PointColumns(
        series_id=series.series_id, steps=steps, times_unix_us=steps, values=[float(s) for s in steps]
    )
    return WatchMetricsResponse(
        points=LivePoints(new_series=[series], columns=[columns], attempt=attempt, from_step=from_step)
    )


def test_points_of_an_earlier_attempt_that_were_taken_again_do_not_count() -> None:
    live = LiveSeries()
    live.add(answer(LOSS, [1, 2, 3, 4]))
    live.add(answer(LOSS, [3, 4, 5], attempt=2, from_step=3))
    assert [step for step, _ in live.points("train/loss")] == [1, 2, 3, 4, 5]


def test_system_metrics_go_by_time_and_all_count() -> None:
    live = LiveSeries()
    live.add(answer(MEMORY, [4]))
    live.add(answer(MEMORY, [3], attempt=2, from_step=3))
    assert [step for step, _ in live.points("system/memory_bytes")] == [3, 4]


def test_an_attempt_that_has_sent_system_metrics_alone_hides_nothing() -> None:
    live = LiveSeries()
    live.add(answer(LOSS, [1, 2, 3, 4]))
    live.add(answer(MEMORY, [0], attempt=2, from_step=0))
    assert [step for step, _ in live.points("train/loss")] == [1, 2, 3, 4]
    live.add(answer(LOSS, [1], attempt=2, from_step=0))
    assert [step for step, _ in live.points("train/loss")] == [1]


def test_a_doubled_point_is_seen_twice() -> None:
    live = LiveSeries()
    live.add(answer(LOSS, [1, 1]))
    assert len(live.points("train/loss")) == 2


def test_the_end_tells_the_state_and_whether_all_points_came() -> None:
    live = LiveSeries()
    live.add(WatchMetricsResponse(ended=MetricsEnded(state=job_pb2.JOB_STATE_STOPPED, points_complete=True)))
    assert (live.state, live.complete) == (job_pb2.JOB_STATE_STOPPED, True)
