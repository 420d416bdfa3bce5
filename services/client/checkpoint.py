"""Checkpoints: listed, and downloaded: a broken download goes on where it was, and is verified before it counts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from sihlai.scheduler.v1 import checkpoint_service_pb2 as pb
from sihlai.scheduler.v1.job_pb2 import Checkpoint, CheckpointFile

from services.chassis.errors import Unavailable
from services.client.call import CHECKPOINTS, Operation, Sleep, Work, ask, consumed, pages, read
from services.client.name import checkpoint_name, job_name, short

CHUNK_BYTES = 2**20
RETRY_SECONDS = 0.5
BREAKS_MAX = 100
"""How often a download may break without a byte in between before it gives up."""
Progress = Callable[[CheckpointFile, int], None]
"""Is told how many bytes of a file have arrived."""


class DownloadError(OSError):
    """What arrived is not what the scheduler has; the message is for a person."""


def listed(job: str) -> Operation[list[Checkpoint]]:
    """A job's checkpoints, newest first."""
    found = yield from pages(CHECKPOINTS.ListCheckpoints, pb.ListCheckpointsRequest(parent=job_name(job)))
    return [checkpoint for page in found for checkpoint in page.checkpoints]


def got(name: str) -> Operation[Checkpoint]:
    """One checkpoint; `last`, `best` and `final` stand for the one that is."""
    return (yield from ask(CHECKPOINTS.GetCheckpoint, pb.GetCheckpointRequest(name=checkpoint_name(name)))).checkpoint


def downloaded(
    checkpoint: str | Checkpoint,
    folder: str | Path | None = None,
    *,
    files: Sequence[str] = (),
    on_progress: Progress = lambda file, size_bytes: None,
) -> Operation[Path]:
    """Download a checkpoint's files, or some of them, into the folder (else one of its name), and return the folder.

    A file that is there with the right size and sha256 stays. What is not whole yet stands in a hidden file whose name
    carries the content's sha256, so that a later call goes on with it and never mixes two contents.
    """
    found = (yield from got(checkpoint)) if isinstance(checkpoint, str) else checkpoint
    if unknown := set(files) - {file.name for file in found.files}:
        names = ", ".join(file.name for file in found.files)
        raise DownloadError(f"{short(found.name)} has no file {', '.join(sorted(unknown))}: it has {names}")
    target = Path(folder) if folder is not None else Path(short(found.name).replace("/", "-"))
    target.mkdir(parents=True, exist_ok=True)
    for file in found.files:
        if not files or file.name in files:
            yield from _downloaded_file(found.name, file, target, on_progress)
    return target


def _downloaded_file(name: str, file: CheckpointFile, folder: Path, on_progress: Progress) -> Operation[None]:
    if not re.fullmatch(r"[\w][\w.-]{0,254}", file.name):
        raise DownloadError(f"{file.name!r} is no name for a file: the checkpoint cannot be trusted")
    target = folder / file.name
    if (yield Work(lambda: _holds(target, file))):
        on_progress(file, file.size_bytes)
        return
    part = folder / f".{file.name}.{file.sha256[:16]}.part"
    breaks = 0
    while (size_bytes := part.stat().st_size if part.exists() else 0) < file.size_bytes or not part.exists():
        try:
            yield from _appended(name, file, part, size_bytes, on_progress)
        except Unavailable:
            breaks = 0 if part.exists() and part.stat().st_size > size_bytes else breaks + 1
            if breaks >= BREAKS_MAX:
                raise
            yield Sleep(RETRY_SECONDS)
    if not (yield Work(lambda: _holds(part, file))):
        part.unlink()
        raise DownloadError(f"{file.name} does not have the sha256 that the scheduler recorded: download it again")
    part.replace(target)


def _appended(name: str, file: CheckpointFile, part: Path, offset: int, on_progress: Progress) -> Operation[None]:
    """Append what the file has from the offset on."""
    request = pb.DownloadCheckpointRequest(name=name, file=file.name, offset=offset)
    with part.open("ab") as writer:

        def take(answer: pb.DownloadCheckpointResponse) -> None:
            if answer.WhichOneof("message") != "chunk":
                return
            writer.write(answer.chunk)  # into the system's memory: it takes no longer than the chunk itself took
            on_progress(file, writer.tell())
            if writer.tell() > file.size_bytes:
                raise DownloadError(f"{file.name} is longer than the {file.size_bytes} bytes that were announced")

        yield from consumed(read(CHECKPOINTS.DownloadCheckpoint, request), take)


def _holds(path: Path, file: CheckpointFile) -> bool:
    """Whether the path holds the file's content."""
    if not path.is_file() or path.stat().st_size != file.size_bytes:
        return False
    digest = hashlib.sha256()
    with path.open("rb") as reader:
        while chunk := reader.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest() == file.sha256
