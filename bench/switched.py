"""Switched reads: a read that follows the migration beside the same read through a plain redis-py client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import redis
import redis.asyncio

from bench.measure import Line, Setting, beside, take_turns
from onetape.embedded import EmbeddedServer
from onetape.migrate import state as states
from onetape.migrate.endpoint import Endpoint
from onetape.migrate.phase import Phase
from onetape.migrate.plan import Plan
from onetape.migrate.reader import AsyncReaderRedis, ReaderRedis

_KEYS = 1000
_FIELDS = {f"field_{i}": f"{i}.25" for i in range(10)}


def measure(setting: Setting) -> list[Line]:
    """Return the lines of reads, on a server of its own; rates of one client that waits for each reply."""
    count = setting.scaled(5_000, 200)
    plan = Plan.load()
    lines: list[Line] = []
    with EmbeddedServer() as server:
        _fill(server.port)
        phases = [
            ("before the switch", {"phase": Phase.VERIFIED}),
            ("new first", {"phase": Phase.READS_SWITCHED, "read_share": 1.0}),
            ("new first, a tenth compared", {"phase": Phase.READS_SWITCHED, "read_share": 1.0, "shadow_share": 0.1}),
        ]
        for version, (name, fields) in enumerate(phases):
            with Endpoint.connect(server.url) as endpoint:
                states.change(endpoint, plan, version, **fields)
            lines += _lines(setting, server.port, name, count)
    return lines


def _lines(setting: Setting, port: int, name: str, count: int) -> list[Line]:
    keys = [f"indicators:SYM{i}:rsi" for i in range(_KEYS)]
    hashes = [f"indicators:SYM{i}:macd" for i in range(_KEYS)]
    lines = []
    with redis.Redis(port=port, db=5) as plain, ReaderRedis(port=port, db=5) as reader:
        for what, ways in {
            "GET": (_each(plain.get, keys, count), _each(reader.get, keys, count)),
            "HGETALL": (_each(plain.hgetall, hashes, count), _each(reader.hgetall, hashes, count)),
            "a pipeline of 100 GET": (_piped(plain, keys, count), _piped(reader, keys, count)),
        }.items():
            figures = take_turns({"theirs": ways[0], "ours": ways[1]}, setting.runs)
            lines.append(beside(f"{what}, {name}", "reads/s", figures["ours"], "redis-py", figures["theirs"]))
    figures = take_turns(
        {"theirs": lambda: asyncio.run(_async(redis.asyncio.Redis, port, keys, count)),
         "ours": lambda: asyncio.run(_async(AsyncReaderRedis, port, keys, count))},
        setting.runs,
    )  # fmt: skip
    lines.append(beside(f"asyncio GET, {name}", "reads/s", figures["ours"], "redis-py", figures["theirs"]))
    return lines


def _each(read: Callable[[str], Any], keys: list[str], count: int) -> Callable[[], float]:
    def run() -> float:
        read(keys[0])
        started = time.perf_counter()
        for i in range(count):
            if not read(keys[i % _KEYS]):
                raise RuntimeError(f"nothing at {keys[i % _KEYS]}")
        return count / (time.perf_counter() - started)

    return run


def _piped(client: redis.Redis, keys: list[str], count: int) -> Callable[[], float]:
    def run() -> float:
        client.get(keys[0])
        started = time.perf_counter()
        for at in range(0, count, 100):
            with client.pipeline(transaction=False) as pipe:
                for i in range(at, at + 100):
                    pipe.get(keys[i % _KEYS])
                if not all(pipe.execute()):
                    raise RuntimeError("a key is missing")
        return count / (time.perf_counter() - started)

    return run


async def _async(kind: type[redis.asyncio.Redis], port: int, keys: list[str], count: int) -> float:
    async with kind(port=port, db=5) as client:
        await client.get(keys[0])
        started = time.perf_counter()
        for i in range(count):
            if not await client.get(keys[i % _KEYS]):
                raise RuntimeError(f"nothing at {keys[i % _KEYS]}")
        return count / (time.perf_counter() - started)


def _fill(port: int) -> None:
    for db, ta in ((5, "indicators:"), (1, "ind:ta:")):
        with redis.Redis(port=port, db=db) as client, client.pipeline() as pipe:
            for i in range(_KEYS):
                pipe.set(f"{ta}SYM{i}:rsi", "61.25")
                pipe.hset(f"{ta}SYM{i}:macd", mapping=_FIELDS)
            pipe.execute()
