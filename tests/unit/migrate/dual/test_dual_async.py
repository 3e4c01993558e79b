"""The asyncio client does what the sync one does."""

from __future__ import annotations

import asyncio
import random

import msgspec
import pytest
import redis.asyncio
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError, WatchError
from tests.unit.migrate.dual.rig import PLAN, rigged

from onetape.embedded import EmbeddedServer
from onetape.errors import CommandUnmapped
from onetape.migrate.dual import AsyncDualRedis
from onetape.migrate.phases.phase import ORDER, Phase


def _client(server: EmbeddedServer, **kwargs: object) -> AsyncDualRedis:
    return AsyncDualRedis(port=server.port, db=5, plan=PLAN, **kwargs)


def test_each_phase_writes_the_sides_it_says(server: EmbeddedServer) -> None:
    async def play() -> None:
        dual = _client(server)
        for phase in ORDER:
            rig.go(phase)
            assert await dual.set("a:k", str(phase))
            assert (rig.old.get("a:k") == str(phase).encode()) == (phase is not Phase.FINISHED)
            assert (rig.new.get("n:k") == str(phase).encode()) == (phase is not Phase.PLANNED)
            assert await dual.get("a:k") == str(phase).encode()
        await dual.aclose()

    with rigged(server, None) as rig:
        asyncio.run(play())


def test_many_tasks_share_a_client_while_the_phase_changes(server: EmbeddedServer) -> None:
    async def play() -> None:
        async with _client(server, decode_responses=True) as dual:

            async def count(name: int) -> None:
                for at in range(50):
                    await dual.incr("a:n")
                    await dual.hset(f"a:h{name}", "at", at)
                    assert await dual.xadd("a:s", {"at": at})
                    if at == 25:
                        rig.go(Phase.CUT_OVER if name % 2 else Phase.DUAL_WRITING)

            await asyncio.gather(*[count(name) for name in range(12)])
            assert await dual.get("a:n") == "600" and await dual.xlen("a:s") == 600
            assert rig.differing(1) == [] and rig.diverged() == {}

    with rigged(server) as rig:
        asyncio.run(play())


def test_pipelines_and_transactions_of_a_plain_client_work(server: EmbeddedServer) -> None:
    async def play() -> None:
        dual = _client(server)
        async with dual.pipeline(transaction=False) as pipe:
            pipe.set("a:k", 1).incr("a:k").lpush("a:k", "wrong").set("free", 1).blpop("a:l", 1)
            replies = await pipe.execute(raise_on_error=False)
        assert replies[:2] == [True, 2] and isinstance(replies[2], ResponseError) and replies[3:] == [True, None]
        async with dual.pipeline() as pipe:
            await pipe.watch("a:k")
            assert await pipe.get("a:k") == b"2"
            pipe.multi()
            pipe.set("a:k", 3)
            rig.old.set("a:k", 9)
            with pytest.raises(WatchError):
                await pipe.execute()

        async def once(pipe: redis.asyncio.client.Pipeline) -> None:
            now = int(await pipe.get("a:k"))
            pipe.multi()
            pipe.set("a:k", now + 1)

        await asyncio.gather(*[dual.transaction(once, "a:k") for _ in range(10)])
        assert rig.old.get("a:k") == rig.new.get("n:k") == b"19"
        async with dual.lock("free-lock", timeout=60):
            pass
        with pytest.raises(CommandUnmapped):
            await dual.eval("return 1", 1, "a:k")
        assert rig.differing() == []
        await dual.aclose()

    with rigged(server) as rig:
        asyncio.run(play())


def test_tasks_cancelled_at_any_moment_leave_both_sides_equal(server: EmbeddedServer) -> None:
    async def play() -> None:
        dual = _client(server, retry=redis.asyncio.retry.Retry(NoBackoff(), 0))

        async def write() -> None:
            while True:
                await dual.rpush("a:l", "x")
                pipe = dual.pipeline()
                await pipe.hincrby("a:h", "f", 1).xadd("a:s", {"f": 1}).execute()

        for _ in range(40):
            task = asyncio.create_task(write())
            await asyncio.sleep(random.random() * 0.01)
            while not task.done():  # redis-py can lose a cancellation while it connects
                task.cancel()
                await asyncio.wait([task], timeout=0.2)
            assert task.cancelled()
        await dual.set("a:end", 1)
        assert rig.differing(1) == [] and rig.diverged() == {}
        await dual.aclose()

    with rigged(server) as rig:
        asyncio.run(play())


def test_an_idle_client_takes_in_a_new_phase_and_its_heartbeat_goes_with_it(server: EmbeddedServer) -> None:
    async def play() -> None:
        dual = AsyncDualRedis.from_url(f"{server.url}/5", plan=PLAN, name="feed")
        await dual.set("a:k", 1)
        rig.go(Phase.BACKFILLED)
        facts = {}
        for _ in range(100):
            facts = msgspec.json.decode(rig.new.hget(rig.names.clients, dual.dual.id) or b"{}")
            if facts.get("version") == rig.version:
                break
            await asyncio.sleep(0.05)
        assert facts["version"] == rig.version and facts["name"] == "feed"
        await dual.aclose()
        assert rig.new.hgetall(rig.names.clients) == {}

    with rigged(server) as rig:
        asyncio.run(play())


def test_a_client_outlives_its_event_loop(server: EmbeddedServer) -> None:
    with rigged(server) as rig:
        dual = _client(server)

        async def write() -> None:
            await dual.incr("a:n")

        asyncio.run(write())
        asyncio.run(write())
        assert rig.old.get("a:n") == rig.new.get("n:n") == b"2"
        asyncio.run(dual.aclose())
