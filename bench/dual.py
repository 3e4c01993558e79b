"""Dual write: a write to both sides of a live migration beside the same write of a plain redis-py client to the old one.

Also beside what one would do by hand: a second redis-py client that writes the new name after the first has answered,
without a transaction, a fence or a migration.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import redis
import redis.asyncio

from bench.measure import Line, Setting, beside, take_turns
from onetape.embedded import EmbeddedServer
from onetape.migrate import state as states
from onetape.migrate.dual import AsyncDualRedis, DualRedis
from onetape.migrate.endpoint import Endpoint
from onetape.migrate.phase import Phase
from onetape.migrate.plan import Plan

_KEYS = 1000
_TARGET = 1
#: A dual write takes at most 1.5 times as long as a plain one.
_RATIO = 1 / 1.5
_FIELDS = {f"field_{i}": f"{i * 100}.25" for i in range(6)}
_TICK = {"price": "25000.25", "size": "3", "bid": "25000.25", "ask": "25000.5"}

#: Does the i-th write with a client, the family of keys being given: plain and dual clients write keys of their own.
_Write = Callable[[Any, str, int], Any]


def _set(client: Any, family: str, i: int) -> Any:
    return client.set(f"{family}:{i % _KEYS}:rsi", f"{i}.25")


def _hset(client: Any, family: str, i: int) -> Any:
    return client.hset(f"{family}:{i % _KEYS}:macd", mapping=_FIELDS)


def _xadd(client: Any, family: str, i: int) -> Any:
    return client.xadd(f"{family}:{i % _KEYS}:delta", _TICK)


_WRITES: dict[str, _Write] = {"SET": _set, "HSET of 6 fields": _hset, "XADD of 4 fields": _xadd}
_OLD, _PLAIN, _NEW = "indicators:DUAL", "indicators:PLAIN", "ind:other:PLAIN"


def measure(setting: Setting) -> list[Line]:
    """Return the lines of writes, on a server of its own; rates of one client that waits for each reply."""
    plan = Plan.load(Path(__file__).with_name("plan.toml"))
    with EmbeddedServer() as server:
        with Endpoint.connect(server.url) as endpoint:
            states.change(endpoint, plan, 0, phase=Phase.DUAL_WRITING)
        return [
            *_one_by_one(setting, server.port, plan),
            *_with_asyncio(setting, server.port, plan),
            *_pipelined(setting, server.port, plan),
        ]


def _one_by_one(setting: Setting, port: int, plan: Plan) -> list[Line]:
    count = setting.scaled(10_000, 200)
    lines = []
    with (
        redis.Redis(port=port, db=5) as plain,
        redis.Redis(port=port, db=_TARGET) as second,
        DualRedis(port=port, db=5, plan=plan) as dual,
    ):
        for what, write in _WRITES.items():
            for i in range(_KEYS):  # the first write of a key makes its other side
                write(dual, _OLD, i)
            figures = take_turns(
                {
                    "plain": _timed(count, lambda i, write=write: write(plain, _PLAIN, i)),
                    "ours": _timed(count, lambda i, write=write: write(dual, _OLD, i)),
                    "twice": _timed(count, lambda i, write=write: (write(plain, _PLAIN, i), write(second, _NEW, i))),
                },
                setting.runs,
            )
            lines += _lines(what, figures)
        first = take_turns(
            {
                "plain": _timed(_KEYS, lambda i: _set(plain, _PLAIN, i)),
                "ours": lambda: _timed(_KEYS, _first_writes(dual))(),
            },
            setting.runs,
        )
        if dual.dual.status().diverged:
            raise RuntimeError("sides differ")
    name = "dual write, SET, the first of a key by this client"
    return [*lines, beside(name, "writes/s", first["ours"], "redis-py, old name only", first["plain"])]


def _first_writes(dual: DualRedis) -> Callable[[int], Any]:
    family = f"{_OLD}:{time.monotonic_ns()}"
    return lambda i: dual.set(f"{family}.{i}:rsi", f"{i}.25")


def _with_asyncio(setting: Setting, port: int, plan: Plan) -> list[Line]:
    count = setting.scaled(10_000, 200)

    def plain(write: _Write) -> float:
        async def work() -> float:
            async with redis.asyncio.Redis(port=port, db=5) as client:
                return await _awaited(client, _PLAIN, write, count)

        return asyncio.run(work())

    def ours(write: _Write) -> float:
        async def work() -> float:
            async with AsyncDualRedis(port=port, db=5, plan=plan) as client:
                return await _awaited(client, _OLD, write, count)

        return asyncio.run(work())

    lines = []
    for what, write in _WRITES.items():
        figures = take_turns(
            {"plain": lambda write=write: plain(write), "ours": lambda write=write: ours(write)}, setting.runs
        )
        lines += _lines(f"{what}, asyncio", figures)
    return lines


async def _awaited(client: Any, family: str, write: Callable[[Any, str, int], Awaitable[Any]], count: int) -> float:
    for i in range(_KEYS):
        await write(client, family, i)
    began_s = time.perf_counter()
    for i in range(count):
        await write(client, family, i)
    return count / (time.perf_counter() - began_s)


def _pipelined(setting: Setting, port: int, plan: Plan) -> list[Line]:
    count = setting.scaled(50_000, 1_000)

    def piped(client: Any, family: str) -> float:
        began_s = time.perf_counter()
        for at in range(0, count, 100):
            with client.pipeline() as pipe:
                for i in range(at, at + 100):
                    _set(pipe, family, i)
                pipe.execute()
        return count / (time.perf_counter() - began_s)

    with redis.Redis(port=port, db=5) as plain, DualRedis(port=port, db=5, plan=plan) as dual:
        piped(dual, _OLD)
        ways = {"plain": lambda: piped(plain, _PLAIN), "ours": lambda: piped(dual, _OLD)}
        return _lines("pipelines of 100 SET", take_turns(ways, setting.runs), target=False)


def _timed(count: int, write: Callable[[int], Any]) -> Callable[[], float]:
    def run() -> float:
        began_s = time.perf_counter()
        for i in range(count):
            write(i)
        return count / (time.perf_counter() - began_s)

    return run


def _lines(what: str, figures: dict[str, list[float]], *, target: bool = True) -> list[Line]:
    name = f"dual write, {what}"
    line = beside(name, "writes/s", figures["ours"], "redis-py, old name only", figures["plain"])
    if target and line.ratio is not None:
        line.target, line.reached = f">= {_RATIO:.2f} x", line.ratio >= _RATIO
    if "twice" not in figures:
        return [line]
    return [line, beside(name, "writes/s", figures["ours"], "redis-py, old and then new name", figures["twice"])]
