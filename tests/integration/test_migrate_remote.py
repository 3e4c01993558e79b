"""Another server as the target: every type over, newer data kept, writers racing, kills, and every pair of servers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from tests.legacy_keys import clients, content, fill, new_name
from tests.other_servers import binary

import onetape
from onetape.embedded import EmbeddedServer
from onetape.errors import LedgerUnusable, PreflightRefused
from onetape.migrate import Migration
from onetape.migrate.plans.plan import Plan

PAIRS = [
    ("redis6", "redis6"),
    ("redis6", "redis"),
    ("redis", "redis"),
    ("redis", "valkey8"),
    ("redis", "valkey"),
    ("redis6", "redis8"),
    ("redis", "redis8"),
    ("valkey8", "valkey"),
    ("valkey", "valkey"),
    ("redis8", "redis8"),
]
REFUSED = [("valkey", "redis"), ("redis8", "valkey"), ("redis8", "redis"), ("valkey", "redis8"), ("redis", "redis6")]


@pytest.fixture
def pair() -> Iterator[tuple[EmbeddedServer, EmbeddedServer]]:
    with EmbeddedServer(binary("redis")) as source, EmbeddedServer(binary("valkey")) as target:
        yield source, target


def _migration(source: EmbeddedServer, target: EmbeddedServer, folder: Path, **more: object) -> Migration:
    return Migration(source.url, target_url=target.url, ledger_path=folder / "ledger.db", **more)  # type: ignore[arg-type]


def _differences(source: EmbeddedServer, target: EmbeddedServer) -> list[str]:
    """Every source key whose place on the other server does not hold the same, by a look that trusts nobody."""
    found, merged = [], 0
    there = redis.Redis(port=target.port, db=1)
    for db in (0, 2, 5):
        here = redis.Redis(port=source.port, db=db)
        for key in here.scan_iter(count=1000):
            name = new_name(db, key)
            if name is None:
                merged += 1
            elif content(here, key) != content(there, name):
                found.append(f"{db} {key!r}: {content(here, key)} != {content(there, name)}")
    streams = sum(there.xlen(f"ticks:historical:NFO:H{s}") for s in range(5))
    return found if merged == streams else [*found, f"{streams} merged ticks of {merged}"]


def test_every_type_goes_to_another_server_and_again_changes_nothing(
    pair: tuple[EmbeddedServer, EmbeddedServer], tmp_path: Path
) -> None:
    source, target = pair
    fill(clients(source.port))
    with onetape.open(tmp_path / "tape.db") as tape:
        migration = _migration(source, target, tmp_path, tape=tape)
        dry = migration.backfill(dry_run=True)
        assert redis.Redis(port=target.port, db=1).dbsize() == 0
        report = migration.backfill()
        assert report.exit_code == 0 and report.totals == dry.totals == {"copied": 888}
        assert _differences(source, target) == []
        assert redis.Redis(port=source.port, db=1).dbsize() == 0, "nothing may be written on the source's server"
        assert migration.verify(pause_s=0.1).verdict == "converged"
        assert migration.backfill().totals == {"unchanged": 888}
        assert len(tape.read("NFO:S1", "2023-01-01", "2024-01-01")) == 60


def test_what_moved_on_follows_and_what_is_newer_is_kept(
    pair: tuple[EmbeddedServer, EmbeddedServer], tmp_path: Path
) -> None:
    source, target = pair
    old, new = clients(source.port), redis.Redis(port=target.port, db=1)
    fill(old)
    migration = _migration(source, target, tmp_path)
    migration.backfill()
    old[5].set("indicators:NFO:SYM0:rsi", "moved on")
    old[2].hset("volume_state:3", "more", "1")
    old[0].set("session:4", "old side")
    new.set("sys:session:4", "newer side")
    new.delete("sys:session:5")
    assert migration.backfill(dry_run=True).totals == {"copied": 3, "unchanged": 884, "newer_target_kept": 1}
    assert migration.backfill().totals == {"copied": 3, "unchanged": 884, "newer_target_kept": 1}
    assert new.get("ind:ta:NFO:SYM0:rsi") == b"moved on" and new.get("sys:session:4") == b"newer side"
    assert new.get("sys:session:5") == b"s5", "what somebody deleted over there is copied again"
    assert migration.verify(pause_s=0.1).verdict == "converged with listed skips"


def test_a_value_that_the_target_encodes_otherwise_is_still_known_as_ours(tmp_path: Path) -> None:
    # The source keeps all of them in tables, the target packs them: their DUMPs have nothing in common.
    tables = {"hash-max-listpack-entries": "0", "zset-max-listpack-entries": "0", "list-max-listpack-size": "1"}
    with (
        EmbeddedServer(binary("redis"), tables) as source,
        EmbeddedServer(binary("redis"), {"set-max-intset-entries": "0"}) as target,
    ):
        old, new = clients(source.port), redis.Redis(port=target.port, db=1)
        fill(old, 20)
        migration = _migration(source, target, tmp_path)
        assert set(migration.backfill().totals) == {"copied"}
        assert _differences(source, target) == []
        assert migration.verify(pause_s=0.1).verdict == "converged"
        assert set(migration.backfill().totals) == {"unchanged"}
        old[2].hset("volume_state:3", "more", "1")
        old[0].sadd("system:3", 77)
        assert migration.backfill().totals["copied"] == 2
        assert new.hget("vol:state:3", "more") == b"1" and new.sismember("sys:system:3", 77)
        # A ledger that was lost: equal contents are recognised, not taken for somebody else's.
        (tmp_path / "ledger.db").unlink()
        assert set(migration.backfill().totals) == {"unchanged"}
        old[2].hset("volume_state:4", "more", "1")
        assert migration.backfill().totals["copied"] == 1


def test_a_key_that_expires_at_the_instant_is_neither_made_nor_kept(
    pair: tuple[EmbeddedServer, EmbeddedServer], tmp_path: Path
) -> None:
    source, target = pair
    old, new = redis.Redis(port=source.port, db=5), redis.Redis(port=target.port, db=1)
    now_ms = int(time.time() * 1000)
    pipeline = old.pipeline(transaction=False)
    for i in range(3000):
        pipeline.set(f"indicators:E{i}:rsi", "x" * 50, pxat=now_ms + 150 + i // 6)
    pipeline.execute()
    report = _migration(source, target, tmp_path, checks=False).backfill()
    assert report.exit_code == 0 and set(report.totals) <= {"copied", "expired"}
    time.sleep(0.8)
    assert [key for key in new.scan_iter() if new.exists(key)] == []


def test_a_clock_that_is_ahead_over_there_deletes_nothing_it_should_not(
    pair: tuple[EmbeddedServer, EmbeddedServer], tmp_path: Path
) -> None:
    """RESTORE with a time that is past does nothing, with REPLACE it deletes: only what was ours may so go."""
    source, target = pair
    old, new = redis.Redis(port=source.port, db=5), redis.Redis(port=target.port, db=1)
    old.set("indicators:A:rsi", "1")
    old.set("indicators:B:rsi", "1")
    migration = _migration(source, target, tmp_path)
    migration.backfill()
    new.set("ind:ta:B:rsi", "a live writer's")
    for key in ("indicators:A:rsi", "indicators:B:rsi"):
        old.set(key, "2", px=40)
    time.sleep(0.06)
    assert migration.backfill().exit_code == 0
    assert new.get("ind:ta:B:rsi") == b"a live writer's" and new.get("ind:ta:A:rsi") == b"1"


@pytest.mark.parametrize("side", ["old", "new"])
def test_writers_that_race_every_batch_lose_nothing(
    pair: tuple[EmbeddedServer, EmbeddedServer], tmp_path: Path, side: str
) -> None:
    source, target = pair
    old, new = redis.Redis(port=source.port, db=5), redis.Redis(port=target.port, db=1)
    pipeline = old.pipeline(transaction=False)
    for i in range(3000):
        pipeline.set(f"indicators:S{i}:rsi", "0")
    pipeline.execute()
    done, last = threading.Event(), {}

    def write() -> None:
        client = redis.Redis(port=(source if side == "old" else target).port, db=5 if side == "old" else 1)
        n = 0
        while not done.is_set():
            n += 1
            name = (n * 37) % 3000
            client.set(f"indicators:S{name}:rsi" if side == "old" else f"ind:ta:S{name}:rsi", f"w{n}")
            last[name] = f"w{n}"

    thread = threading.Thread(target=write)
    thread.start()
    migration = _migration(source, target, tmp_path)
    report = migration.backfill()
    done.set()
    thread.join()
    assert report.exit_code in (0, 1) and last
    migration.backfill()
    for name, value in last.items():
        assert new.get(f"ind:ta:S{name}:rsi") == value.encode()
    assert new.dbsize() == 3000
    if side == "old":
        assert migration.verify(pause_s=0.1).verdict == "converged"


_RUN = """
import sys, onetape
from onetape.migrate import Migration
with onetape.open(sys.argv[3] + "/tape.db") as tape:
    Migration(sys.argv[1], target_url=sys.argv[2], ledger_path=sys.argv[3] + "/ledger.db", tape=tape).backfill()
"""


@pytest.mark.parametrize(
    "point", [*(f"{p}:{n}" for p in ("read", "intended", "acted", "recorded") for n in (1, 2, 4)), "merged:2"]
)
@pytest.mark.parametrize("packed", [False, True], ids=["equal", "reencoded"])
def test_a_run_after_a_kill_converges_on_the_other_server(tmp_path: Path, point: str, packed: bool) -> None:
    options = {"hash-max-listpack-entries": "0", "set-max-intset-entries": "0"} if packed else {}
    with EmbeddedServer(binary("redis"), options) as source, EmbeddedServer(binary("redis")) as target:
        old = clients(source.port)
        fill(old, 600)
        done = subprocess.run(
            [sys.executable, "-c", _RUN, source.url, target.url, str(tmp_path)],
            env={**os.environ, "ONETAPE_KILL_AT": point},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
        old[5].set("indicators:NFO:SYM7:unheard_of", "moved on")
        with onetape.open(tmp_path / "tape.db") as tape:
            migration = _migration(source, target, tmp_path, tape=tape)
            report = migration.backfill()
            assert report.exit_code == 0, report.errors
            assert _differences(source, target) == []
            assert migration.verify(pause_s=0.1).verdict == "converged"
            assert set(migration.backfill().totals) == {"unchanged"}


def test_a_ledger_belongs_to_one_pair_of_servers(pair: tuple[EmbeddedServer, EmbeddedServer], tmp_path: Path) -> None:
    source, target = pair
    redis.Redis(port=source.port, db=5).set("indicators:A:rsi", "1")
    _migration(source, target, tmp_path).backfill()
    with pytest.raises(LedgerUnusable, match="another server"):
        Migration(source.url, ledger_path=tmp_path / "ledger.db").backfill()
    with EmbeddedServer(binary("valkey")) as third, pytest.raises(LedgerUnusable, match="another server"):
        _migration(source, third, tmp_path).backfill()


def test_names_and_database_may_stay_as_they_are(pair: tuple[EmbeddedServer, EmbeddedServer], tmp_path: Path) -> None:
    source, target = pair
    old, new = redis.Redis(port=source.port), redis.Redis(port=target.port)
    old.set("a:1", "one")
    old.set(b"a:\xff", b"\x00\x01")
    plan = Plan.parse(
        'name = "same"\ntarget_db = 0\ntimezone = "UTC"\n[[rule]]\nstep = "all"\nsource_db = 0\npattern = "a:{x}"\n'
    )
    migration = _migration(source, target, tmp_path, plan=plan)
    assert migration.backfill().totals == {"copied": 2}
    assert new.get("a:1") == b"one" and new.get(b"a:\xff") == b"\x00\x01"
    old.set("a:1", "two")
    assert migration.verify(pause_s=0.05).exit_code == 3
    assert migration.backfill().totals == {"copied": 1, "unchanged": 1}
    assert migration.verify(pause_s=0.05).verdict == "converged"


@pytest.mark.parametrize("names", PAIRS, ids="-to-".join)
def test_each_server_gives_and_each_newer_one_takes(tmp_path: Path, names: tuple[str, str]) -> None:
    with EmbeddedServer(binary(names[0])) as source, EmbeddedServer(binary(names[1])) as target:
        old, new = clients(source.port), redis.Redis(port=target.port, db=1)
        if names[0] == "redis6":
            _fill_before_7(old)
        else:
            fill(old, 40)
        expires_ms = int(time.time() * 1000) + 600_000
        old[5].set("indicators:X:rsi", "x")
        old[5].execute_command("PEXPIREAT", "indicators:X:rsi", expires_ms)
        has_fields = names[0] in ("valkey", "redis8")
        if has_fields:
            old[2].hset("volume_state:ttl", mapping={"stays": 1, "goes": 2})
            old[2].execute_command("HPEXPIREAT", "volume_state:ttl", expires_ms, "FIELDS", 1, "goes")
        migration = _migration(source, target, tmp_path)
        report = migration.backfill()
        assert report.exit_code == 0 and set(report.totals) == {"copied"}, report.errors
        result = migration.verify(pause_s=0.1)
        assert result.verdict == "converged", result.differences
        left_ms = new.pttl("ind:ta:X:rsi") + time.time() * 1000
        assert abs(left_ms - expires_ms) < 100
        if has_fields:
            times = new.execute_command("HPEXPIRETIME", "vol:state:ttl", "FIELDS", 2, "stays", "goes")
            assert times == [-1, expires_ms]
        assert set(migration.backfill().totals) == {"unchanged"}


def _fill_before_7(old: dict[int, redis.Redis]) -> None:
    for i in range(30):
        old[5].set(f"indicators:S{i}:rsi", i, px=3_600_000 + i)
        old[2].hset(f"volume_state:{i}", mapping={"total": i, "text": "x" * i})
        old[2].rpush(f"volume_averages:S{i}", *range(i + 1))
        old[2].zadd(f"volume_profile:patterns:S{i}:5", {"a": i / 3, "b": 2})
        old[0].sadd(f"system:{i}", *range(i + 1), "x")
    for i in range(20):
        old[0].xadd("ticks:S", {"last_price": i + 1, "volume": 1}, id=f"{1_700_000_000_000 + i}-0")
    old[0].xdel("ticks:S", "1700000000019-0")
    old[0].xgroup_create("ticks:S", "readers", id="0")
    old[0].xreadgroup("readers", "one", {"ticks:S": ">"}, count=5)


@pytest.mark.parametrize("names", REFUSED, ids="-to-".join)
def test_values_that_the_target_cannot_read_are_refused_beforehand(tmp_path: Path, names: tuple[str, str]) -> None:
    with EmbeddedServer(binary(names[0])) as source, EmbeddedServer(binary(names[1])) as target:
        redis.Redis(port=source.port, db=5).set("indicators:A:rsi", "1")
        with pytest.raises(PreflightRefused, match="refuses values of RDB version"):
            _migration(source, target, tmp_path).backfill()
        assert redis.Redis(port=target.port, db=1).dbsize() == 0
        assert redis.Redis(port=target.port, db=0).dbsize() == 0


def test_one_server_of_each_kind_moves_keys_within_itself(tmp_path: Path) -> None:
    for name in ("redis6", "valkey8", "redis8"):
        with EmbeddedServer(binary(name)) as server:
            old = clients(server.port)
            _fill_before_7(old)
            folder = tmp_path / name
            folder.mkdir()
            migration = Migration(server.url, ledger_path=folder / "ledger.db")
            assert set(migration.backfill().totals) == {"copied"}
            result = migration.verify(pause_s=0.1)
            assert result.verdict == "converged", (name, result.differences)
            assert set(migration.backfill().totals) == {"unchanged"}, name
