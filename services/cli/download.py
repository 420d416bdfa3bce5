"""One file of a checkpoint, downloaded: goes on where it broke off, and is verified before it gets its name."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import grpc
from sihlai.scheduler.v1.checkpoint_service_pb2 import DownloadCheckpointRequest
from sihlai.scheduler.v1.job_pb2 import CheckpointFile

from services.chassis.errors import Unavailable
from services.chassis.rpc import error_from_rpc
from services.cli.endpoints import Services

CHUNK_BYTES = 2**20
RETRY_SECONDS = 0.5
BREAKS_MAX = 100
"""How often a download may break without a byte in between before it gives up."""


class DownloadError(OSError):
    """What arrived is not what the scheduler has; the message is for a person."""


async def download_file(
    services: Services,
    checkpoint_name: str,
    file: CheckpointFile,
    folder: Path,
    *,
    on_progress: Callable[[int], None] = lambda size_bytes: None,
) -> Path:
    """Download one file into the folder and return its path.

    A file that is there with the right size and sha256 stays. What is not whole yet stands in a hidden file whose name
    carries the content's sha256, so that a later call goes on with it and never mixes two contents.
    """
    if not re.fullmatch(r"[\w][\w.-]{0,254}", file.name):
        raise DownloadError(f"{file.name!r} is no name for a file: the checkpoint cannot be trusted")
    target = folder / file.name
    if await asyncio.to_thread(_holds, target, file):
        on_progress(file.size_bytes)
        return target
    part = folder / f".{file.name}.{file.sha256[:16]}.part"
    breaks = 0
    while (size_bytes := part.stat().st_size if part.exists() else 0) < file.size_bytes or not part.exists():
        try:
            await _append(services, checkpoint_name, file, part, size_bytes, on_progress)
        except grpc.RpcError as error:
            arrived = part.exists() and part.stat().st_size > size_bytes
            breaks = 0 if arrived else breaks + 1
            if breaks >= BREAKS_MAX or not isinstance(error_from_rpc(error), Unavailable):
                raise
            await asyncio.sleep(RETRY_SECONDS)
    if not await asyncio.to_thread(_holds, part, file):
        part.unlink()
        raise DownloadError(f"{file.name} does not have the sha256 that the scheduler recorded: download it again")
    part.replace(target)
    return target


async def _append(
    services: Services,
    checkpoint_name: str,
    file: CheckpointFile,
    part: Path,
    offset: int,
    on_progress: Callable[[int], None],
) -> None:
    """Append what the file has from the offset on."""
    request = DownloadCheckpointRequest(name=checkpoint_name, file=file.name, offset=offset)
    with part.open("ab") as writer:
        async for answer in services.checkpoints.DownloadCheckpoint(request):
            if answer.WhichOneof("message") != "chunk":
                continue
            await asyncio.to_thread(writer.write, answer.chunk)
            on_progress(writer.tell())
            if writer.tell() > file.size_bytes:
                raise DownloadError(f"{file.name} is longer than the {file.size_bytes} bytes that were announced")


def _holds(path: Path, file: CheckpointFile) -> bool:
    """Whether the path holds the file's content."""
    if not path.is_file() or path.stat().st_size != file.size_bytes:
        return False
    digest = hashlib.sha256()
    with path.open("rb") as reader:
        while chunk := reader.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest() == file.sha256
