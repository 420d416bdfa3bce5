"""Builds the index of a dataset's images from their headers, once, many images at a time.

Large files of a bucket are not read whole: their first and last bytes tell, unless they do not.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, MutableMapping
from concurrent.futures import Executor
from dataclasses import dataclass

from services.chassis.objects.store import ObjectChanged, ObjectFolder, ObjectNotFound
from services.chassis.objects.uri import local_path
from services.conversion.conveyor.work import in_thread, some_at_a_time
from services.conversion.file.header import HeaderError, MoreNeededError, Pieces, read_header
from services.conversion.index import INDEX_VERSION, ImageEntry, Index
from services.conversion.source.place import ImageFile, Listing, dataset_changed

HEAD_BYTES = 64 * 2**10
TAIL_BYTES = 64 * 2**10


@dataclass(frozen=True, kw_only=True)
class IndexLimits:
    """What an image may be, and how many are read at once."""

    image_bytes_max: int
    image_pixels_max: int
    """Pixels of one image: a few bytes of PNG can claim a picture that fills the memory."""
    requests_max: int
    """Images that are read at once."""


def index_key(uri: str, listing: Listing, limits: IndexLimits) -> str:
    """Where the index of a listing is kept: changes with every file, and with what decides about one."""
    parts = (INDEX_VERSION, uri, listing.key(), limits.image_bytes_max, limits.image_pixels_max)
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


async def build_index(
    folder: ObjectFolder,
    listing: Listing,
    *,
    limits: IndexLimits,
    executor: Executor,
    known: MutableMapping[ImageFile, ImageEntry],
    progress: Callable[[int], None],
) -> Index:
    """Read the header of every image that is not in `known`, and put it there, so that a cancelled call costs nothing.

    `progress` is told how many are done. Raises Unavailable or PermissionDenied where the store does, and
    FailedPrecondition (DATASET_CHANGED) where an image is gone, or in a bucket another one, since it was listed.
    """
    waiting = await in_thread(executor, lambda: [file for file in listing.files if file not in known])
    local = local_path(folder.uri) is not None
    done = len(listing.files) - len(waiting)
    progress(done)

    async def read_one(file: ImageFile) -> None:
        nonlocal done
        known[file] = await _read_entry(folder, file, limits, executor, local=local)
        done += 1
        progress(done)

    await some_at_a_time((read_one(file) for file in waiting), limits.requests_max)
    return await in_thread(executor, lambda: Index(entries=tuple(known[file] for file in listing.files)))


async def _read_entry(
    folder: ObjectFolder, file: ImageFile, limits: IndexLimits, executor: Executor, *, local: bool
) -> ImageEntry:
    if file.size_bytes > limits.image_bytes_max:
        problem = f"it has {file.size_bytes} bytes, but an image may have at most {limits.image_bytes_max}"
        return _broken(file, "" if local else file.version, "image_too_large", problem)
    loop = asyncio.get_running_loop()
    try:
        if not local and file.size_bytes > HEAD_BYTES + TAIL_BYTES:
            try:
                return _entry(file, await _ends(folder, file), file.version, limits)
            except MoreNeededError:
                pass
        content = await folder.read(file.name, etag="" if local else file.version)
    except (ObjectNotFound, ObjectChanged) as error:
        # Not a finding: it would be kept in an index that is taken for the whole truth from then on.
        found = "was deleted" if isinstance(error, ObjectNotFound) else "was replaced"
        raise dataset_changed(f"{folder.uri}/{file.name}", found) from error
    return await loop.run_in_executor(executor, _entry_of_content, file, content, local, limits)


async def _ends(folder: ObjectFolder, file: ImageFile) -> Pieces:
    """The first and the last bytes of a large file."""
    head, tail = b"", b""
    async for chunk in folder.stream(file.name, HEAD_BYTES, etag=file.version):
        head += chunk
        if len(head) >= HEAD_BYTES:
            break
    offset = file.size_bytes - TAIL_BYTES
    async for chunk in folder.stream(file.name, TAIL_BYTES, offset=offset, etag=file.version):
        tail += chunk
    return Pieces(head=head, tail=tail, size_bytes=file.size_bytes)


def _entry_of_content(file: ImageFile, content: bytes, local: bool, limits: IndexLimits) -> ImageEntry:
    etag = f"sha256-{hashlib.sha256(content).hexdigest()}" if local else file.version
    return _entry(file, Pieces(head=content, tail=b"", size_bytes=len(content)), etag, limits)


def _entry(file: ImageFile, pieces: Pieces, etag: str, limits: IndexLimits) -> ImageEntry:
    try:
        header = read_header(pieces)
    except HeaderError as error:
        return _broken(file, etag, "truncated_image" if error.truncated else "unreadable_image", str(error))
    if header.width * header.height > limits.image_pixels_max:
        problem = (
            f"it claims {header.width} x {header.height} pixels, but an image may have at most "
            f"{limits.image_pixels_max}"
        )
        return _broken(file, etag, "decompression_bomb", problem)
    return ImageEntry(
        name=file.name,
        size_bytes=pieces.size_bytes,
        etag=etag,
        width=header.width,
        height=header.height,
        orientation=header.orientation,
        format=str(header.format),
    )


def _broken(file: ImageFile, etag: str, rule: str, problem: str) -> ImageEntry:
    return ImageEntry(name=file.name, size_bytes=file.size_bytes, etag=etag, rule=rule, problem=problem)
