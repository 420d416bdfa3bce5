"""What lies under a name in an open folder of this machine; a link is what it leads to, where that is allowed."""

from __future__ import annotations

import os

from services.chassis.errors import Reason, SihlaiError
from services.chassis.objects.store import ObjectFolder


class EntryError(Exception):
    """What lies there cannot be looked at; the text is for a person. `outside`: it is a link out of the dataset."""

    def __init__(self, problem: str, *, outside: bool = False) -> None:
        super().__init__(problem)
        self.outside = outside


def look_at(folder: ObjectFolder, path: str, entry: os.DirEntry[str]) -> os.stat_result:
    """What is known of an entry, which lies at `path` in `folder`. Raises EntryError."""
    try:
        if not entry.is_symlink():
            return entry.stat(follow_symlinks=False)
        with folder.opened(path) as descriptor:
            return os.fstat(descriptor)
    except OSError as error:
        raise EntryError(error.strerror or str(error)) from error
    except SihlaiError as error:
        cause = error.__cause__
        problem = (cause.strerror or str(cause)) if isinstance(cause, OSError) else error.message
        raise EntryError(problem, outside=error.reason is Reason.URI_NOT_ALLOWED) from error
