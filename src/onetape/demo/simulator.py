"""The simulator: a seeded market of Indian shares, futures and options. It never claims to be a real one.

A symbol's ticks are a random walk on its tick size with a spread and trades at the quotes, some milliseconds to
seconds apart, through one session of a fixed day: equal arguments give equal ticks on every machine.
"""

from __future__ import annotations

import hashlib
import random

from onetape.clock import to_ns
from onetape.record import BUY, SELL, Tick

#: Before the session's first tick, 09:15 in Kolkata.
SESSION_DATE = "2025-11-21"
SESSION_OPEN_NS = to_ns(f"{SESSION_DATE}T09:15:00+05:30")
_SESSION_NS = 22_500 * 1_000_000_000  # 09:15 to 15:30

_SHARES = (
    *("RELIANCE", "TCS", "INFY", "HDFCBANK", "ICICIBANK", "SBIN", "ITC", "LT", "AXISBANK", "KOTAKBANK", "WIPRO"),
    *("MARUTI", "TITAN", "SUNPHARMA", "TATASTEEL", "NTPC", "ONGC", "POWERGRID", "COALINDIA", "HINDALCO"),
)
_STRIKES = tuple(range(25_000, 27_000, 50))
_INDICES = ("NIFTY", "BANKNIFTY", "FINNIFTY", "MIDCPNIFTY")


def _all_symbols() -> list[str]:
    # Futures and shares take turns, so that any number of symbols has names with colons and names without
    futures = [f"NFO:{index}25{month}FUT" for month in ("NOV", "DEC") for index in _INDICES]
    plain = [f"NSE:{share}" if at % 2 else share for at, share in enumerate(_SHARES)]
    mixed = [name for pair in zip(futures, plain, strict=False) for name in pair]
    options = [f"NFO:NIFTY25NOV{strike}{kind}" for strike in _STRIKES for kind in ("CE", "PE")]
    return [*mixed, *plain[len(futures) :], *options]


_SYMBOLS = tuple(_all_symbols())
SYMBOLS_MAX = len(_SYMBOLS)


def symbols(count: int) -> list[str]:
    """Return the names of the first `count` instruments: shares, futures, options; some with colons."""
    return list(_SYMBOLS[:count])


class Walk:
    """One symbol's random walk: `next(ts_event_ns)` is its next tick."""

    def __init__(self, symbol: str, seed: int) -> None:
        digest = hashlib.blake2b(f"{seed}:{symbol}".encode(), digest_size=8).digest()
        self.symbol = symbol
        self.random = random.Random(int.from_bytes(digest, "big"))
        option = symbol.endswith(("CE", "PE"))
        self._tick = 0.05
        self._at = self.random.randrange(1_000, 6_000) if option else self.random.randrange(4_000, 500_000)
        self._lot = 75 if ":" in symbol and symbol.startswith("NFO") else 1
        self._volume = 0

    def next(self, ts_event_ns: int, trades: int | None = None) -> Tick:
        """Return the next tick; two of three are trades, all carry the quotes."""
        rnd = self.random
        self._at = max(20, self._at + rnd.choice((-3, -2, -1, -1, 0, 0, 0, 1, 1, 2, 3)))
        spread = rnd.choice((1, 1, 1, 2, 3))
        bid, ask = self._price(self._at), self._price(self._at + spread)
        bid_size, ask_size = (float(self._lot * rnd.randrange(1, 400)) for _ in range(2))
        price = size = None
        side = 0
        if trades is not None or rnd.random() < 0.67:
            side = BUY if rnd.random() < 0.5 else SELL
            price = ask if side == BUY else bid
            lots = self._lot * rnd.choice((1, 1, 2, 3, 5, 10, 20))
            size, self._volume = float(lots), self._volume + lots
        return Tick(
            self.symbol,
            ts_event_ns,
            price,
            size,
            bid,
            ask,
            bid_size,
            ask_size,
            side,
            volume=float(self._volume),
            trades=trades,
        )

    def _price(self, steps: int) -> float:
        return round(steps * self._tick, 2)


def ticks(symbol: str, count: int, seed: int) -> list[Tick]:
    """Return `count` ticks of one session, ascending in time, in whole milliseconds."""
    walk = Walk(symbol, seed)
    mean_ms = _SESSION_NS / 1_000_000 / (count + 1)
    found, at_ms = [], 0.0
    for _ in range(count):
        at_ms += walk.random.uniform(0.2, 1.8) * mean_ms
        found.append(walk.next(SESSION_OPEN_NS + min(int(at_ms), 22_499_999) * 1_000_000))
    return found
