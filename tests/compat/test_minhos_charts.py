"""minhos.services.multi_chart_collector: charts of the one store, with no copy of it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from minhos.core.market_data_adapter import MarketDataAdapter
from minhos.core.market_data_store import MarketDataConfig, MarketDataStore
from minhos.models.market import MarketData
from minhos.services import multi_chart_collector
from minhos.services.multi_chart_collector import ChartConfig, MultiChartCollector, get_multi_chart_collector

T = 1_700_000_040.0  # a full minute


@pytest.fixture
def adapter(tmp_path: Path) -> Iterator[MarketDataAdapter]:
    store = MarketDataStore(MarketDataConfig(tmp_path / "md.db", retention_days=36500))
    made = MarketDataAdapter(store)
    for minute in range(30):
        made.add_data(MarketData("A", T + 60 * minute, 100.0 + minute, last_size=2, volume=1000 + 2 * minute))
    yield made
    store.close()


def test_names_and_arguments_are_the_documented_ones() -> None:
    assert list(inspect.signature(MultiChartCollector.get_chart_data).parameters) == ["self", "chart_id"]
    assert list(inspect.signature(MultiChartCollector.get_historical_data).parameters) == ["self", "chart_id", "limit"]
    assert list(inspect.signature(MultiChartCollector.get_current_analysis).parameters) == ["self"]


def test_history_is_the_newest_ascending_and_volume_is_of_the_trades(adapter: MarketDataAdapter) -> None:
    collector = MultiChartCollector([ChartConfig("a", "A")], adapter)
    asyncio.run(collector.start())
    bars = collector.get_historical_data("a", 3)
    assert [(bar["timestamp"], bar["close"], bar["volume"]) for bar in bars] == [
        (T + 60 * minute, 100.0 + minute, 2) for minute in (27, 28, 29)
    ]
    assert collector.get_historical_data("a", 0) == [] and collector.get_historical_data("other", 5) == []
    asyncio.run(collector.stop())


def test_a_chart_has_the_latest_record_and_says_that_it_is_late(adapter: MarketDataAdapter) -> None:
    data = MultiChartCollector([ChartConfig("a", "A")], adapter).get_chart_data("a")
    assert data is not None and data["current"]["close"] == 129.0
    assert len(data["bars"]) == 30 and data["late"] is True
    assert MultiChartCollector([], adapter).get_chart_data("a") is None


def test_without_charts_every_symbol_is_one_and_symbols_come_and_go_on(adapter: MarketDataAdapter) -> None:
    collector = MultiChartCollector(adapter=adapter)
    assert collector.get_current_analysis()["charts"]["A"]["regime"]["name"] == "trend"
    adapter.add_data(MarketData("B", T, 5.0))
    adapter.add_data(MarketData("patterns:A", T, 5.0))
    assert set(collector.get_current_analysis()["charts"]) == {"A", "B"}
    assert not hasattr(collector, "current_data") and not hasattr(collector, "historical_data")


def test_there_is_one_collector_a_process(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multi_chart_collector, "_collector", None)
    assert get_multi_chart_collector() is get_multi_chart_collector()
