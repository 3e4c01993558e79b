"""All services of MinhOS on one store: what one writes, all of them see, and it is still there after a restart.

    python examples/unified_market_data_usage.py

It works in a temporary folder, on free ports, and ends by itself. With a folder as argument it leaves its store there.
"""

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from minhos.core.market_data_adapter import get_market_data_adapter
from minhos.core.market_data_store import get_market_data_store
from minhos.models.market import MarketData
from minhos.services.market_data import MarketDataService
from minhos.services.multi_chart_collector import MultiChartCollector
from minhos.services.pattern_analyzer import get_pattern_analyzer
from minhos.services.state_manager import get_state_manager


async def main(folder: Path) -> None:
    get_market_data_store(folder / "data" / "market_data.db")  # the first call says where; services then share it
    adapter = get_market_data_adapter()
    state, patterns, charts = get_state_manager(), get_pattern_analyzer(), MultiChartCollector()
    market_data = MarketDataService(ws_port=0, http_port=0)
    services = (state, patterns, charts, market_data)
    await adapter.start()
    for service in services:
        await service.start()

    seen: list[MarketData] = []
    await adapter.subscribe(seen.append)
    now = time.time()
    for i in range(300):  # five minutes of a rising market, a tick a second
        price = 6000 + i * 0.25
        tick = MarketData(
            "ESZ6", now - 300 + i, price, bid=price - 0.25, ask=price, last_size=1 + i % 3, source="example"
        )
        await adapter.async_add_data(tick)
    while len(seen) < 300:
        await asyncio.sleep(0.01)

    print("latest, by the adapter:       ", adapter.get_market_data("ESZ6").price)
    print("latest, by the state manager: ", state.get_market_data("ESZ6").price)
    print("history, newest 3, ascending: ", [data.price for data in adapter.get_historical_data("ESZ6", 3)])
    print("subscribers were told of:     ", len(seen), "records")
    print("statistics:                   ", {k: v for k, v in adapter.get_stats().items() if k != "db_size_mb"})
    print("recent patterns:              ", len(patterns.get_recent_patterns(10)))
    print("analysis:                     ", sorted(charts.get_current_analysis()))

    for service in reversed(services):
        await service.stop()
    await adapter.stop()
    adapter.store.close()
    print("on disk:                      ", (folder / "data" / "market_data.db").name)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(main(Path(sys.argv[1])))
    else:
        with tempfile.TemporaryDirectory() as place:
            asyncio.run(main(Path(place)))
