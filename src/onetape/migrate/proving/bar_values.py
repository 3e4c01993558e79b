"""Bar values: the bars of one OHLC key, read without landing them, and what bars of a day add up to."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import msgspec

from onetape.errors import EndpointError
from onetape.migrate.fields.bar_fields import BarDecoder
from onetape.migrate.proving import exact
from onetape.migrate.proving.conservation import BarSums
from onetape.migrate.wire.endpoint import Endpoint
from onetape.record import Bar

_PAGE = 1000
_DAY_NS = 86_400 * 10**9

BarKey = tuple[str, str, int]
"""Symbol, interval, and the day of the start: days since 1970-01-01, UTC."""


class BarPart(msgspec.Struct):
    """The bars of one OHLC key; `others` of its values are no bars."""

    key: bytes
    bars: list[Bar]
    others: int


class BarReader:
    """Reads OHLC keys of one legacy system, whose naive times are in `zone`."""

    def __init__(self, zone: str) -> None:
        self._decoder = BarDecoder(zone)

    def read(self, endpoint: Endpoint, key: bytes, source: bytes, rest: str) -> BarPart:
        """Return the bars of a key of the selected database; of two with one start the later one counts.

        `source`: its old name, `rest`: what of it the rule calls the symbol. Raises EndpointError, code WRONGTYPE for a
        type that holds no bars.
        """
        symbol, interval, start_ns = self._decoder.key(rest)
        name = f"redis:{source.partition(b':')[0].decode('utf-8', 'replace')}"
        found: dict[tuple[str, str, int], Bar] = {}
        others = 0
        for value in _values(endpoint, key):
            for bar in self._decoder.bars(value, symbol, interval, start_ns, name):
                if isinstance(bar, Bar):
                    found[bar.symbol, bar.interval, bar.ts_start_ns] = bar
                else:
                    others += 1
        return BarPart(key, list(found.values()), others)


def _values(endpoint: Endpoint, key: bytes) -> Iterator[Any]:
    kind = endpoint.call("TYPE", key)
    if kind == b"string":
        yield endpoint.call("GET", key)
    elif kind == b"hash":
        flat = endpoint.call("HGETALL", key)
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        whole = {name.lower() for name in fields} & {b"open", b"o", b"ohlc"}
        objects = [value for value in fields.values() if value[:1] in (b"{", b"[")]
        if objects and not whole:
            yield from objects  # by interval or by time
        else:
            yield {name.decode("utf-8", "replace"): value for name, value in fields.items()}
    elif kind in (b"list", b"zset"):
        at = 0
        while page := endpoint.call("LRANGE" if kind == b"list" else "ZRANGE", key, at, at + _PAGE - 1):
            yield from page
            at += len(page)
    elif kind != b"none":
        raise EndpointError(f"a {kind.decode()} holds no bars", code="WRONGTYPE")


class BarTotals:
    """Bars of one side, by symbol, interval and day: 8 bytes a bar are kept, to tell which ones differ."""

    def __init__(self) -> None:
        self.hashes: dict[BarKey, Counter[int]] = {}
        self._volumes: Counter[BarKey] = Counter()
        #: Symbol, interval and source of what was added.
        self.series: dict[tuple[str, str, str], tuple[int, int]] = {}
        self.bars = 0

    def add(self, symbol: str, bar: Bar) -> None:
        """Add a bar under a symbol."""
        key = (symbol, bar.interval, bar.ts_start_ns // _DAY_NS)
        self.hashes.setdefault(key, Counter())[_hash(bar)] += 1
        self._volumes[key] += 0 if bar.volume is None else exact.units(bar.volume)
        self.bars += 1
        series = (symbol, bar.interval, bar.source or "")
        first, last = self.series.get(series, (bar.ts_start_ns, bar.ts_start_ns))
        self.series[series] = (min(first, bar.ts_start_ns), max(last, bar.ts_start_ns))

    def sums(self, key: BarKey) -> BarSums:
        """Return what the bars of a day add up to."""
        hashes = self.hashes.get(key)
        if not hashes:
            return BarSums()
        check = sum(one * times for one, times in hashes.items()) % 2**64
        return BarSums(hashes.total(), exact.number(self._volumes[key]), f"{check:016x}")

    @property
    def volume(self) -> int:
        """Return the exact sum of all volumes, in units."""
        return sum(self._volumes.values())


def _hash(bar: Bar) -> int:
    numbers = (bar.open, bar.high, bar.low, bar.close, bar.volume, bar.vwap, bar.bid_volume, bar.ask_volume)
    told = struct.pack("<9d", *(float("nan") if one is None else one for one in numbers), bar.trades or -1)
    name = f"{bar.source}\0{bar.ts_start_ns}\0".encode()
    return int.from_bytes(blake2b(name + told, digest_size=8).digest(), "little")


__all__ = ["BarKey", "BarPart", "BarReader", "BarTotals"]
