"""CheckpointService."""

# ruff: noqa: D102, N802 - names and documentation of the calls are the proto's.

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from sihlai.scheduler.v1 import checkpoint_service_pb2 as messages
from sihlai.scheduler.v1 import checkpoint_service_pb2_grpc, job_pb2

from services.chassis.errors import NotFound, OutOfRange, Reason
from services.scheduler.domain.job import Checkpoint, CheckpointFile
from services.scheduler.objects.checkpoints import CheckpointStore
from services.scheduler.store.checkpoints import CheckpointRows
from services.scheduler.wire.checkpoint import checkpoint_to_proto
from services.scheduler.wire.names import (
    checkpoint_ids_of,
    job_ids_of,
    page_size_of,
    page_token_after,
)
from services.scheduler.wire.page import Serialized, page_of

MODEL_FILE = "model.safetensors"
CHUNK_BYTES_MAX = 2**20


class CheckpointServicer(checkpoint_service_pb2_grpc.CheckpointServiceServicer):
    """Checkpoints: what is recorded comes from `rows`, what is in them from `store`."""

    def __init__(self, rows: CheckpointRows, store: CheckpointStore) -> None:
        self._rows = rows
        self._store = store

    async def ListCheckpoints(self, request: messages.ListCheckpointsRequest, context: Any) -> Serialized:
        limit = page_size_of(request.page_size)
        after = page_token_after(request.page_token, request.parent, form="[0-9]{1,18}-[0-9]{1,18}")
        epoch, _, iteration = after.partition("-")
        before = (int(epoch), int(iteration)) if after else None
        found = await self._rows.page(*job_ids_of(request.parent, "parent"), before=before, limit=limit + 1)
        return await page_of(
            found,
            lambda checkpoint: checkpoint_to_proto(checkpoint, request.parent),
            limit=limit,
            place=lambda checkpoint: f"{checkpoint.key.epoch}-{checkpoint.key.iteration}",
            scope=request.parent,
            answer=lambda items, token: messages.ListCheckpointsResponse(checkpoints=items, next_page_token=token),
        )

    async def GetCheckpoint(
        self, request: messages.GetCheckpointRequest, context: Any
    ) -> messages.GetCheckpointResponse:
        return messages.GetCheckpointResponse(checkpoint=(await self._resolved(request.name))[1])

    async def DownloadCheckpoint(
        self, request: messages.DownloadCheckpointRequest, context: Any
    ) -> AsyncIterator[messages.DownloadCheckpointResponse]:
        checkpoint, proto = await self._resolved(request.name)
        file = _file_of(checkpoint, request.file or MODEL_FILE, proto.name)
        if not 0 <= request.offset <= file.size_bytes:
            raise OutOfRange(
                Reason.OFFSET_BEYOND_END,
                f"the offset is {request.offset}, but {file.name} has {file.size_bytes} bytes",
                {"offset": str(request.offset), "size_bytes": str(file.size_bytes)},
            )
        wire_file = job_pb2.CheckpointFile(name=file.name, size_bytes=file.size_bytes, sha256=file.sha256)
        yield messages.DownloadCheckpointResponse(head=messages.DownloadHead(checkpoint=proto, file=wire_file))
        async for chunk in self._store.stream(checkpoint.uri, file.name, request.offset):
            for start in range(0, len(chunk), CHUNK_BYTES_MAX):
                yield messages.DownloadCheckpointResponse(chunk=chunk[start : start + CHUNK_BYTES_MAX])

    async def _resolved(self, name: str) -> tuple[Checkpoint, job_pb2.Checkpoint]:
        project_id, job_id, checkpoint_id = checkpoint_ids_of(name)
        checkpoint = await self._rows.get(project_id, job_id, checkpoint_id)
        return checkpoint, checkpoint_to_proto(checkpoint, f"projects/{project_id}/jobs/{job_id}")


def _file_of(checkpoint: Checkpoint, name: str, checkpoint_name: str) -> CheckpointFile:
    for file in checkpoint.files:
        if file.name == name:
            return file
    names = ", ".join(file.name for file in checkpoint.files)
    raise NotFound(
        Reason.CHECKPOINT_NOT_FOUND,
        f"{checkpoint_name} has no file {name}, only {names}",
        {"name": checkpoint_name},
    )
