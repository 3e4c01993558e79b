"""The listener: one client of the old stream, and what waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec
from websockets.asyncio.server import ServerConnection

from onetape.record import Tick
from onetape.services.old_record import told_of

#: Of so many symbols a client may ask for records.
SYMBOLS_MAX = 1_000
#: A client may be so many bytes behind before its records are conflated.
BEHIND_BYTES = 64 * 1024
#: Records that may wait for a client that is not told the latest ones yet.
EARLY_MAX = 50_000


class Listener:
    """One client: what it wants, and what waits for it: in order, or the newest of each symbol where it is slow."""

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection
        self.sent = self.conflated = 0
        self._symbols: frozenset[str] | None = None
        self._queue: list[tuple[str, str]] = []
        self._bytes = 0
        self._limit = BEHIND_BYTES
        self._early: list[tuple[Tick, str]] | None = []
        self._latest: dict[str, Tick] = {}
        self._news = asyncio.Event()

    def begin(self, latest: Mapping[str, Tick]) -> None:
        """Give it the latest record of each symbol, then what came meanwhile and is not in them; from now on, all."""
        early, self._early, self._latest = self._early or [], None, dict(latest)
        for symbol, tick in latest.items():
            self.offer(symbol, told_of(tick))
        for tick, told in early:
            self.live(tick, told)

    def live(self, tick: Tick, told: str) -> None:
        """Give it a record that came; while it is not told the latest ones, it waits to come behind them."""
        if self._early is None:
            latest = self._latest.get(tick.symbol)
            if latest is not None and not _is_news(tick, latest):
                return  # it was on the tape already when the latest ones were asked for, and comes late
            self._latest.pop(tick.symbol, None)
            self.offer(tick.symbol, told)
            return
        self._early.append((tick, told))
        if len(self._early) > EARLY_MAX:
            newest = list({tick.symbol: (tick, told) for tick, told in self._early}.values())
            self.conflated += len(self._early) - len(newest)
            self._early = newest

    def ask(self, message: str | bytes) -> None:
        """Take what the client says; what is not understood is answered with what would be."""
        try:
            found = msgspec.json.decode(message)
            symbols = found["symbols"] if isinstance(found, dict) else None
            if symbols is not None and not (
                isinstance(symbols, list)
                and len(symbols) <= SYMBOLS_MAX
                and all(isinstance(symbol, str) for symbol in symbols)
            ):
                raise ValueError("symbols")
        except (ValueError, KeyError, TypeError):
            self.offer("", f'{{"error":"say {{\\"symbols\\": [up to {SYMBOLS_MAX} names]}}, or null for all"}}')
            return
        self._symbols = None if symbols is None else frozenset(symbols)

    def offer(self, symbol: str, told: str) -> None:
        """Give it a message of a symbol; "" is for itself alone."""
        if symbol and self._symbols is not None and symbol not in self._symbols:
            return
        self._queue.append((symbol, told))
        self._bytes += len(told)
        if self._bytes > self._limit:
            self._conflate()
        self._news.set()

    def _conflate(self) -> None:
        newest = dict(self._queue)
        self.conflated += len(self._queue) - len(newest)
        self._queue = list(newest.items())
        self._bytes = sum(len(told) for _, told in self._queue)
        self._limit = max(BEHIND_BYTES, 2 * self._bytes)  # so that many symbols do not mean that it is done each time

    async def send(self) -> None:
        """Send what waits, for ever."""
        while True:
            await self._news.wait()
            self._news.clear()
            waiting, self._queue, self._bytes = self._queue, [], 0
            for at, (_, told) in enumerate(waiting):
                await self._connection.send(told)
                self.sent += 1
                if self._queue and self._bytes > self._limit // 2:  # it is slow: the rest joins what came meanwhile
                    self._queue = waiting[at + 1 :] + self._queue
                    self._bytes += sum(len(rest) for _, rest in waiting[at + 1 :])
                    self._conflate()
                    self._news.set()
                    break


def _is_news(tick: Tick, latest: Tick) -> bool:
    """Return whether a record came after the latest one was asked for."""
    if tick.seq is None or latest.seq is None:
        return tick != latest
    return tick.seq > latest.seq
