"""Minutes: the kept 1-minute bars, a row a symbol and hour or, once it is over and compacted, a symbol and UTC day.

    byte 0      how the rest is packed: 0 rows of an hour (MINUTES without symbol), 1 a day's packed columns
    rows        8 bytes XXH3 of the rows, then the rows
    columns     as store/packed.py has them

The key of a day's row is that of its first hour, whose own minutes are in it too.

A minute whose trades were all taken back stays, without trades, so that its revision goes on; readers do not see it.
A trade that comes late, into a day that is packed, makes hours of it again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import apsw
import numpy as np
import xxhash

from onetape.errors import ChunkCorrupt
from onetape.record import MINUTE_NS
from onetape.store import ask, packed
from onetape.store.bars import MINUTES
from onetape.store.block import DTYPES, REPAIR, Array
from onetape.store.layout import DAY_NS, KIND_MINUTE

HOUR_NS = 60 * MINUTE_NS
_ROWS, _PACKED = b"\x00", b"\x01"
_HOUR_BITS = 24
_ROW = np.dtype(list(DTYPES[KIND_MINUTE].items()))
#: MINUTES as the symbol and what a row is: copied at once.
_PARTS = np.dtype([("symbol", "<u4"), ("rest", f"V{_ROW.itemsize}")])
_NAMES = tuple(_ROW.names or ())
_WHOLE = frozenset(name for name, dtype in DTYPES[KIND_MINUTE].items() if dtype.kind == "i")


def read(connection: apsw.Connection, symbol_id: int, start_ns: int, end_ns: int) -> Array:
    """Return one symbol's kept MINUTES with start_ns <= start < end_ns, ascending."""
    found: list[Any] = connection.execute(
        "SELECT id, payload FROM minute WHERE id BETWEEN ? AND ?",
        _ids(symbol_id, start_ns, end_ns),
    ).fetchall()
    minutes = _decode(found)
    if not len(minutes):
        return minutes
    start, end = np.searchsorted(minutes["ts_event_ns"], [start_ns, end_ns])
    return _told(minutes[start:end])


def _told(minutes: Array) -> Array:
    there = minutes["trades"] > 0
    return minutes if there.all() else minutes[there]


def read_all(connection: apsw.Connection, symbol_ids: Sequence[int], start_ns: int, end_ns: int) -> Array:
    """Return the kept MINUTES of several symbols with start_ns <= start < end_ns, by symbol ascending."""
    rows: list[Any] = []
    for symbol_id in symbol_ids:
        rows += connection.execute(
            "SELECT id, payload FROM minute WHERE id BETWEEN ? AND ?",
            _ids(symbol_id, start_ns, end_ns),
        ).fetchall()
    minutes = _decode(rows)
    ts = minutes["ts_event_ns"]
    within = (ts >= start_ns) & (ts < end_ns)
    return _told(minutes if within.all() else minutes[within])


def _id(symbol_id: int, ns: int) -> int:
    return symbol_id << _HOUR_BITS | ns // HOUR_NS


def _ids(symbol_id: int, start_ns: int, end_ns: int) -> tuple[int, int]:
    """Return the keys between which rows of a span lie."""
    return _id(symbol_id, start_ns // DAY_NS * DAY_NS), _id(symbol_id, max(end_ns - 1, start_ns))


def _decode(rows: Sequence[tuple[int, bytes]]) -> Array:
    """Return the minutes of rows of table minute, in their order."""
    counts, parts = [], []
    for row_id, payload in rows:
        if payload[:1] == _ROWS:
            body = payload[9:]
            if xxhash.xxh3_64_digest(body) != payload[1:9] or len(body) % _ROW.itemsize:
                raise ChunkCorrupt(f"the bars of {_shown(row_id)} fail their checksum", hint=REPAIR)
        else:
            body = _unpack(row_id, payload)
        parts.append(body)
        counts.append(len(body) // _ROW.itemsize)
    found = np.frombuffer(b"".join(parts), _ROW)
    minutes = np.empty(len(found), MINUTES)
    minutes.view(_PARTS)["rest"] = found.view(f"V{_ROW.itemsize}")
    minutes["symbol"] = np.repeat(np.array([row[0] >> _HOUR_BITS for row in rows], dtype="<u4"), counts)
    return minutes


def _unpack(row_id: int, payload: bytes) -> bytes:
    _, columns = packed.unpack(payload[1:], f"the bars of {_shown(row_id)}")
    rows = np.empty(len(columns["ts_event_ns"]), _ROW)
    for name in _NAMES:
        rows[name] = columns.get(name, np.nan)
    return rows.tobytes()


def _shown(row_id: int) -> str:
    return f"symbol {row_id >> _HOUR_BITS}, hour {row_id & (1 << _HOUR_BITS) - 1}"


def kept(connection: apsw.Connection, symbols: Array, starts: Array) -> tuple[Array, Array]:
    """Return which of the minutes (symbols, starts in ns; sorted) are kept, and those minutes in their places."""
    keys = symbols.astype("<i8") << _HOUR_BITS | starts // HOUR_NS
    minutes = _decode(_hours(connection, keys))
    old = np.zeros(len(keys), MINUTES)
    have = np.zeros(len(keys), dtype=bool)
    if len(minutes):
        known, asked = _order(minutes["symbol"], minutes["ts_event_ns"]), _order(symbols, starts)
        sorter = np.argsort(known, kind="stable")
        place = np.minimum(np.searchsorted(known, asked, sorter=sorter), len(known) - 1)
        have = known[sorter[place]] == asked
        old[have] = minutes[sorter[place[have]]]
    return have, old


def _order(symbols: Array, starts: Array) -> Array:
    """Return one number that sorts as (symbol, minute) does: a minute has 28 bits."""
    order: Array = symbols.astype("<i8") << 28 | starts // MINUTE_NS
    return order


def _hours(connection: apsw.Connection, keys: Array) -> list[tuple[int, bytes]]:
    """Return the rows that hold some hours, by key."""
    rows: dict[int, bytes] = {}
    for key in np.unique(keys).tolist():
        hour = key & (1 << _HOUR_BITS) - 1
        for which in (key - hour % 24, key):
            payload: Any = connection.execute("SELECT payload FROM minute WHERE id = ?", (which,)).get
            if payload is not None and (which == key or payload[:1] == _PACKED):
                rows[which] = payload
    return sorted(rows.items())


def write(connection: apsw.Connection, made: Array) -> None:
    """Keep MINUTES (by symbol and time), in place of those kept under the same symbol and start."""
    if not len(made):
        return
    keys = made["symbol"].astype("<i8") << _HOUR_BITS | made["ts_event_ns"] // HOUR_NS
    rows = _hours(connection, keys)
    minutes = _decode(rows)
    connection.executemany(
        "DELETE FROM minute WHERE id = ?", [(row_id,) for row_id, payload in rows if payload[:1] == _PACKED]
    )
    if len(minutes):
        both = np.concatenate((minutes, made))
        order = _order(both["symbol"], both["ts_event_ns"])
        by = np.argsort(order, kind="stable")
        last = np.append(order[by][1:] != order[by][:-1], True)
        made = both[by[last]]
        keys = made["symbol"].astype("<i8") << _HOUR_BITS | made["ts_event_ns"] // HOUR_NS
    connection.executemany("INSERT OR REPLACE INTO minute VALUES (?, ?)", _rows(made, keys))


def _rows(made: Array, keys: Array) -> Iterator[tuple[int, bytes]]:
    edges = np.flatnonzero(keys[1:] != keys[:-1]) + 1
    bounds = [0, *edges.tolist(), len(keys)]
    rows = np.empty(len(made), _ROW)
    for name in _NAMES:
        rows[name] = made[name]
    for start, end in itertools.pairwise(bounds):
        body = rows[start:end].tobytes()
        yield int(keys[start]), _ROWS + xxhash.xxh3_64_digest(body) + body


def unpack(connection: apsw.Connection, symbol_id: int, ns: int) -> None:
    """Keep the day of a time by the hour, if it is packed, inside the caller's transaction."""
    first = _id(symbol_id, ns // DAY_NS * DAY_NS)
    for row in connection.execute("SELECT id, payload FROM minute WHERE id = ?", (first,)).fetchall():
        found: Any = row
        if found[1][:1] == _PACKED:
            connection.execute("DELETE FROM minute WHERE id = ?", (first,))
            write(connection, _decode([found]))


def take_over(connection: apsw.Connection) -> None:
    """Move the minutes of a format 1 file, rows of table bar with source 0, to where they are kept now."""
    names = [name for name in _NAMES if name != "ts_event_ns"]
    fields = ", ".join(f"ifnull({name}, 0)" if name in _WHOLE else name for name in names)
    for (symbol_id,) in connection.execute("SELECT DISTINCT symbol_id FROM bar WHERE source_id = 0").fetchall():
        rows: list[Any] = connection.execute(
            f"SELECT ts_start_ns, {fields} FROM bar WHERE source_id = 0 AND symbol_id = ? ORDER BY ts_start_ns",
            (symbol_id,),
        ).fetchall()
        made = np.zeros(len(rows), MINUTES)
        made["symbol"] = symbol_id
        for name, column in zip(("ts_event_ns", *names), zip(*rows, strict=True), strict=True):
            made[name] = [np.nan if value is None else value for value in column]
        write(connection, made)
    connection.execute("DELETE FROM bar WHERE source_id = 0")


def to_pack(connection: apsw.Connection, before_ns: int) -> list[int]:
    """Return the keys of days (of one symbol each) that were over before a time and are kept by the hour."""
    day, mask = before_ns // DAY_NS * 24, (1 << _HOUR_BITS) - 1
    found: list[Any] = connection.execute(
        f"SELECT DISTINCT id - (id & {mask}) % 24 FROM minute WHERE id & {mask} < ? AND substr(payload, 1, 1) = x'00'",
        (day,),
    ).fetchall()
    return [first for (first,) in found]


def pack(connection: apsw.Connection, days: Sequence[int]) -> None:
    """Pack some days, by the keys that to_pack() gives, inside the caller's transaction."""
    for first in days:
        rows: list[Any] = connection.execute(
            "SELECT id, payload FROM minute WHERE id BETWEEN ? AND ?", (first, first + 23)
        ).fetchall()
        if not rows or rows[0][1][:1] == _PACKED:  # somebody else was faster
            continue
        minutes = _decode(rows)
        columns = {name: np.ascontiguousarray(minutes[name]) for name in _NAMES}
        connection.execute("DELETE FROM minute WHERE id BETWEEN ? AND ?", (first, first + 23))
        connection.execute(
            "INSERT INTO minute VALUES (?, ?)", (first, _PACKED + packed.pack(KIND_MINUTE, columns, packed.SMALL))
        )


def count(connection: apsw.Connection) -> int:
    """Return how many minutes are kept.

    Only the first hour of a day is looked into, whose row may hold the whole day: SQLite reads all of a payload then,
    and of the others its length alone.
    """
    id_hour = f"(id & {(1 << _HOUR_BITS) - 1})"
    total = int(
        ask.value(
            connection,
            f"SELECT ifnull(sum((length(payload) - 9) / ?), 0) FROM minute WHERE {id_hour} % 24 != 0",
            (_ROW.itemsize,),
        )
    )
    for size, head in ask.rows(
        connection, f"SELECT length(payload), substr(payload, 1, 9) FROM minute WHERE {id_hour} % 24 = 0"
    ):
        if bytes(head[:1]) == _PACKED:
            total += int.from_bytes(head[5:9], "little")
        else:
            total += (size - 9) // _ROW.itemsize
    return total
