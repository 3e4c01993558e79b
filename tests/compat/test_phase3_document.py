"""phase3_historical_data_migration.md: every code block and command runs as printed, and moves what its tables say."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis

from onetape.embedded import EmbeddedServer

# The document's code blocks, in its order, as (language, text).

BASIC = """\
from trading_system.storage.data_migrator import SafeRedisConsolidator

# Initialize migrator
migrator = SafeRedisConsolidator()

# Migrate all historical data
stats = migrator.migrate_historical_data()
"""

DRY_RUN = """\
# Test migration without writing
stats = migrator.migrate_historical_data(dry_run=True, limit=100)
"""

COMMANDS = """\
# Run historical migration
python -m trading_system.storage.data_migrator --phase historical

# Dry run with limit
python -m trading_system.storage.data_migrator --phase historical --dry-run --limit 100

# Verify migration
python -m trading_system.storage.data_migrator --phase verify
"""

STATISTICS = """\
{
    'start_time': '2025-01-XX...',
    'end_time': '2025-01-XX...',
    'dry_run': False,
    'volume_migrated': 1234,
    'indicators_migrated': 567,
    'system_migrated': 89,
    'historical_ticks_migrated': 10000,
    'ohlc_migrated': 234,
    'baseline_migrated': 56,
    'errors': 0,
    'total_keys_migrated': 11180
}
"""

BLOCKS = [("python", BASIC), ("python", DRY_RUN), ("bash", COMMANDS), ("python", STATISTICS)]

DOCUMENT = Path(__file__).resolve().parents[3] / "shared" / "predecessors" / "phase3_historical_data_migration.md"

# Its key mappings, filled in: (database, old key, new key). {symbol} also as one with a colon.

MAPPINGS = [
    (2, "volume_state:256265", "vol:state:256265"),
    (2, "volume_averages:RELIANCE", "vol:baseline:RELIANCE"),
    (2, "volume_averages:NFO:NIFTY25NOVFUT", "vol:baseline:NFO:NIFTY25NOVFUT"),
    (5, "indicators:RELIANCE:rsi", "ind:ta:RELIANCE:rsi"),
    (5, "indicators:NFO:NIFTY25NOVFUT:rsi", "ind:ta:NFO:NIFTY25NOVFUT:rsi"),
    (5, "indicators:RELIANCE:macd", "ind:ta:RELIANCE:macd"),
    (5, "indicators:RELIANCE:delta", "ind:greeks:RELIANCE:delta"),
    (5, "indicators:RELIANCE:gamma", "ind:greeks:RELIANCE:gamma"),
    (5, "indicators:NFO:NIFTY25NOVFUT:delta", "ind:greeks:NFO:NIFTY25NOVFUT:delta"),
    (5, "indicators:RELIANCE:volume_ratio", "ind:volume:RELIANCE:ratio"),
    (5, "indicators:NFO:NIFTY25NOVFUT:volume_ratio", "ind:volume:NFO:NIFTY25NOVFUT:ratio"),
    (0, "session:2025-01-15", "sys:session:2025-01-15"),
    (0, "system:config:limits", "sys:system:config:limits"),
    (0, "health:feed", "sys:health:feed"),
    (2, "ohlc_latest:RELIANCE", "ohlc_latest:RELIANCE"),
    (2, "ohlc:RELIANCE", "ohlc:RELIANCE"),
    (2, "ohlc_stats:RELIANCE", "ohlc_stats:RELIANCE"),
    (2, "volume:baseline:RELIANCE", "volume:baseline:RELIANCE"),
]

TICK_MS = 1_736_926_200_000  # 2025-01-15 07:30 UTC, in ms
STREAM_TICKS, HASH_TICKS = 250, 20


class Legacy:
    """The old system: databases 0, 2 and 5 of a server, filled, and what must be in database 1 afterwards."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.expected: dict[bytes, tuple[bytes, int]] = {}
        for db, old, new in MAPPINGS:
            self._put(db, old, new)
        ticks = self.db(2)
        for i in range(STREAM_TICKS):
            fields: dict[Any, Any] = {"last_price": 2500 + i / 4, "volume": 10 + i}
            ticks.xadd("ticks:RELIANCE", fields, id=f"{TICK_MS + i * 1000}-0")
        ticks.xgroup_create("ticks:RELIANCE", "strategies", id="0")
        ticks.xreadgroup("strategies", "one", {"ticks:RELIANCE": ">"}, count=7)
        for i in range(HASH_TICKS):
            moment = TICK_MS + i * 1000 + 500
            ticks.hset(f"realtime:NFO:NIFTY25NOVFUT:{moment}", mapping={"last_price": 23000 + i, "timestamp": moment})
        last = {"last_price": 2600.5, "timestamp": TICK_MS + 10**6}
        self.db(0).hset("tick:RELIANCE", mapping=last)

    def _put(self, db: int, old: str, new: str) -> None:
        client, kind = self.db(db), len(self.expected) % 5
        if old.startswith(("ohlc_latest:", "ohlc:")):
            client.hset(old, mapping={"open": 1, "high": 4, "low": 0.5, "close": 2, "volume": 9, "timestamp": TICK_MS})
        elif kind == 0:
            client.set(old, b"\xff\x00 binary", px=5_000_000)
        elif kind == 1:
            client.hset(old, mapping={"v": "", "\xff": b"\x80"})
        elif kind == 2:
            client.rpush(old, "b", "a", "a")
        elif kind == 3:
            client.zadd(old, {"x": 1.5, "y": -2})
        else:
            client.set(old, b"")
        self.expected[new.encode()] = (client.dump(old), client.pexpiretime(old))

    def db(self, number: int) -> redis.Redis:
        return redis.Redis(port=self._port, db=number)

    def sources(self) -> dict[tuple[int, bytes], tuple[bytes, int]]:
        """Return every source key's dump and expiry."""
        found = {}
        for number in (0, 2, 5):
            client = self.db(number)
            for key in client.keys("*"):
                found[number, key] = (client.dump(key), client.pexpiretime(key))
        return found

    def check_moved(self) -> None:
        """Check that each key of the mapping tables is under its new name, byte for byte, with its exact expiry."""
        new = self.db(1)
        moved = {key: (new.dump(key), new.pexpiretime(key)) for key in self.expected}
        assert moved == self.expected
        assert new.xlen("ticks:RELIANCE") == STREAM_TICKS
        assert new.xinfo_groups("ticks:RELIANCE") == self.db(2).xinfo_groups("ticks:RELIANCE")
        assert new.xlen("ticks:historical:NFO:NIFTY25NOVFUT") == HASH_TICKS
        assert new.xlen("ticks:historical:RELIANCE") == 1

    def check_stats(self, stats: dict[str, Any], *, dry_run: bool = False) -> None:
        """Check that the statistics have the documented keys in their order and types, and count this layout."""
        documented = ast.literal_eval(STATISTICS)
        assert list(stats) == list(documented)
        assert {name: type(value) for name, value in stats.items()} == {n: type(v) for n, v in documented.items()}
        for name in ("start_time", "end_time"):
            assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", stats[name])
        assert stats["start_time"] <= stats["end_time"]
        counts = {name: value for name, value in stats.items() if not name.endswith("_time")}
        assert counts == {
            "dry_run": dry_run,
            "volume_migrated": 3,
            "indicators_migrated": 8,
            "system_migrated": 3,
            "historical_ticks_migrated": 1 + HASH_TICKS + 1,
            "ohlc_migrated": 3,
            "baseline_migrated": 1,
            "errors": 0,
            "total_keys_migrated": 18 + 1 + HASH_TICKS + 1,
        }


@pytest.fixture
def legacy(server: EmbeddedServer, project: Path, monkeypatch: pytest.MonkeyPatch) -> Legacy:
    """A filled old system, found by REDIS_HOST and REDIS_PORT, and an empty project folder as working directory."""
    monkeypatch.setenv("REDIS_HOST", "127.0.0.1")
    monkeypatch.setenv("REDIS_PORT", str(server.port))
    return Legacy(server.port)


def run(command: str, python_path: str) -> subprocess.CompletedProcess[str]:
    """Run a documented command line with the Python of this test as `python`."""
    words = command.split()
    assert words[0] == "python"
    env = {**os.environ, "PYTHONPATH": python_path}
    return subprocess.run([sys.executable, *words[1:]], env=env, capture_output=True, text=True, timeout=60)


def commands() -> list[str]:
    return [line for line in COMMANDS.splitlines() if line and not line.startswith("#")]


def test_the_blocks_under_test_are_those_of_the_document() -> None:
    if not DOCUMENT.exists():
        pytest.skip(f"no {DOCUMENT}: the blocks below are not compared with it")
    found = re.findall(r"^```(\w*)\n(.*?)^```$", DOCUMENT.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert found == BLOCKS


def test_every_mapping_of_the_document_is_under_test() -> None:
    if not DOCUMENT.exists():
        pytest.skip(f"no {DOCUMENT}: the mappings below are not compared with it")
    text = DOCUMENT.read_text("utf-8")
    for old, new in re.findall(r"`([^`]+)` → `([^`]+)`", text):
        pattern = (re.escape(old), re.escape(new))
        for part in (r"\{symbol\}", r"\{token\}", r"\*"):
            pattern = (pattern[0].replace(re.escape(part.replace("\\", "")), ".+"),
                       pattern[1].replace(re.escape(part.replace("\\", "")), ".+"))  # fmt: skip
        assert [m for m in MAPPINGS if re.fullmatch(pattern[0], m[1]) and re.fullmatch(pattern[1], m[2])], old


def test_the_basic_usage_moves_everything(legacy: Legacy) -> None:
    before = legacy.sources()
    names: dict[str, Any] = {}
    exec(BASIC, names)
    legacy.check_stats(names["stats"])
    legacy.check_moved()
    assert legacy.sources() == before
    names["migrator"].cleanup()


def test_the_dry_run_writes_nothing(legacy: Legacy, project: Path) -> None:
    from trading_system.storage.data_migrator import SafeRedisConsolidator

    with_migrator: dict[str, Any] = {"migrator": SafeRedisConsolidator()}
    before = legacy.sources()
    exec(DRY_RUN, with_migrator)
    legacy.check_stats(with_migrator["stats"], dry_run=True)
    assert legacy.db(1).dbsize() == 0
    assert legacy.sources() == before
    with_migrator["migrator"].cleanup()


def test_the_python_blocks_run_one_after_the_other_in_one_session(legacy: Legacy) -> None:
    names: dict[str, Any] = {}
    exec(BASIC, names)
    exec(DRY_RUN, names)
    assert names["stats"]["dry_run"] is True
    assert names["stats"]["errors"] == 0
    legacy.check_moved()
    names["migrator"].cleanup()


def test_the_command_lines_run_in_the_order_printed(legacy: Legacy, project: Path, python_path: str) -> None:
    historical, dry_run, verify = commands()
    done = run(historical, python_path)
    assert done.returncode == 0, done.stderr
    legacy.check_moved()
    moved = {key: legacy.db(1).dump(key) for key in legacy.db(1).keys("*")}

    done = run(dry_run, python_path)
    assert done.returncode == 0, done.stderr
    assert {key: legacy.db(1).dump(key) for key in legacy.db(1).keys("*")} == moved

    done = run(verify, python_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "converged" in done.stdout


def test_the_shell_block_runs_as_one_script(legacy: Legacy, tmp_path: Path, python_path: str) -> None:
    shims = tmp_path / "shims"
    shims.mkdir()
    (shims / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (shims / "python").chmod(0o755)
    env = {**os.environ, "PYTHONPATH": python_path, "PATH": f"{shims}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["/bin/sh", "-e", "-c", COMMANDS], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("converged")
    legacy.check_moved()


def test_a_dry_run_command_before_the_migration_writes_nothing(legacy: Legacy, python_path: str) -> None:
    done = run(commands()[1], python_path)
    assert done.returncode == 0, done.stderr
    assert legacy.db(1).dbsize() == 0


def test_verify_before_the_migration_is_not_a_success(legacy: Legacy, python_path: str) -> None:
    done = run(commands()[2], python_path)
    assert done.returncode == 1
    assert "not proven" in done.stdout


def test_the_report_is_json_with_a_timestamp_in_its_name(legacy: Legacy, project: Path, python_path: str) -> None:
    assert run(commands()[0], python_path).returncode == 0
    reports = [path for path in project.rglob("*.json") if re.search(r"\d{8}[T_-]?\d{6}", path.name)]
    assert reports
    assert all(json.loads(path.read_text()) for path in reports)


def test_the_printed_statistics_are_a_dictionary() -> None:
    stats = ast.literal_eval(STATISTICS)
    migrated = [value for name, value in stats.items() if name.endswith("_migrated") and name != "total_keys_migrated"]
    assert sum(migrated) == 12_180  # its total says 11,180: a slip of the document; ours is the sum
