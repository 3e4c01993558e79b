"""Landing: the ticks and bars of Redis keys put on the tape, each once, however often and from wherever killed.

A stream is known by a cursor, the id of the last entry that was landed; a hash by the digest of its key and
content; a bar by the digest of its key and values. The tape moves cursors and remembers digests in the
transaction that stores the records, so landing the same data again stores nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from onetape.errors import CursorConflict, EndpointError, InvalidRecord
from onetape.migrate.fields.bar_fields import BarDecoder, bar_identity
from onetape.migrate.fields.tick_fields import TickDecoder
from onetape.migrate.keys.content import slice_of
from onetape.migrate.landing.hash_ticks import HashTick, HashTickReader, columns_for_tape
from onetape.migrate.landing.landing import LandResult
from onetape.migrate.landing.merge import Merged, merge, merged_identity, missing, parse_id
from onetape.migrate.ledger.entry import Outcome
from onetape.migrate.plans.plan import Rule
from onetape.migrate.wire.endpoint import Endpoint, is_lost
from onetape.record import Bar
from onetape.tape import Tape

SOURCE = "redis"

_PAGE = 5000
_HASHES = 1000
_MERGED_AT_ONCE = 20_000  # about 20 MB of hashes
_BARS = 1000
_ATTEMPTS = 3
_ID_MS_MIN = 10**11  # an entry id below it (1973) was made up and tells no time


class Lander:
    """Lands the keys of one migration. `endpoint` reads the sources and writes merged streams.

    With `dry_run` nothing is written anywhere and results say what would be stored. Without a tape, hashes
    are still merged in Redis. Raises EndpointError when the connection is lost, TapeError when the tape cannot
    be written; whatever is wrong with a key is its result.
    """

    def __init__(
        self, endpoint: Endpoint, target_db: int, tape: Tape | None, timezone: str, dry_run: bool = False
    ) -> None:
        self._endpoint = endpoint
        self._target_db = target_db
        self._tape = tape
        self._dry_run = dry_run
        self._decoder = TickDecoder(timezone)
        self._hashes = HashTickReader(endpoint, timezone)
        self._bars = BarDecoder(timezone)

    def stream(self, key: bytes, source_db: int, rule: Rule) -> LandResult:
        """Land a stream's entries past its cursor, up to what is there now.

        An entry that is no valid tick is counted, the first one named in `error`; where its values can be read
        it is in the tape's quarantine. It stays in the copied stream in any case.
        """
        symbol, why = symbol_of(key, rule)
        if why is not None:
            return LandResult(key, 0, 0, Outcome.FAILED, why)
        try:
            self._endpoint.select(source_db)
            for _attempt in range(_ATTEMPTS):
                try:
                    return self._stream(key, symbol)
                except CursorConflict:  # another lander was faster: go on from where it is
                    continue
        except EndpointError as error:
            return _failed(key, error)
        return LandResult(key, 0, 0, Outcome.CHANGED_WHILE_COPYING, "another process lands this stream")

    def _stream(self, key: bytes, symbol: str) -> LandResult:
        length, info = self._endpoint.pipeline([("XLEN", key), ("XINFO", "STREAM", key)])
        if not isinstance(info, list):
            kind = self._endpoint.call("TYPE", key).decode()
            if kind == "none":
                return LandResult(key, 0, 0, Outcome.EXPIRED)
            return LandResult(key, 0, 0, Outcome.FAILED, f"is a {kind}, not a stream")
        end: bytes = info[info.index(b"last-generated-id") + 1]
        name = cursor_name(key)
        before = self._tape.cursor(name) if self._tape else None
        if before is not None and parse_id(end) < parse_id(before.encode()):
            why = f"its ids end at {end.decode()}, but {before} was landed: it was deleted and made anew"
            return LandResult(key, 0, 0, Outcome.FAILED, why)
        if before is not None and not continues(self._endpoint, key, info, before):
            return LandResult(key, 0, 0, Outcome.FAILED, not_continued(before))
        stored = seen = 0
        refused: list[str] = []
        count = known = 0
        at_once = min(_PAGE, slice_of(self._endpoint, key, length))
        while page := self._entries(key, before, end, at_once):
            after = page[-1][0].decode()
            own = [entry for entry in page if merged_identity(entry[1]) is None]
            if len(own) < len(page):
                merged = [entry for entry in page if merged_identity(entry[1])]
                new, bad = self._land_merged(merged, symbol)
                stored, known, count = stored + new, known + len(merged) - new - len(bad), count + len(bad)
                refused += bad[: 1 - len(refused)]
            decoded = self._decoder.decode(
                [fields for _id, fields in own], [symbol] * len(own), [_id_ns(one[0]) for one in own]
            )
            if self._tape is not None and not self._dry_run:
                cursor = (name, before, after)
                columns = columns_for_tape(decoded, SOURCE)
                stored += self._tape.append_table(columns, cursor=cursor, on_invalid="quarantine").stored
            else:
                stored += len(own) - len(decoded.rejected)
            if decoded.rejected and not refused:
                first = min(decoded.rejected)
                refused.append(f"{own[first][0].decode()}: {decoded.rejected[first]}")
            count += len(decoded.rejected)
            seen += len(page)
            before = after
        told = f"{count:,} of {seen:,} entries are no ticks, first {refused[0]}" if count else None
        outcome = Outcome.COPIED if stored else Outcome.UNCHANGED
        return LandResult(key, stored, known + max(0, length - seen), outcome, told)

    def _land_merged(self, entries: Sequence[Any], symbol: str) -> tuple[int, list[str]]:
        """Land entries that were merged into a stream from hashes, by those hashes' identities.

        Return how many were not on the tape yet, and which are no ticks, each with the reason.
        """
        decoded = self._decoder.decode(
            [fields[:-2] for _id, fields in entries], [symbol] * len(entries), [_id_ns(one[0]) for one in entries]
        )
        bad = [f"{entries[place][0].decode()}: {why}" for place, why in sorted(decoded.rejected.items())]
        decoded = decoded.valid()
        ids = [bytes.fromhex(entries[row][1][-1].decode()) for row in decoded.rows]
        if self._tape is None or not ids:
            return 0, bad
        if self._dry_run:
            return self._tape.has_ids(ids).count(False), bad
        columns = columns_for_tape(decoded, SOURCE)
        return self._tape.append_table(columns, ids=ids, on_invalid="quarantine").stored, bad

    def _entries(self, key: bytes, before: str | None, end: bytes, count: int) -> list[Any]:
        start = "-" if before is None else f"({before}"
        if before is not None and before == end.decode():
            return []
        page: list[Any] = self._endpoint.call("XRANGE", key, start, end, "COUNT", count)
        return page

    def hash_ticks(self, keys: list[bytes], source_db: int, rule: Rule) -> list[LandResult]:
        """Merge tick hashes into their symbols' streams and land them; one result a key, in order.

        A tick earlier than the end of its stream makes that stream be written anew, once for each 20,000 keys
        of a call: so give many keys at once, and earlier ones first. A hash with a time but no valid price is
        merged and not landed, with the reason in `error`.
        """
        results: dict[bytes, LandResult] = {}
        ordered = sorted(set(keys))  # by symbol, and mostly by time
        for at in range(0, len(ordered), _MERGED_AT_ONCE):
            some = ordered[at : at + _MERGED_AT_ONCE]
            try:
                results.update((result.key, result) for result in self._hash_ticks(some, source_db, rule))
            except EndpointError as error:
                results.update((key, _failed(key, error)) for key in some)
        return [results[key] for key in keys]

    def _hash_ticks(self, keys: list[bytes], source_db: int, rule: Rule) -> Iterator[LandResult]:
        ticks: list[HashTick] = []
        stored: dict[bytes, bool] = {}
        for at in range(0, len(keys), _HASHES):
            found, decoded = self._hashes.read(keys[at : at + _HASHES], source_db, rule)
            ticks += found
            if self._tape is None or not decoded.rows:
                continue
            ids = [found[row].identity for row in decoded.rows]
            known = self._tape.has_ids(ids)
            if not self._dry_run:
                columns = columns_for_tape(decoded, SOURCE)
                self._tape.append_table(columns, ids=ids, on_invalid="quarantine")
            stored.update(zip(ids, (not one for one in known), strict=True))
        merged = self._merged(ticks)
        for tick in ticks:
            yield _hash_result(tick, merged, stored, self._tape is not None)

    def _merged(self, ticks: Sequence[HashTick]) -> dict[bytes, str]:
        """Merge the ticks by stream; return identity → "added", "known", "changed" or the error's text."""
        by_stream: dict[bytes, list[HashTick]] = {}
        for tick in ticks:
            if tick.event_ns is not None and tick.why is None:
                by_stream.setdefault(tick.stream, []).append(tick)
        self._endpoint.select(self._target_db)
        fates: dict[bytes, str] = {}
        for stream, members in by_stream.items():
            entries = [tick.entry() for tick in members]
            try:
                if self._dry_run:
                    new = frozenset(entry.identity for entry in missing(self._endpoint, stream, entries))
                    result = Merged(new, frozenset(), frozenset())
                else:
                    result = merge(self._endpoint, stream, entries)
            except EndpointError as error:
                if is_lost(error):
                    raise
                fates.update((entry.identity, error.message) for entry in entries)
                continue
            fates.update((entry.identity, "known") for entry in entries)
            fates.update((identity, "added") for identity in result.added)
            fates.update((identity, "changed") for identity in result.changed)
        return fates

    def ohlc(self, key: bytes, source_db: int, rule: Rule) -> LandResult:
        """Land the bars of an OHLC key: a hash, JSON text, or a list or sorted set of JSON.

        `source` of the bars is "redis:" and the key's first word. What is no bar is counted in `error`; the
        key itself was copied in any case.
        """
        rest, why = symbol_of(key, rule)
        if why is not None:
            return LandResult(key, 0, 0, Outcome.FAILED, why)
        symbol, interval, start_ns = self._bars.key(rest)
        source = f"{SOURCE}:{key.partition(b':')[0].decode('utf-8', 'replace')}"
        stored = known = 0
        refused: list[str] = []
        try:
            self._endpoint.select(source_db)
            for values in self._values(key):
                found = [b for v in values for b in self._bars.bars(v, symbol, interval, start_ns, source)]
                bars = [bar for bar in found if isinstance(bar, Bar)]
                refused += [bar for bar in found if isinstance(bar, str)]
                if bars and self._tape is not None:
                    ids = [bar_identity(key, bar) for bar in bars]
                    there = self._tape.has_ids(ids).count(True)
                    new = len(bars) - there
                    if not self._dry_run:
                        new = self._tape.append(bars, ids=ids, on_invalid="quarantine").stored
                    stored, known = stored + new, known + there
        except EndpointError as error:
            return _failed(key, error)
        except InvalidRecord as error:
            refused.append(f"{error.field} = {error.value!r}: {error.why}")
        told = None
        if refused:
            total = stored + known + len(refused)
            told = f"{len(refused):,} of {total:,} values are no bars, first: {refused[0]}"
        return LandResult(key, stored, known, Outcome.COPIED if stored else Outcome.UNCHANGED, told)

    def _values(self, key: bytes) -> Iterator[list[Any]]:
        call = self._endpoint.call
        kind = call("TYPE", key)
        if kind == b"string":
            yield [call("GET", key)]
        elif kind == b"hash":
            flat = call("HGETALL", key)
            yield _hash_values(dict(zip(flat[::2], flat[1::2], strict=True)))
        elif kind in (b"list", b"zset"):
            command, at = ("LRANGE" if kind == b"list" else "ZRANGE"), 0
            while page := call(command, key, at, at + _BARS - 1):
                yield page
                at += len(page)
        elif kind != b"none":
            raise EndpointError(f"a {kind.decode()} holds no bars", hint="", code="WRONGTYPE")


def continues(endpoint: Endpoint, key: bytes, info: Sequence[Any], at: str) -> bool:
    """Return whether a stream can be the one whose entry `at` was landed: it is there, or may have been deleted.

    `info` is its XINFO STREAM. A cursor is kept by the stream's name, which another server, another database or
    a stream made anew can have too.
    """
    if endpoint.call("XRANGE", key, at, at) or not endpoint.call("XRANGE", key, "-", at, "COUNT", 1):
        return True  # trimmed, or all there is came after it: nothing is passed over
    if b"max-deleted-entry-id" not in info:
        return True  # a server before 7.0 does not tell what was deleted
    return parse_id(info[info.index(b"max-deleted-entry-id") + 1]) >= parse_id(at.encode())


def not_continued(at: str) -> str:
    """Return in words that a stream is not the one that was landed."""
    return f"{at} was landed under this name, but was never in it: it is another stream, or was made anew"


def cursor_name(key: bytes) -> str:
    """Return the name of a stream's cursor on the tape."""
    try:
        return f"redis:{key.decode()}"
    except UnicodeDecodeError:
        return f"redis-hex:{key.hex()}"


def _hash_values(fields: dict[bytes, bytes]) -> list[Any]:
    """Return the values that can be bars: the hash itself, or each JSON object it holds by interval or time."""
    nested = [value for value in fields.values() if value[:1] in (b"{", b"[")]
    names = {name.lower() for name in fields}
    if nested and not {b"open", b"o", b"ohlc"} & names:
        return nested
    return [{name.decode("utf-8", "replace"): value for name, value in fields.items()}]


def _hash_result(tick: HashTick, merged: dict[bytes, str], stored: dict[bytes, bool], has_tape: bool) -> LandResult:
    if tick.gone:
        return LandResult(tick.key, 0, 0, Outcome.EXPIRED)
    if tick.why is not None:
        return LandResult(tick.key, 0, 0, Outcome.FAILED, tick.why)
    fate = merged[tick.identity]
    new = stored.get(tick.identity)
    ticks, known = int(new is True), int(new is False)
    if fate == "changed":
        why = f"a live writer did not let {tick.stream!r} be written"
        return LandResult(tick.key, ticks, known, Outcome.CHANGED_WHILE_COPYING, why)
    if fate not in ("added", "known"):
        return LandResult(tick.key, ticks, known, Outcome.FAILED, fate)
    told = f"in {tick.stream!r}, but not on the tape: {tick.rejected}" if tick.rejected and has_tape else None
    outcome = Outcome.COPIED if fate == "added" or new else Outcome.UNCHANGED
    if told and tick.unnamed:
        outcome = Outcome.FAILED
    return LandResult(tick.key, ticks, known, outcome, told)


def symbol_of(key: bytes, rule: Rule) -> tuple[str, str | None]:
    """Return the symbol that a key names, or why it names none."""
    parts = rule.parts(key) or {}
    symbol = parts.get("symbol", parts.get("key", key.partition(b":")[2]))
    try:
        return symbol.decode(), None
    except UnicodeDecodeError:
        return "", f"symbol {symbol!r} is not UTF-8, so the tape cannot name it; the key itself was copied"


def _id_ns(entry_id: bytes) -> int | None:
    ms = parse_id(entry_id)[0]
    return ms * 1_000_000 if _ID_MS_MIN <= ms < 9 * 10**12 else None


def _failed(key: bytes, error: EndpointError) -> LandResult:
    if is_lost(error):
        raise error
    return LandResult(key, 0, 0, Outcome.FAILED, error.message)
