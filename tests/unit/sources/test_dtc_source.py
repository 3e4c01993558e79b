"""The DTC source against a real server: ticks in every encoding and spelling, books, gaps, and a server's refusals."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.conftest import ROOT
from tests.waiting import waited_for

from onetape import BUY, SELL, ConfigInvalid, SourceRefused, Tick
from onetape.sources import registry
from onetape.sources.book import Book
from onetape.sources.dtc import Options, make
from onetape.sources.dtc import messages as dtc
from onetape.sources.dtc.depth import Depth
from onetape.sources.dtc.layout import Malformed
from onetape.sources.dtc.market import Market, as_printed
from onetape.sources.dtc.server import DtcServer
from onetape.sources.dtc.source import DtcSource
from onetape.sources.source import Backoff, Delivery

_NS = 1_000_000_000
_T0 = 1_760_000_000


def trade(second: float, price: float = 4500.25, size: float = 1.0, side: int = BUY, symbol: str = "ESZ6") -> Tick:
    return Tick(symbol, _T0 * _NS + int(second * 1000) * 1_000_000, price=price, size=size, side=side)


class Running:
    """A source in a thread of its own, and what it gave."""

    def __init__(self, source: DtcSource) -> None:
        self.source = source
        self.deliveries: list[Delivery] = []
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for delivery in self.source:
                self.deliveries.append(delivery)
        except Exception as error:  # noqa: BLE001  a test asks for it
            self.error = error

    @property
    def ticks(self) -> list[Tick]:
        return [tick for delivery in list(self.deliveries) for tick in delivery.records]

    @property
    def trades(self) -> list[tuple[int, float | None, float | None]]:
        return sorted((t.ts_event_ns, t.price, t.size) for t in self.ticks if t.price is not None)

    @property
    def missing(self) -> list[tuple[str, int, int]]:
        return [span for delivery in list(self.deliveries) for span in delivery.missing]

    @property
    def covers(self) -> list[tuple[str, int, int]]:
        return [span for delivery in list(self.deliveries) for span in delivery.covers]

    def end(self) -> None:
        self.source.close()
        self._thread.join(timeout=60)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def running(server: DtcServer, cursor: str | None = None, **options: Any) -> Iterator[Running]:
    given = {"symbols": ["ESZ6"], "port": server.port, "history_port": server.history_port, "heartbeat_s": 5}
    source = make("dtc", Options(**{**given, **options}))
    source._backoff = Backoff(0.02, 0.1)
    source.resume(cursor)
    run = Running(source)
    try:
        yield run
    finally:
        run.end()


@pytest.fixture
def dtc_server() -> Iterator[DtcServer]:
    with DtcServer() as server:
        yield server


@pytest.mark.parametrize("encoding", dtc.ENCODINGS)
def test_trades_and_quotes_arrive_in_every_encoding(dtc_server: DtcServer, encoding: str) -> None:
    with running(dtc_server, encoding=encoding) as run:
        waited_for(lambda: dtc_server.subscriptions == 1)
        dtc_server.publish(trade(1, 4500.25, 3, SELL))
        dtc_server.publish(Tick("ESZ6", (_T0 + 2) * _NS, bid=4500.0, ask=4500.5, bid_size=7.0, ask_size=9.0))
        waited_for(lambda: len(run.ticks) == 2)
        sold, quote = run.ticks
        assert (sold.price, sold.size, sold.side, sold.ts_event_ns) == (4500.25, 3.0, SELL, (_T0 + 1) * _NS)
        assert (quote.price, quote.bid, quote.ask, quote.bid_size, quote.ask_size) == (None, 4500.0, 4500.5, 7.0, 9.0)
        assert run.source.stats.state == "live"
        assert run.source.stats.facts["encoding"] == dtc.ENCODINGS[encoding]


@pytest.mark.parametrize(
    ("trades", "quotes"),
    [
        (dtc.TRADE, dtc.BID_ASK),
        (dtc.TRADE_COMPACT, dtc.BID_ASK_COMPACT),
        (dtc.TRADE_UNBUNDLED_2, dtc.BID_ASK_MICROSECONDS),
        (dtc.TRADE_NO_TIMESTAMP, dtc.BID_ASK_NO_TIMESTAMP),
    ],
)
def test_every_spelling_of_a_trade_and_a_quote_is_read(trades: int, quotes: int) -> None:
    with DtcServer(trade=trades, quote=quotes) as server, running(server) as run:
        waited_for(lambda: server.subscriptions == 1)
        at = (_T0 + 1) * _NS
        server.publish(Tick("ESZ6", at, price=1.10345, size=2.0, side=BUY, bid=1.1034, ask=1.10345, bid_size=5.0))
        waited_for(lambda: len(run.ticks) == 2)
        quote, bought = run.ticks
        assert (bought.price, bought.size, bought.side) == (1.10345, 2.0, BUY)
        assert (quote.bid, quote.bid_size, quote.ask) == (1.1034, 5.0, 1.10345)
        if trades != dtc.TRADE_NO_TIMESTAMP:
            assert (bought.ts_event_ns, quote.ts_event_ns) == (at, at)


def test_names_at_the_server_may_differ_and_several_symbols_share_a_connection(dtc_server: DtcServer) -> None:
    with running(dtc_server, symbols=["ESZ6=ESZ6-CME", "NQZ6"]) as run:
        waited_for(lambda: dtc_server.subscriptions == 2)
        dtc_server.publish([trade(1, symbol="NQZ6"), trade(1, symbol="ESZ6-CME"), trade(1, symbol="YM")])
        waited_for(lambda: len(run.ticks) == 2)
        assert [tick.symbol for tick in run.ticks] == ["NQZ6", "ESZ6"]
        assert dtc_server.clients == 1


def test_a_gap_is_filled_from_history_without_a_trade_twice(dtc_server: DtcServer) -> None:
    sent = [trade(index / 4, size=float(index + 1)) for index in range(40)]
    with running(dtc_server, history=True) as run:
        waited_for(lambda: dtc_server.subscriptions == 1)
        dtc_server.publish(sent[:14])  # breaks in the middle of a second
        waited_for(lambda: len(run.trades) == 14)
        dtc_server.cut()
        dtc_server.publish(sent[14:27])  # while nobody listens, or by history and live at once
        waited_for(lambda: run.source.stats.reconnects >= 1 and dtc_server.subscriptions == 1)
        dtc_server.publish(sent[27:])
        waited_for(lambda: len(run.trades) >= 40 and run.covers)
        assert run.trades == [(tick.ts_event_ns, tick.price, tick.size) for tick in sent]
        assert run.missing == [] and [span[0] for span in run.covers] == ["ESZ6"]
        assert run.source.stats.reconnects >= 1


def test_a_restart_goes_on_behind_its_cursor(dtc_server: DtcServer) -> None:
    same = [trade(1.5, 10.0, 1.0) for _ in range(5)]  # equal in all, time included: five trades
    with running(dtc_server, history=True) as run:
        waited_for(lambda: dtc_server.subscriptions == 1)
        dtc_server.publish([trade(0), *same[:2]])
        waited_for(lambda: len(run.trades) == 3)
    cursor = run.source.stats.cursor
    dtc_server.publish(same[2:])
    with running(dtc_server, cursor, history=True) as again:
        waited_for(lambda: len(again.trades) == 3)
        waited_for(lambda: dtc_server.subscriptions == 1)
        dtc_server.publish([trade(1.5, 10.0, 1.0), trade(3)])
        waited_for(lambda: len(again.trades) == 5)
        assert again.trades == [
            *((t.ts_event_ns, 10.0, 1.0) for t in [*same[2:], same[0]]),
            ((_T0 + 3) * _NS, 4500.25, 1.0),
        ]


def test_history_days_begin_before_the_connection(dtc_server: DtcServer) -> None:
    now = time.time_ns() // 1_000_000 * 1_000_000
    old = [Tick("ESZ6", now - (10 - index) * _NS, price=5.0, size=1.0) for index in range(3)]
    dtc_server.add_history(old)
    with running(dtc_server, history=True, history_days=1, compressed=False) as run:
        waited_for(lambda: len(run.trades) == 3)
        assert [tick.ts_event_ns for tick in run.ticks] == [tick.ts_event_ns for tick in old]


def test_without_history_a_gap_is_said_to_be_missing(dtc_server: DtcServer) -> None:
    with running(dtc_server) as run:
        waited_for(lambda: dtc_server.subscriptions == 1)
        dtc_server.publish(trade(1))
        waited_for(lambda: run.ticks)
        dtc_server.cut()
        waited_for(lambda: run.missing)
        ((symbol, start, end),) = run.missing
        assert symbol == "ESZ6" and start < end
        assert run.source.stats.gaps == 1


def test_a_history_server_that_is_away_leaves_a_missing_span_and_the_live_trades(dtc_server: DtcServer) -> None:
    with running(dtc_server, '{"ESZ6":[5,1,true,[]]}', history=True, history_port=1) as run:
        waited_for(lambda: dtc_server.subscriptions == 1)
        dtc_server.publish([trade(1), trade(2)])
        waited_for(lambda: len(run.trades) == 2)
        assert run.missing == [("ESZ6", 5 * _NS, (_T0 + 1) * _NS)]
        assert "refused" in run.source.stats.facts["not_filled"]["ESZ6"]
        assert run.source.stats.state == "live"


def test_a_book_follows_the_levels(dtc_server: DtcServer) -> None:
    dtc_server.set_level("ESZ6", "bid", 4500.0, 5, 2)
    dtc_server.set_level("ESZ6", "bid", 4499.75, 9, 3)
    dtc_server.set_level("ESZ6", "ask", 4500.25, 4, 1)
    with running(dtc_server, depth=10) as run:
        book = run.source.books["ESZ6"]
        waited_for(lambda: len(book.bids()) == 2 and len(book.asks()) == 1)
        assert [tuple(level) for level in book.bids()] == [(4500.0, 5.0, 2), (4499.75, 9.0, 3)]
        dtc_server.set_level("ESZ6", "bid", 4500.0, 0)
        dtc_server.set_level("ESZ6", "ask", 4500.25, 6, 2)
        waited_for(lambda: [tuple(level) for level in book.asks()] == [(4500.25, 6.0, 2)])
        assert [level[0] for level in book.bids()] == [4499.75]
    assert book.bids() == [] and book.asks() == []  # a book without a connection says nothing


def test_a_book_becomes_a_snapshot_in_one_step_and_never_grows_without_bound() -> None:
    book = Book()
    depth = Depth({1: book})
    book.set_level("bid", 1.0, 1.0)
    level = {"SymbolID": 1, "Price": 5.0, "Quantity": 2.0, "Level": 1, "NumOrders": 1, "DateTime": 9.0}
    first = {**level, "Side": dtc.AT_BID, "IsFirstMessageInBatch": 1, "IsLastMessageInBatch": 0}
    last = {**level, "Side": dtc.AT_ASK, "Price": 6.0, "IsFirstMessageInBatch": 0, "IsLastMessageInBatch": 1}
    depth.take(dtc.DEPTH_SNAPSHOT, first)
    assert [made.price for made in book.bids()] == [1.0]  # nobody sees half of it
    depth.take(dtc.DEPTH_SNAPSHOT, last)
    assert ([made.price for made in book.bids()], [made.price for made in book.asks()]) == ([5.0], [6.0])
    update = {"SymbolID": 1, "Side": dtc.AT_BID, "Quantity": 1.0, "UpdateType": 1, "DateTime": 9.0, "NumOrders": 1}
    with pytest.raises(Malformed):
        for price in range(200_000):
            depth.take(dtc.DEPTH_UPDATE, {**update, "Price": price / 4, "FinalUpdateInBatch": dtc.BATCH_FALSE})


def test_a_refused_log_on_is_waited_out_and_told() -> None:
    with DtcServer(users={"ann": "secret"}) as server:
        with running(server, user="ann", password="wrong") as run:
            waited_for(lambda: "wrong user" in (run.source.stats.trouble or ""))
            assert run.error is None
        with running(server, user="ann", password="secret") as run:
            waited_for(lambda: run.source.stats.state == "live")


def test_a_server_that_says_not_to_come_back_fails_the_source(
    dtc_server: DtcServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(dtc_server) as run:
        waited_for(lambda: dtc_server.subscriptions == 1)
        for client in list(dtc_server._clients):
            client.tell(dtc.LOGOFF, {"Reason": "account closed", "DoNotReconnect": 1})
        waited_for(lambda: run.error is not None)
        assert isinstance(run.error, SourceRefused) and "account closed" in str(run.error)
        assert run.source.stats.state == "failed"


def test_an_unknown_symbol_is_rejected_and_the_others_go_on(
    dtc_server: DtcServer,
) -> None:
    with running(dtc_server, symbols=["BAD", "ESZ6"]) as run:
        waited_for(lambda: dtc_server.subscriptions == 2)
        for client in list(dtc_server._clients):
            client.tell(dtc.MARKET_DATA_REJECT, {"SymbolID": 1, "RejectText": "no such symbol"})
        dtc_server.publish(trade(1))
        waited_for(lambda: run.ticks)
        assert run.source.stats.facts["rejected"] == {"BAD": "no such symbol"}


def test_a_feed_that_is_away_behind_the_server_is_a_gap(dtc_server: DtcServer) -> None:
    with running(dtc_server) as run:
        waited_for(lambda: dtc_server.subscriptions == 1)
        dtc_server.feed_status(available=False)
        waited_for(lambda: "its own feed" in (run.source.stats.trouble or ""))
        dtc_server.feed_status(available=True)
        waited_for(lambda: run.missing)
        assert run.source.stats.trouble is None


def test_the_session_is_told_with_trades_and_its_volume_summed_here() -> None:
    market = Market("S", "dtc", lambda: 1)
    market.take(dtc.SESSION_VOLUME, {"Volume": 100.0, "TradingSessionDate": 5})
    market.take(dtc.SESSION_HIGH, {"Price": 9.0, "TradingSessionDate": 5})
    fields = {"AtBidOrAsk": 2, "Price": 8.0, "Volume": 3.0, "DateTime": 100.5}
    tick = market.take(dtc.TRADE, fields)
    assert tick is not None and (tick.volume, tick.high, tick.ts_event_ns) == (103.0, 9.0, 100_500_000_000)
    market.take(dtc.TRADING_SESSION_DATE, {"Date": 6})
    fresh = market.take(dtc.TRADE, fields)
    assert fresh is not None and (fresh.volume, fresh.high) == (None, None)


def test_what_is_not_known_is_none_and_what_is_no_trade_is_refused() -> None:
    market = Market("S", "dtc", lambda: 7)
    quote = {"BidPrice": dtc.DOUBLE_UNSET, "BidQuantity": 0.0, "AskPrice": 5.0, "AskQuantity": 2.0, "DateTime": 9}
    one_sided = market.take(dtc.BID_ASK, quote)
    assert one_sided is not None and (one_sided.bid, one_sided.bid_size, one_sided.ask) == (None, None, 5.0)
    for bad in ({"Price": float("nan")}, {"Volume": float("inf")}, {"DateTime": -1.0}, {"DateTime": 1e300}):
        good = {"AtBidOrAsk": 0, "Price": 1.0, "Volume": 1.0, "DateTime": 5.0}
        assert market.take(dtc.TRADE, {**good, **bad}) is None
    assert market.refused == 4


def test_a_price_in_float32_is_read_as_it_prints() -> None:
    for meant in (1.10345, 0.00012345, 108432.15, 4500.25, -37.63, 16777216.0, 0.1):
        (travelled,) = struct.unpack("<f", struct.pack("<f", meant))
        assert as_printed(travelled) == meant


@pytest.mark.parametrize(
    "table",
    [
        {"symbols": []},
        {"symbols": ["A", "A"]},
        {"symbols": ["=B"]},
        {"symbols": ["A" * 64]},
        {"symbols": ["A"], "encoding": "protobuf"},
        {"symbols": ["A"], "port": 0},
        {"symbols": ["A"], "heartbeat_s": 0},
        {"symbols": ["A"], "usr": "x"},
    ],
)
def test_options_that_cannot_be_used_are_refused(table: dict[str, object]) -> None:
    with pytest.raises(ConfigInvalid):
        registry.make({"kind": "dtc", **table})


def test_the_example_serves_a_walk_that_a_source_reads() -> None:
    command = [sys.executable, str(ROOT / "examples" / "dtc_server.py"), "ESZ6", "--rate", "200"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen(
        [*command, "--port", "0", "--history-port", "0", "--seconds", "60"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            assert process.stdout is not None
            live, history = (int(word) for word in re.findall(r"port (\d+)", process.stdout.readline()))
            source = make("dtc", Options(symbols=["ESZ6"], port=live, history=True, history_port=history, depth=5))
            run = Running(source)
            try:
                waited_for(lambda: any(tick.side for tick in run.ticks) and any(tick.bid for tick in run.ticks))
                waited_for(lambda: source.books["ESZ6"].bids())
            finally:
                run.end()
        finally:
            process.terminate()


def test_what_a_server_sent_before_its_farewell_or_nonsense_is_given(dtc_server: DtcServer) -> None:
    with running(dtc_server) as run:
        for size, last in (
            (1.0, {"Reason": "maintenance"}),
            (2.0, None),
            (3.0, {"Reason": "over", "DoNotReconnect": 1}),
        ):
            reconnects = run.source.stats.reconnects
            waited_for(lambda: dtc_server.subscriptions == 1 and run.source.stats.state == "live")
            (client,) = dtc_server._clients
            sent = client._codec.encode(
                dtc.TRADE, {"SymbolID": 1, "Price": 5.0, "Volume": size, "DateTime": _T0 + size}
            )
            client._out.put(sent + (client._codec.encode(dtc.LOGOFF, last) if last else bytes(8)))  # in one piece
            waited_for(lambda n=reconnects: run.source.stats.reconnects > n or run.error)
            waited_for(lambda: not dtc_server._clients or run.source.stats.state == "live")
        assert [size for _, _, size in run.trades] == [1.0, 2.0, 3.0]
        assert isinstance(run.error, SourceRefused)


def test_a_trade_from_the_future_is_refused_and_moves_no_place(dtc_server: DtcServer) -> None:
    with running(dtc_server, history=True) as run:
        waited_for(lambda: dtc_server.subscriptions == 1)
        dtc_server.publish([trade(1), Tick("ESZ6", 7_000_000_000 * _NS, price=5.0, size=1.0), trade(2)])
        waited_for(lambda: len(run.trades) == 2)
        assert run.source.stats.refused == 1
        assert (run.source.stats.cursor or "").startswith(f'{{"ESZ6":[{_T0 + 2},')


@contextlib.contextmanager
def deaf(accepts: bool) -> Iterator[int]:
    """A port that takes connections and says nothing; or takes none and refuses none."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0 if not accepts else 100))
        port = listener.getsockname()[1]
        for _ in range(0 if accepts else 2):  # its queue is full: the kernel answers nobody any more
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        yield port


@pytest.mark.parametrize("accepts", [True, False], ids=["says nothing", "does not answer"])
def test_closing_ends_a_source_that_is_still_connecting(accepts: bool) -> None:
    with deaf(accepts) as port:
        run = Running(make("d", Options(symbols=["S"], port=port, connect_s=300)))
        waited_for(lambda: run.source.stats.state == "connecting")
        time.sleep(0.05)
        run.end()
        assert run.error is None and run.source.stats.state == "ended"


def test_a_redirection_to_an_address_that_is_dead_leads_back_home(dtc_server: DtcServer) -> None:
    with running(dtc_server) as run:
        waited_for(lambda: dtc_server.subscriptions == 1)
        run.source._address = ("127.0.0.1", 1)  # as a server's answer sets it
        dtc_server.cut()
        waited_for(lambda: run.source.stats.reconnects >= 2 and run.source.stats.state == "live")


def test_a_gap_begins_when_the_server_was_heard_last_not_when_its_silence_was_noticed(dtc_server: DtcServer) -> None:
    with running(dtc_server, heartbeat_s=1) as run:
        waited_for(lambda: dtc_server.subscriptions == 1)
        dtc_server.publish(trade(1))
        waited_for(lambda: run.ticks)
        (client,) = dtc_server._clients
        with client._write_lock:  # half open: the connection stands, and nothing comes
            heard_ns = time.time_ns()
            waited_for(lambda: run.source.stats.reconnects)
        waited_for(lambda: run.missing)
        ((_, start_ns, end_ns),) = run.missing
        assert start_ns <= heard_ns + 1_000_000_000 and end_ns - start_ns >= 1_900_000_000
        heard = [one.heard_ns for one in run.deliveries if one.heard_ns]
        assert not [at for at in heard if start_ns + 1_000_000 < at < end_ns], "time without a word is covered"


def tell(server: DtcServer, number: int, **fields: Any) -> None:
    for client in list(server._clients):
        client.tell(number, fields)


def test_messages_that_the_server_dropped_are_counted_and_a_gap(dtc_server: DtcServer) -> None:
    with running(dtc_server) as run:
        waited_for(lambda: dtc_server.subscriptions == 1)
        for dropped in (0, 5, 5, 7):
            tell(dtc_server, dtc.HEARTBEAT, NumDroppedMessages=dropped)
        waited_for(lambda: run.source.stats.dropped == 7)
        assert run.missing and {symbol for symbol, _, _ in run.missing} == {"ESZ6"}


def test_a_symbol_whose_feed_is_away_is_said_and_a_gap_of_that_symbol_alone(dtc_server: DtcServer) -> None:
    with running(dtc_server, symbols=["ESZ6", "NQZ6"]) as run:
        waited_for(lambda: dtc_server.subscriptions == 2)
        tell(dtc_server, dtc.FEED_SYMBOL_STATUS, SymbolID=2, Status=dtc.FEED_UNAVAILABLE)
        waited_for(lambda: "NQZ6" in (run.source.stats.trouble or ""))
        assert run.source.stats.state == "live"
        tell(dtc_server, dtc.FEED_SYMBOL_STATUS, SymbolID=2, Status=dtc.FEED_AVAILABLE)
        waited_for(lambda: run.missing)
        assert [symbol for symbol, _, _ in run.missing] == ["NQZ6"] and run.source.stats.trouble is None


def test_a_source_whose_server_has_no_feed_is_not_live_and_so_covers_nothing(dtc_server: DtcServer) -> None:
    with running(dtc_server) as run:
        waited_for(lambda: dtc_server.subscriptions == 1)
        dtc_server.feed_status(available=False)
        waited_for(lambda: run.source.stats.state == "waiting")
        dtc_server.feed_status(available=True)
        waited_for(lambda: run.source.stats.state == "live")


def test_a_feed_that_is_away_for_long_is_said_to_be_missing_before_it_is_back(
    dtc_server: DtcServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onetape.sources.dtc.session.AWAY_NS", 1)
    with running(dtc_server) as run:
        waited_for(lambda: dtc_server.subscriptions == 1)
        dtc_server.publish(trade(1))
        waited_for(lambda: run.ticks)
        dtc_server.feed_status(available=False)
        waited_for(lambda: len(run.missing) > 1)
        assert run.source.stats.gaps == 1  # one that goes on


def test_a_server_that_wants_to_be_asked_again_when_its_feed_is_back_is_asked_again(
    dtc_server: DtcServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtc_server.resubscribe = True
    with running(dtc_server) as run:
        waited_for(lambda: dtc_server.subscriptions == 1)
        dtc_server.feed_status(available=False)
        waited_for(lambda: dtc_server.subscriptions == 0)  # it has forgotten who wanted what
        dtc_server.feed_status(available=True)
        waited_for(lambda: dtc_server.subscriptions == 1)
        dtc_server.publish(trade(1))
        waited_for(lambda: run.ticks)


def test_a_symbol_that_is_rejected_is_said_to_be(dtc_server: DtcServer) -> None:
    with running(dtc_server, symbols=["BAD", "ESZ6"]) as run:
        waited_for(lambda: dtc_server.subscriptions == 2)
        tell(dtc_server, dtc.MARKET_DATA_REJECT, SymbolID=1, RejectText="no such symbol")
        waited_for(lambda: "rejects BAD: no such symbol" in (run.source.stats.trouble or ""))
        assert run.source.stats.state == "live"
