"""The DTC source: ticks of several symbols from one connection, their order books, and after a gap what was missed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

import msgspec

from onetape.clock import now_ns
from onetape.errors import ConfigInvalid, SourceRefused
from onetape.sources.book import Book
from onetape.sources.dtc import messages as dtc
from onetape.sources.dtc.connection import Connection, Moved, Unwelcome
from onetape.sources.dtc.fill import Fill
from onetape.sources.dtc.history import HistoryServer
from onetape.sources.dtc.layout import Malformed
from onetape.sources.dtc.place import Place, decode
from onetape.sources.dtc.session import Session
from onetape.sources.source import Backoff, Delivery, Reconnecting

_NS = 1_000_000_000

#: A connection that lasted this long, s, was a good one: the next wait is short again.
GOOD_S = 10.0


class DtcSource(Reconnecting):
    """Trades and quotes of `symbols` from a DTC server; order books where `depth` levels are asked for.

    symbols: name on the tape → (name at the server, its exchange). history: the server that fills gaps; None: gaps are
    said to be missing. history_days: how far back to begin where there is no cursor.
    """

    kind = "dtc"
    lost = (OSError, EOFError, Malformed)

    def __init__(
        self,
        name: str,
        host: str,
        port: int,
        symbols: Mapping[str, tuple[str, str]],
        *,
        user: str = "",
        password: str = "",
        encoding: int = dtc.BINARY,
        heartbeat_s: int = 10,
        connect_s: float = 10.0,
        depth: int = 0,
        history: HistoryServer | None = None,
        history_days: float = 0.0,
        backoff: Backoff | None = None,
        clock: Callable[[], int] = now_ns,
    ) -> None:
        if not symbols:
            raise ConfigInvalid(f"source {name}: no symbols", hint='say which, such as symbols = ["ESZ6"]')
        super().__init__(name, backoff=backoff, clock=clock)
        self._home = self._address = (host, port)
        self._symbols = dict(symbols)
        self._user, self._password = user, password
        self._encoding, self._heartbeat_s, self._connect_s = encoding, heartbeat_s, connect_s
        self._depth, self._history, self._history_days = depth, history, history_days
        self._places: dict[str, Place] = {}
        self._spans: dict[str, tuple[int, int]] = {}  # what the fill of this connection is to cover
        self._told_cursor: str | None = None
        self._alive_ns: int | None = None  # when the server was last heard, of this process's connections
        self._away: dict[str, int] = {}  # symbols that the server has no feed of, and since when that is not told
        self.books: dict[str, Book] = {symbol: Book() for symbol in symbols} if depth else {}

    def resume(self, cursor: str | None) -> None:
        """Go on behind the trades that this cursor knows; gaps are filled where there is a history server."""
        self._places = {} if cursor is None else decode(cursor)
        self._told_cursor = cursor
        super().resume(cursor)

    def _session(self) -> Iterator[Delivery]:
        address, self._address = self._address, self._home  # a redirection holds while its address answers
        connection = Connection(*address, connect_s=self._connect_s, heartbeat_s=self._heartbeat_s, wanted=self._wanted)
        began = time.monotonic()
        fill = None
        try:
            chosen = connection.agree(self._encoding)
            welcome = connection.log_on(user=self._user, password=self._password)
            self._address = address
            self._facts["server"], self._facts["encoding"] = welcome["ServerName"], chosen
            ids = self._subscribe(connection)
            session = Session(self, ids, welcome, self._subscribe)
            missing = self._gap()
            fill = self._fill(missing)
            self._tell(state="live", trouble=None)
            good = False
            while not self.stopped:
                if not good and time.monotonic() - began > GOOD_S:
                    self._backoff.reset()
                    good = True
                taken = connection.receive(0.05 if fill and fill.busy else 0.5)
                heard_ns = self._clock() - int(connection.silent_s * _NS)
                delivery = session.deliver(taken, fill, missing, connection)
                missing = []
                yield msgspec.structs.replace(delivery, heard_ns=heard_ns)
                self._alive_ns = heard_ns
                self._facts["unknown_messages"] = connection.unknown
            connection.log_off("the client ends")
        except Moved as error:
            self._address = _address(error.address, address[1])
            raise
        except Unwelcome as error:
            raise SourceRefused(f"source {self.name}: {error}", hint="check user and password of the server") from error
        finally:
            if fill is not None:
                fill.close()
            connection.close()
            for book in self.books.values():
                book.clear()

    def _wanted(self) -> bool:
        return not self.stopped

    def _subscribe(self, connection: Connection) -> dict[int, str]:
        ids = dict(enumerate(self._symbols, start=1))
        for number, symbol in ids.items():
            theirs, exchange = self._symbols[symbol]
            wanted = {"RequestAction": dtc.SUBSCRIBE, "SymbolID": number, "Symbol": theirs, "Exchange": exchange}
            connection.send(dtc.MARKET_DATA_REQUEST, wanted)
            if self._depth:
                connection.send(dtc.DEPTH_REQUEST, {**wanted, "NumLevels": self._depth})
        return ids

    def _gap(self) -> list[tuple[str, int, int]]:
        """Of which span nothing was heard, between the connection before and this one."""
        now, before = self._clock(), self._alive_ns
        away, self._away = self._away, {}
        if before is None or now <= before:
            return []
        return [(symbol, min(before, away.get(symbol, before)), now) for symbol in self._symbols]

    def _fill(self, missing: list[tuple[str, int, int]]) -> Fill | None:
        """Begin to ask history for what is behind the places; what it will tell is not missing yet."""
        if self._history is None:
            return None
        places = {symbol: place for symbol, place in self._places.items() if symbol in self._symbols}
        if self._history_days > 0:
            start = self._clock() // _NS - int(self._history_days * 86400)
            places = {symbol: places.get(symbol) or Place(start) for symbol in self._symbols}
        if not places:
            return None
        theirs = {symbol: self._symbols[symbol] for symbol in places}
        for symbol, start, end in missing:  # what a fill that was cut off had to cover is still to be
            self._spans[symbol] = (self._spans.get(symbol, (start, end))[0], end)
        missing[:] = [span for span in missing if span[0] not in places]
        return Fill(self._history, places, theirs, source=self.name, clock=self._clock)


def _address(text: str, port: int) -> tuple[str, int]:
    """The host and port of "host:port" or "host". Raises Malformed."""
    host, colon, number = text.rpartition(":")
    if not colon:
        host, number = text, str(port)
    if not host or not number.isdecimal() or not 0 < int(number) < 65536:
        raise Malformed(f"the server says to connect to {text!r:.80}, which is no address")
    return host, int(number)
