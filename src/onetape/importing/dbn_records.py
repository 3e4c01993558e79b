"""DBN records turned into ticks and bars, and what becomes of those that are neither.

Field by field as https://databento.com/docs/schemas describes each schema; prices are integers of 1e-9 of the currency.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import databento_dbn as dbn
import numpy as np

from onetape.importing.formats import BATCH_ROWS, Batch
from onetape.record import BUY, SELL, UNKNOWN, Bar

_DAY_NS = 86_400_000_000_000
_SIDES = {"A": SELL, "B": BUY}
_INTERVALS = {"ohlcv-1s": "1s", "ohlcv-1m": "1min", "ohlcv-1h": "1h", "ohlcv-1d": "1d"}
_NEITHER = "updates that leave neither a bid nor an ask"
_ORDERS = "messages about single orders (the trades among them are stored)"
_SKIPPED = {
    dbn.StatMsg: "statistics",
    dbn.StatusMsg: "changes of trading status",
    dbn.ImbalanceMsg: "auction imbalances",
    dbn.InstrumentDefMsg: "instrument definitions (they name the symbols)",
    dbn.SymbolMappingMsg: "symbol mappings",
    dbn.SystemMsg: "system messages",
    dbn.ErrorMsg: "error messages",
}


class Symbols:
    """Instrument ids to symbols: by the metadata, else by mappings and definitions met on the way, else the id itself.

    `unnamed` are ids that nothing named.
    """

    def __init__(self, metadata: Any, given: str | None) -> None:
        self.given = given
        self.unnamed: set[int] = set()
        self.seen: set[int] = set()
        self._met: dict[int, str] = {}
        self._spans: dict[int, list[tuple[int, int, str]]] = {}
        self._last: dict[int, tuple[int, int, str]] = {}
        if metadata is not None:
            backwards = str(metadata.stype_in) == "instrument_id"
            for symbol, intervals in metadata.mappings.items():
                for interval in intervals:
                    names = (symbol, interval["symbol"])
                    number, name = names if backwards else names[::-1]
                    if number.isdecimal() and name:
                        span = (_day_ns(interval["start_date"]), _day_ns(interval["end_date"]), name)
                        self._spans.setdefault(int(number), []).append(span)

    def meet(self, record: Any) -> None:
        """Take the name that a mapping or a definition gives to an instrument from here on."""
        name = record.raw_symbol if isinstance(record, dbn.InstrumentDefMsg) else record.stype_out_symbol
        if name:
            self._met[record.instrument_id] = name

    def name(self, number: int, ts_ns: int) -> str:
        """Return the symbol of an instrument at a time."""
        if self.given is not None:
            self.seen.add(number)
            return self.given
        last = self._last.get(number)
        if last is not None and last[0] <= ts_ns < last[1]:
            return last[2]
        for span in self._spans.get(number, ()):
            if span[0] <= ts_ns < span[1]:
                self._last[number] = span
                return span[2]
        if number in self._met:
            return self._met[number]
        self.unnamed.add(number)
        return str(number)


def _day_ns(day: datetime.date) -> int:
    return (day - datetime.date(1970, 1, 1)).days * _DAY_NS


class Rows:
    """Ticks and bars on their way into batches of BATCH_ROWS, in the order of their records."""

    def __init__(self, symbols: Symbols, source: str, schema: str | None) -> None:
        self._symbols, self._source, self._schema = symbols, source, schema
        self._ticks: list[tuple[Any, ...]] = []
        self._bars: list[Bar] = []
        self._bar_places: list[int] = []
        self._skipped: dict[str, int] = {}
        self._takes: dict[type, Callable[[Any, int], None]] = {
            dbn.TradeMsg: self._trade,
            dbn.MBOMsg: self._order,
            dbn.MBP1Msg: self._book,
            dbn.MBP10Msg: self._book,
            dbn.CMBP1Msg: self._book,
            dbn.BBOMsg: self._interval,
            dbn.CBBOMsg: self._interval,
            dbn.OHLCVMsg: self._bar,
        }

    def take(self, record: Any, number: int) -> Batch | None:
        """Take a record, the `number`th of the file; return a batch if one is full."""
        take = self._takes.get(type(record))
        if take is not None:
            take(record, number)
        else:
            if isinstance(record, dbn.InstrumentDefMsg | dbn.SymbolMappingMsg):
                self._symbols.meet(record)
            self.skip(_SKIPPED.get(type(record), f"records of the type {type(record).__name__}"))
        if len(self._ticks) == BATCH_ROWS:
            return self._tick_batch()
        if len(self._bars) == BATCH_ROWS:
            return self._bar_batch()
        return None

    def rest(self) -> list[Batch]:
        """Return the batches that are not full."""
        batches = [self._tick_batch()] if self._ticks else []
        if self._bars or self._skipped:
            batches.append(self._bar_batch())
        return batches

    def skip(self, reason: str) -> None:
        """Count something that is not stored."""
        self._skipped[reason] = self._skipped.get(reason, 0) + 1

    def _add(self, record: Any, number: int, ts_ns: int, trade: bool, level: Any) -> None:
        bid = level.bid_px if level is not None else dbn.UNDEF_PRICE
        ask = level.ask_px if level is not None else dbn.UNDEF_PRICE
        if not trade and bid == ask == dbn.UNDEF_PRICE:
            self.skip(_NEITHER)
            return
        self._ticks.append(
            (
                number,
                self._symbols.name(record.instrument_id, record.ts_index),
                ts_ns,
                record.ts_recv,
                record.price if trade else dbn.UNDEF_PRICE,
                record.size if trade else None,
                bid,
                level.bid_sz if bid != dbn.UNDEF_PRICE else None,
                ask,
                level.ask_sz if ask != dbn.UNDEF_PRICE else None,
                _SIDES.get(str(record.side), UNKNOWN) if trade else UNKNOWN,
                record.flags,
                record.publisher_id,
            )
        )

    def _trade(self, record: Any, number: int) -> None:
        self._add(record, number, record.ts_event, True, None)

    def _order(self, record: Any, number: int) -> None:
        if str(record.action) == "T":
            self._add(record, number, record.ts_event, True, None)
        else:
            self.skip(_ORDERS)

    def _book(self, record: Any, number: int) -> None:
        self._add(record, number, record.ts_event, str(record.action) == "T", record.levels[0])

    def _interval(self, record: Any, number: int) -> None:
        # The quote is that of the end of an interval, which is in ts_recv. ts_event and the price are those of the last
        # trade, which the next snapshot may repeat: counted as a trade it would be counted again and again.
        self._add(record, number, record.ts_recv, False, record.levels[0])

    def _bar(self, record: Any, number: int) -> None:
        kind = str(record.rtype)
        interval = _INTERVALS.get(kind if kind in _INTERVALS else self._schema or "")
        if interval is None:
            self.skip("bars of a session (they have no fixed length)")
            return
        open_, high, low, close = (value / 1e9 for value in (record.open, record.high, record.low, record.close))
        symbol = self._symbols.name(record.instrument_id, record.ts_event)
        source = f"{self._source}:{record.publisher_id}"
        self._bars.append(
            Bar(symbol, interval, record.ts_event, open_, high, low, close, float(record.volume), source=source)
        )
        self._bar_places.append(number)

    def _tick_batch(self) -> Batch:
        numbers, symbols, ts, received, price, size, bid, bid_size, ask, ask_size, side, flags, publishers = zip(
            *self._ticks, strict=True
        )
        self._ticks = []
        skipped, self._skipped = self._skipped, {}
        sources = {one: f"{self._source}:{one}" for one in set(publishers)}
        return Batch(
            data={
                "symbol": symbols,
                "ts_event_ns": _times(ts, -1),
                "ts_recv_ns": _times(received, None),
                "price": _prices(price),
                "size": _sizes(size),
                "bid": _prices(bid),
                "bid_size": _sizes(bid_size),
                "ask": _prices(ask),
                "ask_size": _sizes(ask_size),
                "side": np.array(side),
                "flags": np.array(flags),
                "source": [sources[one] for one in publishers],
            },
            rows=len(numbers),
            place=_Places(numbers),
            skipped=skipped,
        )

    def _bar_batch(self) -> Batch:
        batch = Batch(data=self._bars, rows=len(self._bars), place=_Places(self._bar_places), skipped=self._skipped)
        self._bars, self._bar_places, self._skipped = [], [], {}
        return batch


class _Places:
    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = numbers

    def __call__(self, index: int) -> str:
        return f"record {self._numbers[index]}"


def _prices(values: Sequence[int]) -> Any:
    """Return what the library's own pretty_price gives: the integer as a float, divided once; NaN where undefined."""
    integers = np.array(values, dtype=np.int64)
    return np.where(integers == dbn.UNDEF_PRICE, np.nan, integers / 1e9)


def _sizes(values: Sequence[int | None]) -> Any:
    undefined = dbn.UNDEF_ORDER_SIZE
    return np.array([np.nan if one is None or one == undefined else one for one in values], dtype=np.float64)


def _times(values: Sequence[int], absent: int | None) -> list[int | None]:
    """Return times; those that are undefined or beyond 64 bits with a sign as `absent`."""
    return [absent if one > 2**63 - 2 else one for one in values]


def note_unnamed(symbols: Symbols, mapping: Mapping[str, Any] | None) -> list[str]:
    """Return what a person should know of instruments without a symbol."""
    if not symbols.unnamed:
        return []
    what = "the file has no mapping" if not mapping else "the file's mapping does not cover them"
    some = ", ".join(str(one) for one in sorted(symbols.unnamed)[:5])
    return [f"symbols are instrument ids ({some}): {what}"]
