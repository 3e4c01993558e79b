"""Market data for the old addresses: a WebSocket that streams every record, and four HTTP paths, as MinhOS had them.

    ws://127.0.0.1:9001      the latest record of every symbol, then each as it comes; one JSON object a message
    http://127.0.0.1:9002    /health, /api/market_data[?symbol=], /api/symbols, /api/stats

Records are the old ones: `symbol`, `timestamp` in seconds, `close`, ... without what is absent. A client that says
{"symbols": ["ESZ6"]} gets those alone. One that reads too slowly gets the newest record of each symbol and delays
nobody. New programs want the page's API instead: positions, bars, and no gap after a reconnect.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import msgspec
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from onetape.clock import now_ns
from onetape.errors import ConfigInvalid
from onetape.record import OWN_SYMBOLS, Record, Tick
from onetape.services.system import plain

if TYPE_CHECKING:
    from onetape.live.subscription import Subscription
    from onetape.steady import SteadyTape

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
#: What a client may say, bytes; and of how many symbols.
_MESSAGE_BYTES_MAX = 65_536
_SYMBOLS_MAX = 1_000
_CLIENTS_MAX = 1_000
#: A client may be so many bytes behind before its records are conflated.
_BEHIND_BYTES = 64 * 1024
_FIELDS = ("bid", "ask", "bid_size", "ask_size", "volume", "vwap", "trades")


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[services.market_data]: ports, 0 for free ones; host is an address of this machine alone."""

    ws_port: int = 9001
    http_port: int = 9002
    host: str = "127.0.0.1"


def make(tape: SteadyTape, options: Options) -> MarketDataService:
    """Return the service."""
    return MarketDataService(tape, ws_port=options.ws_port, http_port=options.http_port, host=options.host)


class MarketDataService:
    """Serves a tape at the old ports. `start()` listens; ws_port and http_port are then those that it has.

    It has no token, so it listens on loopback addresses alone. Raises ConfigInvalid for another one.
    """

    name = "market_data"

    def __init__(
        self, tape: SteadyTape, *, ws_port: int = 9001, http_port: int = 9002, host: str = "127.0.0.1"
    ) -> None:
        if host not in _LOOPBACK:
            raise ConfigInvalid(
                f"[services.market_data] host = {host!r} can be reached by others, and the old protocol has no token",
                hint="give 127.0.0.1; the page ([web]) can be served to others, with a token",
            )
        if not (0 <= ws_port < 65536 and 0 <= http_port < 65536):
            raise ConfigInvalid(f"ws_port = {ws_port}, http_port = {http_port}", hint="a port is 0 to 65535")
        self.tape = tape
        self.host, self.ws_port, self.http_port = host, ws_port, http_port
        self._asked_ports = ws_port, http_port
        self._servers: list[Server] = []
        self._clients: set[_Client] = set()
        self._subscription: Subscription | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: list[Tick] = []
        self._lock = threading.Lock()
        self.sent = 0
        self.conflated = 0

    async def start(self) -> None:
        """Listen. Raises ConfigInvalid, naming the port that cannot be had. Repeating it is harmless."""
        if self._servers:
            return
        self._loop = asyncio.get_running_loop()
        try:
            streaming = await self._listen("ws_port", self._asked_ports[0], self._stream, None)
            self.ws_port = streaming.sockets[0].getsockname()[1]
            answering = await self._listen("http_port", self._asked_ports[1], _nothing, self._answer)
            self.http_port = answering.sockets[0].getsockname()[1]
        except BaseException:
            await self.stop()
            raise
        self._subscription = self.tape.subscribe(self._take, when_slow="block")

    async def stop(self) -> None:
        """Say goodbye to clients and listen no more. Repeating it is harmless."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await asyncio.to_thread(subscription.close)
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()
        for server in servers:
            await server.wait_closed()

    def status(self) -> dict[str, Any]:
        """Return how it is."""
        return {
            "running": bool(self._servers),
            "ws_port": self.ws_port,
            "http_port": self.http_port,
            "clients": len(self._clients),
            "sent": self.sent,
            "conflated": self.conflated,
            "trouble": None if self.tape.status.on_tape else f"the tape is away: {self.tape.status.reason}",
        }

    def market_data(self, symbol: str | None = None) -> dict[str, dict[str, Any] | None]:
        """Return {symbol: latest record}, as /api/market_data does; an unknown symbol gives {symbol: None}."""
        if symbol is not None:
            tick = self.tape.latest(symbol)
            return {symbol: None if tick is None else record_of(tick)}
        found = self.tape.latest().items()
        return {name: record_of(tick) for name, tick in found if not name.startswith(OWN_SYMBOLS)}

    async def _listen(self, what: str, port: int, handler: Any, answer: Any) -> Server:
        try:
            made = await serve(
                handler,
                self.host,
                port,
                process_request=answer,
                max_size=_MESSAGE_BYTES_MAX,
                compression=None,
                write_limit=_BEHIND_BYTES,
                open_timeout=10,
                server_header=None,
            )
        except OSError as error:
            raise ConfigInvalid(
                f"[services.market_data] {what} = {port} cannot be listened on: {error.strerror or error}",
                hint="give another port, or 0 for a free one",
            ) from error
        self._servers.append(made)
        return made

    def _answer(self, connection: ServerConnection, request: Request) -> Response:
        """Answer an HTTP request. websockets takes no other than GET."""
        path = urlsplit(request.path)
        known: Mapping[str, Callable[[], Any]] = {
            "/health": self._health,
            "/api/market_data": lambda: self.market_data(next(iter(parse_qs(path.query).get("symbol", ())), None)),
            "/api/symbols": self._symbols,
            "/api/stats": self._stats,
        }
        act = known.get(path.path)
        if act is None:
            return _json(HTTPStatus.NOT_FOUND, {"error": f"no path {path.path[:200]}", "paths": sorted(known)})
        if _foreign(request):
            return _json(HTTPStatus.FORBIDDEN, {"error": "a page of another origin may not ask"})
        return _json(HTTPStatus.OK, act())

    def _health(self) -> dict[str, Any]:
        status = self.tape.status
        return {
            "status": "healthy" if status.on_tape else "degraded",
            "service": "market_data",
            "timestamp": now_ns() / 1e9,
            "clients": len(self._clients),
            "fallback": None if status.on_tape else {"reason": status.reason, "held": status.held},
        }

    def _symbols(self) -> list[str]:
        return sorted(name for name in self.tape.symbol_names() if not name.startswith(OWN_SYMBOLS))

    def _stats(self) -> dict[str, Any]:
        tape = self.tape.tape
        stats = None if tape is None else tape.stats()
        return {
            "clients": len(self._clients),
            "messages_sent": self.sent,
            "conflated": self.conflated,
            "total_symbols": len(self._symbols()),
            "total_records": None if stats is None else stats.ticks,
            "store": plain(self.tape.status),
        }

    async def _stream(self, connection: ServerConnection) -> None:
        if connection.request is not None and _foreign(connection.request):
            await connection.close(1008, "a page of another origin may not listen")
            return
        if len(self._clients) >= _CLIENTS_MAX:
            await connection.close(1013, f"{_CLIENTS_MAX} clients are served already")
            return
        client = _Client(self, connection)
        self._clients.add(client)
        sender = asyncio.ensure_future(client.send())
        try:
            for data in (await asyncio.to_thread(self.market_data)).values():
                if data is not None:
                    client.offer(data["symbol"], msgspec.json.encode(data).decode())
            async for message in connection:
                client.ask(message)
        except ConnectionClosed:
            pass
        finally:
            self._clients.discard(client)
            sender.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionClosed):
                await sender

    def _take(self, record: Record) -> None:
        """Be given a record, in the subscription's thread."""
        if not isinstance(record, Tick) or record.symbol.startswith(OWN_SYMBOLS) or self._loop is None:
            return
        with self._lock:
            self._waiting.append(record)
            if len(self._waiting) > 1:
                return
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._spread)

    def _spread(self) -> None:
        with self._lock:
            records, self._waiting = self._waiting, []
        if not self._clients:
            return
        for tick in records:
            told = msgspec.json.encode(record_of(tick)).decode()  # once, for all clients
            for client in self._clients:
                client.offer(tick.symbol, told)


class _Client:
    """One listener: what it wants, and what waits for it: in order, or the newest of each symbol where it is slow."""

    def __init__(self, service: MarketDataService, connection: ServerConnection) -> None:
        self._service, self._connection = service, connection
        self._symbols: frozenset[str] | None = None
        self._queue: list[tuple[str, str]] = []
        self._bytes = 0
        self._news = asyncio.Event()

    def ask(self, message: str | bytes) -> None:
        """Take what the client says; what is not understood is answered with what would be."""
        try:
            found = msgspec.json.decode(message)
            symbols = found["symbols"] if isinstance(found, dict) else None
            if symbols is not None and not (
                isinstance(symbols, list)
                and len(symbols) <= _SYMBOLS_MAX
                and all(isinstance(symbol, str) for symbol in symbols)
            ):
                raise ValueError("symbols")
        except (ValueError, KeyError, TypeError):
            self.offer("", f'{{"error":"say {{\\"symbols\\": [up to {_SYMBOLS_MAX} names]}}, or null for all"}}')
            return
        self._symbols = None if symbols is None else frozenset(symbols)

    def offer(self, symbol: str, told: str) -> None:
        """Give it a message of a symbol; "" is for itself alone."""
        if symbol and self._symbols is not None and symbol not in self._symbols:
            return
        self._queue.append((symbol, told))
        self._bytes += len(told)
        if self._bytes > _BEHIND_BYTES:
            self._conflate()
        self._news.set()

    def _conflate(self) -> None:
        newest = dict(self._queue)
        self._service.conflated += len(self._queue) - len(newest)
        self._queue = list(newest.items())
        self._bytes = sum(len(told) for _, told in self._queue)

    async def send(self) -> None:
        """Send what waits, for ever."""
        while True:
            await self._news.wait()
            self._news.clear()
            waiting, self._queue, self._bytes = self._queue, [], 0
            for at, (_, told) in enumerate(waiting):
                await self._connection.send(told)
                self._service.sent += 1
                if self._queue and self._bytes > _BEHIND_BYTES // 2:  # it is slow: the rest joins what came meanwhile
                    self._queue = waiting[at + 1 :] + self._queue
                    self._bytes += sum(len(rest) for _, rest in waiting[at + 1 :])
                    self._conflate()
                    self._news.set()
                    break


def record_of(tick: Tick) -> dict[str, Any]:
    """Return a tick as the old record: seconds, `close`; open, high and low default to it; without what is absent."""
    told: dict[str, Any] = {"symbol": tick.symbol, "timestamp": tick.ts_event_ns / 1_000_000_000}
    for name, value in (("close", tick.price), ("open", tick.open), ("high", tick.high), ("low", tick.low)):
        if value is not None or tick.price is not None:
            told[name] = tick.price if value is None else value
    for name in _FIELDS:
        if (value := getattr(tick, name)) is not None:
            told[name] = _whole(value) if name.endswith("size") or name == "volume" else value
    if tick.size is not None:
        told["last_size"] = _whole(tick.size)
    told["source"] = tick.source or "unknown"
    return told


def _whole(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value


def _json(status: HTTPStatus, body: Any) -> Response:
    from websockets.datastructures import Headers

    data = msgspec.json.encode(body, enc_hook=str)
    headers = Headers(
        [("Content-Type", "application/json"), ("Content-Length", str(len(data))), ("Connection", "close"),
         ("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")]
    )  # fmt: skip
    return Response(status.value, status.phrase, headers, data)


def _foreign(request: Request) -> bool:
    """Return whether a browser says that a page from elsewhere asks, or the name is not this machine's own."""
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).hostname not in _LOOPBACK:
        return True
    try:
        return urlsplit(f"//{request.headers.get('Host', 'localhost')}").hostname not in _LOOPBACK
    except ValueError:
        return True


async def _nothing(connection: ServerConnection) -> None:
    await connection.close(1008, "the stream is at ws_port")
