"""Days: on which UTC days a symbol has records and how many, so that history is read in pieces that fit memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import apsw
import numpy as np

from onetape.store import minutes, query
from onetape.store.layout import DAY_NS, KIND_BAR, KIND_TICK


def of_ticks(connection: apsw.Connection, symbol_id: int) -> Counter[int]:
    """Return day (since 1970-01-01) → how many ticks are stored of it, or a few more."""
    rows: list[Any] = connection.execute(
        "SELECT ts_min, ts_max, count FROM chunk WHERE kind = ? AND symbol_id = ?", (KIND_TICK, symbol_id)
    ).fetchall()
    found: Counter[int] = Counter()
    for ts_min, ts_max, count in rows:
        days = range(ts_min // DAY_NS, ts_max // DAY_NS + 1)
        for day in days:
            found[day] += -(-count // len(days))
    _add_tail(found, connection, KIND_TICK, symbol_id)
    return found


def of_bars(connection: apsw.Connection, symbol_id: int) -> Counter[int]:
    """Return day → about how many bars of any interval and source are kept of it; unsealed ticks count as well."""
    rows: list[Any] = connection.execute(
        "SELECT ts_start_ns / ?, count(*) FROM bar WHERE symbol_id = ? GROUP BY 1", (DAY_NS, symbol_id)
    ).fetchall()
    found: Counter[int] = Counter(dict(rows))
    first, behind = minutes._id(symbol_id, 0), minutes._id(symbol_id + 1, 0)
    hours: list[Any] = connection.execute(
        "SELECT (id - ?) / 24, sum(CASE substr(payload, 1, 1) WHEN x'00' THEN 60 ELSE 1440 END) FROM minute"
        " WHERE id >= ? AND id < ? GROUP BY 1",
        (first, first, behind),
    ).fetchall()
    found.update(dict(hours))
    for kind in (KIND_TICK, KIND_BAR):
        _add_tail(found, connection, kind, symbol_id)
    return found


def _add_tail(found: Counter[int], connection: apsw.Connection, kind: int, symbol_id: int) -> None:
    fresh = query.tail(connection).get(kind)
    if fresh is not None:
        days, counts = np.unique(fresh["ts_event_ns"][fresh["symbol"] == symbol_id] // DAY_NS, return_counts=True)
        found.update(dict(zip(days.tolist(), counts.tolist(), strict=True)))


def pieces(days: Counter[int], start_ns: int, end_ns: int, records_max: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start_ns, end_ns, records) of spans that together hold all the days' records in start_ns … end_ns.

    A span is of several days while they hold at most `records_max` records, and a part of a day that holds more.
    """
    first, last, held = -1, -1, 0
    for day in sorted(days):
        if (day + 1) * DAY_NS <= start_ns or day * DAY_NS >= end_ns:
            continue
        if held and held + days[day] > records_max:
            yield *_within(first * DAY_NS, (last + 1) * DAY_NS, start_ns, end_ns), held
            held = 0
        if days[day] > records_max:
            parts = -(-days[day] // records_max)
            edges = [day * DAY_NS + DAY_NS * part // parts for part in range(parts + 1)]
            for part in range(parts):
                since, until = _within(edges[part], edges[part + 1], start_ns, end_ns)
                if since < until:
                    yield since, until, days[day] // parts
            continue
        first, last, held = first if held else day, day, held + days[day]
    if held:
        yield *_within(first * DAY_NS, (last + 1) * DAY_NS, start_ns, end_ns), held


def _within(since: int, until: int, start_ns: int, end_ns: int) -> tuple[int, int]:
    return max(since, start_ns), min(until, end_ns)
