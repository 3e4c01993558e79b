"""A system that is really served, in a thread of its own, for tests that ask it over the network."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import websockets.sync.client
from websockets.exceptions import ConnectionClosed

from onetape.config import WebSettings
from onetape.services.system import System
from onetape.store import query
from onetape.web.app import make_app
from onetape.web.server import serve

#: How long anything may take on the slowest machine, s.
PATIENCE_S = 60.0


class Served:
    """A served system: `address`, and its hub."""

    def __init__(self, system: System, settings: WebSettings) -> None:
        self.app = make_app(system, settings)
        self.hub = self.app.state.hub
        self.address = ""
        self._settings = settings
        self._up = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._up.wait(PATIENCE_S)
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001  (it is raised where the test waits)
            self._error = error
            self._up.set()

    async def _serve(self) -> None:
        def up(address: str) -> None:
            self.address = address
            self._up.set()

        self._loop = asyncio.get_running_loop()
        self._task = asyncio.ensure_future(serve(self.app, self._settings, on_ready=up))
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._task.cancel)
            self._thread.join(PATIENCE_S)
            assert not self._thread.is_alive()

    def kill(self, client: Any) -> None:
        """Cut a client's connection from the server's side."""
        self._loop.call_soon_threadsafe(client.abort, "a test cuts it")


@contextmanager
def served(system: System, **settings: Any) -> Iterator[Served]:
    made = Served(system, WebSettings(port=0, **{"requests_per_s": 1000, **settings}))
    try:
        yield made
    finally:
        made.stop()


class Page:
    """A client as a page is one: it keeps the bars it was told of, by symbol and start."""

    def __init__(self, served: Served, **headers: str) -> None:
        url = served.address.replace("http", "ws") + "/ws/v1"
        self._open = websockets.sync.client.connect(url, additional_headers=headers, max_size=None)
        self.socket = self._open.__enter__()
        self.bars: dict[str, dict[int, list[Any]]] = {}
        self.last: dict[str, list[Any]] = {}
        self.revised: list[int] = []
        self.position: int | None = None
        self.frames = 0

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.__exit__(None, None, None)

    def say(self, **message: Any) -> None:
        self.socket.send(json.dumps(message))

    def subscribe(self, *symbols: str, interval: str = "1min", **more: Any) -> None:
        self.say(op="subscribe", symbols=list(symbols), interval=interval, **more)

    def hear(self, timeout: float = PATIENCE_S) -> dict[str, Any]:
        """Return the next message, applied."""
        told: dict[str, Any] = json.loads(self.socket.recv(timeout))
        if told["op"] == "snapshot":
            self.bars[told["symbol"]] = {row[0]: row for row in told["bars"]}
            self.last[told["symbol"]] = told["last"]
            self.position = told["position"]
        elif told["op"] == "delta":
            self.frames += 1
            self.position = told["position"]
            for symbol, changed in told["symbols"].items():
                kept = self.bars.setdefault(symbol, {})
                for row in changed["bars"]:
                    if row[1] is None:
                        kept.pop(row[0], None)
                    else:
                        kept[row[0]] = row
                self.last[symbol] = changed["last"]
                self.revised += changed["revised"]
        return told

    def until(self, *ops: str) -> dict[str, Any]:
        """Return the next message of these kinds."""
        while True:
            told = self.hear()
            if told["op"] in ops:
                return told

    def until_bars(self, symbol: str, expected: list[list[Any]]) -> None:
        """Hear until the bars are these."""
        wanted = {row[0]: row for row in expected}
        while {start: row for start, row in self.bars.get(symbol, {}).items() if start in wanted} != wanted:
            self.hear()

    def closed(self) -> tuple[int, str]:
        """Hear until the connection is closed; return code and reason."""
        while True:
            try:
                self.socket.recv(PATIENCE_S)
            except ConnectionClosed as ended:
                assert ended.rcvd is not None, "closed without a word"
                return ended.rcvd.code, ended.rcvd.reason


class Standing:
    """A plain tape where a SteadyTape is expected: for tests in which the tape is never away."""

    def __init__(self, tape: Any) -> None:
        self.tape = tape
        self.path = tape.path
        self.status = Steady()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tape, name)

    @property
    def head(self) -> int:
        with self.tape._reading() as connection:
            return int(query.head(connection))


class Steady(msgspec.Struct, frozen=True):
    """What a SteadyTape says of itself while all is well."""

    on_tape: bool = True
    reason: str | None = None
    since_ns: int = 0
    held: int = 0
    ring_records: int = 0
    dropped: int = 0
    written_back: int = 0
    outages: int = 0
