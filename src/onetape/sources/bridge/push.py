"""The push: a WebSocket and a thread for each symbol, and one bounded queue that they share."""

from __future__ import annotations

import contextlib
import math
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage
from websockets.sync.client import ClientConnection, connect

from onetape.sources.bridge.http import BridgeAway, quoted
from onetape.sources.dialing import dial

#: A pushed message is at most this long, bytes.
MESSAGE_BYTES = 1 << 20
#: How often a bridge is asked whether it is there, and after how long without an answer it is taken for lost, s.
ASK_S, LOST_S = 2.0, 20.0

_DELIVER_MAX = 5_000


class _Line:
    """One symbol's connection. heard: the monotonic time up to which the bridge is known to have been there."""

    def __init__(self, symbol: str, wire: ClientConnection, close: Callable[[], None]) -> None:
        self.symbol, self.wire, self.close = symbol, wire, close
        self.heard = self.asked = time.monotonic()
        self.answer: threading.Event | None = None

    def ask(self) -> None:
        """Note an answer; ask again where it is time to. Raises ConnectionClosed or BridgeAway."""
        now = time.monotonic()
        if self.answer is not None and self.answer.is_set():
            self.heard, self.answer = self.asked, None
        if self.answer is not None:
            if now - self.asked > LOST_S:
                raise BridgeAway(f"{self.symbol}: no answer for {LOST_S:g} s")
        elif now - self.asked >= ASK_S:
            self.asked, self.answer = now, self.wire.ping()


class Push:
    """The WebSockets of one session."""

    def __init__(self, host: str, port: int, connect_s: float, wanted: Callable[[], bool]) -> None:
        shown = f"[{host}]" if ":" in host else host
        self._address = f"ws://{shown}:{port}/ws/live_data/"
        self._host, self._port, self._connect_s, self._wanted = host, port, connect_s, wanted
        self._queue: queue.Queue[tuple[str, str | bytes]] = queue.Queue(maxsize=10_000)
        self._lines: list[_Line] = []
        self._opening: socket.socket | None = None
        self._stopped = threading.Event()
        self._why: Exception | None = None

    def open(self, symbol: str, *, required: bool) -> bool:
        """Connect; whether the bridge lets us. Raises OSError where there is no bridge."""
        stack = contextlib.ExitStack()
        self._opening = dial(self._host, self._port, self._connect_s, self._wanted)
        try:
            wire = stack.enter_context(
                connect(
                    self._address + quoted(symbol),
                    sock=self._opening,
                    open_timeout=self._connect_s,
                    close_timeout=0.1,
                    ping_interval=None,
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
        finally:
            self._opening = None
        line = _Line(symbol, wire, stack.close)
        self._lines.append(line)
        threading.Thread(target=self._read, args=(line,), name=f"bridge {symbol}", daemon=True).start()
        return True

    def hang_up(self) -> None:
        """End a handshake that is waited for. From any thread."""
        opening = self._opening
        if opening is not None:
            with contextlib.suppress(OSError):
                opening.shutdown(socket.SHUT_RDWR)

    @property
    def heard(self) -> float:
        """Up to when every line was heard, monotonic, s; infinite without lines."""
        return min((line.heard for line in self._lines), default=math.inf)

    def messages(self, wait_s: float) -> Iterator[tuple[str, str | bytes]]:
        """Yield what came, waiting this long for the first."""
        try:
            yield self._queue.get(timeout=wait_s)
            for _ in range(_DELIVER_MAX):
                yield self._queue.get_nowait()
        except queue.Empty:
            return

    def check(self) -> None:
        """Raise what ended a connection, once what came before it was given; ask the others."""
        if self._why is None:
            try:
                for line in self._lines:
                    line.ask()
            except (ConnectionClosed, BridgeAway) as error:
                self._why = error
        if self._why is not None and self._queue.empty():
            raise self._why

    def close(self) -> None:
        """End all of them."""
        self._stopped.set()
        for line in self._lines:  # each waits for the other side, which may be gone
            threading.Thread(target=line.close, name="bridge farewell", daemon=True).start()

    def _read(self, line: _Line) -> None:
        try:
            while not self._stopped.is_set():
                message = line.wire.recv()
                while not self._stopped.is_set():
                    try:
                        self._queue.put((line.symbol, message), timeout=0.2)
                        break
                    except queue.Full:
                        continue
        except Exception as error:  # noqa: BLE001  whatever ends this thread ends the session, with its reason
            self._why = self._why or BridgeAway(f"{line.symbol}: {error or type(error).__name__}")
