"""A project whose dataset lies in a bucket, with every process real."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import grpc
import pytest
from sihlai.scheduler.v1 import job_pb2, project_service_pb2, project_service_pb2_grpc

from services.cli.machine.supervisor import Stack, StackConfig
from tests.object_server import Bucket
from tests.system.client import Client


def test_a_job_learns_from_a_bucket_and_no_log_shows_its_key(
    digits: Path, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a key that no process has of its own. A job of a project whose key is wrong is refused at once."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    bucket.upload(digits)
    right, wrong = bucket.source(), bucket.source(key=bucket.server.stranger)
    config = StackConfig(data=tmp_path, allowed_endpoint_hosts=("127.0.0.1",), device="cpu")
    with Stack(config, environ=os.environ) as stack:
        client = Client(stack=stack, digits=digits)
        projects = project_service_pb2_grpc.ProjectServiceStub(client.channel("scheduler"))
        answers, projects_by_id = list[str](), dict[str, str]()
        for project_id, source in (("right", right), ("wrong", wrong)):
            request = project_service_pb2.CreateProjectRequest(
                project=project_service_pb2.Project(training_dataset=source),
                project_id=project_id,
                request_id=str(uuid.uuid4()),
            )
            project = projects.CreateProject(request, timeout=10).project
            assert project.training_dataset.credentials_stored
            answers.append(str(project))
            projects_by_id[project_id] = project.name
        job = client.wait_ended(client.submit(projects_by_id["right"], iterations_max=2, validations=1).name)
        assert job.state == job_pb2.JOB_STATE_COMPLETED, job
        with pytest.raises(grpc.RpcError, match="check the credentials and what they may do") as refused:
            client.submit(projects_by_id["wrong"], iterations_max=2, validations=1)
        answers += [str(job), str(refused.value)]
        assert stack.stop() == ()
    logs = "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*.log"))
    assert "server_started" in logs
    for key in (bucket.server.reader, bucket.server.stranger):
        for secret in (key.access_key_id, key.secret_access_key):
            assert secret not in logs + "".join(answers)
            assert not [
                path for path in tmp_path.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()
            ], "at rest it is sealed"
