"""All files under a folder of this machine, and what cannot be listed: links to nothing or in a circle, bad names."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from services.conversion.finding import Place, Report


@dataclass(frozen=True, kw_only=True, slots=True)
class WalkedFile:
    """One file. `path` is relative to the folder; `version` changes whenever the content may have changed."""

    path: str
    size_bytes: int
    version: str


def walk(root: Path, report: Report) -> Iterator[WalkedFile]:
    """Every file that can be read, hidden ones left out, links followed; what is wrong with others is reported."""
    resolved = root.resolve()
    waiting: list[tuple[str, str, tuple[tuple[int, int], ...]]] = [(os.fspath(root), "", (_identity(root.stat()),))]
    while waiting:
        folder, path, above = waiting.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            report.error(
                "unreadable_folder", f"it cannot be listed: {error.strerror}", _place(f"{path}/"), annotations=0
            )
            continue
        for entry in entries:
            if entry.name.startswith((".", "__MACOSX")):
                continue
            inner = f"{path}/{entry.name}" if path else entry.name
            if not entry.name.isprintable() or "\\" in entry.name:
                message = "the name is not UTF-8, or holds a control character or a backslash: rename it"
                report.error("bad_name", message, _place(inner), value=entry.name)
                continue
            try:
                about = entry.stat()
            except OSError as error:
                what = f"it is a link to what is not there: {error.strerror}" if entry.is_symlink() else error.strerror
                report.error("unreadable_file", f"{what}; put the file there, or remove it", _place(inner))
                continue
            if stat.S_ISREG(about.st_mode):
                version = f"{about.st_ino:x}-{about.st_mtime_ns:x}"
                yield WalkedFile(path=inner, size_bytes=about.st_size, version=version)
            elif stat.S_ISDIR(about.st_mode):
                if _identity(about) in above:
                    message = "it is a link to a folder that it lies in, so that there is no end: remove the link"
                    report.error("link_in_a_circle", message, _place(inner), annotations=0)
                elif entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(resolved):
                    message = "it is a link out of the dataset: put the folder there"
                    report.error("leads_outside", message, _place(inner), annotations=0)
                else:
                    waiting.append((entry.path, inner, (*above, _identity(about))))


def _identity(about: os.stat_result) -> tuple[int, int]:
    return about.st_dev, about.st_ino


def _place(path: str) -> Place:
    return Place(file=path, image=PurePosixPath(path).name)
