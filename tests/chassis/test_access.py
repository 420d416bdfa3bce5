"""The one table: every call of every service stands in it, and what it names in requests is there."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from sihlai.scheduler.v1 import job_service_pb2, project_service_pb2

from services.chassis.auth.access import ACCESS, rule_of
from services.chassis.auth.principal import ANY_RUNNER, Principal, Role
from services.chassis.errors import PermissionDenied

PROTOS = Path(__file__).resolve().parents[2] / "protos"
REFLECTION = "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
JOBS = "/sihlai.scheduler.v1.JobService"
PROJECTS = "/sihlai.scheduler.v1.ProjectService"


def methods() -> Iterator[MethodDescriptor]:
    for source in sorted((PROTOS / "sihlai").rglob("*.proto")):
        module = ".".join(source.relative_to(PROTOS).with_suffix("").parts) + "_pb2"
        for service in importlib.import_module(module).DESCRIPTOR.services_by_name.values():
            yield from service.methods


METHODS = {f"{method.containing_service.full_name}/{method.name}": method for method in methods()}


def test_every_call_stands_in_the_table_and_no_other() -> None:
    assert set(ACCESS) == {*METHODS, REFLECTION}


@pytest.mark.parametrize("name", METHODS)
def test_what_a_rule_reads_is_in_the_request(name: str) -> None:
    rule, method = ACCESS[name], METHODS[name]
    paths = [*rule.on, *rule.also, *([rule.runner] if isinstance(rule.runner, str) else [])]
    for path in paths:
        assert field_of(method.input_type, path).type == FieldDescriptor.TYPE_STRING
    # The messages of a stream of requests are looked at by nobody but the servicer.
    assert not (paths and method.client_streaming)


def field_of(message: Descriptor, path: str) -> FieldDescriptor:
    first, _, rest = path.partition(".")
    found = message.fields_by_name[first]
    return field_of(found.message_type, rest) if rest else found


NAMES_A_JOB_OR_PROJECT = {"job", "jobs", "parent", "names", "project"}


@pytest.mark.parametrize("name", METHODS)
def test_a_user_is_asked_for_a_role_wherever_a_request_names_a_project_or_a_job(name: str) -> None:
    rule, message = ACCESS[name], METHODS[name].input_type
    named = NAMES_A_JOB_OR_PROJECT & set(message.fields_by_name)
    if named and rule.role is not None:
        assert {path.partition(".")[0].removesuffix("_id") for path in rule.on} & named


def user(roles: dict[str, Role] | None = None, *, is_admin: bool = False) -> Principal:
    return Principal(subject="users/ada", roles=roles or {}, is_admin=is_admin)


def allowed(principal: Principal, method: str, request: object) -> bool:
    rule = rule_of(method)
    try:
        rule.admit(principal, method)
        rule.check(principal, method, request)
    except PermissionDenied:
        return False
    return True


def test_a_role_holds_in_its_project_alone_and_holds_the_lower_ones() -> None:
    submit = job_service_pb2.SubmitJobRequest(parent="projects/cells")
    get = job_service_pb2.GetJobRequest(name="projects/cells/jobs/first")
    for role in Role:
        holder = user({"projects/cells": role})
        assert allowed(holder, f"{JOBS}/GetJob", get)
        assert allowed(holder, f"{JOBS}/SubmitJob", submit) == (role >= Role.EDITOR)
        assert not allowed(user({"projects/other": role}), f"{JOBS}/GetJob", get)
        assert allowed(user({"projects/-": role}), f"{JOBS}/GetJob", get)
    assert allowed(user(is_admin=True), f"{JOBS}/SubmitJob", submit)


@pytest.mark.parametrize(
    "name",
    ["projects/-", "projects/Cells", "projects/cells2/jobs/a", "projects//jobs/a", "cells", "", "projects/cells\n"],
)
def test_a_name_that_is_none_in_the_project_needs_the_role_in_all(name: str) -> None:
    request = job_service_pb2.GetJobRequest(name=name)
    assert not allowed(user({"projects/cells": Role.ADMIN}), f"{JOBS}/GetJob", request)
    assert allowed(user({"projects/-": Role.VIEWER}), f"{JOBS}/GetJob", request)


def test_each_of_many_names_is_looked_at() -> None:
    names = ["projects/cells/jobs/a", "projects/other/jobs/b"]
    request = job_service_pb2.BatchGetJobsRequest(names=names)
    assert not allowed(user({"projects/cells": Role.ADMIN}), f"{JOBS}/BatchGetJobs", request)
    both = user({"projects/cells": Role.VIEWER, "projects/other": Role.VIEWER})
    assert allowed(both, f"{JOBS}/BatchGetJobs", request)


def test_a_job_begins_from_another_projects_model_only_for_who_may_see_that() -> None:
    request = job_service_pb2.SubmitJobRequest(parent="projects/cells")
    request.spec.model.initialization.checkpoint.checkpoint = "projects/other/jobs/a/checkpoints/best"
    editor = {"projects/cells": Role.EDITOR}
    assert not allowed(user(editor), f"{JOBS}/SubmitJob", request)
    assert allowed(user({**editor, "projects/other": Role.VIEWER}), f"{JOBS}/SubmitJob", request)


def test_a_new_project_is_for_who_is_its_admin_already_or_of_all() -> None:
    named = project_service_pb2.CreateProjectRequest(project_id="cells")
    unnamed = project_service_pb2.CreateProjectRequest()
    admin = user({"projects/cells": Role.ADMIN})
    assert allowed(admin, f"{PROJECTS}/CreateProject", named)
    assert not allowed(admin, f"{PROJECTS}/CreateProject", unnamed)
    assert allowed(user({"projects/-": Role.ADMIN}), f"{PROJECTS}/CreateProject", unnamed)


def test_a_refusal_says_what_is_missing_and_not_whether_anything_is_there() -> None:
    request = job_service_pb2.GetJobRequest(name="projects/secret/jobs/first")
    with pytest.raises(PermissionDenied) as caught:
        rule_of(f"{JOBS}/GetJob").check(user(), f"{JOBS}/GetJob", request)
    assert caught.value.message == "users/ada may not call GetJob: it needs the role viewer in projects/secret"


def test_runners_and_services_have_no_rights_of_users() -> None:
    runner, service = Principal(subject="runners/one"), Principal(subject="services/metrics")
    get = job_service_pb2.GetJobRequest(name="projects/cells/jobs/first")
    assert not allowed(runner, f"{JOBS}/GetJob", get)
    assert allowed(service, f"{JOBS}/GetJob", get)
    assert not allowed(service, f"{JOBS}/SubmitJob", job_service_pb2.SubmitJobRequest(parent="projects/cells"))
    assert not allowed(Principal(subject=ANY_RUNNER, is_admin=True), f"{JOBS}/GetJob", get)
