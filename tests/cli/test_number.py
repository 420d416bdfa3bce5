"""A number, a while or a time that cannot be is one sentence and exit code 2, whatever command it was typed for."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from sihlai.scheduler.v1 import job_pb2
from typer.testing import CliRunner

from services.chassis.endpoints import Endpoints
from services.cli.commands import app
from services.client.face import Client, Job
from services.client.specification import SpecificationError

HUGE = "99999999999999999999"
DIGITS = "9" * 5_000
"""More than Python reads as a number."""
FLOATS = ("nan", "inf", "-inf", "1e300", "-1")
INTEGERS = (HUGE, f"-{HUGE}", "1e300", "nan", DIGITS)
TIMES = (
    "99999999999999d",
    f"{DIGITS}s",
    "0001-01-01",
    "9999-12-31T23:59-23:00",
    "2026-13-45",
    "nan",
    "-1d",
    "10000-01-01",
)
SUBMIT = "job submit digits --dry-run"
TYPED = {
    "job stop a/b --grace": FLOATS,
    "job wait a/b --timeout": FLOATS,
    "token create ada --days": FLOATS,
    "top --seconds": (*FLOATS, "0"),
    "logs a/b --since": TIMES,
    "job list --since": TIMES,
    "logs a/b --tail": (*INTEGERS, "0", "-1"),
    "logs a/b --rank": (*INTEGERS, "-1"),
    "logs a/b --attempt": (*INTEGERS, "0"),
    "job list --limit": ("1e300", "nan", "0", "-1", DIGITS),
    "metrics show a/b --buckets": (*INTEGERS, "0", "-1"),
    "metrics compare a/b a/c --buckets": (*INTEGERS, "0", "-1"),
    "job samples a/b --images": (*INTEGERS, "0"),
    "dataset validate x --findings": (*INTEGERS, "-1"),
    "dataset preview x --images": (*INTEGERS, "-1"),
    "dataset images x --limit": ("1e300", "nan", "0", "-1", DIGITS),
    "dataset images x --split training --share": (*FLOATS, "1.5"),
    "dataset images x --split training --seed": INTEGERS,
    "dataset convert x object-detection --min-size": FLOATS,
    "dataset convert x object-detection --margin": FLOATS,
    "dataset convert x object-detection --min-pixels": (*INTEGERS, "0"),
    f"{SUBMIT} --iterations": INTEGERS,
    f"{SUBMIT} --batch-size": INTEGERS,
    f"{SUBMIT} --validations": INTEGERS,
    f"{SUBMIT} --seed": INTEGERS,
    f"{SUBMIT} --priority": INTEGERS,
    f"{SUBMIT} --learning-rate": ("nan", "inf", "-inf"),
    f"{SUBMIT} --resolution": (*INTEGERS, "-1", "0x", "1e3"),
    "up --runners": (*INTEGERS, "-1"),
}
ASSIGNED = [
    *(f"trainer.batch_size={number}" for number in INTEGERS),
    *(f"trainer.seed={number}" for number in INTEGERS),
    *(f"trainer.adamw.learning_rate={number}" for number in ("nan", "inf", "1e999")),
    f'trainer={{"batch_size": {HUGE}}}',
    'trainer={"batch_size": 1e300}',
    'trainer={"batch_size": NaN}',
    f"model.heads[{HUGE}].task=multiclass-classification",
    f"model.heads.{DIGITS}.task=multiclass-classification",
    "model.heads[²].task=multiclass-classification",
    f"model={'[' * 100_000}",
    'display_name="a"b"',
    'display_name="\\ud800"',
]


def told(words: list[str], tmp_path: Path) -> None:
    """It is one error, in words for a person."""
    (tmp_path / "x").mkdir(exist_ok=True)
    environ = {"SIHLAI_DATA": str(tmp_path), "SIHLAI_SCHEDULER_ADDRESS": "127.0.0.1:1", "HOME": str(tmp_path)}
    done = CliRunner().invoke(app, words, obj=environ)
    assert done.exit_code == 2, (done.output[-2_000:], done.exception)
    assert "Traceback" not in done.output
    assert "rror" in done.output


@pytest.mark.parametrize(("typed", "text"), [(typed, text) for typed, texts in TYPED.items() for text in texts])
def test_a_number_that_cannot_be_is_a_sentence(typed: str, text: str, tmp_path: Path) -> None:
    told([*typed.split()[:-1], f"{typed.split()[-1]}={text}"], tmp_path)


@pytest.mark.parametrize("assignment", ASSIGNED, ids=lambda text: text[:40])
def test_an_assignment_that_cannot_be_is_a_sentence(assignment: str, tmp_path: Path) -> None:
    told(["job", "submit", "digits", "--dry-run", "--set", assignment], tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        f"trainer: {{batch_size: {HUGE}}}",
        f"trainer: {{batch_size: {DIGITS}}}",
        "trainer: {batch_size: .inf}",
        "trainer: {batch_size: .nan}",
        "trainer: {batch_size: 1e300}",
        "display_name: 2026-13-45",
        "display_name: 2026-12-31",
        "priority: 190:20:30.15",
        "[" * 100_000,
        "labels: {a: 1}",
    ],
    ids=lambda text: text[:40],
)
def test_a_specification_with_a_number_or_time_that_cannot_be_is_a_sentence(text: str, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(text)
    told(["job", "submit", "digits", str(spec), "--dry-run"], tmp_path)


Call = Callable[[Client, Job, Any], object]
NAN, BIG = float("nan"), 10**30
LAST = datetime(9999, 12, 31, 23, 59, tzinfo=timezone(timedelta(hours=-12)))
CALLS: dict[str, tuple[Call, tuple[Any, ...]]] = {
    "grace": (lambda _, job, bad: job.stop(grace=bad), (*map(float, FLOATS), BIG)),
    "wait": (lambda _, job, bad: job.wait(timeout=bad), (NAN,)),
    "log for": (lambda _, job, bad: list(job.log(timeout=bad)), (NAN,)),
    "tail": (lambda _, job, bad: list(job.log(tail=bad)), (0, -1, BIG)),
    "log since": (lambda _, job, bad: list(job.log(since=bad)), (LAST,)),
    "jobs since": (lambda client, _, bad: client.jobs(since=bad), (LAST,)),
    "limit": (lambda client, _, bad: client.jobs(limit=bad), (0, -1)),
    "priority": (lambda client, _, bad: client.submit("a", priority=bad), (BIG, -BIG)),
    "submit": (lambda client, _, bad: client.submit("a", trainer={"batch_size": bad}), (BIG, NAN, float("inf"), 1e300)),
    "resume": (lambda _, job, bad: job.resume(trainer={"iterations_max": bad}), (BIG,)),
    "buckets": (lambda _, job, bad: job.series("x").buckets(bad), (0, -1, BIG)),
    "findings": (lambda client, _, bad: client.dataset("x").validate(findings_max=bad), (-1, BIG)),
    "share": (lambda client, _, bad: client.dataset("x").images(split="training", share=bad), (-1, 1.5, NAN)),
    "seed": (lambda client, _, bad: client.dataset("x").images(split="training", seed=bad), (BIG, -BIG)),
    "side": (lambda client, _, bad: client.dataset("x").images(thumbnail_side=bad), (-1, BIG)),
    "images": (lambda client, _, bad: client.dataset("x").images(limit=bad), (0, -1)),
}


@pytest.mark.parametrize(("what", "bad"), [(what, bad) for what, (_, several) in CALLS.items() for bad in several])
def test_a_number_that_a_program_gives_and_that_cannot_be_is_an_error_of_ours(what: str, bad: Any) -> None:
    with Client(Endpoints(given=dict.fromkeys(("scheduler", "metrics", "conversion"), "127.0.0.1:1"))) as client:
        job = Job(client.driver, job_pb2.Job(name="projects/a/jobs/b"))
        with pytest.raises(SpecificationError):
            CALLS[what][0](client, job, bad)
