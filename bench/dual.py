"""Dual write: a write to both sides of a live migration beside a plain redis-py client that writes the old one.

Also beside what one would do by hand: a second redis-py client that writes the new name after the first has answered,
without a transaction, a fence or a migration.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import redis
import redis.asyncio

from bench.measure import Line, Setting, beside, share_time
from onetape.embedded import EmbeddedServer
from onetape.migrate.dual import AsyncDualRedis, DualRedis
from onetape.migrate.phases import state as states
from onetape.migrate.phases.phase import Phase
from onetape.migrate.plans.plan import Plan
from onetape.migrate.wire.endpoint import Endpoint

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
        ]


def _one_by_one(setting: Setting, port: int, plan: Plan) -> list[Line]:
    lines = []
    with (
        redis.Redis(port=port, db=5) as plain,
        redis.Redis(port=port, db=_TARGET) as second,
        DualRedis(port=port, db=5, plan=plan) as dual,
    ):
        for what, write in _WRITES.items():
            for i in range(_KEYS):  # the first write of a key makes its other side
                write(dual, _OLD, i)
            ways: dict[str, Callable[[int], Any]] = {
                "plain": lambda i, write=write: write(plain, _PLAIN, i),
                "ours": lambda i, write=write: write(dual, _OLD, i),
                "twice": lambda i, write=write: (write(plain, _PLAIN, i), write(second, _NEW, i)),
            }
            lines += _lines(what, _shared(setting, ways, 10_000))
        first = _shared(setting, {"plain": lambda i: _hset(plain, _PLAIN, i), "ours": _FirstWrites(dual).write}, 2_000)
        lines += _lines("HSET, the first of a key by this client", first, target=False)
        piped = {"plain": lambda i: _pipeline(plain, _PLAIN, i), "ours": lambda i: _pipeline(dual, _OLD, i)}
        lines += _lines("a pipeline of 100 SET", _shared(setting, piped, 500), "pipelines/s", target=False)
        if dual.dual.status().divergences:
            raise RuntimeError("sides differ")
    return lines


def _shared(setting: Setting, ways: dict[str, Callable[[int], Any]], count: int) -> dict[str, list[float]]:
    return share_time(ways, setting.scaled(count, count // 50), max(1, count // 50), setting.runs)


class _FirstWrites:
    """Writes each key once, whatever it is asked."""

    def __init__(self, dual: DualRedis) -> None:
        self._dual, self._numbers = dual, count()

    def write(self, _i: int) -> None:
        self._dual.hset(f"{_OLD}:{next(self._numbers)}:first", mapping=_FIELDS)


def _pipeline(client: Any, family: str, i: int) -> None:
    with client.pipeline() as pipe:
        for at in range(100 * i, 100 * i + 100):
            _set(pipe, family, at)
        pipe.execute()


def _with_asyncio(setting: Setting, port: int, plan: Plan) -> list[Line]:
    lines = []
    with asyncio.Runner() as runner:
        plain, dual = redis.asyncio.Redis(port=port, db=5), AsyncDualRedis(port=port, db=5, plan=plan)
        for what, write in _WRITES.items():
            runner.run(_block(dual, _OLD, write, range(_KEYS)))
            ways: dict[str, Callable[[int], Any]] = {
                "plain": lambda i, write=write: runner.run(_block(plain, _PLAIN, write, range(i * 200, i * 200 + 200))),
                "ours": lambda i, write=write: runner.run(_block(dual, _OLD, write, range(i * 200, i * 200 + 200))),
            }
            figures = share_time(ways, setting.scaled(50, 1), 1, setting.runs)
            lines += _lines(f"{what}, asyncio", {name: [200 * rate for rate in told] for name, told in figures.items()})
        runner.run(dual.aclose())
        runner.run(plain.aclose())
    return lines


async def _block(client: Any, family: str, write: _Write, numbers: range) -> None:
    for i in numbers:
        await write(client, family, i)


def _lines(what: str, figures: dict[str, list[float]], unit: str = "writes/s", *, target: bool = True) -> list[Line]:
    name = f"dual write, {what}"
    line = beside(name, unit, figures["ours"], "redis-py, old name only", figures["plain"])
    if target and line.ratio is not None:
        line.target, line.reached = f">= {_RATIO:.2f} x", line.ratio >= _RATIO
    if "twice" not in figures:
        return [line]
    return [line, beside(name, unit, figures["ours"], "redis-py, old and then new name", figures["twice"])]
