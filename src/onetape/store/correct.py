"""Corrections: taking a tick back, and putting another in its place, in one transaction."""

from __future__ import annotations

import apsw
import numpy as np

from onetape.clock import now_ns
from onetape.errors import RecordMissing
from onetape.record import SeqRange
from onetape.store import block, cancels, chunks, journal, query
from onetape.store.catalog import Catalog
from onetape.store.layout import KIND_CANCEL, KIND_TICK
from onetape.store.table import Batch


def take_back(
    connection: apsw.Connection,
    catalog: Catalog,
    symbol: str,
    ts_event_ns: int,
    target: int,
    instead: Batch | None,
) -> SeqRange:
    """Append the cancel of one tick, and the one tick that stands instead; return their positions.

    A tick that was taken back already stays so: nothing is stored then, and the cancel's position is returned. Raises
    RecordMissing if the symbol has no tick of that time at that position, or `instead` is for one taken back already.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        symbol_id = catalog.symbol_id(connection, symbol)
        fresh = query.tail(connection)
        traded = None if symbol_id is None else _traded(connection, symbol_id, ts_event_ns, target, fresh)
        if symbol_id is None or traded is None:
            raise RecordMissing(
                f"{symbol} has no tick of time {ts_event_ns} at position {target}",
                hint="give a tick as it was read from this tape; what retention has removed cannot be corrected",
                position=target,
            )
        before = _cancel_of(connection, symbol_id, ts_event_ns, target, fresh)
        if before is not None:
            if instead is not None:
                raise RecordMissing(
                    f"the tick of {symbol} at position {target} was taken back at position {before}",
                    hint="read it again and revise what stands instead",
                    position=target,
                )
            connection.execute("ROLLBACK")
            return SeqRange(before, before, 0)
        first = query.head(connection) + 1
        row = {
            "ts_event_ns": np.array([ts_event_ns]),
            "target": np.array([target]),
            "trade": np.array([int(traded)]),
            "symbol": np.array([symbol_id]),
        }
        blob = block.encode(KIND_CANCEL, row, now_ns() // 1_000_000)
        connection.execute("INSERT INTO journal VALUES (?, 1, ?, ?)", (first, KIND_CANCEL, blob))
        last = first
        if instead is not None:
            batches, _ = journal.named(connection, catalog, [instead])
            last = journal.store(connection, catalog, batches, first)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    catalog.load(connection)
    return SeqRange(first, last, last - first + 1)


def _traded(
    connection: apsw.Connection, symbol_id: int, ts: int, target: int, fresh: dict[int, block.Columns]
) -> bool | None:
    """Return whether the tick has a price, or None if there is no such tick."""
    beside = cancels.of_symbol(fresh.get(KIND_TICK), symbol_id, ts, ts + 1)
    found = chunks.read(connection, KIND_TICK, symbol_id, ts, ts + 1, ("price",), beside=beside)
    at = np.zeros(0, dtype="<i8") if found is None else np.flatnonzero(found["seq"] == target)
    if found is None or not len(at):
        return None
    return "price" in found and not np.isnan(found["price"][at[0]])


def _cancel_of(
    connection: apsw.Connection, symbol_id: int, ts: int, target: int, fresh: dict[int, block.Columns]
) -> int | None:
    """Return the position of the cancel that took a tick back, or None if it stands."""
    beside = cancels.of_symbol(fresh.get(KIND_CANCEL), symbol_id, ts, ts + 1)
    found = chunks.read(connection, KIND_CANCEL, symbol_id, ts, ts + 1, beside=beside)
    at = np.zeros(0, dtype="<i8") if found is None else np.flatnonzero(found["target"] == target)
    return None if found is None or not len(at) else int(found["seq"][at[0]])
