"""Old address of onetape.Tape: the adapter through which every service of MinhOS reads, writes and listens."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any

from minhos.core.market_data_store import MarketDataStore, get_market_data_store
from minhos.models.market import MarketData

__all__ = ["MarketDataAdapter", "get_market_data_adapter"]

_log = logging.getLogger("minhos.market_data_adapter")

Callback = Callable[[MarketData], object]


class MarketDataAdapter:
    """One view of the store for all services of a process. Reading and writing work without start()."""

    def __init__(self, store: MarketDataStore | None = None) -> None:
        self.store = store or get_market_data_store()
        self._subscribed: list[tuple[Callback, asyncio.Queue[MarketData], asyncio.Task[None]]] = []

    async def start(self) -> None:
        """Start the background clean-up of the store."""
        await self.store.start_cleanup_task()

    async def stop(self) -> None:
        """Stop the background clean-up. Data and subscriptions stay."""
        await self.store.stop_cleanup_task()

    async def subscribe(self, callback: Callback) -> None:
        """Call `callback(data)` for every record stored from now on, by any process, in order, on this event loop.

        It may be a plain function or a coroutine function; a coroutine is awaited before the next record. One that
        raises is logged and gets the next record. A slow one gets the newest 1,000 of what waits, and delays
        nobody else. Subscribing the same callback again changes nothing.
        """
        if any(known == callback and not task.done() for known, _, task in self._subscribed):
            return
        queue = await self.store.subscribe()
        task = asyncio.get_running_loop().create_task(_deliver(queue, callback))
        task.add_done_callback(lambda _: self.store.unsubscribe(queue))
        self._subscribed = [kept for kept in self._subscribed if not kept[2].done()]
        self._subscribed.append((callback, queue, task))

    def unsubscribe(self, callback: Callback) -> None:
        """Call it no more; a callback that is not subscribed is no error. It may be called from any thread."""
        for known, queue, task in self._subscribed:
            if known == callback:
                self.store.unsubscribe(queue)
                loop = task.get_loop()
                if not loop.is_closed():
                    loop.call_soon_threadsafe(task.cancel)
        self._subscribed = [kept for kept in self._subscribed if kept[0] != callback]

    async def async_add_data(self, data: MarketData) -> None:
        """Store a record and distribute it. Durable on return. Raises InvalidRecord."""
        await self.store.add(data)

    def add_data(self, data: MarketData) -> None:
        """As async_add_data(), with or without an event loop."""
        self.store.add_now(data)

    def broadcast_market_data(self, data: MarketData) -> None:
        """As add_data(), by its other name."""
        self.store.add_now(data)

    def get_market_data(self, symbol: str) -> MarketData | None:
        """Return a symbol's record with the greatest time, or None."""
        return self.store.get_latest(symbol)[symbol]

    def get_latest_data(self, symbol: str | None = None) -> dict[str, MarketData | None]:
        """Return {symbol: latest record}; {symbol: None} for one that is not known; without a symbol, all."""
        return self.store.get_latest(symbol)

    def get_all_market_data(self) -> dict[str, MarketData | None]:
        """Return {symbol: latest record} of all symbols."""
        return self.store.get_latest()

    @property
    def latest_data(self) -> dict[str, MarketData | None]:
        """Return what get_all_market_data() does."""
        return self.store.get_latest()

    def get_historical_data(self, symbol: str, limit: int | None = 1000) -> list[MarketData]:
        """Return a symbol's newest `limit` records (None: all), ascending in time."""
        return self.store.get_history(symbol, limit)

    def get_historical_range(self, symbol: str) -> tuple[datetime, datetime] | None:
        """Return the times of a symbol's first and last record as naive datetimes in local time, or None."""
        found = self.store.get_range(symbol)
        return None if found is None else (datetime.fromtimestamp(found[0]), datetime.fromtimestamp(found[1]))

    def get_symbols(self) -> list[str]:
        """Return the symbols that have records, sorted."""
        return self.store.get_symbols()

    def get_stats(self) -> dict[str, Any]:
        """Return the store's counts; see MarketDataStore.get_stats."""
        return self.store.get_stats()


async def _deliver(queue: asyncio.Queue[MarketData], callback: Callback) -> None:
    while True:
        data = await queue.get()
        try:
            result = callback(data)
            if inspect.isawaitable(result):
                await result
        except Exception:  # noqa: BLE001  (one bad record must not silence a feed; the log has the reason)
            _log.exception("a subscriber's callback failed on %r", data)


_adapter: MarketDataAdapter | None = None
_adapter_pid = 0
_lock = threading.Lock()


def get_market_data_adapter() -> MarketDataAdapter:
    """Return the adapter of this process, on the store of this process. A forked process gets its own."""
    global _adapter, _adapter_pid
    with _lock:
        if _adapter is None or _adapter_pid != os.getpid():
            _adapter, _adapter_pid = MarketDataAdapter(), os.getpid()
        return _adapter
