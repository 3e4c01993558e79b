"""The life of a tape: retention in small steps, and the space given back."""

from __future__ import annotations

from typing import Any

import apsw

from onetape.store.layout import DAY_NS, KIND_TICK

#: Chunks removed, and pages given back, in one transaction: a few milliseconds, so no writer waits longer.
_CHUNKS_A_STEP = 64
_PAGES_A_STEP = 512


def prune_step(connection: apsw.Connection, before_ns: int) -> int:
    """Remove some chunks of ticks whose newest tick, and whose sealing, are before `before_ns`; return the ticks.

    Only sealed ticks go, so each is in its bar already. A chunk goes whole, when its newest tick may; and only
    once it has been on the tape for as long, so that history imported today is not gone today. The caller holds a
    write transaction.
    """
    rows: list[Any] = connection.execute(
        "SELECT c.id, c.symbol_id, c.count, c.ts_max, c.seq_max FROM symbol s CROSS JOIN chunk c"
        " ON c.kind = ? AND c.symbol_id = s.id AND c.ts_max < ? WHERE c.sealed_ns < ? LIMIT ?",
        (KIND_TICK, before_ns, before_ns, _CHUNKS_A_STEP),
    ).fetchall()
    if not rows:
        return 0
    connection.executemany("DELETE FROM chunk WHERE id = ?", [(row[0],) for row in rows])
    connection.executemany("UPDATE symbol SET ticks = ticks - ? WHERE id = ?", [(row[2], row[1]) for row in rows])
    connection.execute("UPDATE state SET pruned_seq = max(pruned_seq, ?)", (max(row[4] for row in rows),))
    connection.executemany(
        "UPDATE symbol SET pruned_before_ns = max(pruned_before_ns, ?) WHERE id = ?",
        [(row[3] + 1, row[1]) for row in rows],
    )
    for symbol_id in {row[1] for row in rows}:
        connection.execute(
            "UPDATE symbol SET ts_min = (SELECT min(ts_min) FROM chunk WHERE kind IN (0, 1) AND symbol_id = ?1),"
            " ts_max = (SELECT max(ts_max) FROM chunk WHERE kind IN (0, 1) AND symbol_id = ?1) WHERE id = ?1",
            (symbol_id,),
        )
    return int(sum(row[2] for row in rows))


def give_back(connection: apsw.Connection) -> int:
    """Give some free pages back to the file system; return how many are still free."""
    free = int(connection.execute("PRAGMA freelist_count").get)
    if free:
        connection.execute(f"PRAGMA incremental_vacuum({_PAGES_A_STEP})").fetchall()
        free = int(connection.execute("PRAGMA freelist_count").get)
    return free


def cutoff_ns(now_ns: int, retention_days: float) -> int:
    """Return the time before which ticks may go."""
    return now_ns - int(retention_days * DAY_NS)
