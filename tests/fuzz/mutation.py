"""Changes to inputs: of bytes, of words, and of the structure of JSON, PNG and TIFF. Everything follows from a seed."""

from __future__ import annotations

import json
import random
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from tests.fuzz.case import Case

CONTENT_BYTES_MAX = 2**16
"""Of one file: small inputs are tried faster, and find the same."""
NUMBERS = (0, 1, -1, 2, 3, 7, 8, 16, 127, 128, 255, 256, 32_767, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1, 2**63)
WORDS = (
    *("0", "-1", "1e309", "-1e309", "NaN", ".nan", ".inf", "1" * 400, "0.1", "1e-320", "-0", "9007199254740993"),
    *("null", "~", "''", '""', "[]", "{}", "true", "false", "no", "007", "1.10", "- ", ": ", "&a", "*a", "!!python/x"),
    *("<<", "---", "...", "|", ">", "#", "%YAML", "\t", "\r", "\x00", "\u2028", "\ud83d\ude00", "\ufeff", "\x7f"),
    *('"\\ud800"', '"\\u0000"', "[" * 40, "{" * 40, '{"a":' * 40, "a" * 300, "../x", "/etc/passwd", "x\\y", "٣"),
    *("category", "bbox", "quad", "crowd", "ignore", "area", "name", "task", "annotations", "images", "colors"),
    *("categories", "labels", "identities", "range", "tokens", "keypoints", "things", "sigmas", "flip_pairs"),
    *("counts", "size", "segmentation", "iscrowd", "image_id", "category_id", "id", "file_name", "segments_info"),
    *("object detection", "panoptic segmentation", "depth estimation", "&lt;", "<!DOCTYPE a [<!ENTITY b 'c'>]>", "&b;"),
)
_WORD = re.compile(r"[\w.+-]+|\s+|[^\w\s]")
_TEXT = (".yaml", ".yml", ".json", ".txt", ".xml", ".csv")


def mutated(case: Case, others: Sequence[Case], source: random.Random) -> Case:
    """A changed copy: one file of it, mostly, changed once or a few times."""
    case = dict(case)
    for _ in range(1 if source.random() < 0.7 else 3):
        name = source.choice(sorted(case))
        content = case[name]
        for _ in range(source.choice((1, 1, 1, 2, 4, 8))):
            content = _changed(name, content, others, source)[:CONTENT_BYTES_MAX]
        case[name] = content
    return case


def _changed(name: str, content: bytes, others: Sequence[Case], source: random.Random) -> bytes:
    choices: list[Callable[[bytes, random.Random], bytes]] = [_change_bytes]
    if name.endswith(_TEXT):
        choices += [_change_words, _change_words, _change_lines]
        if content[:1] in b"{[":
            choices += [_change_json] * 3
    if name.endswith(".png"):
        choices += [_change_png] * 4
    if name.endswith((".tif", ".tiff")):
        choices += [_change_tiff] * 3
    if source.random() < 0.03:
        other = source.choice(others).get(name, b"")
        at, other_at = _position(content, source), _position(other, source)
        return content[:at] + other[other_at:]
    return source.choice(choices)(content, source)


def _position(content: bytes, source: random.Random) -> int:
    return source.randint(0, len(content))


def _change_bytes(content: bytes, source: random.Random) -> bytes:
    at = _position(content, source)
    end = min(len(content), at + int(2 ** source.uniform(0, 8)))
    match source.randrange(8):
        case 0:
            flipped = bytearray(content or b"\0")
            flipped[at % len(flipped)] ^= 1 << source.randrange(8)
            return bytes(flipped)
        case 1:
            return content[:at] + content[end:]
        case 2:
            return content[:end] + content[at:end] * source.choice((1, 1, 2, 50)) + content[end:]
        case 3:
            return content[:at] + source.randbytes(source.choice((1, 1, 2, 4, 16))) + content[at:]
        case 4:
            return content[:at]
        case 5:
            return content[:at] + bytes(end - at) + content[end:]
        case _:
            order, size = source.choice("<>"), source.choice("BHIQ")
            number = source.choice(NUMBERS) % 2 ** (8 * struct.calcsize(size))
            packed = struct.pack(order + size, number)
            return content[:at] + packed + content[at + len(packed) :]


def _change_words(content: bytes, source: random.Random) -> bytes:
    words = _WORD.findall(content.decode("utf-8", "replace"))
    if not words:
        return source.choice(WORDS).encode("utf-8", "replace")
    at = source.randrange(len(words))
    match source.randrange(6):
        case 0:
            del words[at]
        case 1:
            words.insert(at, words[source.randrange(len(words))])
        case 2:
            other = source.randrange(len(words))
            words[at], words[other] = words[other], words[at]
        case 3:
            words[at] = str(source.choice(NUMBERS))
        case 4:
            words.insert(at, source.choice(WORDS))
        case _:
            words[at] = source.choice(WORDS)
    return "".join(words).encode("utf-8", "replace")


def _change_lines(content: bytes, source: random.Random) -> bytes:
    lines = content.split(b"\n")
    at = source.randrange(len(lines))
    match source.randrange(4):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, lines[source.randrange(len(lines))])
        case 2:
            lines[at] = b" " * source.randrange(6) + lines[at].lstrip()
        case _:
            other = source.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
    return b"\n".join(lines)


def _change_json(content: bytes, source: random.Random) -> bytes:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return _change_words(content, source)
    holder = [value]
    places: list[tuple[Any, Any]] = [(holder, 0)]
    for container, key in places:  # grows while it is walked
        inner = container[key]
        if isinstance(inner, (dict, list)) and len(places) < 10_000:
            places += [(inner, each) for each in (inner if isinstance(inner, dict) else range(len(inner)))]
    container, key = source.choice(places)
    match source.randrange(5):
        case 0 if container is not holder:
            del container[key]
        case 1 if isinstance(container, list) and container is not holder:
            container.insert(key, container[key])
        case 2:
            container[key] = source.choice((None, True, [], {}, "", "x", [[]], {"counts": [1], "size": [1, 1]}))
        case 3:
            other, other_key = source.choice(places)
            container[key] = json.loads(json.dumps(other[other_key]))
        case _:
            container[key] = source.choice((*NUMBERS, 0.5, -0.5, 1e300, 1e-300, "1", float("nan"), float("inf")))
    return json.dumps(holder[0]).encode()


def _change_png(content: bytes, source: random.Random) -> bytes:
    """Change a chunk, or what its data hold, and make the checksums right again: most of what is wrong lies behind."""
    chunks, position = [], 8
    while position + 8 <= len(content):
        (length,) = struct.unpack_from(">I", content, position)
        chunks.append([content[position + 4 : position + 8], content[position + 8 : position + 8 + length]])
        position += 12 + length
    if not chunks:
        return _change_bytes(content, source)
    at = source.randrange(len(chunks))
    kind, data = chunks[at]
    match source.randrange(6):
        case 0:
            del chunks[at]
        case 1:
            chunks.insert(source.randrange(len(chunks)), [kind, data])
        case 2:
            chunks[at][0] = source.choice(
                (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf", b"gAMA", b"iCCP", b"ABCD")
            )
        case 3 if kind == b"IDAT":
            try:
                raw = zlib.decompress(data)
            except zlib.error:
                raw = data
            chunks[at][1] = zlib.compress(_change_bytes(raw, source)[:CONTENT_BYTES_MAX], source.choice((0, 1, 9)))
        case 4 if kind == b"IHDR" and len(data) == 13:
            fields = list(struct.unpack(">IIBBBBB", data))
            field = source.randrange(7)
            fields[field] = source.choice((0, 1, 2, 3, 4, 6, 8, 16, 255, *([2**31 - 1, 70_000] if field < 2 else [])))
            chunks[at][1] = struct.pack(">IIBBBBB", *fields)
        case _:
            chunks[at][1] = _change_bytes(data, source)
    return content[:8] + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _change_tiff(content: bytes, source: random.Random) -> bytes:
    """Change a field of an entry of a directory: tag, type, count, or value."""
    order = ">" if content[:2] == b"MM" else "<"
    big = content[2:4] in (b"+\0", b"\0+")
    code, offset = ("Q", 8) if big else ("I", 4)
    directories = []
    try:
        (position,) = struct.unpack_from(order + code, content, offset)
        while position and len(directories) < 8:
            (count,) = struct.unpack_from(order + ("Q" if big else "H"), content, position)
            start = position + (8 if big else 2)
            directories.append((start, count))
            (position,) = struct.unpack_from(order + code, content, start + count * (20 if big else 12))
    except (struct.error, OverflowError):
        pass
    if not directories or not directories[-1][1]:
        return _change_bytes(content, source)
    start, count = source.choice(directories)
    entry = start + source.randrange(max(1, count)) * (20 if big else 12)
    field, code = source.choice(((0, "H"), (2, "H"), (4, "Q" if big else "I"), (12 if big else 8, "Q" if big else "I")))
    if field == 2:
        value = source.choice((1, 2, 3, 4, 5, 7, 9, 12, 13, 16, 0, 99))
    elif field == 0:
        value = source.choice(
            (254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 322, 324, 338, 339)
        )
    else:
        value = source.choice((*NUMBERS, 5, 32_773, 50_000, 32_946, len(content), len(content) - 1, start))
    changed = bytearray(content)
    if field >= 8 and source.random() < 0.7:  # small values stand in its first bytes
        code = "H"
    if entry + field + struct.calcsize(code) > len(changed):
        return _change_bytes(content, source)
    struct.pack_into(order + code, changed, entry + field, value % 2 ** (8 * struct.calcsize(code)))
    return bytes(changed)
