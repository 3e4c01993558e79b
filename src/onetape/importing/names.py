"""Names: which column of a file is which field of a record, by its usual names or as the user says.

Names are compared in lower case, with everything that is not a letter or a digit as `_`. Of several columns that
could be a field, the name that stands first in its list wins.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from onetape.errors import ImportInvalid

Kind = Literal["ticks", "bars"]

_TIME = ("timestamp", "datetime", "date_time", "time", "epoch", "ts", "t", "unix", "unixtime", "unix_time", "date")
_SYMBOL = ("symbol", "sym", "ticker", "instrument", "tradingsymbol", "trading_symbol", "contract", "pair")
_SOURCE = ("source", "feed", "provider")
_VWAP = ("vwap", "average_price", "avg_price", "average_traded_price")
_TRADES = ("trades", "trade_count", "n_trades", "num_trades", "number_of_trades", "count")

#: The usual names of each field of a tick.
TICK_NAMES: Mapping[str, Sequence[str]] = {
    "symbol": _SYMBOL,
    "ts_event_ns": (
        "ts_event_ns",
        "ts_event",
        "event_time",
        "exchange_timestamp",
        "exchange_time",
        "trade_time",
        *_TIME,
    ),
    "price": ("price", "last", "last_price", "ltp", "last_traded_price", "trade_price"),
    "size": (
        "size",
        "qty",
        "quantity",
        "last_size",
        "last_qty",
        "last_quantity",
        "last_traded_quantity",
        "ltq",
        "trade_size",
        "amount",
    ),
    "bid": ("bid", "bid_price", "bidprice", "best_bid"),
    "ask": ("ask", "ask_price", "askprice", "best_ask", "offer", "offer_price"),
    "bid_size": ("bid_size", "bidsize", "bid_qty", "bid_quantity", "best_bid_size", "bid_volume"),
    "ask_size": ("ask_size", "asksize", "ask_qty", "ask_quantity", "best_ask_size", "ask_volume", "offer_size"),
    "side": ("side", "aggressor", "aggressor_side", "taker_side"),
    "flags": ("flags",),
    "open": ("open", "session_open", "day_open"),
    "high": ("high", "session_high", "day_high"),
    "low": ("low", "session_low", "day_low"),
    "volume": (
        "volume",
        "session_volume",
        "day_volume",
        "total_volume",
        "cumulative_volume",
        "volume_traded",
        "vol",
    ),
    "vwap": _VWAP,
    "trades": _TRADES,
    "open_interest": ("open_interest", "openinterest", "oi"),
    "source": _SOURCE,
    "ts_recv_ns": (
        "ts_recv_ns",
        "ts_recv",
        "recv_time",
        "receive_time",
        "received",
        "local_timestamp",
        "local_time",
    ),
}
#: The usual names of each field of a bar.
BAR_NAMES: Mapping[str, Sequence[str]] = {
    "symbol": _SYMBOL,
    "ts_start_ns": ("ts_start_ns", "open_time", "start", "bar_time", *_TIME),
    "open": ("open", "o"),
    "high": ("high", "h"),
    "low": ("low", "l"),
    "close": ("close", "c", "last"),
    "volume": ("volume", "v", "vol"),
    "vwap": _VWAP,
    "trades": _TRADES,
    "bid_volume": ("bid_volume",),
    "ask_volume": ("ask_volume",),
    "complete": ("complete",),
    "revision": ("revision",),
    "interval": ("interval", "timeframe", "period"),
    "source": _SOURCE,
}
TIME_FIELDS = ("ts_event_ns", "ts_start_ns", "ts_recv_ns")
TEXT_FIELDS = ("symbol", "source", "interval")
INT_FIELDS = ("trades", "flags", "revision")
TRUTH_FIELDS = ("complete",)


def is_own(header: Sequence[str]) -> bool:
    """Return whether a header is that of a CSV file which onetape wrote: there texts are exact, blanks included."""
    return any(f"time,{time}" in ",".join(header) for time in ("ts_event_ns", "ts_start_ns"))


class Layout(msgspec.Struct, frozen=True):
    """Field → the columns it is read from (two where a date and a time of day belong together), and what is unused."""

    columns: dict[str, tuple[str, ...]]
    unused: tuple[str, ...]

    def wanted(self) -> list[str]:
        """Return the columns to read."""
        return list(dict.fromkeys(name for names in self.columns.values() for name in names))


def fields_of(kind: Kind) -> Mapping[str, Sequence[str]]:
    """Return the fields of a kind of record with their usual names."""
    return TICK_NAMES if kind == "ticks" else BAR_NAMES


def parse_mapping(texts: Sequence[str], kind: Kind) -> dict[str, str]:
    """Return field → column of texts such as "price=last,size=qty"; an empty column leaves the field out.

    Raises ImportInvalid, naming the part that is wrong.
    """
    known = fields_of(kind)
    found: dict[str, str] = {}
    for part in (part.strip() for text in texts for part in text.split(",")):
        if not part:
            continue
        field, equals, column = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise ImportInvalid(f"--map {part}: no '='", hint="write FIELD=COLUMN, such as price=last")
        if field not in known:
            hint = f"did you mean {column}={field}?" if column in known else f"fields are {', '.join(known)}"
            raise ImportInvalid(f"--map {part}: {kind} have no field {field!r}", hint=hint)
        if field in found:
            raise ImportInvalid(f"--map {part}: {field} is mapped twice", hint="keep one of them")
        found[field] = column
    return found


def resolve(header: Sequence[str], kind: Kind, mapping: Mapping[str, str], given: Sequence[str], where: str) -> Layout:
    """Return which columns of a header are which fields; `given` fields need no column.

    Raises ImportInvalid that names `where`, the column and the columns there are.
    """
    there = f"columns are {', '.join(map(repr, header))}"
    columns: dict[str, tuple[str, ...]] = {}
    for field, column in mapping.items():
        if column:
            columns[field] = _columns_of(column, header, where, there)
    by_name: dict[str, str] = {}
    for name in header:
        by_name.setdefault(_normal(name), name)
    taken = {name for names in columns.values() for name in names}
    for field, aliases in fields_of(kind).items():
        if field in mapping or field in given:
            continue
        alias = next((a for a in aliases if a in by_name and by_name[a] not in taken), None)
        if alias is not None:
            columns[field] = (by_name[alias],)
            taken.add(by_name[alias])
    _join_date_and_time(columns, by_name, mapping, taken)
    _refuse_repeats(header, taken, where)
    _require(columns, kind, given, where, there)
    return Layout(columns, tuple(name for name in header if name not in taken))


def _normal(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _columns_of(wanted: str, header: Sequence[str], where: str, there: str) -> tuple[str, ...]:
    for parts in ([wanted], [part.strip() for part in wanted.split("+")]):
        names = [next((h for test in (_same, _alike) for h in header if test(h, part)), None) for part in parts]
        if all(name is not None for name in names):
            return tuple(name for name in names if name is not None)
    raise ImportInvalid(f"{where}: there is no column {wanted!r}", hint=there)


def _same(one: str, other: str) -> bool:
    return one == other


def _alike(one: str, other: str) -> bool:
    return _normal(one) == _normal(other) != ""


def _join_date_and_time(
    columns: dict[str, tuple[str, ...]], by_name: Mapping[str, str], mapping: Mapping[str, str], taken: set[str]
) -> None:
    """A date and a time of day in two columns are one time."""
    for field in ("ts_event_ns", "ts_start_ns"):
        if field in columns and field not in mapping and _normal(columns[field][0]) == "time" and "date" in by_name:
            columns[field] = (by_name["date"], *columns[field])
            taken.add(by_name["date"])


def _refuse_repeats(header: Sequence[str], taken: set[str], where: str) -> None:
    for name in header:
        if name in taken and header.count(name) > 1:
            places = ", ".join(str(at + 1) for at, other in enumerate(header) if other == name)
            raise ImportInvalid(
                f"{where}: column {name!r} is there {header.count(name)} times (columns {places})",
                hint="rename one in the header; which one is meant cannot be guessed",
            )


def _require(columns: Mapping[str, object], kind: Kind, given: Sequence[str], where: str, there: str) -> None:
    time = "ts_event_ns" if kind == "ticks" else "ts_start_ns"
    needs = [time] if kind == "ticks" else [time, "open", "high", "low", "close"]
    for field in needs:
        if field not in columns:
            raise ImportInvalid(f"{where}: no column for {field}", hint=f"--map {field}=COLUMN; {there}")
    if kind == "ticks" and not any(field in columns for field in ("price", "bid", "ask")):
        raise ImportInvalid(f"{where}: no column for price, bid or ask", hint=f"--map price=COLUMN; {there}")
    for field, flag in (("symbol", "--symbol NAME"), ("interval", "--interval 1min")):
        if field in fields_of(kind) and field not in columns and field not in given:
            raise ImportInvalid(
                f"{where}: no column for {field}", hint=f"give {flag}, or --map {field}=COLUMN; {there}"
            )
