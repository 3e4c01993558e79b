"""Merging: ticks that were hashes become entries of one stream a symbol, in the order of their event times.

An entry's id is `<event ms>-<n>`, n counting from 0 after what the stream already holds in that millisecond;
ticks that arrive together and share one are in order of (event ns, key). Its fields are the hash's own, byte
for byte, and one more, `onetape_id`: 32 hex digits, the identity of the tick (of its key and content). By it
a second merge knows what is there, and a verify can count: content alone cannot tell two equal ticks from
one tick merged twice.

Ticks later than the stream's end are appended. Others mean that the stream is written anew under a temporary
name, with the ids, groups, consumers and pending entries it had, and put in place by a RENAME that happens
only if the stream did not change meanwhile. A kill at any moment leaves the old stream or the new one, and at
most a temporary one that expires by itself. Several may merge into one stream at once.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

import msgspec

from onetape.errors import EndpointError
from onetape.migrate.keys.content import expiry, slice_of
from onetape.migrate.keys.stream_state import StreamState, stream_state
from onetape.migrate.wire.endpoint import Argument, Endpoint, ReplyError, is_lost, pack

IDENTITY_FIELD = b"onetape_id"
TEMPORARY = b"onetape:merging:"

_BATCH = 1000  # entries a transaction or a pipeline: the server answers others in between
_ATTEMPTS = 5
_LEFT_MS = 3_600_000  # what a killed merge leaves goes by itself; told anew with every batch

Id = tuple[int, int]


def merged_identity(fields: Sequence[bytes]) -> bytes | None:
    """Return the identity of a stream's entry that was merged into it, or None for one of the stream's own."""
    if fields[-2] != IDENTITY_FIELD or len(fields[-1]) != 32:
        return None
    try:
        return bytes.fromhex(fields[-1].decode())
    except ValueError:
        return None


class MergeEntry(msgspec.Struct, frozen=True):
    """One tick to merge. `fields` is flat: name, value, name, value, ..."""

    ts_event_ns: int
    key: bytes
    identity: bytes
    fields: Sequence[bytes]

    @property
    def ms(self) -> int:
        """Return the event time in ms, rounded down: the first half of the entry's id."""
        return self.ts_event_ns // 1_000_000

    def order(self) -> tuple[int, bytes, bytes]:
        """Return what entries are sorted by."""
        return self.ts_event_ns, self.key, self.identity

    def stored(self) -> list[bytes]:
        """Return the fields as the stream holds them."""
        return [*self.fields, IDENTITY_FIELD, self.identity.hex().encode()]


class Merged(msgspec.Struct, frozen=True):
    """What a merge did, by identity: stored now, known before, and prevented by live writers."""

    added: frozenset[bytes]
    known: frozenset[bytes]
    changed: frozenset[bytes]


def merge(endpoint: Endpoint, stream: bytes, entries: Iterable[MergeEntry]) -> Merged:
    """Merge ticks into a stream of the selected database, creating it if there is none.

    Idempotent by identity. An expiry that the stream has stays; one it has not is not given. Entries given in
    order of time cost one append each, late ones a rewrite of the stream a call. Raises EndpointError, also
    where `stream` is another type.
    """
    todo = sorted({entry.identity: entry for entry in entries}.values(), key=MergeEntry.order)
    try:
        return _merge(endpoint, stream, todo)
    except EndpointError as error:
        if not is_lost(error):
            endpoint.call("UNWATCH")
        raise


def missing(endpoint: Endpoint, stream: bytes, entries: Sequence[MergeEntry]) -> list[MergeEntry]:
    """Return the ticks that the stream does not hold with just these fields, in any order, under their times."""
    present = _present(endpoint, stream, entries)
    return [entry for entry in entries if _pairs(present.get(entry.identity, ())) != _pairs(entry.stored())]


def beside(stream: bytes, token: bytes) -> bytes:
    """Return the name of a temporary stream that a cluster keeps where the stream is, so that one can become the other.

    A name with braces brings its own hash tag; one without is made the tag.
    """
    name = stream if b"{" in stream or b"}" in stream else b"{" + stream + b"}"
    return TEMPORARY + token + b":" + name


def _pairs(flat: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    return sorted(zip(flat[::2], flat[1::2], strict=True))  # a hash tells its fields in no order of its own


def earlier_of(endpoint: Endpoint, stream: bytes, identity: bytes) -> bool:
    """Return whether one of the stream's newest 2,000 entries was merged from the same key as this identity.

    False where the tick itself is among them: then it is not an earlier one that is there in its stead.
    """
    whole, key_half = identity.hex().encode(), identity[:8].hex().encode()
    newest = endpoint.call("XREVRANGE", stream, "+", "-", "COUNT", 2 * _BATCH)
    own = [fields[-1] for _id, fields in newest if fields[-2] == IDENTITY_FIELD]
    return whole not in own and any(name.startswith(key_half) for name in own)


def parse_id(text: bytes) -> Id:
    """Return a stream id as its two numbers."""
    ms, _dash, n = text.partition(b"-")
    return int(ms), int(n or 0)


def _merge(endpoint: Endpoint, stream: bytes, todo: list[MergeEntry]) -> Merged:
    added: set[bytes] = set()
    known: set[bytes] = set()
    failures = 0
    while todo and failures < _ATTEMPTS:
        endpoint.call("WATCH", stream)
        last = _last_id(endpoint, stream)
        present = _present(endpoint, stream, [entry for entry in todo if entry.ms <= last[0]])
        known.update(entry.identity for entry in todo if entry.identity in present)
        todo = [entry for entry in todo if entry.identity not in present]
        if not todo:
            endpoint.call("UNWATCH")
            break
        late = todo[0].ms < last[0]
        batch = todo if late else todo[:_BATCH]
        if _rebuild(endpoint, stream, batch) if late else _append(endpoint, stream, batch, last):
            added.update(entry.identity for entry in batch)
            todo = todo[len(batch) :]
        else:
            failures += 1
    return Merged(frozenset(added), frozenset(known - added), frozenset(entry.identity for entry in todo))


def _last_id(endpoint: Endpoint, stream: bytes) -> Id:
    if not endpoint.call("EXISTS", stream):
        return (0, 0)
    flat = endpoint.call("XINFO", "STREAM", stream)
    return parse_id(flat[flat.index(b"last-generated-id") + 1])


def _present(endpoint: Endpoint, stream: bytes, entries: Sequence[MergeEntry]) -> dict[bytes, list[bytes]]:
    """Return identity → fields of what the stream holds in the milliseconds of these entries."""
    found: dict[bytes, list[bytes]] = {}
    times = sorted({entry.ms for entry in entries})
    for at in range(0, len(times), _BATCH):
        commands = [("XRANGE", stream, ms, ms) for ms in times[at : at + _BATCH]]
        for reply in endpoint.pipeline(commands):
            if isinstance(reply, ReplyError):
                _fail(stream, reply)
            for _entry_id, fields in reply:
                if len(fields) >= 2 and fields[-2] == IDENTITY_FIELD and len(fields[-1]) == 32:
                    found[bytes.fromhex(fields[-1].decode())] = fields
    return found


def _append(endpoint: Endpoint, stream: bytes, entries: Sequence[MergeEntry], last: Id) -> bool:
    commands: list[Sequence[Argument]] = [("MULTI",)]
    for entry in entries:
        last = (entry.ms, last[1] + 1 if entry.ms == last[0] else 0)
        commands.append(("XADD", stream, b"%d-%d" % last, *entry.stored()))
    reply = endpoint.pipeline([*commands, ("EXEC",)])[-1]
    if reply is None:
        return False
    _check(stream, reply if isinstance(reply, list) else [reply])
    return True


def _rebuild(endpoint: Endpoint, stream: bytes, new: list[MergeEntry]) -> bool:
    """Write the stream anew with these entries in place, and swap it in; False if it changed meanwhile."""
    state = stream_state(endpoint, stream, all_times=True)
    if state is None:
        endpoint.call("UNWATCH")
        return False
    temporary = beside(stream, secrets.token_hex(8).encode())  # others may merge into it too
    swapped = False
    try:
        swapped = _write_anew(endpoint, stream, temporary, state, new) and _swap(endpoint, stream, temporary)
    except EndpointError as error:
        if not is_lost(error):
            endpoint.call("UNLINK", temporary)
        raise
    if not swapped:
        endpoint.pipeline([("UNLINK", temporary), ("UNWATCH",)])
    return swapped


def _write_anew(endpoint: Endpoint, stream: bytes, temporary: bytes, state: StreamState, new: list[MergeEntry]) -> bool:
    """Write the temporary stream; False if what was read is no one moment's."""
    pending = sorted({parse_id(one.id) for group in state.groups for one in group.pending})
    gaps: list[bytes] = []
    ids: list[Id] = []
    length = 0
    lease = pack("PEXPIRE", temporary, _LEFT_MS)
    packed: list[bytes] = []
    for (ms, n), fields in _interleaved(_with_gaps(_entries(endpoint, stream), pending), new):
        entry_id = b"%d-%d" % (ms, n)
        length += 1
        if isinstance(fields, MergeEntry):
            ids.append((ms, n))
            packed.append(pack("XADD", temporary, entry_id, *fields.stored()))
        elif fields is None:
            # Pending, but deleted: XCLAIM takes only what exists, so it exists until it is claimed.
            gaps.append(entry_id)
            packed.append(pack("XADD", temporary, entry_id, "", ""))
        else:
            packed.append(pack("XADD", temporary, entry_id, *fields))
        if len(packed) == 1:
            packed.append(lease)
        if len(packed) >= _BATCH:
            _check(stream, endpoint.exchange(b"".join(packed), len(packed)))
            packed = []
    if packed:
        _check(stream, endpoint.exchange(b"".join(packed), len(packed)))
    state = _moved(state, ids)
    commands: list[Sequence[Argument]] = [*state.commands(temporary)]
    commands += [("XDEL", temporary, entry_id) for entry_id in gaps]
    commands.append(state.position(temporary))  # XDEL moved it
    commands.append(("PEXPIRE", temporary, _LEFT_MS))
    for at in range(0, len(commands), _BATCH):
        replies = endpoint.pipeline(commands[at : at + _BATCH])
        # The stream grew after its last id was read, and its new end is in what was written.
        if any(isinstance(one, ReplyError) and "smaller than" in one.message for one in replies):
            return False
        _check(stream, replies)
    # A process that slept for an hour could have lost the first part of it.
    return bool(endpoint.call("XLEN", temporary) == length - len(gaps))


def _swap(endpoint: Endpoint, stream: bytes, temporary: bytes) -> bool:
    expires_ms = expiry(endpoint, stream)
    stays: Sequence[Argument] = ("PERSIST", temporary)
    if expires_ms >= 0:
        stays = ("PEXPIREAT", temporary, expires_ms)
    replies = endpoint.pipeline([("MULTI",), stays, ("RENAME", temporary, stream), ("EXEC",)])
    swapped = replies[-1]
    if swapped is None:
        return False
    _check(stream, [*replies[:-1], swapped] if isinstance(swapped, ReplyError) else swapped)
    return True


def _entries(endpoint: Endpoint, stream: bytes) -> Iterator[tuple[Id, list[bytes]]]:
    start, count = b"-", min(_BATCH, slice_of(endpoint, stream, int(endpoint.call("XLEN", stream))))
    while page := endpoint.call("XRANGE", stream, start, "+", "COUNT", count):
        for entry_id, fields in page:
            yield parse_id(entry_id), fields
        start = b"(" + page[-1][0]


def _with_gaps(
    entries: Iterator[tuple[Id, list[bytes]]], pending: Sequence[Id]
) -> Iterator[tuple[Id, list[bytes] | None]]:
    """Yield the entries and, with None for fields, the pending ids that are not among them, in order."""
    at = 0
    for entry_id, fields in entries:
        while at < len(pending) and pending[at] <= entry_id:
            if pending[at] != entry_id:
                yield pending[at], None
            at += 1
        yield entry_id, fields
    for gap in pending[at:]:
        yield gap, None


def _interleaved(
    old: Iterable[tuple[Id, list[bytes] | None]], new: Sequence[MergeEntry]
) -> Iterator[tuple[Id, list[bytes] | MergeEntry | None]]:
    """Yield old and new entries by id; new ones get theirs here, after the old ones of their millisecond."""
    at, last = 0, (-1, 0)
    for entry_id, fields in old:
        while at < len(new) and new[at].ms < entry_id[0]:
            last = (new[at].ms, last[1] + 1 if new[at].ms == last[0] else 0)
            yield last, new[at]
            at += 1
        yield entry_id, fields
        last = entry_id
    for entry in new[at:]:
        last = (entry.ms, last[1] + 1 if entry.ms == last[0] else 0)
        yield last, entry


def _moved(state: StreamState, ids: list[Id]) -> StreamState:
    """Return the state of a stream after entries were put into it: what a group had read, it still has."""
    last = max(parse_id(state.last_id), ids[-1])
    groups = []
    for group in state.groups:
        read, delivered = group.entries_read, parse_id(group.last_delivered)
        passed = sum(entry_id <= delivered for entry_id in ids)
        groups.append(msgspec.structs.replace(group, entries_read=None if read is None else read + passed))
    added = None if state.added is None else state.added + len(ids)
    return msgspec.structs.replace(state, last_id=b"%d-%d" % last, added=added, groups=groups)


def _check(stream: bytes, replies: Sequence[Any]) -> None:
    for reply in replies:
        if isinstance(reply, ReplyError):
            _fail(stream, reply)


def _fail(stream: bytes, reply: ReplyError) -> NoReturn:
    raise EndpointError(
        f"merging ticks into {stream!r}: {reply.message}",
        hint="the stream is as it was, or has complete entries more; run again to go on",
        code=reply.code,
    )
