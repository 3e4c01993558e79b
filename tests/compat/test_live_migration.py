"""UnifiedRedisReader and TransitionalManager: the documented calls, on live data and with a backfill behind them."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

import onetape
from onetape import InvalidRecord, PhaseRefused
from onetape.embedded import EmbeddedServer
from onetape.migrate import Migration
from onetape.migrate.phases import state as states
from onetape.migrate.phases.phase import Phase
from onetape.migrate.plans.plan import Plan
from onetape.migrate.reader import view
from onetape.migrate.wire.endpoint import Endpoint
from trading_system.storage.transitional_manager import TransitionalManager
from trading_system.storage.unified_reader import UnifiedRedisReader

PLAN = Plan.load()
T_MS = 1_763_783_100_000
STREAM = "ticks:historical:NSE:INFY"


class System:
    """A server, its databases, and the state of its migration."""

    def __init__(self, server: EmbeddedServer, folder: Path) -> None:
        self.url, self.folder, self.version = server.url, folder, 0
        self.db = {db: redis.Redis(port=server.port, db=db, decode_responses=True) for db in (0, 1, 2, 5)}

    def move(self, phase: Phase, **fields: Any) -> None:
        with Endpoint.connect(self.url) as endpoint:
            self.version = states.change(endpoint, PLAN, self.version, phase=phase, **fields).version

    def backfill(self) -> tuple[list[float], Any]:
        """Carry out a backfill and a verify; return the prices on the tape and the verdict."""
        with onetape.open(self.folder / "tape.db") as tape:
            migration = Migration(self.url, plan=PLAN, ledger_path=self.folder / "ledger", tape=tape,
                                  report_dir=self.folder)  # fmt: skip
            migration.backfill()
            verdict = migration.verify()
            return tape.read("NSE:INFY", 0, 2**62)["price"].to_pylist(), verdict

    def prices(self) -> list[str]:
        return [fields["last_price"] for _id, fields in self.db[1].xrange(STREAM)]


@pytest.fixture
def system(server: EmbeddedServer, project: Path, monkeypatch: pytest.MonkeyPatch) -> System:
    monkeypatch.setenv("REDIS_HOST", "127.0.0.1")
    monkeypatch.setenv("REDIS_PORT", str(server.port))
    monkeypatch.setattr(view, "REFRESH_S", 0.0)
    return System(server, project)


@pytest.fixture
def reader(system: System) -> Iterator[UnifiedRedisReader]:
    made = UnifiedRedisReader()
    yield made
    made.close()


@pytest.fixture
def manager(system: System) -> Iterator[TransitionalManager]:
    made = TransitionalManager()
    yield made
    made.close()


def tick(price: float, ms: int = 0, **more: Any) -> dict[str, Any]:
    return {"last_price": price, "volume": 10, "timestamp": T_MS + ms, **more}


def text(fields: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in fields.items()}


def test_the_signatures_are_the_documented_ones() -> None:
    def names(call: Any) -> list[str]:
        return [str(parameter) for parameter in inspect.signature(call).parameters.values()][1:]

    assert [p.split(":")[0] for p in names(UnifiedRedisReader.read_volume_state)] == ["symbol", "token"]
    assert [p.split(":")[0] for p in names(UnifiedRedisReader.read_indicator)] == ["symbol", "name"]
    assert [p.split(":")[0] for p in names(TransitionalManager.store_tick)] == ["symbol", "data"]
    assert inspect.signature(TransitionalManager.read_tick).parameters["use_new_structure"].default is True


# The reader


def test_the_new_structure_is_read_first_and_the_old_one_is_the_fallback(
    system: System, reader: UnifiedRedisReader
) -> None:
    old, new = system.db, system.db[1]
    old[0].hset("tick:NSE:INFY", mapping=text(tick(1.0)))
    old[2].hset("volume_state:256265", mapping={"total": "1"})
    old[5].set("indicators:NSE:INFY:rsi", "30")
    old[5].hset("indicators:NSE:INFY:volume_ratio", mapping={"value": "1.5"})
    old[2].hset("ohlc_latest:NSE:INFY", mapping={"close": "1"})
    assert reader.read_tick("NSE:INFY") == text(tick(1.0))
    assert reader.read_volume_state("NSE:INFY", token=256265) == {"total": "1"}
    assert reader.read_indicator("NSE:INFY", "rsi") == "30"
    assert reader.read_indicator("NSE:INFY", "volume_ratio") == {"value": "1.5"}
    assert reader.read_ohlc("NSE:INFY") == {"close": "1"}
    stats = reader.get_read_stats()
    assert (stats["new_reads"], stats["new_read_percentage"]) == (0, 0.0) and stats["old_fallbacks"] >= 5
    new.xadd(STREAM, text(tick(2.0, 5)), id=f"{T_MS + 5}-0")
    new.hset("vol:state:256265", mapping={"total": "2"})
    new.set("ind:ta:NSE:INFY:rsi", "31")
    new.hset("ind:volume:NSE:INFY:ratio", mapping={"value": "1.6"})
    new.hset("ohlc_latest:NSE:INFY", mapping={"close": "2"})
    before = reader.get_read_stats()
    assert reader.read_tick("NSE:INFY") == text(tick(2.0, 5))
    assert reader.read_volume_state("NSE:INFY", token=256265) == {"total": "2"}
    assert reader.read_indicator("NSE:INFY", "rsi") == "31"
    assert reader.read_indicator("NSE:INFY", "volume_ratio") == {"value": "1.6"}
    assert reader.read_ohlc("NSE:INFY") == {"close": "2"}
    after = reader.get_read_stats()
    assert after["old_fallbacks"] == before["old_fallbacks"] and after["new_reads"] >= 5
    assert 0 < after["new_read_percentage"] < 100


def test_what_is_nowhere_is_none(reader: UnifiedRedisReader) -> None:
    assert reader.read_tick("NONE") is None
    assert reader.read_volume_state("NONE", 7) is None
    assert reader.read_indicator("NONE", "rsi") is None
    assert reader.read_ohlc("NONE") is None
    assert reader.get_read_stats()["new_read_percentage"] == 0.0


def test_the_state_of_a_live_migration_decides(system: System, reader: UnifiedRedisReader) -> None:
    system.db[5].set("indicators:NSE:INFY:rsi", "old")
    system.db[1].set("ind:ta:NSE:INFY:rsi", "new")
    system.db[0].hset("tick:NSE:INFY", mapping=text(tick(1.0)))
    system.db[1].xadd(STREAM, text(tick(2.0, 5)), id=f"{T_MS + 5}-0")
    for phase in Phase:
        system.move(phase, read_share=1.0)
        new = phase.at_least(Phase.READS_SWITCHED)
        assert reader.read_indicator("NSE:INFY", "rsi") == ("new" if new else "old"), phase
        assert reader.read_tick("NSE:INFY") == text(tick(2.0, 5) if new else tick(1.0)), phase
    system.db[0].hset("tick:NSE:INFY", mapping=text(tick(3.0, 9)))
    assert reader.read_tick("NSE:INFY") == text(tick(2.0, 5))  # finished: the old name is over
    system.move(Phase.CUT_OVER)
    assert reader.read_tick("NSE:INFY") == text(tick(3.0, 9))  # a writer that only knows the old name


def test_types_other_than_hashes_and_binary_values_are_read(system: System, reader: UnifiedRedisReader) -> None:
    five = redis.Redis(port=system.db[5].connection_pool.connection_kwargs["port"], db=5)
    five.rpush("indicators:X:ema", 1, 2)
    five.zadd("indicators:X:sma", {"a": 1.5})
    five.sadd("indicators:X:wma", "a")
    five.xadd("indicators:X:roc", {"v": 1}, id="1-0")
    five.set("indicators:X:atr", b"\xff\x00")
    five.set("indicators:X:adx", "")
    assert reader.read_indicator("X", "ema") == ["1", "2"]
    assert reader.read_indicator("X", "sma") == [("a", 1.5)]
    assert reader.read_indicator("X", "wma") == {"a"}
    assert reader.read_indicator("X", "roc") == [("1-0", {"v": "1"})]
    assert reader.read_indicator("X", "atr").encode("utf-8", "surrogateescape") == b"\xff\x00"
    assert reader.read_indicator("X", "adx") == ""
    system.db[0].set("tick:JSON", '{"last_price": 5.5, "timestamp": "2025-11-22T09:15:00"}')
    assert reader.read_tick("JSON") == {"last_price": "5.5", "timestamp": "2025-11-22T09:15:00"}
    five.close()


# The manager


def test_a_tick_is_in_both_structures_and_read_from_both(system: System, manager: TransitionalManager) -> None:
    assert manager.read_tick("NSE:INFY") is None and manager.verify_consistency("NSE:INFY")
    assert manager.store_tick("NSE:INFY", tick(1.5, depth={"buy": []}, oi=None)) is True
    expected = {"last_price": "1.5", "volume": "10", "timestamp": str(T_MS), "depth": '{"buy":[]}'}
    assert system.db[0].hgetall("tick:NSE:INFY") == expected
    ((entry_id, fields),) = system.db[1].xrange(STREAM)
    assert entry_id == f"{T_MS}-0" and {**expected, "onetape_id": fields["onetape_id"]} == fields
    assert manager.read_tick("NSE:INFY") == manager.read_tick("NSE:INFY", use_new_structure=False) == expected
    assert manager.verify_consistency("NSE:INFY")
    stats = manager.get_stats()
    assert (stats["ticks_stored"], stats["old_writes"], stats["new_writes"], stats["mode"]) == (1, 1, 1, "both")


def test_a_field_of_the_tick_before_does_not_stay_behind_and_the_expiry_does(
    system: System, manager: TransitionalManager
) -> None:
    manager.store_tick("NSE:INFY", tick(1.0, oi=5))
    system.db[0].pexpireat("tick:NSE:INFY", 4_000_000_000_123)
    manager.store_tick("NSE:INFY", tick(2.0, 1))
    assert system.db[0].hgetall("tick:NSE:INFY") == text(tick(2.0, 1))
    assert abs(system.db[0].execute_command("PEXPIRETIME", "tick:NSE:INFY") - 4_000_000_000_123) < 100
    assert manager.verify_consistency("NSE:INFY")


def test_a_backfill_finds_what_was_stored_and_adds_nothing(system: System, manager: TransitionalManager) -> None:
    for i in range(5):
        manager.store_tick("NSE:INFY", tick(1.0 + i, i, note=f"{i}" * 100))  # long: the hash has no order
    landed, verdict = system.backfill()
    assert system.prices() == ["1.0", "2.0", "3.0", "4.0", "5.0"]
    assert landed == [5.0]  # the hash's; the stream in database 1 is no source of the documented plan
    assert verdict.exit_code in (0, 3), verdict
    landed, _ = system.backfill()
    assert landed == [5.0] and len(system.prices()) == 5
    manager.store_tick("NSE:INFY", tick(6.0, 9))
    landed, _ = system.backfill()
    assert landed == [5.0, 6.0] and system.prices() == ["1.0", "2.0", "3.0", "4.0", "5.0", "6.0"]


def test_a_late_tick_gets_its_place_and_never_becomes_the_latest(
    system: System, manager: TransitionalManager, reader: UnifiedRedisReader
) -> None:
    for ms in (0, 100, 50, 50, 20, 100):
        manager.store_tick("NSE:INFY", tick(1.0 + ms, ms))
    assert system.prices() == ["1.0", "21.0", "51.0", "101.0"]  # the same tick again is one
    assert manager.read_tick("NSE:INFY") == text(tick(101.0, 100)) == reader.read_tick("NSE:INFY")
    assert manager.verify_consistency("NSE:INFY")
    stats = manager.get_stats()
    assert stats["late_ticks"] == 2
    landed, _ = system.backfill()
    assert landed == [101.0] and len(system.prices()) == 4


def test_a_tick_that_another_writer_left_in_the_hash_is_rescued_before_it_is_overwritten(
    system: System, manager: TransitionalManager
) -> None:
    system.db[0].hset("tick:NSE:INFY", mapping=text(tick(1.0)))
    manager.store_tick("NSE:INFY", tick(2.0, 1))
    system.db[0].hset("tick:NSE:INFY", mapping=text(tick(3.0, 2)))
    manager.store_tick("NSE:INFY", tick(4.0, 3))
    assert system.prices() == ["1.0", "2.0", "3.0", "4.0"]
    assert manager.get_stats()["rescued_ticks"] == 2
    system.backfill()
    assert system.prices() == ["1.0", "2.0", "3.0", "4.0"]


def test_history_of_the_old_structure_comes_along_and_is_not_shut_out(
    system: System, manager: TransitionalManager
) -> None:
    for i in range(3):
        system.db[0].xadd(STREAM, text(tick(float(i), i - 10)), id=f"{T_MS + i - 10}-0")
    manager.store_tick("NSE:INFY", tick(7.0))
    assert system.prices() == ["0.0", "1.0", "2.0", "7.0"]
    landed, verdict = system.backfill()
    assert landed == [0.0, 1.0, 2.0, 7.0] and system.prices() == ["0.0", "1.0", "2.0", "7.0"]
    assert verdict.exit_code in (0, 3), verdict.as_dict()


def test_history_is_not_brought_along_in_a_phase_that_is_over(
    system: System, manager: TransitionalManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    system.db[1].flushdb()
    system.db[0].xadd(STREAM, {"last_price": "1"}, id=f"{T_MS - 1000}-0")
    system.move(Phase.DUAL_WRITING)
    ticks = manager._ticks
    bring = type(ticks)._bring

    def late(*args: Any) -> bool | None:
        if system.version == 1:
            system.move(Phase.PLANNED)
        return bring(*args)

    monkeypatch.setattr(type(ticks), "_bring", late)
    manager.store_tick("NSE:INFY", {"last_price": 2, "timestamp": T_MS})
    assert manager.get_stats()["mode"] == "old"
    assert not system.db[1].exists(STREAM)
    assert system.db[0].xlen(STREAM) == 1


def test_several_writers_of_one_symbol_lose_and_double_nothing(system: System) -> None:
    managers = [TransitionalManager() for _ in range(4)]
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for i in range(25):
                managers[number].store_tick("NSE:INFY", tick(float(number * 1000 + i), i * 10 + number))
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    expected = sorted((i * 10 + n, str(float(n * 1000 + i))) for n in range(4) for i in range(25))
    assert system.prices() == [price for _ms, price in expected]
    assert managers[0].verify_consistency("NSE:INFY")
    for one in managers:
        one.close()


def test_the_migrations_state_says_which_sides_are_written(system: System, manager: TransitionalManager) -> None:
    modes = {}
    for number, phase in enumerate(Phase):
        system.move(phase)
        manager.store_tick("NSE:INFY", tick(float(number), number))
        modes[str(phase)] = manager.get_stats()["mode"]
    assert modes == {
        "planned": "old", "dual_writing": "both", "backfilled": "both", "verified": "both",
        "reads_switched": "both", "cut_over": "both", "finished": "new",
    }  # fmt: skip
    assert system.prices() == [f"{i}.0" for i in range(7)]  # the one of the planned phase was in the hash still
    assert system.db[0].hget("tick:NSE:INFY", "last_price") == "5.0"
    assert not manager.verify_consistency("NSE:INFY")


def test_dual_writing_can_be_switched_where_no_migration_needs_it(system: System, manager: TransitionalManager) -> None:
    manager.disable_dual_write()
    manager.store_tick("NSE:INFY", tick(1.0))
    assert system.db[0].dbsize() == 0 and system.prices() == ["1.0"]
    assert manager.get_stats()["dual_write_enabled"] is False
    manager.enable_dual_write_mode()
    manager.store_tick("NSE:INFY", tick(2.0, 1))
    assert system.db[0].hget("tick:NSE:INFY", "last_price") == "2.0"
    system.move(Phase.DUAL_WRITING)
    with pytest.raises(PhaseRefused, match="dual_writing"):
        manager.disable_dual_write()
    manager.store_tick("NSE:INFY", tick(3.0, 2))
    assert system.db[0].hget("tick:NSE:INFY", "last_price") == "3.0" and len(system.prices()) == 3


def test_a_tick_without_a_time_gets_one_and_a_spoiled_one_is_refused(
    system: System, manager: TransitionalManager
) -> None:
    manager.store_tick("NSE:INFY", {"last_price": 1.0})
    stored = system.db[0].hgetall("tick:NSE:INFY")
    assert abs(int(stored["timestamp"]) / 1000 - system.db[0].time()[0]) < 60
    assert manager.verify_consistency("NSE:INFY")
    with pytest.raises(InvalidRecord, match="timestamp"):
        manager.store_tick("NSE:INFY", {"last_price": 1.0, "timestamp": "yesterday"})
    with pytest.raises(InvalidRecord, match="at least one field"):
        manager.store_tick("NSE:INFY", {})
    assert len(system.prices()) == 1


_WRITER = """
import sys
from trading_system.storage.transitional_manager import TransitionalManager
manager = TransitionalManager()
for i in range(1_000_000):
    late = 35 if i % 7 == 3 else 0  # some belong before what is there already
    manager.store_tick("NSE:INFY", {"last_price": float(i), "timestamp": START + i * 10 - late})
    print(i, flush=True)
"""


def test_a_writer_that_is_killed_leaves_both_sides_consistent_and_every_tick_once(
    system: System, manager: TransitionalManager, python_path: str
) -> None:
    told = 0
    for turn in range(3):
        script = _WRITER.replace("START", str(T_MS + turn * 1_000_000))
        writer = subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": python_path},
        )
        assert writer.stdout is not None
        lines = []
        for line in writer.stdout:
            lines.append(int(line))
            if len(lines) == 40 + turn * 13:
                writer.kill()
        writer.wait()
        told += len(lines)
        prices = system.prices()
        assert told <= len(prices) <= told + turn + 1  # what was told is there; the last one of each may be untold
        assert len({entry_id for entry_id, _ in system.db[1].xrange(STREAM)}) == len(prices)
        identities = [fields["onetape_id"] for _id, fields in system.db[1].xrange(STREAM)]
        assert len(set(identities)) == len(identities)
        manager.store_tick("NSE:INFY", tick(-1.0, turn * 1_000_000 + 900_000))
        told += 1
        assert manager.verify_consistency("NSE:INFY")
    assert system.db[1].keys("onetape:merging*") == [] or all(
        system.db[1].pttl(key) > 0 for key in system.db[1].keys("onetape:merging*")
    )
