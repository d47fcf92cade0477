"""Protobuf's wire format by hand, where Google's library is too heavy: the keeper, and requests joined from parts."""

from __future__ import annotations

__all__ = ["field", "number", "varint"]


def varint(value: int) -> bytes:
    """An unsigned integer, seven bits a byte, lowest first."""
    if value < 0x80:
        return bytes((value,))
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def field(tag: int, data: bytes) -> bytes:
    """A field of string, bytes or message.

    Args:
        tag: The field's number.
        data: Its content.
    """
    return varint(tag << 3 | 2) + varint(len(data)) + data


def number(tag: int, value: int) -> bytes:
    """A field of an integer that is not negative; nothing for 0, which is the default."""
    return varint(tag << 3) + varint(value) if value else b""
