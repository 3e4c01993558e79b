"""A server that runs out of memory, a run killed between two slices, a pause in the middle: what must never be lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import redis
from tests.waiting import waited_for

from onetape.embedded import EmbeddedServer
from onetape.errors import MemoryShort
from onetape.migrate import Endpoint, Migration, Plan
from onetape.migrate.copying.slices import TEMPORARY
from onetape.migrate.phases import state as states
from onetape.migrate.throttling.pace import Pace
from onetape.migrate.throttling.throttle import Settings
from onetape.progress import Progress

BIG = "volume_averages:NFO:BIG"
NEW = b"vol:baseline:NFO:BIG"

_RUN = """
import sys
from onetape.migrate import Migration
Migration(sys.argv[1], ledger_path=sys.argv[2] + "/ledger.db").backfill()
"""


def _big_set(client: redis.Redis, members: int = 200_000) -> None:
    pipe = client.pipeline(transaction=False)
    for i in range(members):
        pipe.sadd(BIG, f"member with some name {i}")
        if i % 10_000 == 0:
            pipe.execute()
    pipe.execute()


def _many(client: redis.Redis, keys: int, value: bytes = b"x" * 1000, expire_s: int | None = None) -> None:
    pipe = client.pipeline(transaction=False)
    for i in range(keys):
        pipe.set(f"indicators:NFO:SYM{i}:rsi", value, ex=expire_s)
    pipe.execute()


def _migration(server: EmbeddedServer, directory: Path, **options: object) -> Migration:
    return Migration(server.url, ledger_path=directory / "ledger.db", **options)  # type: ignore[arg-type]


def _new(server: EmbeddedServer) -> redis.Redis:
    return redis.Redis(port=server.port, db=1)


# Slices


def test_a_set_of_two_hundred_thousand_members_goes_in_slices(server: EmbeddedServer, tmp_path: Path) -> None:
    _big_set(redis.Redis(port=server.port, db=2))
    points: list[str] = []
    report = _migration(server, tmp_path, at=points.append).backfill()
    assert report.totals == {"copied": 1} and report.exit_code == 0
    assert points.count("slicing") > 40
    assert _new(server).scard(NEW) == 200_000
    assert _migration(server, tmp_path).verify(pause_s=0.1).verdict == "converged"
    assert _migration(server, tmp_path).backfill().totals == {"unchanged": 1}
    reasons = _migration(server, tmp_path).why(BIG)
    assert reasons[-1].written is not None and reasons[-1].written[:1] == b"c"


@pytest.mark.parametrize("point", ["slicing:1", "slicing:2", "slicing:30", "intended:1", "acted:1", "recorded:1"])
def test_a_run_killed_between_slices_leaves_nothing_behind_for_the_next(
    server: EmbeddedServer, tmp_path: Path, point: str
) -> None:
    source = redis.Redis(port=server.port, db=2)
    _big_set(source)
    done = subprocess.run(
        [sys.executable, "-c", _RUN, server.url, str(tmp_path)],
        env={**os.environ, "ONETAPE_KILL_AT": point},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    left = list(_new(server).scan_iter(TEMPORARY + b"*"))
    assert all(_new(server).pttl(key) > 0 for key in left)
    assert len(left) == (0 if point in ("slicing:1", "acted:1", "recorded:1") else 1)
    if left:  # a leftover that goes by itself is nothing a verify complains of
        found = _migration(server, tmp_path).verify(pause_s=0.1)
        assert not any(TEMPORARY.decode() in str(difference) for difference in found.differences)
    source.sadd(BIG, "written since")
    report = _migration(server, tmp_path).backfill()
    assert report.exit_code == 0
    assert list(_new(server).scan_iter("onetape:*")) == []
    assert _new(server).scard(NEW) == 200_001
    assert _migration(server, tmp_path).verify(pause_s=0.1).verdict == "converged"


def test_a_server_killed_between_slices_is_asked_again_when_it_is_back(tmp_path: Path) -> None:
    with EmbeddedServer(options={"appendonly": "yes", "appendfsync": "always"}) as server:
        _big_set(redis.Redis(port=server.port, db=2), 60_000)
        killed: list[int] = []

        def kill(point: str) -> None:
            if point == "slicing" and not killed:
                killed.append(1)
                server.kill()
                server.start()

        report = _migration(server, tmp_path, at=kill).backfill()
        assert report.totals == {"copied": 1}
        assert _new(server).scard(NEW) == 60_000
        assert list(_new(server).scan_iter("onetape:*")) == []


# Memory


@pytest.mark.parametrize("policy", ["noeviction", "volatile-lru"])
def test_a_backfill_stops_before_the_limit_and_goes_on_where_it_was(
    fresh_server: EmbeddedServer, tmp_path: Path, policy: str
) -> None:
    client = redis.Redis(port=fresh_server.port, db=5)
    _many(client, 20_000, expire_s=100_000)
    client.config_set("maxmemory-policy", policy)
    used = client.info("memory")["used_memory"]
    eaten: list[bytes] = []

    def eat(_progress: Progress) -> None:  # what fitted when it began no longer does: a live writer took the room
        if not eaten:
            eaten.append(b"x")
            client.config_set("maxmemory", used + 12_000_000)

    with pytest.raises(MemoryShort) as caught:
        _migration(fresh_server, tmp_path).backfill(on_progress=eat)
    assert "raise maxmemory" in caught.value.hint
    stats = client.info("stats")
    assert stats["evicted_keys"] == 0 and client.dbsize() == 20_000
    assert "OOM" not in str(client.info("errorstats"))
    copied = _new(fresh_server).dbsize()
    assert 0 < copied < 20_000
    client.config_set("maxmemory", 0)
    report = _migration(fresh_server, tmp_path).backfill()
    assert report.exit_code == 0
    assert sum(report.totals.values()) == 20_000 and report.totals["unchanged"] >= copied
    assert _new(fresh_server).dbsize() == 20_000


def test_a_big_key_that_would_not_fit_is_not_begun(fresh_server: EmbeddedServer, tmp_path: Path) -> None:
    client = redis.Redis(port=fresh_server.port, db=2)
    _big_set(client)
    client.config_set("maxmemory", client.info("memory")["used_memory"] + 6_000_000)
    points: list[str] = []
    migration = _migration(fresh_server, tmp_path, at=points.append, checks=False)
    with Pace(lambda: Endpoint.connect(fresh_server.url, writable=False)) as pace, pytest.raises(MemoryShort) as caught:
        migration.backfill(pace=pace)
    assert "would not fit" in str(caught.value)
    assert "slicing" not in points and _new(fresh_server).dbsize() == 0


def test_a_server_at_its_limit_between_slices_fails_that_key_alone_and_keeps_no_part(
    fresh_server: EmbeddedServer, tmp_path: Path
) -> None:
    client = redis.Redis(port=fresh_server.port, db=2)
    _big_set(client)
    client.set("volume_state:1", "small")
    limited: list[int] = []

    def limit(point: str) -> None:
        if point == "slicing" and not limited:
            limited.append(1)
            client.config_set("maxmemory", client.info("memory")["used_memory"] + 1_000_000)

    report = _migration(fresh_server, tmp_path, at=limit, checks=False).backfill()
    assert report.totals == {"copied": 1, "failed": 1} and report.exit_code == 1
    assert "OOM" in report.errors[0].error
    assert _new(fresh_server).keys() == [b"vol:state:1"]
    client.config_set("maxmemory", 0)
    assert _migration(fresh_server, tmp_path).backfill().exit_code == 0
    assert _new(fresh_server).scard(NEW) == 200_000


# The pace


def test_an_operator_s_pause_stands_a_run_still_and_resume_lets_it_go_on(
    fresh_server: EmbeddedServer, tmp_path: Path
) -> None:
    client = redis.Redis(port=fresh_server.port, db=5)
    _many(client, 30_000, b"x")
    plan = Plan.load()
    _migration(fresh_server, tmp_path).start(execute=True)
    with Endpoint.connect(fresh_server.url) as endpoint:
        begun = states.change(endpoint, plan, 1, throttle={"keys_per_s": 8000})
    told: list[str] = []
    counts: list[int] = []

    def operate() -> None:
        with Endpoint.connect(fresh_server.url) as endpoint:
            waited_for(lambda: _new(fresh_server).dbsize() > 500, "the backfill begins")
            paused = states.change(endpoint, plan, begun.version, paused=True, reason="lunch")
            waited_for(lambda: any("lunch" in reason for reason in told), "the pause is heeded")
            counts.append(_new(fresh_server).dbsize())
            time.sleep(1.5)
            counts.append(_new(fresh_server).dbsize())
            states.change(endpoint, plan, paused.version, paused=False, throttle={})

    operator = threading.Thread(target=operate)
    operator.start()
    with Pace(lambda: Endpoint.connect(fresh_server.url, writable=False), plan) as pace:
        report = _migration(fresh_server, tmp_path).backfill(
            pace=pace, digests="copy", on_progress=lambda progress: told.append(str(progress.reason))
        )
    operator.join()
    assert report.totals == {"copied": 30_000}
    assert 0 < counts[0] == counts[1] < 30_000
    assert any(reason.startswith("paused: by ") and "lunch" in reason for reason in told)
    assert any("8,000 keys/s" in reason for reason in told)
    assert report.throttled["paused"] > 1.0 and report.throttled["rate"] > 0.3


def test_limits_of_keys_and_bytes_are_kept(fresh_server: EmbeddedServer, tmp_path: Path) -> None:
    _many(redis.Redis(port=fresh_server.port, db=5), 2000, b"x")
    began_s = time.monotonic()
    report = _migration(fresh_server, tmp_path).backfill(throttle=Settings(keys_per_s=1000.0))
    assert time.monotonic() - began_s > 1.8
    assert report.totals == {"copied": 2000} and set(report.throttled) == {"rate"}
    _big_set(redis.Redis(port=fresh_server.port, db=2))  # about 14 MB
    began_s = time.monotonic()
    report = _migration(fresh_server, tmp_path).backfill(throttle=Settings(bytes_per_s=4_000_000.0))
    assert time.monotonic() - began_s > 0.8
    assert report.totals["copied"] == 1 and report.throttled["rate"] > 0.5


def test_the_latency_of_others_is_measured_by_a_program_that_ends_with_us(
    fresh_server: EmbeddedServer, tmp_path: Path
) -> None:
    _many(redis.Redis(port=fresh_server.port, db=5), 3000, b"x")
    clients: list[int] = []

    def look(_progress: Progress) -> None:
        clients.append(len(redis.Redis(port=fresh_server.port).client_list()))

    settings = Settings(latency_ms=1000.0, latency_times=1000.0)
    report = _migration(fresh_server, tmp_path).backfill(throttle=settings, on_progress=look)
    assert report.totals == {"copied": 3000}
    assert report.throttled["latency"] > 0.5  # what is quiet was measured before anything was sent
    deadline = time.monotonic() + 60
    while (left := len(redis.Redis(port=fresh_server.port).client_list())) > 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left <= 2


def test_a_server_that_is_away_for_a_moment_does_not_end_the_pace(tmp_path: Path) -> None:
    with EmbeddedServer() as server:
        settings = Settings(latency_ms=1000.0)
        with Pace(lambda: Endpoint.connect(server.url, writable=False), throttle=settings) as pace:
            pace.wait(1)
            server.kill()
            time.sleep(0.6)
            pace.wait(1)
            server.start()
            for _ in range(6):
                time.sleep(0.3)
                pace.wait(1)
            assert pace._latency is not None and pace._latency.p99_ms() is not None
