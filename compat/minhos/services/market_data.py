"""Old address of onetape.services.market_data: `MarketDataService`, on the store that a process's services share."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

from minhos.core.market_data_adapter import MarketDataAdapter, get_market_data_adapter
from minhos.models.market import MarketData
from onetape.services.market_data import MarketDataService as _Service

__all__ = ["MarketDataService", "get_market_data_service"]


class MarketDataService:
    """Streams every record at `ws_port`, and answers at `http_port`; see onetape.services.market_data. 0: a free port.

    `adapter` is the store's; left out, that of this process. `service` is what listens.
    """

    def __init__(self, ws_port: int = 9001, http_port: int = 9002, *, adapter: MarketDataAdapter | None = None) -> None:
        self.market_data_adapter = adapter or get_market_data_adapter()
        self.service = _Service(self.market_data_adapter.store.tape, ws_port=ws_port, http_port=http_port)

    @property
    def ws_port(self) -> int:
        """The port of the WebSocket; the one it has, once started."""
        return self.service.ws_port

    @property
    def http_port(self) -> int:
        """The port of the HTTP paths; the one it has, once started."""
        return self.service.http_port

    async def start(self) -> None:
        """Listen. Raises ConfigInvalid, naming a port that cannot be had."""
        await self.service.start()

    async def stop(self) -> None:
        """Say goodbye to clients and listen no more. The store stays open."""
        await self.service.stop()

    async def process_market_data(self, data: MarketData | Mapping[str, Any]) -> None:
        """Store a record and stream it. Raises InvalidRecord; then nothing is stored."""
        await self.market_data_adapter.async_add_data(
            data if isinstance(data, MarketData) else MarketData.from_dict(data)
        )

    def get_market_data(self, symbol: str | None = None) -> MarketData | dict[str, MarketData | None] | None:
        """Return a symbol's latest record, or None; without a symbol, {symbol: record} of all."""
        if symbol is not None:
            return self.market_data_adapter.get_market_data(symbol)
        return self.market_data_adapter.get_all_market_data()

    def get_historical_data(self, symbol: str, limit: int | None = 1000) -> list[MarketData]:
        """Return a symbol's newest `limit` records (None: all), ascending in time."""
        return self.market_data_adapter.get_historical_data(symbol, limit)

    def get_stats(self) -> dict[str, Any]:
        """Return the store's counts, and the service's in `service`."""
        return {**self.market_data_adapter.get_stats(), "service": self.service.status()}


_made: MarketDataService | None = None
_made_pid = 0
_lock = threading.Lock()


def get_market_data_service() -> MarketDataService:
    """Return the service of this process, at the old ports. A forked process gets its own."""
    global _made, _made_pid
    with _lock:
        if _made is None or _made_pid != os.getpid():
            _made, _made_pid = MarketDataService(), os.getpid()
        return _made
