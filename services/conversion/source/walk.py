"""All files under a folder of this machine, and what cannot be listed: links to nothing or in a circle, bad names."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from services.chassis.errors import SihlaiError
from services.chassis.objects.local import listed
from services.chassis.objects.store import ObjectFolder
from services.conversion.finding import Place, Report
from services.conversion.source.entry import EntryError, look_at


@dataclass(frozen=True, kw_only=True, slots=True)
class WalkedFile:
    """One file. `path` is relative to the folder; `version` changes whenever the content may have changed."""

    path: str
    size_bytes: int
    version: str


def walk(root: ObjectFolder, report: Report) -> Iterator[WalkedFile]:
    """Every file that can be read, hidden ones left out, links followed; what is wrong with others is reported."""
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while waiting:
        path, above = waiting.pop()
        try:
            with root.opened(path) as descriptor, listed(descriptor) as entries:
                above = (*above, _identity(os.fstat(descriptor)))
                found = [_looked_at(root, path, entry, report) for entry in sorted(entries, key=lambda each: each.name)]
        except (SihlaiError, OSError) as error:
            problem = f"it cannot be listed: {error.strerror if isinstance(error, OSError) else error.message}"
            report.error("unreadable_folder", problem, _place(f"{path}/"), annotations=0)
            continue
        for inner, about in filter(None, found):
            if stat.S_ISREG(about.st_mode):
                version = f"{about.st_ino:x}-{about.st_mtime_ns:x}"
                yield WalkedFile(path=inner, size_bytes=about.st_size, version=version)
            elif stat.S_ISDIR(about.st_mode) and _identity(about) in above:
                message = "it is a link to a folder that it lies in, so that there is no end: remove the link"
                report.error("link_in_a_circle", message, _place(inner), annotations=0)
            elif stat.S_ISDIR(about.st_mode):
                waiting.append((inner, above))


def _looked_at(
    root: ObjectFolder, path: str, entry: os.DirEntry[str], report: Report
) -> tuple[str, os.stat_result] | None:
    """An entry of a folder, by its path; None where it is passed over."""
    if entry.name.startswith((".", "__MACOSX")):
        return None
    inner = f"{path}/{entry.name}" if path else entry.name
    if not entry.name.isprintable() or "\\" in entry.name:
        message = "the name is not UTF-8, or holds a control character or a backslash: rename it"
        report.error("bad_name", message, _place(inner), value=entry.name)
        return None
    try:
        return inner, look_at(root, inner, entry)
    except EntryError as error:
        if error.outside:
            message = "it is a link out of the dataset: put there what it leads to"
            report.error("leads_outside", message, _place(inner))
        else:
            what = f"it is a link to what is not there: {error}" if entry.is_symlink() else str(error)
            report.error("unreadable_file", f"{what}; put the file there, or remove it", _place(inner))
        return None


def _identity(about: os.stat_result) -> tuple[int, int]:
    return about.st_dev, about.st_ino


def _place(path: str) -> Place:
    return Place(file=path, image=PurePosixPath(path).name)
