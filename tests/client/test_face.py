"""Both faces are one: the same methods with the same words. What they are for a type checker stands in typed_use.py."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest
import sihlai
from sihlai.scheduler.v1 import job_pb2

from services.client import job as on_job
from services.client.face import AsyncJobs, AsyncSeries, Jobs, Series

FACES = [(sihlai.Client, sihlai.AsyncClient), (sihlai.Job, sihlai.AsyncJob), (Jobs, AsyncJobs), (Series, AsyncSeries)]


def public(face: type) -> set[str]:
    return {name for name in dir(face) if not name.startswith("_")}


@pytest.mark.parametrize(("blocking", "awaiting"), FACES)
def test_both_faces_have_the_same_methods_with_the_same_words(blocking: type, awaiting: type) -> None:
    assert public(awaiting) <= public(blocking)
    assert public(blocking) - public(awaiting) <= {"curves", "frame"}, (
        "what is there without a wait is the scripts' alone"
    )
    for name in public(awaiting):
        ours, theirs = getattr(blocking, name), getattr(awaiting, name)
        assert inspect.getdoc(ours) == inspect.getdoc(theirs), name
        assert not callable(ours) or [*inspect.signature(ours).parameters] == [*inspect.signature(theirs).parameters]


def test_a_method_has_the_words_and_the_parameters_of_its_operation() -> None:
    with sihlai.connect("127.0.0.1:1") as client:
        assert client.job.__name__ == "got"
        assert client.job.__doc__ == on_job.got.__doc__
        assert list(inspect.signature(client.job).parameters) == ["name"]
        assert list(inspect.signature(client.submit).parameters)[:3] == ["place", "spec", "model"]
        job = sihlai.Job(client.driver, job_pb2.Job(name="projects/a/jobs/b"))
        assert list(inspect.signature(job.wait).parameters) == ["timeout"]
        assert repr(job) == "Job('a/b', unspecified)"


def test_programs_get_the_names_that_type_checkers_see() -> None:
    (for_checkers,) = (node for node in ast.parse(Path(sihlai.__file__).read_text()).body if isinstance(node, ast.If))
    imported = [node for node in for_checkers.body if isinstance(node, ast.ImportFrom)]
    assert sorted(alias.name for node in imported for alias in node.names) == sorted(sihlai.__all__)
    for name in sihlai.__all__:
        assert getattr(sihlai, name).__name__ == name
