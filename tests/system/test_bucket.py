"""A project whose dataset lies in a bucket, with every process real; and that no secret is left anywhere afterwards."""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

import grpc
import jwt
import nats
import pytest
import yaml
from sihlai.auth.v1 import token_service_pb2, token_service_pb2_grpc
from sihlai.conversion.v1 import conversion_service_pb2, conversion_service_pb2_grpc
from sihlai.scheduler.v1 import job_pb2, project_service_pb2, project_service_pb2_grpc

from services.cli.machine.folder import DataFolder
from services.cli.machine.supervisor import Stack, StackConfig
from tests.object_server import Bucket
from tests.oidc_issuer import AUDIENCE, Issuer
from tests.system.client import Client
from tests.system.conftest import UNHURRIED
from tests.tokens import carrying

JWT = re.compile(rb"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*")
TOKENS = {"sihlai", "sihlai-write"}
"""Audiences of what opens a door; a statement of one key about the next one opens none."""


def test_a_job_learns_from_a_bucket_and_no_secret_is_left_where_it_does_not_belong(
    digits: Path, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a key that no process has of its own. A job of a project whose key is wrong is refused at once."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    bucket.upload(digits)
    right, wrong = bucket.source(), bucket.source(key=bucket.server.stranger)
    secrets = [part for key in (bucket.server.reader, bucket.server.stranger) for part in parts_of(key)]
    with Issuer() as issuer:
        oidc_file = tmp_path / "oidc.yaml"
        roles = [{"claim": "groups", "value": "vision", "installation": "admin"}]
        oidc_file.write_text(yaml.safe_dump({"issuer": issuer.url, "audience": AUDIENCE, "roles": roles}))
        config = StackConfig(
            data=tmp_path / "data",
            allowed_endpoint_hosts=("127.0.0.1",),
            device="cpu",
            oidc_file=oidc_file,
            **UNHURRIED,
        )
        folder = DataFolder(root=config.data)
        with Stack(config, environ=os.environ) as stack:
            secrets += [path.read_text().strip() for path in (folder.root / "tokens").iterdir()]
            secrets += [folder.token.read_text().strip(), folder.nats_credentials.read_text().split()[1]]
            secrets += [folder.credentials_key.read_text().strip()]
            client = Client(stack=stack, digits=digits)
            projects = project_service_pb2_grpc.ProjectServiceStub(client.channel("scheduler"))
            answers, projects_by_id = list[str](), dict[str, str]()
            for project_id, source in (("right", right), ("wrong", wrong)):
                request = project_service_pb2.CreateProjectRequest(
                    project=project_service_pb2.Project(training_dataset=source),
                    project_id=project_id,
                    request_id=str(uuid.uuid4()),
                )
                project = projects.CreateProject(request, timeout=60).project
                assert project.training_dataset.credentials_stored
                answers.append(str(project))
                projects_by_id[project_id] = project.name
            job = client.wait_ended(client.submit(projects_by_id["right"], iterations_max=2, validations=1).name)
            assert job.state == job_pb2.JOB_STATE_COMPLETED, job
            with pytest.raises(grpc.RpcError, match="check the credentials and what they may do") as refused:
                client.submit(projects_by_id["wrong"], iterations_max=2, validations=1)
            answers += [str(job), str(refused.value), *map(str, client.tail(job.name))]
            answers += refusals(client, stack, wrong)
            # The keys change, and what the old ones sealed and signed is no secret less.
            projects.RotateCredentialsKey(project_service_pb2.RotateCredentialsKeyRequest(), timeout=60)
            secrets += given_tokens(client, issuer)
            secrets += [folder.token.read_text().strip(), folder.credentials_key.read_text().strip()]
            events = asyncio.run(stored_events(stack, folder))
            assert any(b"right" in event for event in events)
            assert stack.stop() == ()
    found = {"the answers": "\n".join(answers).encode(), "the events": b"\n".join(events)}
    found |= dict(left_in(folder)) | dict(rows_of(folder.of("scheduler") / "scheduler.sqlite"))
    assert any(b"server_started" in content for place, content in found.items() if place.endswith(".log"))
    assert any(b"credentials" in place.encode() for place in found), "rows were looked at"
    leaks = {place for place, content in found.items() for secret in secrets if secret.encode() in content}
    leaks |= {place for place, content in found.items() if any(tokens_in(content))}
    assert leaks == set()


def parts_of(key: object) -> tuple[str, str]:
    return key.access_key_id, key.secret_access_key


def refusals(client: Client, stack: Stack, wrong: object) -> list[str]:
    """What is said of a wrong key, and of a forged token."""
    said = []
    stub = conversion_service_pb2_grpc.ConversionServiceStub(client.channel("conversion"))
    with pytest.raises(grpc.RpcError) as caught:
        stub.InspectDataset(conversion_service_pb2.InspectDatasetRequest(source=wrong), timeout=30)
    said.append(repr(caught.value))
    forged = stack.folder.token.read_text().strip()[:-4] + "AAAA"
    options = [("grpc.enable_http_proxy", 0)]
    with carrying(grpc.insecure_channel(stack.address("scheduler"), options=options), forged) as opened:
        with pytest.raises(grpc.RpcError) as caught:
            token_service_pb2_grpc.TokenServiceStub(opened).WhoAmI(token_service_pb2.WhoAmIRequest(), timeout=60)
        said.append(repr(caught.value))
    return said


def given_tokens(client: Client, issuer: Issuer) -> list[str]:
    """Tokens that were given and used: of this installation, of the issuer; then the key changes."""
    stub = token_service_pb2_grpc.TokenServiceStub(client.channel("scheduler"))
    principal = token_service_pb2.Principal(subject="users/ada", installation_admin=True)
    request = token_service_pb2.CreateTokenRequest(principal=principal, request_id=str(uuid.uuid4()))
    texts = [stub.CreateToken(request, timeout=60).text, issuer.token(groups=["vision"])]
    for service in ("scheduler", "metrics", "conversion"):
        for text in texts:
            address = client.stack.address(service)
            with carrying(grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]), text) as opened:
                opened.unary_unary("/sihlai.installation.v1.InstallationService/GetInstallation")(b"", timeout=60)
    stub.RotateTokenKey(token_service_pb2.RotateTokenKeyRequest(request_id=str(uuid.uuid4())), timeout=60)
    return texts


async def stored_events(stack: Stack, folder: DataFolder) -> list[bytes]:
    """All that NATS keeps."""
    user, password = folder.nats_credentials.read_text().split()
    client = await nats.connect(f"nats://{stack.address('nats')}", user=user, password=password)
    try:
        stream = client.jetstream()
        events = []
        for info in await stream.streams_info():
            for sequence in range(info.state.first_seq, info.state.last_seq + 1):
                message = await stream.get_msg(info.config.name, sequence)
                events.append(f"{message.subject} {message.headers} ".encode() + (message.data or b""))
        return events
    finally:
        await client.close()


def left_in(folder: DataFolder) -> Iterator[tuple[str, bytes]]:
    """Every file of the data folder but those whose purpose is to hold a secret; nobody else reads these."""
    for path in folder.root.rglob("*"):
        place = path.relative_to(folder.root)
        if not path.is_file():
            continue
        if place.parts[0] in ("tokens", "keys") or place in (Path("token"), Path("nats", "nats.conf")):
            is_public = path.name.endswith(".pub.pem")
            assert is_public or path.stat().st_mode & 0o777 == 0o600, place
            if not is_public:
                continue
        yield str(place), path.read_bytes()


def rows_of(database: Path) -> Iterator[tuple[str, bytes]]:
    """Each table's rows: in the file a long value lies in pieces."""
    with sqlite3.connect(database) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            rows = connection.execute(f'SELECT * FROM "{table}"').fetchall()
            yield f"table {table}", b"\n".join(as_bytes(value) for row in rows for value in row)


def as_bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def tokens_in(content: bytes) -> Iterable[str]:
    """Whatever opens a door, whoever it was given to: an attempt's token too, which nobody but its runner ever saw."""
    for text in JWT.findall(content):
        try:
            claims = jwt.decode(text, options={"verify_signature": False})
        except jwt.PyJWTError:
            continue
        if claims.get("aud") in TOKENS:
            yield text.decode()
