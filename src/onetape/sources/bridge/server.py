"""A bridge server: the contract of a Sierra Chart bridge, for tests and the demo.

    GET /api/market_data            {symbol: state, …}
    GET /api/data/{symbol}          state, or 404
    WS  /ws/live_data/{symbol}      the state there is, then each as it comes
    GET /api/file/list              {"files": [{"name", "size", "modified"}]}
    GET /api/file/info?path=        {"name", "size", "modified"}
    GET /api/file/read?path=        {"content": text}
    GET /api/file/read_binary?path=&offset=&length=     the bytes

A state is an object with symbol, timestamp (Unix seconds), price, size, bid, ask, bid_size, ask_size, volume. It
listens on the loopback by default; names that lead out of its folder are refused with 400.
"""

from __future__ import annotations

import http
import queue
import threading
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

from onetape.errors import ConfigInvalid
from onetape.record import Tick
from onetape.sources.bridge.files import safe_name

_PUSH = "/ws/live_data/"

#: A piece of a file is at most this long, bytes.
PIECE_MAX = 4 << 20

#: Messages that wait for one client; a client with more is cut off.
QUEUE_MAX = 10_000


class BridgeServer:
    """Gives states to whoever asks or listens.

    folder: whose files it gives; None: none. push: whether it has WebSockets.
    """

    def __init__(
        self, *, host: str = "127.0.0.1", port: int = 0, folder: Path | None = None, push: bool = True
    ) -> None:
        self.folder, self.push = folder, push
        self.states: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        self._listeners: dict[str, set[queue.Queue[bytes | None]]] = {}
        self._server = serve(self._listen, host, port, process_request=self._answer, compression=None)
        self.port: int = self._server.socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="bridge", daemon=True)
        self._thread.start()

    def __enter__(self) -> BridgeServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def listeners(self) -> int:
        """How many WebSockets are connected."""
        with self._lock:
            return sum(len(waiting) for waiting in self._listeners.values())

    def publish(self, tick: Tick) -> None:
        """Make a tick the symbol's state, on top of what was known, and push it."""
        state = dict(self.states.get(tick.symbol, {"symbol": tick.symbol}))
        told = {
            "price": tick.price,
            "size": tick.size,
            "bid": tick.bid,
            "ask": tick.ask,
            "bid_size": tick.bid_size,
            "ask_size": tick.ask_size,
            "volume": tick.volume,
        }
        state.update({name: value for name, value in told.items() if value is not None})
        state["timestamp"] = tick.ts_event_ns / 1e9
        self.tell(tick.symbol, state)

    def tell(self, symbol: str, state: dict[str, Any]) -> None:
        """Make this the symbol's state and push it as it is."""
        data = msgspec.json.encode(state)
        with self._lock:
            self.states = {**self.states, symbol: state}
            for waiting in self._listeners.get(symbol, ()):
                self._put(waiting, data)

    def cut(self) -> None:
        """End every WebSocket."""
        with self._lock:
            for listeners in self._listeners.values():
                for waiting in listeners:
                    self._put(waiting, None)

    def close(self) -> None:
        """End the server and its connections."""
        self.cut()
        self._server.shutdown()
        self._thread.join(timeout=5)

    @staticmethod
    def _put(waiting: queue.Queue[bytes | None], data: bytes | None) -> None:
        try:
            waiting.put_nowait(data)
        except queue.Full:  # it does not read: forget what waits, and end it
            while not waiting.empty():
                waiting.get_nowait()
            waiting.put_nowait(None)

    def _listen(self, connection: ServerConnection) -> None:
        path = connection.request.path if connection.request else ""
        symbol = unquote(urlsplit(path).path[len(_PUSH) :])
        waiting: queue.Queue[bytes | None] = queue.Queue(maxsize=QUEUE_MAX)
        with self._lock:
            self._listeners.setdefault(symbol, set()).add(waiting)
            if symbol in self.states:
                waiting.put_nowait(msgspec.json.encode(self.states[symbol]))
        try:
            while (data := waiting.get()) is not None:
                connection.send(data, text=True)
        except ConnectionClosed:
            pass
        finally:
            with self._lock:
                self._listeners[symbol].discard(waiting)

    def _answer(self, connection: ServerConnection, request: Request) -> Response | None:
        parts = urlsplit(request.path)
        path, query = parts.path, {name: values[-1] for name, values in parse_qs(parts.query).items()}
        if path.startswith(_PUSH):
            return None if self.push else _json({"error": "no WebSocket here"}, 404)
        states = self.states
        if path == "/api/market_data":
            return _json(states)
        if path.startswith("/api/data/"):
            symbol = unquote(path[len("/api/data/") :])
            return _json(states[symbol]) if symbol in states else _json({"error": "unknown symbol"}, 404)
        if path.startswith("/api/file/") and self.folder is not None:
            try:
                return self._file(self.folder, path[len("/api/file/") :], query)
            except (ConfigInvalid, ValueError) as error:
                return _json({"error": str(error)}, 400)
            except OSError as error:
                return _json({"error": error.strerror or "unreadable"}, 404)
        return _json({"error": "unknown path"}, 404)

    def _file(self, folder: Path, verb: str, query: dict[str, str]) -> Response:
        if verb == "list":
            files = sorted(path for path in folder.iterdir() if path.is_file())
            return _json({"files": [_described(path) for path in files]})
        path = folder / safe_name(query.get("path", ""))
        if not path.resolve().is_relative_to(folder.resolve()):  # a link that leads elsewhere
            raise ConfigInvalid(f"file {path.name!r} lies elsewhere")
        if verb == "info":
            return _json(_described(path))
        if verb == "read":
            if path.stat().st_size > PIECE_MAX:
                raise ConfigInvalid(f"{path.name} is longer than {PIECE_MAX} bytes", hint="read it in pieces")
            return _json({"name": path.name, "content": path.read_text(errors="replace")})
        if verb == "read_binary":
            offset, length = int(query.get("offset", "0")), int(query.get("length", str(PIECE_MAX)))
            if offset < 0 or not 0 <= length <= PIECE_MAX:
                raise ConfigInvalid(f"offset {offset}, length {length}", hint=f"length is at most {PIECE_MAX}")
            with path.open("rb") as file:
                file.seek(offset)
                return _response(200, "application/octet-stream", file.read(length))
        return _json({"error": "unknown path"}, 404)


def _described(path: Path) -> dict[str, Any]:
    stat = path.stat()
    return {"name": path.name, "size": stat.st_size, "modified": stat.st_mtime}


def _json(value: Any, status: int = 200) -> Response:
    return _response(status, "application/json", msgspec.json.encode(value))


def _response(status: int, kind: str, body: bytes) -> Response:
    headers = Headers()
    headers["Content-Type"], headers["Content-Length"], headers["Connection"] = kind, str(len(body)), "close"
    return Response(status, http.HTTPStatus(status).phrase, headers, body)
