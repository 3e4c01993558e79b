"""The values of ticks: numbers, counts, sides and symbols as text or JSON holds them, one column at a time.

`reject(row, why, readable=False)` is told of each row that is no valid tick; `readable`: its values are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from onetape.migrate.fields.tick_names import Pick
from onetape.migrate.fields.tick_times import ABSENT
from onetape.record import BUY, SELL
from onetape.store.validate import symbol_problem

_NOT_NEGATIVE = ("size", "bid_size", "ask_size", "volume", "open_interest")
_SIDES = dict.fromkeys(("buy", "b", "bid", "1", "+1"), BUY) | dict.fromkeys(("sell", "s", "ask", "-1"), SELL)


def number_column(
    name: str, where: tuple[Pick, ...], fields: list[Any], reject: Callable[..., None]
) -> list[float | None]:
    """Return a column of floats, all at once where every row has one, else value by value."""
    values = fields[where[0].place]
    out: list[float | None]
    try:
        if where[0].inside is not None or b"_" in b"".join(values):  # float() would take 1_000
            raise ValueError
        read = list(map(float, values))
        sound = math.isfinite(sum(read)) and (name not in _NOT_NEGATIVE or min(read) >= 0)
        out = list(read)
    except (ValueError, TypeError):  # empty values, JSON numbers, nested ones: one by one
        out = column(where, fields, partial(as_number, name), reject)
        sound = False
    if not sound:
        for row, value in enumerate(out):
            if value is None:
                continue
            if not math.isfinite(value):
                reject(row, f"{name} = {value} is not a finite number", True)
            elif value < 0 and name in _NOT_NEGATIVE:
                reject(row, f"{name} = {value} is negative", True)
    return out


def column(
    where: tuple[Pick, ...], fields: list[Any], read: Callable[[Any], Any], reject: Callable[..., None]
) -> list[Any]:
    """Return read(value) of the first pick that has one, for every row; what cannot be read is rejected."""
    out: list[Any] = []
    for row in range(len(fields[0])):
        found, why = None, ""
        for place, inside in where:
            try:
                value = fields[place][row]
                found = read(value if inside is None else inside(value))
            except (ValueError, TypeError) as error:
                why = why or str(error)
            if found is not None:
                break
        if found is None and why:
            reject(row, why)
        out.append(found)
    return out


def as_text(value: Any) -> str | None:
    """Return a value as text, None where it stands for nothing. Raises ValueError."""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise ValueError(f"symbol {shown(value)} is not UTF-8") from None
    if value is None or str(value).strip().lower() in ABSENT:
        return None
    return str(value).strip()


def as_number(name: str, value: Any) -> float | None:
    """Return text or a JSON value as float64, exactly. Raises ValueError, naming the column."""
    if value is None or isinstance(value, float):
        return value
    if isinstance(value, bool):
        raise ValueError(f"{name} = {value} is not a number")
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        text = value.strip()
        if text.lower() in ABSENT:
            return None
        if "_" in text:
            raise ValueError(f"{name} = {shown(text)} is not a number")
        value = text
    try:
        return float(value)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"{name} = {shown(value)} is not a number") from None


def as_count(name: str, value: Any) -> int | None:
    """Return a whole number of 32 bits. Raises ValueError, naming the column."""
    number = as_number(name, value)
    if number is None:
        return None
    if not number.is_integer() or number < 0 or number >= 2**32:
        raise ValueError(f"{name} = {shown(value)} is not a count")
    return int(number)


def as_side(value: Any) -> int | None:
    """Return BUY or SELL; an unknown word is no side, as a quote has none."""
    text = as_text(value)
    return None if text is None else _SIDES.get(text.lower())


def as_maker_side(value: Any) -> int | None:
    """Return the aggressor where the feed tells whether the buyer was the maker: then it was the seller."""
    text = (as_text(value) or "").lower()
    return {"true": SELL, "1": SELL, "false": BUY, "0": BUY}.get(text)


def tick_symbol(of_key: str, own: Any) -> str:
    """Return the entry's own symbol where it differs from its key's, else the key's. Raises ValueError."""
    symbol = of_key if own is None or of_key.endswith(f":{own}") else str(own)
    if not symbol:
        raise ValueError("no symbol in the key or in the fields")
    if (why := symbol_problem(symbol)) is not None:
        raise ValueError(f"symbol {shown(symbol)}: {why}")
    return symbol


def shown(value: Any) -> str:
    """Return a value for a message, cut to 80 characters."""
    text = ", ".join(value) if isinstance(value, list) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
