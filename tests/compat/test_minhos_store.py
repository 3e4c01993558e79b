"""minhos.core.market_data_store and market_data_adapter: every documented call, and what was wrong in the old ones."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import math
import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

import onetape
from minhos.core import market_data_store
from minhos.core.market_data_adapter import MarketDataAdapter, get_market_data_adapter
from minhos.core.market_data_store import MarketDataConfig, MarketDataStore, get_market_data_store
from minhos.models.market import MarketData
from onetape import ConfigInvalid, InvalidRecord, TapeUnusable, Tick

T = 1_700_000_000.0


def made(symbol: str, second: float, close: float, **more: object) -> MarketData:
    return MarketData(symbol, T + second, close, **more)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MarketDataStore]:
    with_limit = MarketDataConfig(tmp_path / "md.db", max_memory_records=10)
    opened = MarketDataStore(with_limit)
    yield opened
    opened.close()


async def until(condition: object, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.005)


# Surface


def test_signatures_are_the_documented_ones() -> None:
    config = inspect.signature(MarketDataConfig).parameters
    assert list(config) == [
        "db_path", "max_memory_records", "retention_days", "cleanup_interval", "enable_compression", "enable_wal_mode",
    ]  # fmt: skip
    assert [p.default for p in config.values()][1:] == [1000, 30, 3600, True, True]
    assert inspect.signature(get_market_data_store).parameters["config_path"].default is None
    assert inspect.signature(get_market_data_adapter).parameters == {}
    for owner, awaited, plain in [
        (MarketDataStore, ["add", "subscribe"],
         ["get_latest", "get_history", "get_timerange_data", "get_symbols", "unsubscribe", "get_stats"]),
        (MarketDataAdapter, ["start", "stop", "subscribe", "async_add_data"],
         ["unsubscribe", "add_data", "broadcast_market_data", "get_market_data", "get_latest_data",
          "get_all_market_data", "get_historical_data", "get_historical_range", "get_symbols", "get_stats"]),
    ]:  # fmt: skip
        assert all(inspect.iscoroutinefunction(getattr(owner, name)) for name in awaited)
        assert all(not inspect.iscoroutinefunction(getattr(owner, name)) for name in plain)
    for owner, name in [(MarketDataStore, "get_history"), (MarketDataAdapter, "get_historical_data")]:
        assert inspect.signature(getattr(owner, name)).parameters["limit"].default == 1000
    for owner, name in [(MarketDataStore, "get_latest"), (MarketDataAdapter, "get_latest_data")]:
        assert inspect.signature(getattr(owner, name)).parameters["symbol"].default is None


def test_the_database_is_where_the_document_says(project: Path) -> None:
    adapter = get_market_data_adapter()
    adapter.add_data(made("ESZ6", 0, 1.0))
    assert (project / "data" / "market_data.db").is_file()
    assert adapter.store.config.enable_wal_mode
    with sqlite3.connect(project / "data" / "market_data.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_one_adapter_and_one_store_a_process(project: Path) -> None:
    assert get_market_data_adapter() is get_market_data_adapter()
    assert get_market_data_adapter().store is get_market_data_store()


def test_another_path_for_the_one_store_is_refused_and_not_ignored(project: Path) -> None:
    first = get_market_data_store(project / "a.db")
    assert get_market_data_store(project / "a.db") is first
    with pytest.raises(ConfigInvalid, match="already has its store"):
        get_market_data_store(project / "b.db")


def test_a_forked_process_gets_an_adapter_of_its_own(project: Path) -> None:
    get_market_data_adapter().add_data(made("ESZ6", 0, 1.0))
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            get_market_data_adapter().add_data(made("ESZ6", 1, 2.0))
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert [data.close for data in get_market_data_adapter().get_historical_data("ESZ6")] == [1.0, 2.0]


# Reading


def test_latest_in_all_its_shapes(project: Path) -> None:
    adapter = get_market_data_adapter()
    es, nq = made("ESZ6", 1, 1.0, bid=0.5, ask=1.5, volume=10), made("NQZ6", 2, 2.0)
    for data in (made("ESZ6", 0, 0.5), es, nq):
        adapter.add_data(data)
    assert adapter.get_market_data("ESZ6") == es
    assert adapter.get_market_data("none") is None
    assert adapter.get_latest_data("ESZ6") == {"ESZ6": es}
    assert adapter.get_latest_data("none") == {"none": None}
    everything = {"ESZ6": es, "NQZ6": nq}
    assert adapter.get_latest_data() == adapter.get_all_market_data() == adapter.latest_data == everything
    assert adapter.store.get_latest("ESZ6") == {"ESZ6": es}
    assert adapter.get_symbols() == ["ESZ6", "NQZ6"]


def test_history_is_the_newest_n_ascending_within_and_beyond_memory(store: MarketDataStore) -> None:
    for i in range(25):
        store.add_now(made("ESZ6", i, float(i)))
    closes = [float(i) for i in range(25)]
    assert [d.close for d in store.get_history("ESZ6", 3)] == closes[-3:]
    assert [d.close for d in store.get_history("ESZ6", 10)] == closes[-10:]
    assert [d.close for d in store.get_history("ESZ6", 20)] == closes[-20:]
    assert [d.close for d in store.get_history("ESZ6")] == closes
    assert [d.close for d in store.get_history("ESZ6", None)] == closes
    assert store.get_history("none") == store.get_history("ESZ6", 0) == []


def test_no_limit_means_all_of_a_long_history(store: MarketDataStore) -> None:
    times = [1_700_000_000_000_000_000 + i * 1_000_000 for i in range(70_000)]
    store.tape.append_table({"symbol": "ESZ6", "ts_event_ns": times, "price": [float(i) for i in range(70_000)]})
    history = store.get_history("ESZ6", None)
    assert [d.close for d in history] == [float(i) for i in range(70_000)]
    assert len(store.get_history("ESZ6")) == 1000


def test_a_range_includes_both_ends(store: MarketDataStore) -> None:
    for i in (3, 1, 2, 0, 4):
        store.add_now(made("ESZ6", i + 0.1, float(i)))
    found = store.get_timerange_data("ESZ6", T + 1.1, T + 3.1)
    assert [d.close for d in found] == [1.0, 2.0, 3.0]
    assert store.get_timerange_data("ESZ6", T + 9, T + 10) == store.get_timerange_data("none", T, T + 9) == []


def test_a_bound_includes_what_reads_as_that_bound(store: MarketDataStore) -> None:
    store.tape.append(Tick("ESZ6", int(T) * 10**9 + 30, price=1.0))  # 30 ns: less than floats can tell here
    assert [d.timestamp for d in store.get_timerange_data("ESZ6", T, T)] == [T]


def test_the_range_is_naive_local_time(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/Chicago")
    time.tzset()
    try:
        adapter = get_market_data_adapter()
        adapter.add_data(made("ESZ6", 0, 1.0))
        adapter.add_data(made("ESZ6", 60.5, 2.0))
        assert adapter.get_historical_range("ESZ6") == (
            datetime(2023, 11, 14, 16, 13, 20),
            datetime(2023, 11, 14, 16, 14, 20, 500_000),
        )
        assert adapter.get_historical_range("none") is None
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()


def test_stats_have_exactly_the_documented_keys(store: MarketDataStore) -> None:
    for i in range(25):
        store.add_now(made("ESZ6", i, 1.0))
    store.add_now(made("NQZ6", 0, 1.0))
    store.tape.append(Tick("patterns:NQZ6", 10**18, bid=1.0))  # a service's own record is no market data
    stats = store.get_stats()
    assert isinstance(stats.pop("db_size_mb"), float)
    assert stats == {
        "symbols": 2, "memory_records": 11, "subscribers": 0, "total_records": 26, "total_symbols": 2,
    }  # fmt: skip


def test_changing_what_was_read_or_added_changes_nothing_in_the_store(store: MarketDataStore) -> None:
    data = made("ESZ6", 0, 1.0)
    store.add_now(data)
    data.close = 9.0
    latest = store.get_latest("ESZ6")["ESZ6"]
    assert latest is not None
    latest.close = 8.0
    assert [d.close for d in store.get_history("ESZ6")] == [1.0]


# Listening


def test_plain_functions_and_coroutines_get_every_record_on_the_loop_that_subscribed(project: Path) -> None:
    plain: list[tuple[float, int]] = []
    awaited: list[tuple[float, int]] = []

    async def listen(data: MarketData) -> None:
        await asyncio.sleep(0)
        awaited.append((data.close, threading.get_ident()))

    async def main() -> None:
        adapter = get_market_data_adapter()
        await adapter.start()
        await adapter.subscribe(lambda data: plain.append((data.close, threading.get_ident())))
        await adapter.subscribe(listen)
        await adapter.async_add_data(made("ESZ6", 0, 0.0))
        adapter.add_data(made("ESZ6", 1, 1.0))
        await asyncio.to_thread(adapter.broadcast_market_data, made("NQZ6", 2, 2.0))
        assert adapter.get_stats()["subscribers"] == 2
        await until(lambda: len(plain) == len(awaited) == 3)
        await adapter.stop()

    asyncio.run(main())
    here = threading.get_ident()
    assert plain == awaited == [(0.0, here), (1.0, here), (2.0, here)]


def test_an_unsubscribed_callback_gets_nothing_more(project: Path) -> None:
    async def main() -> list[float]:
        adapter, got, control = get_market_data_adapter(), [], []

        def listen(data: MarketData) -> None:
            got.append(data.close)

        await adapter.subscribe(listen)
        await adapter.subscribe(listen)  # a service that subscribes again is not told twice
        await adapter.subscribe(lambda data: control.append(data.close))
        adapter.add_data(made("ESZ6", 0, 0.0))
        await until(lambda: got and control)
        adapter.unsubscribe(listen)
        adapter.unsubscribe(listen)
        adapter.add_data(made("ESZ6", 1, 1.0))
        await until(lambda: len(control) == 2)
        assert adapter.get_stats()["subscribers"] == 1
        return got

    assert asyncio.run(main()) == [0.0]


def test_a_callback_that_raises_gets_the_next_record(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> list[float]:
        got: list[float] = []

        def listen(data: MarketData) -> None:
            got.append(data.close)
            if len(got) == 1:
                raise ValueError("the first one is hard")

        adapter = get_market_data_adapter()
        await adapter.subscribe(listen)
        adapter.add_data(made("ESZ6", 0, 0.0))
        adapter.add_data(made("ESZ6", 1, 1.0))
        await until(lambda: len(got) == 2)
        return got

    assert asyncio.run(main()) == [0.0, 1.0]
    assert "the first one is hard" in caplog.text


def test_a_subscriber_hears_what_another_process_adds(project: Path, python_path: str) -> None:
    code = (
        "from minhos.core.market_data_adapter import get_market_data_adapter\n"
        "from minhos.models.market import MarketData\n"
        "get_market_data_adapter().broadcast_market_data(MarketData('ESZ6', 1700000000.5, 7.5))\n"
    )

    async def main() -> MarketData:
        queue = await get_market_data_adapter().store.subscribe()
        env = {**os.environ, "PYTHONPATH": python_path}
        other = await asyncio.create_subprocess_exec(sys.executable, "-c", code, env=env)
        assert await other.wait() == 0
        return await asyncio.wait_for(queue.get(), 60)

    assert asyncio.run(main()) == MarketData("ESZ6", 1700000000.5, 7.5)


def test_a_queue_gets_what_is_added_after_it_was_asked_for(store: MarketDataStore) -> None:
    async def main() -> list[float]:
        first = await store.subscribe()
        store.add_now(made("ESZ6", 0, 0.0))
        second = await store.subscribe()
        store.add_now(made("ESZ6", 1, 1.0))
        await until(lambda: first.qsize() == 2 and second.qsize() >= 1)
        store.unsubscribe(first)
        store.add_now(made("ESZ6", 2, 2.0))
        await until(lambda: second.qsize() == 2)
        assert first.qsize() == 2
        assert store.get_stats()["subscribers"] == 1
        return [(await second.get()).close for _ in range(2)]

    assert asyncio.run(main()) == [1.0, 2.0]


def test_a_loop_that_is_gone_leaves_no_subscriber_behind(store: MarketDataStore) -> None:
    asyncio.run(store.subscribe())
    assert store.get_stats()["subscribers"] == 0
    store.add_now(made("ESZ6", 0, 1.0))

    async def main() -> float:
        queue = await store.subscribe()
        store.add_now(made("ESZ6", 1, 2.0))
        return (await asyncio.wait_for(queue.get(), 60)).close

    assert asyncio.run(main()) == 2.0


# What was wrong in it


def test_a_late_record_never_becomes_the_latest(store: MarketDataStore) -> None:
    store.add_now(made("ESZ6", 10, 10.0))
    store.add_now(made("ESZ6", 5, 5.0))
    latest = store.get_latest("ESZ6")["ESZ6"]
    assert latest is not None
    assert latest.close == 10.0
    assert [d.close for d in store.get_history("ESZ6")] == [5.0, 10.0]


def test_history_past_the_memory_has_no_row_twice_and_is_in_order(store: MarketDataStore) -> None:
    for i in (*range(0, 40, 2), *range(39, 0, -2)):
        store.add_now(made("ESZ6", i, float(i)))
    for limit in (5, 10, 11, 39, 40, 100, None):
        closes = [d.close for d in store.get_history("ESZ6", limit)]
        assert closes == [float(i) for i in range(40)][-(limit or 100) :]


def test_retention_deletes_and_gives_the_space_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = MarketDataConfig(tmp_path / "md.db", retention_days=30, cleanup_interval=0.05)
    store = MarketDataStore(config)
    old = int(time.time()) - 40 * 86400
    times = [(old + i % 1000) * 10**9 + i for i in range(50_000)]
    store.tape.append_table({"symbol": "ESZ6", "ts_event_ns": times, "price": [1.0] * 50_000})
    store.add_now(MarketData("ESZ6", time.time() + 31 * 86400, 2.0))
    store.tape.seal()
    bars = len(store.tape.bars("ESZ6"))
    month = 31 * 86400 * 10**9  # kept for as long as they are on the tape, so let a month go by
    now = time.time_ns
    monkeypatch.setattr("onetape.tape.upkeep.now_ns", lambda: now() + month)

    async def main() -> None:
        adapter = MarketDataAdapter(store)
        await adapter.start()
        await adapter.start()  # no second clean-up
        await until(lambda: store.get_stats()["total_records"] == 1)
        await adapter.stop()
        await adapter.stop()
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []

    asyncio.run(main())
    assert [d.close for d in store.get_history("ESZ6", None)] == [2.0]
    assert len(store.tape.bars("ESZ6")) == bars > 1
    store.close()
    assert (tmp_path / "md.db").stat().st_size < 500_000


def test_a_full_queue_never_stops_the_writer(store: MarketDataStore) -> None:
    async def main() -> None:
        queue = await store.subscribe()
        for i in range(2500):
            await asyncio.wait_for(store.add(made("ESZ6", i, float(i))), 60)
        await until(lambda: queue.dropped == 1500)  # type: ignore[attr-defined]
        assert queue.maxsize == queue.qsize() == 1000
        assert [queue.get_nowait().close for _ in range(1000)] == [float(i) for i in range(1500, 2500)]

    asyncio.run(main())
    assert store.get_stats()["total_records"] == 2500


def test_a_blocked_loop_never_stops_the_writer_nor_fills_the_memory(store: MarketDataStore) -> None:
    async def main() -> None:
        queue = await store.subscribe()
        for i in range(5000):
            store.add_now(made("ESZ6", i, float(i)))  # the loop never gets a turn
        await until(lambda: queue.qsize() + queue.dropped == 5000)  # type: ignore[attr-defined]
        assert [queue.get_nowait().close for _ in range(queue.qsize())][-1] == 4999.0
        assert queue.dropped >= 3000  # type: ignore[attr-defined]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("timestamp", math.nan), ("timestamp", math.inf), ("timestamp", -1.0), ("timestamp", 1e12),
        ("close", None), ("close", math.nan), ("close", math.inf), ("volume", 2**63 + 1), ("volume", -1),
        ("trades", 2**63), ("symbol", ""), ("symbol", None),
    ],
)  # fmt: skip
def test_what_cannot_be_stored_is_not_cached_and_said(store: MarketDataStore, field: str, value: object) -> None:
    data = made("ESZ6", 0, 1.0)
    setattr(data, field, value)
    for add in (store.add_now, lambda data: asyncio.run(store.add(data))):
        with pytest.raises(InvalidRecord):
            add(data)
    assert store.get_latest() == {}
    assert store.get_history("ESZ6", None) == []
    assert store.get_stats()["total_records"] == 0


def test_a_volume_of_two_to_the_63_is_stored(store: MarketDataStore, tmp_path: Path) -> None:
    store.add_now(made("ESZ6", 0, 1.0, volume=2**63))
    store.close()
    again = MarketDataStore(MarketDataConfig(tmp_path / "md.db"))
    assert [d.volume for d in again.get_history("ESZ6")] == [2**63]
    again.close()


def test_the_event_time_is_kept(store: MarketDataStore) -> None:
    data = MarketData("ESZ6", 1234567890.123456, 1.0)
    store.add_now(data)
    assert store.get_latest("ESZ6") == {"ESZ6": data}


def test_minute_bars_have_every_symbol_and_sum_sizes_not_session_volume(store: MarketDataStore) -> None:
    minute = 1_700_000_040.0  # the start of one
    store.add_now(MarketData("FAST", minute + 120, 5.0, last_size=1, volume=1000))  # a watermark would be here
    for second, close in ((1, 1.0), (2, 3.0), (3, 2.0)):
        store.add_now(MarketData("SLOW", minute + second, close, last_size=2, volume=500_000 + second))
    bars = store.tape.bar_list("SLOW")
    assert [(b.open, b.high, b.low, b.close, b.volume, b.trades) for b in bars] == [(1.0, 3.0, 1.0, 2.0, 6.0, 3)]
    assert len(store.tape.bar_list("FAST")) == 1


def test_after_a_restart_every_symbol_is_there(tmp_path: Path) -> None:
    names = [f"S{i:03}" for i in range(60)]
    first = MarketDataStore(MarketDataConfig(tmp_path / "md.db", max_memory_records=5))
    for i in range(8):
        for name in names:
            first.add_now(made(name, i, float(i)))
    first.close()
    again = MarketDataStore(MarketDataConfig(tmp_path / "md.db", max_memory_records=5))
    assert sorted(again.get_latest()) == again.get_symbols() == names
    assert all(data is not None and data.close == 7.0 for data in again.get_latest().values())
    assert [d.close for d in again.get_history(names[-1], 5)] == [3.0, 4.0, 5.0, 6.0, 7.0]
    again.close()


def test_records_survive_a_killed_process(tmp_path: Path, python_path: str) -> None:
    code = (
        "import os, signal\n"
        "from minhos.core.market_data_store import *\n"
        "from minhos.models.market import MarketData\n"
        "store = MarketDataStore(MarketDataConfig('md.db'))\n"
        "for i in range(100): store.add_now(MarketData('ESZ6', 1700000000.0 + i, float(i)))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    env = {**os.environ, "PYTHONPATH": python_path}
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env).returncode == -9
    store = MarketDataStore(MarketDataConfig(tmp_path / "md.db"))
    assert [d.close for d in store.get_history("ESZ6")] == [float(i) for i in range(100)]
    store.close()


# A file that the old store wrote

_OLD_SCHEMA = (
    "CREATE TABLE market_data(id INTEGER PRIMARY KEY, symbol TEXT NOT NULL, timestamp REAL NOT NULL, open REAL,"
    " high REAL, low REAL, close REAL NOT NULL, volume INTEGER, bid REAL, ask REAL, bid_size INTEGER,"
    " ask_size INTEGER, last_size INTEGER, vwap REAL, trades INTEGER, source TEXT, metadata JSON, created_at)"
)


@pytest.mark.parametrize("mode", ["delete", "wal", "wal in use"])
def test_a_file_of_the_old_store_is_refused_by_name_and_not_touched(project: Path, mode: str) -> None:
    path = project / "data" / "market_data.db"
    path.parent.mkdir()
    old = sqlite3.connect(path)
    old.execute(f"PRAGMA journal_mode={mode.split()[0]}")
    old.execute(_OLD_SCHEMA)
    old.execute("INSERT INTO market_data(symbol, timestamp, close) VALUES ('ESZ6', 1.5, 2.5)")
    old.commit()
    if mode != "wal in use":
        old.close()
    before = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in path.parent.iterdir() if "shm" not in p.name}
    for opening in (get_market_data_adapter, MarketDataStore):
        with pytest.raises(TapeUnusable, match="database of MinhOS") as caught:
            opening()
        assert "not touched" in caught.value.hint
    after = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in path.parent.iterdir() if "shm" not in p.name}
    assert after == before
    old.close()
    with sqlite3.connect(path) as again:
        assert again.execute("SELECT symbol, timestamp, close FROM market_data").fetchall() == [("ESZ6", 1.5, 2.5)]
    again.close()


@pytest.mark.parametrize("wrong", ["a directory", "below a file"])
def test_a_path_that_cannot_be_is_said(project: Path, wrong: str) -> None:
    (project / "file").write_text("x")
    path = project if wrong == "a directory" else project / "file" / "data" / "md.db"
    with pytest.raises(TapeUnusable):
        MarketDataStore(MarketDataConfig(path))


def test_the_example_of_the_documentation_runs(project: Path, python_path: str) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "predecessors.md"
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    (block,) = (block for block in blocks if "import minhos" in block or "from minhos" in block)
    env = {**os.environ, "PYTHONPATH": python_path}
    done = subprocess.run([sys.executable, "-W", "error", "-c", block], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "ESZ6 6012.25\n" in done.stdout
    assert (project / "data" / "market_data.db").is_file()


def test_a_tick_takes_less_room_than_it_did(store: MarketDataStore) -> None:
    for i in range(20_000):
        store.add_now(made("ESZ6", i / 10, 6000 + i % 40 / 4, bid=5999.75, ask=6000.25, last_size=1 + i % 5, volume=i))
    store.tape.seal()
    store.close()
    assert Path(store.config.db_path).stat().st_size / 20_000 < 154


def test_a_tape_made_elsewhere_is_the_same_store(tmp_path: Path) -> None:
    with onetape.open(tmp_path / "md.db") as tape:
        tape.append(Tick("ESZ6", 10**18, price=1.5, size=3.0, side=onetape.BUY))
        store = MarketDataStore(MarketDataConfig(tmp_path / "md.db"))
        assert store.get_latest("ESZ6") == {"ESZ6": MarketData("ESZ6", 1e9, 1.5, last_size=3)}
        store.close()


def test_the_module_says_that_some_settings_have_no_effect() -> None:
    assert "without effect" in (market_data_store.MarketDataConfig.__doc__ or "")
