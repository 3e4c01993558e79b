"""The reading client for asyncio: the same answers as the sync one, and a task of its own beside the reads."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis
import redis.asyncio

from onetape.embedded import EmbeddedServer
from onetape.errors import CommandUnmapped, StateMoved
from onetape.migrate.phases import state as states
from onetape.migrate.phases.phase import Phase
from onetape.migrate.phases.state import Names
from onetape.migrate.plans.plan import Plan
from onetape.migrate.reader import AsyncReader, AsyncReaderRedis, view
from onetape.migrate.wire.endpoint import Endpoint

PLAN = Plan.load()
NAMES = Names.of(PLAN)
OLD, NEW = "indicators:NSE:INFY:rsi", "ind:ta:NSE:INFY:rsi"


def move(server: EmbeddedServer, version: int, phase: Phase, **fields: Any) -> None:
    with Endpoint.connect(server.url) as endpoint:
        states.change(endpoint, PLAN, version, phase=phase, **fields)


async def until(true: Callable[[], Awaitable[Any]], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not await true():
        assert time.monotonic() < deadline, "it did not come true in time"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def clients(server: EmbeddedServer) -> AsyncIterator[dict[int, redis.asyncio.Redis]]:
    found = {db: redis.asyncio.Redis(port=server.port, db=db) for db in (0, 1, 2, 5)}
    try:
        yield found
    finally:
        for client in found.values():
            await client.aclose()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "REFRESH_S", 0.0)


@pytest.mark.parametrize(("db", "name"), [(5, OLD), (1, NEW)])
def test_each_phase_has_its_side(server: EmbeddedServer, db: int, name: str) -> None:
    async def play() -> None:
        async with clients(server) as plain, AsyncReaderRedis(port=server.port, db=db) as reader:
            await plain[5].set(OLD, "old")
            await plain[1].set(NEW, "new")
            assert await reader.get(name) == b"old"
            for version, phase in enumerate([*Phase, *reversed(Phase)]):
                move(server, version, phase, read_share=1.0)
                expected = b"new" if phase.at_least(Phase.READS_SWITCHED) else b"old"
                assert await reader.get(name) == expected, phase

    asyncio.run(play())


def test_fallbacks_pipelines_scans_and_streams_answer_as_a_plain_client(server: EmbeddedServer) -> None:
    async def play() -> None:
        move(server, 0, Phase.READS_SWITCHED, read_share=1.0)
        async with (
            clients(server) as plain,
            AsyncReaderRedis(port=server.port, db=2, decode_responses=True) as reader,
            redis.asyncio.Redis(port=server.port, db=2, decode_responses=True) as beside,
        ):
            await plain[2].hset("volume_state:h", mapping={"a": 1, "b": 2})
            await plain[2].sadd("volume_state:t", 1)
            await plain[2].xadd("volume_state:x", {"n": 1}, id="1-0")
            for _ in range(2):  # first from the old side by fallback, then from the new one
                for client in (reader, beside):
                    assert await client.hget("volume_state:h", "a") == "1"
                assert await reader.hgetall("volume_state:h") == await beside.hgetall("volume_state:h")
                assert await reader.xread({"volume_state:x": "0"}, block=20) == await beside.xread(
                    {"volume_state:x": "0"}
                )
                assert [pair async for pair in reader.hscan_iter("volume_state:h")] == [("a", "1"), ("b", "2")]
                both = []
                for client in (reader, beside):
                    async with client.pipeline() as pipe:
                        pipe.hgetall("volume_state:h").mget("volume_state:n", "own").smembers("volume_state:t")
                        both.append(await pipe.execute())
                assert both[0] == both[1]
                for name in ("h", "t", "x"):
                    await plain[2].copy(f"volume_state:{name}", f"vol:state:{name}", 1)
            stats = reader.status().stats
            assert stats.old_fallbacks == 6 and stats.new_reads == 6
            with pytest.raises(CommandUnmapped, match="volume_state:h"):
                await reader.hset("volume_state:h", "a", 1)
            with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
                await reader.get("volume_state:h")

    asyncio.run(play())


def test_beats_and_shadow_reads_are_a_task_that_ends_with_the_client(server: EmbeddedServer) -> None:
    async def play() -> None:
        move(server, 0, Phase.VERIFIED, shadow_share=1.0)
        async with clients(server) as plain:
            await plain[5].set(OLD, "1")
            await plain[1].set(NEW, "2")
            reader = AsyncReader(server.url + "/5", PLAN, name="charts")
            assert await reader.get(OLD) == b"1"
            assert await reader.execute("GET", NEW, db=1) == b"1"

            async def recorded() -> bool:
                return await plain[1].hlen(NAMES.diverged) == 1 and await plain[1].hlen(NAMES.clients) == 1

            await until(recorded)
            assert reader.status().mismatches[0].key == OLD.encode()
            (told,) = await plain[1].hvals(NAMES.clients)
            assert json.loads(told)["name"] == "charts" and json.loads(told)["kind"] == "reader"
            await reader.aclose()
            assert await plain[1].hlen(NAMES.clients) == 0
            assert not [task for task in asyncio.all_tasks() if task.get_name() == "onetape-reader"]

    asyncio.run(play())


def test_one_client_serves_one_loop_after_another(server: EmbeddedServer) -> None:
    with redis.Redis(port=server.port, db=1) as plain:
        plain.set(NEW, "new")
    move(server, 0, Phase.CUT_OVER)

    async def read() -> Any:
        async with AsyncReaderRedis(port=server.port, db=5) as reader:
            return await asyncio.gather(*(reader.get(OLD) for _ in range(20)))

    for _ in range(2):
        assert set(asyncio.run(read())) == {b"new"}


def test_another_plan_is_refused(server: EmbeddedServer) -> None:
    move(server, 0, Phase.CUT_OVER)

    async def play() -> None:
        async with AsyncReaderRedis(port=server.port, db=7, plan=PLAN.with_source("indicators", 7)) as reader:
            with pytest.raises(StateMoved, match="another plan"):
                await reader.get(OLD)

    asyncio.run(play())
