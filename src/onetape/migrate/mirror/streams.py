"""Streams that grow: what is added to the leader is added to the follower, instead of copying a million entries again.

Entries of a stream do not change, so its ids, counters, first and last entry and groups say whether two streams are
equal; that is what a summary is made of. To add entries overwrites nothing, whoever wrote the follower.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import msgspec

from onetape.errors import EndpointError
from onetape.migrate.keys.content import expiry
from onetape.migrate.landing.merge import merged_identity, parse_id
from onetape.migrate.mirror.ways import Pair
from onetape.migrate.wire.endpoint import Argument, Endpoint, ReplyError

#: Entries of one transaction.
ENTRIES = 500
#: How far back the end of a merged stream's own entries is looked for.
_BACK_MAX = 20_000
_GROUP_FIELDS = (b"name", b"consumers", b"pending", b"last-delivered-id", b"entries-read")

Id = tuple[int, int]


class Look(msgspec.Struct, frozen=True):
    """A stream as XINFO tells it. `summary`: 16 bytes that differ where anything but the expiry does.

    `first` is the id of its first entry, None for an empty one. The counters are None before Redis 7.0.
    """

    length: int
    first: Id | None
    last: Id
    added: int | None
    max_deleted: bytes | None
    expire_ms: int
    summary: bytes

    @property
    def end(self) -> bytes:
        """16 bytes of its length and last id: what can be said beforehand of a stream that is added to."""
        return end_of(self.length, self.last)


class Step(msgspec.Struct):
    """What brings the follower nearer: a transaction, from MULTI to EXEC. `more`: it is not all of it.

    `end` and `expire_ms` are what the follower then has. Without commands: `equal` says whether there is nothing to do;
    else it cannot be done by adding.
    """

    commands: list[Sequence[Argument]] = []
    more: bool = False
    equal: bool = False
    end: bytes = b""
    expire_ms: int = -1


def end_of(length: int, last: Id) -> bytes:
    """Return 16 bytes that stand for a stream's length and last id."""
    return blake2b(b"%d %d-%d" % (length, *last), digest_size=16).digest()


def look(endpoint: Endpoint, db: int, key: bytes) -> Look | None:
    """Return a stream as it is now, None where there is no such key. Raises EndpointError for another type."""
    endpoint.select(db)
    info, groups = endpoint.pipeline([("XINFO", "STREAM", key), ("XINFO", "GROUPS", key)])
    for reply in (info, groups):
        if isinstance(reply, ReplyError):
            if "no such key" in reply.message:
                return None
            raise EndpointError(f"looking at a stream: {reply.message}", code=reply.code)
    facts = _facts(info)
    state = [facts.get(name) for name in (b"length", b"last-generated-id", b"max-deleted-entry-id", b"entries-added")]
    told = sorted(repr([_facts(group).get(name) for name in _GROUP_FIELDS]) for group in groups)
    whole = repr([*state, facts.get(b"first-entry"), facts.get(b"last-entry"), told])
    first = facts.get(b"first-entry")
    return Look(
        int(facts[b"length"]),
        parse_id(first[0]) if first else None,
        parse_id(facts[b"last-generated-id"]),
        facts.get(b"entries-added"),
        facts.get(b"max-deleted-entry-id"),
        expiry(endpoint, key),
        blake2b(whole.encode(), digest_size=16).digest(),
    )


def next_step(endpoint: Endpoint, pair: Pair, source: Look, target: Look, *, merged: bool, may_trim: bool) -> Step:
    """Return the next transaction that makes the follower what the leader is. The caller watches both.

    `merged`: ticks are merged into the follower, so that only its own entries count. `may_trim`: the follower is as
    we left it, so that what the leader trimmed may go.
    """
    if merged:
        return _add_to_merged(endpoint, pair, source, target)
    if source.last <= target.last:
        return Step()
    endpoint.select(pair.from_db)
    page = endpoint.call("XRANGE", pair.from_key, b"(%d-%d" % target.last, "+", "COUNT", ENTRIES)
    new = source.length - target.length
    more = False
    if len(page) == ENTRIES:
        more = parse_id(page[-1][0]) < source.last
    commands: list[Sequence[Argument]] = [("SELECT", pair.to_db), ("MULTI",)]
    trims = source.first != target.first
    if trims:
        if not may_trim or source.first is None or target.first is None or source.first < target.first:
            return Step()
        if source.first > target.last:
            return Step()  # nothing of the follower would be left
        if not more:
            commands.append(("XTRIM", pair.to_key, "MINID", b"%d-%d" % source.first))
    elif not more and len(page) != new:
        return Step()  # something of the leader was deleted, or the follower has what the leader has not
    elif source.max_deleted != target.max_deleted:
        return Step()
    commands += [("XADD", pair.to_key, entry_id, *fields) for entry_id, fields in page]
    if not more:
        commands.append(_position(pair.to_key, source))
        if source.expire_ms != target.expire_ms:
            stays = source.expire_ms < 0
            commands.append(("PERSIST", pair.to_key) if stays else ("PEXPIREAT", pair.to_key, source.expire_ms))
        return Step([*commands, ("EXEC",)], False, False, source.end, source.expire_ms)
    end = end_of(target.length + len(page), parse_id(page[-1][0]))
    return Step([*commands, ("EXEC",)], True, False, end, target.expire_ms)


def _add_to_merged(endpoint: Endpoint, pair: Pair, source: Look, target: Look) -> Step:
    missing: list[Any] = []
    end: bytes = b"+"
    while len(missing) < _BACK_MAX:
        endpoint.select(pair.from_db)
        page = endpoint.call("XREVRANGE", pair.from_key, end, "-", "COUNT", 100)
        if not page:
            break
        end = b"(" + page[-1][0]
        page = [entry for entry in page if merged_identity(entry[1]) is None]
        endpoint.select(pair.to_db)
        there = endpoint.pipeline([("XRANGE", pair.to_key, entry[0], entry[0]) for entry in page])
        held = next((at for at, reply in enumerate(there) if reply == [page[at]]), None)
        missing += page if held is None else page[:held]
        if held is not None:
            break
    if not missing:
        return Step(equal=True)
    missing.reverse()
    if parse_id(missing[0][0]) <= target.last:
        return Step()  # its place is before ticks that were merged
    some = missing[:ENTRIES]
    commands: list[Sequence[Argument]] = [("SELECT", pair.to_db), ("MULTI",)]
    commands += [("XADD", pair.to_key, entry_id, *fields) for entry_id, fields in some]
    end = end_of(target.length + len(some), parse_id(some[-1][0]))
    return Step([*commands, ("EXEC",)], len(missing) > len(some), False, end, target.expire_ms)


def _position(key: bytes, source: Look) -> tuple[Argument, ...]:
    last = b"%d-%d" % source.last
    if source.added is None or source.max_deleted is None:
        return ("XSETID", key, last)
    return ("XSETID", key, last, "ENTRIESADDED", source.added, "MAXDELETEDID", source.max_deleted)


def _facts(flat: list[Any]) -> dict[bytes, Any]:
    return {flat[i]: flat[i + 1] for i in range(0, len(flat), 2)}
