"""Comparing keys of two servers fast: both sides' DUMPs come here, and where they differ, small values themselves.

Two servers keep equal values in other orders, encodings and versions of the format. Equal bytes prove equal content,
and so do equal digests of tables whose order differs; what is left is read as values, by the page, before a pair is
looked at by itself. Streams, and hashes whose fields expire, are left to that closer look.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from onetape.errors import EndpointError
from onetape.migrate.copying.compare import BIG, DIFFERENT, EQUAL, EXPIRY, NO_SOURCE, NO_TARGET, Comparer, Pair, Request
from onetape.migrate.copying.decide import SLACK_BEFORE_7_MS
from onetape.migrate.keys.content import has_field_expiry
from onetape.migrate.keys.dump import digest
from onetape.migrate.ledger.pack import Sealed
from onetape.migrate.remote.bridge import Bridge
from onetape.migrate.wire.endpoint import Endpoint, ReplyError, pack, parse_info

#: Up to here all data of the source may be asked for without asking for sizes first.
_DATASET_BYTES_SMALL = 192 * 1024 * 1024
_BIG_BYTES = 256 * 1024
_FOOTER_BYTES = 10


def _of_hash(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _of_scores(flat: list[bytes]) -> list[tuple[bytes, float]]:
    return [(flat[at], float(flat[at + 1])) for at in range(0, len(flat), 2)]  # their text differs by version


#: Type → the command that reads a value, its key left out, and what two equal values are equal in.
_VALUES: dict[bytes, tuple[tuple[str, ...], Callable[[Any], Any]]] = {
    b"string": (("GET",), bytes),
    b"list": (("LRANGE", "0", "-1"), list),
    b"set": (("SMEMBERS",), frozenset),
    b"zset": (("ZRANGE", "0", "-1", "WITHSCORES"), _of_scores),
    b"hash": (("HGETALL",), _of_hash),
}


class RemoteComparer(Comparer):
    """Compares pairs across a bridge; the same answers as Comparer."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__(bridge, in_server=False)
        self._bridge = bridge
        self._exact = bridge.has_expire_time
        self._sized = _dataset_bytes(bridge.source) > _DATASET_BYTES_SMALL

    def request(self, source_db: int, target_db: int, pairs: Sequence[Pair]) -> Request | None:
        """Return what asks for both sides of these pairs; None where their sizes must be known first."""
        return None if self._sized else self._ask(source_db, target_db, pairs)

    def _ask(self, source_db: int, target_db: int, pairs: Sequence[Pair]) -> Request:
        when = "PEXPIRETIME" if self._exact else "PTTL"
        packed = []
        for db, side in ((source_db, 0), (target_db, 1)):
            packed += [pack("SELECT", db), pack("TIME")]
            packed += [pack(name, pair[side]) for pair in pairs for name in ("DUMP", when)]
        return Request(b"".join(packed), len(packed))

    def answer(self, replies: Sequence[Any]) -> bytes | None:
        """Return the codes in the replies to a request. Raises EndpointError for an error among them."""
        for reply in replies:
            if isinstance(reply, ReplyError):
                raise EndpointError(f"comparing keys: {reply.message}", code=reply.code)
        half = len(replies) // 2
        apart_ms = _ms(replies[1]) - _ms(replies[half + 1])
        here, there = replies[2:half:2], replies[half + 2 :: 2]
        here_ms, there_ms = replies[3:half:2], replies[half + 3 :: 2]
        codes = []
        for at, (source, target) in enumerate(zip(here, there, strict=True)):
            if source is None:
                codes.append(NO_SOURCE)
            elif target is None:
                codes.append(NO_TARGET)
            elif (
                source != target
                and source[:-_FOOTER_BYTES] != target[:-_FOOTER_BYTES]
                and digest(source) != digest(target)
            ):
                codes.append(DIFFERENT)
            else:
                codes.append(EQUAL if self._same_time(here_ms[at], there_ms[at], apart_ms) else EXPIRY)
        return b"".join(codes)

    def sealed(self, replies: Sequence[Any]) -> list[Sealed]:
        """Return nothing: another server's copy is never without a digest in the ledger."""
        return []

    def _same_time(self, source_ms: int, target_ms: int, apart_ms: int) -> bool:
        if self._exact or source_ms < 0 or target_ms < 0:
            return bool(source_ms == target_ms)
        return abs(source_ms + apart_ms - target_ms) <= SLACK_BEFORE_7_MS

    def codes(self, source_db: int, target_db: int, pairs: Sequence[Pair]) -> bytes:
        """Return one code a pair; keys over a size are BIG and not read. Raises EndpointError."""
        self._bridge.select(source_db)
        sizes = self._bridge.pipeline([("MEMORY", "USAGE", key, "SAMPLES", 1) for key, _ in pairs])
        big = [isinstance(size, int) and size > _BIG_BYTES for size in sizes]
        small = [pair for pair, is_big in zip(pairs, big, strict=True) if not is_big]
        found = self.answer(self._bridge.exchange(*self._ask(source_db, target_db, small))) or b""
        codes = iter([found[at : at + 1] for at in range(len(found))])
        return b"".join([BIG if is_big else next(codes) for is_big in big])

    def closer(self, source_db: int, target_db: int, pairs: Sequence[Pair], codes: bytes) -> bytes:
        """Return the codes after a look at the values themselves of pairs that are DIFFERENT. Raises EndpointError."""
        places = [at for at in range(len(pairs)) if codes[at : at + 1] == DIFFERENT]
        chosen = [pairs[at] for at in places]
        kinds = self._on_both(source_db, target_db, [("TYPE",)] * len(chosen), chosen)
        known = [at for at, (here, there) in enumerate(kinds) if here == there and here in _VALUES]
        places, chosen = [places[at] for at in known], [chosen[at] for at in known]
        reads = [_VALUES[kinds[at][0]] for at in known]
        values = self._on_both(source_db, target_db, [command for command, _ in reads], chosen)
        when = "PEXPIRETIME" if self._exact else "PTTL"
        times = self._on_both(source_db, target_db, [(when,)] * len(chosen), chosen)
        clocks = self._bridge.pipeline([("SELECT", source_db), ("TIME",), ("SELECT", target_db), ("TIME",)])
        apart_ms = _ms(clocks[1]) - _ms(clocks[3])
        found = [codes[at : at + 1] for at in range(len(codes))]
        for at, place in enumerate(places):
            sides, of = [*values[at], *times[at]], reads[at][1]
            if any(isinstance(side, ReplyError) for side in sides) or of(sides[0]) != of(sides[1]):
                continue
            if of is _of_hash and self._fields_expire(source_db, target_db, chosen[at], sides[0][::2]):
                continue
            found[place] = EQUAL if self._same_time(sides[2], sides[3], apart_ms) else EXPIRY
        return b"".join(found)

    def _fields_expire(self, source_db: int, target_db: int, pair: Pair, names: Sequence[bytes]) -> bool:
        for db, key in ((source_db, pair[0]), (target_db, pair[1])):
            self._bridge.select(db)
            if has_field_expiry(self._bridge):
                times = self._bridge.pipeline([("HPEXPIRETIME", key, "FIELDS", len(names), *names)])[0]
                if not isinstance(times, list) or any(time != -1 for time in times):
                    return True
        return False

    def _on_both(
        self, source_db: int, target_db: int, commands: Sequence[tuple[str, ...]], pairs: Sequence[Pair]
    ) -> list[tuple[Any, Any]]:
        """Return what both servers answer to a command on either key of each pair, the key put behind its name."""
        sides: list[list[tuple[Any, ...]]] = [
            [("SELECT", db), *((one[0], pair[side], *one[1:]) for one, pair in zip(commands, pairs, strict=True))]
            for db, side in ((source_db, 0), (target_db, 1))
        ]
        replies = self._bridge.pipeline([*sides[0], *sides[1]])
        half = len(replies) // 2
        return list(zip(replies[1:half], replies[half + 1 :], strict=True))


def _ms(time: Sequence[bytes]) -> int:
    return int(time[0]) * 1000 + int(time[1]) // 1000


def _dataset_bytes(endpoint: Endpoint) -> int:
    try:
        info = parse_info(endpoint.call("INFO", "memory"))
    except EndpointError as error:
        if error.facts.get("code") != "NOPERM":
            raise
        return 2**62
    return int(info.get("used_memory_dataset", 2**62))
