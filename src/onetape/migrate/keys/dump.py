"""The dump: what DUMP answers, and a digest of it that is equal for a key and its copy.

A payload is one byte of type, the value, then ten bytes of footer (RDB version and checksum). The value's
bytes are those in memory, with one exception: sets and hashes kept in a hash table come in the table's order,
which depends on how it grew. Their encoded elements are sorted here, so that a copy, whose table grew
differently, has the same digest. Measured on Valkey 9.1 and Redis 7.0 for every type and encoding; source of
the format: `rdb.c` of both.
"""

from __future__ import annotations

from hashlib import blake2b

DIGEST_BYTES = 16
_FOOTER_BYTES = 10
#: Bytes of a seal: see seal().
SEAL_BYTES = _FOOTER_BYTES

# Types in which elements follow one another as encoded strings in the order of a hash table, and how many
# strings make an element. 22 is Valkey's hash with an expiry of eight bytes after each pair; 24 is Redis
# 7.4's, with eight bytes of the least expiry before the length and an encoded number before each pair.
_SET, _HASH, _HASH_VALKEY_EXPIRY, _HASH_REDIS_EXPIRY = 2, 4, 22, 24
_TABLES = bytes([_SET, _HASH, _HASH_VALKEY_EXPIRY, _HASH_REDIS_EXPIRY])
#: First bytes of the payloads that have no seal.
UNSEALED = _TABLES


def digest(payload: bytes) -> bytes:
    """Return 16 bytes that stand for the content of a DUMP payload."""
    if payload[0] in _TABLES:
        return _table_digest(payload)
    return blake2b(payload[:-_FOOTER_BYTES], digest_size=DIGEST_BYTES).digest()


def seal(payload: bytes) -> bytes:
    """Return 10 bytes that stand for a payload and cost nothing: its footer, RDB version and CRC-64.

    A server's script can give it without sending the payload. It tells a value from what it was by chance; who may
    write to the server can make two values with one seal, but may do to the target what he likes anyway. Not for
    types in UNSEALED; and after a server wrote another RDB version no seal of it is equal to those before.
    """
    return payload[-_FOOTER_BYTES:]


def holds(stands: bytes | None, payload: bytes, content: bytes | None = None) -> bool:
    """Return whether a digest or a seal, whichever it is, stands for this payload. None and b"" stand for nothing.

    `content`: the payload's digest, where it was taken already.
    """
    if not stands:
        return False
    if len(stands) == SEAL_BYTES:
        return stands == seal(payload)
    return stands == (content or digest(payload))


def _table_digest(payload: bytes) -> bytes:
    kind, end = payload[0], len(payload) - _FOOTER_BYTES
    at = 1 + (8 if kind == _HASH_REDIS_EXPIRY else 0)
    start = at
    count, at = _length(payload, at)
    # The count is part of the head; it says how many elements were there even if two were to run together.
    head = payload[:start] + b"%d:" % count
    elements = []
    try:
        for _ in range(count):
            begin = at
            if kind == _HASH_REDIS_EXPIRY:
                _, at = _length(payload, at)
            at = _skip_string(payload, at)
            if kind != _SET:
                at = _skip_string(payload, at)
            if kind == _HASH_VALKEY_EXPIRY:
                at += 8
            elements.append(payload[begin:at])
    except IndexError:
        at = -1
    if at != end:  # not as expected, so as it is: then a copy may look different, which is safe
        return blake2b(payload[:end], digest_size=DIGEST_BYTES).digest()
    elements.sort()
    state = blake2b(head, digest_size=DIGEST_BYTES)
    state.update(b"".join(elements))
    return state.digest()


def _length(payload: bytes, at: int) -> tuple[int, int]:
    """Return an encoded length and where it ends.

    A special encoding comes back as minus one minus its number.
    """
    first = payload[at]
    kind = first >> 6
    if kind == 0:
        return first, at + 1
    if kind == 1:
        return (first & 0x3F) << 8 | payload[at + 1], at + 2
    if first == 0x80:
        return int.from_bytes(payload[at + 1 : at + 5], "big"), at + 5
    if first == 0x81:
        return int.from_bytes(payload[at + 1 : at + 9], "big"), at + 9
    return -1 - (first & 0x3F), at + 1


_INTEGER_BYTES = {-1: 1, -2: 2, -3: 4}


def _skip_string(payload: bytes, at: int) -> int:
    size, at = _length(payload, at)
    if size >= 0:
        return at + size
    if size in _INTEGER_BYTES:
        return at + _INTEGER_BYTES[size]
    packed, at = _length(payload, at)  # LZF: two lengths, then the packed bytes
    _, at = _length(payload, at)
    return at + packed
