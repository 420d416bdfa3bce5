"""CheckpointService of the real server."""

from __future__ import annotations

import asyncio

from sihlai.scheduler.v1 import checkpoint_service_pb2

from services.chassis.errors import OutOfRange, Reason
from tests.scheduler.completed_job import completed_job
from tests.scheduler.refusal import refused


def test_checkpoints_are_listed_read_by_their_nicknames_and_downloaded_from_any_offset(serve, simulated_runner):
    content = bytes(range(256)) * 9_000  # more than two chunks

    async def test():
        async with serve() as client:
            await client.create_project()
            job = await completed_job(client, simulated_runner(client), content=content)
            listed = await client.checkpoints.ListCheckpoints(
                checkpoint_service_pb2.ListCheckpointsRequest(parent=job.name)
            )
            assert [each.name for each in listed.checkpoints] == [f"{job.name}/checkpoints/1-60"]
            for nickname in ("last", "final", "1-60"):
                request = checkpoint_service_pb2.GetCheckpointRequest(name=f"{job.name}/checkpoints/{nickname}")
                assert (await client.checkpoints.GetCheckpoint(request)).checkpoint == listed.checkpoints[0]

            async def download(offset: int) -> bytes:
                request = checkpoint_service_pb2.DownloadCheckpointRequest(
                    name=f"{job.name}/checkpoints/final", offset=offset
                )
                messages = [message async for message in client.checkpoints.DownloadCheckpoint(request)]
                assert messages[0].head.checkpoint == listed.checkpoints[0]
                assert messages[0].head.file.size_bytes == len(content)
                return b"".join(message.chunk for message in messages[1:])

            assert await download(0) == content
            assert await download(2_000_000) == content[2_000_000:]
            assert await download(len(content)) == b""
            error = await refused(download(len(content) + 1))
            assert (type(error), error.reason) == (OutOfRange, Reason.OFFSET_BEYOND_END)
            request = checkpoint_service_pb2.GetCheckpointRequest(name=f"{job.name}/checkpoints/9-9")
            assert (await refused(client.checkpoints.GetCheckpoint(request))).reason is Reason.CHECKPOINT_NOT_FOUND

    asyncio.run(test())
