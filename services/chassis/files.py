"""A file is there whole or not at all: written under another name, synced, and only then given its own.

Whatever dies on the way leaves what was there before, and at most a hidden draft beside it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from services.chassis.errors import ConfigurationError

DRAFT_SUFFIX = ".draft"
"""Of what is being written; who owns a folder may remove what a killed process left there."""


def replace_file(path: Path, content: bytes, *, mode: int = 0o644, synced: bool = True) -> None:
    """Give `path` this content. Raises OSError, and then nothing has changed. `synced`: it survives a loss of power."""
    with replacing(path, mode=mode, synced=synced) as file:
        file.write(content)


def create_file(path: Path, content: bytes, *, mode: int = 0o644) -> bool:
    """As `replace_file`, but never over an existing file: False where there is one, which stays as it is."""
    draft = _draft_of(path)
    try:
        with _opened(draft, mode) as file:
            file.write(content)
            _sync_file(file)
        os.link(draft, path)
    except FileExistsError:
        return False
    finally:
        draft.unlink(missing_ok=True)
    sync(path.parent)
    return True


@contextlib.contextmanager
def replacing(path: Path, *, mode: int = 0o644, synced: bool = True) -> Iterator[BinaryIO]:
    """A file to write into, which takes the place of `path` when the block ends without an error."""
    draft = _draft_of(path)
    try:
        with _opened(draft, mode) as file:
            yield file
            if synced:
                _sync_file(file)
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    if synced:
        sync(path.parent)


def require_private(path: Path) -> None:
    """Raise ConfigurationError where a file that holds a key can be read or written by others.

    Its group may: that is how a secret is mounted for a process that is not its owner.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigurationError([f"{path} cannot be read: {error.strerror}"]) from error
    if mode & stat.S_IRWXO:
        problem = f"{path} holds a key, and its mode {stat.filemode(mode)} lets others read or change it: chmod 600 it"
        raise ConfigurationError([problem])


def sync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _draft_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{DRAFT_SUFFIX}")


def _opened(draft: Path, mode: int) -> BinaryIO:
    """The permissions are there from the start: a key is never readable by others, not for a moment."""
    return os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb")


def _sync_file(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
