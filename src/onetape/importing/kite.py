"""Kite: answers of Zerodha's Kite Connect API: quote, ohlc and ltp become ticks, historical candles become bars.

A quote has the session's fields, open interest and the best of its depth; its times are Indian, without an offset. An
ohlc or ltp answer says no time: `at` does. The `close` of an ohlc is the day before's, no field of a tick. Symbols are
the answer's own (NSE:INFY; a token where it was asked for by token, which a tape takes as an alias).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from onetape.clock import to_ns
from onetape.errors import ConfigInvalid, ImportInvalid
from onetape.importing import answers, times
from onetape.importing.answers import Answer, Told
from onetape.importing.format import Format, Options, Part
from onetape.record import Bar, Tick, interval_ns

#: Fields of a tick → names in a quote. A size of 0 where there is no order is said as it is.
_FIELDS = {
    "price": "last_price",
    "size": "last_quantity",
    "volume": "volume",
    "vwap": "average_price",
    "open_interest": "oi",
}
_NOT_KEPT = (
    "buy_quantity",
    "sell_quantity",
    "net_change",
    "oi_day_high",
    "oi_day_low",
    "lower_circuit_limit",
    "upper_circuit_limit",
)


def _parts(path: Path, options: Options) -> Sequence[Part]:
    zone = options.timezone or "Asia/Kolkata"
    times.check("auto", zone)
    try:
        at_ns = None if options.at is None else to_ns(options.at, "--at")
        if options.interval is not None:
            interval_ns(options.interval)
    except (ConfigInvalid, ValueError) as error:
        raise ImportInvalid(
            f"{path}: {error}", hint="such as --at 2018-01-12T10:40:29+05:30, --interval 1min"
        ) from error
    source = options.source or "kite"
    how = {"symbol": options.symbol, "source": source, "timezone": zone, "at": at_ns, "interval": options.interval}

    def read(body: Any) -> Told:
        data = body["data"]
        if isinstance(data.get("candles"), list):
            return _candles(data["candles"], options, source, str(path))
        return _quotes(data, at_ns, ZoneInfo(zone), source, str(path))

    return [Answer(path, how, read)]


def _candles(rows: list[Any], options: Options, source: str, shown: str) -> Told:
    for name, flag in (("symbol", "--symbol NSE:INFY"), ("interval", "--interval 1min")):
        if getattr(options, name) is None:
            raise ImportInvalid(f"{shown}: a historical answer does not say its {name}", hint=f"give {flag}")
    bars = []
    for time, open_, high, low, close, volume, *_ in rows:
        start_ns = to_ns(datetime.strptime(time, "%Y-%m-%dT%H:%M:%S%z"))
        prices = float(open_), float(high), float(low), float(close)
        bars.append(Bar(str(options.symbol), str(options.interval), start_ns, *prices, float(volume), source=source))
    interest = sum(len(row) > 6 and bool(row[6]) for row in rows)
    skipped = {"open interest of bars": interest} if interest else {}
    return Told(bars, lambda index: f"candle {index + 1}", skipped)


def _quotes(data: dict[str, Any], at_ns: int | None, zone: ZoneInfo, source: str, shown: str) -> Told:
    ticks, left = [], Counter[str]()
    for symbol, quote in data.items():
        if quote.get("timestamp"):
            ts_ns = _local(quote["timestamp"], zone)
        elif at_ns is not None:
            ts_ns = at_ns
        else:
            raise ImportInvalid(
                f"{shown}: {symbol} says no time", hint="say when it was so: --at 2018-01-12T10:40:29+05:30"
            )
        ticks.append(_tick(symbol, ts_ns, quote, source))
        left.update(f"values of {name}" for name in _NOT_KEPT if quote.get(name))
        left.update(["values of ohlc.close (of the day before)"] if (quote.get("ohlc") or {}).get("close") else [])
        deeper = sum(max(len(levels) - 1, 0) for levels in (quote.get("depth") or {}).values())
        left.update({"levels of depth behind the best": deeper} if deeper else {})
    names = list(data)
    tokens = [f"{name}={quote['instrument_token']}" for name, quote in data.items() if "instrument_token" in quote]
    shown_tokens = ", ".join(tokens[:5]) + (f" and {len(tokens) - 5} more" if tokens[5:] else "")
    notes = [f"instrument tokens: {shown_tokens}"] if tokens else []
    return Told(ticks, lambda index: names[index], dict(left), notes)


def _tick(symbol: str, ts_ns: int, quote: dict[str, Any], source: str) -> Tick:
    fields = {field: _float(quote.get(name)) for field, name in _FIELDS.items()}
    fields |= {name: _float((quote.get("ohlc") or {}).get(name)) for name in ("open", "high", "low")}
    for side, name in (("bid", "buy"), ("ask", "sell")):
        best = next(iter((quote.get("depth") or {}).get(name) or []), None)
        if best is not None and best["price"]:  # a price of 0 says that there is no order
            fields[side], fields[f"{side}_size"] = float(best["price"]), float(best["quantity"])
    return Tick(symbol, ts_ns, source=source, **fields)  # type: ignore[arg-type]


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def _local(text: str, zone: ZoneInfo) -> int:
    moment = datetime.fromisoformat(text)
    return to_ns(moment if moment.tzinfo else moment.replace(tzinfo=zone))


def _detects(path: Path) -> bool:
    head = answers.head(path) if path.is_file() else b""
    kinds = (b'"instrument_token":', b'"last_price":', b'"candles":[[')
    return head.startswith(b'{"status":"success","data":{') and any(kind in head for kind in kinds)


FORMAT = Format(
    name="kite",
    says="Kite Connect's answers: quote, ohlc, ltp, and historical candles (JSON)",
    detects=_detects,
    parts=_parts,
    uses=frozenset({"symbol", "source", "timezone", "interval", "at"}),
)
