"""Nobody gets in who does not belong: every role at every call of the real services, and a scan of every port."""

from __future__ import annotations

import asyncio
import importlib
import os
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import jwt
import nats
import nats.errors
import psutil
import pytest
import yaml
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from sihlai.auth.v1 import token_service_pb2, token_service_pb2_grpc
from sihlai.conversion.v1 import conversion_service_pb2, conversion_service_pb2_grpc, dataset_pb2
from sihlai.logs.v1 import log_service_pb2, log_service_pb2_grpc
from sihlai.runner.v1 import runner_admin_service_pb2, runner_admin_service_pb2_grpc
from sihlai.scheduler.v1 import job_service_pb2, job_service_pb2_grpc, project_service_pb2, project_service_pb2_grpc

from services.chassis.auth.access import ACCESS, Rule
from services.chassis.auth.keys import TokenSigner
from services.chassis.auth.principal import Role
from services.chassis.errors import NotFound, Reason, SihlaiError
from services.chassis.rpc import error_from_rpc
from services.cli.machine.supervisor import Stack, StackConfig
from tests.oidc_issuer import AUDIENCE, Issuer
from tests.system.client import until
from tests.tokens import carrying, token

SECONDS = 60.0
OPTIONS = [("grpc.enable_http_proxy", 0)]
SERVICES = {
    "sihlai.auth": "scheduler",
    "sihlai.scheduler": "scheduler",
    "sihlai.runner": "scheduler",
    "sihlai.conversion": "conversion",
    "sihlai.metrics": "metrics",
    "sihlai.logs": "metrics",
    "sihlai.installation": "conversion",
}
CALLS = [name for name in ACCESS if name.startswith("sihlai.")]
PROJECT = "projects/cells"
WHO = "/sihlai.installation.v1.InstallationService/GetInstallation"
"""What every service answers to everybody who has a token."""

# What each principal is, and what it may do in the project that the requests name.
PRINCIPALS: dict[str, tuple[str, dict[str, Any], Role | None]] = {
    "nobody special": ("users/nobody", {"roles": {}}, None),
    "viewer": ("users/viewer", {"roles": {PROJECT: Role.VIEWER}}, Role.VIEWER),
    "editor": ("users/editor", {"roles": {PROJECT: Role.EDITOR}}, Role.EDITOR),
    "admin": ("users/admin", {"roles": {PROJECT: Role.ADMIN}}, Role.ADMIN),
    "viewer of all": ("users/viewer", {"roles": {"projects/-": Role.VIEWER}}, Role.VIEWER),
    "admin of all": ("users/admin", {"roles": {"projects/-": Role.ADMIN}}, Role.ADMIN),
    "admin of another": ("users/other", {"roles": {"projects/other": Role.ADMIN}}, None),
    "installation's admin": ("users/root", {}, Role.ADMIN),
    "runner": ("runners/one", {}, None),
    "another runner": ("runners/other", {}, None),
    "service": ("services/metrics", {}, None),
}


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with Issuer() as made:
        yield made


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, issuer: Issuer) -> Iterator[Stack]:
    oidc_file = tmp_path_factory.mktemp("oidc") / "oidc.yaml"
    roles = [{"claim": "groups", "value": "vision", "project": "cells", "role": "viewer"}]
    oidc_file.write_text(yaml.safe_dump({"issuer": issuer.url, "audience": AUDIENCE, "roles": roles}))
    home = tmp_path_factory.mktemp("home")
    config = StackConfig(
        data=home / "stack",
        allowed_roots=(home,),
        runners=1,
        device="cpu",
        start_seconds_max=300.0,
        oidc_file=oidc_file,
        extra={"scheduler": ("--synchronize-seconds-max", "0.5")},  # the runner calls often
    )
    with Stack(config, environ=os.environ) as running:
        yield running


def channel(stack: Stack, service: str, text: str = "") -> grpc.Channel:
    return carrying(grpc.insecure_channel(stack.address(service), options=OPTIONS), text)


def request_of(call: str) -> tuple[type[Message], Message, Any]:
    """Request class, a request that names the project wherever it names something, and the method."""
    service, _, method = call.rpartition("/")
    package, _, name = service.rpartition(".")
    for module in (Path(__file__).parents[2] / "protos").joinpath(*package.split(".")).glob("*_pb2.py"):
        found = importlib.import_module(f"{package}.{module.stem}")
        if name in found.DESCRIPTOR.services_by_name:
            break
    described = found.DESCRIPTOR.services_by_name[name].methods_by_name[method]
    cls = getattr(found, described.input_type.name)
    request = cls()
    for path in (*ACCESS[call].on, *(["runner"] if isinstance(ACCESS[call].runner, str) else [])):
        *parents, last = path.split(".")
        message = request
        for parent in parents:
            message = getattr(message, parent)
        value = {"project_id": "cells", "runner": "runners/one"}.get(last, f"{PROJECT}/jobs/none")
        if path in ("parent", "project.name") or (service.endswith("ProjectService") and last == "name"):
            value = PROJECT
        if message.DESCRIPTOR.fields_by_name[last].is_repeated:
            getattr(message, last).append(value)
        else:
            setattr(message, last, value)
    return cls, request, described


def refusal(opened: grpc.Channel, call: str, *, stream_seconds: float = SECONDS) -> SihlaiError | None:
    """What a call is refused with; None where it is answered, or a stream is open for so long, or after an answer."""
    cls, request, described = request_of(call)
    output = described.output_type._concrete_class.FromString
    serialize = cls.SerializeToString
    try:
        if described.client_streaming:
            for _ in opened.stream_stream(f"/{call}", serialize, output)(iter([request]), timeout=SECONDS):
                break
        elif described.server_streaming:
            running = opened.unary_stream(f"/{call}", serialize, output)(request, timeout=stream_seconds)
            for _ in running:
                break
            running.cancel()
        else:
            opened.unary_unary(f"/{call}", serialize, output)(request, timeout=SECONDS)
    except grpc.RpcError as error:
        return None if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED else error_from_rpc(error)
    return None


def expected(call: str, who: str) -> bool:
    """Whether the call is this principal's to make, by the words of the table alone."""
    rule = ACCESS[call]
    subject, _, role = PRINCIPALS[who]
    if rule.anyone or who == "installation's admin":
        return True
    if subject.startswith("runners/"):
        return bool(rule.runner) and not (isinstance(rule.runner, str) and who == "another runner")
    if subject.startswith("services/"):
        return rule.service
    if rule.role is None:
        return False
    if not rule.on and who == "admin of another":
        return True  # in any project
    return role is not None and role >= rule.role


@pytest.mark.parametrize("who", PRINCIPALS)
def test_every_call_is_answered_to_whom_the_table_says_and_to_nobody_else(stack: Stack, who: str) -> None:
    subject, claims, _ = PRINCIPALS[who]
    text = token(stack.folder.token_key, subject, **claims)
    wrong = []
    # What ends others' rights or lives comes last.
    for call in CALLS:
        service = SERVICES[".".join(call.split(".")[:2])]
        # What is to be answered may be silent; a refusal is waited for, however late it comes.
        stream_seconds = 2.0 if expected(call, who) else SECONDS
        with channel(stack, service, text) as opened:
            error = refusal(opened, call, stream_seconds=stream_seconds)
        denied = error is not None and error.reason is Reason.PERMISSION_DENIED
        if error is not None and error.reason in (Reason.TOKEN_MISSING, Reason.TOKEN_INVALID):
            denied = True
        if denied == expected(call, who):
            wrong.append(f"{call}: {error.message if error else 'answered'}")
    assert wrong == []


def test_without_a_token_nothing_is_answered(stack: Stack) -> None:
    reasons = {}
    for call in CALLS:
        with channel(stack, SERVICES[".".join(call.split(".")[:2])]) as opened:
            error = refusal(opened, call)
            reasons[call] = error.reason if error is not None else None
    assert set(reasons.values()) == {Reason.TOKEN_MISSING}


def test_every_service_takes_a_token_of_the_issuer_for_what_its_claims_mean(stack: Stack, issuer: Issuer) -> None:
    calls = {
        "sihlai.scheduler.v1.JobService/ListJobs": "scheduler",
        "sihlai.logs.v1.LogService/ListLogFields": "metrics",
        "sihlai.conversion.v1.ConversionService/ListTasks": "conversion",
    }
    admins = [call for call, rule in ACCESS.items() if rule == Rule() and call in CALLS]
    for service in calls.values():  # until each has the issuer's keys, however late it came
        with channel(stack, service, issuer.token()) as opened:
            until(lambda opened=opened: opened.unary_unary(WHO)(b"", timeout=SECONDS))
    for call, service in calls.items():
        with channel(stack, service, issuer.token(groups=["vision"])) as opened:
            error = refusal(opened, call)
            assert error is None or isinstance(error, NotFound), error
        without_role = Reason.PERMISSION_DENIED if service != "conversion" else None
        for text, reason in (
            (issuer.token(groups=["chess"]), without_role),
            (issuer.token(groups=["vision"], exp=1), Reason.TOKEN_EXPIRED),
            (issuer.token(groups=["vision"], aud="another"), Reason.TOKEN_INVALID),
            (issuer.token(groups=["vision"], iss="https://elsewhere.example"), Reason.TOKEN_INVALID),
        ):
            with channel(stack, service, text) as opened:
                error = refusal(opened, call)
                assert (error.reason if error is not None else None) is reason, call
    with channel(stack, "scheduler", issuer.token(groups=["vision"])) as opened:
        for call in admins:
            assert refusal(opened, call).reason is Reason.PERMISSION_DENIED, call
        who = token_service_pb2_grpc.TokenServiceStub(opened).WhoAmI(token_service_pb2.WhoAmIRequest())
        assert (who.principal.subject, [grant.project for grant in who.principal.grants]) == ("users/ada", [PROJECT])
        with channel(stack, "scheduler", token(stack.folder.token_key)) as admin:
            stub = token_service_pb2_grpc.TokenServiceStub(admin)
            stub.RevokeToken(token_service_pb2.RevokeTokenRequest(name=who.token))
        assert refusal(opened, "sihlai.auth.v1.TokenService/WhoAmI").reason is Reason.TOKEN_REVOKED


def test_what_is_there_and_what_is_not_are_refused_alike(stack: Stack) -> None:
    admin = token(stack.folder.token_key)
    with channel(stack, "scheduler", admin) as opened:
        project = project_service_pb2.Project(training_dataset={"uri": stack.folder.root.parent.as_uri()})
        request = project_service_pb2.CreateProjectRequest(project=project, project_id="secret")
        project_service_pb2_grpc.ProjectServiceStub(opened).CreateProject(request)
    stranger = token(stack.folder.token_key, "users/stranger", roles={"projects/mine": Role.ADMIN})
    with channel(stack, "scheduler", stranger) as opened:
        stub = project_service_pb2_grpc.ProjectServiceStub(opened)
        messages = []
        for name in ("projects/secret", "projects/nowhere"):
            with pytest.raises(grpc.RpcError) as caught:
                stub.GetProject(project_service_pb2.GetProjectRequest(name=name))
            messages.append(error_from_rpc(caught.value).message.replace(name, ""))
        assert messages[0] == messages[1]
        assert not stub.ListProjects(project_service_pb2.ListProjectsRequest()).projects
        jobs = job_service_pb2_grpc.JobServiceStub(opened)
        answer = jobs.BatchGetJobs(job_service_pb2.BatchGetJobsRequest(uids=["0" * 32]))
        assert list(answer.missing) == ["0" * 32]


def test_a_revoked_token_is_refused_by_every_service_within_seconds_and_its_streams_end(stack: Stack) -> None:
    admin, key = token(stack.folder.token_key), stack.folder.token_key
    with channel(stack, "scheduler", admin) as opened:
        stub = token_service_pb2_grpc.TokenServiceStub(opened)
        made = stub.CreateToken(
            token_service_pb2.CreateTokenRequest(
                principal={"subject": "users/ada", "grants": [{"project": "projects/-", "role": "ROLE_ADMIN"}]}
            )
        )
        with channel(stack, "scheduler", made.text) as users, channel(stack, "conversion", made.text) as datasets:
            watch = job_service_pb2_grpc.JobServiceStub(users).WatchJobs(
                job_service_pb2.WatchJobsRequest(parent="projects/-")
            )
            assert next(watch).HasField("caught_up")
            assert refusal(datasets, "sihlai.conversion.v1.ConversionService/ListTasks") is None
            stub.RevokeToken(token_service_pb2.RevokeTokenRequest(name=made.token.name))
            with pytest.raises(grpc.RpcError) as caught:
                for _ in watch:
                    pass
            assert error_from_rpc(caught.value).reason is Reason.TOKEN_REVOKED
            wanted = {
                "sihlai.conversion.v1.ConversionService/ListTasks": "conversion",
                "sihlai.logs.v1.LogService/ListLogFields": "metrics",
                "sihlai.auth.v1.TokenService/WhoAmI": "scheduler",
            }
            for call, service in wanted.items():
                assert until_revoked(stack, service, call, made.text), service
        # Killed and started anew, with what it kept.
        stack.restart("conversion")
        stack.restart("scheduler")
        for call, service in wanted.items():
            assert until_revoked(stack, service, call, made.text), service
    assert TokenSigner.from_file(key).key_id


def until_revoked(stack: Stack, service: str, call: str, text: str) -> bool:
    """Whether the service refuses the token for its revocation, in time."""

    def revoked() -> bool | None:
        with channel(stack, service, text) as opened:
            error = refusal(opened, call)
        return True if error is not None and error.reason is Reason.TOKEN_REVOKED else None

    return until(revoked, seconds=30.0)


def test_another_key_signs_in_every_service_within_seconds_and_over_restarts(stack: Stack) -> None:
    """First with the old one beside it, then without; the machine's own processes get new tokens by themselves."""
    calls = dict.fromkeys(("scheduler", "metrics", "conversion"), WHO)
    old = token(stack.folder.token_key)
    with channel(stack, "scheduler", old) as opened:
        token_service_pb2_grpc.TokenServiceStub(opened).RotateTokenKey(token_service_pb2.RotateTokenKeyRequest())
    new = token(stack.folder.token_key)
    assert kid_of(new) != kid_of(old)
    for service in calls:
        for text in (old, new):
            assert answered(stack, service, text), service
    stack.restart("metrics")
    for service in calls:
        assert all(answered(stack, service, text) for text in (old, new)), service
    with channel(stack, "scheduler", new) as opened:
        request = token_service_pb2.RotateTokenKeyRequest(drop_old=True)
        token_service_pb2_grpc.TokenServiceStub(opened).RotateTokenKey(request)
    newest = token(stack.folder.token_key)
    for service in calls:
        refused = until(partial(refusal_of, stack, service, new), seconds=30.0)
        assert refused.reason in (Reason.TOKEN_REVOKED, Reason.TOKEN_INVALID), service
        assert answered(stack, service, newest), service
    # What `up` gave its own processes was signed by the dropped key, as the local admin's token was.
    until(lambda: True if kid_of(stack.folder.token.read_text().strip()) == kid_of(newest) else None)
    with channel(stack, "scheduler", newest) as opened:
        runners = runner_admin_service_pb2_grpc.RunnerAdminServiceStub(opened)

        def seen() -> int:
            request = runner_admin_service_pb2.GetRunnerRequest(name="runners/local-1")
            return runners.GetRunner(request, timeout=SECONDS).runner.heartbeat_time.ToNanoseconds()

        before = seen()
        until(lambda: True if seen() > before else None)


def kid_of(text: str) -> str:
    return str(jwt.get_unverified_header(text)["kid"])


def refusal_of(stack: Stack, service: str, text: str) -> SihlaiError | None:
    with channel(stack, service, text) as opened:
        return refusal(opened, WHO.lstrip("/"))


def answered(stack: Stack, service: str, text: str) -> bool:
    """Whether the service takes the token, soon."""
    return until(lambda: True if refusal_of(stack, service, text) is None else None, seconds=30.0)


def listening(stack: Stack) -> dict[tuple[str, int], str]:
    """Every port that a process of the stack listens on, its grandchildren's too."""
    found = {}
    for name in stack.names:
        top = psutil.Process(stack.process_id(name))
        for process in (top, *top.children(recursive=True)):
            for connection in process.net_connections(kind="inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found[connection.laddr.ip, connection.laddr.port] = name
    return found


def test_no_port_answers_a_stranger(stack: Stack) -> None:
    """Each port that is open, and not each address that is written down: nobody may have forgotten one."""
    ports = listening(stack)
    assert set(ports.values()) == {"nats", "conversion", "scheduler", "metrics"}
    assert {host.removeprefix("::ffff:") for host, _ in ports} == {"127.0.0.1"}
    for (_, port), name in ports.items():
        if name == "nats":
            continue  # see below
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS) as opened:
            stub = reflection_pb2_grpc.ServerReflectionStub(opened)
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            with pytest.raises(grpc.RpcError) as caught:
                list(stub.ServerReflectionInfo(iter([request]), timeout=SECONDS))
            assert error_from_rpc(caught.value).reason is Reason.TOKEN_MISSING
            told = health_pb2_grpc.HealthStub(opened).Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
            assert told == health_pb2.HealthCheckResponse(status="SERVING"), "whether it serves, and nothing else"


GRPC_WEB = "Content-Type: application/grpc-web+proto\r\nContent-Length: 5\r\n\r\n\0\0\0\0\0"
PAGES = {
    "looks beforehand": "OPTIONS / HTTP/1.1\r\nAccess-Control-Request-Method: POST",
    "looks into the private network": "OPTIONS / HTTP/1.1\r\nAccess-Control-Request-Private-Network: true",
    "reads": "GET / HTTP/1.1",
    "calls without a look": f"POST /sihlai.auth.v1.TokenService/WhoAmI HTTP/1.1\r\n{GRPC_WEB}",
    "opens a socket": (
        "GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    ),
    "speaks another protocol in a form": (
        'POST / HTTP/1.1\r\nContent-Type: text/plain\r\nContent-Length: 60\r\n\r\nCONNECT {"verbose":true}\r\n'
        "SUB > 1\r\nPUB sihlai.x 1\r\nx\r\nPING\r\n"
    ),
}


@pytest.mark.parametrize("page", PAGES.values(), ids=list(PAGES))
def test_a_browsers_page_of_another_origin_gets_nothing(page: str, stack: Stack) -> None:
    """Also where its own name leads to this machine (`Host`): then it is no other origin for the browser."""
    line, _, rest = page.partition("\r\n")
    text = f"{line}\r\nHost: evil.example\r\nOrigin: http://evil.example\r\n{rest}\r\n\r\n"
    for (_, port), name in listening(stack).items():
        answer = said("127.0.0.1", port, text)
        assert b"HTTP/1" not in answer, (name, answer)
        assert b"Access-Control" not in answer
        if name == "nats":  # who it is, as it tells everybody first, and that this is none of its words
            lines = answer.split(b"\r\n")
            assert lines[0].startswith(b"INFO {")
            assert b'"auth_required":true' in lines[0]
            assert all(each.startswith(b"-ERR") for each in lines[1:] if each), answer


def said(host: str, port: int, text: str) -> bytes:
    """What a port answers to these bytes, however late, until it says nothing more for a moment."""
    found = b""
    with socket.create_connection((host, port), timeout=SECONDS) as connection:
        connection.sendall(text.encode())
        try:
            while part := connection.recv(65_536):
                found += part
                connection.settimeout(0.5)
        except (TimeoutError, ConnectionResetError):
            pass
    return found


def test_nats_lets_nobody_in_without_its_password(stack: Stack) -> None:
    user, password = stack.folder.nats_credentials.read_text().split()

    async def connect(**credentials: str) -> None:
        async def ignore(_error: Exception) -> None:
            pass

        url = f"nats://{stack.address('nats')}"
        client = await nats.connect(url, allow_reconnect=False, error_cb=ignore, connect_timeout=10, **credentials)
        await client.close()

    async def test() -> None:
        for wrong in ({}, {"user": user, "password": "guess"}):
            with pytest.raises((nats.errors.Error, OSError)):
                await connect(**wrong)
        await connect(user=user, password=password)

    asyncio.run(test())


def test_only_its_owner_reads_what_up_keeps(stack: Stack) -> None:
    assert stack.folder.root.stat().st_mode & 0o777 == 0o700
    secrets = [stack.folder.token, stack.folder.token_key, stack.folder.nats_credentials]
    secrets += [stack.folder.of("nats") / "nats.conf", *(stack.folder.root / "tokens").iterdir()]
    assert {path.stat().st_mode & 0o777 for path in secrets} == {0o600}
    texts = [path.read_text().strip() for path in (stack.folder.root / "tokens").iterdir()]
    texts += [stack.folder.token.read_text().strip(), stack.folder.nats_credentials.read_text().split()[1]]
    seen = [log for log in (stack.folder.root / "logs").iterdir() for text in texts if text in log.read_text()]
    assert seen == []
    for name in stack.names:
        command = " ".join(psutil.Process(stack.process_id(name)).cmdline())
        assert not [text for text in texts if text in command], "anybody on the machine sees command lines"


def test_a_tail_says_who_may_not_read_it(stack: Stack) -> None:
    text = token(stack.folder.token_key, "users/stranger", roles={"projects/mine": Role.ADMIN})
    with channel(stack, "metrics", text) as opened:
        tail = log_service_pb2_grpc.LogServiceStub(opened).TailLogs(
            log_service_pb2.TailLogsRequest(job="projects/secret/jobs/a", follow=True)
        )
        with pytest.raises(grpc.RpcError) as caught:
            next(tail)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_not_even_an_admin_reads_or_writes_the_installations_own_data_as_a_dataset(stack: Stack) -> None:
    root, store = stack.folder.root, stack.folder.of("conversion")
    reads = [root, root / "keys", stack.folder.checkpoints]

    def source(path: Path) -> dataset_pb2.DatasetSource:
        return dataset_pb2.DatasetSource(uri=path.resolve().as_uri())

    with channel(stack, "conversion", token(stack.folder.token_key)) as opened:
        stub = conversion_service_pb2_grpc.ConversionServiceStub(opened)

        def reason(read: Path, written: Path) -> Reason:
            request = conversion_service_pb2.ImportDatasetRequest(
                source=source(read), format="FOREIGN_FORMAT_COCO_INSTANCES", destination=source(written)
            )
            with pytest.raises(grpc.RpcError) as caught:
                list(stub.ImportDataset(request))
            return error_from_rpc(caught.value).reason

        assert {reason(path, root.parent / "new") for path in reads} == {Reason.URI_NOT_ALLOWED}
        assert {reason(root.parent, path / "new") for path in (*reads, store)} == {Reason.URI_NOT_ALLOWED}
        assert reason(store, root.parent / "new") is not Reason.URI_NOT_ALLOWED, "converted datasets may be read"
    assert not list(root.parent.rglob("new"))
