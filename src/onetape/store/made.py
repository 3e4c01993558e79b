"""Made bars: the tape's own, of its trades."""

from __future__ import annotations

import apsw

from onetape.errors import ConfigInvalid
from onetape.record import MINUTE_NS, Bar, interval_text
from onetape.store import bars, query
from onetape.store.layout import DAY_NS


def keeps(interval: int) -> bool:
    """Return whether the tape makes bars of this length (ns) of its own."""
    return interval % MINUTE_NS == 0 and DAY_NS % interval == 0


def own_bars(
    connection: apsw.Connection, symbol_id: int, symbol: str, interval: int, start_ns: int, end_ns: int
) -> list[Bar]:
    """Return the tape's own bars of any whole number of minutes that divides a UTC day."""
    if not keeps(interval):
        raise ConfigInvalid(
            f"the tape keeps bars of whole minutes that divide a day, not of {interval_text(interval)}",
            hint="ask for 1min, 5min, 15min, 1h, 1d",
        )
    first = start_ns - start_ns % interval
    first += interval if first < start_ns else 0  # a bar belongs to the span by its start
    last = end_ns + (-end_ns) % interval
    found, newest_ts = query.minutes(connection, symbol_id, first, min(last, 2**63 - 1))
    text = interval_text(interval)
    groups: dict[int, list[bars.Minute]] = {}
    for minute in found:
        groups.setdefault(minute.ts_start_ns - minute.ts_start_ns % interval, []).append(minute)
    return [
        _joined(symbol, text, ts, parts, newest_ts >= ts + interval)
        for ts, parts in groups.items()
        if start_ns <= ts < end_ns
    ]


def _joined(symbol: str, interval: str, ts: int, parts: list[bars.Minute], complete: bool) -> Bar:
    def total(name: str) -> float | None:
        told = [value for part in parts if (value := getattr(part, name)) is not None]
        result = None
        for value in told:
            result = value if result is None else result + value
        return result

    volume, notional = total("volume"), total("notional")
    return Bar(
        symbol,
        interval,
        ts,
        parts[0].open,
        max(part.high for part in parts),
        min(part.low for part in parts),
        parts[-1].close,
        volume,
        notional / volume if volume and notional is not None else None,
        sum(part.trades for part in parts),
        total("bid_volume"),
        total("ask_volume"),
        complete,
        sum(part.revision for part in parts),
    )
