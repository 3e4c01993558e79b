"""Hash ticks: hashes that each hold one tick, read, understood, and ready to merge and to land.

A string that holds a JSON object counts as a hash of one field, `data`: some writers keep ticks so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any

from onetape.errors import EndpointError
from onetape.migrate.fields.tick_fields import Decoded, TickDecoder
from onetape.migrate.fields.tick_times import TimeReader
from onetape.migrate.landing.merge import MergeEntry
from onetape.migrate.plans.plan import Rule
from onetape.migrate.wire.endpoint import Endpoint, ReplyError

# realtime:X:2025-11-22T09:15:00 splits at its last colon like any key: the time is put together again.
_CLOCK_TIME = re.compile(
    rb"(.*):(\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d(?::?\d\d)?)?)", re.DOTALL
)


class HashTick:
    """One key of a hash_ticks rule as it was when it was read.

    `event_ns` is when it happened, None where neither the fields nor the key tell; `rejected` says why it is
    no tick for the tape; `unnamed` that its key has no symbol that is text; `why` says why it can go nowhere;
    `gone` that there was no such key.
    """

    __slots__ = (
        "event_ns",
        "flat",
        "gone",
        "identity",
        "key",
        "key_ns",
        "rejected",
        "stream",
        "symbol",
        "unnamed",
        "why",
    )

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.stream = b""
        self.symbol = ""
        self.key_ns: int | None = None
        self.flat: list[bytes] = []
        self.identity = b""
        self.event_ns: int | None = None
        self.rejected: str | None = None
        self.unnamed: str | None = None
        self.why: str | None = None
        self.gone = False

    def entry(self) -> MergeEntry:
        """Return it as an entry to merge. Only where event_ns is known."""
        assert self.event_ns is not None
        return MergeEntry(self.event_ns, self.key, self.identity, self.flat)


class HashTickReader:
    """Reads the keys of hash_ticks rules. The endpoint may be one that cannot write."""

    def __init__(self, endpoint: Endpoint, zone: str) -> None:
        self._endpoint = endpoint
        self._decoder = TickDecoder(zone)
        self._time = TimeReader(zone)

    def read(self, keys: Sequence[bytes], source_db: int, rule: Rule) -> tuple[list[HashTick], Decoded]:
        """Return what the keys hold, one item a key, and the ticks among them as columns.

        `rows` of the columns are places in the list; only valid ticks are in them. Raises EndpointError.
        """
        found = [HashTick(key) for key in keys]
        self._endpoint.select(source_db)
        for tick, reply in zip(found, self._values(keys), strict=True):
            self._name(tick, rule)
            if isinstance(reply, str):
                tick.why = tick.why or reply
            elif not reply:
                tick.gone = True
            else:
                tick.flat = reply
                tick.identity = identity_of(tick.key, reply)
        usable = [i for i, tick in enumerate(found) if not tick.gone and tick.why is None]
        decoded = self._decoder.decode(
            [found[i].flat for i in usable],
            [found[i].symbol for i in usable],
            [found[i].key_ns for i in usable],
        )
        for row, event_ns in zip(decoded.rows, decoded.columns.get("ts_event_ns", []), strict=True):
            found[usable[row]].event_ns = event_ns
        for row, why in decoded.rejected.items():
            tick = found[usable[row]]
            tick.rejected = tick.unnamed or why
            if tick.event_ns is None:  # not a tick, but its place in the stream may be known all the same
                tick.event_ns = self._decoder.event_ns(tick.flat, tick.key_ns)
            if tick.event_ns is None:
                tick.why = why
        valid = decoded.valid()
        return found, Decoded(valid.columns, [usable[row] for row in valid.rows], {})

    def _values(self, keys: Sequence[bytes]) -> Iterator[list[bytes] | str]:
        """Yield each key's fields, [] where there is no such key, or why it holds none."""
        replies = self._endpoint.pipeline([("HGETALL", key) for key in keys])
        for key, reply in zip(keys, replies, strict=True):
            if not isinstance(reply, ReplyError):
                yield reply
                continue
            if reply.code != "WRONGTYPE":
                raise EndpointError(f"reading {key!r}: {reply.message}", code=reply.code)
            text = self._endpoint.pipeline([("GET", key)])[0]
            yield [b"data", text] if isinstance(text, bytes) else "holds neither a hash nor JSON text"

    def _name(self, tick: HashTick, rule: Rule) -> None:
        named = _named(rule, tick.key)
        if named is None:
            tick.why = "does not fit the rule's pattern"
            return
        tick.stream, symbol, written = named
        try:
            tick.symbol = symbol.decode()
        except UnicodeDecodeError:
            tick.unnamed = f"symbol {symbol!r} is not UTF-8"
        try:
            tick.key_ns = self._time.read(written)
        except ValueError:
            tick.key_ns = None


def stream_of(rule: Rule, key: bytes) -> bytes | None:
    """Return the stream that a key of a hash_ticks rule is merged into, None where it does not fit the rule."""
    named = _named(rule, key)
    return None if named is None else named[0]


def _named(rule: Rule, key: bytes) -> tuple[bytes, bytes, bytes] | None:
    """Return the stream, the symbol and the time that a key names; a time may hold colons of its own."""
    parts = rule.parts(key)
    if parts is None:
        return None
    symbol, written = parts["symbol"], parts.get("timestamp", b"")
    together = _CLOCK_TIME.fullmatch(symbol + b":" + written) if written else None
    if together:
        symbol, written = together[1], together[2]
    if symbol == parts["symbol"]:
        return rule.target_of(key) or b"", symbol, written
    return rule.target.encode().replace(b"{symbol}", symbol), symbol, written


def identity_of(key: bytes, flat: Sequence[bytes]) -> bytes:
    """Return the 16 bytes by which a hash tick is known: 8 of its key, 8 of its fields in any order.

    In two halves, so that a stream tells whether it holds an earlier tick of a key whose hash was written since.
    """
    digest = blake2b(digest_size=8)
    for pair in sorted(zip(flat[::2], flat[1::2], strict=True)):
        for part in pair:
            digest.update(len(part).to_bytes(8, "little") + part)
    return blake2b(key, digest_size=8).digest() + digest.digest()


def columns_for_tape(decoded: Decoded, source: str) -> dict[str, Any]:
    """Return decoded columns as Tape.append_table takes them: one symbol for all rows is a scalar."""
    columns: dict[str, Any] = dict(decoded.columns) or {"symbol": [], "ts_event_ns": []}
    symbols = columns["symbol"]
    if symbols and symbols.count(symbols[0]) == len(symbols):
        columns["symbol"] = symbols[0]
    columns["source"] = source
    return columns
