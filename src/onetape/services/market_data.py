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
from onetape.services.listener import BEHIND_BYTES, Listener
from onetape.services.old_record import record_of, told_of
from onetape.services.system import plain

if TYPE_CHECKING:
    from onetape.live.subscription import Subscription
    from onetape.steady import SteadyTape

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
#: What a client may say, bytes.
_MESSAGE_BYTES_MAX = 65_536
_CLIENTS_MAX = 1_000
#: Records that may wait for the event loop.
_WAITING_MAX = 50_000


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
        self._clients: set[Listener] = set()
        self._subscription: Subscription | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: list[Tick] = []
        self._lock = threading.Lock()
        self._sent = self._conflated = 0  # of listeners that have left, and of records that waited for the loop

    @property
    def sent(self) -> int:
        """How many messages were sent."""
        return self._sent + sum(client.sent for client in list(self._clients))

    @property
    def conflated(self) -> int:
        """How many records a slow client, or a slow event loop, was not sent because a newer one was there."""
        return self._conflated + sum(client.conflated for client in list(self._clients))

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
        return {name: record_of(tick) for name, tick in self._latest().items()}

    def _latest(self) -> dict[str, Tick]:
        return {name: tick for name, tick in self.tape.latest().items() if not name.startswith(OWN_SYMBOLS)}

    async def _listen(self, what: str, port: int, handler: Any, answer: Any) -> Server:
        try:
            made = await serve(
                handler,
                self.host,
                port,
                process_request=answer,
                max_size=_MESSAGE_BYTES_MAX,
                compression=None,
                write_limit=BEHIND_BYTES,
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
        known = [info for info in self.tape.symbols() if not info.symbol.startswith(OWN_SYMBOLS)]
        return {
            "clients": len(self._clients),
            "messages_sent": self.sent,
            "conflated": self.conflated,
            "total_symbols": sum(info.ticks > 0 for info in known),
            "total_records": sum(info.ticks for info in known),
            "store": plain(self.tape.status),
        }

    async def _stream(self, connection: ServerConnection) -> None:
        if connection.request is not None and _foreign(connection.request):
            await connection.close(1008, "a page of another origin may not listen")
            return
        if len(self._clients) >= _CLIENTS_MAX:
            await connection.close(1013, f"{_CLIENTS_MAX} clients are served already")
            return
        client = Listener(connection)
        self._clients.add(client)
        sender = asyncio.ensure_future(client.send())
        try:
            client.begin(await asyncio.to_thread(self._latest))
            async for message in connection:
                client.ask(message)
        except ConnectionClosed:
            pass
        finally:
            self._clients.discard(client)
            self._sent += client.sent
            self._conflated += client.conflated
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
                if len(self._waiting) > _WAITING_MAX:  # the loop hangs
                    self._waiting = self._newest(self._waiting)
                return
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._spread)

    def _spread(self) -> None:
        with self._lock:
            records, self._waiting = self._waiting, []
        if not self._clients:
            return
        for tick in records:
            told = told_of(tick)  # once, for all clients
            for client in self._clients:
                client.live(tick, told)

    def _newest(self, records: list[Tick]) -> list[Tick]:
        newest = list({tick.symbol: tick for tick in records}.values())
        self._conflated += len(records) - len(newest)
        return newest


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
