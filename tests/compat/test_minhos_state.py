"""minhos.services.state_manager: market data of the one store, and a state of its own."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from minhos.core.market_data_adapter import MarketDataAdapter
from minhos.core.market_data_store import MarketDataConfig, MarketDataStore, get_market_data_store
from minhos.models.market import MarketData
from minhos.services import state_manager
from minhos.services.state_manager import StateManager, get_state_manager
from onetape import InvalidRecord, TapeUnusable


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[StateManager]:
    store = MarketDataStore(MarketDataConfig(tmp_path / "md.db"))
    made = StateManager(MarketDataAdapter(store))
    yield made
    made.service.close()
    store.close()


def test_names_and_arguments_are_the_documented_ones() -> None:
    assert inspect.iscoroutinefunction(StateManager.start) and inspect.iscoroutinefunction(StateManager.stop)
    assert list(inspect.signature(StateManager.update_market_data).parameters) == ["self", "data"]
    symbol = inspect.signature(StateManager.get_market_data).parameters["symbol"]
    assert symbol.default is None


def test_an_update_keeps_the_event_time_and_reaches_the_one_store(manager: StateManager) -> None:
    manager.update_market_data(MarketData("A", 1_700_000_000.25, 10.0))
    manager.update_market_data({"symbol": "B", "timestamp": 1_700_000_001.5, "price": 20.0})
    found = manager.get_market_data("A")
    assert isinstance(found, MarketData) and found.timestamp == 1_700_000_000.25
    assert manager.market_data_adapter.get_market_data("B") == manager.get_market_data("B")
    everything = manager.get_market_data()
    assert isinstance(everything, dict) and set(everything) == {"A", "B"}
    assert manager.get_market_data("Z") is None
    assert not hasattr(manager, "market_data")


def test_a_late_record_is_not_the_latest(manager: StateManager) -> None:
    manager.update_market_data(MarketData("A", 1_700_000_010.0, 10.0))
    manager.update_market_data(MarketData("A", 1_700_000_000.0, 9.0))
    assert manager.get_market_data("A").close == 10.0  # type: ignore[union-attr]


def test_what_cannot_be_stored_is_refused_and_not_cached(manager: StateManager) -> None:
    with pytest.raises(InvalidRecord):
        manager.update_market_data(MarketData("A", float("nan"), 1.0))
    assert manager.get_market_data("A") is None


def test_positions_risk_and_system_state_outlive_the_manager(manager: StateManager) -> None:
    manager.update_position("A", 2, 100.0, fill_id="1")
    manager.update_position("A", 2, 100.0, fill_id="1")
    manager.update_market_data(MarketData("A", time.time(), 101.0))
    manager.update_risk_parameters({"max_position": 3})
    manager.update_system_state(trading_enabled=True)
    again = StateManager(manager.market_data_adapter)
    held = again.get_position("A")
    assert held is not None
    assert (held["quantity"], held["average_price"], held["unrealized_pnl"], held["stale"]) == (2, 100, 2, False)
    assert again.check_risk("A", 1) == (True, [])
    allowed, reasons = again.check_risk("A", 2)
    assert not allowed and reasons[0].startswith("max_position")
    assert again.close_position("A", 103.0)["realized_pnl"] == 6
    assert manager.get_positions() == {} and manager.get_pnl()["realized"] == 6
    assert set(manager.get_current_state()) >= {"positions", "risk", "system", "profit_loss"}
    again.service.close()


def test_events_reach_plain_and_coroutine_subscribers_and_a_bad_one_stops_nobody(manager: StateManager) -> None:
    async def run() -> list[str]:
        got: list[str] = []
        came = asyncio.Event()

        def bad(kind: str, content: object) -> None:
            raise RuntimeError("on purpose")

        async def good(kind: str, content: object) -> None:
            got.append(kind)
            if len(got) == 2:
                came.set()

        await manager.start()
        manager.subscribe(bad)
        manager.subscribe(good)
        manager.subscribe(good)
        manager.update_system_state(mode="live")
        manager.update_position("A", 1, 1.0)
        await asyncio.wait_for(came.wait(), 60)
        manager.unsubscribe(good)
        await manager.stop()
        return got

    assert asyncio.run(run()) == ["system", "fill"]


def test_without_the_store_there_is_no_market_data_and_no_crash(
    manager: StateManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(symbol: str | None = None) -> None:
        raise TapeUnusable("gone")

    monkeypatch.setattr(manager.market_data_adapter.store, "get_latest", away)
    assert manager.get_market_data("A") is None and manager.get_market_data() == {}
    assert manager.update_position("A", 1, 5.0)["quantity"] == 1


def test_there_is_one_manager_a_process(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_manager, "_manager", None)
    assert get_state_manager() is get_state_manager()
    get_state_manager().service.close()


def test_a_store_that_cannot_be_opened_does_not_keep_positions_away(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_manager, "_manager", None)
    (project / "data").mkdir()
    (project / "data" / "market_data.db").write_bytes(b"not a store" * 1000)
    manager = get_state_manager()
    asyncio.run(manager.start())
    assert manager.get_market_data() == {}
    assert manager.update_position("A", 1, 5.0, fill_id="1")["quantity"] == 1
    asyncio.run(manager.stop())
    assert (project / "data" / "market_data.db.state").exists()


def test_the_state_is_beside_the_store_that_the_process_has(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_manager, "_manager", None)
    get_market_data_store(project / "own.db")
    asyncio.run(get_state_manager().start())
    get_state_manager().service.close()
    assert (project / "own.db.state").exists() and not (project / "data").exists()
