"""The slices of a key: read in one database, written under another name in another, a few milliseconds at a time.

A slice is as long as the server takes about two milliseconds for it: it answers its other clients between two. What
is written is under an expiry that every slice renews, so that what is left of a killed run goes by itself; a slice
that finds no such expiry any more knows that what was written before it is gone.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from onetape.errors import EndpointError
from onetape.migrate.keys.content import LENGTH, Digester, Element, framed, has_field_expiry
from onetape.migrate.keys.stream_state import StreamState, stream_state
from onetape.migrate.landing.merge import parse_id
from onetape.migrate.wire.endpoint import Argument, Endpoint, ReplyError, pack

#: What a killed run leaves goes by itself after this, ms; a pause of more than this means beginning again.
LEASE_MS = 600_000

_ELEMENTS_FIRST, _ELEMENTS_MIN, _ELEMENTS_MAX = 200, 10, 4000
_SLICE_BYTES = 128 * 1024
_SLOW_S, _FAST_S = 0.003, 0.0015
_PENDING_PAGE = 1000


class Lost(Exception):
    """What was written is gone: flushed, expired or evicted."""


class Piece(NamedTuple):
    """One slice: its elements as content.py names them, and the commands that write it."""

    elements: list[Element]
    commands: list[bytes]


class Pieces:
    """A key of the reader's selected database as slices for `temporary`. After the last: `fields_expiring`."""

    def __init__(self, reader: Endpoint, key: bytes, kind: bytes, temporary: bytes) -> None:
        self._reader, self._key, self._kind, self._temporary = reader, key, kind, temporary
        self._length = int(reader.call(LENGTH[kind], key))
        used = reader.pipeline([("MEMORY", "USAGE", key)])[0]
        average = used // self._length + 1 if isinstance(used, int) and self._length else 1
        self._most = max(1, min(_ELEMENTS_MAX, _SLICE_BYTES // average))
        self._elements = min(_ELEMENTS_FIRST, self._most)
        self.fields_expiring = 0

    @property
    def length(self) -> int:
        """How long the key was at the beginning: bytes of a string, elements of others."""
        return self._length

    def took(self, seconds: float) -> None:
        """Make the next slices longer or shorter by how long the server took for one."""
        if seconds > _SLOW_S:
            self._elements = max(min(_ELEMENTS_MIN, self._most), self._elements // 2)
        elif seconds < _FAST_S:
            self._elements = min(self._most, self._elements + self._elements // 4 + 1)

    def __iter__(self) -> Iterator[Piece]:
        return {
            b"string": self._string, b"list": self._list, b"set": self._set,
            b"zset": self._zset, b"hash": self._hash, b"stream": self._stream,
        }[self._kind]()  # fmt: skip

    def _string(self) -> Iterator[Piece]:
        at = 0
        # Appended and not set at its place: the server then grows the string in place where it can.
        while part := self._reader.call("GETRANGE", self._key, at, at + _SLICE_BYTES - 1):
            yield Piece([(b"", part)], [pack("APPEND", self._temporary, part)])
            at += len(part)

    def _list(self) -> Iterator[Piece]:
        at = 0
        while values := self._reader.call("LRANGE", self._key, at, at + self._elements - 1):
            named = [(b"index %d" % (at + i), value) for i, value in enumerate(values)]
            yield Piece(named, self._many("RPUSH", values, 1))
            at += len(values)

    def _set(self) -> Iterator[Piece]:
        for members in self._scan("SSCAN"):
            yield Piece([(member, b"") for member in members], self._many("SADD", members, 1))

    def _zset(self) -> Iterator[Piece]:
        at = 0
        while flat := self._reader.call("ZRANGE", self._key, at, at + self._elements - 1, "WITHSCORES"):
            named = [(flat[i], struct.pack("<d", float(flat[i + 1]))) for i in range(0, len(flat), 2)]
            turned = [flat[i ^ 1] for i in range(len(flat))]  # ZADD wants the score first, as the server wrote it
            yield Piece(named, self._many("ZADD", turned, 2))
            at += len(named)

    def _hash(self) -> Iterator[Piece]:
        expiring = has_field_expiry(self._reader)
        for flat in self._scan("HSCAN"):
            names, values = flat[::2], flat[1::2]
            times: list[int] = [-1] * len(names)
            if expiring and names:
                found = self._reader.pipeline([("HPEXPIRETIME", self._key, "FIELDS", len(names), *names)])[0]
                times = found if isinstance(found, list) else times
            rows = [row for row in zip(names, values, times, strict=True) if row[2] != -2]  # -2: expired by now
            commands = self._many("HSET", [part for row in rows for part in row[:2]], 2)
            ending = [(name, at_ms) for name, _value, at_ms in rows if at_ms >= 0]
            self.fields_expiring += len(ending) + len(names) - len(rows)
            commands += [pack("HPEXPIREAT", self._temporary, at_ms, "FIELDS", 1, name) for name, at_ms in ending]
            yield Piece([(name, framed(value, b"%d" % at_ms)) for name, value, at_ms in rows], commands)

    def _scan(self, command: str) -> Iterator[list[bytes]]:
        cursor = b"0"
        while True:
            cursor, flat = self._reader.call(command, self._key, cursor, "COUNT", self._elements)
            if flat:
                yield flat
            if cursor == b"0":
                return

    def _many(self, command: str, flat: Sequence[bytes], width: int) -> list[bytes]:
        """Return commands that write flat elements, each command bounded in elements and bytes."""
        commands, held = [], 0
        some: list[bytes] = []
        for at in range(0, len(flat), width):
            some += flat[at : at + width]
            held += sum(map(len, flat[at : at + width]))
            if held >= _SLICE_BYTES or len(some) >= self._elements * width:
                commands.append(pack(command, self._temporary, *some))
                some, held = [], 0
        if some:
            commands.append(pack(command, self._temporary, *some))
        return commands

    # Streams: entries first, then what else they are

    def _stream(self) -> Iterator[Piece]:
        key, temporary = self._key, self._temporary
        state = stream_state(self._reader, key)
        if state is None:
            raise Lost
        # A group needs a stream, and a stream without entries is made by a group.
        yield Piece([], [pack("XGROUP", "CREATE", temporary, "onetape", 0, "MKSTREAM"),
                         pack("XGROUP", "DESTROY", temporary, "onetape")])  # fmt: skip
        gaps: list[bytes] = []
        pending = sorted({parse_id(one.id) for group in state.groups for one in group.pending})
        at = 0
        for entries in self._entries():
            commands = []
            for entry_id, fields in entries:
                place = parse_id(entry_id)
                while at < len(pending) and pending[at] <= place:
                    if pending[at] != place:
                        commands.append(self._gap(pending[at], gaps))
                    at += 1
                commands.append(pack("XADD", temporary, entry_id, *fields))
            yield Piece([(entry_id, framed(*fields)) for entry_id, fields in entries], commands)
        rest = [self._gap(place, gaps) for place in pending[at:]]
        timed = _with_times(self._reader, key, state)
        rest += [pack(*command) for command in timed.commands(temporary)]
        rest += [pack("XDEL", temporary, entry_id) for entry_id in gaps]
        rest.append(pack(*state.position(temporary)))  # XDEL moved it
        yield Piece(state.elements(), rest)

    def _entries(self) -> Iterator[list[tuple[bytes, list[bytes]]]]:
        start = b"-"
        while entries := self._reader.call("XRANGE", self._key, start, "+", "COUNT", self._elements):
            yield entries
            start = b"(" + entries[-1][0]

    def _gap(self, place: tuple[int, int], gaps: list[bytes]) -> bytes:
        """Return what adds an entry that is pending but deleted: a claim takes only what exists."""
        entry_id = b"%d-%d" % place
        gaps.append(entry_id)
        return pack("XADD", self._temporary, entry_id, "", "")


def write(
    reader: Endpoint,
    writer: Endpoint,
    key: bytes,
    kind: bytes,
    temporary: bytes,
    between: Callable[[int, int, int], None],
) -> tuple[Digester, Pieces]:
    """Write a key of the reader's database as `temporary` in the writer's, slice by slice.

    `between` is called before each slice with its elements, commands and bytes; it may raise to give up. The key must
    not change meanwhile: whoever calls watches it. Raises Lost where what was written went away, EndpointError for an
    error reply.
    """
    digester = Digester(kind)
    pieces = Pieces(reader, key, kind, temporary)
    begun = False
    asked_s = time.perf_counter()
    for piece in pieces:
        pieces.took(time.perf_counter() - asked_s)
        digester.add(piece.elements)
        elements = len(piece.elements)
        for commands in _packets(piece.commands):
            between(elements, len(commands), sum(map(len, commands)))
            elements = 0
            sent_s = time.perf_counter()
            _write(writer, temporary, commands, begun)
            pieces.took(time.perf_counter() - sent_s)
            begun = True
        asked_s = time.perf_counter()
    return digester, pieces


def _packets(commands: list[bytes]) -> Iterator[list[bytes]]:
    """Cut commands into packets of a slice's bytes and number: many small ones take as long as one large."""
    some: list[bytes] = []
    held = 0
    for command in commands:
        some.append(command)
        held += len(command)
        if held >= _SLICE_BYTES or len(some) >= 500:
            yield some
            some, held = [], 0
    if some:
        yield some


def _write(writer: Endpoint, temporary: bytes, commands: list[bytes], begun: bool) -> None:
    lease = pack("PEXPIRE", temporary, LEASE_MS)
    if not begun:  # at no moment is it there without an expiry
        packed = [pack("MULTI"), *commands, lease, pack("EXEC")]
        replies = writer.exchange(b"".join(packed), len(packed))
        _check(replies)
        _check(replies[-1])
        return
    packed = [pack("PTTL", temporary), lease, *commands]
    replies = writer.exchange(b"".join(packed), len(packed))
    _check(replies)
    if replies[0] <= 0 or replies[1] != 1:
        raise Lost


def _check(replies: Sequence[object]) -> None:
    for reply in replies:
        if isinstance(reply, ReplyError):
            raise EndpointError(f"writing a slice: {reply.message}", hint=_HINTS.get(reply.code, ""), code=reply.code)


_HINTS = {"OOM": "the server is at its maxmemory: raise it or free memory, then run again; the ledger resumes"}


def _with_times(reader: Endpoint, key: bytes, state: StreamState) -> StreamState:
    """Return the state with the delivery times of all that is pending.

    Where there are too many for one reply to tell them, they come from how long ago it was, page by page.
    """
    groups = []
    for group in state.groups:
        if all(one.time_ms is not None for one in group.pending):
            groups.append(group)
            continue
        times: dict[bytes, int] = {}
        start = b"-"
        while True:
            ask: list[tuple[Argument, ...]] = [("TIME",), ("XPENDING", key, group.name, start, "+", _PENDING_PAGE)]
            now, page = reader.pipeline(ask)
            if isinstance(page, ReplyError) or isinstance(now, ReplyError):
                raise Lost
            now_ms = int(now[0]) * 1000 + int(now[1]) // 1000
            times.update((entry_id, now_ms - idle) for entry_id, _consumer, idle, _deliveries in page)
            if len(page) < _PENDING_PAGE:
                break
            start = b"(" + page[-1][0]
        told = [msgspec.structs.replace(one, time_ms=times.get(one.id)) for one in group.pending]
        groups.append(msgspec.structs.replace(group, pending=told))
    return msgspec.structs.replace(state, groups=groups)
