"""SafeRedisConsolidator, its command line and volume_migration: every documented call, and the old one's faults."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

import onetape
from onetape import ConfigInvalid, EndpointError
from onetape.embedded import EmbeddedServer
from onetape.migrate.keys.dump import digest
from redis_files import volume_migration
from redis_files.volume_migration import migrate_volume_data
from trading_system.storage.data_migrator import SafeRedisConsolidator, main

MODULE = "trading_system.storage.data_migrator"
T_MS = 1_736_926_200_000


class Databases:
    def __init__(self, port: int) -> None:
        self.port = port

    def __getitem__(self, number: int) -> redis.Redis:
        return redis.Redis(port=self.port, db=number)


@pytest.fixture
def dbs(server: EmbeddedServer, project: Path, monkeypatch: pytest.MonkeyPatch) -> Databases:
    monkeypatch.setenv("REDIS_HOST", "127.0.0.1")
    monkeypatch.setenv("REDIS_PORT", str(server.port))
    return Databases(server.port)


@pytest.fixture
def migrator(dbs: Databases) -> Iterator[SafeRedisConsolidator]:
    made = SafeRedisConsolidator()
    yield made
    made.cleanup()


def command(python_path: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", MODULE, *args],
        env={**os.environ, "PYTHONPATH": python_path, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


# Surface


def test_signatures_are_the_documented_ones() -> None:
    def defaults(function: Callable[..., Any]) -> dict[str, Any]:
        parameters = inspect.signature(function).parameters
        return {name: parameter.default for name, parameter in parameters.items() if name != "self"}

    required = inspect.Parameter.empty
    assert defaults(SafeRedisConsolidator.__init__) == {"redis_host": None, "redis_port": None}
    assert defaults(SafeRedisConsolidator.migrate_historical_data) == {"dry_run": False, "limit": None}
    assert defaults(SafeRedisConsolidator.migrate_with_redis_copy) == {
        "pattern": required, "source_db_name": required, "target_db": 1, "key_transform": None, "verbose": True,
    }  # fmt: skip
    assert defaults(SafeRedisConsolidator.verify_migration) == {}
    assert defaults(SafeRedisConsolidator.verify_data_consistency) == {"sample_size": 50}
    assert defaults(SafeRedisConsolidator.start_dual_write_migration) == {}
    assert defaults(SafeRedisConsolidator.save_migration_log) == {"filename": required}
    assert defaults(SafeRedisConsolidator.cleanup) == {}
    assert defaults(migrate_volume_data) == {"source_db": 1, "limit": None, "dry_run": False}


def test_host_and_port_are_arguments_then_environment_then_localhost(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REDIS_HOST", "REDIS_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in os.environ if name.startswith("ONETAPE_")]:
        monkeypatch.delenv(name)
    default = SafeRedisConsolidator()
    assert (default.redis_host, default.redis_port) == ("localhost", 6379)
    monkeypatch.setenv("REDIS_HOST", "10.1.2.3")
    monkeypatch.setenv("REDIS_PORT", "7000")
    of_environ = SafeRedisConsolidator()
    assert (of_environ.redis_host, of_environ.redis_port) == ("10.1.2.3", 7000)
    given = SafeRedisConsolidator("10.9.9.9", 7001)
    assert (given.redis_host, given.redis_port) == ("10.9.9.9", 7001)
    only_host = SafeRedisConsolidator(redis_host="10.9.9.9")
    assert (only_host.redis_host, only_host.redis_port) == ("10.9.9.9", 7000)
    monkeypatch.setenv("REDIS_PORT", "none")
    with pytest.raises(ConfigInvalid):
        SafeRedisConsolidator()


def test_the_given_server_is_the_one_that_is_used(dbs: Databases, monkeypatch: pytest.MonkeyPatch) -> None:
    dbs[2].set("volume_state:1", "x")
    monkeypatch.setenv("REDIS_PORT", "1")
    migrator = SafeRedisConsolidator("127.0.0.1", dbs.port)
    assert migrator.migrate_historical_data()["volume_migrated"] == 1
    assert dbs[1].get("vol:state:1") == b"x"
    migrator.cleanup()


def test_a_server_that_is_not_there_is_an_error_with_a_hint() -> None:
    with pytest.raises(EndpointError):
        SafeRedisConsolidator("127.0.0.1", 1).migrate_historical_data()


# Moving


def test_the_families_beyond_the_tables_of_the_document(migrator: SafeRedisConsolidator, dbs: Databases) -> None:
    dbs[2].set("volume_profile:patterns:NFO:NIFTY:daily", "p")
    for name in ("volume_ratio_ma_5", "atr", "iv", "my_own"):
        dbs[5].set(f"indicators:NFO:NIFTY:{name}", name)
    stats = migrator.migrate_historical_data()
    assert {key.decode(): dbs[1].get(key) for key in dbs[1].keys("*")} == {
        "vol:profile:NFO:NIFTY:daily": b"p",
        "ind:volume:NFO:NIFTY:ratio_ma_5": b"volume_ratio_ma_5",
        "ind:ta:NFO:NIFTY:atr": b"atr",
        "ind:greeks:NFO:NIFTY:iv": b"iv",
        "ind:other:NFO:NIFTY:my_own": b"my_own",
    }
    assert (stats["volume_migrated"], stats["indicators_migrated"]) == (1, 4)


def test_the_limit_is_for_each_step(migrator: SafeRedisConsolidator, dbs: Databases) -> None:
    for i in range(10):
        dbs[2].set(f"volume_state:{i}", i)
        dbs[5].set(f"indicators:S{i}:rsi", i)
        dbs[0].set(f"session:{i}", i)
    stats = migrator.migrate_historical_data(limit=3)
    moved = [stats[f"{step}_migrated"] for step in ("volume", "indicators", "system")]
    assert moved == [3, 3, 3]
    assert stats["total_keys_migrated"] == dbs[1].dbsize() == 9


def test_a_second_run_changes_nothing(migrator: SafeRedisConsolidator, dbs: Databases) -> None:
    dbs[2].rpush("volume_state:1", "a", "b")
    for i in range(1500):
        dbs[2].xadd("ticks:A", {"last_price": 1 + i}, id=f"{T_MS + i}-1")
    dbs[0].hset("tick:B", mapping={"last_price": 5, "timestamp": T_MS})
    first = migrator.migrate_historical_data()
    assert first["total_keys_migrated"] == 3
    before = {key: dbs[1].dump(key) for key in dbs[1].keys("*")}
    second = migrator.migrate_historical_data()
    assert {key: dbs[1].dump(key) for key in dbs[1].keys("*")} == before
    assert (second["total_keys_migrated"], second["errors"]) == (0, 0)
    assert dbs[1].lrange("vol:state:1", 0, -1) == [b"a", b"b"]
    assert dbs[1].xlen("ticks:A") == 1500


def test_streams_keep_ids_and_groups_beyond_a_thousand_entries(migrator: SafeRedisConsolidator, dbs: Databases) -> None:
    for i in range(1200):
        dbs[2].xadd("ticks:A", {"last_price": i + 1}, id=f"{T_MS + i}-1")
    dbs[2].xgroup_create("ticks:A", "g", id="0")
    dbs[2].xreadgroup("g", "c", {"ticks:A": ">"}, count=3)
    migrator.migrate_historical_data()
    assert dbs[1].xrange("ticks:A") == dbs[2].xrange("ticks:A")
    assert dbs[1].xinfo_groups("ticks:A") == dbs[2].xinfo_groups("ticks:A")
    assert dbs[1].xpending("ticks:A", "g") == dbs[2].xpending("ticks:A", "g")


def test_expiry_is_kept_and_not_made_up(migrator: SafeRedisConsolidator, dbs: Databases) -> None:
    dbs[2].set("volume_state:lasting", "x")
    dbs[5].set("indicators:A:rsi", "y", pxat=2_000_000_000_123)
    migrator.migrate_historical_data()
    assert dbs[1].pexpiretime("vol:state:lasting") == -1
    assert dbs[1].pexpiretime("ind:ta:A:rsi") == 2_000_000_000_123


def test_every_type_with_empty_and_binary_values(migrator: SafeRedisConsolidator, dbs: Databases) -> None:
    dbs[5].set("indicators:A:rsi", b"")
    dbs[5].set(b"indicators:A\xff:rsi", b"\xff\xfe\x00")
    dbs[5].hset("indicators:A:macd", mapping={b"\xff": b"", b"x": b"\x80"})
    dbs[5].rpush("indicators:A:ema", "1", "", "1")
    dbs[5].sadd("indicators:A:sma", b"\x80", b"")
    dbs[5].zadd("indicators:A:atr", {b"\x80": -0.1})
    stats = migrator.migrate_historical_data()
    assert (stats["indicators_migrated"], stats["errors"]) == (6, 0)
    for old in dbs[5].keys("*"):  # by digest: the members of a set are in no order, on Redis not even in a copy
        assert digest(dbs[1].dump(old.replace(b"indicators:", b"ind:ta:"))) == digest(dbs[5].dump(old))


def test_a_newer_target_is_kept_and_no_error(migrator: SafeRedisConsolidator, dbs: Databases) -> None:
    dbs[2].set("volume_state:1", "old")
    dbs[1].set("vol:state:1", "newer")
    stats = migrator.migrate_historical_data()
    assert (stats["volume_migrated"], stats["errors"]) == (0, 0)
    assert dbs[1].get("vol:state:1") == b"newer"


def test_ticks_land_on_the_tape_of_the_settings(dbs: Databases, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dbs[2].xadd("ticks:A", {"last_price": 7.5, "volume": 3}, id=f"{T_MS}-0")
    monkeypatch.setenv("ONETAPE_TAPE", str(project / "elsewhere.db"))
    SafeRedisConsolidator().migrate_historical_data()
    assert not (project / "market_data.db").exists()
    with onetape.open(project / "elsewhere.db", mode="r") as tape:
        latest = tape.latest("A")
        assert latest is not None
        assert (latest.price, latest.ts_event_ns) == (7.5, T_MS * 10**6)


@pytest.mark.parametrize("limit", [-1, -100])
def test_a_negative_limit_is_refused(migrator: SafeRedisConsolidator, dbs: Databases, limit: int) -> None:
    dbs[2].set("volume_state:1", "x")
    dbs[2].set("volume_state:2", "x")
    for act in (migrator.migrate_historical_data, lambda limit: migrate_volume_data(2, limit)):
        with pytest.raises(ConfigInvalid, match="limit"):
            act(limit=limit)
    assert migrator.migrate_historical_data(limit=0)["total_keys_migrated"] == 0
    assert dbs[1].dbsize() == 0


# Copying what a glob matches


@pytest.mark.parametrize("source", [5, "5", "indicators"])
def test_redis_copy_takes_names_and_numbers(migrator: SafeRedisConsolidator, dbs: Databases, source: Any) -> None:
    for i in range(3):
        dbs[5].set(f"alpha:{i}", i)
    dbs[5].set("beta:1", "not asked for")
    done = migrator.migrate_with_redis_copy("alpha:*", source, key_transform=lambda key: "new:" + key, verbose=False)
    assert done == {"migrated": 3, "errors": 0, "skipped": 0, "scanned": 3}
    assert {key: dbs[1].get(key) for key in dbs[1].keys("*")} == {b"new:alpha:%d" % i: b"%d" % i for i in range(3)}


def test_redis_copy_keeps_names_targets_and_newer_values(
    migrator: SafeRedisConsolidator, dbs: Databases, capsys: pytest.CaptureFixture[str]
) -> None:
    dbs[2].set("a", "1")
    dbs[2].set("b", "2")
    dbs[7].set("b", "newer")
    done = migrator.migrate_with_redis_copy("*", "volume", target_db=7)
    assert done == {"migrated": 1, "errors": 0, "skipped": 1, "scanned": 2}
    assert dbs[7].mget("a", "b") == [b"1", b"newer"]
    assert "migrated" in capsys.readouterr().out
    assert migrator.migrate_with_redis_copy("a", "volume", 7, None, False)["skipped"] == 1
    assert capsys.readouterr().out == ""


def test_redis_copy_names_a_database_it_does_not_know(migrator: SafeRedisConsolidator) -> None:
    with pytest.raises(ConfigInvalid, match="'orders'") as caught:
        migrator.migrate_with_redis_copy("*", "orders")
    assert "indicators" in caught.value.hint


# Verifying


def test_verification_compares_content_and_has_a_verdict(migrator: SafeRedisConsolidator, dbs: Databases) -> None:
    for i in range(20):
        dbs[2].set(f"volume_state:{i}", i)
    assert migrator.verify_migration()["status"] == "not proven"
    migrator.migrate_historical_data()
    good = migrator.verify_migration()
    assert (good["status"], good["checked"]) == ("converged", 20)
    sample = migrator.verify_data_consistency(sample_size=5)
    assert (sample["status"], sample["checked"]) == ("converged", 5)
    dbs[1].set("vol:state:7", "damaged")
    bad = migrator.verify_migration()
    assert bad["status"] != "converged"
    assert any("vol:state:7" in line for line in bad["differences"] + bad["skips"])


# The rest


def test_dual_write_begins_the_live_migration(migrator: SafeRedisConsolidator, dbs: Databases) -> None:
    dbs[2].set("volume_state:1", "x")
    started = migrator.start_dual_write_migration()
    assert (started["phase"], started["changed"], started["version"]) == ("dual_writing", True, 1)
    assert migrator.start_dual_write_migration()["changed"] is False
    assert dbs[1].get("onetape:migration:trading_system") is not None
    assert migrator.migrate_historical_data()["total_keys_migrated"] == 1
    assert migrator.verify_migration()["status"] == "converged"


def test_every_phase_of_a_live_migration_is_a_phase_of_the_module(
    migrator: SafeRedisConsolidator, dbs: Databases, capsys: pytest.CaptureFixture[str]
) -> None:
    dbs[2].set("volume_state:1", "x")
    dbs[2].close()
    place = ["--redis-host", migrator.redis_host, "--redis-port", str(migrator.redis_port)]

    def run(*args: str) -> int:
        return main(["--phase", *args, *place])

    assert run("cutover", "--execute") == 2
    assert "no live migration" in capsys.readouterr().err
    assert run("dual-write") == 0
    assert "nothing was changed" in capsys.readouterr().out
    for name in ("dual-write", "switch-reads", "cutover", "rollback"):
        if name == "switch-reads":
            assert run("backfill") == run("verify") == 0
        more = ["--volatile-ok", "--force"] if name == "cutover" else []
        assert run(name, "--execute", *more) == 0
    assert run("status") == 0
    assert '"phase": "reads_switched"' in capsys.readouterr().out
    dbs[2].set("volume_state:1", "by a straggler")
    dbs[2].close()
    assert run("verify", "--repair") == 3
    assert "1 new keys differ and would be replaced" in capsys.readouterr().out
    assert run("verify", "--repair", "--execute") == 0
    assert run("pause") == run("resume") == run("throttle", "--set", "keys_per_s=5000") == 0
    assert "keys_per_s = 5000" in capsys.readouterr().out
    assert run("throttle", "--set", "keys=many") == 2
    assert run("why", "--key", "volume_state:1") == 0
    assert "made equal by a repair" in capsys.readouterr().out
    assert run("why", "--key", "nobody's") == 2
    assert run("rollback", "--to", "planned", "--execute") == 0
    assert run("undo", "--execute") == 0
    assert dbs[1].dbsize() == 0
    with pytest.raises(SystemExit):
        run("finish", "--execute")


def test_the_log_tells_what_was_done(migrator: SafeRedisConsolidator, dbs: Databases, project: Path) -> None:
    dbs[2].set("volume_state:1", "x")
    stats = migrator.migrate_historical_data()
    migrator.verify_migration()
    migrator.save_migration_log("log.json")
    log = json.loads((project / "log.json").read_text())
    assert [entry["operation"] for entry in log] == ["migrate_historical_data", "verify_migration"]
    assert log[0]["result"] == stats
    assert log[1]["result"]["status"] == "converged"


def test_cleanup_may_be_repeated_and_the_object_used_again(migrator: SafeRedisConsolidator, dbs: Databases) -> None:
    migrator.cleanup()
    migrator.cleanup()
    assert migrator.migrate_historical_data()["errors"] == 0


# volume_migration


def test_volume_migration_moves_ticks_alone(dbs: Databases, project: Path) -> None:
    dbs[2].set("volume_state:1", "not a tick")
    for symbol in "ABC":
        dbs[2].xadd(f"ticks:{symbol}", {"last_price": 7.5}, id=f"{T_MS}-0")
    dbs[2].hset(f"realtime:A:{T_MS}", mapping={"last_price": 8, "timestamp": T_MS})
    dry = migrate_volume_data(source_db=2, dry_run=True)
    assert (dry["ticks_migrated"], dry["errors"], dbs[1].dbsize()) == (4, 0, 0)
    some = migrate_volume_data(source_db=2, limit=2)
    assert some["ticks_migrated"] == 2
    rest = migrate_volume_data(source_db=2)
    assert (rest["ticks_migrated"], rest["errors"]) == (2, 0)
    assert sorted(dbs[1].keys("*")) == [b"ticks:A", b"ticks:B", b"ticks:C", b"ticks:historical:A"]
    with onetape.open(project / "market_data.db", mode="r") as tape:
        assert [info.ticks for info in tape.symbols()] == [2, 1, 1]


def test_volume_migration_of_the_unified_database_puts_its_ticks_on_the_tape(dbs: Databases, project: Path) -> None:
    dbs[1].xadd("ticks:A", {"last_price": 7.5}, id=f"{T_MS}-0")
    dbs[1].hset("tick:B", mapping={"last_price": 8.5, "timestamp": T_MS})
    before = dbs[1].dump("ticks:A")
    for _ in range(2):
        assert migrate_volume_data()["errors"] == 0
    assert dbs[1].dump("ticks:A") == before
    assert dbs[1].xlen("ticks:historical:B") == 1
    with onetape.open(project / "market_data.db", mode="r") as tape:
        found = [(tick.symbol, tick.price, tick.ts_event_ns) for tick in tape.latest().values()]
        assert found == [("A", 7.5, T_MS * 10**6), ("B", 8.5, T_MS * 10**6)]
        assert tape.stats().ticks == 2


def test_volume_migration_is_a_script_too(dbs: Databases, project: Path, python_path: str) -> None:
    dbs[2].xadd("ticks:A", {"last_price": 7.5}, id=f"{T_MS}-0")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(volume_migration.__file__), "--source-db", "2"],
        env={**os.environ, "PYTHONPATH": python_path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ticks_migrated"] == 1


# The command line


def test_help_is_quick_and_free_of_warnings(python_path: str) -> None:
    fastest = 99.0
    for _ in range(3):
        started = time.monotonic()
        done = command(python_path, "--help")
        fastest = min(fastest, time.monotonic() - started)
        assert (done.returncode, done.stderr) == (0, "")
        for option in ("--phase", "--dry-run", "--limit", "--redis-host", "--redis-port", "historical", "verify"):
            assert option in done.stdout
    imported = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", MODULE, "--help"],
        env={**os.environ, "PYTHONPATH": python_path}, capture_output=True, text=True,
    ).stderr  # fmt: skip
    assert not [name for name in ("numpy", "pyarrow", "redis", "apsw") if f" {name}\n" in imported]
    assert fastest < 5


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ([], "--phase"),
        (["--phase", "nowhere"], "nowhere"),
        (["--phase", "finish", "--execute"], "--yes"),
        (["--phase", "historical", "--limit", "none"], "--limit"),
        (["--phase", "historical", "--limit", "-1"], "--limit"),
        (["--phase", "verify", "--dry-run"], "--dry-run"),
    ],
)
def test_a_wrong_command_is_refused(python_path: str, args: list[str], told: str) -> None:
    done = command(python_path, *args)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_is_not_there_is_one_line_and_not_a_success(project: Path, python_path: str) -> None:
    for phase in ("historical", "verify"):
        done = command(python_path, "--phase", phase, "--redis-host", "127.0.0.1", "--redis-port", "1")
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1


def test_a_key_that_fails_makes_the_exit_code_one_and_the_rest_move(dbs: Databases, python_path: str) -> None:
    dbs[2].set("volume_state:1", "x")
    dbs[2].set("realtime:A:1", "fine: not a hash, so no rule's")
    dbs[2].hset(f"realtime:B:{T_MS}", mapping={"last_price": 5, "timestamp": T_MS})
    dbs[1].set("ticks:historical:B", "in the way: not a stream")
    done = command(python_path, "--phase", "historical", "--redis-port", str(dbs.port), "--redis-host", "127.0.0.1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert dbs[1].get("vol:state:1") == b"x"
    assert dbs[1].get("ticks:historical:B") == b"in the way: not a stream"
