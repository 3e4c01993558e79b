"""A DTC server: gives ticks, order books and history to any DTC client, for tests, examples and the demo.

    with DtcServer() as server:
        server.add_history(old_ticks)
        server.publish(new_ticks)          # to whoever subscribed; trades are history from here on
        …                                  # clients: server.port, server.history_port

It listens on the loopback by default and is not made for a hostile network: users are checked, nothing is encrypted.
Each client has its own bounded queue; one that does not take its data is cut off, the others notice nothing.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from onetape.errors import ConfigInvalid
from onetape.record import BUY, SELL, Tick
from onetape.sources.dtc import messages as dtc
from onetape.sources.dtc.encoding import Codec, Message, codec_of
from onetape.sources.dtc.layout import Malformed
from onetape.sources.dtc.market import CONDITION_SHIFT, QUOTES, TRADES

_NS = 1_000_000_000

#: Messages that wait for one client; a client with more is cut off.
QUEUE_MAX = 50_000

_SIDES = {BUY: dtc.AT_ASK, SELL: dtc.AT_BID}


class DtcServer:
    """Two listening sockets (live and history) and a thread or two for each client.

    users: name → password; None lets everybody in. trade, quote: which of the protocol's messages carry them.
    compressed: whether history is compressed for clients that ask for it. `resubscribe`, to be set before clients
    come: whether subscriptions are forgotten while the server's own feed is away.
    """

    resubscribe = False

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        history_port: int = 0,
        users: Mapping[str, str] | None = None,
        name: str = "onetape",
        trade: int = dtc.TRADE_UNBUNDLED,
        quote: int = dtc.BID_ASK_MICROSECONDS,
        compressed: bool = True,
    ) -> None:
        if trade not in TRADES or quote not in QUOTES:
            raise ConfigInvalid(f"trade = {trade}, quote = {quote}", hint="give numbers of messages of that meaning")
        self.users, self.name, self.compressed = users, name, compressed
        self.trade, self.quote = trade, quote
        self._lock = threading.RLock()
        self._clients: set[_Client] = set()
        self._history: dict[str, list[Tick]] = {}
        self._last: dict[str, dict[str, Any]] = {}
        self._books: dict[str, dict[tuple[int, float], tuple[float, int]]] = {}
        self._closed = threading.Event()
        self._live = socket.create_server((host, port))
        try:
            self._past = socket.create_server((host, history_port))
        except OSError:
            self._live.close()
            raise
        self.port: int = self._live.getsockname()[1]
        self.history_port: int = self._past.getsockname()[1]
        for listener in (self._live, self._past):
            threading.Thread(target=self._accept, args=(listener,), name="dtc accept", daemon=True).start()

    def __enter__(self) -> DtcServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def subscriptions(self) -> int:
        """How many symbols are subscribed to, over all clients."""
        with self._lock:
            return sum(len(client.symbols) for client in self._clients)

    @property
    def clients(self) -> int:
        """How many clients are connected."""
        with self._lock:
            return len(self._clients)

    def add_history(self, ticks: Iterable[Tick]) -> None:
        """Add trades to what the history server has, without telling subscribers."""
        with self._lock:
            for tick in ticks:
                self._remember(tick)

    def publish(self, ticks: Iterable[Tick] | Tick) -> None:
        """Send trades and quotes to the subscribers of their symbols, in this order; trades become history."""
        with self._lock:
            for tick in [ticks] if isinstance(ticks, Tick) else ticks:
                self._remember(tick)
                for client in self._clients:
                    for number in client.ids.get(tick.symbol, ()):
                        client.tell_all(self._messages(number, tick))

    def set_level(self, symbol: str, side: str, price: float, size: float, orders: int = 1) -> None:
        """Set one level of a book, side "bid" or "ask"; a size of 0 removes it."""
        which = dtc.AT_BID if side == "bid" else dtc.AT_ASK
        with self._lock:
            book = self._books.setdefault(symbol, {})
            if size:
                book[which, price] = (size, orders)
            else:
                book.pop((which, price), None)
            for client in self._clients:
                if symbol in client.depths:
                    client.tell(
                        dtc.DEPTH_UPDATE,
                        {
                            "SymbolID": client.depths[symbol],
                            "Side": which,
                            "Price": price,
                            "Quantity": size,
                            "UpdateType": dtc.UPDATE_LEVEL if size else dtc.DELETE_LEVEL,
                            "DateTime": time.time(),
                            "NumOrders": orders,
                            "FinalUpdateInBatch": dtc.BATCH_TRUE,
                        },
                    )

    def feed_status(self, *, available: bool) -> None:
        """Tell every client that the server's own feed is away, or back."""
        status = dtc.FEED_AVAILABLE if available else dtc.FEED_UNAVAILABLE
        with self._lock:
            for client in self._clients:
                client.tell(dtc.FEED_STATUS, {"Status": status})
                if self.resubscribe and not available:
                    client.forget()

    def cut(self) -> None:
        """Cut every connection without a word."""
        with self._lock:
            for client in list(self._clients):
                client.close()

    def close(self) -> None:
        """End the server and all connections. May be called twice."""
        self._closed.set()
        for listener in (self._live, self._past):
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.cut()

    def history_of(self, symbol: str, start_s: int, end_s: int) -> list[Tick]:
        """Return the trades with start_s <= second of the trade, and < end_s unless that is 0."""
        with self._lock:
            return [
                tick
                for tick in self._history.get(symbol, ())
                if tick.ts_event_ns >= start_s * _NS and (not end_s or tick.ts_event_ns < end_s * _NS)
            ]

    def _remember(self, tick: Tick) -> None:
        last = self._last.setdefault(tick.symbol, {})
        if tick.price is not None:
            self._history.setdefault(tick.symbol, []).append(tick)
            last["LastTradePrice"], last["LastTradeVolume"] = tick.price, tick.size or 0.0
            last["LastTradeDateTime"] = tick.ts_event_ns / _NS
        if tick.bid is not None or tick.ask is not None:
            last.update(_quote(tick), BidAskDateTime=tick.ts_event_ns / _NS)

    def _messages(self, number: int, tick: Tick) -> list[Message]:
        made: list[Message] = []
        if tick.bid is not None or tick.ask is not None:
            made.append((self.quote, {"SymbolID": number, **_quote(tick), "DateTime": _time(self.quote, tick)}))
        if tick.price is not None:
            made.append(
                (
                    self.trade,
                    {
                        "SymbolID": number,
                        "Price": tick.price,
                        "Volume": _volume(self.trade, tick),
                        "AtBidOrAsk": _SIDES.get(tick.side, 0),
                        "UnbundledTradeIndicator": tick.flags & 3,
                        "TradeCondition": tick.flags >> CONDITION_SHIFT & 0x7F,
                        "DateTime": _time(self.trade, tick),
                    },
                )
            )
        return [(kind, _only_known(kind, fields)) for kind, fields in made]

    def _accept(self, listener: socket.socket) -> None:
        past = listener is self._past
        while not self._closed.is_set():
            try:
                taken, _ = listener.accept()
            except OSError:
                return
            client = _Client(self, taken)
            with self._lock:
                self._clients.add(client)
            target = client.serve_history if past else client.serve_live
            threading.Thread(target=target, name="dtc client", daemon=True).start()

    def _gone(self, client: _Client) -> None:
        with self._lock:
            self._clients.discard(client)


class _Client:
    """One connection: a thread that reads, and for live ones a thread that writes."""

    def __init__(self, server: DtcServer, taken: socket.socket) -> None:
        self.ids: dict[str, list[int]] = {}  # symbol → the client's ids for it
        self.symbols: dict[int, str] = {}
        self.depths: dict[str, int] = {}
        self._server, self._socket = server, taken
        self._codec: Codec = codec_of(dtc.BINARY)
        self._out: queue.Queue[bytes | None] = queue.Queue(maxsize=QUEUE_MAX)
        self._heartbeat_s = 10.0
        self._logged_on = False
        self._write_lock = threading.Lock()
        taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        taken.settimeout(60)

    def tell(self, number: int, fields: dict[str, Any]) -> None:
        """Queue one message; a client with a full queue is cut off."""
        try:
            self._out.put_nowait(self._codec.encode(number, fields))
        except queue.Full:
            self.close()

    def tell_all(self, messages: Iterable[Message]) -> None:
        for number, fields in messages:
            self.tell(number, fields)

    def forget(self) -> None:
        """Forget all subscriptions."""
        for known in (self.ids, self.symbols, self.depths):
            known.clear()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        with contextlib.suppress(queue.Full):
            self._out.put_nowait(None)

    def serve_live(self) -> None:
        writer = threading.Thread(target=self._write, name="dtc writer", daemon=True)
        writer.start()
        self._serve(self._live_message)

    def serve_history(self) -> None:
        threading.Thread(target=self._write, name="dtc writer", daemon=True).start()
        self._serve(self._history_message)

    def _serve(self, take: Any) -> None:
        try:
            data = self._socket.recv(1 << 16)
            if data[:1] == b"{":
                self._codec = codec_of(dtc.JSON)
            while data:
                feed = self._codec.feed(data)
                for number, fields in feed:
                    if number == dtc.ENCODING_REQUEST:
                        feed.close()
                        self._agree(fields["Encoding"])
                        break
                    if not self._begin(number, fields):
                        take(number, fields)
                else:
                    data = self._socket.recv(1 << 16)
                    continue
                data = self._codec.rest() or self._socket.recv(1 << 16)
        except (OSError, Malformed):
            pass  # a client that went, or talks nonsense: its connection ends, nothing else does
        finally:
            self._server._gone(self)
            with contextlib.suppress(queue.Full):
                self._out.put_nowait(None)

    def _agree(self, wanted: int) -> None:
        behind = self._codec.rest()
        chosen = wanted if wanted in (dtc.BINARY, dtc.BINARY_VLS, dtc.JSON, dtc.JSON_COMPACT) else dtc.BINARY
        self.tell(dtc.ENCODING_RESPONSE, {"Encoding": chosen})
        self._codec = codec_of(chosen)
        self._codec.keep(behind)

    def _begin(self, number: int, fields: dict[str, Any]) -> bool:
        """Take what belongs to the connection itself; whether it was that."""
        if number == dtc.LOGON_REQUEST:
            server = self._server
            self._heartbeat_s = max(1.0, float(fields["HeartbeatIntervalInSeconds"] or 10))
            self._socket.settimeout(max(5.0, 2 * self._heartbeat_s))
            if server.users is not None and server.users.get(fields["Username"]) != fields["Password"]:
                self.tell(dtc.LOGON_RESPONSE, {"Result": dtc.LOGON_ERROR, "ResultText": "wrong user or password"})
                return True
            self._logged_on = True
            self.tell(
                dtc.LOGON_RESPONSE,
                {
                    "Result": dtc.LOGON_SUCCESS,
                    "ServerName": server.name,
                    "HistoricalPriceDataSupported": 1,
                    "ResubscribeWhenMarketDataFeedAvailable": int(server.resubscribe),
                    "OneHistoricalPriceDataRequestPerConnection": 1,
                    "MarketDepthIsSupported": 1,
                    "MarketDataSupported": 1,
                },
            )
            return True
        if number == dtc.LOGOFF:
            self.close()
            return True
        if not self._logged_on:
            raise Malformed(f"a message of type {number} before the log-on")
        return number == dtc.HEARTBEAT

    def _live_message(self, number: int, fields: dict[str, Any]) -> None:
        server = self._server
        if number not in (dtc.MARKET_DATA_REQUEST, dtc.DEPTH_REQUEST):
            return
        symbol, action, ident = fields["Symbol"], fields["RequestAction"], fields["SymbolID"]
        with server._lock:
            if number == dtc.DEPTH_REQUEST:
                self.depths.pop(symbol, None)
                if action == dtc.SUBSCRIBE:
                    self.depths[symbol] = ident
                    self._tell_book(symbol, ident)
            elif action == dtc.UNSUBSCRIBE:
                symbol = self.symbols.pop(ident, symbol)
                self.ids.pop(symbol, None)
            elif not symbol:
                self.tell(dtc.MARKET_DATA_REJECT, {"SymbolID": ident, "RejectText": "no symbol given"})
            else:
                self.tell(dtc.MARKET_DATA_SNAPSHOT, {"SymbolID": ident, **server._last.get(symbol, {})})
                if action == dtc.SUBSCRIBE:
                    self.symbols[ident] = symbol
                    self.ids.setdefault(symbol, []).append(ident)

    def _tell_book(self, symbol: str, ident: int) -> None:
        levels = sorted(self._server._books.get(symbol, {}).items())
        for at, ((side, price), (size, orders)) in enumerate(levels or [((0, 0.0), (0.0, 0))]):
            self.tell(
                dtc.DEPTH_SNAPSHOT,
                {
                    "SymbolID": ident,
                    "Side": side,
                    "Price": price,
                    "Quantity": size,
                    "Level": at + 1,
                    "NumOrders": orders,
                    "DateTime": time.time(),
                    "IsFirstMessageInBatch": int(at == 0),
                    "IsLastMessageInBatch": int(at >= len(levels) - 1),
                },
            )

    def _history_message(self, number: int, fields: dict[str, Any]) -> None:
        if number != dtc.HISTORY_REQUEST:
            return
        ident, symbol = fields["RequestID"], fields["Symbol"]
        if fields["RecordInterval"] != dtc.INTERVAL_TICK:
            self.tell(
                dtc.HISTORY_REJECT,
                {"RequestID": ident, "RejectText": "only ticks are kept", "RejectReasonCode": dtc.DO_NOT_RETRY},
            )
            return
        ticks = self._server.history_of(symbol, fields["StartDateTime"], fields["EndDateTime"])
        pack = bool(fields["UseZLibCompression"] and self._server.compressed) and isinstance(self._codec.encoding, int)
        pack = pack and self._codec.encoding in (dtc.BINARY, dtc.BINARY_VLS)
        header = {"RequestID": ident, "UseZLibCompression": int(pack), "NoRecordsToReturn": int(not ticks)}
        self.tell(dtc.HISTORY_HEADER, header)
        packer = zlib.compressobj() if pack else None
        for start in range(0, len(ticks), 1000):
            plain = b"".join(
                self._codec.encode(
                    dtc.HISTORY_TICK,
                    {
                        "RequestID": ident,
                        "DateTime": tick.ts_event_ns / _NS,
                        "AtBidOrAsk": _SIDES.get(tick.side, 0),
                        "Price": tick.price,
                        "Volume": tick.size or 0.0,
                        "IsFinalRecord": int(start + index == len(ticks) - 1),
                    },
                )
                for index, tick in enumerate(ticks[start : start + 1000])
            )
            self._out.put(packer.compress(plain) + packer.flush(zlib.Z_SYNC_FLUSH) if packer else plain)
        if packer:
            self._out.put(packer.flush())

    def _write(self) -> None:
        while True:
            try:
                data = self._out.get(timeout=self._heartbeat_s / 2)
            except queue.Empty:
                if self._logged_on and self.symbols:
                    self.tell(dtc.HEARTBEAT, {"CurrentDateTime": int(time.time())})
                continue
            if data is None:
                self.close()
                return
            try:
                with self._write_lock:
                    self._socket.sendall(data)
            except OSError:
                self.close()
                return


def _quote(tick: Tick) -> dict[str, float]:
    quote: dict[str, float] = {}
    if tick.bid is not None:
        quote.update(BidPrice=tick.bid, BidQuantity=tick.bid_size or 0.0)
    if tick.ask is not None:
        quote.update(AskPrice=tick.ask, AskQuantity=tick.ask_size or 0.0)
    return quote


def _time(number: int, tick: Tick) -> float | int:
    if number in (dtc.TRADE_COMPACT, dtc.BID_ASK, dtc.BID_ASK_COMPACT):
        return tick.ts_event_ns // _NS
    if number in (dtc.TRADE_UNBUNDLED_2, dtc.BID_ASK_MICROSECONDS):
        return tick.ts_event_ns // 1000
    return tick.ts_event_ns / _NS


def _volume(number: int, tick: Tick) -> float | int:
    size = tick.size or 0.0
    return int(size) if number in (dtc.TRADE_UNBUNDLED, dtc.TRADE_UNBUNDLED_2, dtc.TRADE_NO_TIMESTAMP) else size


def _only_known(number: int, fields: dict[str, Any]) -> dict[str, Any]:
    """Those fields that the message has; whole numbers where it wants them."""
    table = {name: code for name, code, _ in dtc.DEFINITIONS[number].fields}
    return {name: value if table[name] in "fd" else int(value) for name, value in fields.items() if name in table}
