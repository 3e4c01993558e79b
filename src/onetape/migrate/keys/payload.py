"""The payload of DUMP and RESTORE as another server takes it: its version and its checksum.

Its last ten bytes are the version of the RDB format (two bytes, little-endian) and a CRC-64 (Jones) of all before. A
server refuses a version above its own; Valkey also refuses the versions 12 to 79, which are those of Redis since 7.4.
"""

from __future__ import annotations

from functools import cache

_POLYNOMIAL = 0x95AC9329AC4BC9B5  # Jones, reflected
#: What a server says of a version or checksum that it does not take, and of content that it cannot read.
REFUSED_VERSION = "payload version or checksum"
REFUSED_CONTENT = "Bad data format"
#: No type of value has this number, so a server that takes the version refuses the content: nothing is ever written.
_NO_TYPE = 0xFF


def version_of(payload: bytes) -> int:
    """Return the version of the RDB format that a DUMP was written in."""
    return int.from_bytes(payload[-10:-8], "little")


def told(refusal: str, payload: bytes) -> str:
    """Return a server's refusal of a payload with what the payload is."""
    kind = payload[0]
    if kind in (6, 7):
        name = "a value of a module, which the target has not loaded"
    elif kind in (0xF5, 0xF6):
        name = "a function library"
    else:
        name = f"a value of the format's type {kind}"
    if REFUSED_VERSION in refusal:
        name += f", of RDB version {version_of(payload)}"
    return f"{refusal}: {name}"


def sealed(content: bytes, version: int) -> bytes:
    """Return type byte and value with a footer of this version and the right checksum."""
    body = content + version.to_bytes(2, "little")
    return body + crc64(body).to_bytes(8, "little")


def probe(version: int) -> bytes:
    """Return a payload that no server can restore, and whose refusal tells whether it takes this version."""
    return sealed(bytes([_NO_TYPE]), version)


def crc64(data: bytes) -> int:
    """Return the checksum that Redis calls crc64: Jones' polynomial, reflected, from 0."""
    table, crc = _table(), 0
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc


@cache
def _table() -> tuple[int, ...]:
    entries = []
    for value in range(256):
        for _bit in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
        entries.append(value)
    return tuple(entries)
