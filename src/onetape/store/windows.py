"""Windows: a span of time cut into pieces that hold about so many ticks, so that history is read in bounded memory.

Windows lie one behind the other without a hole, whatever lies in them, so a tick is in exactly one of them even if it
is sealed, compacted or moved to another chunk between the reading of two. Only their sizes are an estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apsw

from onetape.store.layout import DAY_NS, KIND_TICK, MIXED

Window = tuple[int, int]


def of_symbols(
    connection: apsw.Connection, symbol_ids: Sequence[int], start_ns: int, end_ns: int, records: int
) -> list[Window]:
    """Return windows (start_ns, end_ns) that together are start_ns … end_ns, ascending.

    A new one begins where a chunk begins and the chunks begun since the last cut hold `records` or more: of one symbol
    whose chunks do not overlap, no chunk is read twice. A window holds no more than that, one chunk, and what reaches
    into it from before: a chunk a symbol, unless records came late.
    """
    edges, held = [start_ns], 0
    for ts_min, count in _chunks(connection, symbol_ids, start_ns, end_ns):
        if held >= records and ts_min > edges[-1]:
            edges.append(ts_min)
            held = 0
        held += count
    return list(zip(edges, [*edges[1:], end_ns], strict=True))


def _chunks(
    connection: apsw.Connection, symbol_ids: Sequence[int], start_ns: int, end_ns: int
) -> list[tuple[int, int]]:
    """Return (ts_min, records) of the chunks that reach into a span, by ts_min."""
    found: list[Any] = []
    last = min(end_ns + DAY_NS, 2**63 - 1)  # a chunk spans at most one day
    for symbol_id in {*symbol_ids, MIXED}:
        found += connection.execute(
            "SELECT ts_min, count FROM chunk WHERE kind = ? AND symbol_id = ? AND ts_max >= ? AND ts_max < ?"
            " AND ts_min < ?",
            (KIND_TICK, symbol_id, start_ns, last, end_ns),
        ).fetchall()
    return sorted(found)


def merge(windows: Sequence[Window], counts: Sequence[int], records: int) -> list[Window]:
    """Return windows with neighbours joined while they hold `records` at the most; holes between them stay."""
    joined: list[Window] = []
    held = 0
    for (start, end), count in zip(windows, counts, strict=True):
        if joined and joined[-1][1] == start and held + count <= records:
            joined[-1] = (joined[-1][0], end)
            held += count
        else:
            joined.append((start, end))
            held = count
    return joined
