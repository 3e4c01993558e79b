"""Sierra Chart's .depth files, followed: the order book as it is, and the best of it as quotes.

[[source]]
kind = "depth"
folder = "/sierra/Data/MarketDepthData"
symbol = "ESZ6"
file_symbol = "ESZ26_FUT_CME"          # as the files are named: ESZ26_FUT_CME.2026-11-20.depth
tick_size = "0.25"
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import msgspec
import numpy as np

from onetape.clock import now_ns
from onetape.errors import ConfigInvalid
from onetape.importing.scid_file import Prices
from onetape.record import Tick
from onetape.sources import depth_file
from onetape.sources.book import Book
from onetape.sources.growing import GrowingFile, GrowingSource
from onetape.sources.source import ALIVE_S, Delivery

log = logging.getLogger("onetape.sources")

_BLOCK_MESSAGES = 8192
_RETRY_S = 0.1
#: A message this much after now is no message, ns.
_FUTURE_NS = 86_400_000_000_000


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `[[source]] kind = "depth"` takes.

    file_symbol: the symbol in the names of the files; `symbol`, if left out. multiplier, tick_size: decimals; prices
    are this many times what the files say, and multiples of the tick size. quotes: whether the best bid and ask go to
    the tape; the book is kept in either case. start: "newest", the newest day there is, or "history", the oldest.
    """

    folder: str
    symbol: str
    file_symbol: str | None = None
    source: str = "sierra-depth"
    multiplier: str | float = 1
    tick_size: str | float | None = None
    quotes: bool = True
    start: str = "newest"


def make(name: str, options: Options) -> DepthTail:
    """Return the source. Raises ConfigInvalid, naming the key."""
    if options.start not in ("newest", "history"):
        raise ConfigInvalid(f"source {name}: start = {options.start!r}", hint="newest, or history")
    stem = options.file_symbol or options.symbol
    if not stem or "/" in stem or "\\" in stem:
        raise ConfigInvalid(f"source {name}: file_symbol = {stem!r}", hint="as the files are named, without a folder")
    return DepthTail(
        options.folder,
        options.symbol,
        stem,
        name=name,
        source=options.source,
        prices=Prices(options.multiplier, options.tick_size),
        quotes=options.quotes,
        oldest=options.start == "history",
    )


class Place(msgspec.Struct, frozen=True):
    """Where a tail stands: the day, how many messages of its file end whole batches, and the time of the last."""

    day: str
    messages: int
    ts_ns: int


class DepthTail(GrowingSource):
    """The order book of one symbol, in `books`, and its best as ticks, from files of a day each.

    After a restart the day's file is read from its beginning, as only that makes the whole book; quotes are given from
    the cursor on. A file that was cut or replaced is read again in the same way.
    """

    kind = "depth"

    def __init__(
        self,
        folder: str | Path,
        symbol: str,
        stem: str | None = None,
        *,
        name: str = "depth",
        source: str | None = "sierra-depth",
        prices: Prices | None = None,
        quotes: bool = True,
        oldest: bool = False,
        clock: Callable[[], int] = now_ns,
    ) -> None:
        super().__init__(name, clock=clock)
        self._folder, self._symbol, self._stem = Path(folder), symbol, stem or symbol
        self._from, self._prices, self._quotes, self._oldest = source, prices or Prices(), quotes, oldest
        self._place: Place | None = None
        self._best: tuple[object, ...] = ()
        self.books = {symbol: Book()}

    def resume(self, cursor: str | None) -> None:
        if cursor is not None:
            try:
                self._place = msgspec.json.decode(cursor, type=Place)
                date.fromisoformat(self._place.day)
            except (msgspec.DecodeError, ValueError) as error:
                raise ConfigInvalid(
                    f"source {self.name}: {cursor[:80]!r} is no place in .depth files",
                    hint="a source of another kind had this name: give it another one",
                ) from error
        super().resume(cursor)

    def _days(self) -> list[str]:
        found = []
        for path in self._folder.glob("*.depth"):
            day = _day_of(path)
            if path.name == f"{self._stem}.{day}.depth":
                try:
                    found.append(date.fromisoformat(day).isoformat())
                except ValueError:
                    continue  # another thing that is named alike
        return sorted(found)

    def _path(self, day: str) -> Path:
        return self._folder / f"{self._stem}.{day}.depth"

    def _deliveries(self) -> Iterator[Delivery]:
        while not self.stopped:
            day = self._day()
            if day is None:
                self._trouble(f"{self._path('DATE')}: there is none yet; it is waited for")
                self._wait(_RETRY_S)
                continue
            yield from self._reading(self._path(day))

    def _day(self) -> str | None:
        days = self._days()
        if self._place is not None:
            days = [day for day in days if day >= self._place.day]
            return days[0] if days else None
        return (days[0] if self._oldest else days[-1]) if days else None

    def _of(self, file: GrowingFile) -> Iterator[Delivery]:
        """Yield what comes of one day, until the next one begins or the file is another."""
        day = _day_of(file.path)
        header = depth_file.read_header(file.read(0, depth_file.HEADER_BYTES), str(file.path))
        skip, after_ns = self._behind(file, header, day)
        self._best = ()
        book = self.books[self._symbol]
        book.clear()
        done = ended = 0  # messages read, and those of whole batches
        held = last = b""
        given = time.monotonic()
        while not self.stopped and not file.replaced:
            count = header.count(file.size)
            if count < done or (done and file.read(header.offset(done - 1), header.record_bytes) != last):
                self._count(reconnects=1)
                return
            raw = file.read(header.offset(done), min(count - done, _BLOCK_MESSAGES) * header.record_bytes)
            raw = raw[: len(raw) // header.record_bytes * header.record_bytes]
            self._tell(state="live", trouble=None)
            if raw:
                last, done = raw[-header.record_bytes :], done + len(raw) // header.record_bytes
                ticks: list[Tick] = []
                batches = list(depth_file.batches(depth_file.messages(held + raw, header)))
                self._count_endless(batches)
                before = ended
                for batch, prices in self._priced(batches):
                    ended += len(batch)
                    ts_ns = self._apply(book, batch, prices)
                    tick = self._quote(book, ts_ns)
                    if tick is not None and ended > skip and ts_ns > after_ns:
                        ticks.append(tick)
                held = (held + raw)[(ended - before) * header.record_bytes :]
                if ended > max(before, skip) and (book.at_ns or 0) > after_ns:
                    self._place = Place(day, ended, book.at_ns or 0)
                    yield Delivery(records=ticks, cursor=msgspec.json.encode(self._place).decode())
                    given = time.monotonic()
                continue
            if not file.wait(max(0.0, given + ALIVE_S * 0.9 - time.monotonic()), self._stopped):
                later = [one for one in self._days() if one > day]
                if later and header.count(file.size) == done:
                    if held:
                        self._count(dropped=len(held) // header.record_bytes)
                        log.warning("%s: %s ends with half a batch: it is left out", self.name, file.path)
                    self._place = Place(later[0], 0, book.at_ns or 0)
                    return
                yield Delivery()
                given = time.monotonic()

    def _count_endless(self, batches: list[list[depth_file.Message]]) -> None:
        endless = sum(not batch[-1].flags & depth_file.END_OF_BATCH for batch in batches)
        if endless:
            with self._lock:
                self._facts["batches_without_end"] = self._facts.get("batches_without_end", 0) + endless

    def _behind(self, file: GrowingFile, header: depth_file.Header, day: str) -> tuple[int, int]:
        """Return how many messages were given, and, where the file is another, the time up to which they were."""
        place = self._place
        if place is None or place.day != day or not place.messages:
            return 0, -1
        raw = file.read(header.offset(place.messages - 1), header.record_bytes)
        if len(raw) == header.record_bytes and next(depth_file.messages(raw, header)).ts_ns == place.ts_ns:
            return place.messages, -1
        return 0, place.ts_ns

    def _priced(
        self, batches: list[list[depth_file.Message]]
    ) -> Iterator[tuple[list[depth_file.Message], list[float]]]:
        prices = self._prices.of(np.array([message.price for batch in batches for message in batch], "<f4")).tolist()
        at = 0
        for batch in batches:
            yield batch, prices[at : at + len(batch)]
            at += len(batch)

    def _apply(self, book: Book, batch: list[depth_file.Message], prices: list[float]) -> int:
        """Put a batch into the book at once; return its time, that of the book where it has none that can be."""
        changes = []
        latest_ns = self._clock() + _FUTURE_NS
        for message, price in zip(batch, prices, strict=True):
            try:
                if message.ts_ns > latest_ns:
                    raise ValueError("from the future")
                changes.append(depth_file.change(message, price))
            except ValueError:
                self._count(refused=1)
        ts_ns = batch[-1].ts_ns
        if not 0 <= ts_ns <= latest_ns:
            ts_ns = book.at_ns or 0
        book.change(changes, ts_ns)
        return ts_ns

    def _quote(self, book: Book, ts_ns: int) -> Tick | None:
        """Return the best of both sides as a tick where it is not what it was."""
        bid, ask = book.best()
        best = (bid[:2] if bid else None, ask[:2] if ask else None)
        if best == self._best or not self._quotes:
            return None
        self._best = best
        if (bid is None and ask is None) or not ts_ns:
            return None
        return Tick(
            self._symbol,
            ts_ns,
            bid=bid.price if bid else None,
            bid_size=bid.size if bid else None,
            ask=ask.price if ask else None,
            ask_size=ask.size if ask else None,
            source=self._from,
        )


def _day_of(path: Path) -> str:
    return path.name.removesuffix(".depth").rpartition(".")[2]
