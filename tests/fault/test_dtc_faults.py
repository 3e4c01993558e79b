"""A DTC server that talks nonsense, never ends, falls silent or breaks off: closed with a reason, nothing lost."""

from __future__ import annotations

import contextlib
import resource
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.waiting import waited_for

import onetape
from onetape import Tick
from onetape.sources.dtc import HistoryServer, Options, history, make
from onetape.sources.dtc import messages as dtc
from onetape.sources.dtc.encoding import codec_of
from onetape.sources.dtc.layout import Malformed
from onetape.sources.dtc.server import DtcServer
from onetape.sources.feed import Feed
from onetape.sources.source import Backoff

_NS = 1_000_000_000
_T0 = 1_760_000_000

Talk = Callable[[socket.socket], None]


@contextlib.contextmanager
def talking(talk: Talk) -> Iterator[int]:
    """A server that greets as it should, and then talks like this. Yields its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(taken: socket.socket) -> None:
        codec = codec_of(dtc.BINARY)
        with taken, contextlib.suppress(OSError):
            while data := taken.recv(65536):
                for number, fields in codec.feed(data):
                    if number == dtc.ENCODING_REQUEST:
                        taken.sendall(codec.encode(dtc.ENCODING_RESPONSE, {"Encoding": fields["Encoding"]}))
                        if fields["Encoding"] != dtc.BINARY:
                            taken.recv(65536)
                            codec = codec_of(fields["Encoding"])
                            taken.sendall(codec.encode(dtc.LOGON_RESPONSE, {"Result": 1}))
                            return talk(taken)
                    elif number == dtc.LOGON_REQUEST:
                        taken.sendall(codec.encode(dtc.LOGON_RESPONSE, {"Result": 1}))
                    elif number in (dtc.MARKET_DATA_REQUEST, dtc.HISTORY_REQUEST):
                        return talk(taken)
        return None

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()


def _endless_json(taken: socket.socket) -> None:
    taken.sendall(b'{"Type":107,"x":"')
    while True:
        taken.sendall(b"y" * 65536)


def _silent(taken: socket.socket) -> None:
    time.sleep(30)


@pytest.mark.parametrize(
    ("talk", "encoding", "why"),
    [
        (lambda taken: taken.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 5000), "binary", ""),
        (lambda taken: taken.sendall(b"\0" * 64), "binary", "take 4"),
        (lambda taken: taken.sendall(struct.pack("<HH", 65535, 107) + b"x" * 100), "binary", "hung up"),
        (_endless_json, "json", "more than"),
        (lambda taken: taken.sendall(b"[[[[[[[[\0"), "json", "no JSON"),
        (_silent, "binary", "silent"),
    ],
    ids=["another protocol", "zeros", "cut in a message", "a message without end", "no object", "silence"],
)
def test_nonsense_closes_the_connection_with_a_reason_and_is_tried_again(talk: Talk, encoding: str, why: str) -> None:
    with talking(talk) as port:
        source = make("d", Options(symbols=["S"], port=port, encoding=encoding, heartbeat_s=1, connect_s=2))
        source._backoff = Backoff(0.05, 0.2)
        seen: list[str] = []

        def run() -> None:
            for _ in source:
                pass

        thread = threading.Thread(target=run, daemon=True)
        thread.start()

        def told() -> bool:
            seen.append(source.stats.trouble or "")
            return source.stats.reconnects >= 2 and any(why in text and text for text in seen)

        try:
            waited_for(told, f"{why!r} in {set(seen)}")
        finally:
            source.close()
            thread.join(timeout=60)
        assert not thread.is_alive()
        assert source.stats.state == "ended"


def test_a_server_that_greets_and_then_fails_each_time_is_not_hammered() -> None:
    with talking(lambda taken: taken.sendall(b"\0" * 64)) as port:
        source = make("d", Options(symbols=["S"], port=port))
        source._backoff = Backoff(0.01, 10.0, chance=lambda: 1.0)
        waits: list[float] = []
        source._wait = lambda seconds: waits.append(seconds) or len(waits) < 6  # type: ignore[method-assign,func-returns-value]
        for _ in source:
            pass
        assert waits == [0.01, 0.02, 0.04, 0.08, 0.16, 0.32]


def _history(port: int, **limits: int) -> list[Tick]:
    server = HistoryServer(host="127.0.0.1", port=port, connect_s=5, silent_s=1.0, **limits)
    return [tick for batch in history.ticks(server, "S", "S", "", 0, source="d", clock=time.time_ns) for tick in batch]


def _zipped(plain: bytes) -> bytes:
    header = codec_of(dtc.BINARY).encode(dtc.HISTORY_HEADER, {"UseZLibCompression": 1})
    return header + zlib.compress(plain, 9)


def test_a_small_history_that_unpacks_without_end_costs_no_memory() -> None:
    message = struct.pack("<HH", 60_000, 9999) + bytes(59_996)  # well formed, and of no meaning here
    packer = zlib.compressobj(9)
    bomb = _zipped(b"")[:20] + b"".join(packer.compress(message) for _ in range(8000)) + packer.flush()
    assert len(bomb) < 1 << 20  # half a gigabyte, unpacked
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with talking(lambda taken: taken.sendall(bomb)) as port, pytest.raises(Malformed, match="unpacks to more"):
        _history(port, bytes_max=64 << 20)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 128 << 10  # KiB


def test_history_of_too_many_records_is_refused() -> None:
    tick = codec_of(dtc.BINARY).encode(dtc.HISTORY_TICK, {"DateTime": 5.0, "Price": 1.0, "Volume": 1.0})
    with (
        talking(lambda taken: taken.sendall(_zipped(tick * 5000))) as port,
        pytest.raises(Malformed, match="more than 4000"),
    ):
        _history(port, records_max=4000)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"\x14\0\x21\3" + b"\0" * 8 + b"\1\0\0\0" + b"\0" * 4 + b"no zlib at all", Malformed),
        (_zipped(b"\0\0\0\0"), Malformed),
        (_zipped(b""), EOFError),
        (b"\0\0\0\0\0\0", Malformed),
        (b"", OSError),
    ],
    ids=["no zlib", "nonsense in zlib", "no last record", "nonsense", "nothing"],
)
def test_a_history_that_is_none_ends_with_an_error(answer: bytes, error: type[Exception]) -> None:
    def talk(taken: socket.socket) -> None:
        taken.sendall(answer)
        if not answer:
            time.sleep(10)

    with talking(talk) as port, pytest.raises(error):
        _history(port)


def test_a_history_that_breaks_off_is_gone_on_with_where_it_broke(tmp_path: Path) -> None:
    """Cut after 3,000 compressed trades; the second answer brings the rest, the tape has each trade once."""
    whole = [Tick("S", _T0 * _NS + index * 10_000_000, price=5.0, size=float(index)) for index in range(5000)]
    asked: list[int] = []

    class Asked(DtcServer):
        def history_of(self, symbol: str, start_s: int, end_s: int) -> list[Tick]:
            asked.append(start_s)
            return super().history_of(symbol, start_s, end_s)

    with Asked() as server, onetape.open(tmp_path / "t.db") as tape:
        server.add_history(whole)
        with _cutting(server.history_port, after_bytes=20_000) as history_port:
            source = make(
                "d",
                Options(symbols=["S"], port=server.port, history=True, history_port=history_port, history_days=5000),
            )
            with _fed(source, tape):
                waited_for(lambda: _count(tape) >= 5000)
        assert asked[0] < _T0 < asked[1] < whole[-1].ts_event_ns // _NS
        rows = tape.read("S", 0, 2**62, ["size"])["size"].to_pylist()
        assert rows == [tick.size for tick in whole]


def test_ticks_reach_the_tape_once_through_cuts_and_restarts(tmp_path: Path) -> None:
    sent = [Tick("S", _T0 * _NS + index * 50_000_000, price=5.0, size=float(index + 1)) for index in range(400)]
    with DtcServer(trade=dtc.TRADE) as server, onetape.open(tmp_path / "t.db") as tape:
        at = 0
        for _ in range(4):
            source = make(
                "d",
                Options(
                    symbols=["S"],
                    port=server.port,
                    history=True,
                    history_port=server.history_port,
                    history_days=5000,  # from the first trade on
                ),
            )
            source._backoff = Backoff(0.01, 0.05)
            with _fed(source, tape):
                waited_for(lambda: server.subscriptions == 1)
                for _ in range(2):
                    server.publish(sent[at : at + 37])
                    at += 37
                    server.cut()
                    server.publish(sent[at : at + 13])
                    at += 13
                waited_for(lambda due=at: _count(tape) >= due, "not all arrived")
            waited_for(lambda: server.clients == 0)
        assert at == len(sent)
        assert tape.read("S", 0, 2**62, ["size"])["size"].to_pylist() == [tick.size for tick in sent]


def _count(tape: onetape.Tape) -> int:
    return len(tape.read("S", 0, 2**62, ["ts_event_ns"]))


@contextlib.contextmanager
def _fed(source: object, tape: onetape.Tape) -> Iterator[None]:
    feed = Feed(source, tape)  # type: ignore[arg-type]
    thread = threading.Thread(target=feed.run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        feed.close()
        thread.join(timeout=60)
        assert not thread.is_alive()
        assert feed.stats.last_error is None


@contextlib.contextmanager
def _cutting(port: int, after_bytes: int) -> Iterator[int]:
    """A relay that cuts its first connection after so many bytes of the answer."""
    listener = socket.create_server(("127.0.0.1", 0))
    first = threading.Event()

    def pump(source: socket.socket, target: socket.socket, left: int) -> None:
        with contextlib.suppress(OSError):
            while left > 0 and (data := source.recv(min(4096, left))):
                target.sendall(data)
                left -= len(data)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                taken, _ = listener.accept()
                onward = socket.create_connection(("127.0.0.1", port))
                left = 1 << 40 if first.is_set() else after_bytes
                first.set()
                threading.Thread(target=pump, args=(taken, onward, 1 << 40), daemon=True).start()
                threading.Thread(target=pump, args=(onward, taken, left), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()
