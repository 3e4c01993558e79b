"""History: the ticks and bars that a DTC history server has of a symbol, as an iterator of batches.

A request has a connection of its own, as the protocol advises: behind the header of a compressed answer the connection
carries one zlib stream and nothing else. What is unpacked is bounded in bytes and in records, so that a small answer
that unpacks without end costs no memory.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator

import msgspec

from onetape.errors import SourceRefused
from onetape.record import Bar, Tick, interval_text
from onetape.sources.dtc import messages as dtc
from onetape.sources.dtc.connection import Away, Connection, Unwelcome
from onetape.sources.dtc.encoding import Message, codec_of
from onetape.sources.dtc.layout import Malformed
from onetape.sources.dtc.market import Market

#: At most this much is unpacked at once, bytes.
UNPACK_BYTES = 1 << 18

_RECORDS = {dtc.HISTORY_TICK, dtc.HISTORY_BAR}


class HistoryServer(msgspec.Struct, frozen=True, kw_only=True):
    """Where a history server is and what is asked of it.

    bytes_max, records_max: of one answer, unpacked; more is refused. silent_s: an answer without a record for longer
    is given up.
    """

    host: str
    port: int = dtc.HISTORY_PORT
    user: str = ""
    password: str = ""
    encoding: int = dtc.BINARY
    compressed: bool = True
    connect_s: float = 10.0
    silent_s: float = 20.0
    bytes_max: int = 4 << 30
    records_max: int = 50_000_000


class NothingKnown(Away):
    """The server has nothing of this symbol and span, or will not say it now."""


def ticks(
    server: HistoryServer,
    symbol: str,
    theirs: str,
    exchange: str,
    start_s: int,
    *,
    source: str,
    clock: Callable[[], int],
    going_on: Callable[[], bool] = lambda: True,
) -> Iterator[list[Tick]]:
    """Yield the symbol's trades from this second on, in the server's order; `theirs` is the symbol's name there.

    Raises NothingKnown, Away or another OSError, EOFError or Malformed where the answer ends before its end: what was
    yielded before is right. Ends early when `going_on` says so.
    """
    market = Market(symbol, source, clock)
    for batch in _answer(server, theirs, exchange, dtc.INTERVAL_TICK, start_s, 0, going_on):
        made = []
        for number, fields in batch:
            if number == dtc.HISTORY_TICK and fields["DateTime"]:
                tick = market.take(dtc.TRADE, fields)
                if tick is not None:
                    made.append(tick)
        if made:
            yield made


def bars(
    server: HistoryServer,
    symbol: str,
    exchange: str,
    seconds: int,
    start_s: int,
    end_s: int = 0,
    *,
    source: str,
) -> Iterator[list[Bar]]:
    """Yield the symbol's bars of this length in seconds, start_s <= start < end_s (0: to now). Raises as ticks()."""
    interval = interval_text(seconds * 1_000_000_000)
    for batch in _answer(server, symbol, exchange, seconds, start_s, end_s, lambda: True):
        made = []
        for number, fields in batch:
            if number != dtc.HISTORY_BAR or not fields["StartDateTime"]:
                continue
            when = fields["StartDateTime"]  # microseconds; older servers send seconds, which are small in comparison
            start_ns = when * 1000 if when > 1 << 36 else when * 1_000_000_000
            made.append(
                Bar(
                    symbol,
                    interval,
                    start_ns,
                    fields["OpenPrice"],
                    fields["HighPrice"],
                    fields["LowPrice"],
                    fields["LastPrice"],
                    volume=fields["Volume"],
                    trades=fields["NumTrades"] if seconds < 86_400 else None,  # of days it is the open interest
                    bid_volume=fields["BidVolume"],
                    ask_volume=fields["AskVolume"],
                    source=source,
                )
            )
        if made:
            yield made


def _answer(
    server: HistoryServer,
    symbol: str,
    exchange: str,
    interval: int,
    start_s: int,
    end_s: int,
    going_on: Callable[[], bool],
) -> Iterator[list[Message]]:
    try:
        yield from _answered(server, symbol, exchange, interval, start_s, end_s, going_on)
    except Unwelcome as error:
        raise SourceRefused(str(error), hint="check user and password of the history server") from error


def _answered(
    server: HistoryServer,
    symbol: str,
    exchange: str,
    interval: int,
    start_s: int,
    end_s: int,
    going_on: Callable[[], bool],
) -> Iterator[list[Message]]:
    with Connection(
        server.host, server.port, connect_s=server.connect_s, heartbeat_s=3600, wanted=going_on
    ) as connection:
        connection.agree(server.encoding)
        connection.log_on(user=server.user, password=server.password)
        connection.send(
            dtc.HISTORY_REQUEST,
            {
                "RequestID": 1,
                "Symbol": symbol,
                "Exchange": exchange,
                "RecordInterval": interval,
                "StartDateTime": start_s,
                "EndDateTime": end_s,
                "UseZLibCompression": int(server.compressed and server.encoding in (dtc.BINARY, dtc.BINARY_VLS)),
            },
        )
        patience = _Patience(server.silent_s)
        header = _header(connection, patience, going_on)
        if header is None:
            return
        if header["NoRecordsToReturn"]:
            raise NothingKnown(f"the history server has nothing of {symbol} since second {start_s}")
        if header["RecordInterval"] not in (0, interval):
            raise Malformed(f"history in intervals of {header['RecordInterval']} s where {interval} s were asked for")
        records = 0
        unpacked = _inflated if header["UseZLibCompression"] else _plain
        for batch in unpacked(connection, server, patience, going_on):
            records += len(batch)
            if any(number in _RECORDS for number, _ in batch):
                patience.renew()
            if records > server.records_max:
                raise Malformed(f"more than {server.records_max} records in one answer")
            yield batch
            if any(fields.get("IsFinalRecord") or number == dtc.HISTORY_TRAILER for number, fields in batch):
                return


class _Patience:
    """How long a server may take for the next record. What it says meanwhile, beats and bits of messages, is none."""

    def __init__(self, silent_s: float) -> None:
        self._silent_s = silent_s
        self.renew()

    def renew(self) -> None:
        self._since = time.monotonic()

    def check(self) -> None:
        if time.monotonic() - self._since > self._silent_s:
            raise Away(f"the history server was silent, or told nothing, for {self._silent_s:g} s")


def _header(connection: Connection, patience: _Patience, going_on: Callable[[], bool]) -> dict[str, int] | None:
    while going_on():
        message = connection.next(0.2)
        patience.check()
        if message is None:
            continue
        number, fields = message
        if number == dtc.HISTORY_HEADER:
            patience.renew()
            return fields
        if number == dtc.HISTORY_REJECT:
            raise NothingKnown(f"the history server refused: {fields['RejectText'] or 'no reason given'}")
        if number == dtc.LOGOFF:
            raise Away(f"the history server logged off: {fields['Reason'] or 'no reason given'}")
    return None


def _plain(
    connection: Connection, server: HistoryServer, patience: _Patience, going_on: Callable[[], bool]
) -> Iterator[list[Message]]:
    while going_on():
        batch = connection.receive(0.2)
        if batch:
            yield batch
        patience.check()


def _inflated(
    connection: Connection, server: HistoryServer, patience: _Patience, going_on: Callable[[], bool]
) -> Iterator[list[Message]]:
    inflater, codec, size = zlib.decompressobj(), codec_of(server.encoding), 0
    while going_on():
        data = connection.receive_raw(0.2)
        more = bool(data)
        while more:
            try:
                plain = inflater.decompress(data, UNPACK_BYTES)
            except zlib.error as error:
                raise Malformed(f"history that is no zlib stream: {error}") from error
            size += len(plain)
            if size > server.bytes_max:
                raise Malformed(f"an answer that unpacks to more than {server.bytes_max} bytes")
            batch = list(codec.feed(plain))
            if batch:
                yield batch
            if inflater.eof:
                raise EOFError("the compressed history ended before its last record")
            data = inflater.unconsumed_tail
            more = bool(data) or len(plain) == UNPACK_BYTES
            if not going_on():
                return
        patience.check()
