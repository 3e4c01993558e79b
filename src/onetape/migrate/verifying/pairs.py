"""Checking: what is true now of source keys and their places, on Redis and on the tape. Reads only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from onetape.errors import EndpointError
from onetape.migrate.copying import compare
from onetape.migrate.copying.compare import Comparer, Request
from onetape.migrate.copying.decide import SLACK_BEFORE_7_MS
from onetape.migrate.keys import content
from onetape.migrate.keys.stream_state import stream_state
from onetape.migrate.landing.hash_ticks import HashTickReader
from onetape.migrate.landing.merge import IDENTITY_FIELD, earlier_of, merged_identity, missing, parse_id
from onetape.migrate.landing.ticks import Lander, continues, cursor_name, not_continued, symbol_of
from onetape.migrate.ledger.pack import Sealed
from onetape.migrate.plans.plan import Plan
from onetape.migrate.remote.bridge import Bridge
from onetape.migrate.remote.compare import RemoteComparer
from onetape.migrate.verifying.sealing import Sealer
from onetape.migrate.verifying.verdict import Finding, Found
from onetape.migrate.wire.endpoint import Endpoint, ReplyError
from onetape.tape import Tape

_PAGE = 1000
_SEEN_MAX = 200_000
NO_SOURCE = "has no source"


class Batch(NamedTuple):
    """Keys of one source database; `pairs` are those among them that are compared with a copy."""

    source_db: int
    found: Sequence[Found]
    pairs: Sequence[Found]


class Checker:
    """Checks batches of keys of one source database; sets `finding` and `told` of each.

    `sealer`: is told of the equal pairs, and what they hold.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        plan: Plan,
        tape: Tape | None,
        in_server: bool = True,
        sealer: Sealer | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._target_db = plan.target_db
        self._tape = tape
        self._comparer = (
            RemoteComparer(endpoint)
            if isinstance(endpoint, Bridge)
            else Comparer(endpoint, in_server, sealing=sealer is not None)
        )
        self._sealer = sealer
        self._slack_ms = 0 if endpoint.has_expire_time else SLACK_BEFORE_7_MS
        self._hashes = HashTickReader(endpoint, plan.timezone)
        self._lander = Lander(endpoint, plan.target_db, tape, plan.timezone, dry_run=True)
        merging = [rule.target for rule in plan.rules if rule.kind == "hash_ticks"]
        # By identity: the plan keeps its rules, and hashing one for every key would cost more than the rest.
        self._apart = {
            id(rule)
            for rule in plan.rules
            if rule.skip or rule.kind == "hash_ticks" or rule.source_db == plan.target_db
        }
        #: Streams that a hash of the sources is merged into, of what was looked at.
        self.merged_into: set[bytes] = set()
        self._merged = {target.partition("{")[0].encode() for target in merging}

    @property
    def in_server(self) -> bool:
        """Return whether equality is decided by a script in the server."""
        return self._comparer.in_server

    def batch(self, source_db: int, found: Sequence[Found]) -> Batch:
        """Return keys of one source database as a batch to ask about and to finish."""
        pairs = [one for one in found if id(one.rule) not in self._apart or not self._is_apart(source_db, one)]
        return Batch(source_db, found, pairs)

    def request(self, batch: Batch) -> Request | None:
        """Return what can be sent ahead of finish(), so that server and client work at the same time."""
        if not batch.pairs:
            return None
        keys = [(found.key, found.target) for found in batch.pairs]
        return self._comparer.request(batch.source_db, self._target_db, keys)

    def finish(self, batch: Batch, replies: Sequence[Any] | None = None) -> None:
        """Find out about every key, with the replies to request() if it was sent. Raises EndpointError."""
        db, pairs = batch.source_db, batch.pairs
        if pairs:
            codes = None if replies is None else self._comparer.answer(replies)
            sealed: list[Sealed] = []
            if codes is not None and replies is not None and self._sealer is not None:
                sealed = self._comparer.sealed(replies)
            if codes is None:
                keys = [(found.key, found.target) for found in pairs]
                codes = self._comparer.codes(db, self._target_db, keys)
            if compare.DIFFERENT in codes:
                keys = [(found.key, found.target) for found in pairs]
                codes = self._comparer.closer(db, self._target_db, keys, codes)
            self._take_all(db, pairs, codes.replace(compare.UNSEALED, compare.EQUAL))
            if self._sealer is not None:
                self._seal(db, pairs, codes, sealed)
        if len(pairs) < len(batch.found):
            rest = [one for one in batch.found if one.rule.kind == "hash_ticks" and not one.rule.skip]
            for rule in {one.rule: None for one in rest}:
                self._check_hashes(db, [one for one in rest if one.rule == rule])

    def needs_no_more(self, batch: Batch, replies: Sequence[Any]) -> bool:
        """Return whether finish() asks the server nothing: all pairs are equal, and copies are all there is."""
        if len(batch.pairs) < len(batch.found) or self._tape is not None:
            return False
        codes = self._comparer.answer(replies)
        return codes is not None and codes.count(compare.EQUAL) + codes.count(compare.UNSEALED) == len(batch.pairs)

    def _seal(self, source_db: int, pairs: Sequence[Found], codes: bytes, sealed: Sequence[Sealed]) -> None:
        """Tell the sealer of the equal pairs: those with a seal, and those whose digest must be taken."""
        assert self._sealer is not None
        if len(sealed) == len(pairs):
            self._sealer.put(source_db, pairs, sealed)
            return
        seals = iter(sealed)
        with_seal: list[Found] = []
        for at, found in enumerate(pairs):
            code = codes[at : at + 1]
            if sealed and code == compare.EQUAL:
                with_seal.append(found)
            elif code != compare.BIG and found.finding is Finding.EQUAL:
                self._sealer.waiting.append(found)
        self._sealer.put(source_db, with_seal, list(seals))

    def _is_apart(self, source_db: int, found: Found) -> bool:
        if found.rule.skip:
            found.finding, found.told = Finding.SKIPPED, "the plan skips this rule"
            return True
        if found.rule.kind == "hash_ticks":
            return True
        return source_db == self._target_db and found.key == found.target and found.rule.kind == "copy"

    def _take_all(self, source_db: int, batch: Sequence[Found], codes: bytes) -> None:
        if codes.count(compare.EQUAL) == len(batch):
            for found in batch:
                found.finding, found.told = Finding.EQUAL, ""
        else:
            for i, found in enumerate(batch):
                self._take(source_db, found, codes[i : i + 1])
        if self._tape is None or not any(found.rule.kind != "copy" for found in batch):
            return
        kept = (Finding.EQUAL, Finding.DIFFERS)
        self._check_streams(source_db, [f for f in batch if f.rule.kind == "ticks" and f.finding in kept])
        for found in batch:
            if found.rule.kind == "ohlc" and found.finding is Finding.EQUAL:
                self._check_bars(source_db, found)

    def _take(self, source_db: int, found: Found, code: bytes) -> None:
        found.told = ""
        if code == compare.EQUAL:
            found.finding = Finding.EQUAL
        elif code == compare.NO_SOURCE:
            found.finding = Finding.GONE
        elif code == compare.NO_TARGET:
            found.finding, found.told = Finding.MISSING, "missing in the target"
        else:
            self._look_closely(source_db, found)

    def _look_closely(self, source_db: int, found: Found) -> None:
        try:
            self._compare(source_db, found)
        except EndpointError as error:
            if not content.is_changed(error):
                raise
            found.finding, found.told = Finding.CHANGING, "became another type while it was read"

    def _compare(self, source_db: int, found: Found) -> None:
        places = [(source_db, found.key), (self._target_db, found.target)]
        pair = content.read_together(self._endpoint, places)
        if pair is None:
            found.finding, found.told = Finding.CHANGING, "kept changing while it was read"
            return
        source, target = pair
        if source is None:
            found.finding = Finding.GONE
        elif target is None:
            found.finding, found.told = Finding.MISSING, "missing in the target"
        elif source.equals(target, self._slack_ms) or self._is_base(source_db, found, source, target):
            found.finding = Finding.EQUAL
        else:
            found.finding, found.told = Finding.DIFFERS, content.differences(source, target)

    def detail(self, found: Found) -> None:
        """Add to `told` where a pair first differs."""
        source, target = (found.source_db, found.key), (self._target_db, found.target)
        where = content.first_difference(self._endpoint, source, target)
        if where:
            found.told += f"; {where}"

    def _is_base(self, source_db: int, found: Found, source: content.Content, target: content.Content) -> bool:
        """Return whether the target is the source's stream and differs only by hash ticks merged into it."""
        if (source.type, target.type) != ("stream", "stream") or source.expires_ms != target.expires_ms:
            return False
        if not any(found.target.startswith(prefix) for prefix in self._merged):
            return False
        return stream_is_base(self._endpoint, (source_db, found.key), (self._target_db, found.target))

    def _check_streams(self, source_db: int, batch: Sequence[Found]) -> None:
        """The cursor of a stream must be at its last entry, or, if it was written since, at its copy's."""
        if not batch or self._tape is None:
            return
        self._endpoint.select(source_db)
        here = self._endpoint.pipeline([("XREVRANGE", f.key, "+", "-", "COUNT", 1) for f in batch])
        self._endpoint.select(self._target_db)
        there = self._endpoint.pipeline([("XREVRANGE", f.target, "+", "-", "COUNT", 1) for f in batch])
        for found, ours, copied in zip(batch, here, there, strict=True):
            if isinstance(ours, ReplyError) or not ours:
                continue
            _symbol, why = symbol_of(found.key, found.rule)
            if why is not None:
                if found.finding is Finding.EQUAL:
                    found.finding, found.told = Finding.NOT_A_TICK, why
                continue
            at = self._tape.cursor(cursor_name(found.key))
            landed = parse_id(at.encode()) if at else (0, 0)
            ends = [parse_id(end[0][0]) for end in (ours, copied) if isinstance(end, list) and end]
            info = self._info(source_db, found.key) if at and ours[0][0] != at.encode() else None
            if at and info is not None and not continues(self._endpoint, found.key, info, at):
                found.finding, found.told = Finding.NOT_ON_TAPE, not_continued(at)
            elif landed < min(ends):
                found.finding = Finding.NOT_ON_TAPE
                found.told = f"landed up to {at or 'nothing'} of {ours[0][0].decode()}"
                found.event_ns = self._first_after(source_db, found.key, at)

    def _first_after(self, source_db: int, key: bytes, at: str | None) -> int | None:
        """Return when the first entry was added that is not on the tape, as its id says, ns since the epoch."""
        self._endpoint.select(source_db)
        page = self._endpoint.pipeline([("XRANGE", key, f"({at}" if at else "-", "+", "COUNT", 1)])[0]
        return parse_id(page[0][0])[0] * 1_000_000 if isinstance(page, list) and page else None

    def merged_stream(self, found: Found, has_source: bool) -> bool:
        """Look at a stream of the target that ticks are merged into; return whether there is anything to say.

        `found.target` is the stream, `has_source` whether a stream of the sources is copied to it.
        """
        stream = found.target
        self._endpoint.select(self._target_db)
        if self._endpoint.call("TYPE", stream) != b"stream":
            return False  # told of the keys that are to be merged into it, if there are any
        own, twice, known = self._merged_entries(stream)
        if twice:
            found.finding, found.told = Finding.DIFFERS, f"{twice:,} ticks are in it more than once"
        elif has_source:
            return False
        elif own:
            found.finding, found.told = Finding.EXTRA, f"{own:,} of its entries were not merged, and it has no source"
        elif not known and stream not in self.merged_into:
            found.finding, found.told = Finding.EXTRA, NO_SOURCE
        elif content.expiry(self._endpoint, stream) >= 0:
            found.finding, found.told = Finding.EXTRA, "expires, which nothing that is merged into it does"
        else:
            return False
        return True

    def _merged_entries(self, stream: bytes) -> tuple[int, int, bool]:
        """Return how many entries were not merged, how many were twice, and whether the tape knows any."""
        own = twice = 0
        known = False
        seen: set[bytes] = set()
        start, count = b"-", content.slice_of(self._endpoint, stream, int(self._endpoint.call("XLEN", stream)))
        while page := self._endpoint.call("XRANGE", stream, start, "+", "COUNT", count):
            found = [identity for _id, fields in page if (identity := merged_identity(fields)) is not None]
            own += len(page) - len(found)
            once = set(found)
            twice += len(found) - len(once - seen)
            # A tick is merged under its own time, so the same one again is near: memory stays flat.
            if len(seen) > _SEEN_MAX:
                seen.clear()
            seen |= once
            if found and not known and self._tape is not None:
                known = any(self._tape.has_ids(found))
            start = b"(" + page[-1][0]
        return own, twice, known

    def _info(self, source_db: int, key: bytes) -> list[Any] | None:
        self._endpoint.select(source_db)
        info = self._endpoint.pipeline([("XINFO", "STREAM", key)])[0]
        return info if isinstance(info, list) else None

    def _check_bars(self, source_db: int, found: Found) -> None:
        result = self._lander.ohlc(found.key, source_db, found.rule)
        if result.ticks:
            found.finding, found.told = Finding.NOT_ON_TAPE, f"{result.ticks:,} bars are not on the tape"
        elif result.error is not None:
            found.finding, found.told = Finding.NOT_A_TICK, result.error

    def _check_hashes(self, source_db: int, batch: Sequence[Found]) -> None:
        ticks, decoded = self._hashes.read([found.key for found in batch], source_db, batch[0].rule)
        merged = [i for i, tick in enumerate(ticks) if not tick.gone and tick.why is None]
        absent: set[bytes] = set()
        no_streams: set[bytes] = set()
        self._endpoint.select(self._target_db)
        for stream in {ticks[i].stream: None for i in merged}:
            entries = [ticks[i].entry() for i in merged if ticks[i].stream == stream]
            try:
                absent.update(entry.identity for entry in missing(self._endpoint, stream, entries))
            except EndpointError as error:
                if error.facts.get("code") != "WRONGTYPE":
                    raise
                no_streams.add(stream)
        off_tape: set[bytes] = set()
        on_tape: set[bytes] = set()
        if self._tape is not None and decoded.rows:
            ids = [ticks[row].identity for row in decoded.rows]
            known = self._tape.has_ids(ids)
            off_tape = {identity for identity, there in zip(ids, known, strict=True) if not there}
            on_tape = set(ids) - off_tape
        for found, tick in zip(batch, ticks, strict=True):
            found.target = tick.stream or found.target
            found.finding, found.told = Finding.MERGED, ""
            if tick.stream:
                self.merged_into.add(tick.stream)
            if tick.gone:
                found.finding = Finding.GONE
            elif tick.why is not None:
                found.finding, found.told = Finding.FAILED, tick.why
            elif tick.stream in no_streams:
                found.finding, found.told = Finding.DIFFERS, "the key it is to be merged into is no stream"
            elif tick.identity in absent:
                found.finding, found.told = Finding.MISSING, "not in the stream it is merged into"
                if tick.identity in on_tape:  # a merge landed it too: that it is not there is no news of the source
                    found.told = "on the tape, but no longer in the stream it was merged into"
                    continue
                found.event_ns = tick.event_ns
                if earlier_of(self._endpoint, tick.stream, tick.identity):
                    found.finding = Finding.LATER
                    found.told = "an earlier tick of this key is in the stream; the hash was written since"
            elif tick.identity in off_tape:
                found.finding, found.told = Finding.NOT_ON_TAPE, "in the stream, but not on the tape"
            elif tick.rejected is not None and self._tape is not None:
                found.finding, found.told = Finding.NOT_A_TICK, tick.rejected


def stream_is_base(endpoint: Endpoint, source: tuple[int, bytes], target: tuple[int, bytes]) -> bool:
    """Return whether the target is the source's stream, but for ticks that were merged into it."""
    places, states = (source, target), []
    for db, key in places:
        endpoint.select(db)
        state = stream_state(endpoint, key)
        if state is None:
            return False
        states.append([(g.name, g.last_delivered, g.consumers, g.pending) for g in state.groups])
    if states[0] != states[1]:
        return False
    sides = [_own_entries(endpoint, db, key) for db, key in places]
    while True:
        one, other = next(sides[0], None), next(sides[1], None)
        if one != other:
            return False
        if one is None:
            return True


def _own_entries(endpoint: Endpoint, db: int, key: bytes) -> Iterator[list[object]]:
    """Yield a stream's entries without those that were merged into it."""
    start = b"-"
    while True:
        endpoint.select(db)
        page = endpoint.call("XRANGE", key, start, "+", "COUNT", _PAGE)
        if not page:
            return
        for entry in page:
            if entry[1][-2] != IDENTITY_FIELD:
                yield entry
        start = b"(" + page[-1][0]
