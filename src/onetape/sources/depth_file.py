"""The .depth file of Sierra Chart: its header and messages, and the books that they make. Pure.

The format is Sierra Chart's "Market Depth Data File Format": a header that states its own size and that of a record,
then messages of time, command, flags, number of orders, price and quantity. A file is one day, UTC, of one symbol, and
begins with a clear and the whole book.
"""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from onetape.errors import ImportInvalid
from onetape.importing.scid_file import EPOCH_US
from onetape.record import TS_MAX_NS
from onetape.sources.book import Book, BookSide, BookSnapshot, Change

HEADER_BYTES, RECORD_BYTES = 64, 24
_HEADER_BYTES_MAX, _RECORD_BYTES_MAX = 65_536, 4096
_HEADER = struct.Struct("<4sIII")
_RECORD = struct.Struct("<qBBHfII")

CLEAR, ADD_BID, ADD_ASK, MODIFY_BID, MODIFY_ASK, DELETE_BID, DELETE_ASK = range(1, 8)
#: Bit of a message's flags: it is the last of a batch that belongs together.
END_OF_BATCH = 1
#: A batch is at most so many messages: of a file that marks no ends nothing else would end one.
BATCH_MAX = 65_536


class Header(msgspec.Struct, frozen=True):
    """What a file says of itself."""

    header_bytes: int = HEADER_BYTES
    record_bytes: int = RECORD_BYTES

    def count(self, file_bytes: int) -> int:
        """Return how many whole messages a file of this size has."""
        return max(0, file_bytes - self.header_bytes) // self.record_bytes

    def offset(self, message: int) -> int:
        """Return where a message begins, counted from 0."""
        return self.header_bytes + message * self.record_bytes


class Message(NamedTuple):
    """One change of a book. ts_ns is -1 where the time is none."""

    ts_ns: int
    command: int
    flags: int
    orders: int
    price: float
    quantity: int


def read_header(raw: bytes, shown: str) -> Header:
    """Return the header that a file begins with. Raises ImportInvalid, naming what is wrong with it."""
    hint = "the file is damaged or no .depth: get it again"
    if len(raw) < HEADER_BYTES:
        raise ImportInvalid(f"{shown}, header: {len(raw)} bytes of {HEADER_BYTES}", hint="it was cut, or is being made")
    mark, header_bytes, record_bytes, _version = _HEADER.unpack_from(raw)
    if mark != b"SCDD":
        raise ImportInvalid(f"{shown}, header: begins with {mark!r}, not with b'SCDD'", hint=hint)
    if not HEADER_BYTES <= header_bytes <= _HEADER_BYTES_MAX or not RECORD_BYTES <= record_bytes <= _RECORD_BYTES_MAX:
        raise ImportInvalid(
            f"{shown}, header: says it is {header_bytes} bytes long, and a record {record_bytes}", hint=hint
        )
    return Header(header_bytes, record_bytes)


def messages(raw: bytes, header: Header) -> Iterator[Message]:
    """Yield the whole messages in `raw`."""
    for at in range(0, len(raw) - header.record_bytes + 1, header.record_bytes):
        us, command, flags, orders, price, quantity, _ = _RECORD.unpack_from(raw, at)
        ns = (us - EPOCH_US) * 1000
        yield Message(ns if 0 < ns <= TS_MAX_NS else -1, command, flags, orders, price, quantity)


def change(message: Message, price: float) -> Change:
    """Return what a message does to a book, at `price`. Raises ValueError for one that cannot be."""
    if message.ts_ns < 0 or not CLEAR <= message.command <= DELETE_ASK:
        raise ValueError("no time, or no command that is known")
    if message.command == CLEAR:
        return None
    if not math.isfinite(price):
        raise ValueError("no price")
    side: BookSide = "bid" if message.command in (ADD_BID, MODIFY_BID, DELETE_BID) else "ask"
    gone = message.command in (DELETE_BID, DELETE_ASK)
    return side, price, 0.0 if gone else float(message.quantity), message.orders


def batches(found: Iterable[Message]) -> Iterator[list[Message]]:
    """Yield what belongs together; what has no end yet is left out, unless it is BATCH_MAX messages long."""
    held: list[Message] = []
    for message in found:
        held.append(message)
        if message.flags & END_OF_BATCH or len(held) >= BATCH_MAX:
            yield held
            held = []


def snapshots(found: Iterable[Message], times_ns: Iterable[int]) -> Iterator[tuple[int, BookSnapshot]]:
    """Yield (time, the book as it was then) for ascending times: whole batches that had ended by then.

    Prices are those of the file; messages that cannot be are passed over. A time before the first batch has an empty
    book.
    """
    wanted = iter(times_ns)
    time_ns = next(wanted, None)
    book = Book()
    for batch in batches(found):
        while time_ns is not None and batch[-1].ts_ns > time_ns:
            yield time_ns, book.snapshot()
            time_ns = next(wanted, None)
        if time_ns is None:
            return
        changes = []
        for message in batch:
            with contextlib.suppress(ValueError):
                changes.append(change(message, message.price))
        book.change(changes, batch[-1].ts_ns)
    while time_ns is not None:
        yield time_ns, book.snapshot()
        time_ns = next(wanted, None)
