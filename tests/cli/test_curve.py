"""Curves and sparklines."""

import io
import math

from rich.console import Console
from sihlai.metrics.v1.metrics_service_pb2 import SERIES_AXIS_RELATIVE_TIME, SERIES_AXIS_TIME, SeriesData
from sihlai.metrics.v1.series_pb2 import BucketColumns, PointColumns

from services.cli.view.curve import (
    Chart,
    Curve,
    curve_from_buckets,
    curve_from_points,
    curve_from_series,
    sparkline,
    time_origin,
)


def printed(renderable: object, *, width: int = 80) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(renderable)
    return file.getvalue()


def test_a_chart_names_its_curves_and_stays_within_its_width() -> None:
    curves = [
        Curve(label="digits/first", steps=[0.0, 1.0, 2.0], values=[3.0, 2.0, 1.0]),
        Curve(label="digits/second", steps=[0.0, 1.0, 2.0], values=[1.0, 1.0, 1.0]),
    ]
    text = printed(Chart(title="train/loss", curves=curves, width=60, height=8))
    assert "train/loss" in text
    assert "digits/first" in text
    assert "digits/second" in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 60


def test_curves_without_colours_differ_by_their_marks_and_ascii_is_enough_to_draw_them() -> None:
    curves = [Curve(label=name, steps=[0.0, 1.0], values=[value, 1.0]) for name, value in (("a", 3.0), ("b", 2.0))]
    plain = printed(Chart(title="loss", curves=curves))
    assert "** a" in plain
    assert "++ b" in plain
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Console(file=file, width=60).print(Chart(title="loss", curves=curves[:1]))
    file.flush()
    assert "****" in file.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]


def test_a_chart_without_points_says_so() -> None:
    assert "no points yet" in printed(Chart(title="train/loss", curves=[]))


def test_one_point_and_a_flat_line_can_be_drawn() -> None:
    flat = Curve(label="a", steps=[1.0, 2.0], values=[2.0, 2.0])
    assert printed(Chart(title="a", curves=[Curve(label="a", steps=[1.0], values=[2.0])]))
    assert printed(Chart(title="a", curves=[flat]))


def test_a_spike_within_a_bucket_stays_visible() -> None:
    buckets = BucketColumns(axis_firsts=[0, 10], axis_lasts=[9, 19], minimums=[1, 1], maximums=[1, 50])
    assert max(curve_from_buckets("a", buckets).values) == 50


def test_curves_over_time_begin_where_the_first_of_their_chart_does() -> None:
    series = [
        SeriesData(
            axis=SERIES_AXIS_TIME,
            buckets=BucketColumns(axis_firsts=[first], axis_lasts=[first], minimums=[1], maximums=[1], counts=[1]),
        )
        for first in (1_700_000_000_000_000, 1_700_000_005_000_000)
    ]
    origin = time_origin(series)
    assert [curve_from_series("a", each, origin=origin).steps for each in series] == [[0.0], [5.0]]
    relative = SeriesData(axis=SERIES_AXIS_RELATIVE_TIME, buckets=series[0].buckets)
    relative.buckets.axis_firsts[0] = relative.buckets.axis_lasts[0] = 2_000_000
    assert curve_from_series("a", relative, origin=time_origin([relative])).steps == [2.0]


def test_points_are_sorted_and_those_that_are_no_number_are_left_out() -> None:
    points = PointColumns(steps=[2, 1, 3], times_unix_us=[0, 0, 0], values=[2.0, 1.0, math.nan])
    curve = curve_from_points("a", points)
    assert (curve.steps, curve.values) == ([1.0, 2.0], [1.0, 2.0])


def test_a_sparkline_goes_from_low_to_high_with_blanks_for_what_is_no_number() -> None:
    assert sparkline([0.0, 7.0]) == "▁█"
    assert sparkline([0.0, math.nan, 7.0]) == "▁ █"
    assert sparkline([]) == ""
    assert len(sparkline([float(value) for value in range(1000)], 24)) == 24
