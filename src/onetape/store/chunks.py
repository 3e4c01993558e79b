"""Chunks: the sealed records of one symbol (or of several that are rare) and one day at the most, written and found."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import apsw
import numpy as np

from onetape.store import block, packed, workers
from onetape.store.block import DTYPES, Array, Columns, canonical, concatenate, in_symbol_order, take
from onetape.store.layout import CHUNK_RECORDS_MAX, DAY_NS, ENCODING_PACKED, ENCODING_PLAIN, MIXED

#: Records from which a second thread packs chunks while this one goes on, and from which it helps to unpack them.
_BESIDE_FROM, _SHARED_FROM = 65_536, 131_072
_END = 2**63 - 1
_INSERT = (
    "INSERT INTO chunk(kind, symbol_id, symbol_min, symbol_max, seal, ts_min, ts_max, seq_min, seq_max, count,"
    " sealed_ns, encoding, payload) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)"
)
#: Whether a row may hold records of symbol {}. Its bounds stand behind the payload: lost with a page they are zero, and
#: the chunk is read, so that its checksum tells, instead of being passed over.
_MAY_HOLD = f"(symbol_id != {MIXED} OR symbol_max = 0 OR {{}} BETWEEN symbol_min AND symbol_max)"
_COLUMNS = "id, kind, symbol_id, ts_min, ts_max, seq_min, seq_max, count, encoding, payload"


#: Makes an array of so many values of a type, as np.empty does.
Allocate = Callable[[int, np.dtype[Any]], Array]


#: Rows to be written: made already, or as they are asked for.
Rows = Iterator[tuple[Any, ...]] | Sequence[tuple[Any, ...]]


class Chunk(NamedTuple):
    """A row of table chunk."""

    id: int
    kind: int
    symbol_id: int
    ts_min: int
    ts_max: int
    seq_min: int
    seq_max: int
    records: int
    encoding: int
    payload: bytes

    def decode(self, wanted: Collection[str] | None = None) -> Columns:
        """Return the records' columns, those of `wanted` that are there, or all. Raises ChunkCorrupt."""
        if self.encoding == ENCODING_PLAIN:
            columns = block.decode(self.payload, self.where)[1]
            return columns if wanted is None else {name: columns[name] for name in columns if name in wanted}
        return packed.unpack(self.payload, self.where, wanted)[1]

    @property
    def where(self) -> str:
        """Return what an error calls it."""
        whose = f"of symbol {self.symbol_id}" if self.symbol_id else "of several symbols"
        return f"chunk {self.id} ({whose}, times {self.ts_min} to {self.ts_max})"


def rows(
    kind: int, columns: Columns, seal: int, sealed_ns: int, own_from: int, level: int = packed.FAST
) -> Iterator[tuple[Any, ...]]:
    """Return one span's records of one kind, as by_symbol() gives them, as rows of table chunk.

    In order of symbol, day and time. A symbol with fewer than `own_from` records of a day shares a chunk with others of
    its kind. Long spans are packed by several threads, which have begun when this returns.
    """
    parts = _parts(columns, own_from)

    def row(part: tuple[int, Columns]) -> tuple[Any, ...]:
        return _row(kind, part[0], seal, sealed_ns, part[1], level)

    return map(row, parts) if len(columns["seq"]) < _BESIDE_FROM else workers.each(row, parts)


def _parts(ordered: Columns, own_from: int) -> Iterator[tuple[int, Columns]]:
    """Yield (symbol, or MIXED; records) of each chunk to be made."""
    symbols, ts = ordered["symbol"], ordered["ts_event_ns"]
    one_day = int(ts.min()) // DAY_NS == int(ts.max()) // DAY_NS
    days = None if one_day else ts // DAY_NS
    differs = symbols[1:] != symbols[:-1]
    if days is not None:
        differs |= days[1:] != days[:-1]
    starts = np.concatenate(([0], np.flatnonzero(differs) + 1))
    counts = np.diff(np.append(starts, len(ts)))
    alone = {name: column for name, column in ordered.items() if name != "symbol"}
    own = counts >= own_from
    for start, count in zip(starts[own].tolist(), counts[own].tolist(), strict=True):
        whole = {name: column[start : start + count] for name, column in alone.items()}
        for part in _pieces(whole, count):
            yield int(symbols[start]), part
    if own.all():
        return
    few = np.repeat(~own, counts)
    shared = ordered if few.all() else take(ordered, few)
    for day in [0] if one_day else np.unique(shared["ts_event_ns"] // DAY_NS).tolist():
        mask: Array | slice = slice(None) if one_day else shared["ts_event_ns"] // DAY_NS == day
        of_day = take(shared, mask)
        for part in _pieces(of_day, len(of_day["seq"])):
            yield MIXED, part


def by_symbol(columns: Columns) -> Columns:
    """Return records sorted by symbol, and each symbol's in canonical order."""
    symbols, ts, seq = columns["symbol"], columns["ts_event_ns"], columns["seq"]
    if len(ts) < 2 or in_symbol_order(symbols, ts, seq):
        return columns
    narrow = symbols.astype("<u2") if int(symbols.max()) < 65536 else symbols  # sorted by radix
    ordered = take(columns, np.argsort(narrow, kind="stable"))
    symbols, ts, seq = ordered["symbol"], ordered["ts_event_ns"], ordered["seq"]
    return ordered if in_symbol_order(symbols, ts, seq) else take(ordered, np.lexsort((seq, ts, symbols)))


def _pieces(columns: Columns, count: int) -> Iterator[Columns]:
    """Yield records in even pieces that fit a chunk."""
    number = -(-count // CHUNK_RECORDS_MAX)
    size = -(-count // number)
    for start in range(0, count, size):
        yield {name: column[start : start + size] for name, column in columns.items()} if number > 1 else columns


def _row(kind: int, symbol_id: int, seal: int, sealed_ns: int, part: Columns, level: int) -> tuple[Any, ...]:
    ts, seq = part["ts_event_ns"], part["seq"]
    first, last = (int(ts[0]), int(ts[-1])) if symbol_id else (int(ts.min()), int(ts.max()))
    symbols = (symbol_id, symbol_id) if symbol_id else (int(part["symbol"][0]), int(part["symbol"][-1]))
    return (
        kind,
        symbol_id,
        *symbols,
        seal,
        first,
        last,
        int(seq.min()),
        int(seq.max()),
        len(ts),
        sealed_ns,
        ENCODING_PACKED,
        packed.pack(kind, part, level),
    )


def insert(connection: apsw.Connection, made: Rows) -> None:
    """Write rows that rows() made."""
    connection.executemany(_INSERT, made)


def overlapping(
    connection: apsw.Connection, kind: int, symbol_id: int, start_ns: int, end_ns: int, as_of: int | None = None
) -> list[Chunk]:
    """Return the chunks that may hold records of a symbol with start_ns <= ts_event_ns < end_ns, by ts_min.

    A chunk spans at most one UTC day, so its newest time is less than a day past `end_ns` if it reaches into
    the span: the index bounds the search on both sides.
    """
    found = connection.execute(
        f"SELECT {_COLUMNS} FROM chunk WHERE kind = ?1 AND symbol_id IN (?2, {MIXED}) AND ts_max >= ?3 AND ts_max < ?4"
        f" AND ts_min < ?5 AND seq_min <= ?6 AND {_MAY_HOLD.format('?2')}"
        " ORDER BY ts_min",
        (kind, symbol_id, start_ns, min(end_ns + DAY_NS, _END), end_ns, _END if as_of is None else as_of),
    ).fetchall()  # a damaged chunk must not leave the statement, and with it the read transaction, open
    return [Chunk._make(row) for row in found]


def read(
    connection: apsw.Connection,
    kind: int,
    symbol_id: int,
    start_ns: int,
    end_ns: int,
    wanted: Collection[str] | None = None,
    as_of: int | None = None,
    beside: Columns | None = None,
    positions: bool = True,
    allocate: Allocate = np.empty,
    complete: set[str] | None = None,
) -> Columns | None:
    """Return one symbol's sealed records with start_ns <= ts_event_ns < end_ns in canonical order, or None.

    wanted: only these columns and ts_event_ns and, unless positions is False, seq. beside: records of the symbol from
    the journal, of that span already, with all their columns, which are merged in. allocate: makes long columns.
    complete: gets the names of columns that are known to have nothing absent.
    """
    found = overlapping(connection, kind, symbol_id, start_ns, end_ns, as_of)
    own = [chunk for chunk in found if chunk.symbol_id]
    needed = None if wanted is None else {"ts_event_ns", *wanted}
    if (needed is not None and (positions or beside is not None or as_of is not None or len(own) < len(found))) or (
        needed is not None and not _sorted(own)
    ):
        needed.add("seq")
    parts = [] if beside is None else [beside]
    for chunk in found:
        if not chunk.symbol_id:
            mine = _of_symbol(chunk, symbol_id, needed)
            if mine is not None:
                parts.append(mine)
    if own:
        parts.append(_own(kind, own, needed, allocate, complete if not parts else None))
    if not parts:
        return None
    joined = concatenate(kind, parts)
    if needed is not None:
        joined = {name: column for name, column in joined.items() if name in needed}
    if as_of is not None and int(joined["seq"].max(initial=0)) > as_of:
        joined = take(joined, joined["seq"] <= as_of)
    if len(parts) > 1 or beside is not None or not _sorted(own):
        joined = canonical(joined)
    ts = joined["ts_event_ns"]
    start, end = np.searchsorted(ts, [start_ns, end_ns])
    if start == 0 and end == len(ts):
        return joined
    return {name: column[start:end] for name, column in joined.items()}


def _sorted(own: Sequence[Chunk]) -> bool:
    """Return whether chunks of one symbol, by ts_min, follow one another without overlap."""
    return all(
        one.ts_max < two.ts_min or (one.ts_max == two.ts_min and one.seq_max < two.seq_min)
        for one, two in itertools.pairwise(own)
    )


def _of_symbol(chunk: Chunk, symbol_id: int, wanted: Collection[str] | None) -> Columns | None:
    """Return one symbol's records of a chunk that several share, in canonical order, or None."""
    symbols = chunk.decode(("symbol",))["symbol"]
    start, end = np.searchsorted(symbols, [symbol_id, symbol_id + 1])
    if start == end:
        return None
    columns = chunk.decode(wanted)
    return {name: column[start:end] for name, column in columns.items() if name != "symbol"}


def _own(
    kind: int,
    own: Sequence[Chunk],
    wanted: Collection[str] | None,
    allocate: Allocate,
    complete: set[str] | None = None,
) -> Columns:
    """Return the records of chunks of one symbol, end to end, each column decoded into its place."""
    if any(chunk.encoding != ENCODING_PACKED for chunk in own):
        return concatenate(kind, [chunk.decode(wanted) for chunk in own])
    heads = [packed.directory(chunk.payload, chunk.where) for chunk in own]
    names = {name for head in heads for name in head.entries if wanted is None or name in wanted}
    total = sum(head.records for head in heads)
    columns = {name: allocate(total, dtype) for name, dtype in DTYPES[kind].items() if name in names}
    if complete is not None:
        complete.update(name for name in names if all(head.complete(name) for head in heads))
    ends = np.cumsum([head.records for head in heads]).tolist()

    def decode(at: int) -> None:
        chunk, head, end = own[at], heads[at], ends[at]
        place = {name: column[end - head.records : end] for name, column in columns.items()}
        packed.unpack_into(chunk.payload, head, place, chunk.where)

    if total < _SHARED_FROM:
        for at in range(len(own)):
            decode(at)
    else:
        workers.share(decode, len(own))
    return columns


def newest(
    connection: apsw.Connection,
    kind: int,
    symbol_id: int,
    count: int,
    wanted: Collection[str] | None = None,
    as_of: int | None = None,
) -> Columns | None:
    """Return one symbol's newest `count` sealed records (or a few more) in canonical order, or None."""
    parts: list[Columns] = []
    have, oldest = 0, -1
    needed = None if wanted is None else {"ts_event_ns", "seq", *wanted}
    cursors = [
        connection.cursor().execute(
            f"SELECT {_COLUMNS} FROM chunk WHERE kind = ?1 AND symbol_id = ?2"
            f" AND {_MAY_HOLD.format('?3')} ORDER BY ts_max DESC",
            (kind, which, symbol_id),
        )
        for which in (symbol_id, MIXED)
    ]
    try:
        for row in heapq.merge(*cursors, key=lambda row: -int(row[4])):
            chunk = Chunk._make(row)
            if have >= count and chunk.ts_max < oldest:
                break
            if as_of is not None and chunk.seq_min > as_of:
                continue
            part = chunk.decode(needed) if chunk.symbol_id else _of_symbol(chunk, symbol_id, needed)
            if part is not None and as_of is not None and chunk.seq_max > as_of:
                part = take(part, part["seq"] <= as_of)
            if part is None or not len(part["ts_event_ns"]):
                continue
            parts.append(part)
            have += len(part["ts_event_ns"])
            if have >= count:
                times = np.concatenate([p["ts_event_ns"] for p in parts])
                oldest = int(np.partition(times, len(times) - count)[len(times) - count])
    finally:
        for cursor in cursors:
            cursor.close(True)
    return canonical(concatenate(kind, parts)) if parts else None


def of_span(connection: apsw.Connection, seal: int, after: int = 0, upto: int = _END) -> list[Chunk]:
    """Return the chunks of one span that may hold positions after < seq <= upto."""
    found = connection.execute(
        f"SELECT {_COLUMNS} FROM chunk WHERE seal = ? AND seq_max > ? AND seq_min <= ?", (seal, after, upto)
    ).fetchall()
    return [Chunk._make(row) for row in found]


def by_kind(found: Sequence[Chunk]) -> dict[int, Columns]:
    """Return the records of chunks by kind, each with its symbol, in no particular order."""
    parts: dict[int, list[Columns]] = {}
    for chunk in found:
        columns = chunk.decode()
        if chunk.symbol_id:
            columns["symbol"] = np.full(len(columns["seq"]), chunk.symbol_id, dtype="<u4")
        parts.setdefault(chunk.kind, []).append(columns)
    return {kind: concatenate(kind, joined) for kind, joined in parts.items()}
