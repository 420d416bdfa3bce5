"""The log: one JSON object a line, ids of the context on every line, libraries' lines alike, no local variables."""

import io
import json
import logging

import pytest

from services.chassis import log as logs


@pytest.fixture
def stream():
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    yield io.StringIO()
    root.handlers[:], root.level = before


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_event_and_its_fields_are_one_json_object(stream):
    logs.configure("example", format="json", level="info", stream=stream)
    logs.get_logger("x").info("job_claimed", job="projects/a/jobs/b", attempt=2)
    (line,) = lines(stream)
    assert line["event"] == "job_claimed"
    assert (line["job"], line["attempt"], line["level"], line["service"]) == ("projects/a/jobs/b", 2, "info", "example")
    assert line["timestamp"].endswith("Z")


def test_bound_ids_stand_on_our_lines_and_on_libraries_lines(stream):
    logs.configure("example", format="json", stream=stream)
    with logs.bound_contextvars(request_id="r-1", trace_id="t-1"):
        logs.get_logger("x").info("ours")
        logging.getLogger("library").warning("theirs %d", 7)
    logs.get_logger("x").info("after")
    ours, theirs, after = lines(stream)
    assert (ours["request_id"], theirs["request_id"], theirs["trace_id"]) == ("r-1", "r-1", "t-1")
    assert (theirs["event"], theirs["service"]) == ("theirs 7", "example")
    assert "request_id" not in after


def test_lines_below_the_level_are_not_written(stream):
    logs.configure("example", format="json", level="warning", stream=stream)
    logs.get_logger("x").info("quiet")
    logs.get_logger("x").warning("loud")
    assert [line["event"] for line in lines(stream)] == ["loud"]


@pytest.mark.parametrize("form", ["json", "console"])
def test_traceback_shows_no_local_variables(stream, form):
    logs.configure("example", format=form, stream=stream)
    secret = "do-not-show-" + "me"
    try:
        raise ValueError(len(secret))
    except ValueError:
        logs.get_logger("x").exception("failed")
    assert "ValueError" in stream.getvalue()
    assert secret not in stream.getvalue()


def test_auto_means_json_where_there_is_no_terminal(stream):
    logs.configure("example", format="auto", stream=stream)
    logs.get_logger("x").info("plain")
    assert lines(stream)[0]["event"] == "plain"


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_value_makes_a_line_of_megabytes(stream, form):
    logs.configure("example", format=form, stream=stream)
    large = "x" * 5_000_000
    log = logs.get_logger("x")
    log.info("refused", message=large, names=[large] * 1_000, by={large: large}, nested=[[[[[large]]]]], data=b"y" * 9)
    logging.getLogger("library").warning("theirs %s", large)
    try:
        raise ValueError(large)
    except ValueError as error:
        log.error("crashed", exc_info=error)
        log.warning("failed", problem=error)
    written = stream.getvalue().splitlines()
    assert max(map(len, written)) < 40_000
    if form == "json":
        refused, theirs, crashed, failed = (json.loads(line) for line in written)
        assert refused["message"].endswith("… (5000000 characters)")
        assert (len(refused["names"]), refused["names"][-1]) == (9, "… 992 more")
        assert refused["data"] == "(9 bytes)"
        assert len(theirs["event"]) < 3_000
        assert crashed["exception"].startswith("Traceback")
        assert len(crashed["exception"]) < 17_000
        assert len(failed["problem"]) < 3_000
