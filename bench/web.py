"""The web server under load: from before append() to the frame in a client's hands, and a thousand clients on one core.

The server, the feed and the clients are processes of their own. A tick's price is the time of its append (ms of
CLOCK_MONOTONIC, one clock for all processes of the machine), so a frame says how old what it shows is.

    python -m bench.web serve PATH                     the server: prints its address, then serves
    python -m bench.web feed PATH RATE SECONDS ALSO    a feed: appends RATE ticks/s of 50 symbols, and ALSO/s of "PROBE"
    python -m bench.web clients ADDRESS SECONDS COUNT DEAF EACH   clients of EACH of the 50 symbols (0: all in one)
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import re
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import onetape
from bench.child import bind_to_parent
from bench.measure import Line, Setting, alone, percentile
from onetape import Tick

SYMBOLS = [f"S{number:02}" for number in range(50)]
PROBE = "PROBE"
_LAST = re.compile(rb'"last":\[\d+,([\d.]+),')
_CORES = sorted(os.sched_getaffinity(0))


def measure(setting: Setting) -> list[Line]:
    """Return the latency of a quiet symbol and of a busy one, and what a thousand clients get of one core."""
    seconds = setting.scaled(10, 2)
    return [
        *_latency(setting, seconds),
        *_crowd(setting, seconds, 1),
        *_crowd(setting, seconds, 50),
        *_candles(setting),
    ]


def _latency(setting: Setting, seconds: int) -> list[Line]:
    with (
        setting.scratch() as folder,
        _server(folder / "t.db", None) as (address, _),
        _feed(folder / "t.db", 20_000, seconds + 4, 5),
    ):
        time.sleep(1.5)
        found = json.loads(_clients(address, seconds, (PROBE, SYMBOLS[0])))
    quiet, busy = found[PROBE], found[SYMBOLS[0]]
    name = "web: feed to WebSocket client at 20,000 ticks/s"
    newest = [age for age, _, _ in busy]
    waits = [wait for _, wait, span in busy for wait in _waits(wait, span)]
    return [
        alone(f"{name}, a symbol of 5 ticks/s, p50", "ms", [percentile([age for age, _, _ in quiet], 0.5)]),
        alone(f"{name}, a symbol of 5 ticks/s, p99", "ms", [percentile([age for age, _, _ in quiet], 0.99)], below=20),
        alone(
            f"{name}, a symbol of 400 ticks/s, newest tick of a frame, p99", "ms", [percentile(newest, 0.99)], below=20
        ),
        alone(
            f"{name}, a symbol of 400 ticks/s, every tick, gathered to 20 frames/s, p99",
            "ms",
            [percentile(waits, 0.99)],
        ),
    ]


def _waits(age: float, span: float) -> Iterator[float]:
    """Yield how old each of the ticks that a frame gathered was: one each 2.5 ms of the span behind the last frame."""
    at = 0.0
    while at < span:
        yield age + at
        at += 2.5


def _crowd(setting: Setting, seconds: int, each: int) -> list[Line]:
    count, deaf = setting.scaled(1000, 50), setting.scaled(50, 5)
    with (
        setting.scratch() as folder,
        _server(folder / "t.db", _CORES[0]) as (address, server),
        _feed(folder / "t.db", 1000, seconds + 25, 0, _CORES[0]),
    ):
        found = json.loads(_crowd_of(address, seconds, count, deaf, each, server))
    what = "one symbol each" if each == 1 else f"all {each} symbols each"
    name = f"web: {count:,} clients on 50 symbols ({what}), {deaf} of which never read, 1,000 ticks/s"
    return [
        alone(f"{name}: frames a second to all", "1/s", [found["frames_per_s"]]),
        alone(f"{name}: frames a second to each that reads", "1/s", [found["frames_per_s"] / (count - deaf)]),
        alone(f"{name}: age of the newest tick of a frame, p99", "ms", [percentile(found["ages"], 0.99)]),
        alone(f"{name}: the server's share of its core", "%", [found["cpu"]], at_most=100),
    ]


def _candles(setting: Setting) -> list[Line]:
    """Return how long a window of 1,000 minutes out of a million takes, over HTTP."""
    import httpx2
    import numpy as np

    minutes = setting.scaled(1_000_000, 20_000)
    began = 1_600_000_020_000_000_000
    with setting.scratch() as folder:
        path = folder / "t.db"
        with onetape.open(path, retention_days=None) as tape:
            for at in range(0, minutes, 50_000):
                count = min(50_000, minutes - at)
                ts = began + np.arange(at, at + count, dtype="<i8") * 60_000_000_000
                price = 100 + 0.25 * np.random.default_rng(at).integers(-100, 100, count)
                tape.append_table({"symbol": ["A"] * count, "ts_event_ns": ts, "price": price, "size": np.ones(count)})
            tape.seal()
        took = []
        with _server(path, None) as (address, _), httpx2.Client(base_url=address) as client:
            for _ in range(setting.scaled(60, 5)):
                end_ms = (began // 1_000_000) + random.randrange(1000, minutes) * 60_000
                start = time.perf_counter()
                answer = client.get("/api/v1/candles", params={"symbol": "A", "end_ms": end_ms, "limit": 1000})
                took.append(1e3 * (time.perf_counter() - start))
                assert len(answer.json()["bars"]) == 1000
    took = took[2:]
    name = f"web: a window of 1,000 minutes of {minutes:,}, over HTTP"
    return [
        alone(f"{name}, p50", "ms", [percentile(took, 0.5)], below=20),
        alone(f"{name}, p99", "ms", [percentile(took, 0.99)]),
    ]


# Processes


def _pinned(command: list[str], core: int | None) -> list[str]:
    return command if core is None else ["taskset", "-c", str(core), *command]


@contextmanager
def _server(path: Path, core: int | None) -> Iterator[tuple[str, int]]:
    with onetape.open(path, retention_days=None) as tape:
        if tape.latest("A") is None:
            tape.append([Tick(symbol, time.time_ns(), price=1.0, size=1.0) for symbol in [*SYMBOLS, PROBE]])
    command = _pinned([sys.executable, "-m", "bench.web", "serve", str(path)], core)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            address = child.stdout.readline().strip()
            if not address:
                raise RuntimeError("the server did not start")
            yield address, child.pid
        finally:
            child.terminate()


@contextmanager
def _feed(path: Path, rate: int, seconds: int, also: int, core: int | None = None) -> Iterator[None]:
    command = [sys.executable, "-m", "bench.web", "feed", str(path), str(rate), str(seconds), str(also)]
    with subprocess.Popen(_pinned(command, core)) as child:
        try:
            yield
        finally:
            child.terminate()


def _clients(address: str, seconds: int, symbols: tuple[str, ...]) -> bytes:
    command = [sys.executable, "-m", "bench.web", "listen", address, str(seconds), *symbols]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=seconds + 60).stdout


def _crowd_of(address: str, seconds: int, count: int, deaf: int, each: int, server: int) -> bytes:
    told = [str(word) for word in (address, seconds, count, deaf, each, server)]
    command = _pinned([sys.executable, "-m", "bench.web", "clients", *told], _CORES[-1])
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=seconds + 120).stdout


def _serve(path: str) -> None:
    import uvloop

    from onetape.config import WebSettings
    from onetape.services.system import System
    from onetape.steady import SteadyTape
    from onetape.web.app import make_app
    from onetape.web.server import serve

    with SteadyTape(path, retention_days=None) as tape:
        settings = WebSettings(port=0, requests_per_s=10_000)
        app = make_app(System(tape=tape), settings)
        uvloop.run(serve(app, settings, on_ready=lambda address: print(address, flush=True)))


def _feed_main(path: str, rate: int, seconds: int, also: int) -> None:
    """Append in steps of a millisecond, or of one tick where they are rarer."""
    rng = random.Random(7)
    clock = time.perf_counter
    with onetape.open(path, retention_days=None) as tape:
        begin = clock()
        sent, probes, number = 0, 0, 0
        while (passed := clock() - begin) < seconds:
            due = int(passed * rate) - sent
            now, at = clock() * 1e3, time.time_ns()
            batch = []
            for _ in range(due):
                batch.append(Tick(SYMBOLS[number % 50], at, price=now, size=1.0))
                number += 1
            if also and int(passed * also + 0.5 * rng.random()) > probes:
                probes += 1
                batch.append(Tick(PROBE, at, price=now, size=1.0))
            if batch:
                tape.append(batch)
                sent += due
            time.sleep(0.001)


# Clients


class _Client(asyncio.Protocol):
    """A WebSocket client that looks at what it must and nothing else."""

    def __init__(self, symbols: list[str], deaf: bool, looks: bool) -> None:
        self.symbols, self.deaf, self.looks = symbols, deaf, looks
        self.buffer = bytearray()
        self.open = False
        self.frames = 0
        self.found: list[tuple[float, float, float]] = []
        self.before = 0.0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        key = base64.b64encode(os.urandom(16)).decode()
        transport.write(
            f"GET /ws/v1 HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if not self.open:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            del self.buffer[: end + 4]
            self.open = True
            message = json.dumps({"op": "subscribe", "symbols": self.symbols, "history": 2}).encode()
            head = (
                struct.pack("!BB", 0x81, 0x80 | len(message))
                if len(message) < 126
                else (struct.pack("!BBH", 0x81, 0xFE, len(message)))
            )
            self.transport.write(head + bytes(4) + message)
            if self.deaf:
                self.transport.pause_reading()
        at = 0
        buffer = self.buffer
        while len(buffer) - at >= 2:
            size, head = buffer[at + 1], 2
            if size == 126:
                if len(buffer) - at < 4:
                    break
                size, head = int.from_bytes(buffer[at + 2 : at + 4]), 4
            elif size == 127:
                if len(buffer) - at < 10:
                    break
                size, head = int.from_bytes(buffer[at + 2 : at + 10]), 10
            if len(buffer) - at < head + size:
                break
            if buffer[at + head + 7 : at + head + 12] == b"delta":
                self.frames += 1
                if self.looks:
                    self._look(bytes(buffer[at + head : at + head + size]))
            at += head + size
        del buffer[:at]

    def _look(self, frame: bytes) -> None:
        """Keep how old the newest tick is, and how far it is from the one of the frame before."""
        newest = max((float(price) for price in _LAST.findall(frame)), default=0.0)
        if newest > self.before:
            age = time.perf_counter() * 1e3 - newest
            self.found.append((age, age, newest - self.before))
            self.before = newest


async def _open(address: str, client: _Client) -> _Client:
    place = urlsplit(address)
    await asyncio.get_running_loop().create_connection(lambda: client, place.hostname, place.port)
    return client


async def _listen(address: str, seconds: float, symbols: list[str]) -> None:
    clients = [await _open(address, _Client([symbol], False, True)) for symbol in symbols]
    await asyncio.sleep(seconds)
    print(json.dumps({client.symbols[0]: client.found[2:] for client in clients}))


async def _crowd_main(address: str, seconds: float, count: int, deaf: int, each: int, server: int) -> None:
    clients = []
    for number in range(count):
        symbols = [SYMBOLS[number % 50]] if each == 1 else SYMBOLS
        is_deaf = number % (count // deaf) == 0
        clients.append(await _open(address, _Client(symbols, is_deaf, number % 20 == 1 and not is_deaf)))
    await asyncio.sleep(8)  # until all have their snapshot
    for client in clients:
        client.frames = 0
        client.found.clear()
    spent, began = _cpu_s(server), time.monotonic()
    await asyncio.sleep(seconds)
    passed = time.monotonic() - began
    print(
        json.dumps(
            {
                "frames_per_s": sum(client.frames for client in clients) / passed,
                "ages": [age for client in clients for age, _, _ in client.found],
                "cpu": 100 * (_cpu_s(server) - spent) / passed,
            }
        )
    )


def _cpu_s(pid: int) -> float:
    told = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(told[11]) + int(told[12])) / os.sysconf("SC_CLK_TCK")


def _main(what: str, *told: str) -> None:
    import uvloop

    if what == "serve":
        _serve(told[0])
    elif what == "feed":
        _feed_main(told[0], *(int(word) for word in told[1:4]))
    elif what == "listen":
        uvloop.run(_listen(told[0], float(told[1]), list(told[2:])))
    elif what == "clients":
        uvloop.run(_crowd_main(told[0], float(told[1]), *(int(word) for word in told[2:6])))


if __name__ == "__main__":
    bind_to_parent()
    _main(*sys.argv[1:])
