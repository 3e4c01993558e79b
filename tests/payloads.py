"""Payloads of DUMP that a server must refuse: each kind of damage made from a good one, with a right checksum."""

from __future__ import annotations

from collections.abc import Callable

from onetape.migrate.keys.payload import sealed, version_of
from onetape.migrate.wire.endpoint import Endpoint

_FOOTER = 10


def fill(endpoint: Endpoint) -> None:
    """Write one key of each encoding."""
    for command in (
        ("SET", "text", "x" * 50),
        ("SET", "packed", "ab" * 400),  # LZF
        ("RPUSH", "list", "a", "b", "c"),
        ("SADD", "numbers", 1, 2, 3),
        ("SADD", "names", *(f"member {i}" * 9 for i in range(6))),
        ("ZADD", "scores", 1, "a", 2, "b"),
        ("HSET", "hash", "f", "1", "g", "2"),
        ("HSET", "table", "f", "y" * 100, "g", "2"),
        ("ZADD", "skips", 1.5, "z" * 100, 2.5, "b"),
        ("XADD", "stream", "1-1", "a", "1"),
        ("XADD", "stream", "2-1", "a", "2"),
        ("XGROUP", "CREATE", "stream", "readers", "0"),
        ("XREADGROUP", "GROUP", "readers", "one", "STREAMS", "stream", ">"),
    ):
        endpoint.call(*command)


def _put(at: int, *values: int) -> Callable[[bytes], bytes]:
    return lambda body: body[:at] + bytes(values) + body[at + len(values) if at >= 0 else len(body) :]


def _typed(kind: int) -> Callable[[bytes], bytes]:
    return lambda body: bytes([kind]) + body[1:]


def _cut(number: int) -> Callable[[bytes], bytes]:
    return lambda body: body[:-number]


#: What is damaged → the good key that it is made of, and how its type byte and value are changed.
DAMAGES: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "a type that there never was": ("text", _typed(0x7F)),
    "a marker of a file, not a value": ("text", _typed(0xFA)),
    "a function library": ("text", _typed(0xF5)),
    "a module's value of the first kind": ("text", _typed(6)),
    "a module's value of a module that is not loaded": ("text", lambda _: b"\x07\x81" + b"\x11" * 8 + b"\x00"),
    "a string longer than its payload": ("text", lambda body: body[:1] + b"\x7f\xff" + body[3:]),
    "a string of an encoding that there is not": ("text", _put(1, 0xC4)),
    "a string cut short": ("text", _cut(5)),
    "a packed string that does not unpack": ("packed", lambda body: body[:6] + b"\xff" * (len(body) - 6)),
    "a packed string of another length": ("packed", lambda body: body[:3] + b"\x41\x00" + body[5:]),
    "a list without nodes": ("list", lambda body: body[:1] + b"\x00"),
    "a list's node of no known container": ("list", _put(2, 9)),
    "a list's node that is no listpack": ("list", lambda body: body[:4] + b"\x01" * (len(body) - 4)),
    "a set of integers of no known width": ("numbers", _put(2, 3)),
    "a set of integers that counts too many": ("numbers", _put(6, 99)),
    "a set without members": ("names", lambda body: body[:1] + b"\x00"),
    "a set that ends before its last member": ("names", _cut(12)),
    "a set with a member twice": ("names", lambda _: b"\x02\x02\x01a\x01a"),
    "a sorted set with an odd number of entries": (
        "scores",
        lambda body: body[:2] + b"\x0a\x0a\x00\x00\x00\x01\x00\x81a\x02\xff",
    ),
    "a sorted set whose listpack lies about its size": ("scores", _put(2, 0x7F)),
    "a sorted set without members": ("skips", lambda body: body[:1] + b"\x00"),
    "a hash whose listpack has no end": ("hash", lambda body: body[:-1] + b"\x00"),
    "a hash with a field twice": (
        "hash",
        lambda body: body[:1] + b"\x13\x13\x00\x00\x00\x04\x00\x81f\x02\x011\x00\x81f\x02\x011\x00\xff"[:20],
    ),
    "a hash that ends before its last value": ("table", _cut(30)),
    "a hash without fields": ("table", lambda body: body[:1] + b"\x00"),
    "an old hash map that is none": ("text", lambda _: b"\x09\x05\x02\x01f\x07\xff"),
    "an old ziplist that is none": ("text", lambda _: b"\x0a\x0b" + b"\x01" * 11),
    "an old quicklist of what is none": ("text", lambda _: b"\x0e\x01\x0b" + b"\x01" * 11),
    "a stream whose node has no id": ("stream", _put(2, 0x05)),
    "a stream that ends within its groups": ("stream", _cut(20)),
}


def damaged(good: dict[str, bytes]) -> dict[str, bytes]:
    """Return every kind of damage → a payload with it, from the DUMPs of the keys that fill() wrote."""
    found = {}
    for told, (key, change) in DAMAGES.items():
        payload = good[key]
        found[told] = sealed(change(payload[:-_FOOTER]), version_of(payload))
    text = good["text"]
    found["a checksum that is wrong"] = text[:-1] + bytes([text[-1] ^ 1])
    found["a value that was changed after its checksum was made"] = text[:5] + b"!" + text[6:]
    found["a version that is newer"] = sealed(text[:-_FOOTER], 999)
    found["a payload of a few bytes"] = text[-8:]
    return found
