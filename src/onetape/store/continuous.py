"""Continuous futures: which contracts one is made of, and the rule that says when it rolls; kept on the tape as data.

A definition holds no prices. What it yields (store/rolls.py) is worked out from the contracts when it is asked for.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Any
from zoneinfo import ZoneInfo

import apsw
import msgspec

from onetape.clock import now_ns
from onetape.errors import ConfigInvalid, NameTaken
from onetape.store import aliases
from onetape.store.validate import text_problem

_RULES = "'volume', 'open_interest', '5d' or '5bd' (days, business days before expiry), or a date for each roll"
_BEFORE = re.compile(r"(\d{1,3})(d|bd)")
_CLOCK = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")


class Contract(msgspec.Struct, frozen=True):
    """One future: its symbol, and the last trading date."""

    symbol: str
    expiry: date


class OnDates(msgspec.Struct, frozen=True, tag="on_dates"):
    """Roll at the start of these trading dates: one for each contract but the last, ascending."""

    dates: tuple[date, ...]


class DaysBefore(msgspec.Struct, frozen=True, tag="days_before"):
    """Roll at the start of the trading date so many days before expiry: calendar days, or business days."""

    days: int
    business: bool = False


class VolumeCrossover(msgspec.Struct, frozen=True, tag="volume"):
    """Roll at the start of the day after the one on which a later contract's volume exceeded the front's."""


class OpenInterestCrossover(msgspec.Struct, frozen=True, tag="open_interest"):
    """Roll at the start of the day after the one at whose end a later contract's open interest exceeded the front's."""


RollRule = OnDates | DaysBefore | VolumeCrossover | OpenInterestCrossover


class Definition(msgspec.Struct, frozen=True):
    """A continuous future: contracts by expiry, the rule, and what a trading day is.

    The trading day of a date begins at `day_start` (HH:MM) in `timezone`; from noon on, on the evening before, as
    futures markets count. `holidays` are no business days. `gaps`: for a contract that is rolled into, what it costs
    more than the one before, where no common trade tells it.
    """

    name: str
    contracts: tuple[Contract, ...]
    roll: RollRule
    timezone: str = "UTC"
    day_start: str = "00:00"
    holidays: tuple[date, ...] = ()
    gaps: dict[str, float] = {}


class Defined(msgspec.Struct, frozen=True):
    """A version of a continuous future on the tape."""

    definition: Definition
    version: int
    created_ns: int


def rule(value: RollRule | str | Sequence[date | str]) -> RollRule:
    """Return a rule as people write it: "volume", "open_interest", "5d", "5bd", or dates. Raises ConfigInvalid."""
    if isinstance(value, OnDates | DaysBefore | VolumeCrossover | OpenInterestCrossover):
        return value
    if isinstance(value, str):
        word = value.strip().lower().replace("-", "_")
        if word == "volume":
            return VolumeCrossover()
        if word == "open_interest":
            return OpenInterestCrossover()
        if (before := _BEFORE.fullmatch(word)) is not None:
            return DaysBefore(int(before[1]), before[2] == "bd")
        value = value.split(",")
    try:
        return OnDates(tuple(day(text, "a roll date") for text in value))
    except (TypeError, ConfigInvalid) as error:
        raise ConfigInvalid(f"roll = {value!r} is no rule", hint=f"it is {_RULES}") from error


def day(value: object, name: str) -> date:
    """Return a date that is given as one or as ISO text. Raises ConfigInvalid, naming `name`."""
    if isinstance(value, datetime):
        return value.date()
    if isinstance(value, date):
        return value
    try:
        return date.fromisoformat(str(value).strip())
    except ValueError as error:
        raise ConfigInvalid(f"{name} = {value!r} is no date", hint="write it as 2025-12-19") from error


def define(
    name: str,
    contracts: Sequence[tuple[str, date | str] | Contract],
    roll: RollRule | str | Sequence[date | str],
    timezone: str = "UTC",
    day_start: str = "00:00",
    holidays: Sequence[date | str] = (),
    gaps: Mapping[str, float] | None = None,
) -> Definition:
    """Return a definition whose parts fit each other; contracts may come in any order. Raises ConfigInvalid."""
    why = text_problem("symbol", name)
    if why is not None:
        raise ConfigInvalid(f"a continuous future cannot be called {name!r}: {why}")
    try:
        given = [(one.symbol, one.expiry) if isinstance(one, Contract) else (one[0], one[1]) for one in contracts]
    except (TypeError, IndexError) as error:
        raise ConfigInvalid("contracts are (symbol, last trading date) pairs") from error
    chain = sorted(
        (Contract(symbol, day(expiry, f"the expiry of {symbol!r}")) for symbol, expiry in given),
        key=lambda contract: contract.expiry,
    )
    found = Definition(
        name,
        tuple(chain),
        rule(roll),
        timezone,
        day_start,
        tuple(sorted({day(one, "a holiday") for one in holidays})),
        dict(gaps or {}),
    )
    _check(found)
    return found


def _check(definition: Definition) -> None:
    chain = definition.contracts
    if not chain:
        raise ConfigInvalid(f"{definition.name!r} has no contracts", hint="give (symbol, last trading date) pairs")
    symbols = [contract.symbol for contract in chain]
    for symbol in symbols:
        why = text_problem("symbol", symbol)
        if why is not None or symbol == definition.name:
            raise ConfigInvalid(f"{symbol!r} cannot be a contract: {why or 'it is the name of the whole'}")
        if symbols.count(symbol) > 1:
            raise ConfigInvalid(f"the contract {symbol!r} is given twice", hint="each contract has one expiry")
    for old, new in itertools.pairwise(chain):
        if old.expiry == new.expiry:
            raise ConfigInvalid(f"{old.symbol!r} and {new.symbol!r} both expire on {old.expiry}")
    if _CLOCK.fullmatch(definition.day_start) is None:
        raise ConfigInvalid(f"day_start = {definition.day_start!r}", hint="write the local time as 17:00")
    try:
        ZoneInfo(definition.timezone)
    except (LookupError, OSError, ValueError, TypeError) as error:
        raise ConfigInvalid(f"timezone = {definition.timezone!r} is unknown", hint="such as America/Chicago") from error
    for symbol, gap in definition.gaps.items():
        if symbol not in symbols[1:] or isinstance(gap, bool) or not isinstance(gap, int | float):
            raise ConfigInvalid(f"gaps: {symbol!r}: {gap!r}", hint="the price difference, by the contract rolled into")
        if not math.isfinite(gap):
            raise ConfigInvalid(f"gaps: {symbol!r}: {gap!r} is not finite")
    _check_rule(definition)


def _check_rule(definition: Definition) -> None:
    from onetape.store import rolls

    found, chain = definition.roll, definition.contracts
    if isinstance(found, DaysBefore) and not 0 <= found.days <= 366:
        raise ConfigInvalid(f"{found.days} days before expiry", hint="0 to 366")
    if isinstance(found, OnDates) and len(found.dates) != len(chain) - 1:
        raise ConfigInvalid(
            f"{len(found.dates)} roll dates for {len(chain)} contracts", hint="one date for each contract but the last"
        )
    if not isinstance(found, OnDates | DaysBefore):
        return
    dates = rolls.dates(definition)
    for (old, new), at in zip(itertools.pairwise(chain), dates, strict=True):
        if (at - old.expiry).days > 1:
            raise ConfigInvalid(f"the roll from {old.symbol!r} to {new.symbol!r} on {at} is after {old.expiry}")
    for index, (one, other) in enumerate(itertools.pairwise(dates)):
        if one >= other:
            raise ConfigInvalid(
                f"{chain[index + 1].symbol!r} would never be the front: rolls on {one} and {other}",
                hint="roll dates ascend, one day apart at least",
            )


def save(connection: apsw.Connection, definition: Definition, replace: bool) -> int:
    """Keep a definition, inside the caller's transaction; return its version. The same again changes nothing.

    replace: a different one of that name becomes the next version. Raises NameTaken, ConfigInvalid.
    """
    name = definition.name
    known = None
    newest = connection.execute("SELECT max(version) FROM continuous WHERE name = ?", (name,)).get
    # A damaged one may be what is to be replaced.
    with contextlib.suppress(ConfigInvalid) if replace else contextlib.nullcontext():
        known = load(connection, name)
    if known is not None and known.definition == definition:
        return known.version
    if known is not None and not replace:
        raise NameTaken(
            f"{name!r} is defined already, version {known.version}, and not like this",
            hint="replace it explicitly: the older version stays readable",
        )
    if aliases.is_symbol(connection, name) or aliases.lookup(connection, name):
        raise NameTaken(f"{name!r} is a symbol or an alias", hint="a continuous future has a name of its own")
    meant: dict[str, str] = {}
    for contract in definition.contracts:
        if aliases.is_continuous(connection, contract.symbol):
            raise ConfigInvalid(f"{contract.symbol!r} is a continuous future itself, not a contract")
        symbol = contract.symbol
        if not aliases.is_symbol(connection, symbol):
            symbol = aliases.meaning(connection, symbol) or symbol
        if symbol in meant:
            raise ConfigInvalid(f"{meant[symbol]!r} and {contract.symbol!r} are one symbol: {symbol!r}")
        meant[symbol] = contract.symbol
    version = (newest or 0) + 1
    text = msgspec.json.encode(definition).decode()
    connection.execute("INSERT INTO continuous VALUES (?, ?, ?, ?)", (name, version, text, now_ns()))
    return version


def load(connection: apsw.Connection, name: str, version: int | None = None) -> Defined | None:
    """Return the newest version of a continuous future, or the one asked for; None if there is none."""
    rows: list[Any] = connection.execute(
        "SELECT definition, version, created_ns FROM continuous WHERE name = ?1 AND version = coalesce(?2, version)"
        " ORDER BY version DESC LIMIT 1",
        (name, version),
    ).fetchall()
    for text, number, created in rows:
        try:
            return Defined(msgspec.json.decode(text, type=Definition), number, created)
        except msgspec.DecodeError as error:
            raise ConfigInvalid(
                f"the definition of {name!r} cannot be read: {error}", hint="define it again, with replace"
            ) from error
    return None


def names(connection: apsw.Connection) -> list[str]:
    """Return the names of all continuous futures, in order."""
    rows: list[Any] = connection.execute("SELECT DISTINCT name FROM continuous ORDER BY name").fetchall()
    return [row[0] for row in rows]


def remove(connection: apsw.Connection, name: str) -> int:
    """Forget all versions of a continuous future and its rolls, inside the caller's transaction; return how many."""
    connection.execute("DELETE FROM roll WHERE name = ?", (name,))
    connection.execute("DELETE FROM continuous WHERE name = ?", (name,))
    return connection.changes()
