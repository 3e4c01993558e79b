"""The legacy system's ticks: most in streams with consumer groups, some in hashes, each feed in its own words."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta, timezone
from typing import NamedTuple

import msgspec

from onetape.demo.filler import Filler
from onetape.demo.market import Instrument
from onetape.record import BUY, SELL, Tick

_MS = 1_000_000
_IST = timezone(timedelta(hours=5, minutes=30))
_SIDES = {BUY: "BUY", SELL: "SELL"}
#: Of an instrument's ticks, how many in a hundred are hashes `realtime:{symbol}:{timestamp}`.
_IN_HASHES = 10
_REALTIME_EXPIRY_S = 86_400
_GROUPS = ("analytics", "persister")


class Feed(NamedTuple):
    """How one feed names what a tick holds; a column it does not name, it does not send."""

    time: str
    names: dict[str, str]
    time_as: str = "ns"  # "ms", "ns", or "text": local time without a zone
    as_json: bool = False  # all in one field `data`


_KITE = Feed(
    "exchange_timestamp",
    {
        "price": "last_price",
        "size": "last_traded_quantity",
        "bid": "best_bid_price",
        "ask": "best_ask_price",
        "bid_size": "best_bid_quantity",
        "ask_size": "best_ask_quantity",
        "volume": "zerodha_cumulative_volume",
        "trades": "trade_count",
    },
    "ms",
)
_COMPACT = Feed(
    "ts",
    {"price": "ltp", "size": "ltq", "bid": "bp", "ask": "sp", "bid_size": "bid_qty", "ask_size": "ask_qty"},
)
_CRYPTO = Feed("event_time", {n: n for n in ("price", "bid", "ask", "bid_size", "ask_size")} | {"size": "qty"})
_TEXT = Feed("timestamp", {**_KITE.names, "volume": "volume"}, "text")
_JSON = Feed("timestamp_ns", {n: n for n in ("price", "size", "bid", "ask", "bid_size", "ask_size")}, "ns", True)


def feed_of(symbol: str, real: bool) -> Feed:
    """Return the feed that an instrument's ticks come from."""
    venue = symbol.partition(":")[0]
    if venue in ("BINANCE", "BITMEX"):
        return _CRYPTO
    if venue in ("OANDA", "DUKASCOPY"):
        return _JSON
    if real:
        return _COMPACT
    return _TEXT if symbol.endswith(("CE", "PE", "DECFUT")) else _KITE


def fields(feed: Feed, tick: Tick) -> list[str | int | float]:
    """Return a tick as the feed writes it: name, value, name, value."""
    ns = tick.ts_event_ns
    flat: list[str | int | float] = [feed.time, ns]
    if feed.time_as == "ms":
        flat[1] = ns // _MS
    elif feed.time_as == "text":
        moment = datetime.fromtimestamp(ns // 1_000_000_000, _IST)
        flat[1] = f"{moment:%Y-%m-%dT%H:%M:%S}.{ns // _MS % 1000:03d}"
    for column, name in feed.names.items():
        value = getattr(tick, column)
        if value is not None:
            flat += (name, value)
    if tick.side:
        flat += ("side", _SIDES[tick.side])
    if tick.ts_recv_ns is not None:
        flat += ("received_at", tick.ts_recv_ns)
    if feed.as_json:
        return ["data", msgspec.json.encode(dict(zip(flat[::2], flat[1::2], strict=True))).decode()]
    return flat


def stream_db(place: int) -> int:
    """Return the database of an instrument's stream: two writers, two habits."""
    return 2 if place % 4 == 3 else 0


def fill_ticks(filler: Filler, instruments: list[Instrument], live_hashes: Collection[str]) -> None:
    """Write all ticks: early ones to hashes in database 2, the newest to `tick:{symbol}`, the others to streams.

    Every tick is in one place only, so that it can be counted. `live_hashes`: symbols whose `tick:{symbol}` belongs to
    a live writer, who will overwrite it: their newest tick is in the stream.
    """
    for place, instrument in enumerate(instruments):
        early, stream, last = _split(instrument.ticks)
        feed = feed_of(instrument.symbol, instrument.real)
        filler.select(2)
        _fill_hashes(filler, instrument.symbol, feed, early)
        if instrument.symbol in live_hashes:
            stream.append(last)
        else:
            filler.select(0)
            filler.add("HSET", f"tick:{instrument.symbol}", *fields(feed, last))
            filler.counts["ticks in hashes"] += 1
        if stream:
            filler.select(stream_db(place))
            ids = _fill_stream(filler, instrument.symbol, feed, stream)
            _add_groups(filler, f"ticks:{instrument.symbol}", ids, place)


def _split(ticks: list[Tick]) -> tuple[list[Tick], list[Tick], Tick]:
    """Split into those for realtime hashes, for the stream, and the newest.

    A hash is named by its millisecond, so two ticks of one millisecond cannot both be hashes.
    """
    early: list[Tick] = []
    stream: list[Tick] = []
    taken: set[int] = set()
    newest = max(range(len(ticks)), key=lambda i: (ticks[i].ts_event_ns, i))
    wanted = len(ticks) * _IN_HASHES // 100
    for at, tick in enumerate(ticks):
        if at == newest:
            continue
        ms = tick.ts_event_ns // _MS
        if len(early) < wanted and ms not in taken:
            taken.add(ms)
            early.append(tick)
        else:
            stream.append(tick)
    return early, stream, ticks[newest]


def _fill_hashes(filler: Filler, symbol: str, feed: Feed, ticks: list[Tick]) -> None:
    for at, tick in enumerate(ticks):
        flat = fields(feed, tick)
        named = flat[1] if feed.time_as == "text" else tick.ts_event_ns // _MS
        key = f"realtime:{symbol}:{named}"
        filler.add("HSET", key, *flat)
        if at % 3 == 0:
            filler.expire(key, _REALTIME_EXPIRY_S + at)
    filler.counts["ticks in hashes"] += len(ticks)


def _fill_stream(filler: Filler, symbol: str, feed: Feed, ticks: list[Tick]) -> list[str]:
    key, last, ids = f"ticks:{symbol}", (0, -1), []
    for tick in ticks:
        ms = tick.ts_event_ns // _MS
        # Ids only grow: a tick that arrived late gets the id of its neighbour, as it does in a live system
        last = (ms, 0) if ms > last[0] else (last[0], last[1] + 1)
        ids.append(f"{last[0]}-{last[1]}")
        filler.add("XADD", key, ids[-1], *fields(feed, tick))
    filler.counts["ticks in streams"] += len(ticks)
    return ids


def _add_groups(filler: Filler, key: str, ids: list[str], place: int) -> None:
    """Add groups that have read different parts, with consumers that have not acknowledged all."""
    for at, group in enumerate(_GROUPS[: 1 + place % 2]):
        start = len(ids) * (3 - at) // 4
        filler.add("XGROUP", "CREATE", key, group, ids[start])
        for consumer in ("worker-1", "worker-2"):
            filler.add("XREADGROUP", "GROUP", group, consumer, "COUNT", 5 + place % 20, "STREAMS", key, ">")
        if start + 1 < len(ids):
            filler.add("XACK", key, group, ids[start + 1])
