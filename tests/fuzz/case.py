"""An input of a fuzzed reader: a few files by name. Bytes in and out, so that it can be kept and tried again."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import TypeAlias

Case: TypeAlias = dict[str, bytes]
"""File name to content; the names are those that the reader sees."""


def case_to_bytes(case: Case) -> bytes:
    parts = [struct.pack("<I", len(case))]
    for name, content in case.items():
        encoded = name.encode()
        parts += [struct.pack("<II", len(encoded), len(content)), encoded, content]
    return b"".join(parts)


def case_from_bytes(data: bytes) -> Case:
    (count,) = struct.unpack_from("<I", data)
    position, case = 4, {}
    for _ in range(count):
        name_bytes, content_bytes = struct.unpack_from("<II", data, position)
        position += 8
        name = data[position : position + name_bytes].decode()
        position += name_bytes
        case[name] = data[position : position + content_bytes]
        position += content_bytes
    return case


def save_case(case: Case, folder: Path, problem: str) -> Path:
    """Keep what went wrong: the files as they were, and `problem.txt`. The same input has the same folder."""
    target = folder / hashlib.sha256(case_to_bytes(case)).hexdigest()[:16]
    for name, content in case.items():
        path = target / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (target / "problem.txt").write_text(problem)
    (target / "case").write_bytes(case_to_bytes(case))
    return target
