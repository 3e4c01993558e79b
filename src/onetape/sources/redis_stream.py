"""Redis streams as a source: one or many, new ones of a pattern too, each entry once, and what was trimmed away a gap.

    [[source]]
    kind = "redis_stream"
    url = "redis://localhost:6379/1"
    streams = ["ticks:historical:{symbol}"]

Where a stream was read to is kept on the tape under the name that a migration uses for it: what one has landed the
other goes on from. Nothing is written to the server, and there is no consumer group.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from onetape.clock import now_ns
from onetape.errors import ConfigInvalid, EndpointError
from onetape.migrate.fields.tick_fields import TickDecoder
from onetape.migrate.landing.hash_ticks import columns_for_tape
from onetape.migrate.landing.merge import merged_identity
from onetape.migrate.landing.ticks import cursor_name
from onetape.migrate.wire.endpoint import Endpoint, ReplyError, is_lost
from onetape.sources.file_reading import log
from onetape.sources.placed import Placed
from onetape.sources.source import Delivery, Reconnecting
from onetape.sources.stream_track import Gone, Track, id_ns

#: Read at once, at most: entries of one stream, entries of all, and about so many bytes.
_PAGE, _ENTRIES_MAX, _BYTES_MAX = 2_000, 20_000, 32 << 20
_BLOCK_MS = 500
#: What an answer may take, s: longer than the server may wait for entries.
_TIMEOUT_S = 5.0
#: A server that answers so will answer otherwise by itself.
_PASSING = ("BUSY", "MASTERDOWN", "TRYAGAIN", "CLUSTERDOWN")


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of a source of kind "redis_stream".

    streams: names, or patterns: * and ? as in Redis, {symbol} for the part that is the symbol. symbol: of all entries
    where neither says it. begin: where a stream without a position is read from: "first" or "new". timezone: of naive
    times in entries. source: of the ticks. rescan_s: how often new streams are looked for. cursors: how the names of
    the positions on the tape begin; another one for a second server with streams of the same names.
    """

    streams: tuple[str, ...]
    url: str = "redis://localhost:6379"
    symbol: str | None = None
    begin: Literal["first", "new"] = "first"
    timezone: str = "UTC"
    source: str = "redis"
    rescan_s: float = 5.0
    cursors: str = "redis"


class RedisStreamSource(Reconnecting):
    """Reads streams. `adopt(lookup)` gives it the positions on the tape; a feed calls it before iterating."""

    kind = "redis_stream"

    def __init__(self, name: str, options: Options, *, clock: Callable[[], int] = now_ns) -> None:
        super().__init__(name, clock=clock)
        if not options.streams:
            raise ConfigInvalid("streams is empty", hint='such as streams = ["ticks:historical:{symbol}"]')
        self._options = options
        self._patterns = [(_glob(text), _regex(text)) for text in options.streams]
        self._decoder = TickDecoder(options.timezone)
        self._tracks: dict[bytes, Track] = {}
        self._lookup: Callable[[str], str | None] = lambda _name: None
        self._live_ns: int | None = None
        self._gapped: set[bytes] = set()
        self._foreign: dict[bytes, str] = {}  # keys that are no streams, and what they are
        self._left: dict[bytes, Track] = {}  # of streams that are none any more
        self._entry_bytes = 1
        self._endpoint: Endpoint | None = None
        path = urlsplit(options.url).path.strip("/")
        self._db = int(path) if path.isdecimal() else 0

    def adopt(self, lookup: Callable[[str], str | None]) -> None:
        """Take the positions of streams from `lookup(name)`: a tape's cursors, those of a migration among them."""
        self._lookup = lookup

    def close(self) -> None:
        super().close()
        endpoint = self._endpoint
        if endpoint is not None:
            endpoint.abort()

    def _session(self) -> Iterator[Delivery]:
        try:
            with Endpoint.connect(
                self._options.url, db=self._db, writable=False, timeout_s=_TIMEOUT_S
            ) as self._endpoint:
                yield from self._reading(self._endpoint)
        except EndpointError as error:
            raise _lost(error) from error
        finally:
            self._endpoint = None

    def _reading(self, endpoint: Endpoint) -> Iterator[Delivery]:
        known = list(self._tracks.values())
        self._gapped.clear()
        for track in known:
            track.begin()
        yield from self._went_back(endpoint, known)
        yield from self._found(endpoint)
        self._backoff.reset()
        self._tell(state="live")
        looked, back_ns = time.monotonic(), self._live_ns
        while not self.stopped:
            behind = [track for track in self._tracks.values() if not track.caught_up]
            yield from self._catch_up(endpoint, behind)
            pages = self._read(endpoint, 0 if behind else _BLOCK_MS)
            yield from self._pages(endpoint, pages)
            if not pages and not behind:
                if back_ns is not None:  # all is read that came while the connection was away
                    whole = [one.symbol for one in known if one.symbol and one.key not in self._gapped]
                    yield Delivery(covers=[(symbol, back_ns, self._clock()) for symbol in whole])
                    back_ns = None
                self._live_ns = self._clock()
                yield Delivery()
            if time.monotonic() - looked > self._options.rescan_s:
                yield from self._went_back(endpoint, list(self._tracks.values()))
                yield from self._found(endpoint)
                looked = time.monotonic()

    def _catch_up(self, endpoint: Endpoint, tracks: Sequence[Track]) -> Iterator[Delivery]:
        """Read on in streams that were not read to their end yet: each with what its server says in the same moment."""
        count = self._page(len(tracks))
        commands: list[tuple[Any, ...]] = []
        for track in tracks:
            read = ("XREAD", "COUNT", count, "STREAMS", track.key, track.at or "0-0")
            commands += [("MULTI",), ("XINFO", "STREAM", track.key), read, ("EXEC",)]
        replies = endpoint.pipeline(commands)
        for place, track in enumerate(tracks):
            _, *direct, both = replies[4 * place : 4 * place + 4]
            info, reply = direct if isinstance(both, ReplyError) else both  # a user without MULTI reads one by one
            if isinstance(info, ReplyError) or isinstance(reply, ReplyError):
                self._unreadable(endpoint, track, info if isinstance(info, ReplyError) else reply)
                continue
            before, entries = track.at, reply[0][1] if reply else []
            gone = track.catch_up(info, entries)
            if entries:
                self._note_size(entries)
                yield from self._delivered(track, entries, before)
            yield from self._gone(track, gone)

    def _unreadable(self, endpoint: Endpoint, track: Track, error: ReplyError) -> None:
        if "no such key" in error.message:
            track.absent()
        elif error.code == "WRONGTYPE":
            self._leave_foreign(endpoint)
        else:
            raise EndpointError(f"{endpoint.address}: {track.key!r}: {error.message}", code=error.code)

    def _page(self, streams: int) -> int:
        """How many entries of each of so many streams are read at once."""
        most = min(_ENTRIES_MAX, _BYTES_MAX // self._entry_bytes) // max(1, streams)
        return max(1, min(_PAGE, most))

    def _note_size(self, entries: Sequence[Any]) -> None:
        self._entry_bytes = max(1, sum(map(len, entries[-1][1] or ())))

    def _read(self, endpoint: Endpoint, block_ms: int) -> list[Any]:
        tracks = [track for track in self._tracks.values() if track.caught_up]
        if not tracks:
            self._wait(block_ms / 1000)
            return []
        ids = [track.at or "0-0" for track in tracks]
        keys = [track.key for track in tracks]
        block = ("BLOCK", block_ms) if block_ms else ()
        try:
            reply = endpoint.call("XREAD", "COUNT", self._page(len(tracks)), *block, "STREAMS", *keys, *ids)
        except EndpointError as error:
            if error.facts.get("code") != "WRONGTYPE":
                raise
            self._leave_foreign(endpoint)
            return []
        if reply:
            self._note_size(max((entries for _key, entries in reply), key=lambda one: sum(map(len, one[-1][1] or ()))))
        return reply or []

    def _leave_foreign(self, endpoint: Endpoint) -> None:
        """Read the other streams where one was replaced by something else; it is taken up again when it is one."""
        tracks = list(self._tracks.values())
        for track, kind in zip(tracks, endpoint.pipeline([("TYPE", track.key) for track in tracks]), strict=True):
            if not isinstance(kind, ReplyError) and kind not in (b"stream", b"none"):
                self._left[track.key] = self._tracks.pop(track.key)
                self._note_foreign(track.key, kind)

    def _note_foreign(self, key: bytes, kind: bytes) -> None:
        if key not in self._foreign:
            log.warning("%s: %r is a %s, no stream: it is not read", self.name, key, kind.decode())
        self._foreign[key] = kind.decode()

    def _tell_foreign(self) -> None:
        shown = [f"{key.decode('utf-8', 'replace')} is a {kind}" for key, kind in list(self._foreign.items())[:3]]
        self._tell(trouble=f"not read, being no streams: {', '.join(shown)}" if shown else None)

    def _pages(self, endpoint: Endpoint, pages: Sequence[Any]) -> Iterator[Delivery]:
        for key, entries in pages:
            track = self._tracks[key]
            before = track.at
            track.read(entries)
            yield from self._delivered(track, entries, before)
        infos = endpoint.pipeline([("XINFO", "STREAM", key) for key, _entries in pages])
        for (key, _entries), info in zip(pages, infos, strict=True):
            track = self._tracks[key]
            if not isinstance(info, ReplyError):
                yield from self._gone(track, track.settle(info))

    def _gone(self, track: Track, found: Sequence[Gone]) -> Iterator[Delivery]:
        for gone, span in found:
            self._count(dropped=gone)
            self._tell_gap(track, span, f"{gone or 'some'} entries were trimmed away before they were read")
            yield Delivery(missing=[(track.symbol, *span)] if track.symbol else ())

    def _delivered(self, track: Track, entries: Sequence[Any], before: str | None) -> Iterator[Delivery]:
        """Yield a page's ticks; those that a migration merged in are known by the identities they carry."""
        gone = [entry for entry in entries if entry[1] is None]
        whole = [entry for entry in entries if entry[1] is not None] if gone else entries
        merged = [entry for entry in whole if merged_identity(entry[1]) is not None]
        own = [entry for entry in whole if merged_identity(entry[1]) is None] if merged else whole
        if merged:
            columns, rows = self._decoded(track, merged, [fields[:-2] for _id, fields in merged])
            ids = [bytes.fromhex(merged[row][1][-1].decode()) for row in rows]
            if ids:
                yield Delivery(columns=columns, ids=ids)
        columns, rows = self._decoded(track, own, [fields for _id, fields in own])
        assert track.at is not None
        yield Placed(columns=columns if rows else None, place=(track.cursor, before, track.at))

    def _decoded(
        self, track: Track, entries: Sequence[Any], fields: Sequence[Any]
    ) -> tuple[dict[str, Any], Sequence[int]]:
        symbol = track.symbol or self._options.symbol or ""
        decoded = self._decoder.decode(fields, [symbol] * len(entries), [id_ns(one[0]) for one in entries])
        unread = sorted(set(decoded.rejected) - set(decoded.rows))
        if unread:  # those that can be read are for the tape to refuse
            self._count(refused=len(unread))
            first = f"{track.key!r} {entries[unread[0]][0].decode()}: {decoded.rejected[unread[0]]}"
            self._facts = {"first_refused": first, **self._facts}
            log.warning("%s: %d entries are no ticks, first %s", self.name, len(unread), first)
        return columns_for_tape(decoded, self._options.source), decoded.rows

    def _went_back(self, endpoint: Endpoint, tracks: Sequence[Track]) -> Iterator[Delivery]:
        """Look whether a stream ends before it was read to, and go on from its end where it does."""
        infos = endpoint.pipeline([("XINFO", "STREAM", track.key) for track in tracks])
        for info, track in zip(infos, tracks, strict=True):
            if isinstance(info, ReplyError):  # it is away, and is looked at again
                if "no such key" in info.message:
                    track.absent()
                continue
            found = track.went_back(info)
            if found is None:
                continue
            end, span = found
            self._tell_gap(track, span, f"it ends at {end} and was read to {track.at}: the server has lost data")
            before, track.at = track.at, end
            track.begin()
            yield Placed(missing=[(track.symbol, *span)] if track.symbol else (), place=(track.cursor, before, end))

    def _tell_gap(self, track: Track, span: tuple[int, int], why: str) -> None:
        self._gapped.add(track.key)
        log.warning("%s: stream %r: %s", self.name, track.key, why)
        self._facts = {**self._facts, "last_gap": f"{track.key.decode('utf-8', 'replace')}: {why}"}

    def _found(self, endpoint: Endpoint) -> Iterator[Delivery]:
        """Begin to read streams that are new."""
        new: list[Track] = []
        for glob, pattern in self._patterns:
            for key in self._keys(endpoint, glob):
                match = pattern.fullmatch(key)
                if match is None or key in self._tracks:
                    continue
                part = match.groupdict().get("symbol")
                symbol = key.partition(b":")[2] if part is None else part
                told = self._options.symbol or symbol.decode("utf-8", "replace")
                cursor = cursor_name(key)
                name = self._options.cursors + cursor[len("redis") :]
                track = self._left.pop(key, None) or Track(key, told, name, self._lookup(name))
                if track.at is None and self._options.begin == "new":
                    info = endpoint.pipeline([("XINFO", "STREAM", key)])[0]
                    if not isinstance(info, ReplyError):
                        track.at = info[info.index(b"last-generated-id") + 1].decode()
                        yield Placed(place=(name, None, track.at))
                self._foreign.pop(key, None)
                self._tracks[key] = track
                new.append(track)
        self._facts = {**self._facts, "streams": len(self._tracks)}
        self._tell_foreign()
        yield from self._went_back(endpoint, new)

    def _keys(self, endpoint: Endpoint, glob: bytes) -> Iterator[bytes]:
        if not re.search(rb"[*?\[\\]", glob):
            kind = endpoint.call("TYPE", glob)
            if kind in (b"stream", b"none"):
                self._foreign.pop(glob, None)
                yield glob
            else:
                self._note_foreign(glob, kind)
            return
        cursor = b"0"
        while True:
            cursor, keys = endpoint.call("SCAN", cursor, "MATCH", glob, "COUNT", 1000, "TYPE", "stream")
            yield from keys
            if cursor == b"0" or self.stopped:
                return


def _lost(error: EndpointError) -> BaseException:
    code = error.facts.get("code")
    if code in ("MOVED", "CROSSSLOT", "ASK"):
        return ConfigInvalid(str(error.message), hint="streams of a Redis Cluster are not read: give a single server")
    return ConnectionError(str(error)) if is_lost(error) or code in _PASSING else error


def _glob(text: str) -> bytes:
    return text.replace("{symbol}", "*").encode()


def _regex(text: str) -> re.Pattern[bytes]:
    parts = re.split(r"(\{symbol\}|\*|\?)", text)
    kinds = {"{symbol}": b"(?P<symbol>.+)", "*": b".*", "?": b"."}
    return re.compile(b"".join(kinds.get(part) or re.escape(part.encode()) for part in parts), re.DOTALL)


def make(name: str, options: Options) -> RedisStreamSource:
    """Return the source of these options."""
    return RedisStreamSource(name, options)
