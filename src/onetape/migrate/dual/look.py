"""The look: how big a pair is that a client does not know, before it would be copied in one step. Pure.

A COPY of a set of a million members stops the server for two seconds. So a pair over BIG_BYTES is not made anew by a
write. If the other side has it, with the same type, length, expiry and last id, it is taken to be equal: the backfill
made it so, and every dual write keeps it so; a verify compares it whole. If it differs in one of them, it is recorded,
and both sides are written. If the other side does not have it, it is left to the backfill, whose slices are put in
place only if the source did not change meanwhile; the look watches the other side's name, so that it cannot appear
between the look and the write.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from onetape.migrate.dual.weave import Look
from onetape.migrate.routes import Route

#: Over this, a collection is not copied by a write: its COPY would stop the server for some 10 ms.
BIG_BYTES = 512 * 1024
#: Strings are copied as one block, about 0.1 ms a MiB.
BIG_STRING_BYTES = 64 * 1024 * 1024

_LENGTH = {"string": "STRLEN", "list": "LLEN", "set": "SCARD", "hash": "HLEN", "zset": "ZCARD", "stream": "XLEN"}
_TOLERATED_MS = 100  # where the server cannot tell a moment, only what is left

Pack = Callable[..., bytes]


def first_look(pack: Pack, routes: Sequence[Route], primary: str, home: int) -> tuple[bytes, int, list[int]]:
    """Return commands that ask for type and size on the first side, the number of replies, and where each begins."""
    packed, count, db = b"", 0, home
    places = []
    for route in routes:
        at, key = _end(route, primary)
        if at != db:
            packed += pack("SELECT", at)
            count, db = count + 1, at
        packed += pack("TYPE", key) + pack("MEMORY", "USAGE", key, "SAMPLES", 1)
        places.append(count)
        count += 2
    if db != home:
        packed += pack("SELECT", home)
        count += 1
    return packed, count, places


def big_ones(routes: Sequence[Route], replies: Sequence[Any], places: Sequence[int]) -> list[tuple[Route, str]]:
    """Return those that are too big to be made anew, with their types. A size that is not told counts as small."""
    found = []
    for route, at in zip(routes, places, strict=True):
        kind, size = replies[at], replies[at + 1]
        if isinstance(kind, bytes) and isinstance(size, int) and size > BIG_BYTES:
            name = kind.decode("latin-1")
            if name in _LENGTH and (name != "string" or size > BIG_STRING_BYTES):
                found.append((route, name))
    return found


def second_look(pack: Pack, route: Route, kind: str, primary: str, home: int) -> tuple[bytes, int]:
    """Return commands that watch the other side of a big pair and ask both for what can be had cheaply."""
    packed = b""
    count = 0
    for side in ("new" if primary == "old" else "old", primary):
        db, key = _end(route, side)
        packed += pack("SELECT", db)
        if side != primary:
            packed += pack("WATCH", key)
        packed += pack("TYPE", key) + pack(_LENGTH[kind], key) + pack("PEXPIRETIME", key) + pack("PTTL", key)
        packed += pack("XINFO", "STREAM", key) if kind == "stream" else pack("EXISTS", key)
        count += 6 + (side != primary)
    return packed + pack("SELECT", home), count + 1


def judge(kind: str, replies: Sequence[Any]) -> tuple[Look, str]:
    """Return what to do about a big pair, and why it is to be recorded, if it is."""
    other, own = replies[2:7], replies[8:13]
    if other[0] == b"none":
        return "left", ""
    differs = []
    if other[0] != own[0]:
        differs.append("type")
    if other[1] != own[1]:
        differs.append("length")
    if isinstance(own[2], Exception):
        apart = abs(own[3] - other[3]) if isinstance(own[3], int) and isinstance(other[3], int) else 0
        if apart > _TOLERATED_MS or (own[3] == -1) != (other[3] == -1):
            differs.append("expiry")
    elif other[2] != own[2]:
        differs.append("expiry")
    if kind == "stream" and _last_id(other[4]) != _last_id(own[4]):
        differs.append("last id")
    return "equal", f"a big key differs in {', '.join(differs)}" if differs else ""


def _last_id(info: Any) -> Any:
    if isinstance(info, list):
        info = dict(zip(info[::2], info[1::2], strict=False))
    return info.get(b"last-generated-id") if isinstance(info, dict) else None


def _end(route: Route, side: str) -> tuple[int, bytes]:
    return (route.old_db, route.old_key) if side == "old" else (route.new_db, route.new_key)


__all__ = ["BIG_BYTES", "BIG_STRING_BYTES", "big_ones", "first_look", "judge", "second_look"]
