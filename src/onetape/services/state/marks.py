"""The mark: the price at which a position is valued, from a symbol's newest ticks."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import msgspec

from onetape.errors import ConfigInvalid
from onetape.record import Tick
from onetape.services.state.position import decimal


class Mark(msgspec.Struct, frozen=True):
    """A price, its time, whether of a trade or the middle of a quote, and whether its time is too far from now."""

    price: Decimal
    at_ns: int
    kind: str  # "trade" or "mid"
    stale: bool


def mark(ticks: Sequence[Tick], now_ns: int, stale_ns: int) -> Mark | None:
    """Return the last trade, else the middle of the last quote with both sides; a fresh quote before a stale trade.

    ticks ascend in time. None where neither is there. A time that far in the future is wrong: nobody knows how old its
    price is, so it is stale as well, and any other goes before it.
    """
    ticks = [tick for tick in ticks if not ahead(tick, now_ns, stale_ns)] or ticks
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
            found.append(Mark(exact, tick.ts_event_ns, kind, abs(now_ns - tick.ts_event_ns) > stale_ns))
            break
    fresh = [one for one in found if not one.stale]
    return next(iter(fresh or found), None)


def ahead(tick: Tick, now_ns: int, stale_ns: int) -> bool:
    """Return whether a tick's time is so far in the future that it is wrong."""
    return tick.ts_event_ns - now_ns > stale_ns


def _middle(tick: Tick) -> float | None:
    """Return the middle of a quote with both sides. A side of 0 alone is how many feeds say that there is none."""
    if tick.bid is None or tick.ask is None or (tick.bid == 0) != (tick.ask == 0):
        return None
    return tick.bid / 2 + tick.ask / 2
