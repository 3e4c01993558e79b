"""The old record: a tick as MinhOS's clients knew it, and as JSON."""

from __future__ import annotations

from typing import Any

import msgspec

from onetape.record import Tick

_FIELDS = ("bid", "ask", "bid_size", "ask_size", "volume", "vwap", "trades")


def record_of(tick: Tick) -> dict[str, Any]:
    """Return a tick as the old record: seconds, `close`; open, high and low default to it; without what is absent."""
    told: dict[str, Any] = {"symbol": tick.symbol, "timestamp": tick.ts_event_ns / 1_000_000_000}
    for name, value in (("close", tick.price), ("open", tick.open), ("high", tick.high), ("low", tick.low)):
        if value is not None or tick.price is not None:
            told[name] = tick.price if value is None else value
    for name in _FIELDS:
        if (value := getattr(tick, name)) is not None:
            told[name] = _whole(value) if name.endswith("size") or name == "volume" else value
    if tick.size is not None:
        told["last_size"] = _whole(tick.size)
    told["source"] = tick.source or "unknown"
    return told


def told_of(tick: Tick) -> str:
    """Return it as JSON."""
    return msgspec.json.encode(record_of(tick)).decode()


def _whole(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value
