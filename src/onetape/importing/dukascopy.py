"""Dukascopy: answers of its chart API, whose numbers are differences, and the decoded rows that tools make of them.

An answer holds a first time and first prices, a multiplier, and for each row how far it is from the row before: times
in ms (ticks) or in bars (`shift`), prices in multiples of the multiplier. Volumes stay in the unit of the answer. A
minute without a quote has no row; tools fill it with the price before, this does not.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from onetape.errors import ImportInvalid
from onetape.importing import answers
from onetape.importing.answers import Answer, Told
from onetape.importing.format import Format, Options, Part
from onetape.record import Bar, Tick, interval_ns, interval_text

_CHART = re.compile(r"(?:candles-\w+|ticks)-(?P<base>[A-Z0-9.]+)-(?P<quote>[A-Z0-9.]+)-(?:(?P<of>BID|ASK)-)?\d{4}-\d")
_DECODED = re.compile(r"(?P<symbol>[a-z0-9]+)-(?:tick|[a-z]+\d+)-(?:(?P<of>bid|ask)-)?\d{4}-\d")
_SPANS = {"s1": "1s", "m1": "1min", "m5": "5min", "m15": "15min", "m30": "30min", "h1": "1h", "h4": "4h", "d1": "1d"}
_SPAN = re.compile(rf"(?:^|[-_])({'|'.join(_SPANS)})(?=[-_.]|$)")
_IS = re.compile(
    rb'\{"timestamp":\d{12,13},"multiplier":'
    rb'|\[\{"timestamp":\d{12,13},"(?:open|askPrice)":'
    rb"|\[\[\d{12,13}(?:,-?[\d.]+){4,5}\]"
)


class _Named:
    """What the file's name and the options say of its rows."""

    def __init__(self, path: Path, options: Options) -> None:
        chart, decoded = _CHART.match(path.name), _DECODED.match(path.name)
        found = chart["base"] + chart["quote"] if chart else decoded["symbol"].upper() if decoded else None
        of = chart["of"] if chart else decoded["of"] if decoded else None
        self.symbol = options.symbol or found
        self.source = options.source or "dukascopy" + (f".{of.lower()}" if of else "")
        self.interval = options.interval
        self.spelt = _SPAN.search(path.name)

    def bars_of(self, starts: Sequence[int]) -> str:
        """Return the interval of decoded bars."""
        if self.interval is None and self.spelt is None:
            raise ImportInvalid("these bars do not say how long they are", hint="give --interval 1min")
        return self.interval or _SPANS[self.spelt[1]] if self.spelt else str(self.interval)


def _parts(path: Path, options: Options) -> Sequence[Part]:
    named = _Named(path, options)
    if named.symbol is None:
        raise ImportInvalid(f"{path}: neither it nor its name says of which symbol it is", hint="give --symbol BTCUSD")
    if options.interval is not None:
        try:
            interval_ns(options.interval)
        except ValueError as error:
            raise ImportInvalid(f"--interval: {error}", hint="such as 1min, 5min, 1h, 1d") from error
    how = {
        "symbol": named.symbol,
        "source": named.source,
        "interval": named.interval or (named.spelt and _SPANS[named.spelt[1]]),
    }
    return [Answer(path, how, lambda body: _read(body, named, str(path)))]


def _read(body: Any, named: _Named, shown: str) -> Told:
    if isinstance(body, dict):
        return _candles(body, named) if "opens" in body else _ticks(body, named)
    if not isinstance(body, list):
        raise TypeError("neither an object nor a list")
    return _decoded(body, named, shown)


def _place(index: int) -> str:
    return f"row {index + 1}"


def _ticks(body: dict[str, Any], named: _Named) -> Told:
    times = itertools.accumulate(body["times"], initial=_whole(body["timestamp"]))
    asks, bids = (_prices(body, first, body[rows]) for first, rows in (("ask", "asks"), ("bid", "bids")))
    sizes = (body.get(name) or [None] * len(body["times"]) for name in ("askVolumes", "bidVolumes"))
    rows = zip(itertools.islice(times, 1, None), asks, bids, *sizes, strict=True)
    return Told([_quote(named, *row) for row in rows], _place)


def _candles(body: dict[str, Any], named: _Named) -> Told:
    shift = _whole(body["shift"])
    times = itertools.accumulate((_whole(step) * shift for step in body["times"]), initial=_whole(body["timestamp"]))
    prices = [_prices(body, name, body[f"{name}s"]) for name in ("open", "high", "low", "close")]
    volumes = body.get("volumes") or [None] * len(body["times"])
    interval = interval_text(shift * 1_000_000)
    rows = zip(itertools.islice(times, 1, None), *prices, volumes, strict=True)
    return Told([_bar(named, interval, *row) for row in rows], _place)


def _prices(body: dict[str, Any], first: str, steps: Iterable[int]) -> list[float]:
    """Return the sums of steps as prices: each the float nearest to its decimal digits."""
    multiplier = Decimal(str(body["multiplier"]))
    base = Decimal(str(body[first])) / multiplier
    if base != int(base):
        raise ValueError(f"{first} = {body[first]} is no multiple of {multiplier}")
    return [
        float(count * multiplier)
        for count in itertools.islice(itertools.accumulate(map(_whole, steps), initial=int(base)), 1, None)
    ]


def _whole(value: Any) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is no whole number")
    return value


def _quote(named: _Named, ms: int, ask: float, bid: float, ask_size: Any = None, bid_size: Any = None) -> Tick:
    quote = {"ask": ask, "bid": bid, "ask_size": ask_size, "bid_size": bid_size}
    return Tick(str(named.symbol), _whole(ms) * 1_000_000, source=named.source, **quote)


def _bar(named: _Named, interval: str, ms: int, *values: Any) -> Bar:
    open_, high, low, close, volume = (*values, None)[:5]
    start_ns = _whole(ms) * 1_000_000
    return Bar(str(named.symbol), interval, start_ns, open_, high, low, close, volume, source=named.source)


def _decoded(body: list[Any], named: _Named, shown: str) -> Told:
    if not body:
        return Told([], _place)
    if isinstance(body[0], dict):
        bars = "open" in body[0]
        keys = (
            ("open", "high", "low", "close", "volume") if bars else ("askPrice", "bidPrice", "askVolume", "bidVolume")
        )
        rows = [(row["timestamp"], *(row.get(key) for key in keys)) for row in body]
    else:
        bars, rows = _are_bars(body), body
    if not bars:
        return Told([_quote(named, *row) for row in rows], _place)
    try:
        interval = named.bars_of([row[0] for row in rows])
    except ImportInvalid as error:
        raise ImportInvalid(f"{shown}: {error.message}", hint=error.hint) from error
    return Told([_bar(named, interval, *row) for row in rows], _place)


def _are_bars(rows: list[Any]) -> bool:
    """Return whether rows without names are bars (a time, four prices, mostly a volume): their high is the highest.

    Rows of five are quotes (time, ask, bid, and the two sizes) unless they cannot be.
    """
    if len(rows[0]) == 6:
        return True
    return all(len(row) == 5 and row[2] >= max(row[1], row[4]) and row[3] <= min(row[1], row[4]) for row in rows)


_DETECT: Callable[[Path], bool] = lambda path: path.is_file() and bool(_IS.match(answers.head(path)))  # noqa: E731

FORMAT = Format(
    name="dukascopy",
    says="Dukascopy's chart answers (candles, ticks; numbers as differences), and decoded JSON rows of them",
    detects=_DETECT,
    parts=_parts,
    uses=frozenset({"symbol", "source", "interval"}),
)
