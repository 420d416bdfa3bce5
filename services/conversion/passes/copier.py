"""Images copied into a dataset in the making: each once, however often the call that wants them is interrupted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from services.chassis.objects.store import ObjectFolder
from services.chassis.objects.uri import local_path
from services.conversion.conveyor.work import Meter, Tell, in_thread, some_at_a_time
from services.conversion.source.copying import copy_files
from services.conversion.source.place import still_there
from services.conversion.store.draft import Draft

COPIES_TOGETHER = 256
"""Files of this machine that a thread copies in one go, and one thread does: two are in each other's way."""


class Copy(NamedTuple):
    """A file of so many bytes at `path` in its source, which belongs to `target` in the dataset."""

    path: str
    target: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Copier:
    """`requests_max`: files of a bucket that are read at once."""

    executor: Executor
    requests_max: int
    clock: Callable[[], float]

    async def copy(self, folder: ObjectFolder, files: Sequence[Copy], draft: Draft, tell: Tell) -> None:
        """Copy files of a source into a draft's dataset, those that are in the draft already excepted.

        Raises FailedPrecondition (DATASET_CHANGED) where one was deleted meanwhile, and what `copy_files` raises.
        """
        meter = Meter(self.clock)
        missing = await in_thread(self.executor, _missing, files, draft.copies)
        done = len(files) - len(missing)
        tell(meter.measure("copy", done, len(files)))
        together, at_once = (COPIES_TOGETHER, 1) if local_path(folder.uri) is not None else (1, self.requests_max)

        async def copy_some(first: int) -> None:
            nonlocal done
            some = missing[first : first + together]
            with still_there():
                await copy_files(folder, [(each.path, draft.copies / each.target) for each in some])
            done += len(some)
            tell(meter.measure("copy", done, len(files)))

        await some_at_a_time((copy_some(first) for first in range(0, len(missing), together)), at_once)
        await in_thread(self.executor, _put, draft.copies, draft.dataset)


def _missing(files: Sequence[Copy], copies: Path) -> list[Copy]:
    """What is not there whole. All else that is there, such as halves of files, is removed."""
    there = {path: path.stat().st_size for path in copies.rglob("*") if path.is_file()}
    whole = {each.target for each in files if there.get(copies / each.target) == each.size_bytes}
    for path in there:
        if path.relative_to(copies).as_posix() not in whole:
            path.unlink()
    return [each for each in files if each.target not in whole]


def _put(copies: Path, dataset: Path) -> None:
    """Everything into its place, by folders where the place is free."""
    for path in list(copies.iterdir()):
        target = dataset / path.name
        if path.is_dir() and target.exists():
            _put(path, target)
        else:
            path.rename(target)
