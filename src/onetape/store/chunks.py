"""Chunks: the sealed records of one symbol and one day at the most, written and found."""

from __future__ import annotations

import itertools
from typing import Any

import apsw
import numpy as np

from onetape.store.block import Columns, canonical, concatenate, decode, encode, take
from onetape.store.layout import DAY_NS, ENCODING_PLAIN


def write(connection: apsw.Connection, kind: int, columns: Columns, seal: int, sealed_ns: int) -> None:
    """Write one span's records of one kind as chunks: split by symbol and UTC day, in canonical order."""
    symbols = columns["symbol"]
    order = np.lexsort((columns["seq"], columns["ts_event_ns"], symbols))
    ordered = take(columns, order)
    symbols, days = ordered.pop("symbol"), ordered["ts_event_ns"] // DAY_NS
    edge = np.flatnonzero((symbols[1:] != symbols[:-1]) | (days[1:] != days[:-1])) + 1
    bounds = [0, *edge.tolist(), len(symbols)]
    rows = []
    for start, end in itertools.pairwise(bounds):
        part = {name: column[start:end] for name, column in ordered.items()}
        ts = part["ts_event_ns"]
        rows.append(
            (
                kind,
                int(symbols[start]),
                seal,
                int(ts[0]),
                int(ts[-1]),
                int(part["seq"].max()),
                end - start,
                sealed_ns,
                ENCODING_PLAIN,
                encode(kind, part),
            )
        )
    connection.executemany(
        "INSERT INTO chunk(kind, symbol_id, seal, ts_min, ts_max, seq_max, count, sealed_ns, encoding, payload)"
        " VALUES (?,?,?,?,?,?,?,?,?,?)",
        rows,
    )


def read(connection: apsw.Connection, kind: int, symbol_id: int, start_ns: int, end_ns: int) -> Columns | None:
    """Return one symbol's sealed records with start_ns <= ts_event_ns < end_ns in canonical order, or None.

    A chunk spans at most one UTC day, so its newest time is less than a day past `end_ns` if it reaches into
    the span: the index bounds the search on both sides.
    """
    rows: list[Any] = connection.execute(
        "SELECT id, payload FROM chunk WHERE kind = ? AND symbol_id = ? AND ts_max >= ? AND ts_max < ?"
        " AND ts_min < ? ORDER BY ts_max",
        (kind, symbol_id, start_ns, min(end_ns + DAY_NS, 2**63 - 1), end_ns),
    ).fetchall()  # a damaged chunk must not leave the statement, and with it the read transaction, open
    parts = [decode(payload, f"chunk {chunk_id}")[1] for chunk_id, payload in rows]
    if not parts:
        return None
    joined = canonical(concatenate(kind, parts))
    ts = joined["ts_event_ns"]
    start, end = np.searchsorted(ts, [start_ns, end_ns])
    if start == 0 and end == len(ts):
        return joined
    return {name: column[start:end] for name, column in joined.items()}


def newest(connection: apsw.Connection, kind: int, symbol_id: int, count: int) -> Columns | None:
    """Return one symbol's newest `count` sealed records (or a few more) in canonical order, or None."""
    parts: list[Columns] = []
    have, oldest = 0, -1
    cursor = connection.execute(
        "SELECT id, ts_max, payload FROM chunk WHERE kind = ? AND symbol_id = ? ORDER BY ts_max DESC",
        (kind, symbol_id),
    )
    try:
        for chunk_id, ts_max, payload in cursor:
            if have >= count and ts_max < oldest:
                break
            part = decode(payload, f"chunk {chunk_id}")[1]
            parts.append(part)
            have += len(part["ts_event_ns"])
            if have >= count:
                times = np.concatenate([p["ts_event_ns"] for p in parts])
                oldest = int(np.partition(times, len(times) - count)[len(times) - count])
    finally:
        cursor.close(True)
    return canonical(concatenate(kind, parts)) if parts else None


def next_seal(connection: apsw.Connection, after: int) -> int | None:
    """Return the first seal whose span holds positions greater than `after`, or None."""
    found = connection.execute("SELECT min(seal) FROM chunk WHERE seal > ?", (after,)).get
    return None if found is None else int(found)


def span(connection: apsw.Connection, seal: int) -> list[tuple[int, int, Columns]]:
    """Return every chunk of one seal as (kind, symbol_id, columns)."""
    found = connection.execute("SELECT id, kind, symbol_id, payload FROM chunk WHERE seal = ?", (seal,))
    rows: list[Any] = found.fetchall()
    return [(kind, symbol_id, decode(payload, f"chunk {chunk_id}")[1]) for chunk_id, kind, symbol_id, payload in rows]
