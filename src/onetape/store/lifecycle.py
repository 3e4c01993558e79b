"""The life of a tape: retention of ticks, then of bars, in small steps, and the space given back.

What a snapshot covers stays, whatever its age. A chunk goes whole: when its newest record may go, when it has been on
the tape for as long (so that history imported today is not gone today), and when none of it is in a snapshot.
"""

from __future__ import annotations

from typing import Any

import apsw
import msgspec
import numpy as np

from onetape.store import ask, minutes, snapshots
from onetape.store.chunks import Chunk
from onetape.store.layout import DAY_NS, KIND_CANCEL, KIND_TICK, MIXED

#: Chunks or hours of bars removed, and pages given back, in one transaction: a few milliseconds, so no writer waits
#: longer.
_CHUNKS_A_STEP = 64
_HOURS_A_STEP = 512
_PAGES_A_STEP = 512

_OLD = "c.ts_max < ?1 AND c.sealed_ns < ?1"


class PrunePlan(msgspec.Struct, frozen=True):
    """What retention may remove now. `held` is what is old enough, but covered by snapshots: ticks by their name.

    A tick that several snapshots cover counts for each of them, and once in `ticks_held`.
    """

    ticks: int
    bytes: int
    bar_hours: int
    ticks_held: int
    held: dict[str, int]


def plan(connection: apsw.Connection, before_ns: int | None, bars_before_ns: int | None) -> PrunePlan:
    """Return what pruning ticks and bars before these times (None: none) would remove, all of what is sealed."""
    ticks = size = kept = 0
    held: dict[str, int] = {}
    if before_ns is not None:
        covered = snapshots.covered(connection)
        question = (
            f"SELECT ifnull(sum(c.count), 0), ifnull(sum(length(c.payload)), 0) FROM chunk c WHERE kind = ?2 AND {_OLD}"
        )
        ticks, size = ask.rows(connection, f"{question} AND c.seq_min > ?3", (before_ns, KIND_TICK, covered))[0]
        for snapshot in snapshots.every(connection):
            of_it = ask.row(connection, f"{question} AND c.seq_min <= ?3", (before_ns, KIND_TICK, snapshot.seq))[0]
            if of_it:
                held[snapshot.name] = int(of_it)
            kept = max(kept, int(of_it))
    hours = 0
    if bars_before_ns is not None:
        for first, last in _bar_ranges(connection, bars_before_ns, before_ns):
            hours += int(
                ask.value(
                    connection,
                    "SELECT ifnull(sum(CASE substr(payload, 1, 1) WHEN x'00' THEN 1 ELSE 24 END), 0) FROM minute"
                    " WHERE id BETWEEN ? AND ?",
                    (first, last),
                )
            )
    return PrunePlan(int(ticks), int(size), hours, kept, held)


def prune_step(connection: apsw.Connection, before_ns: int) -> int:
    """Remove some chunks of ticks whose newest tick, and whose sealing, are before `before_ns`; return the ticks.

    Only sealed ticks go, so each is in its bar already. The caller holds a write transaction.
    """
    covered = snapshots.covered(connection)
    rows: list[Any] = ask.rows(
        connection,
        "SELECT c.id, c.symbol_id, c.count, c.ts_max, c.seq_max FROM symbol s CROSS JOIN chunk c"
        f" ON c.kind = ?2 AND c.symbol_id = s.id AND c.ts_max < ?1 WHERE {_OLD} AND c.seq_min > ?3 LIMIT ?4",
        (before_ns, KIND_TICK, covered, _CHUNKS_A_STEP),
    )
    gone = [(symbol_id, count, ts_max) for _, symbol_id, count, ts_max, _ in rows]
    shared: list[Any] = ask.rows(
        connection,
        "SELECT id, kind, symbol_id, ts_min, ts_max, seq_min, seq_max, count, encoding, payload FROM chunk c"
        f" WHERE kind = ?2 AND symbol_id = ?5 AND {_OLD} AND seq_min > ?3 LIMIT ?4",
        (before_ns, KIND_TICK, covered, _CHUNKS_A_STEP // 8, MIXED),
    )
    for row in shared:
        chunk = Chunk._make(row)
        columns = chunk.decode(("symbol", "ts_event_ns"))
        for symbol_id in np.unique(columns["symbol"]).tolist():
            mine = columns["ts_event_ns"][columns["symbol"] == symbol_id]
            gone.append((symbol_id, len(mine), int(mine.max())))
        rows.append((chunk.id, MIXED, chunk.records, chunk.ts_max, chunk.seq_max))
    if not rows:
        _prune_cancels(connection, before_ns, covered)
        return 0
    connection.executemany("DELETE FROM chunk WHERE id = ?", [(row[0],) for row in rows])
    connection.execute("UPDATE state SET pruned_seq = max(pruned_seq, ?)", (max(row[4] for row in rows),))
    connection.executemany(
        "UPDATE symbol SET ticks = ticks - ?2, pruned_before_ns = max(pruned_before_ns, ?3) WHERE id = ?1",
        [(symbol_id, count, ts_max + 1) for symbol_id, count, ts_max in gone],
    )
    for symbol_id in {symbol_id for symbol_id, _, _ in gone}:
        least = ask.value(
            connection, "SELECT min(ts_min) FROM chunk WHERE kind IN (0, 1) AND symbol_id IN (?, ?)", (symbol_id, MIXED)
        )
        connection.execute(
            "UPDATE symbol SET ts_min = CASE WHEN ticks + bars = 0 THEN NULL ELSE max(ts_min, ifnull(?2, ts_min)) END,"
            " ts_max = CASE WHEN ticks + bars = 0 THEN NULL ELSE ts_max END WHERE id = ?1",
            (symbol_id, least),
        )
    return int(sum(count for _, count, _ in gone))


def _prune_cancels(connection: apsw.Connection, before_ns: int, covered: int) -> None:
    """Remove cancels, once no tick is left that any of them could take back: a tick must not come back to life."""
    connection.execute(
        f"DELETE FROM chunk WHERE id IN (SELECT c.id FROM chunk c WHERE c.kind = ?2 AND {_OLD} AND c.seq_min > ?3"
        " AND NOT EXISTS (SELECT 1 FROM chunk t WHERE t.kind = ?4 AND t.ts_min <= c.ts_max"
        " AND (t.symbol_id = c.symbol_id OR t.symbol_id = ?5 OR c.symbol_id = ?5)) LIMIT ?6)",
        (before_ns, KIND_CANCEL, covered, KIND_TICK, MIXED, _CHUNKS_A_STEP),
    )


def prune_bars_step(connection: apsw.Connection, bars_before_ns: int, before_ns: int | None) -> int:
    """Remove some days of the tape's own 1-minute bars that were over by a time and whose ticks are gone too.

    Return how many rows, of an hour or a day each. The caller holds a write transaction.
    """
    for first, last in _bar_ranges(connection, bars_before_ns, before_ns):
        connection.execute(
            "DELETE FROM minute WHERE id IN (SELECT id FROM minute WHERE id BETWEEN ? AND ? LIMIT ?)",
            (first, last, _HOURS_A_STEP),
        )
        if connection.changes():
            return connection.changes()
    return 0


def _bar_ranges(connection: apsw.Connection, bars_before_ns: int, before_ns: int | None) -> list[tuple[int, int]]:
    """Return the ids of table minute, first and last, that may go of each symbol.

    Bars of ticks that are still there stay: they would only be made again. `before_ns`: ticks before it go first.
    """
    covered = snapshots.covered(connection)
    ranges = []
    for (symbol_id,) in ask.rows(connection, "SELECT id FROM symbol"):
        oldest = ask.value(
            connection,
            "SELECT min(c.ts_min) FROM chunk c WHERE kind = ?2 AND symbol_id IN (?3, ?4)"
            f" AND NOT ({_OLD} AND seq_min > ?5)",
            (-1 if before_ns is None else before_ns, KIND_TICK, symbol_id, MIXED, covered),
        )
        until = bars_before_ns if oldest is None else min(bars_before_ns, int(oldest))
        over_ns = until // DAY_NS * DAY_NS  # whole days: a row may hold one
        if over_ns > 0:
            ranges.append((minutes._id(symbol_id, 0), minutes._id(symbol_id, over_ns - 1)))
    return ranges


def give_back(connection: apsw.Connection) -> int:
    """Give some free pages back to the file system; return how many are still free, and can be given back."""
    before = int(ask.value(connection, "PRAGMA freelist_count"))
    if not before:
        return 0
    ask.rows(connection, f"PRAGMA incremental_vacuum({_PAGES_A_STEP})")
    free = int(ask.value(connection, "PRAGMA freelist_count"))
    return free if free < before else 0  # a file that another tool has written anew may not be able to shrink


def cutoff_ns(now_ns: int, retention_days: float) -> int:
    """Return the time before which records may go."""
    return now_ns - int(retention_days * DAY_NS)
