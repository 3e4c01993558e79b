"""Risk: limits that were set, and which of them an order or the account breaks."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec

from onetape.errors import ConfigInvalid
from onetape.services.state.position import decimal, exact


class RiskParameters(msgspec.Struct, frozen=True, kw_only=True):
    """Limits. None is no limit; every limit is above zero.

    max_position, max_order: contracts of one symbol. max_positions: symbols held at once. max_daily_loss: money, of
    what the day realized after fees and all that is unrealized now. max_exposure: money, the sum of all absolute
    quantities times price times multiplier. stale_price_s: an older price is no price to decide by.
    """

    max_position: Decimal | None = None
    max_order: Decimal | None = None
    max_positions: int | None = None
    max_daily_loss: Decimal | None = None
    max_exposure: Decimal | None = None
    stale_price_s: float = 60.0
    max_position_of: dict[str, Decimal] = msgspec.field(default_factory=dict)

    @classmethod
    def of(cls, values: dict[str, Any]) -> RiskParameters:
        """Return validated parameters. Raises ConfigInvalid, naming the parameter."""
        known = [field.name for field in msgspec.structs.fields(cls)]
        found: dict[str, Any] = {}
        for name, value in values.items():
            if name not in known:
                raise ConfigInvalid(f"no risk parameter {name!r}", hint=f"there are {', '.join(known)}")
            if name == "max_position_of":
                if not isinstance(value, dict):
                    raise ConfigInvalid(f"{name} = {value!r}", hint='a limit by symbol: {"ESZ6": 5}')
                found[name] = {str(symbol): _above_zero(f"{name}[{symbol}]", one) for symbol, one in value.items()}
            elif name == "stale_price_s":
                found[name] = float(_above_zero(name, value))
            elif value is None:
                found[name] = None
            elif name == "max_positions":
                count = _above_zero(name, value)
                if count != int(count):
                    raise ConfigInvalid(f"{name} = {value!r}", hint="give a whole number")
                found[name] = int(count)
            else:
                found[name] = _above_zero(name, value)
        return cls(**found)


class Breach(msgspec.Struct, frozen=True):
    """One reason against an order, or one limit that is broken: its name, what it is, what it would be."""

    limit: str
    message: str


class Account(msgspec.Struct, frozen=True):
    """What limits are checked against: quantities and values by symbol; loss and values None where no price is known.

    value: money of one contract at the price now; None without a fresh one.
    """

    held: dict[str, Decimal]
    value: dict[str, Decimal | None]
    day: Decimal | None  # money made today, negative: lost


def check_order(
    risk: RiskParameters, account: Account, symbol: str, quantity: Decimal, *, trading_enabled: bool
) -> list[Breach]:
    """Return every reason against an order. One that only makes a position smaller is never refused.

    Where a limit needs a price and there is no fresh one, that is a reason: what is not known is not within a limit.
    """
    held = account.held.get(symbol, Decimal(0))
    with exact():  # whatever precision the caller's own arithmetic has
        after = held + quantity
    if held and (held > 0) != (quantity > 0) and quantity.copy_abs() <= held.copy_abs():
        return []
    found: list[Breach] = []
    if not trading_enabled:
        found.append(Breach("trading_enabled", "trading is disabled: only a position can be made smaller"))
    if risk.max_order is not None and quantity.copy_abs() > risk.max_order:
        found.append(Breach("max_order", f"{quantity.copy_abs():f} contracts, at most {risk.max_order:f}"))
    return found + check_account(risk, msgspec.structs.replace(account, held={**account.held, symbol: after}))


def check_account(risk: RiskParameters, account: Account) -> list[Breach]:
    """Return every limit that is broken by what is held."""
    with exact():
        return _broken(risk, account)


def _broken(risk: RiskParameters, account: Account) -> list[Breach]:
    found: list[Breach] = []
    held = {symbol: quantity for symbol, quantity in account.held.items() if quantity}
    for symbol, quantity in held.items():
        limit = risk.max_position_of.get(symbol, risk.max_position)
        if limit is not None and abs(quantity) > limit:
            found.append(Breach("max_position", f"{symbol}: {quantity:f} contracts, at most {limit:f}"))
    if risk.max_positions is not None and len(held) > risk.max_positions:
        found.append(Breach("max_positions", f"{len(held)} positions, at most {risk.max_positions}"))
    if risk.max_exposure is not None:
        exposure, unknown = Decimal(0), []
        for symbol, quantity in held.items():
            value = account.value.get(symbol)
            if value is None:
                unknown.append(symbol)
            else:
                exposure += abs(quantity * value)
        if unknown:
            found.append(Breach("max_exposure", f"no fresh price of {', '.join(sorted(unknown))}"))
        elif exposure > risk.max_exposure:
            found.append(Breach("max_exposure", f"{exposure:f}, at most {risk.max_exposure:f}"))
    if risk.max_daily_loss is not None:
        if account.day is None:
            found.append(Breach("max_daily_loss", "the loss is not known: a position has no fresh price"))
        elif -account.day >= risk.max_daily_loss:
            found.append(Breach("max_daily_loss", f"{-account.day:f} lost today, at most {risk.max_daily_loss:f}"))
    return found


def _above_zero(name: str, value: Any) -> Decimal:
    found = decimal(name, value)
    if found <= 0:
        raise ConfigInvalid(f"{name} = {value!r} is not above zero", hint="None is no limit")
    return found
