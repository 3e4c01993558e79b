"""The families of the legacy system beside its ticks: volume, indicators, system, OHLC and baselines.

Values are as different as years of scripts make them: hashes, JSON, plain numbers, pickles, compressed blocks, empty
strings; names that are not text; lists, sets and sorted sets. They are simulated from a seed, except the bars, which
are made of each instrument's own ticks.
"""

from __future__ import annotations

import pickle
import random
import zlib
from datetime import UTC, datetime

import msgspec

from onetape.demo.filler import Filler
from onetape.demo.market import Instrument
from onetape.demo.simulator import SESSION_DATE
from onetape.record import Tick

#: A session's expiry, as the old system set it: the rest of the day and some.
_SESSION_S, _WEEK_S, _INDICATOR_S, _HEALTH_S = 57_600, 604_800, 3_600, 1_200
_BIG_KEY_MEMBERS = 100_000
BIG_KEY = f"session:{SESSION_DATE}:seen_order_ids"
BINARY_KEYS = (b"volume_state:\xff\xfe\x00token", b"volume:baseline:\x80\x04K")
EMPTY_KEYS = (f"session:{SESSION_DATE}:notes", "system:maintenance_message")

_NUMBERS = ("rsi", "rsi_14", "atr", "adx", "ema_9", "ema_20", "ema_50", "sma_20", "sma_200", "vwap", "obv", "mfi")
_OBJECTS = ("macd", "bollinger_bands", "stochastic", "supertrend", "ichimoku")
_GREEKS = ("delta", "gamma", "theta", "vega", "rho", "iv")
_VOLUME = ("volume_ratio", "volume_ratio_ma_5", "volume_spike", "volume_zscore")
_OTHERS = ("pattern_score", "breakout", "regime", "order_flow_imbalance")
_PERIODS = ("1d", "5d", "20d")


def fill(filler: Filler, instruments: list[Instrument], seed: int) -> None:
    """Write every family but the ticks."""
    rnd = random.Random(seed)
    filler.select(2)
    _fill_volume(filler, instruments, rnd)
    for instrument in instruments:
        _fill_bars(filler, instrument)
    filler.select(5)
    _fill_indicators(filler, instruments, rnd)
    filler.select(0)
    _fill_system(filler, instruments, rnd)


def _json(value: object) -> bytes:
    return msgspec.json.encode(value)


def _fill_volume(filler: Filler, instruments: list[Instrument], rnd: random.Random) -> None:
    for token in range(256_265, 256_265 + 40 * len(instruments)):
        key = f"volume_state:{token}"
        last = rnd.randrange(10**7)
        filler.add("HSET", key, "last_cumulative", last, "bucket", rnd.randrange(10**5), "date", SESSION_DATE)
        if token % 2:
            filler.expire(key, _SESSION_S + token % 1000)
    for name in BINARY_KEYS:
        filler.add("HSET", name, b"\x00raw", rnd.randbytes(64), "note", "")
    for at, instrument in enumerate(instruments):
        symbol, average = instrument.symbol, rnd.randrange(10**4, 10**7)
        filler.add("HSET", f"volume_averages:{symbol}", "avg_5d", average, "avg_20d", average * 0.93, "samples", 20)
        filler.add("SET", f"volume:baseline:{symbol}", _json({"per_minute": average / 375, "std": average / 900}))
        buckets = {f"{hour:02d}:15": average // 7 for hour in range(9, 16)}
        filler.add("HSET", f"volume:baseline:{symbol}:buckets", *_pairs(buckets))
        if at % 3 == 0:
            filler.expire(f"volume_averages:{symbol}", _WEEK_S)
        for period in _PERIODS:
            levels = {round(rnd.uniform(10, 5000), 2): rnd.randrange(10**6) for _ in range(12)}
            key = f"volume_profile:patterns:{symbol}:{period}"
            if period == "20d":  # a script pickled these
                filler.add("SET", key, pickle.dumps(levels, protocol=4))
            elif period == "5d":
                filler.add("ZADD", key, *(part for price, size in levels.items() for part in (size, price)))
            else:
                filler.add("HSET", key, *_pairs(levels))


def _fill_indicators(filler: Filler, instruments: list[Instrument], rnd: random.Random) -> None:
    for at, instrument in enumerate(instruments):
        head = f"indicators:{instrument.symbol}"
        for name in (*_NUMBERS, *_VOLUME, *(_GREEKS if ":" in instrument.symbol else ())):
            filler.add("SET", f"{head}:{name}", f"{rnd.uniform(0, 100):.4f}")
            if name in _NUMBERS:
                filler.expire(f"{head}:{name}", _INDICATOR_S + rnd.randrange(600))
        for name in _OBJECTS:
            value = {"value": rnd.random(), "signal": rnd.random(), "at": SESSION_DATE}
            if at % 2:
                filler.add("HSET", f"{head}:{name}", *_pairs(value))
            else:
                filler.add("SET", f"{head}:{name}", _json(value))
        for name in _OTHERS:
            filler.add("SET", f"{head}:{name}", zlib.compress(_json([rnd.random() for _ in range(16)])))
        filler.add("SET", f"{head}:volume_note", "")


def _fill_system(filler: Filler, instruments: list[Instrument], rnd: random.Random) -> None:
    for at in range(10 * len(instruments)):
        key = f"session:{SESSION_DATE}:client:{at}"
        filler.add("HSET", key, "user", f"trader{at % 40}", "token", rnd.randbytes(16), "orders", rnd.randrange(50))
        filler.expire(key, _SESSION_S - at)
    for key in EMPTY_KEYS:
        filler.add("SET", key, "")
    filler.add("RPUSH", f"session:{SESSION_DATE}:events", *(f"event {n}" for n in range(200)), "")
    filler.add("SADD", f"session:{SESSION_DATE}:universe", *(one.symbol for one in instruments))
    filler.add("SET", "system:config", zlib.compress(_json({"symbols": len(instruments)}) * 20))
    filler.add("SET", "system:state", pickle.dumps({"mode": "live", "date": SESSION_DATE}, protocol=4))
    filler.add("ZADD", "system:priorities", *(part for at, one in enumerate(instruments) for part in (at, one.symbol)))
    for name in ("feed", "broker", "risk", "redis", "strategy"):
        filler.add("HSET", f"health:{name}", "status", "ok", "beat", rnd.randrange(10**9))
        filler.expire(f"health:{name}", _HEALTH_S)
    for start in range(0, _BIG_KEY_MEMBERS, 1000):
        filler.add("SADD", BIG_KEY, *(f"251121{n:09d}" for n in range(start, start + 1000)))
    filler.expire(BIG_KEY, _SESSION_S)


def _fill_bars(filler: Filler, instrument: Instrument) -> None:
    symbol, found = instrument.symbol, _bars(instrument.ticks, 86_400 * 10**9)
    if not found:
        return  # quotes alone make no bar
    start_ns, day = next(reversed(found.items()))
    date = datetime.fromtimestamp(start_ns // 10**9, UTC).date().isoformat()
    fields = {"date": date, "open": day[0], "high": day[1], "low": day[2], "close": day[3], "volume": day[4]}
    if len(symbol) % 2:
        filler.add("HSET", f"ohlc_latest:{symbol}", *_pairs(fields))
    else:
        filler.add("SET", f"ohlc_latest:{symbol}", _json(fields))
    filler.expire(f"ohlc_latest:{symbol}", _WEEK_S)
    candles = [
        [datetime.fromtimestamp(start // 10**9, UTC).isoformat(), *bar]
        for start, bar in _bars(instrument.ticks, 300 * 10**9).items()
    ]
    filler.add("SET", f"ohlc:{symbol}:5minute", _json({"data": {"candles": candles}}))
    filler.add("HSET", f"ohlc_stats:{symbol}", "days", len(found), "range", day[1] - day[2], "updated", date)


def _bars(ticks: list[Tick], length_ns: int) -> dict[int, list[float]]:
    """Return start → [open, high, low, close, volume] of the trades, in the order of their times."""
    bars: dict[int, list[float]] = {}
    trades = sorted((tick.ts_event_ns, at) for at, tick in enumerate(ticks) if tick.price is not None)
    for ts_ns, at in trades:
        price, size = ticks[at].price, ticks[at].size
        assert price is not None
        bar = bars.setdefault(ts_ns - ts_ns % length_ns, [price, price, price, price, 0.0])
        bar[1], bar[2], bar[3] = max(bar[1], price), min(bar[2], price), price
        bar[4] += size or 0.0
    return bars


def _pairs(fields: dict[str, object] | dict[float, int] | dict[str, int]) -> list[str | float | int]:
    flat: list[str | float | int] = []
    for name, value in fields.items():
        flat += (str(name), value if isinstance(value, (int, float)) else str(value))
    return flat
