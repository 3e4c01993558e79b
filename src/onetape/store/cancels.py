"""Cancels: records that take ticks back. Nothing on the tape is changed; who reads leaves out what was taken back.

A cancel names the position (`target`) and the time of a tick of its symbol. A revision is a cancel and, at the next
position, the tick that stands instead.
"""

from __future__ import annotations

import apsw
import numpy as np

from onetape.record import MINUTE_NS
from onetape.store import chunks
from onetape.store.block import Array, Columns, take
from onetape.store.layout import KIND_CANCEL

_NONE = np.zeros(0, dtype="<i8")


def of_symbol(columns: Columns | None, symbol_id: int, start_ns: int, end_ns: int) -> Columns | None:
    """Return a symbol's records of a time span out of the journal's, or None."""
    if columns is None:
        return None
    ts = columns["ts_event_ns"]
    mask = (columns["symbol"] == symbol_id) & (ts >= start_ns) & (ts < end_ns)
    if not mask.any():
        return None
    mine = take(columns, mask)
    del mine["symbol"]
    return mine


def targets(
    connection: apsw.Connection,
    symbol_id: int,
    start_ns: int,
    end_ns: int,
    tail: dict[int, Columns],
    as_of: int | None = None,
) -> Array:
    """Return the positions of a symbol's ticks of a time span that were taken back, up to the position `as_of`."""
    beside = of_symbol(tail.get(KIND_CANCEL), symbol_id, start_ns, end_ns)
    found = chunks.read(connection, KIND_CANCEL, symbol_id, start_ns, end_ns, as_of=as_of, beside=beside)
    if found is None:
        return _NONE
    return found["target"]


def without(columns: Columns, taken_back: Array) -> Columns:
    """Return the records whose positions were not taken back."""
    if not len(taken_back):
        return columns
    return take(columns, ~np.isin(columns["seq"], taken_back))


def by_minute(columns: Columns | None) -> dict[tuple[int, int], int]:
    """Return, by (symbol, start of the minute), how many trades cancels take back."""
    counts: dict[tuple[int, int], int] = {}
    if columns is None:
        return counts
    starts = columns["ts_event_ns"] - columns["ts_event_ns"] % MINUTE_NS
    traded = columns["trade"] != 0
    for key in zip(columns["symbol"][traded].tolist(), starts[traded].tolist(), strict=True):
        counts[key] = counts.get(key, 0) + 1
    return counts
