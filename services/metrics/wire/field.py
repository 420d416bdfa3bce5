"""Fields of messages, byte by byte: for messages of which a part is serialised once and handed on many times."""

from __future__ import annotations

LENGTH_DELIMITED = 2
VARINT = 0
VARINT_MASK = 2**64 - 1


def tag(number: int, wire_type: int) -> bytes:
    """What a field begins with."""
    return varint(number << 3 | wire_type)


def varint(value: int) -> bytes:
    """A number of up to 64 bits; negative ones take ten bytes."""
    value &= VARINT_MASK
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def delimited(field_tag: bytes, data: bytes) -> bytes:
    """A field that holds bytes, text, a message or packed numbers."""
    return b"".join((field_tag, varint(len(data)), data))
