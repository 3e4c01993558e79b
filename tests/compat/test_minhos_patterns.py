"""minhos.services.pattern_analyzer: every documented call, on the store that all services share."""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from minhos.core.market_data_adapter import get_market_data_adapter
from minhos.models.market import MarketData
from minhos.services import pattern_analyzer
from minhos.services.pattern_analyzer import PatternAnalyzer, get_pattern_analyzer

#: The start of a minute some hours ago: recent enough to be judged at a first start.
T = float(int(time.time()) // 60 * 60 - 7200)


@pytest.fixture(autouse=True)
def fresh(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(pattern_analyzer, "_analyzer", None)
    yield


def broken_out() -> list[MarketData]:
    """30 quiet minutes, then 13 that rise; the last of them is not over."""
    closes = [100.0] * 30 + [103.0 + 2 * n for n in range(13)]
    return [
        MarketData("ES", T + 60 * n + second, price, last_size=1.0)
        for n, close in enumerate(closes)
        for second, price in ((1, close - 1), (2, close + 0.5), (3, close))
    ]


def run_until_judged(analyzer: PatternAnalyzer) -> None:
    async def run() -> None:
        await analyzer.start()
        await analyzer.start()
        try:
            end = time.monotonic() + 60
            while not analyzer.get_pattern_statistics()["patterns"].get("breakout"):
                assert time.monotonic() < end, analyzer.get_pattern_statistics()
                await asyncio.sleep(0.01)
        finally:
            await analyzer.stop()
            await analyzer.stop()

    asyncio.run(run())


def test_signatures_are_the_documented_ones() -> None:
    assert inspect.iscoroutinefunction(PatternAnalyzer.start) and inspect.iscoroutinefunction(PatternAnalyzer.stop)
    assert list(inspect.signature(PatternAnalyzer.get_recent_patterns).parameters) == ["self", "limit"]
    assert list(inspect.signature(PatternAnalyzer.get_pattern_statistics).parameters) == ["self"]
    assert not inspect.signature(get_pattern_analyzer).parameters
    assert pattern_analyzer.__doc__ and pattern_analyzer.__doc__.startswith("Old address of onetape.services.patterns")


def test_there_is_one_analyzer_a_process_on_the_one_store() -> None:
    analyzer = get_pattern_analyzer()
    assert analyzer is get_pattern_analyzer()
    assert analyzer.market_data_adapter is get_market_data_adapter()


def test_patterns_of_added_data_are_found_and_judged() -> None:
    analyzer = get_pattern_analyzer()
    assert analyzer.get_recent_patterns(5) == []
    assert analyzer.get_pattern_statistics()["success_rate"] == 0.0
    for data in broken_out():
        get_market_data_adapter().add_data(data)
    run_until_judged(analyzer)
    patterns = analyzer.get_recent_patterns(100)
    (breakout,) = [pattern for pattern in patterns if pattern["pattern_type"] == "breakout"]
    assert breakout == {
        "pattern_type": "breakout",
        "symbol": "ES",
        "timestamp": T + 1800,
        "interval": "1min",
        "direction": "bullish",
        "price": 103.0,
        "confidence": 0.5,
    }
    times = [pattern["timestamp"] for pattern in patterns]
    assert times == sorted(times)
    assert analyzer.get_recent_patterns(1) == patterns[-1:]
    found = analyzer.get_pattern_statistics()
    assert found["patterns"]["breakout"] == {"total_patterns": 1, "successful_patterns": 1, "success_rate": 1.0}
    assert found["total_patterns"] >= 1 and found["trouble"] is None


def test_what_was_found_is_there_in_the_next_process_without_starting() -> None:
    for data in broken_out():
        get_market_data_adapter().add_data(data)
    analyzer = get_pattern_analyzer()
    run_until_judged(analyzer)
    ask = (
        "from minhos.services.pattern_analyzer import get_pattern_analyzer as g\n"
        "print(repr((g().get_recent_patterns(50), g().get_pattern_statistics())))"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    told = subprocess.run([sys.executable, "-c", ask], env=env, capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout.strip() == repr((analyzer.get_recent_patterns(50), analyzer.get_pattern_statistics()))


def test_detections_are_no_market_data_to_those_who_ask_or_listen() -> None:
    adapter = get_market_data_adapter()
    heard: list[MarketData] = []

    async def run() -> None:
        await adapter.subscribe(heard.append)
        analyzer = get_pattern_analyzer()
        await analyzer.start()
        for data in broken_out():
            adapter.add_data(data)
        end = time.monotonic() + 60
        while not analyzer.get_recent_patterns(1) or len(heard) < len(broken_out()):
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
        await analyzer.stop()
        adapter.add_data(MarketData("NQ", T, 1.0))
        while heard[-1].symbol != "NQ":
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
        adapter.unsubscribe(heard.append)

    asyncio.run(run())
    assert {data.symbol for data in heard} == {"ES", "NQ"} and len(heard) == len(broken_out()) + 1
    assert adapter.get_symbols() == ["ES", "NQ"]
    assert set(adapter.get_latest_data()) == set(adapter.get_all_market_data()) == {"ES", "NQ"}
    assert adapter.get_stats()["symbols"] == 2


def test_a_store_that_cannot_be_opened_stops_nobody(project: Path) -> None:
    (project / "data").mkdir()
    (project / "data" / "market_data.db").write_bytes(b"not a tape, and not ours" * 100)
    analyzer = get_pattern_analyzer()
    asyncio.run(analyzer.start())
    assert analyzer.get_recent_patterns(10) == []
    assert analyzer.get_pattern_statistics()["trouble"]
    asyncio.run(analyzer.stop())
