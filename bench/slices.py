"""Slices: the longest that another client waits while a set of a million members moves, beside one COPY of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from bench import moves
from bench.measure import Line, Setting, alone, beside
from onetape.embedded import EmbeddedServer
from onetape.migrate import Migration
from onetape.migrate.wire.endpoint import Endpoint, pack

_KEY = "volume_averages:NFO:MILLION"
_PAGE = 1000
#: Up to here nobody minds that a server does not answer, ms.
_PAUSE_MS = 20


def measure(setting: Setting) -> list[Line]:
    """Return the longest waits of a client that asks 1,000 times a second, and how long the move took."""
    with EmbeddedServer() as server:
        return _lines(setting, server)


def _lines(setting: Setting, server: EmbeddedServer) -> list[Line]:
    members = setting.scaled(1_000_000, 200_000)
    _fill(server, members)
    sliced: list[float] = []
    whole: list[float] = []
    seconds: list[float] = []
    for _ in range(1 if setting.quick else setting.runs):
        whole.append(max(_felt(server, lambda: _copy(server))))
        with setting.scratch() as folder:
            began_s = time.perf_counter()
            sliced.append(max(_felt(server, lambda at=folder: _backfill(server, at))))
            seconds.append(time.perf_counter() - began_s)
    name = f"longest wait while a set of {members:,} members moves"
    line = beside(name, "ms", sliced, "one COPY of it", whole, more_is_better=False)
    line.target, line.reached = f"< {_PAUSE_MS}", line.ours < _PAUSE_MS
    return [line, alone("the same, the move", "s", seconds)]


def _fill(server: EmbeddedServer, members: int) -> None:
    with Endpoint.connect(server.url) as endpoint:
        endpoint.call("FLUSHALL")
        endpoint.select(2)
        for at in range(0, members, _PAGE):
            names = [f"a member with a name {i}" for i in range(at, min(at + _PAGE, members))]
            endpoint.exchange(pack("SADD", _KEY, *names), 1)


def _copy(server: EmbeddedServer) -> None:
    with Endpoint.connect(server.url, db=2, timeout_s=60.0) as endpoint:
        endpoint.call("COPY", _KEY, "copied", "DB", 1)
        endpoint.select(1)
        endpoint.call("UNLINK", "copied")
        time.sleep(0.5)  # it is freed beside


def _backfill(server: EmbeddedServer, folder: Path) -> None:
    with Endpoint.connect(server.url, db=1) as endpoint:
        endpoint.call("FLUSHDB", "ASYNC")
    time.sleep(0.5)
    report = Migration(server.url, ledger_path=folder / "ledger.db").backfill()
    assert report.totals == {"copied": 1}, report.totals


def _felt(server: EmbeddedServer, work: Callable[[], None]) -> list[float]:
    """Return the latencies, ms, of a visitor while the work is done."""
    with moves.visitor(server) as found:
        work()
    return found
