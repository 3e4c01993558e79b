"""The position: what fills add up to, in exact decimal money."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from decimal import Context, Decimal, InvalidOperation, localcontext
from typing import Any

import msgspec

from onetape.errors import ConfigInvalid

#: Decimals that a price, a quantity or a fee may have, and the step to which a part of a cost is rounded.
DECIMALS = 12
_STEP = Decimal(1).scaleb(-DECIMALS)
_GREATEST = Decimal(10) ** 15
#: Enough digits for sums of products of such numbers, so that nothing is ever rounded but where it says so.
_DIGITS = 100
ZERO = Decimal(0)


class Fill(msgspec.Struct, frozen=True, kw_only=True):
    """One execution. quantity is signed: bought above zero, sold below. A fill with the same id is the same fill."""

    fill_id: str
    symbol: str
    quantity: Decimal
    price: Decimal
    fee: Decimal = ZERO
    ts_ns: int


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """What is held of one symbol; amounts of money are in its currency.

    quantity is signed. cost is the signed sum of quantity times price of what is held, without the multiplier.
    realized is before fees. Where a part of a position is closed, the part's cost is rounded to 10**-12 and the rest
    stays with the position: once it is flat, realized is exactly what came in minus what went out.
    """

    symbol: str
    quantity: Decimal = ZERO
    cost: Decimal = ZERO
    multiplier: Decimal = Decimal(1)
    realized: Decimal = ZERO
    fees: Decimal = ZERO
    fills: int = 0
    opened_ns: int | None = None
    updated_ns: int | None = None

    @property
    def average_price(self) -> Decimal | None:
        """Return the average price of what is held, to 12 decimals; None while flat."""
        if not self.quantity:
            return None
        with exact():
            return (self.cost / self.quantity).quantize(_STEP).normalize() + ZERO

    def unrealized(self, price: Decimal) -> Decimal:
        """Return what closing all of it at `price` would realize."""
        with exact():
            return (self.quantity * price - self.cost) * self.multiplier


def apply(position: Position, fill: Fill) -> tuple[Position, Decimal]:
    """Return the position after the fill, and what the fill realized before fees. Adds, reduces, flips and closes."""
    with exact():
        held, traded = position.quantity, fill.quantity
        if not held or (held > 0) == (traded > 0):
            part, cost, realized = ZERO, position.cost + traded * fill.price, ZERO
        else:
            closed = traded if abs(traded) <= abs(held) else -held  # signed as the fill
            part = position.cost if closed == -held else (position.cost * -closed / held).quantize(_STEP)
            realized = (-closed * fill.price - part) * position.multiplier
            cost = position.cost - part + (traded - closed) * fill.price
        quantity = held + traded
        new = not held or (quantity != 0 and (held > 0) != (quantity > 0))
        after = msgspec.structs.replace(
            position,
            quantity=quantity,
            cost=cost,
            realized=position.realized + realized,
            fees=position.fees + fill.fee,
            fills=position.fills + 1,
            opened_ns=None if not quantity else fill.ts_ns if new else position.opened_ns,
            updated_ns=fill.ts_ns,
        )
        return after, realized


def decimal(name: str, value: Any) -> Decimal:
    """Return a number exactly as it is written. Raises ConfigInvalid for one that cannot be kept.

    A float counts as Python prints it, rounded to 12 decimals; text, int and Decimal with more are refused.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        raise ConfigInvalid(f"{name} = {value!r} is not a number", hint="give a Decimal, an int, text or a float")
    try:
        with exact():
            if isinstance(value, float):
                found = Decimal(repr(value)).quantize(_STEP) if math.isfinite(value) else Decimal(value)
            else:
                found = Decimal(value)
            if not found.is_finite() or abs(found) >= _GREATEST:
                raise ConfigInvalid(f"{name} = {value!r} is out of range", hint="below 10**15, and finite")
            if found != found.quantize(_STEP):
                raise ConfigInvalid(f"{name} = {value!r} has too many decimals", hint=f"at most {DECIMALS}")
            return found.normalize() + ZERO if found else ZERO
    except InvalidOperation as error:
        raise ConfigInvalid(f"{name} = {value!r} is not a number", hint="such as 5000.25") from error


@contextlib.contextmanager
def exact() -> Iterator[Context]:
    """A decimal context in which sums and products of what `decimal` gives are exact."""
    with localcontext(Context(prec=_DIGITS)) as context:
        yield context
