"""DBN records turned into ticks and bars, and what becomes of those that are neither.

Field by field as https://databento.com/docs/schemas describes each schema; prices are integers of 1e-9 of the currency.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import databento_dbn as dbn
import numpy as np
import numpy.typing as npt

from onetape.importing.format import BATCH_ROWS, Batch
from onetape.record import BUY, SELL, TS_MAX_NS, UNKNOWN, Bar
from onetape.store.block import ABSENT

Array = npt.NDArray[Any]

_DAY_NS = 86_400_000_000_000
_INTERVALS = {32: "1s", 33: "1min", 34: "1h", 35: "1d"}
_SCHEMAS = {"ohlcv-1s": "1s", "ohlcv-1m": "1min", "ohlcv-1h": "1h", "ohlcv-1d": "1d"}
_END_OF_DAY = 36
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


class Layout(NamedTuple):
    """Records that are ticks or bars: the library's class, which of them are trades, and whether they have a book."""

    record: Any
    trades: Literal["all", "some", "none"]
    quotes: bool

    def sized(self, size: int) -> np.dtype[Any]:
        """Return the library's layout of such a record, in records of `size` bytes (a time of sending may follow)."""
        plain = np.dtype(self.record._dtypes)
        fields = plain.fields or {}
        return np.dtype(
            {
                "names": list(fields),
                "formats": [field[0] for field in fields.values()],
                "offsets": [field[1] for field in fields.values()],
                "itemsize": size,
            }
        )

    def bytes_min(self) -> int:
        """Return how long such a record is at least."""
        return int(np.dtype(self.record._dtypes).itemsize)


#: The record's type, as its second byte says it.
LAYOUTS = {
    0: Layout(dbn.TradeMsg, "all", False),
    1: Layout(dbn.MBP1Msg, "some", True),
    10: Layout(dbn.MBP10Msg, "some", True),
    160: Layout(dbn.MBOMsg, "some", False),
    177: Layout(dbn.CMBP1Msg, "some", True),
    192: Layout(dbn.CBBOMsg, "none", True),
    193: Layout(dbn.CBBOMsg, "none", True),
    194: Layout(dbn.CMBP1Msg, "some", True),
    195: Layout(dbn.BBOMsg, "none", True),
    196: Layout(dbn.BBOMsg, "none", True),
    197: Layout(dbn.MBP1Msg, "some", True),
    **{rtype: Layout(dbn.OHLCVMsg, "none", False) for rtype in (17, 32, 33, 34, 35, 36)},
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

    def names(self, numbers: Array, ts_ns: Array) -> Array:
        """Return the symbols of instruments at times; what names one does so for whole days."""
        days = ts_ns // _DAY_NS
        pairs, which = np.unique(np.stack([numbers.astype(np.int64), days]), axis=1, return_inverse=True)
        names = [self.name(number, day * _DAY_NS) for number, day in pairs.T.tolist()]
        return np.array(names, dtype=object)[which.reshape(-1)]

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
        self._pieces: list[dict[str, Array]] = []
        self._held = 0
        self._bars: list[Bar] = []
        self._bar_places: list[int] = []
        self._skipped: dict[str, int] = {}

    def skip(self, reason: str, count: int = 1) -> None:
        """Count things that are not stored."""
        self._skipped[reason] = self._skipped.get(reason, 0) + count

    def others(self, records: Sequence[Any], *, counted: bool = True) -> None:
        """Take records that are neither ticks nor bars, decoded by the library."""
        for record in records:
            if isinstance(record, dbn.InstrumentDefMsg | dbn.SymbolMappingMsg):
                self._symbols.meet(record)
            if counted:
                self.skip(_SKIPPED.get(type(record), f"records of the type {type(record).__name__}"))

    def take(self, rtype: int, run: bytes, size: int, numbers: Array) -> None:
        """Take records of one type and length, and where each stands in the file; full() gives what they fill."""
        layout = LAYOUTS[rtype]
        rows = np.frombuffer(run, dtype=layout.sized(size))
        if layout.record is dbn.OHLCVMsg:
            self._take_bars(rtype, rows, numbers)
            return
        piece = self._piece(layout, rows, numbers)
        self._pieces.append(piece)
        self._held += len(piece["number"])

    def full(self) -> list[Batch]:
        """Return the batches that are full, once all records up to some place in the file were taken."""
        batches = []
        while self._held >= BATCH_ROWS:
            batches.append(self._tick_batch(BATCH_ROWS))
        while len(self._bars) >= BATCH_ROWS:
            batches.append(self._bar_batch(BATCH_ROWS))
        return batches

    def rest(self) -> list[Batch]:
        """Return the batches that are not full."""
        batches = [self._tick_batch(self._held)] if self._held else []
        if self._bars or self._skipped:
            batches.append(self._bar_batch(len(self._bars)))
        return batches

    def _piece(self, layout: Layout, rows: Array, numbers: Array) -> dict[str, Array]:
        count = len(rows)
        undefined = np.full(count, dbn.UNDEF_PRICE, dtype=np.int64)
        trade = np.full(count, layout.trades == "all")
        if layout.trades == "some":
            trade = rows["action"] == b"T"
        bid, ask = (rows["bid_px_00"], rows["ask_px_00"]) if layout.quotes else (undefined, undefined)
        kept = trade | (bid != dbn.UNDEF_PRICE) | (ask != dbn.UNDEF_PRICE)
        if not kept.all():
            self.skip(_NEITHER if layout.quotes else _ORDERS, count - int(kept.sum()))
            rows, trade, bid, ask, numbers = rows[kept], trade[kept], bid[kept], ask[kept], numbers[kept]
        received = _times(rows["ts_recv"], ABSENT)
        happened = _times(rows["ts_event"], -1)
        none = np.full(len(rows), np.nan)
        return {
            "number": numbers,
            "symbol": self._symbols.names(rows["instrument_id"], np.where(received == ABSENT, happened, received)),
            # Of a snapshot, the quote is that of the end of its interval, which is in ts_recv. ts_event and price are
            # those of the last trade, which the next one may repeat: counted as a trade it would be counted again.
            "ts_event_ns": _times(rows["ts_recv"], -1) if layout.trades == "none" else happened,
            "ts_recv_ns": received,
            "price": np.where(trade, _prices(rows["price"]), np.nan),
            "size": np.where(trade, _sizes(rows["size"]), np.nan),
            "bid": _prices(bid),
            "bid_size": np.where(bid == dbn.UNDEF_PRICE, np.nan, _sizes(rows["bid_sz_00"])) if layout.quotes else none,
            "ask": _prices(ask),
            "ask_size": np.where(ask == dbn.UNDEF_PRICE, np.nan, _sizes(rows["ask_sz_00"])) if layout.quotes else none,
            "side": np.where(trade, (rows["side"] == b"B") * BUY + (rows["side"] == b"A") * SELL, UNKNOWN),
            "flags": rows["flags"].astype(np.int64),
            "source": rows["publisher_id"].astype(np.int64),
        }

    def _take_bars(self, rtype: int, rows: Array, numbers: Array) -> None:
        interval = _INTERVALS.get(rtype) or _SCHEMAS.get(self._schema or "")
        if interval is None or rtype == _END_OF_DAY:
            self.skip("bars of a session (they have no fixed length)", len(rows))
            return
        symbols = self._symbols.names(rows["instrument_id"], _times(rows["ts_event"], -1)).tolist()
        prices = [(rows[name] / 1e9).tolist() for name in ("open", "high", "low", "close")]
        starts = _times(rows["ts_event"], -1).tolist()
        for at, (volume, publisher) in enumerate(
            zip(rows["volume"].tolist(), rows["publisher_id"].tolist(), strict=True)
        ):
            open_, high, low, close = (column[at] for column in prices)
            source = f"{self._source}:{publisher}"
            self._bars.append(
                Bar(symbols[at], interval, starts[at], open_, high, low, close, float(volume), source=source)
            )
            self._bar_places.append(int(numbers[at]))

    def _tick_batch(self, count: int) -> Batch:
        whole = {name: np.concatenate([piece[name] for piece in self._pieces]) for name in self._pieces[0]}
        if (np.diff(whole["number"]) < 0).any():  # of several types: back into the order of the file
            order = np.argsort(whole["number"])
            whole = {name: column[order] for name, column in whole.items()}
        self._pieces = [{name: column[count:] for name, column in whole.items()}] if count < self._held else []
        self._held -= count
        data: dict[str, Any] = {name: column[:count] for name, column in whole.items()}
        numbers, publishers = data.pop("number").tolist(), data["source"]
        known, which = np.unique(publishers, return_inverse=True)
        data["source"] = np.array([f"{self._source}:{one}" for one in known.tolist()], dtype=object)[which].tolist()
        data["symbol"] = data["symbol"].tolist()
        skipped, self._skipped = self._skipped, {}
        return Batch(data=data, rows=count, place=_Places(numbers), skipped=skipped)

    def _bar_batch(self, count: int) -> Batch:
        if self._bar_places != sorted(self._bar_places):
            order = sorted(range(len(self._bars)), key=self._bar_places.__getitem__)
            self._bars = [self._bars[at] for at in order]
            self._bar_places = [self._bar_places[at] for at in order]
        bars, self._bars = self._bars[:count], self._bars[count:]
        places, self._bar_places = self._bar_places[:count], self._bar_places[count:]
        skipped, self._skipped = self._skipped, {}
        return Batch(data=bars, rows=len(bars), place=_Places(places), skipped=skipped)


class _Places:
    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = numbers

    def __call__(self, index: int) -> str:
        return f"record {self._numbers[index]}"


def _prices(integers: Array) -> Array:
    """Return what the library's own pretty_price gives: the integer as a float, divided once; NaN where undefined."""
    return np.where(integers == dbn.UNDEF_PRICE, np.nan, integers / 1e9)


def _sizes(values: Array) -> Array:
    return np.where(values == dbn.UNDEF_ORDER_SIZE, np.nan, values.astype(np.float64))


def _times(values: Array, absent: int) -> Array:
    """Return times; those that are undefined or beyond 64 bits with a sign as `absent`."""
    return np.where(values > TS_MAX_NS, absent, values.astype(np.int64))


def note_unnamed(symbols: Symbols, mapping: Mapping[str, Any] | None) -> list[str]:
    """Return what a person should know of instruments without a symbol."""
    if not symbols.unnamed:
        return []
    what = "the file has no mapping" if not mapping else "the file's mapping does not cover them"
    some = ", ".join(str(one) for one in sorted(symbols.unnamed)[:5])
    return [f"symbols are instrument ids ({some}): {what}"]
