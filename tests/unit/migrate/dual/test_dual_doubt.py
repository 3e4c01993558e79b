"""What a dual-writing client does where it can no longer be sure: of a write, of a pair, of the state."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry
from tests.unit.migrate.dual.rig import rigged

from onetape.embedded import EmbeddedServer
from onetape.errors import CommandUnmapped, StateMoved
from onetape.migrate.dual import AsyncDualRedis, DualRedis
from onetape.migrate.dual.lane import Lane
from onetape.migrate.phases.phase import Phase
from onetape.migrate.wire.endpoint import Endpoint

ROOT = Path(__file__).resolve().parents[4]


def _until(holds: Callable[[], bool]) -> bool:
    for _ in range(1200):
        if holds():
            return True
        time.sleep(0.05)
    return False


def test_a_write_that_was_carried_out_is_not_sent_again_because_its_repair_was_cut(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rigged(server) as rig:
        dual = rig.dual(retry=Retry(NoBackoff(), 3))
        dual.incr("a:n")
        rig.new.set("n:n", 100)  # somebody else's
        heal = dual.dual.exchange.heal
        cut: list[bool] = []

        def cut_off(lane: Lane, routes: Any, why: str) -> Any:
            if not cut:
                cut.append(True)
                lane.connection._sock.shutdown(socket.SHUT_RDWR)
            return heal(lane, routes, why)

        monkeypatch.setattr(dual.dual.exchange, "heal", cut_off)
        assert dual.incr("a:n") == 2
        assert cut and rig.old.get("a:n") == b"2"
        # What could not be repaired then is repaired, and recorded, without another write.
        assert _until(lambda: rig.new.get("n:n") == b"2" and list(rig.diverged()) == [b"5:a:n"])


def test_pairs_are_not_taken_to_be_equal_after_the_server_came_back_with_what_it_had_saved() -> None:
    options = {"save": "3600 1000000", "appendonly": "no", "dbfilename": "saved.rdb"}
    with EmbeddedServer(options=options) as server, rigged(server) as rig:
        rig.old.hset("a:h", mapping={"x": 1, "y": 2})
        redis.Redis(port=server.port).save()
        dual = rig.dual()
        dual.hset("a:h", "f", 1)
        assert rig.differing() == []
        server.kill()
        server.start()
        rig.endpoint = Endpoint.connect(server.url)
        assert rig.old.hlen("a:h") == 2 and not rig.new.exists("n:h")  # before the first dual write
        dual.hset("a:h", "g", 1)
        assert rig.differing() == [] and rig.new.hlen("n:h") == 3


def test_what_relied_on_a_command_that_failed_in_the_same_pipeline_is_made_equal(server: EmbeddedServer) -> None:
    with rigged(server) as rig:
        dual = rig.dual()
        for name in ("a:h", "a:i"):
            rig.old.hset(name, mapping={"x": 1, "y": 2})
        pipe = dual.pipeline()
        pipe.execute_command("SETEX", "a:h", 0, "v")
        pipe.hset("a:h", "f", 1)
        replies = pipe.execute(raise_on_error=False)
        assert isinstance(replies[0], redis.ResponseError) and replies[1] == 1
        pipe.execute_command("SET", "a:i", "v", "EX", "no number")
        pipe.delete("a:i")
        pipe.hset("a:i", "f", 1)
        assert pipe.execute(raise_on_error=False)[1:] == [1, 1]
        assert rig.differing() == []
        assert b"5:a:i" not in rig.diverged()  # it was deleted on both sides before it was written


def test_a_transaction_of_watched_keys_with_nothing_in_it_is_carried_out(server: EmbeddedServer) -> None:
    with rigged(server) as rig:
        pipe = rig.dual().pipeline()
        pipe.watch("a:k")
        pipe.multi()
        assert pipe.execute() == []


def test_a_key_that_gets_its_new_name_while_it_is_read_is_read(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rigged(server, Phase.READS_SWITCHED) as rig:
        rig.go(Phase.READS_SWITCHED, read_share=1.0)
        dual = rig.dual()
        rig.old.set("a:k", "v")
        dual.get("a:none")
        exchange, copied = Lane.exchange, []

        def slowly(lane: Lane, send: Any) -> list[Any]:
            """Send it command by command, and copy the key in the middle."""
            if b"EXISTS" not in send.packed or copied:
                return exchange(lane, send)
            commands = [b"*" + part for part in send.packed.split(b"*")[1:]]
            replies: list[Any] = []
            for at, command in enumerate(commands):
                replies += exchange(lane, send._replace(packed=command, before=1, decoded=0, after=0))
                if at == 0:
                    copied.append(rig.old.copy("a:k", "n:k", destination_db=1))
            return replies

        monkeypatch.setattr(Lane, "exchange", slowly)
        assert dual.get("a:k") == b"v"
        assert copied == [True]


def test_a_state_that_cannot_be_read_stops_writes_before_they_are_sent(server: EmbeddedServer) -> None:
    with rigged(server) as rig:
        dual = rig.dual()
        dual.incr("a:n")
        rig.new.set(rig.names.state, "not a state")
        for _ in range(3):
            with pytest.raises(StateMoved, match="cannot be read"):
                dual.incr("a:n")
        assert (rig.old.get("a:n"), rig.new.get("n:n")) == (b"1", b"1")


# Connections and processes


def test_threads_wait_for_a_connection_where_the_pool_is_one_that_blocks(server: EmbeddedServer) -> None:
    with rigged(server) as rig:
        pool = redis.BlockingConnectionPool(port=server.port, db=5, max_connections=2, timeout=20)
        dual = DualRedis(connection_pool=pool, plan=rig.plan)
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda _: dual.incr("a:n"), range(400)))
        assert rig.old.get("a:n") == rig.new.get("n:n") == b"400"
        pool.timeout = 0.05
        with ThreadPoolExecutor(3) as threads:
            for blocked in [threads.submit(dual.blpop, "a:none", 0.5) for _ in range(3)]:
                with contextlib.suppress(redis.ConnectionError):
                    assert blocked.result() is None
        dual.close()

        async def tasks() -> None:
            pool = redis.asyncio.BlockingConnectionPool(port=server.port, db=5, max_connections=2, timeout=20)
            dual = AsyncDualRedis(connection_pool=pool, plan=rig.plan)
            await asyncio.gather(*[dual.incr("a:m") for _ in range(200)])
            pool.timeout = 0.05
            found = await asyncio.gather(*[dual.blpop("a:none", 0.5) for _ in range(4)], return_exceptions=True)
            assert sum(isinstance(one, redis.ConnectionError) for one in found) == 2
            assert await dual.incr("a:m") == 201
            await dual.aclose()
            await pool.disconnect()

        asyncio.run(tasks())
        assert rig.new.get("n:m") == b"201"


def test_a_fork_is_a_client_of_its_own_to_operators(server: EmbeddedServer) -> None:
    with rigged(server) as rig:
        code = """
import os, sys
from onetape.migrate.dual import DualRedis
from tests.unit.migrate.dual.rig import PLAN
dual = DualRedis(port=int(sys.argv[1]), db=5, plan=PLAN, name="forked")
dual.incr("a:n")
dual.dual.exchange._lock.acquire()  # by another thread, at the moment of the fork
child = os.fork()
if child == 0:
    dual.incr("a:n")
    print(dual.dual.id, flush=True)
    dual.close()
    os._exit(0)
dual.dual.exchange._lock.release()
os.waitpid(child, 0)
print(dual.dual.id, flush=True)
os._exit(0)
"""
        run = [sys.executable, "-c", code, str(server.port)]
        told = subprocess.run(run, check=True, cwd=ROOT, timeout=60, capture_output=True, text=True).stdout.split()
        assert len(set(told)) == 2
        assert rig.new.hkeys(rig.names.clients) == [told[1].encode()]  # closing the child took back its own


# What cannot be passed


def test_what_cannot_be_recorded_key_by_key_is_refused_also_where_commands_are_passed(server: EmbeddedServer) -> None:
    with rigged(server) as rig:
        dual = rig.dual(on_unmapped="pass")
        dual.hset("a:h", "f", 1)
        for args in [("FLUSHDB",), ("FLUSHALL",), ("SWAPDB", 5, 6)]:
            with pytest.raises(CommandUnmapped, match="none could be named"):
                dual.execute_command(*args)
        assert rig.differing() == [] and rig.old.exists("a:h")


def test_an_unknown_command_of_a_key_is_passed_on_the_side_that_counts_alone(server: EmbeddedServer) -> None:
    with rigged(server) as rig:
        dual = rig.dual(on_unmapped="pass")
        dual.set("a:k", 1)
        with pytest.raises(redis.ResponseError, match="unknown command"):
            dual.execute_command("NEW.COMMAND", "a:k")
        rig.go(Phase.CUT_OVER)
        dual.set("a:k", 2)
        with pytest.raises(CommandUnmapped, match="the names of the new side"):
            dual.execute_command("NEW.COMMAND", "a:k")


def test_a_sort_by_other_keys_finds_them_in_every_phase_and_stores_nothing(server: EmbeddedServer) -> None:
    for phase in (Phase.DUAL_WRITING, Phase.CUT_OVER):
        with rigged(server, None) as rig:
            rig.old.flushall()
            rig.go(phase)
            dual = rig.dual()
            dual.rpush("a:l", 1, 2, 3)
            rig.old.mset({"w:1": 3, "w:2": 2, "w:3": 1})
            assert dual.sort("a:l", by="w:*") == [b"3", b"2", b"1"]
            with pytest.raises(CommandUnmapped, match="BY or GET"):
                dual.sort("a:l", by="w:*", store="a:out")


def test_keys_are_not_migrated_away_from_one_side(server: EmbeddedServer) -> None:
    with rigged(server) as rig:
        dual = rig.dual()
        dual.set("a:k", 1)
        for args in [("a:k", 0, 1000), ("", 0, 1000, "COPY", "KEYS", "free", "a:k")]:
            with pytest.raises(CommandUnmapped):
                dual.execute_command("MIGRATE", "127.0.0.1", 1, *args)


def test_a_lock_that_could_not_be_released_is_not_given(server: EmbeddedServer) -> None:
    with rigged(server) as rig:
        with pytest.raises(CommandUnmapped, match="a:lock"):
            rig.dual().lock("a:lock", timeout=60)
        with pytest.raises(CommandUnmapped, match="a:lock"):
            AsyncDualRedis(port=server.port, db=5, plan=rig.plan).lock("a:lock", timeout=60)
        with rig.dual(on_unmapped="pass").lock("a:lock", timeout=60):
            assert rig.old.exists("a:lock") and rig.new.exists("n:lock")
        assert not rig.old.exists("a:lock") and not rig.new.exists("n:lock")


def test_a_pipeline_that_was_refused_is_empty_and_can_be_used_again(server: EmbeddedServer) -> None:
    with rigged(server) as rig:
        pipe = rig.dual().pipeline()
        pipe.watch("a:k")
        pipe.multi()
        pipe.eval("return 1", 1, "a:k")
        with pytest.raises(CommandUnmapped):
            pipe.execute()
        assert not pipe.watching and pipe.set("a:k", 1).execute() == [True]

        async def again() -> None:
            dual = AsyncDualRedis(port=server.port, db=5, plan=rig.plan)
            pipe = dual.pipeline()
            pipe.eval("return 1", 1, "a:k")
            with pytest.raises(CommandUnmapped):
                await pipe.execute()
            assert await pipe.set("a:k", 2).execute() == [True]
            await dual.aclose()

        asyncio.run(again())
        assert rig.differing() == []


def test_entries_are_delivered_at_the_same_millisecond_on_both_sides(server: EmbeddedServer) -> None:
    with rigged(server) as rig:
        dual = rig.dual()
        names = [f"a:s{at}" for at in range(300)]
        fill, read = dual.pipeline(), dual.pipeline()
        for name in names:
            fill.xadd(name, {"f": 1}, id="1-1").xgroup_create(name, "g", id="0")
            read.xreadgroup("g", "c", {name: ">"})
        fill.execute()
        replies = read.execute()  # takes some milliseconds, and Redis 7.0 goes by the clock
        assert len(replies) == 300 and all(replies)
        for name in names:
            dual.xclaim(name, "g", "d", 0, ["1-1"])
        assert rig.differing() == [] and rig.diverged() == {}
