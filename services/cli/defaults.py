"""Every field of a job's specification with its meaning and its default, as job_spec.proto tells them.

The comments of the .proto file are the one place where people read them; they are part of the installed package, and a
test of the scheduler compares them with what it fills in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sihlai.scheduler.v1 import job_spec_pb2

PROTO = Path(job_spec_pb2.__file__).with_name("job_spec.proto")
NESTING_MAX = 12


@dataclass(frozen=True, kw_only=True)
class FieldDefault:
    """A field by its path in the specification, such as `trainer.adamw.learning_rate`; `default` empty: none."""

    path: str
    default: str
    meaning: str


def field_defaults() -> list[FieldDefault]:
    """All fields that hold a value, in the order of the .proto file."""
    comments = _comments(PROTO.read_text())
    return list(_fields(job_spec_pb2.JobSpec.DESCRIPTOR, "", comments))


def _fields(descriptor: Any, prefix: str, comments: Mapping[str, str]) -> Iterator[FieldDefault]:
    assert prefix.count(".") < NESTING_MAX, "the specification is a tree"
    for field in descriptor.fields:
        path = f"{prefix}{field.name}" + ("[0]" if field.is_repeated and field.message_type else "")
        nested = field.message_type
        ours = nested is not None and nested.file.name == job_spec_pb2.DESCRIPTOR.name
        comment = comments.get(f"{descriptor.name}.{field.name}", "")
        if ours and not nested.GetOptions().map_entry and nested.fields:
            yield from _fields(nested, f"{path}.", comments)
        else:
            is_map = nested is not None and nested.GetOptions().map_entry
            path = path.replace("[0]", ".KEY") if is_map else path
            match = re.search(r"[Dd]efault (.+?)(?:[.;](?:\s|$)|, (?:which|so|else))|(\S+), the default,", comment)
            default = "" if match is None else (match[1] or match[2]).strip("`")
            yield FieldDefault(path=path, default=default, meaning=comment)


def _comments(text: str) -> dict[str, str]:
    """The comment above each field, by message and field: `Trainer.seed`."""
    found: dict[str, str] = {}
    messages: list[str] = []
    comment: list[str] = []
    for line in (line.strip() for line in text.splitlines()):
        if line.startswith("//"):
            comment.append(line.removeprefix("//").strip())
            continue
        if opened := re.match(r"(message|oneof|enum|service) (\w+) \{", line):
            # A oneof is no message of its own: its fields belong to the one around it.
            messages.append(messages[-1] if opened[1] == "oneof" else opened[2])
            if line.endswith("}"):
                messages.pop()
        elif line == "}":
            messages.pop()
        elif messages and (field := re.match(r"(?:optional |repeated )?[\w.<>, ]+ (\w+) = \d+;", line)):
            found[f"{messages[-1]}.{field[1]}"] = " ".join(comment)
        comment = []
    return found
