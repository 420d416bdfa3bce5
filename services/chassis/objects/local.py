"""Folders of this machine as stores of objects: our own, and those of users, which are bounded and only read.

Whoever may write in a user's folder can put a link in a file's place between a look at it and its use. So nothing is
decided by a path. A descriptor is opened first, which reads nothing and waits for nothing; the system says where that
lies which it leads to; and that alone is read then, through the descriptor.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import obstore
from obstore.store import LocalStore

from services.chassis.errors import FailedPrecondition, PermissionDenied, Reason
from services.chassis.threads import Threads

Result = TypeVar("Result")

DESCRIPTORS = "/proc/self/fd"
"""Where the system shows this process what it has opened, under its numbers."""
NO_WAY_TO_A_FILE = (errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
THREADS_MAX = 16
"""Calls into the folders of a mount that a process makes at once: so many may hang."""
CALLS_WAITING_MAX = 1_000
MOUNTS_MAX = 8
"""Mounts that are told apart; where there are more, some of them share their threads."""
MOUNT_PARTS = 3
"""Folders that lie in one to this depth are taken for those of one mount: to ask the system may hang."""
_THREADS = tuple(
    Threads(f"folders-{number}", threads_max=THREADS_MAX, waiting_max=CALLS_WAITING_MAX) for number in range(MOUNTS_MAX)
)
OWN_FILES = Threads("own-files", threads_max=THREADS_MAX, waiting_max=CALLS_WAITING_MAX)
"""For files of this process that go into stores, or come from them."""


def folder_threads(folder: Path) -> Threads:
    """Threads for calls into this folder: a mount that hangs takes none of the others'."""
    mount = "/".join(folder.parts[:MOUNT_PARTS])
    return _THREADS[zlib.crc32(mount.encode(errors="surrogatepass")) % MOUNTS_MAX]


@dataclass(frozen=True, kw_only=True)
class LocalBounds:
    """Which folders of this machine may be read. Of several that hold a place the innermost decides."""

    roots: tuple[Path, ...]
    closed: tuple[Path, ...] = ()
    """Folders among them that are not for users, such as the installation's own data."""

    def require(self, place: Path, uri: str, written: Path) -> None:
        """Raise PermissionDenied where a place may not be read. `written`: how `uri` names it."""
        depths = {root: len(root.parts) for root in (*self.closed, *self.roots) if place.is_relative_to(root)}
        innermost = max(depths, key=lambda root: depths[root], default=None)
        if innermost in self.roots:
            return
        message = f"{uri}{_link(place, written)} lies {self._where(innermost)}"
        raise PermissionDenied(Reason.URI_NOT_ALLOWED, message, {"uri": uri})

    def _where(self, closed: Path | None) -> str:
        if closed is not None:
            return f"in {closed}, where the system keeps its own data"
        allowed = ", ".join(str(root) for root in self.roots) or "none"
        return f"outside the folders that the configuration allows ({allowed})"


class OwnFolder:
    """A folder of the system's own, which nobody else writes to.

    It may lie in a file system that hangs: what is awaited raises TimeoutError after `answer_seconds_max`.
    """

    advice = "check the permissions of the files"

    def __init__(self, uri: str, folder: Path, *, answer_seconds_max: float) -> None:
        self._uri = uri
        self._folder = folder
        self._answer_seconds_max = answer_seconds_max
        self._threads = folder_threads(folder)

    async def exists(self) -> bool:
        """Whether the folder is there."""
        return await self._answer(self._folder.is_dir)

    async def open(self, path: str, *, write: bool = False) -> LocalStore:
        """The folder's store, for a change; writing makes the folder."""

        def opened() -> LocalStore:
            if not write and not self._folder.is_dir():
                raise FileNotFoundError(self._folder)
            return LocalStore(self._folder, mkdir=write)

        return await self._answer(opened)

    @contextlib.asynccontextmanager
    async def reading(self, path: str) -> AsyncIterator[tuple[LocalStore, str]]:
        """The folder's store."""
        yield await self.open(path), path

    async def list(self, prefix: str) -> AsyncIterator[Sequence[obstore.ObjectMeta]]:
        """All files, those behind links too."""
        async for batch in obstore.list(await self.open(prefix), prefix or None):
            yield batch

    @contextlib.contextmanager
    def opened(self, path: str) -> Iterator[int]:
        """A descriptor of what lies at the path, links followed; `through` reads it.

        Raises PermissionDenied where a link leads out of this folder, OSError.
        """
        with open_place(self._folder) as root:
            place = self._allowed(root, "", self._folder)
            if not path:
                yield root
                return
            with open_place(path, below=root) as found:
                inside = self._allowed(found, path, self._folder / path)
                if not inside.is_relative_to(place):
                    message = f"{self._named(path)}{_link(inside, place / path)} lies outside {self._uri}"
                    raise PermissionDenied(Reason.URI_NOT_ALLOWED, message, {"uri": self._named(path)})
                yield found

    async def _answer(self, call: Callable[[], Result]) -> Result:
        return await self._threads.run(call, seconds_max=self._answer_seconds_max)

    def _allowed(self, descriptor: int, path: str, written: Path) -> Path:
        """Where it lies."""
        return place_of(descriptor)

    def _named(self, path: str) -> str:
        return f"{self._uri}/{path}" if path else self._uri


class UsersFolder(OwnFolder):
    """A folder of a user's: it is read, within bounds, and never written to."""

    def __init__(self, uri: str, folder: Path, bounds: LocalBounds, *, answer_seconds_max: float) -> None:
        """Raises PermissionDenied where the folder lies outside the bounds now; it need not exist."""
        super().__init__(uri, folder, answer_seconds_max=answer_seconds_max)
        self._bounds = bounds
        bounds.require(folder.resolve(), uri, Path(os.path.normpath(folder)))

    async def open(self, path: str, *, write: bool = False) -> LocalStore:
        """There is no change of it."""
        message = f"{self._named(path)} is a user's: it is not written to"
        raise PermissionDenied(Reason.URI_NOT_ALLOWED, message, {"uri": self._named(path)})

    @contextlib.asynccontextmanager
    async def reading(self, path: str) -> AsyncIterator[tuple[LocalStore, str]]:
        """A store that holds the file as it was opened, and its name there."""
        async with self._threads.entered(self._opened_file(path), seconds_max=self._answer_seconds_max) as descriptor:
            yield LocalStore(DESCRIPTORS), str(descriptor)

    @contextlib.contextmanager
    def _opened_file(self, path: str) -> Iterator[int]:
        with self.opened(path) as descriptor:
            require_file(descriptor, self._named(path))
            yield descriptor

    async def list(self, prefix: str) -> AsyncIterator[Sequence[obstore.ObjectMeta]]:
        """All files but those in folders behind links. Of what lies outside nothing is told but the link."""
        yield await self._threads.run(lambda: [*self._files(prefix)])  # which may take long without hanging

    def _files(self, prefix: str) -> Iterator[obstore.ObjectMeta]:
        waiting = [prefix]
        while waiting:
            path = waiting.pop()
            for name, about in self._entries(path):
                inner = f"{path}/{name}" if path else name
                if stat.S_ISDIR(about.st_mode):
                    waiting.append(inner)
                    continue
                if not name.isprintable():
                    message = f"{self._named(path)} holds a name that no object can have: {name!r}"
                    raise FailedPrecondition(Reason.DATASET_INVALID, message, {"uri": self._named(path)})
                yield _meta(inner, about)

    def _entries(self, path: str) -> Iterator[tuple[str, os.stat_result]]:
        """Files and folders in a folder; a link counts as the file that it leads to, or as itself."""
        try:
            with self.opened(path) as descriptor, listed(descriptor) as entries:
                found = [(entry.name, entry.is_symlink(), entry.stat(follow_symlinks=False)) for entry in entries]
        except (FileNotFoundError, NotADirectoryError):
            return
        for name, is_link, about in found:
            if is_link:
                with contextlib.suppress(PermissionDenied, OSError), self.opened(f"{path}/{name}".lstrip("/")) as real:
                    about = os.fstat(real)
                if not stat.S_ISDIR(about.st_mode):
                    yield name, about
            elif stat.S_ISDIR(about.st_mode) or stat.S_ISREG(about.st_mode):
                yield name, about

    def _allowed(self, descriptor: int, path: str, written: Path) -> Path:
        place = place_of(descriptor)
        self._bounds.require(place, self._named(path), Path(os.path.normpath(written)))
        return place


@contextlib.contextmanager
def open_place(path: str | Path, *, below: int | None = None, follow: bool = True) -> Iterator[int]:
    """A descriptor that says what lies there and opens nothing yet. `follow`: the last link too. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW), dir_fd=below)
    except OSError as error:
        if error.errno in NO_WAY_TO_A_FILE:
            raise FileNotFoundError(errno.ENOENT, error.strerror, path) from error
        raise
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def place_of(descriptor: int) -> Path:
    """Where it lies, by the only path that has no links. Raises FileNotFoundError where it lies nowhere any more."""
    if os.fstat(descriptor).st_nlink == 0:
        raise FileNotFoundError(errno.ENOENT, "it was deleted")
    return Path(through(descriptor)).readlink()


def through(descriptor: int) -> str:
    """A path that leads to what is open, wherever it lies by now."""
    return f"{DESCRIPTORS}/{descriptor}"


def require_file(descriptor: int, uri: str) -> None:
    """Raise FileNotFoundError for a folder, FailedPrecondition for what may never end or never begin."""
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISDIR(mode):
        raise FileNotFoundError(errno.ENOENT, "it is a folder")
    if not stat.S_ISREG(mode):
        message = f"{uri} is no regular file: put one in its place"
        raise FailedPrecondition(Reason.DATASET_INVALID, message, {"uri": uri})


@contextlib.contextmanager
def listed(descriptor: int) -> Iterator[Iterator[os.DirEntry[str]]]:
    """What lies in a folder that is open: looked at, each entry is the one that lies in that folder."""
    reader = os.open(through(descriptor), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with os.scandir(reader) as entries:
            yield entries
    finally:
        os.close(reader)


def _link(place: Path, written: Path) -> str:
    """People look for a folder where they wrote it, and do not think of links."""
    return f" is a link to {place}, which" if place != written else ""


def _meta(path: str, about: os.stat_result) -> obstore.ObjectMeta:
    """As obstore has it of a file."""
    return {
        "path": path,
        "size": about.st_size,
        "e_tag": f'"{about.st_ino:x}-{about.st_mtime_ns // 1000:x}-{about.st_size:x}"',
        "last_modified": datetime.fromtimestamp(0, UTC) + timedelta(microseconds=about.st_mtime_ns // 1000),
        "version": None,
    }
