"""The bridge source: symbols of a Sierra Chart bridge, pushed over WebSockets, or polled where it does not push."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import msgspec
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage
from websockets.sync.client import ClientConnection, connect

from onetape.clock import now_ns
from onetape.errors import ConfigInvalid
from onetape.record import Tick
from onetape.sources.bridge.http import BridgeAway, BridgeHttp, quoted
from onetape.sources.bridge.look import Known, LookInvalid, Watch, read
from onetape.sources.source import Backoff, Delivery, Reconnecting

Transport = Literal["auto", "ws", "http"]

#: A pushed message is at most this long, bytes.
MESSAGE_BYTES = 1 << 20

#: A connection that lasted this long, s, was a good one: the next wait is short again.
GOOD_S = 10.0

_DELIVER_MAX = 5_000


class _Cursor(msgspec.Struct, array_like=True):
    number: int  # of deliveries with records: no two cursors are equal
    known: dict[str, Known]


class BridgeSource(Reconnecting):
    """Ticks of `symbols` from a bridge.

    transport: "auto" pushes, and polls those symbols whose WebSocket the bridge refuses; "ws" or "http" alone.
    poll_s: how often it polls.
    """

    kind = "bridge"
    lost = (OSError, EOFError, ConnectionClosed, InvalidHandshake)

    def __init__(
        self,
        name: str,
        host: str,
        port: int,
        symbols: Sequence[str],
        *,
        transport: Transport = "auto",
        poll_s: float = 0.5,
        connect_s: float = 10.0,
        backoff: Backoff | None = None,
        clock: Callable[[], int] = now_ns,
    ) -> None:
        if not symbols:
            raise ConfigInvalid(f"source {name}: no symbols", hint='say which, such as symbols = ["ESZ6"]')
        super().__init__(name, backoff=backoff, clock=clock)
        self._host, self._port, self._symbols = host, port, list(dict.fromkeys(symbols))
        self._transport, self._poll_s, self._connect_s = transport, poll_s, connect_s
        self._watches = {symbol: Watch(symbol, name) for symbol in self._symbols}
        self._number = 0
        self._alive_ns: int | None = None
        self._counted: dict[str, float] = {}

    def resume(self, cursor: str | None) -> None:
        """Go on: a state that was told before is not told again."""
        known: dict[str, Known] = {}
        if cursor is not None:
            try:
                taken = msgspec.json.decode(cursor, type=_Cursor)
            except msgspec.DecodeError as error:
                raise ConfigInvalid(
                    f"a cursor that no bridge source wrote: {cursor[:60]!r}",
                    hint="another kind of source had this name before",
                ) from error
            self._number, known = taken.number, taken.known
        self._watches = {symbol: Watch(symbol, self.name, known.get(symbol)) for symbol in self._symbols}
        super().resume(cursor)

    def _session(self) -> Iterator[Delivery]:
        began, good = time.monotonic(), False
        with BridgeHttp(self._host, self._port, answer_s=self._connect_s) as http:
            push = _Push(self._host, self._port, self._connect_s)
            try:
                polled = list(self._symbols)
                if self._transport != "http":
                    polled = [
                        symbol for symbol in self._symbols if not push.open(symbol, required=self._transport == "ws")
                    ]
                for watch in self._watches.values():
                    watch.reconnected()
                self._facts["pushed"], self._facts["polled"] = len(self._symbols) - len(polled), len(polled)
                missing, next_poll = self._gap(), time.monotonic()
                while not self.stopped:
                    ticks: list[Tick] = []
                    if polled and time.monotonic() >= next_poll:
                        for symbol, state in self._poll(http, polled):
                            self._take(symbol, state, ticks, polled=True)
                        next_poll = time.monotonic() + self._poll_s
                    wait_s = min(0.5, next_poll - time.monotonic()) if polled else 0.5
                    for symbol, text in push.messages(max(wait_s, 0.001)):
                        self._take(symbol, text, ticks, polled=False)
                    if self.stats.state != "live":
                        self._tell(state="live", trouble=None)
                    if not good and time.monotonic() - began > GOOD_S:
                        self._backoff.reset()
                        good = True
                    self._alive_ns = self._clock()
                    yield self._delivery(ticks, missing)
                    missing = []
                    push.check()
            finally:
                push.close()

    def _gap(self) -> list[tuple[str, int, int]]:
        before, now = self._alive_ns, self._clock()
        if before is None or now <= before:
            return []
        return [(symbol, before, now) for symbol in self._symbols]

    def _poll(self, http: BridgeHttp, symbols: list[str]) -> Iterator[tuple[str, Any]]:
        """Yield (symbol, state) of those the bridge has: from one answer for all, else one by one."""
        try:
            states = _by_symbol(http.json("/api/market_data"))
        except BridgeAway as error:
            if error.status is None:
                raise
            states = None
        absent: list[str] = []
        for symbol in symbols:
            if states is not None and symbol in states:
                yield symbol, states[symbol]
                continue
            try:
                yield symbol, http.json(f"/api/data/{quoted(symbol)}")
            except BridgeAway as error:
                if error.status not in (404, 422):
                    raise
                absent.append(symbol)
        self._facts["unknown_to_the_bridge"] = absent

    def _take(self, symbol: str, message: Any, ticks: list[Tick], *, polled: bool) -> None:
        try:
            if isinstance(message, str | bytes):
                message = msgspec.json.decode(message)
            for one in message if isinstance(message, list) else [message]:
                tick = self._watches[symbol].news(read(one), self._clock(), polled=polled)
                if tick is not None:
                    ticks.append(tick)
        except (LookInvalid, msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            self._count(refused=1)
            self._facts["refused_last"] = f"{symbol}: {error}"

    def _delivery(self, ticks: list[Tick], missing: list[tuple[str, int, int]]) -> Delivery:
        totals = {
            name: sum(getattr(watch, name) for watch in self._watches.values())
            for name in ("repeats", "placeholders", "unseen")
        }
        self._count(duplicates=int(totals["repeats"] - self._counted.get("repeats", 0)))
        self._counted = totals
        self._facts["placeholders"], self._facts["volume_unseen"] = totals["placeholders"], totals["unseen"]
        if not ticks:
            return Delivery(missing=missing)
        self._number += 1
        known = {symbol: watch.known for symbol, watch in self._watches.items()}
        cursor = _Cursor(self._number, {symbol: one for symbol, one in known.items() if one is not None})
        return Delivery(ticks, cursor=msgspec.json.encode(cursor).decode(), missing=missing)


class _Push:
    """A WebSocket and a thread for each symbol, and one bounded queue that they share."""

    def __init__(self, host: str, port: int, connect_s: float) -> None:
        shown = f"[{host}]" if ":" in host else host
        self._address = f"ws://{shown}:{port}/ws/live_data/"
        self._connect_s = connect_s
        self._queue: queue.Queue[tuple[str, str | bytes]] = queue.Queue(maxsize=10_000)
        self._sockets: list[contextlib.ExitStack] = []
        self._stopped = threading.Event()
        self._why: Exception | None = None

    def open(self, symbol: str, *, required: bool) -> bool:
        """Connect; whether the bridge lets us. Raises OSError where there is no bridge."""
        stack = contextlib.ExitStack()
        try:
            socket = stack.enter_context(
                connect(
                    self._address + quoted(symbol),
                    open_timeout=self._connect_s,
                    close_timeout=0.1,
                    max_size=MESSAGE_BYTES,
                    compression=None,
                    proxy=None,
                )
            )
        except InvalidMessage as error:
            raise BridgeAway(f"no bridge: {error}") from error
        except InvalidHandshake as error:
            if required:
                raise BridgeAway(f"the bridge refuses the WebSocket of {symbol}: {error}") from error
            return False
        self._sockets.append(stack)
        threading.Thread(target=self._read, args=(symbol, socket), name=f"bridge {symbol}", daemon=True).start()
        return True

    def messages(self, wait_s: float) -> Iterator[tuple[str, str | bytes]]:
        """Yield what came, waiting this long for the first."""
        try:
            yield self._queue.get(timeout=wait_s)
            for _ in range(_DELIVER_MAX):
                yield self._queue.get_nowait()
        except queue.Empty:
            return

    def check(self) -> None:
        """Raise what ended a connection, once what came before it was given."""
        if self._why is not None and self._queue.empty():
            raise self._why

    def close(self) -> None:
        """End all of them."""
        self._stopped.set()
        for stack in self._sockets:  # each waits for the other side, which may be gone
            threading.Thread(target=stack.close, name="bridge farewell", daemon=True).start()

    def _read(self, symbol: str, socket: ClientConnection) -> None:
        try:
            while not self._stopped.is_set():
                message = socket.recv()
                while not self._stopped.is_set():
                    try:
                        self._queue.put((symbol, message), timeout=0.2)
                        break
                    except queue.Full:
                        continue
        except Exception as error:  # noqa: BLE001  whatever ends this thread ends the session, with its reason
            self._why = self._why or BridgeAway(f"{symbol}: {error or type(error).__name__}")


def _by_symbol(value: Any) -> dict[str, Any]:
    """The states of an answer about all symbols: an object by symbol, perhaps below "data" or "symbols", or a list."""
    for name in ("data", "symbols", "market_data"):
        if isinstance(value, dict) and isinstance(value.get(name), dict | list):
            value = value[name]
            break
    if isinstance(value, list):
        found = {}
        for entry in value:
            if isinstance(entry, dict):
                symbol = next((entry[name] for name in ("symbol", "Symbol", "ticker") if name in entry), None)
                if isinstance(symbol, str):
                    found[symbol] = entry
        return found
    return value if isinstance(value, dict) else {}
