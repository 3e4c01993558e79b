"""The mark: the price at which a position is valued, from a symbol's newest ticks."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import msgspec

from onetape.errors import ConfigInvalid
from onetape.record import Tick
from onetape.services.state.position import decimal


class Mark(msgspec.Struct, frozen=True):
    """A price, its time, whether of a trade or the middle of a quote, and whether it is older than it may be."""

    price: Decimal
    at_ns: int
    kind: str  # "trade" or "mid"
    stale: bool


def mark(ticks: Sequence[Tick], now_ns: int, stale_ns: int) -> Mark | None:
    """Return the last trade, else the middle of the last quote with both sides; a fresh quote before a stale trade.

    ticks ascend in time. None where neither is there.
    """
    found: list[Mark] = []
    for kind in ("trade", "mid"):
        for tick in reversed(ticks):
            price = tick.price if kind == "trade" else _middle(tick)
            if price is None:
                continue
            try:
                exact = decimal("price", price)
            except ConfigInvalid:  # beyond what money is counted in: it values nothing
                continue
            found.append(Mark(exact, tick.ts_event_ns, kind, now_ns - tick.ts_event_ns > stale_ns))
            break
    fresh = [one for one in found if not one.stale]
    return next(iter(fresh or found), None)


def _middle(tick: Tick) -> float | None:
    return None if tick.bid is None or tick.ask is None else (tick.bid + tick.ask) / 2
