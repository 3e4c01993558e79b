"""Positions at the prices now, and what they make; also as plain rows."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec

from onetape.services.state.marks import Mark
from onetape.services.state.position import Position


class Valued(msgspec.Struct, frozen=True, kw_only=True):
    """A position at the price now. unrealized is None without a price; stale: the price is older than it may be."""

    position: Position
    mark: Mark | None
    unrealized: Decimal | None
    stale: bool


class ProfitLoss(msgspec.Struct, frozen=True, kw_only=True):
    """Money. day: realized today after fees, and unrealized; None, as unrealized, where a position has no price.

    stale: symbols whose price is older than it may be or missing; the sums use the old ones.
    """

    realized: Decimal
    fees: Decimal
    realized_today: Decimal
    unrealized: Decimal | None
    day: Decimal | None
    stale: list[str]


def row(one: Valued) -> dict[str, Any]:
    """Return a position as plain data: money as numbers, times as ms."""
    position = one.position
    average = position.average_price
    return {
        "symbol": position.symbol,
        "quantity": float(position.quantity),
        "average_price": None if average is None else float(average),
        "multiplier": float(position.multiplier),
        "current_price": None if one.mark is None else float(one.mark.price),
        "price_ms": None if one.mark is None else one.mark.at_ns // 1_000_000,
        "price_kind": None if one.mark is None else one.mark.kind,
        "stale": one.stale,
        "unrealized_pnl": None if one.unrealized is None else float(one.unrealized),
        "realized_pnl": float(position.realized),
        "fees": float(position.fees),
    }
