"""Switched reads: a read that follows the migration beside the same read through a plain redis-py client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import redis
import redis.asyncio

from bench.measure import Line, Setting, beside, share_time
from onetape.embedded import EmbeddedServer
from onetape.migrate.phases import state as states
from onetape.migrate.phases.phase import Phase
from onetape.migrate.plans.plan import Plan
from onetape.migrate.reader import AsyncReaderRedis, ReaderRedis
from onetape.migrate.wire.endpoint import Endpoint

_KEYS = 1000
_FIELDS = {f"field_{i}": f"{i}.25" for i in range(10)}


def measure(setting: Setting) -> list[Line]:
    """Return the lines of reads, on a server of its own; rates of one client that waits for each reply."""
    count = setting.scaled(10_000, 200)
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
    lines = []
    with redis.Redis(port=port, db=5) as plain, ReaderRedis(port=port, db=5) as reader:
        for what, read in _READS.items():
            lines += _shared(setting, f"{what}, {name}", read, plain, reader, count)
        lines += _shared(setting, f"a pipeline of 100 GET, {name}", _piped, plain, reader, count // 100)
    with asyncio.Runner() as runner:
        waiting, awaited = redis.asyncio.Redis(port=port, db=5), AsyncReaderRedis(port=port, db=5)
        lines += _shared(
            setting, f"asyncio, 100 GET, {name}", lambda client, i: runner.run(_hundred(client, i)),
            waiting, awaited, count // 100,
        )  # fmt: skip
        runner.run(waiting.aclose())
        runner.run(awaited.aclose())
    return lines


def _shared(
    setting: Setting, name: str, read: Callable[[Any, int], Any], plain: Any, reader: Any, count: int
) -> list[Line]:
    for client in (plain, reader):
        read(client, 0)
    ways = {"theirs": lambda i: read(plain, i), "ours": lambda i: read(reader, i)}
    figures = share_time(ways, count, max(1, count // 50), setting.runs)
    return [beside(name, "calls/s", figures["ours"], "redis-py, old names", figures["theirs"])]


def _get(client: Any, i: int) -> None:
    if not client.get(f"indicators:SYM{i % _KEYS}:rsi"):
        raise RuntimeError("a key is missing")


def _hgetall(client: Any, i: int) -> None:
    if not client.hgetall(f"indicators:SYM{i % _KEYS}:macd"):
        raise RuntimeError("a key is missing")


_READS: dict[str, Callable[[Any, int], None]] = {"GET": _get, "HGETALL": _hgetall}


def _piped(client: Any, i: int) -> None:
    with client.pipeline(transaction=False) as pipe:
        for at in range(100 * i, 100 * i + 100):
            pipe.get(f"indicators:SYM{at % _KEYS}:rsi")
        if not all(pipe.execute()):
            raise RuntimeError("a key is missing")


async def _hundred(client: Any, i: int) -> None:
    for at in range(100 * i, 100 * i + 100):
        if not await client.get(f"indicators:SYM{at % _KEYS}:rsi"):
            raise RuntimeError("a key is missing")


def _fill(port: int) -> None:
    for db, ta in ((5, "indicators:"), (1, "ind:ta:")):
        with redis.Redis(port=port, db=db) as client, client.pipeline() as pipe:
            for i in range(_KEYS):
                pipe.set(f"{ta}SYM{i}:rsi", "61.25")
                pipe.hset(f"{ta}SYM{i}:macd", mapping=_FIELDS)
            pipe.execute()
