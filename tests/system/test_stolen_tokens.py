"""An attempt's token against another attempt: with a real runner that trains, and one that means harm."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import grpc
import pytest
from sihlai.metrics.v1 import ingest_service_pb2, ingest_service_pb2_grpc
from sihlai.runner.v1 import runner_service_pb2, runner_service_pb2_grpc
from sihlai.scheduler.v1 import job_pb2

from services.chassis.auth.keys import TokenSigner
from services.chassis.auth.principal import Role
from services.chassis.auth.write_token import WriteToken
from services.chassis.errors import PermissionDenied, Reason
from services.chassis.rpc import error_from_rpc
from services.cli.machine.supervisor import Stack
from tests.metrics.client import IngestClient, Refused, columns, definition, reason_of
from tests.system.client import Client, assert_steps_whole, until
from tests.tokens import carrying, token

LONG = 100_000
THIEF, VICTIM = "runners/thief", "runners/local-1"
SECONDS = 30.0


class Thief:
    """A runner with a token of its own, which has got an attempt of its own."""

    def __init__(self, stack: Stack) -> None:
        self.text = token(stack.folder.token_key, THIEF)
        self._channel = channel(stack, "scheduler", self.text)
        self._sequence = 0

    def synchronize(self, *, runner: str = THIEF, **said: object) -> runner_service_pb2.SynchronizeResponse:
        self._sequence += 1
        request = runner_service_pb2.SynchronizeRequest(
            runner=runner,
            session="thief",
            sequence=self._sequence,
            protocol_version=1,
            capabilities={"tasks": ["TASK_MULTICLASS_CLASSIFICATION"], "software_version": "1.2.3"},
            **said,
        )
        return runner_service_pb2_grpc.RunnerServiceStub(self._channel).Synchronize(request, timeout=SECONDS)

    def own_attempt(self) -> tuple[runner_service_pb2.Assignment, str]:
        """What it is given, and the attempt's token."""

        def given() -> tuple[runner_service_pb2.Assignment, str] | None:
            answer = self.synchronize(idle={})
            found = answer.run.HasField("assignment")
            return (answer.run.assignment, answer.write_tokens[0].token) if found else None

        return until(given)


def channel(stack: Stack, service: str, text: str) -> grpc.Channel:
    options = [("grpc.enable_http_proxy", 0)]
    return carrying(grpc.insecure_channel(stack.address(service), options=options), text)


def ingest_as(stack: Stack, text: str) -> IngestClient:
    return IngestClient(SimpleNamespace(channel=lambda of_runner: channel(stack, "metrics", text)))


def refusal(ingest: IngestClient, writer: int, text: str) -> Refused:
    with pytest.raises(Refused) as caught:
        ingest.open(writer, text)
    return caught.value


def test_an_attempts_token_is_of_no_use_for_another_attempt(stack: Stack, client: Client) -> None:
    name = client.submit(client.create_project("victim"), iterations_max=LONG, validations=1).name
    job = client.wait_for(name, lambda job: job.progress.iteration > 0)
    (attempt,) = job.attempts
    assert attempt.runner == VICTIM
    # What the victim's agent holds in its memory, to the letter.
    stolen = TokenSigner.from_file(stack.folder.token_key).sign(
        WriteToken(
            project="victim",
            job_uid=job.uid,
            attempt=attempt.number,
            epoch=attempt.epoch,
            from_step=attempt.from_step,
            expires_at=datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=30),
            runner=VICTIM,
        )
    )
    thief = Thief(stack)
    thief.synchronize(idle={})
    own_job = client.submit(client.create_project("thiefs"), iterations_max=LONG, validations=1).name
    assignment, own = thief.own_attempt()

    # Points and lines: neither opened nor renewed with it, nor given by anybody who is no runner.
    ingest = ingest_as(stack, thief.text)
    assert "write token is of runners/local-1" in str(refusal(ingest, 1, stolen))
    series = definition(assignment.job_uid, "train/loss")
    assert ingest.open(2, own, series=[series]) == 0
    ingest.renew(2, stolen)
    assert reason_of(ingest.wait_refusal(2)) is Reason.PERMISSION_DENIED
    editor = token(stack.folder.token_key, "users/editor", roles={"projects/victim": Role.ADMIN})
    with channel(stack, "metrics", editor) as opened:
        opening = ingest_service_pb2.OpenWriter(token=stolen, protocol_version=1, first_sequence=1)
        requests = iter([ingest_service_pb2.IngestRequest(writer=1, open=opening)])
        with pytest.raises(grpc.RpcError) as caught:
            list(ingest_service_pb2_grpc.IngestServiceStub(opened).Ingest(requests, timeout=SECONDS))
        assert isinstance(error_from_rpc(caught.value), PermissionDenied)

    # States and checkpoints: neither in its own name, nor in the other's.
    key = {"job_uid": job.uid, "attempt": attempt.number, "epoch": attempt.epoch}
    checkpoint = {
        "uri": f"{assignment.checkpoint_uri}/9",
        "epoch": attempt.epoch,
        "iteration": 9,
        "files": [{"name": "model.safetensors", "size_bytes": 5, "sha256": "00"}],
    }
    closed = [{**key, "outcome": "ATTEMPT_OUTCOME_COMPLETED", "checkpoints": [checkpoint]}]
    mine = {"job_uid": assignment.job_uid, "attempt": assignment.attempt, "epoch": assignment.epoch}
    thief.synchronize(active={**mine, "phase": "ATTEMPT_PHASE_TRAINING"}, closed=closed)
    with pytest.raises(grpc.RpcError) as caught:
        thief.synchronize(runner=VICTIM, idle={}, closed=closed)
    assert error_from_rpc(caught.value).reason is Reason.PERMISSION_DENIED

    # Nothing of it was noticed where the model trains.
    before = client.job(name)
    assert (before.state, before.HasField("last_checkpoint")) == (job_pb2.JOB_STATE_RUNNING, False)
    client.wait_for(name, lambda job: job.progress.iteration > before.progress.iteration)
    client.stop(name)
    ended = client.wait_ended(name)
    assert (ended.state, len(ended.attempts)) == (job_pb2.JOB_STATE_STOPPED, 1)
    steps = ended.last_checkpoint.iteration
    assert steps > 9
    until(lambda: True if len(client.points(name, "train/loss").steps) == steps else None)
    assert_steps_whole(client, name, 1, steps)

    # Once its attempt has said its last the token writes nothing more, not even for its own runner.
    after = ingest_as(stack, stack.folder.token_of("runner-local-1").read_text().strip())
    stored = after.open(1, stolen)
    assert after.finished[1]
    after.stored.clear()
    after.points(1, stored + 1, columns(job.uid, "train/loss", [steps + 1], [0.0]))
    after.wait(lambda: 1 in after.stored, "an answer")
    assert after.stored[1] == stored
    assert_steps_whole(client, name, 1, steps)
    client.stop(own_job)
    thief.synchronize(idle={}, closed=[{**mine, "outcome": "ATTEMPT_OUTCOME_STOPPED"}])
    client.wait_ended(own_job)
