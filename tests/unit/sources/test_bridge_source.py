"""The bridge source and files against a real server: pushed, polled, away, and hostile."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.waiting import waited_for

import onetape
from onetape import ConfigInvalid, SourceRefused, Tick
from onetape.sources import registry
from onetape.sources.bridge import BridgeFiles, BridgeSource, Options, make
from onetape.sources.bridge.server import BridgeServer
from onetape.sources.feed import Feed
from onetape.sources.source import Backoff, Delivery

_NS = 1_000_000_000
_T0 = 1_760_000_000 * _NS


class Running:
    """A source in a thread of its own, and what it gave."""

    def __init__(self, source: BridgeSource) -> None:
        self.source, self.deliveries = source, list[Delivery]()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for delivery in self.source:
            self.deliveries.append(delivery)

    @property
    def ticks(self) -> list[Tick]:
        return [tick for delivery in list(self.deliveries) for tick in delivery.records]

    @property
    def missing(self) -> list[tuple[str, int, int]]:
        return [span for delivery in list(self.deliveries) for span in delivery.missing]

    def end(self) -> None:
        self.source.close()
        self._thread.join(timeout=60)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def running(port: int, cursor: str | None = None, **options: Any) -> Iterator[Running]:
    source = make("bridge", Options(**{"symbols": ["ESZ6"], "port": port, "poll_s": 0.02, "connect_s": 5.0, **options}))
    source._backoff = Backoff(0.02, 0.1)
    source.resume(cursor)
    run = Running(source)
    try:
        yield run
    finally:
        run.end()


def trade(number: int, symbol: str = "ESZ6") -> Tick:
    return Tick(symbol, _T0 + number * _NS, price=100.0 + number, size=1.0, volume=float(number))


@pytest.mark.parametrize("push", [True, False], ids=["pushed", "polled"])
def test_ticks_arrive_by_websocket_or_where_that_is_refused_by_polling(push: bool) -> None:
    with BridgeServer(push=push) as server, running(server.port, symbols=["ESZ6", "NFO:NIFTY 50/X"]) as run:
        waited_for(lambda: run.source.stats.state == "live")
        assert run.source.stats.facts["pushed"] == (2 if push else 0)
        for number in range(3):
            server.publish(trade(number))
            server.publish(trade(number, "NFO:NIFTY 50/X"))
            waited_for(lambda due=number: len(run.ticks) == 2 * due + 2)
        ours = [tick for tick in run.ticks if tick.symbol == "ESZ6"]
        assert [(tick.price, tick.ts_event_ns) for tick in ours] == [(100.0 + n, _T0 + n * _NS) for n in range(3)]


def test_a_bridge_that_is_down_is_waited_for_and_said_to_be() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    with running(port) as run:
        waited_for(lambda: run.source.stats.state == "waiting" and "refused" in (run.source.stats.trouble or ""))
        with BridgeServer(port=port) as server:
            waited_for(lambda: run.source.stats.state == "live")
            waited_for(lambda: server.listeners == 1)
            server.publish(trade(1))
            waited_for(lambda: run.ticks)
            assert run.source.stats.trouble is None


def test_a_cut_connection_comes_back_and_its_first_state_is_not_told_twice() -> None:
    with BridgeServer() as server, running(server.port) as run:
        waited_for(lambda: server.listeners == 1)
        server.publish(trade(1))
        waited_for(lambda: len(run.ticks) == 1)
        server.cut()
        waited_for(lambda: run.source.stats.reconnects >= 1 and run.source.stats.duplicates == 1)
        waited_for(lambda: run.missing)
        server.publish(trade(2))
        waited_for(lambda: len(run.ticks) == 2)
        assert [tick.price for tick in run.ticks] == [101.0, 102.0]


def test_a_restart_tells_no_state_again(tmp_path: Path) -> None:
    with BridgeServer() as server, onetape.open(tmp_path / "t.db") as tape:
        server.publish(trade(1))
        for due in (1, 1, 2):
            if due == 2:
                server.publish(trade(2))
            feed = Feed(make("bridge", Options(symbols=["ESZ6"], port=server.port)), tape)
            thread = threading.Thread(target=feed.run, daemon=True)
            thread.start()
            stats = feed.source.stats
            waited_for(lambda f=feed: f.source.stats.records or f.source.stats.duplicates)
            feed.close()
            thread.join(timeout=60)
            assert not thread.is_alive() and stats is not None
            assert len(tape.read("ESZ6", 0, 2**62)) == due


def test_what_is_no_state_is_refused_and_the_rest_goes_on() -> None:
    with BridgeServer() as server, running(server.port) as run:
        waited_for(lambda: server.listeners == 1)
        server.tell("ESZ6", {"price": "dear"})
        server.tell("ESZ6", {"price": 0.0})
        server.publish(trade(1))
        waited_for(lambda: run.ticks)
        stats = run.source.stats
        assert stats.refused == 1 and "dear" in stats.facts["refused_last"] and stats.facts["placeholders"] == 1


@pytest.mark.parametrize("answer", [b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{[[[[", b""])
def test_a_server_that_is_no_bridge_is_closed_with_a_reason(answer: bytes) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def talk() -> None:
        with contextlib.suppress(OSError):
            while True:
                taken, _ = listener.accept()
                with taken:
                    taken.recv(65536)
                    taken.sendall(answer)

    threading.Thread(target=talk, daemon=True).start()
    try:
        with running(listener.getsockname()[1]) as run:
            waited_for(lambda: run.source.stats.reconnects >= 2 and run.source.stats.trouble)
            assert run.ticks == []
    finally:
        listener.close()


def test_an_answer_without_end_is_cut_at_its_bound() -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def talk() -> None:
        while True:
            with contextlib.suppress(OSError):
                taken, _ = listener.accept()
                with taken:
                    taken.recv(65536)
                    taken.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
                    while True:
                        taken.sendall(b"[" * 65536)
            if listener.fileno() < 0:
                return

    threading.Thread(target=talk, daemon=True).start()
    try:
        with running(listener.getsockname()[1], transport="http") as run:
            waited_for(lambda: "bytes" in (run.source.stats.trouble or ""))
    finally:
        listener.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "data"
    place.mkdir()
    (place / "ESZ6.scid").write_bytes(os.urandom(2_500_000))
    (place / "notes.txt").write_text("hello")
    (tmp_path / "secret.txt").write_text("secret")
    (place / "link.txt").symlink_to(tmp_path / "secret.txt")
    return place


def test_a_file_of_another_machine_is_listed_read_and_fetched_on_from_where_it_is(folder: Path, tmp_path: Path) -> None:
    with BridgeServer(folder=folder) as server, BridgeFiles(port=server.port) as files:
        assert [file.name for file in files.list()] == ["ESZ6.scid", "link.txt", "notes.txt"]
        assert files.info("ESZ6.scid").size == 2_500_000
        assert files.read("notes.txt") == "hello"
        whole = (folder / "ESZ6.scid").read_bytes()
        assert files.piece("ESZ6.scid", 100, 50) == whole[100:150]
        target = tmp_path / "copy.scid"
        target.write_bytes(whole[:1_000_001])
        assert files.fetch("ESZ6.scid", target) == 2_500_000
        assert target.read_bytes() == whole
        target.write_bytes(whole + b"more")
        with pytest.raises(SourceRefused, match="2500004"):
            files.fetch("ESZ6.scid", target)


@pytest.mark.parametrize(
    "name", ["../secret.txt", "a/../../secret.txt", "/etc/passwd", "..\\secret.txt", "C:\\x", "", "a\0b"]
)
def test_a_name_that_leads_out_of_the_folder_is_refused_on_both_sides(folder: Path, name: str) -> None:
    import httpx2

    with BridgeServer(folder=folder) as server, BridgeFiles(port=server.port) as files:
        for read in (files.info, files.read, lambda name: files.piece(name, 0)):
            with pytest.raises(ConfigInvalid):
                read(name)
        answer = httpx2.get(f"http://127.0.0.1:{server.port}/api/file/read", params={"path": name})
        assert answer.status_code == 400 and 'secret"' not in answer.text


def test_a_link_out_of_the_folder_and_a_file_that_is_not_there_are_refused(folder: Path) -> None:
    with BridgeServer(folder=folder) as server, BridgeFiles(port=server.port) as files:
        for name in ("link.txt", "absent.scid"):
            with pytest.raises(SourceRefused):
                files.read(name)
        with pytest.raises(SourceRefused):
            BridgeFiles(port=1).list()


@pytest.mark.parametrize(
    "table", [{"symbols": []}, {"symbols": ["A"], "poll_s": 0}, {"symbols": ["A"], "transport": "carrier pigeon"}]
)
def test_options_that_cannot_be_used_are_refused(table: dict[str, object]) -> None:
    with pytest.raises(ConfigInvalid):
        registry.make({"kind": "bridge", **table})


def test_a_foreign_cursor_is_refused() -> None:
    with pytest.raises(ConfigInvalid):
        make("b", Options(symbols=["A"])).resume("17")


@contextlib.contextmanager
def server_that(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that takes each connection's first bytes and then talks like this."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(taken: socket.socket) -> None:
        with taken, contextlib.suppress(OSError):
            taken.recv(65536)
            talk(taken)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()


def _drip(head: bytes) -> Callable[[socket.socket], None]:
    def talk(taken: socket.socket) -> None:
        taken.sendall(head)
        while True:
            taken.sendall(b"x")
            time.sleep(0.05)

    return talk


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\nX-Slow: ", b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n"], ids=["head", "body"]
)
def test_an_answer_that_drips_is_given_up_at_its_time(head: bytes) -> None:
    with server_that(_drip(head)) as port, running(port, transport="http", connect_s=0.5) as run:
        waited_for(lambda: "no whole answer within 0.5 s" in (run.source.stats.trouble or ""))


@pytest.mark.parametrize("transport", ["http", "ws"])
def test_closing_ends_a_source_whose_bridge_says_nothing(transport: str) -> None:
    with server_that(lambda taken: time.sleep(60)) as port:
        source = make("b", Options(symbols=["S"], port=port, connect_s=200.0, transport=transport))  # type: ignore[arg-type]
        run = Running(source)
        waited_for(lambda: source.stats.state == "connecting")
        time.sleep(0.05)
        run.end()


def test_a_message_of_another_symbol_is_not_taken_for_ours() -> None:
    with BridgeServer() as server, running(server.port, symbols=["ESZ6", "NQZ6"]) as run:
        waited_for(lambda: server.listeners == 2)
        server.tell("ESZ6", {"symbol": "ESZ6", "price": 4500.25, "timestamp": 1760000001})
        server.tell("ESZ6", {"symbol": "NQZ6", "price": 15000.0, "timestamp": 1760000002})
        server.tell("ESZ6", {"symbol": "YMZ6", "price": 35000.0, "timestamp": 1760000003})
        server.tell("ESZ6", {"symbol": "ESZ6", "price": 4500.5, "timestamp": 1760000004})
        waited_for(lambda: len(run.ticks) == 2)
        assert [(tick.symbol, tick.price) for tick in run.ticks] == [("ESZ6", 4500.25), ("ESZ6", 4500.5)]
        assert run.source.stats.refused == 2 and "YMZ6" in run.source.stats.facts["refused_last"]


def test_a_symbol_may_have_another_name_at_the_bridge() -> None:
    with BridgeServer() as server, running(server.port) as run:
        waited_for(lambda: server.listeners == 1)
        for second in (1, 2):
            server.tell(
                "ESZ6", {"symbol": "ESZ26_FUT_CME", "price": 4500.25 + second, "timestamp": 1760000000 + second}
            )
        waited_for(lambda: len(run.ticks) == 2)
        server.tell("ESZ6", {"symbol": "NQZ26_FUT_CME", "price": 1.0, "timestamp": 1760000003})
        waited_for(lambda: run.source.stats.refused == 1)


def test_a_time_from_the_future_is_refused() -> None:
    with BridgeServer() as server, running(server.port) as run:
        waited_for(lambda: server.listeners == 1)
        server.tell("ESZ6", {"price": 1.0, "timestamp": 7_000_000_000})
        server.publish(trade(1))
        waited_for(lambda: run.ticks)
        assert [tick.price for tick in run.ticks] == [101.0] and run.source.stats.refused == 1


def test_time_in_which_a_bridge_answers_nothing_is_a_gap_from_its_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half open: the connection stands, nothing comes, and nobody says that it is gone."""
    monkeypatch.setattr("onetape.sources.bridge.push.ASK_S", 0.1)
    monkeypatch.setattr("onetape.sources.bridge.push.LOST_S", 1.5)
    with BridgeServer() as server, _relay(server.port) as (port, stalled), running(port) as run:
        waited_for(lambda: server.listeners == 1)
        server.publish(trade(1))
        waited_for(lambda: run.ticks)
        stalled.set()
        at_ns = time.time_ns()
        waited_for(lambda: run.source.stats.reconnects)
        stalled.clear()
        waited_for(lambda: run.missing)
        ((_, start_ns, end_ns),) = run.missing
        assert start_ns <= at_ns + 100_000_000 and end_ns - start_ns > 1_000_000_000
        heard = [one.heard_ns for one in run.deliveries if one.heard_ns]
        assert heard and not [at for at in heard if start_ns + 1_000_000 < at < end_ns]


@contextlib.contextmanager
def _relay(onward_port: int) -> Iterator[tuple[int, threading.Event]]:
    """A relay in front of a server that passes nothing on while the event is set."""
    listener, stalled = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                while stalled.is_set():
                    time.sleep(0.01)
                target.sendall(data)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                taken, _ = listener.accept()
                onward = socket.create_connection(("127.0.0.1", onward_port))
                for pair in ((taken, onward), (onward, taken)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1], stalled
    finally:
        stalled.clear()
        listener.close()


def test_a_copy_of_another_file_is_not_gone_on_with(folder: Path, tmp_path: Path) -> None:
    with BridgeServer(folder=folder) as server, BridgeFiles(port=server.port) as files:
        target = tmp_path / "copy.scid"
        target.write_bytes(os.urandom(5000))
        with pytest.raises(SourceRefused, match="another"):
            files.fetch("ESZ6.scid", target)
        assert target.stat().st_size == 5000


def test_a_file_that_ends_too_early_is_said_to(folder: Path, tmp_path: Path) -> None:
    with BridgeServer(folder=folder) as server, BridgeFiles(port=server.port) as files:
        pieces = files.pieces("ESZ6.scid")
        next(pieces)
        (folder / "ESZ6.scid").write_bytes(b"short")
        with pytest.raises(SourceRefused, match="1048576 of 2500000"):
            list(pieces)
