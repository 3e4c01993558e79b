"""Snapshots: names for positions of the tape, each with a digest of all that was on the tape up to it.

The digest covers every symbol in the order of its name, and of each its ticks and then its given bars in canonical
order (ts_event_ns, seq), every field bit for bit, `seq` too. How the records are packed, in how many chunks, and what
ids symbols and sources have makes no difference: a tape, its backup and its compacted self have one digest.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import apsw
import msgspec
import numpy as np

from onetape.errors import ConfigInvalid, SnapshotExists, SnapshotMissing
from onetape.record import TS_MAX_NS
from onetape.store import ask, query
from onetape.store.block import DTYPES, Columns, canonical, concatenate, full
from onetape.store.layout import KIND_BAR, KIND_TICK, MIXED
from onetape.store.query import Names

NAME_BYTES_MAX = 200
#: Rows hashed as one: part of what a digest means. Records read at once: memory, and nothing else, depends on it.
_BLOCK_ROWS = 65_536
_READ_ROWS = 262_144

Reading = Callable[[], AbstractContextManager[apsw.Connection]]


class Snapshot(msgspec.Struct, frozen=True):
    """A named position. `digest` and `records` are None while it is being made, or if its maker died."""

    name: str
    seq: int
    digest: str | None
    records: int | None
    created_ns: int
    note: str


class Digest(msgspec.Struct, frozen=True):
    """The content of a tape as of a position: its digest (64 hexadecimal digits), and how many records it covers."""

    seq: int
    digest: str
    records: int


_COLUMNS = "name, seq, digest, records, created_ns, note"


def find(connection: apsw.Connection, name: str) -> Snapshot | None:
    """Return a snapshot by name, or None."""
    for row in connection.execute(f"SELECT {_COLUMNS} FROM snapshot WHERE name = ?", (name,)):
        return Snapshot(*row)
    return None


def get(connection: apsw.Connection, name: str) -> Snapshot:
    """Return a snapshot by name. Raises SnapshotMissing."""
    found = find(connection, name)
    if found is None:
        names = ", ".join(snapshot.name for snapshot in every(connection)[-5:])
        raise SnapshotMissing(
            f"no snapshot {name!r}", hint=f"there is {names}" if names else "the tape has none yet", name=name
        )
    return found


def position(connection: apsw.Connection, name: str) -> int | None:
    """Return the position that a name stands for, or None."""
    found = find(connection, name)
    return None if found is None else found.seq


def every(connection: apsw.Connection) -> list[Snapshot]:
    """Return all snapshots, by position and then name."""
    rows: list[Any] = ask.rows(connection, f"SELECT {_COLUMNS} FROM snapshot ORDER BY seq, name")
    return [Snapshot(*row) for row in rows]


def covered(connection: apsw.Connection) -> int:
    """Return the last position that any snapshot covers, 0 without one: retention leaves alone what is up to it."""
    return int(ask.value(connection, "SELECT ifnull(max(seq), 0) FROM snapshot"))


def check_name(name: object) -> None:
    """Raise ConfigInvalid unless it can name a snapshot."""
    if not isinstance(name, str) or not name.isprintable() or name.strip() != name:
        raise ConfigInvalid(f"{name!r} cannot name a snapshot", hint="give printable text, such as eod-2026-11-20")
    if not 0 < len(name.encode("utf-8", "replace")) <= NAME_BYTES_MAX:
        raise ConfigInvalid(f"a snapshot's name is 1 to {NAME_BYTES_MAX} bytes long")


def begin(connection: apsw.Connection, name: str, note: str, at_ns: int) -> Snapshot:
    """Write a snapshot of the head, still without its digest: from now on retention keeps what it covers.

    The caller holds a write transaction. Raises SnapshotExists.
    """
    known = find(connection, name)
    if known is not None:
        unfinished = "it is being made or was never finished: delete it and take it again"
        raise SnapshotExists(
            f"there is a snapshot {name!r} already, of position {known.seq}",
            hint="choose another name, or delete it first" if known.digest is not None else unfinished,
            name=name,
        )
    made = Snapshot(name, query.head(connection), None, None, at_ns, note)
    connection.execute("INSERT INTO snapshot VALUES (?,?,?,?,?,?)", msgspec.structs.astuple(made))
    return made


def finish(connection: apsw.Connection, name: str, found: Digest) -> None:
    """Write the digest of a snapshot that was begun."""
    connection.execute(
        "UPDATE snapshot SET digest = ?, records = ? WHERE name = ?", (found.digest, found.records, name)
    )


def delete(connection: apsw.Connection, name: str) -> None:
    """Remove a snapshot's name; what only it kept is retention's from now on."""
    connection.execute("DELETE FROM snapshot WHERE name = ?", (name,))


def digest(reading: Reading, names: Callable[[apsw.Connection], Names], seq: int) -> Digest:
    """Return the digest of what the tape holds up to `seq`.

    In many short reads, so that no log is pinned and no more than a few hundred thousand records are in memory:
    what is on the tape up to a position never changes. Raises ChunkCorrupt.
    """
    whole, records = hashlib.blake2b(digest_size=32), 0
    with reading() as connection:
        by_name = sorted(connection.execute("SELECT name, id FROM symbol"))
    for name, symbol_id in by_name:
        for kind in (KIND_TICK, KIND_BAR):
            content = _Content(kind)
            with reading() as connection:
                edges = _edges(connection, kind, symbol_id, seq)
            for start_ns, end_ns in itertools.pairwise(edges):
                with reading() as connection, query.snapshot(connection):
                    found = query.ticks(connection, symbol_id, start_ns, end_ns, kind, as_of=seq)
                    if found is not None:
                        content.add(canonical(found), names(connection))
            content.end()
            if content.records:
                encoded = name.encode()
                whole.update(struct.pack("<IB", len(encoded), kind) + encoded + struct.pack("<Q", content.records))
                whole.update(content.hash.digest())
                records += content.records
    return Digest(seq, whole.hexdigest(), records)


def _edges(connection: apsw.Connection, kind: int, symbol_id: int, seq: int) -> list[int]:
    """Return times that part a symbol's records into pieces that fit memory."""
    edges, held = [0], 0
    for ts_min, count in connection.execute(
        "SELECT ts_min, count FROM chunk WHERE kind = ? AND symbol_id = ? AND symbol_id != ? AND seq_min <= ?"
        " ORDER BY ts_min",
        (kind, symbol_id, MIXED, seq),
    ):
        if held >= _READ_ROWS and ts_min > edges[-1]:
            edges.append(ts_min)
            held = 0
        held += count
    return [*edges, TS_MAX_NS + 1]


class _Content:
    """The hash of one symbol's records of one kind, which come in pieces of any size."""

    def __init__(self, kind: int) -> None:
        self.kind = kind
        self.records = 0
        self.hash = hashlib.blake2b(digest_size=32)
        self._waiting: list[Columns] = []
        self._rows = 0
        self._names: Names | None = None

    def add(self, columns: Columns, names: Names) -> None:
        """Take in the next rows."""
        self._names = names
        self._waiting.append(columns)
        self._rows += len(columns["seq"])
        self.records += len(columns["seq"])
        if self._rows >= _BLOCK_ROWS:
            joined = concatenate(self.kind, self._waiting)
            whole = self._rows - self._rows % _BLOCK_ROWS
            for start in range(0, whole, _BLOCK_ROWS):
                self._block({name: column[start : start + _BLOCK_ROWS] for name, column in joined.items()})
            self._rows -= whole
            self._waiting = [{name: column[whole:].copy() for name, column in joined.items()}] if self._rows else []

    def end(self) -> None:
        """Take in what is left."""
        if self._rows:
            self._block(concatenate(self.kind, self._waiting))
            self._waiting, self._rows = [], 0

    def _block(self, columns: Columns) -> None:
        for name, values in _told(self.kind, columns):
            if name == "source":
                values = self._source_texts(values)
            self.hash.update(struct.pack("<H", len(name)) + name.encode())
            self.hash.update(values.tobytes())
        self.hash.update(struct.pack("<HQ", 0, len(columns["seq"])))

    def _source_texts(self, ids: Any) -> Any:
        """Return source ids as indexes into a list of names that the hash takes in first."""
        assert self._names is not None
        known, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
        order = np.argsort(first, kind="stable")
        for source in self._names.sources(known[order].tolist()):
            text = (source or "").encode()
            self.hash.update(struct.pack("<I", len(text)) + text)
        rank = np.empty(len(order), dtype="<u4")
        rank[order] = np.arange(len(order))
        return rank[inverse]


def _told(kind: int, columns: Columns) -> Iterator[tuple[str, Any]]:
    """Yield the columns in which any row has a value, in the order of the format, every absent float one NaN."""
    for name, dtype in DTYPES[kind].items():
        values = columns.get(name)
        if values is None or name == "symbol":
            continue
        values = values.astype(dtype, copy=False)
        if dtype.kind == "f":
            absent = np.isnan(values)
            if absent.all():
                continue
            values = np.where(absent, np.nan, values) if absent.any() else values
        elif name != "ts_event_ns" and np.array_equal(values, full(kind, name, len(values))):
            continue
        yield name, values
