"""The keys that seal stored credentials: changed by hand and by a call, and nothing is lost."""

from __future__ import annotations

import asyncio

import pytest
from cryptography.fernet import Fernet
from sihlai.scheduler.v1 import project_service_pb2
from sqlalchemy import select

from services.chassis.errors import FailedPrecondition, Internal
from services.scheduler.domain.project import SourceChange
from services.scheduler.domain.request import Request
from services.scheduler.seal import Seal
from services.scheduler.store import projects as project_store
from services.scheduler.store.tables import credentials

REQUEST_ID = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"


def test_the_key_of_stored_credentials_is_changed_and_the_old_one_goes(serve, simulated_runner, tmp_path):
    async def test():
        secret = {"s3": {"access_key_id": "key", "secret_access_key": "secret"}}
        allowed = {"allowed_endpoint_hosts": ("minio",)}
        path = tmp_path / "credentials.key"
        async with serve(**allowed) as client:
            source = {"uri": "s3://bucket/digits", "endpoint_url": "http://minio:9000", "credentials": secret}
            await client.create_project(training_dataset=source)
            await client.submit()
        old, new = path.read_bytes().strip(), Fernet.generate_key()
        for keys in ([new, old], [new]):
            path.write_bytes(b"\n".join(keys))
            async with serve(**allowed) as client:
                sealed = await client.scheduler.database.read(
                    lambda c: c.execute(select(credentials.c.sealed)).scalar()
                )
                assert sealed.partition(b":")[0] == client.scheduler.seal.seal(b"").partition(b":")[0]
        async with serve(**allowed) as client:
            runner = simulated_runner(client)
            await runner.idle(wait=0.0)
            assert runner.assignment.training_dataset.credentials.s3.secret_access_key == "secret"

    asyncio.run(test())


def test_a_call_changes_the_key_of_stored_credentials_and_forgets_the_old_one(
    serve, simulated_runner, tmp_path, monkeypatch
):
    monkeypatch.setattr(project_store, "RESEALED_TOGETHER_MAX", 2)  # several transactions, and a full last one

    async def test():
        secret = {"s3": {"access_key_id": "key", "secret_access_key": "secret"}}
        source = {"uri": "s3://bucket/digits", "endpoint_url": "http://minio:9000", "credentials": secret}
        allowed = {"allowed_endpoint_hosts": ("minio",)}
        path = tmp_path / "credentials.key"
        async with serve(**allowed) as client:
            for number in range(4):
                await client.create_project(f"digits-{number}", training_dataset=source)
            await client.submit("digits-0")
            scheduler, old = client.scheduler, path.read_bytes()
            late = scheduler.seal.seal(b"sealed just before")
            request = project_service_pb2.RotateCredentialsKeyRequest(request_id=REQUEST_ID)
            answer = await client.projects.RotateCredentialsKey(request)
            assert (answer.resealed_count, answer.key_id) == (4, scheduler.seal.key_id)
            assert await client.projects.RotateCredentialsKey(request) == answer
            # What was sealed before, and is written after it, is sealed by the new key all the same.
            change = SourceChange(uri="s3://bucket/late", endpoint_url="http://minio:9000", sealed=late)
            given = Request(request_id="", digest=b"")
            await scheduler.projects.create(
                given, lambda _: b"", project_id="late", display_name="", training=change, validation=None
            )
            found = await scheduler.database.read(lambda c: c.execute(select(credentials.c.sealed)).scalars().all())
            assert {sealed.partition(b":")[0].decode() for sealed in found} == {answer.key_id}
            assert len(found) == 5
        (new,) = path.read_bytes().split()
        assert new != old.strip()
        assert path.stat().st_mode & 0o777 == 0o600
        async with serve(**allowed) as client:
            runner = simulated_runner(client)
            await runner.idle(wait=0.0)
            assert runner.assignment.training_dataset.credentials.s3.secret_access_key == "secret"

    asyncio.run(test())


def test_a_change_of_keys_that_broke_off_is_gone_on_with_and_a_damaged_row_holds_nothing_up(tmp_path):
    path = tmp_path / "credentials.key"
    seal = Seal.from_file(path)
    sealed = seal.seal(b"content")
    seal.add_key()
    assert len(path.read_bytes().split()) == 2
    again = Seal.from_file(path)  # killed, and started again
    assert again.open(sealed) == b"content"
    again.add_key()
    damaged = sealed[:-9] + b"AAAAAAAA="
    anew = again.sealed_anew([sealed, damaged, b"unknown:x"])
    assert list(anew) == [sealed]
    again.drop_older()
    assert Seal.from_file(path).open(anew[sealed]) == b"content"
    with pytest.raises(Internal):
        Seal.from_file(path).open(sealed)
    path.unlink()
    with pytest.raises(FailedPrecondition):
        again.add_key()
