"""Folders by descriptors: a path that leads to the folder that was opened, whatever is put in its place since."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from services.chassis.objects.local import through


@contextlib.contextmanager
def beside(target: Path, *, make: bool = False) -> Iterator[Path]:
    """The target, whose path has no links, by a path that leads to the folder it was in, whatever is put there since.

    `make`: folders that are missing are made, and those of them removed that are empty in the end. Raises
    FileNotFoundError where they are not, NotADirectoryError where one has become a link, OSError.
    """
    with contextlib.ExitStack() as stack:
        here = stack.enter_context(opened_folder(target.anchor))
        for name in target.parts[1:-1]:
            try:
                below = stack.enter_context(opened_folder(name, here))
            except FileNotFoundError:
                if not make:
                    raise
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, dir_fd=here)
                    stack.callback(_remove_empty, name, here)
                below = stack.enter_context(opened_folder(name, here))
            here = below
        yield Path(through(here)) / target.name


@contextlib.contextmanager
def pinned(folder: Path) -> Iterator[Path]:
    """A folder, no link, by a path that leads to it, whatever is put in its place."""
    with opened_folder(folder) as descriptor:
        yield Path(through(descriptor))


@contextlib.contextmanager
def opened_folder(path: str | Path, below: int | None = None) -> Iterator[int]:
    """A descriptor of a folder. Raises NotADirectoryError for a link."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=below)
    except NotADirectoryError as error:
        problem = f"{path} is no folder, or has become a link"
        raise NotADirectoryError(error.errno, problem) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _remove_empty(name: str, below: int) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(name, dir_fd=below)
