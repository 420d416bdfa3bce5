"""Names as people type them: `digits/first` is `projects/digits/jobs/first`.

Full names pass as they are. What cannot be a name raises NameFormatError before anything is sent.
"""

from __future__ import annotations

import re

ID = r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?"
CHECKPOINT_ID = r"([0-9]+-[0-9]+|last|best|final)"
LAST_CHECKPOINT = "last"


class NameFormatError(Exception):
    """What was typed cannot be a name; the message is for a person."""


def project_name(text: str) -> str:
    """`digits` → `projects/digits`; `-`, which is all projects, too."""
    return _expanded(text, "a project", ("projects",), (rf"({ID}|-)",), "digits")


def job_name(text: str) -> str:
    """`digits/first` → `projects/digits/jobs/first`."""
    return _expanded(text, "a job", ("projects", "jobs"), (ID, ID), "digits/first")


def runner_name(text: str) -> str:
    """`gpu-1` → `runners/gpu-1`."""
    return _expanded(text, "a runner", ("runners",), (ID,), "gpu-1")


def checkpoint_name(text: str) -> str:
    """`digits/first/best` → `projects/digits/jobs/first/checkpoints/best`; without its last part it is the last one."""
    parts = text.split("/")
    if len(parts) == 2 or (len(parts) == 4 and parts[0] == "projects"):
        return f"{job_name(text)}/checkpoints/{LAST_CHECKPOINT}"
    collections, ids = ("projects", "jobs", "checkpoints"), (ID, ID, CHECKPOINT_ID)
    return _expanded(text, "a checkpoint", collections, ids, "digits/first/last")


def short(name: str) -> str:
    """The name without its collections: what people read and may type."""
    return "/".join(name.split("/")[1::2]) if name.startswith("projects/") else name


def _expanded(text: str, what: str, collections: tuple[str, ...], ids: tuple[str, ...], example: str) -> str:
    full = "/".join(f"{collection}/{each}" for collection, each in zip(collections, ids, strict=True))
    if re.fullmatch(full, text):
        return text
    if not text.startswith("projects/") and re.fullmatch("/".join(ids), text):
        return "/".join(f"{c}/{part}" for c, part in zip(collections, text.split("/"), strict=True))
    wanted = "/".join(f"{collection}/…" for collection in collections)
    raise NameFormatError(
        f"{text!r} cannot be the name of {what}: write it like {example} or {wanted} (lower-case letters, digits and "
        "dashes)"
    )
