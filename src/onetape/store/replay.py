"""Replay: records after a position, in order of position, from chunks where sealed and from the journal after."""

from __future__ import annotations

from typing import Any, NamedTuple

import apsw
import numpy as np

from onetape.errors import TapeError
from onetape.record import Cancel, Record
from onetape.store import chunks, given, query, seal, spans
from onetape.store.block import Array, Columns, decode_many, take
from onetape.store.layout import KIND_CANCEL, KIND_TICK
from onetape.store.query import Names

#: Journal rows read at once. A row is one commit: one tick or up to a whole span.
_ROWS_MAX = 256
#: Sealed positions one step covers at the most.
_STEP_RECORDS = 65_536


class Step(NamedTuple):
    """One step of a replay: columns by kind, each in order of position, and the position after it."""

    found: dict[int, Columns]
    position: int

    def first(self) -> dict[int, Columns]:
        """Return the records of the first position there is."""
        least = min((int(columns["seq"][0]) for columns in self.found.values()), default=0)
        return {kind: take(columns, columns["seq"] == least) for kind, columns in self.found.items()}


class Cache:
    """The span that a replay is in, decoded once and handed out in steps; what is passed is let go."""

    def __init__(self) -> None:
        self._span: spans.Span | None = None
        self._found: dict[int, Columns] = {}

    def load(self, connection: apsw.Connection, span: spans.Span, position: int) -> dict[int, Columns]:
        """Return a span's records behind a position, by kind, each in order of position."""
        if span != self._span:
            whole = chunks.by_kind(chunks.of_span(connection, span.seal, position))
            self._found = {kind: _by_position(columns) for kind, columns in whole.items()}
            self._span = span
        return self._found

    def clear(self) -> None:
        """Let go of the span: it has been passed."""
        self._span, self._found = None, {}


def step(connection: apsw.Connection, position: int, all_left: bool = False, cache: Cache | None = None) -> Step | None:
    """Return the next records after `position`, or None if there are none yet. cache: of the replay this is a step of.

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
        return _sealed_step(connection, position, all_left, cache)


def _sealed_step(connection: apsw.Connection, position: int, all_left: bool, cache: Cache | None) -> Step | None:
    pruned = int(connection.execute("SELECT pruned_seq FROM state").get)
    if position < pruned and not all_left:
        raise TapeError(
            f"retention has removed records after position {position}, up to {pruned}",
            hint="follow from 0 for all that is left, or from a later position",
            position=position,
            pruned_seq=pruned,
        )
    span = spans.after(connection, position)
    if span is None:
        return Step({}, max(position, seal.seal_position(connection)))
    end = min(span.seal, max(position, span.first - 1) + _STEP_RECORDS)
    if cache is None:
        some = chunks.by_kind(chunks.of_span(connection, span.seal, position, end))
        found = {kind: _by_position(columns) for kind, columns in some.items()}
    else:
        found = cache.load(connection, span, position)
        if end == span.seal:
            cache.clear()
    return Step(_after(_until(found, end), position), end)


def _by_position(columns: Columns) -> Columns:
    """Return records in order of position."""
    return take(columns, np.argsort(columns["seq"], kind="stable"))


def _until(found: dict[int, Columns], end: int) -> dict[int, Columns]:
    """Return the records up to a position."""
    return {
        kind: {
            name: column[: int(np.searchsorted(columns["seq"], end, side="right"))] for name, column in columns.items()
        }
        for kind, columns in found.items()
    }


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
        found = connection.execute(
            "SELECT min(first) FROM span WHERE seal = (SELECT min(seal) FROM chunk WHERE ts_max >= ?)", (start_ns,)
        ).get
        return sealed if found is None else int(found) - 1


def records(
    found: dict[int, Columns], names: Names, wanted: Array | None = None, start_ns: int | None = None
) -> list[Record]:
    """Return a step's records in order of position, those of the `wanted` symbol ids, from `start_ns` on."""
    out: list[Record] = []
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
        elif kind == KIND_CANCEL:
            fields = (part[name].tolist() for name in ("ts_event_ns", "target", "trade", "seq"))
            out.extend(
                Cancel(symbol, ts, target, bool(trade), seq)
                for symbol, ts, target, trade, seq in zip(symbols, *fields, strict=True)
            )
        else:
            out.extend(given.to_given_bars(part, symbols, names))
    if len(found) > 1:
        out.sort(key=lambda record: record.seq or 0)
    return out
