"""The mirror under fire: killed anywhere, cut off, raced, its server gone. Nothing lost, nothing overwritten."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from tests import mirroring as m

from onetape.embedded import EmbeddedServer

_RUN = """
import signal, sys, threading
sys.path.insert(0, sys.argv[3])
from tests import mirroring as m
from onetape.migrate.mirror import Mirror, Options
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
place = sys.argv[2]
Mirror(sys.argv[1], m.PLAN, place + "/memory", ledger_path=place + "/ledger",
       options=Options(sweep_every_s=0.3, once=len(sys.argv) > 4)).run(stop)
"""
ROOT = Path(__file__).resolve().parents[2]


def process(url: str, place: Path, *, kill_at: str = "", once: bool = False) -> subprocess.Popen[bytes]:
    args = [sys.executable, "-P", "-c", _RUN, url, str(place), str(ROOT), *(["once"] if once else [])]
    return subprocess.Popen(args, env={**os.environ, "ONETAPE_KILL_AT": kill_at})


def random_write(client: redis.Redis, rng: random.Random, keys: int) -> None:
    """One write such as an old system makes, of a kind that its key's type allows."""
    n = rng.randrange(keys)
    key, kind = f"old:{n}", n % 6
    act = rng.random()
    if act < 0.06:
        client.delete(key)
    elif act < 0.1:
        client.pexpire(key, rng.choice([1, 5, 50, 5_000_000]))
    elif act < 0.12:
        client.persist(key)
    elif act < 0.14 and client.exists(key):
        client.execute_command("COPY", key, f"old:{n + 6 * keys}", "REPLACE")
        client.rename(f"old:{n + 6 * keys}", key)
    elif kind == 0:
        client.set(key, rng.randbytes(rng.randrange(40)))
    elif kind == 1:
        client.hset(key, f"f{rng.randrange(9)}", rng.randrange(99))
    elif kind == 2:
        client.rpush(key, rng.randrange(99)) if rng.random() < 0.7 else client.lpop(key)
    elif kind == 3:
        client.sadd(key, rng.randrange(99)) if rng.random() < 0.7 else client.spop(key)
    elif kind == 4:
        client.zincrby(key, rng.random(), rng.randrange(9))
    else:
        client.xadd(key, {"a": rng.randrange(99)}, maxlen=50)


@contextmanager
def storm(port: int, seed: int, keys: int = 60, writers: int = 2) -> Iterator[threading.Event]:
    """Writers of old names at work until the body is over; the set event stops them earlier."""
    done = threading.Event()

    def write(number: int) -> None:
        rng = random.Random(f"{seed} {number}")
        client = redis.Redis(port=port, db=5)
        while not done.is_set():
            try:
                random_write(client, rng, keys)
            except redis.ConnectionError:
                time.sleep(0.05)
            except redis.ResponseError:
                pass
            time.sleep(0.0003)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    try:
        yield done
    finally:
        done.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("seed", [1, 2])
def test_after_a_storm_of_writers_both_sides_are_equal_within_one_sweep(
    server: EmbeddedServer, tmp_path: Path, seed: int
) -> None:
    m.begin(server.url)
    with m.mirroring(server.url, tmp_path) as running:
        with storm(server.port, seed):
            time.sleep(2.5)
            running.until(lambda: running.now.copied > 300, 60)
        running.swept()
        assert running.now.kept == running.now.failed == 0
        assert m.differences(server.url) == []


@pytest.mark.parametrize(
    "point", ["read:3", "intended:1", "intended:20", "acted:1", "acted:20", "recorded:1", "recorded:20", "swept:1"]
)
def test_killed_anywhere_it_goes_on_and_takes_nothing_of_its_own_for_somebody_elses(
    fresh_server: EmbeddedServer, tmp_path: Path, point: str
) -> None:
    m.begin(fresh_server.url)
    new = redis.Redis(port=fresh_server.port, db=1)
    with storm(fresh_server.port, 7):
        time.sleep(0.3)
        first = process(fresh_server.url, tmp_path, kill_at=point)
        assert first.wait(60) == -signal.SIGKILL
        new.delete("onetape:migration:mirrored:mirror")  # as its expiry would
        new.set("new:99999", "somebody newer")
        redis.Redis(port=fresh_server.port, db=5).set("old:99999", "older")
        time.sleep(0.3)  # and the writers go on
    with m.mirroring(fresh_server.url, tmp_path) as running:
        running.swept()
        assert running.now.kept == 1
    assert new.get("new:99999") == b"somebody newer"
    assert [line for line in m.differences(fresh_server.url) if "99999" not in line] == []


def test_ten_kills_at_random_moments_lose_nothing(fresh_server: EmbeddedServer, tmp_path: Path) -> None:
    m.begin(fresh_server.url)
    rng = random.Random(5)
    with storm(fresh_server.port, 11):
        for _ in range(10):
            one = process(fresh_server.url, tmp_path)
            time.sleep(0.8 + rng.random())
            one.kill()
            one.wait()
            redis.Redis(port=fresh_server.port, db=1).delete("onetape:migration:mirrored:mirror")  # as its expiry would
    status = m.once(fresh_server.url, tmp_path)
    assert (status.kept, status.failed) == (0, 0)
    assert m.differences(fresh_server.url) == []


def test_connections_that_are_cut_again_and_again_are_made_anew(server: EmbeddedServer, tmp_path: Path) -> None:
    m.begin(server.url)
    admin = redis.Redis(port=server.port)
    with m.mirroring(server.url, tmp_path) as running, storm(server.port, 3) as done:
        for _ in range(12):
            time.sleep(0.15)
            for client in admin.client_list():
                if client["name"] == "onetape-mirror":
                    try:
                        admin.client_kill_filter(_id=client["id"])
                    except redis.ResponseError:
                        pass
        done.set()
        running.swept()
        running.until(lambda: running.now.hints)
        assert running.now.kept == 0
        assert m.differences(server.url) == []


def test_a_listener_that_is_cut_off_for_being_slow_is_made_up_for(fresh_server: EmbeddedServer, tmp_path: Path) -> None:
    client = redis.Redis(port=fresh_server.port, db=5)
    m.begin(fresh_server.url)
    one = process(fresh_server.url, tmp_path)
    try:
        client.set("old:first", 1)
        new = redis.Redis(port=fresh_server.port, db=1)
        deadline_s = time.monotonic() + 60
        while not new.exists("new:first"):
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        client.config_set("client-output-buffer-limit", "pubsub 4096 4096 1")
        one.send_signal(signal.SIGSTOP)
        client.mset({f"old:{i}": "x" * 100 for i in range(50_000)})
        one.send_signal(signal.SIGCONT)
        deadline_s = time.monotonic() + 60
        while len(new.keys("new:*")) < 50_001:
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
    finally:
        one.terminate()
        assert one.wait(60) == 0
    assert m.differences(fresh_server.url) == []


def test_a_server_that_comes_back_with_its_data_is_followed_again(tmp_path: Path) -> None:
    with EmbeddedServer(options={"appendonly": "yes", "appendfsync": "always"}) as server:
        m.begin(server.url)
        with m.mirroring(server.url, tmp_path) as running, storm(server.port, 4) as done:
            for _ in range(2):
                time.sleep(0.5)
                server.kill()
                server.start()
            done.set()
            running.until(lambda: running.now.hints)
            running.swept()
            assert running.now.kept == 0
            assert m.differences(server.url) == []


def test_a_server_that_comes_back_empty_ends_the_mirror(tmp_path: Path) -> None:
    from onetape.errors import PhaseRefused

    with EmbeddedServer() as server:
        m.begin(server.url)
        redis.Redis(port=server.port, db=5).set("old:a", 1)
        with pytest.raises(AssertionError), m.mirroring(server.url, tmp_path) as running:
            server.kill()
            server.start()
            running.until(lambda: False, 60)
        assert isinstance(running.error, PhaseRefused)


def test_keys_that_expire_at_the_instant_leave_nothing_behind(server: EmbeddedServer, tmp_path: Path) -> None:
    old = redis.Redis(port=server.port, db=5)
    m.begin(server.url)
    with m.mirroring(server.url, tmp_path) as running:
        for i in range(1500):
            old.set(f"old:{i % 200}", i, px=1 + i % 7)
        time.sleep(0.3)
        running.swept()
        assert running.now.kept == running.now.failed == 0
    assert redis.Redis(port=server.port, db=1).keys("new:*") == []


def test_a_cutover_in_the_middle_of_a_storm_turns_it_round(server: EmbeddedServer, tmp_path: Path) -> None:
    """After the change of state nothing of the old side may be written over the new one."""
    from onetape.migrate.phases.phase import Phase

    old, new = redis.Redis(port=server.port, db=5), redis.Redis(port=server.port, db=1)
    m.begin(server.url)
    with m.mirroring(server.url, tmp_path) as running:
        with storm(server.port, 6):
            time.sleep(1)
        running.swept()
        for i in range(30):
            old.set(f"old:late{i}", "old")
        m.begin(server.url, phase=Phase.CUT_OVER)
        for i in range(30):
            new.set(f"new:late{i}", "new")
        running.until(lambda: running.now.back)
        running.swept()
        assert {new.get(f"new:late{i}") for i in range(30)} == {b"new"}


def test_a_mirror_beside_a_backfill_and_a_dual_writer_ends_equal(server: EmbeddedServer, tmp_path: Path) -> None:
    from onetape.migrate import Migration

    old = redis.Redis(port=server.port, db=5)
    old.mset({f"old:{1000 + i}": i for i in range(3000)})
    migration = Migration(server.url, plan=m.PLAN, ledger_path=tmp_path / "ledger")
    migration.start(execute=True)
    with m.mirroring(server.url, tmp_path) as running:
        with storm(server.port, 8):
            report = migration.backfill()
        running.swept()
        assert report.exit_code in (0, 1)
        assert m.differences(server.url) == []
        assert running.now.kept == 0
