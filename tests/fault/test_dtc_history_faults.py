"""A DTC history server that stalls, breaks off, is late or throws us out: no live trade is kept back, lost, doubled."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.unit.sources.test_dtc_source import _NS, _T0, running, trade
from tests.waiting import waited_for

from onetape import Tick
from onetape.sources.dtc import HistoryServer, history
from onetape.sources.dtc import messages as dtc
from onetape.sources.dtc.encoding import codec_of
from onetape.sources.dtc.fill import Fill, Part
from onetape.sources.dtc.place import Place
from onetape.sources.dtc.server import DtcServer

Answer = Callable[[socket.socket], None]


def message(number: int, **fields: Any) -> bytes:
    return codec_of(dtc.BINARY).encode(number, fields)


def told(*ticks: Tick, final: bool = True) -> bytes:
    """What a history server says of these trades, uncompressed."""
    return message(dtc.HISTORY_HEADER) + b"".join(
        message(
            dtc.HISTORY_TICK,
            DateTime=tick.ts_event_ns / _NS,
            Price=tick.price,
            Volume=tick.size,
            AtBidOrAsk=2 if tick.side > 0 else 1,
            IsFinalRecord=int(final and tick is ticks[-1]),
        )
        for tick in ticks
    )


@contextlib.contextmanager
def historian(*answers: Answer) -> Iterator[int]:
    """A history server that greets as it should and answers requests like this in turn, the last one from then on."""
    listener = socket.create_server(("127.0.0.1", 0))
    asked = 0

    def serve(taken: socket.socket) -> None:
        nonlocal asked
        codec = codec_of(dtc.BINARY)
        with taken, contextlib.suppress(OSError):
            while data := taken.recv(65536):
                for number, _ in codec.feed(data):
                    if number == dtc.ENCODING_REQUEST:
                        taken.sendall(message(dtc.ENCODING_RESPONSE))
                    elif number == dtc.LOGON_REQUEST:
                        taken.sendall(message(dtc.LOGON_RESPONSE))
                    elif number == dtc.HISTORY_REQUEST:
                        answer = answers[min(asked, len(answers) - 1)]
                        asked += 1
                        return answer(taken)
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


def says(data: bytes) -> Answer:
    return lambda taken: taken.sendall(data)


def forever(data: bytes) -> Answer:
    def talk(taken: socket.socket) -> None:
        while True:
            taken.sendall(data)
            time.sleep(0.02)

    return talk


@contextlib.contextmanager
def filling(port: int, place: Place, silent_s: float = 0.5, **more: Any) -> Iterator[tuple[Fill, list[Part]]]:
    server = HistoryServer(host="127.0.0.1", port=port, connect_s=5, silent_s=silent_s, compressed=False)
    fill = Fill(
        server, {"S": place}, {"S": ("S", "")}, source="d", clock=time.time_ns, **{"again_s": (0.01, 0.01), **more}
    )
    try:
        yield fill, []
    finally:
        fill.close()
        assert not fill._thread.is_alive()


def ended(fill: Fill, parts: list[Part]) -> Part:
    def is_over() -> bool:
        parts.extend(fill.parts())
        return bool(parts) and parts[-1].joined is not None

    waited_for(is_over)
    return parts[-1]


def s_trade(second: float, size: float) -> Tick:
    return trade(second, 5.0, size, symbol="S")


def sizes(parts: list[Part]) -> list[float | None]:
    return [tick.size for part in parts for tick in part.ticks]


@pytest.mark.parametrize(
    "talk", [forever(message(dtc.HEARTBEAT)), forever(told() + message(dtc.HEARTBEAT))], ids=["no header", "no records"]
)
def test_a_history_server_that_only_ever_beats_is_given_up_and_the_live_trades_go_on(talk: Answer) -> None:
    with historian(talk) as port, filling(port, Place(_T0)) as (fill, parts):
        assert fill.hold(s_trade(9, 1.0))
        end = ended(fill, parts)
        assert end.joined is False and "told nothing" in end.why
        assert sizes(parts) == [1.0]


def test_live_trades_that_wait_for_a_slow_history_are_bounded_and_given_before_it_ends() -> None:
    slow = forever(message(dtc.HISTORY_HEADER) + told(s_trade(1, 7.0), final=False)[20:])
    with historian(slow) as port, filling(port, Place(_T0), silent_s=60, held_max=100) as (fill, parts):
        waited_for(lambda: parts.extend(fill.parts()) or parts)
        held = 0
        while fill.hold(s_trade(60 + held, 1000.0 + held)):
            held += 1
            parts.extend(fill.parts())
            assert held < 10_000, "live trades wait without bound"
        end = parts[-1]
        assert end.joined is False and "100 live trades" in end.why
        assert [size for size in sizes(parts) if size and size >= 1000] == [1000.0 + index for index in range(held)]


def test_a_history_server_that_throws_us_out_ends_the_fill_and_the_live_trades_go_on() -> None:
    out = message(dtc.HISTORY_HEADER) + message(dtc.LOGOFF, Reason="account closed", DoNotReconnect=1)
    with historian(says(out)) as port, filling(port, Place(_T0)) as (fill, parts):
        assert fill.hold(s_trade(9, 1.0))
        end = ended(fill, parts)
        assert end.joined is False and "account closed" in end.why
        assert sizes(parts) == [1.0]


def test_a_history_that_breaks_off_behind_the_first_live_trades_gives_none_of_them_twice() -> None:
    whole = [s_trade(second, float(second)) for second in range(1, 7)]
    with historian(says(told(*whole[:5], final=False))) as port, filling(port, Place(_T0)) as (fill, parts):
        for tick in whole[2:]:
            assert fill.hold(tick)
        end = ended(fill, parts)
        assert end.joined is False
        assert sizes(parts) == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_a_history_written_late_is_asked_again_when_the_first_live_trade_comes() -> None:
    """The symbol was quiet when the connection came back, and the history had not got its last trades yet."""
    whole = [s_trade(second, float(second)) for second in range(1, 6)]
    answers = [says(told(*whole[:2])), says(told(*whole))]
    with historian(*answers) as port, filling(port, Place(_T0)) as (fill, parts):
        waited_for(lambda: parts.extend(fill.parts()) or sizes(parts) == [1.0, 2.0])
        time.sleep(0.1)
        parts.extend(fill.parts())
        assert all(part.joined is None for part in parts), "nobody knows yet whether all was told"
        assert fill.hold(whole[4])
        end = ended(fill, parts)
        assert end.joined is True
        assert sizes(parts) == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_trades_of_a_gap_that_the_history_gets_late_are_not_lost_and_not_said_to_be_covered() -> None:
    """The same, from the server to the deliveries."""
    with DtcServer() as server, running(server, history=True) as run:
        waited_for(lambda: server.subscriptions == 1)
        server.publish(trade(1, size=1.0))
        waited_for(lambda: len(run.trades) == 1)
        server.cut()
        waited_for(lambda: run.source.stats.reconnects >= 1 and server.subscriptions == 1)
        time.sleep(0.3)
        assert run.covers == []
        server.add_history([trade(2, size=2.0)])  # it happened in the gap, and is in the history only now
        server.publish(trade(3, size=3.0))
        waited_for(lambda: len(run.trades) == 3)
        assert [size for _, _, size in run.trades] == [1.0, 2.0, 3.0]
        waited_for(lambda: run.covers)


def test_float_noise_of_a_history_is_no_other_price_than_the_live_one() -> None:
    """A history kept in float32 comes as doubles: 1.1034499406814575 is 1.10345, and the same trade as it."""
    (noisy,) = struct.unpack("<f", struct.pack("<f", 1.10345))
    answer = told(Tick("S", (_T0 + 1) * _NS, price=noisy, size=1.0), Tick("S", (_T0 + 2) * _NS, price=noisy, size=2.0))
    server = historian(says(answer))
    with server as port:
        asked = HistoryServer(host="127.0.0.1", port=port, compressed=False)
        ticks = [t for batch in history.ticks(asked, "S", "S", "", 0, source="d", clock=time.time_ns) for t in batch]
    assert [tick.price for tick in ticks] == [1.10345, 1.10345]


def test_closing_ends_a_source_whose_history_server_says_nothing() -> None:
    with DtcServer() as server, historian(lambda taken: time.sleep(60)) as port:
        with running(server, '{"ESZ6":[5,1,true,[]]}', history=True, history_port=port) as run:
            waited_for(lambda: run.source.stats.state == "live")
        waited_for(lambda: not any(t.name.endswith(" history") for t in threading.enumerate()))
