"""Replay: records after a position, in order of position, from chunks where sealed and from the journal after."""

from __future__ import annotations

from typing import Any, NamedTuple

import apsw
import numpy as np

from onetape.errors import TapeError
from onetape.record import Bar, Tick
from onetape.store import chunks, given, query, seal
from onetape.store.block import Array, Columns, concatenate, decode_many, take
from onetape.store.layout import KIND_TICK
from onetape.store.query import Names

#: Journal rows read at once. A row is one commit: one tick or up to a whole span.
_ROWS_MAX = 256


class Step(NamedTuple):
    """One step of a replay: columns by kind, each in order of position, and the position after it."""

    found: dict[int, Columns]
    position: int


def step(connection: apsw.Connection, position: int, all_left: bool = False) -> Step | None:
    """Return the next records after `position`, or None if there are none yet.

    Raises TapeError if retention has removed records after `position`, unless `all_left` is what is asked for.
    """
    rows: list[Any] = connection.execute(
        f"SELECT seq_last, count, payload FROM journal WHERE seq_last > ? ORDER BY seq_last LIMIT {_ROWS_MAX}",
        (position,),
    ).fetchall()
    if not rows:
        return None
    if rows[0][0] - rows[0][1] <= position:  # the journal goes on where we are: no need to look at the seal
        return Step(_after(decode_many(rows, "journal"), position), rows[-1][0])
    with query.snapshot(connection):
        return _sealed_step(connection, position, all_left)


def _sealed_step(connection: apsw.Connection, position: int, all_left: bool) -> Step | None:
    pruned = int(connection.execute("SELECT pruned_seq FROM state").get)
    if position < pruned and not all_left:
        raise TapeError(
            f"retention has removed records after position {position}, up to {pruned}",
            hint="follow from 0 for all that is left, or from a later position",
            position=position,
            pruned_seq=pruned,
        )
    end = chunks.next_seal(connection, position)
    if end is not None:
        parts: dict[int, list[Columns]] = {}
        for kind, symbol_id, columns in chunks.span(connection, end):
            symbols = np.full(len(columns["seq"]), symbol_id, dtype="<u4")
            parts.setdefault(kind, []).append({**columns, "symbol": symbols})
        found = {}
        for kind, joined in parts.items():
            whole = concatenate(kind, joined)
            found[kind] = take(whole, np.argsort(whole["seq"], kind="stable"))
        return Step(_after(found, position), end)
    return Step({}, max(position, seal.seal_position(connection)))


def _after(found: dict[int, Columns], position: int) -> dict[int, Columns]:
    later = {}
    for kind, columns in found.items():
        start = int(np.searchsorted(columns["seq"], position, side="right"))
        part = {name: column[start:] for name, column in columns.items()} if start else columns
        if len(part["seq"]):
            later[kind] = part
    return later


def first_position(connection: apsw.Connection, start_ns: int) -> int:
    """Return a position before every record with ts_event_ns >= start_ns."""
    with query.snapshot(connection):
        sealed = seal.seal_position(connection)
        spans = connection.execute("SELECT min(seal) FROM chunk WHERE ts_max >= ?", (start_ns,)).get
        if spans is None:
            return sealed
        before = connection.execute("SELECT max(seal) FROM chunk WHERE seal < ?", (spans,)).get
        return 0 if before is None else int(before)


def records(
    found: dict[int, Columns], names: Names, wanted: Array | None = None, start_ns: int | None = None
) -> list[Tick | Bar]:
    """Return a step's records in order of position, those of the `wanted` symbol ids, from `start_ns` on."""
    out: list[Tick | Bar] = []
    for kind, columns in found.items():
        part = columns
        if wanted is not None:
            mask = np.isin(part["symbol"], wanted)
            part = part if mask.all() else take(part, mask)
        if start_ns is not None:
            mask = part["ts_event_ns"] >= start_ns
            part = part if mask.all() else take(part, mask)
        if not len(part["seq"]):
            continue
        symbols = names.symbols(part["symbol"].tolist())
        rest = {name: column for name, column in part.items() if name != "symbol"}
        if kind == KIND_TICK:
            out.extend(query.to_ticks(rest, symbols, names))
        else:
            out.extend(given.to_given_bars(part, symbols, names))
    if len(found) > 1:
        out.sort(key=lambda record: record.seq or 0)
    return out
