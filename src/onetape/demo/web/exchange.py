"""The exchange: a simulated future behind our own DTC server, with an order book, breaks and cut connections."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

from onetape.clock import now_ns
from onetape.demo.web.film import walk
from onetape.record import BUY, SELL, Tick
from onetape.sources.dtc.server import DtcServer

SYMBOL = "SIM:FUTURE"
_TICK = 0.25
LEVELS = 10
_STEP_S = 0.2
#: Of its past: how long, and how far apart its trades are, s.
_PAST_S, _PAST_EVERY_S = 3 * 3600, 2
#: After so many steps its feed breaks, for so many; and after so many the connection is cut.
_BREAK_EVERY, _BREAK, _CUT_EVERY = 900, 75, 2_000
_FIRST_BREAK = 250


class Exchange:
    """Serves SYMBOL on a port of its own from start() to close(): trades and a book five times a second.

    Its past is at the history port, where the source gets it, as it does after a cut. A break is told as a feed that is
    away: the source says that this time is missing.
    """

    def __init__(self, seed: int, *, clock: Callable[[], int] = now_ns) -> None:
        self.server = DtcServer()
        self._clock = clock
        self._steps = walk(seed)
        self._chance = random.Random(seed)
        self._at = 20_000
        self._shown: dict[tuple[str, float], float] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="demo-exchange", daemon=True)
        self.server.add_history(self._past())

    @property
    def price(self) -> float:
        """The last traded price."""
        return self._at * _TICK

    def source(self) -> dict[str, object]:
        """Return the table of a source that connects to it."""
        return {
            "kind": "dtc",
            "name": "exchange",
            "symbols": [SYMBOL],
            "port": self.server.port,
            "depth": LEVELS,
            "history": True,
            "history_port": self.server.history_port,
            "history_days": 1.0,
        }

    def start(self) -> None:
        """Begin to trade."""
        self._thread.start()

    def close(self) -> None:
        """End the server, and trading. May be called twice."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()
        self.server.close()

    def _run(self) -> None:
        step = 0
        while not self._stopping.wait(_STEP_S):
            since_break = (step - _FIRST_BREAK) % _BREAK_EVERY
            if step >= _FIRST_BREAK and since_break in (0, _BREAK):
                self.server.feed_status(available=since_break == _BREAK)
            if step < _FIRST_BREAK or since_break >= _BREAK:
                self._trade()
            if step % _CUT_EVERY == _CUT_EVERY - 1:
                self.server.cut()
            step += 1

    def _past(self) -> list[Tick]:
        count = _PAST_S // _PAST_EVERY_S
        since_ns = self._clock() - _PAST_S * 10**9
        return [self._traded(since_ns + at * _PAST_EVERY_S * 10**9) for at in range(count)]

    def _traded(self, at_ns: int) -> Tick:
        self._at += next(self._steps)
        side = BUY if self._chance.random() < 0.5 else SELL
        return Tick(SYMBOL, at_ns, price=self.price, size=float(self._chance.choice((1, 1, 2, 3, 5, 8))), side=side)

    def _trade(self) -> None:
        at_ns = self._clock()
        trade = self._traded(at_ns)
        bid = self.price - (_TICK if trade.side == BUY else 0.0)
        sizes = {("bid", bid - level * _TICK): self._size(level) for level in range(LEVELS)}
        sizes |= {("ask", bid + (level + 1) * _TICK): self._size(level) for level in range(LEVELS)}
        bid_size, ask_size = sizes["bid", bid], sizes["ask", bid + _TICK]
        quote = Tick(SYMBOL, at_ns, bid=bid, ask=bid + _TICK, bid_size=bid_size, ask_size=ask_size)
        self.server.publish([quote, trade])
        for side, price in self._shown.keys() - sizes.keys():
            self.server.set_level(side=side, symbol=SYMBOL, price=price, size=0.0)
        for (side, price), size in sizes.items():
            if (side, price) not in self._shown or self._chance.random() < 0.3:
                self.server.set_level(SYMBOL, side, price, size, 1 + int(size) // 7)
        self._shown = sizes

    def _size(self, level: int) -> float:
        return float(self._chance.randint(4, 30) + 9 * level)
