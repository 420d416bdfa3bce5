"""Checkpoints: listed, and downloaded: a broken download goes on where it was, and is verified before it counts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from contextlib import aclosing
from pathlib import Path

from sihlai.scheduler.v1 import checkpoint_service_pb2 as pb
from sihlai.scheduler.v1.job_pb2 import Checkpoint, CheckpointFile

from services.chassis.errors import Unavailable
from services.client.call import CHECKPOINTS, Transport, ask, read, whole
from services.client.name import checkpoint_name, job_name, short

RETRY_SECONDS = 0.5
BREAKS_MAX = 100
"""How often a download may break without a byte in between before it gives up."""
Progress = Callable[[CheckpointFile, int], None]
"""Is told how many bytes of a file have arrived."""


class DownloadError(OSError):
    """What arrived is not what the scheduler has; the message is for a person."""


async def listed(transport: Transport, job: str) -> list[Checkpoint]:
    """A job's checkpoints, newest first."""
    request = pb.ListCheckpointsRequest(parent=job_name(job))
    return list((await whole(transport, CHECKPOINTS.ListCheckpoints, request)).checkpoints)


async def got(transport: Transport, name: str) -> Checkpoint:
    """One checkpoint; `last`, `best` and `final` stand for the one that is."""
    request = pb.GetCheckpointRequest(name=checkpoint_name(name))
    return (await ask(transport, CHECKPOINTS.GetCheckpoint, request)).checkpoint


async def downloaded(
    transport: Transport,
    checkpoint: str | Checkpoint,
    folder: str | Path | None = None,
    *,
    files: Sequence[str] = (),
    on_progress: Progress = lambda file, size_bytes: None,
) -> Path:
    """Download a checkpoint's files, or some of them, into the folder (else one of its name), and return the folder.

    A file that is there with the right size and sha256 stays. What is not whole yet stands in a hidden file whose name
    carries the content's sha256, so that a later call goes on with it and never mixes two contents.
    """
    found = await got(transport, checkpoint) if isinstance(checkpoint, str) else checkpoint
    if unknown := set(files) - {file.name for file in found.files}:
        names = ", ".join(file.name for file in found.files)
        raise DownloadError(f"{short(found.name)} has no file {', '.join(sorted(unknown))}: it has {names}")
    target = Path(folder) if folder is not None else Path(short(found.name).replace("/", "-"))
    target.mkdir(parents=True, exist_ok=True)
    for file in found.files:
        if not files or file.name in files:
            await _download_file(transport, found.name, file, target, on_progress)
    return target


async def _download_file(
    transport: Transport, name: str, file: CheckpointFile, folder: Path, on_progress: Progress
) -> None:
    if not re.fullmatch(r"[\w][\w.-]{0,254}", file.name):
        raise DownloadError(f"{file.name!r} is no name for a file: the checkpoint cannot be trusted")
    target = folder / file.name
    if await transport.work(lambda: _holds(target, file)):
        on_progress(file, file.size_bytes)
        return
    part = folder / f".{file.name}.{file.sha256[:16]}.part"
    breaks = 0
    while (size_bytes := part.stat().st_size if part.exists() else 0) < file.size_bytes or not part.exists():
        try:
            await _append(transport, name, file, part, size_bytes, on_progress)
        except Unavailable:
            breaks = 0 if part.exists() and part.stat().st_size > size_bytes else breaks + 1
            if breaks >= BREAKS_MAX:
                raise
            await transport.sleep(RETRY_SECONDS)
    if not await transport.work(lambda: _holds(part, file)):
        part.unlink()
        raise DownloadError(f"{file.name} does not have the sha256 that the scheduler recorded: download it again")
    part.replace(target)


async def _append(
    transport: Transport, name: str, file: CheckpointFile, part: Path, offset: int, on_progress: Progress
) -> None:
    """Append what the file has from the offset on."""
    request = pb.DownloadCheckpointRequest(name=name, file=file.name, offset=offset)
    with part.open("ab") as writer:
        async with aclosing(read(transport, CHECKPOINTS.DownloadCheckpoint, request)) as answers:
            async for answer in answers:
                if answer.WhichOneof("message") != "chunk":
                    continue
                writer.write(answer.chunk)  # into the system's memory: it takes no longer than the chunk itself took
                on_progress(file, writer.tell())
                if writer.tell() > file.size_bytes:
                    raise DownloadError(f"{file.name} is longer than the {file.size_bytes} bytes that were announced")


def _holds(path: Path, file: CheckpointFile) -> bool:
    """Whether the path holds the file's content."""
    if not path.is_file() or path.stat().st_size != file.size_bytes:
        return False
    with path.open("rb") as reader:
        return hashlib.file_digest(reader, "sha256").hexdigest() == file.sha256
