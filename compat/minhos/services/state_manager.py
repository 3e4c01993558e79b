"""Old address of onetape.services.state: `StateManager`, with market data in `MarketData`, and money in floats."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from minhos.core.market_data_adapter import MarketDataAdapter, get_market_data_adapter
from minhos.core.market_data_store import MarketDataConfig
from minhos.models.market import MarketData
from onetape import OnetapeError, Tick
from onetape.services.state import Event, StateService

__all__ = ["StateManager", "get_state_manager"]

_log = logging.getLogger("minhos.state_manager")

Callback = Callable[[str, dict[str, Any]], object]


class StateManager:
    """Positions, risk parameters and system state, kept in a file beside the store's; market data is the store's.

    `service` is the StateService behind it, whose answers are exact. path: its file, left out `<store's file>.state`.
    """

    def __init__(self, adapter: MarketDataAdapter | None = None, path: Path | str | None = None) -> None:
        self._adapter = adapter
        # Beside the store that this process has, which may be at a path of its own; never beside another's.
        beside = MarketDataConfig().db_path
        with contextlib.suppress(OnetapeError):
            beside = self.market_data_adapter.store.config.db_path
        self._path = Path(path or f"{beside}.state").absolute()
        self.service = StateService(_StoresTape(self), self._path)  # type: ignore[arg-type]
        self._subscribed: list[tuple[Callback, Any]] = []

    @property
    def market_data_adapter(self) -> MarketDataAdapter:
        """Return the adapter of this process. Raises TapeUnusable while its store cannot be opened."""
        if self._adapter is None:
            self._adapter = get_market_data_adapter()
        return self._adapter

    async def start(self) -> None:
        """Open the state; a store that cannot be opened does not hinder it. Raises StateUnusable, naming the file."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        await self.service.start()

    async def stop(self) -> None:
        """Close the state and end all event subscriptions. What was stored stays."""
        self._subscribed.clear()
        await self.service.stop()

    def update_market_data(self, data: MarketData | Mapping[str, Any]) -> None:
        """Store a record with its own event time, and distribute it. Raises InvalidRecord; then nothing is stored."""
        self.market_data_adapter.add_data(data if isinstance(data, MarketData) else MarketData.from_dict(data))

    def get_market_data(self, symbol: str | None = None) -> MarketData | dict[str, MarketData | None] | None:
        """Return a symbol's record with the greatest time, or None; without a symbol, {symbol: record} of all.

        A store that cannot be read answers as if it were empty, and the log has the reason.
        """
        try:
            if symbol is not None:
                return self.market_data_adapter.get_market_data(symbol)
            return self.market_data_adapter.get_all_market_data()
        except OnetapeError:
            _log.exception("no market data")
            return None if symbol is not None else {}

    def update_position(
        self, symbol: str, quantity: float, price: float, fill_id: str | None = None, fee: float = 0.0
    ) -> dict[str, Any]:
        """Take an execution (quantity above zero: bought, below: sold) and return the position after it.

        With a fill_id it counts once, however often it is told; without one, every call is an execution of its own.
        """
        self.service.fill(fill_id or uuid.uuid4().hex, symbol, quantity, price, fee=fee)
        return self._position(symbol)

    def close_position(self, symbol: str, price: float, fill_id: str | None = None) -> dict[str, Any]:
        """Take an execution that closes all that is held of a symbol; a flat one stays as it is."""
        self.service.flatten(fill_id or uuid.uuid4().hex, symbol, price)
        return self._position(symbol)

    def get_position(self, symbol: str) -> dict[str, Any] | None:
        """Return symbol, quantity, average_price, current_price, unrealized_pnl, realized_pnl, fees, stale; or None."""
        return self.get_positions().get(symbol)

    def get_positions(self) -> dict[str, dict[str, Any]]:
        """Return {symbol: position} of what is held; see get_position."""
        return {row["symbol"]: row for row in self.service.snapshot()["positions"]}

    def get_risk_parameters(self) -> dict[str, Any]:
        """Return the limits; None is no limit. See onetape.services.state.RiskParameters."""
        found: dict[str, Any] = self.service.snapshot()["risk"]
        return found

    def update_risk_parameters(self, parameters: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        """Change some limits and return all. Raises ConfigInvalid, naming the limit; then none is changed."""
        self.service.set_risk(**{**(parameters or {}), **more})
        return self.get_risk_parameters()

    def check_risk(self, symbol: str, quantity: float) -> tuple[bool, list[str]]:
        """Return whether an order is within all limits, and each reason why not."""
        reasons = [f"{one.limit}: {one.message}" for one in self.service.check(symbol, quantity)]
        return not reasons, reasons

    def get_system_state(self) -> dict[str, Any]:
        """Return trading_enabled, mode, and whatever else was set."""
        return self.service.system()

    def update_system_state(self, values: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        """Change some of it and return all. Raises ConfigInvalid."""
        return self.service.set_system(**{**(values or {}), **more})

    def get_pnl(self) -> dict[str, Any]:
        """Return realized, fees, realized_today, unrealized, day (None where a price is missing), stale symbols."""
        found: dict[str, Any] = self.service.snapshot()["profit_loss"]
        return found

    def get_current_state(self) -> dict[str, Any]:
        """Return positions, risk, system state and profit and loss in one dict of plain data."""
        return self.service.snapshot()

    def subscribe(self, callback: Callback) -> None:
        """Call `callback(kind, content)`, plain or a coroutine function, for every change from now on, in order.

        kind is "fill", "contract", "risk" or "system". Subscribing the same callback again changes nothing.
        """
        if not any(known == callback for known, _ in self._subscribed):
            self._subscribed.append((callback, self.service.subscribe(lambda event: _told(callback, event))))

    def unsubscribe(self, callback: Callback) -> None:
        """Call it no more; a callback that is not subscribed is no error."""
        for known, subscriber in self._subscribed:
            if known == callback:
                self.service.unsubscribe(subscriber)
        self._subscribed = [one for one in self._subscribed if one[0] != callback]

    def _position(self, symbol: str) -> dict[str, Any]:
        position = self.service.position(symbol)
        average = position.average_price
        return self.get_position(symbol) or {
            "symbol": symbol,
            "quantity": float(position.quantity),
            "average_price": None if average is None else float(average),
            "multiplier": float(position.multiplier),
            "current_price": None,
            "price_ms": None,
            "price_kind": None,
            "stale": False,
            "unrealized_pnl": 0.0,
            "realized_pnl": float(position.realized),
            "fees": float(position.fees),
        }


class _StoresTape:
    """The store's tape, whenever it can be had."""

    def __init__(self, manager: StateManager) -> None:
        self._manager = manager

    def latest(self, symbol: str) -> Tick | None:
        return self._manager.market_data_adapter.store.tape.latest(symbol)

    def recent(self, symbol: str, count: int) -> list[Tick]:
        return self._manager.market_data_adapter.store.tape.recent(symbol, count)


def _told(callback: Callback, event: Event) -> object:
    return callback(event.kind, event.content)


_manager: StateManager | None = None
_manager_pid = 0
_lock = threading.Lock()


def get_state_manager() -> StateManager:
    """Return the manager of this process, on the adapter of this process. A forked process gets its own."""
    global _manager, _manager_pid
    with _lock:
        if _manager is None or _manager_pid != os.getpid():
            _manager, _manager_pid = StateManager(), os.getpid()
        return _manager
