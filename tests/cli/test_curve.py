"""Curves and sparklines."""

import io
import math

from rich.console import Console
from sihlai.metrics.v1.series_pb2 import BucketColumns, PointColumns

from services.cli.curve import Curve, chart, curve_from_buckets, curve_from_points, sparkline


def printed(renderable: object, *, width: int = 80) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(renderable)
    return file.getvalue()


def test_a_chart_names_its_curves_and_stays_within_its_width() -> None:
    curves = [
        Curve(label="digits/first", steps=[0.0, 1.0, 2.0], values=[3.0, 2.0, 1.0]),
        Curve(label="digits/second", steps=[0.0, 1.0, 2.0], values=[1.0, 1.0, 1.0]),
    ]
    text = printed(chart("train/loss", curves, width=60, height=8))
    assert "train/loss" in text
    assert "digits/first" in text
    assert "digits/second" in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 60


def test_a_chart_without_points_says_so() -> None:
    assert "no points yet" in printed(chart("train/loss", [], width=60))


def test_one_point_and_a_flat_line_can_be_drawn() -> None:
    flat = Curve(label="a", steps=[1.0, 2.0], values=[2.0, 2.0])
    assert printed(chart("a", [Curve(label="a", steps=[1.0], values=[2.0])], width=40))
    assert printed(chart("a", [flat], width=40))


def test_a_spike_within_a_bucket_stays_visible() -> None:
    buckets = BucketColumns(first_steps=[0, 10], last_steps=[9, 19], minimums=[1, 1], maximums=[1, 50])
    assert max(curve_from_buckets("a", buckets).values) == 50


def test_points_are_sorted_and_those_that_are_no_number_are_left_out() -> None:
    points = PointColumns(steps=[2, 1, 3], times_unix_us=[0, 0, 0], values=[2.0, 1.0, math.nan])
    curve = curve_from_points("a", points)
    assert (curve.steps, curve.values) == ([1.0, 2.0], [1.0, 2.0])


def test_a_sparkline_goes_from_low_to_high_with_blanks_for_what_is_no_number() -> None:
    assert sparkline([0.0, 7.0]) == "▁█"
    assert sparkline([0.0, math.nan, 7.0]) == "▁ █"
    assert sparkline([]) == ""
    assert len(sparkline([float(value) for value in range(1000)], 24)) == 24
