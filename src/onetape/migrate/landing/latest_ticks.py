"""The latest ticks: one hash a symbol under the old name, one stream under the new one, written in one transaction.

Writing the hash alone loses what it held: the migrator can merge only what is there when it comes by. So a tick is also
added to the stream, with the identity that a merge would give it: a later backfill finds it there and adds nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from onetape import clock
from onetape.errors import ConfigInvalid, EndpointError, InvalidRecord, PhaseRefused, StateMoved
from onetape.migrate.fields import tick_names
from onetape.migrate.fields.tick_fields import TickDecoder
from onetape.migrate.landing.hash_ticks import identity_of, stream_of
from onetape.migrate.landing.merge import IDENTITY_FIELD, MergeEntry, merge, missing, parse_id
from onetape.migrate.phases.phase import Phase
from onetape.migrate.phases.state import Names, State, decode
from onetape.migrate.plans.origin import Origins
from onetape.migrate.plans.plan import DOCUMENTED, Plan, Rule
from onetape.migrate.wire.endpoint import Endpoint, ReplyError, connect_again, is_lost

Mode = Literal["old", "both", "new"]
_Result = TypeVar("_Result")

_ATTEMPTS = 50
_RECONNECTS = 2
#: A stream of the old side above this is the backfill's to bring: copying it here would stop the server for longer.
_COPIED_BYTES_MAX = 64 * 1024 * 1024


class TickStats(msgspec.Struct, kw_only=True):
    """What was stored. `late`: ticks older than the newest one, put in their place in the stream. `known`: ticks that
    were in the stream already. `rescued`: ticks of other writers that were about to be overwritten in the hash, and
    went into the stream first. `left`: ticks written under the old name alone: the stream awaits the backfill.
    """

    stored: int = 0
    old_writes: int = 0
    new_writes: int = 0
    late: int = 0
    known: int = 0
    rescued: int = 0
    left: int = 0
    retries: int = 0


class Sides(msgspec.Struct, frozen=True):
    """Where the ticks of a symbol are, by the plan."""

    rule: Rule
    old_db: int
    old_key: bytes
    new_db: int
    stream: bytes

    @classmethod
    def of(cls, plan: Plan, symbol: str) -> Sides:
        """Return the places. Raises ConfigInvalid where the plan has no hashes of one tick a symbol."""
        for rule in plan.rules:
            if rule.kind == "hash_ticks" and not rule.skip and list(rule.parts(rule.sample(b"x")) or ()) == ["symbol"]:
                key = rule.sample(symbol.encode("utf-8", "surrogateescape"))
                stream = stream_of(rule, key)
                if stream is not None:
                    return cls(rule, rule.source_db, key, plan.target_db, stream)
        raise ConfigInvalid(
            f"the plan {plan.name!r} has no rule for one tick a symbol",
            hint="it needs kind = 'hash_ticks' with a pattern such as tick:{symbol}",
        )


class _Seen(msgspec.Struct, frozen=True):
    """Both sides as of one moment, watched."""

    state: State | None
    held: list[bytes]  # the hash's fields, flat
    expires_ms: int
    exists: bool  # the stream
    last: tuple[int, int]


class LatestTicks:
    """Stores and reads the latest tick of symbols. For any number of threads, one at a time.

    Which sides are written follows the migration's state: old while planned, both until finish, then new. Without a
    state `both` decides: both sides, or the new one alone. Storing the same tick again changes nothing.
    """

    def __init__(
        self, url: str, plan: Plan | str | Path | None = None, *, both: bool = True, timeout_s: float = 10.0
    ) -> None:
        self.plan = plan if isinstance(plan, Plan) else Plan.load(DOCUMENTED if plan is None else plan)
        self.stats = TickStats()
        self._url, self._timeout_s = url, timeout_s
        self._names = Names.of(self.plan)
        self._decoder = TickDecoder(self.plan.timezone)
        self._origins = Origins(self.plan)
        self._both = both
        self._endpoint: Endpoint | None = None
        self._ours: dict[bytes, bytes] = {}  # hash → identity of what we left in it and in the stream
        self._lock = threading.Lock()

    def store(self, symbol: str, fields: Mapping[Any, Any]) -> Mode:
        """Store a tick and return which sides were written.

        Values are text, bytes, numbers, or lists and dicts, which become JSON; None is left out. A tick without a time
        gets the time now, in `timestamp`, ms since the epoch. A tick older than the one in the hash leaves it as it is.
        Raises InvalidRecord for fields that cannot be stored, EndpointError; then nothing was stored, or, where the
        connection was lost in the end, perhaps all: storing it again is right in both cases.
        """
        flat = _flat(fields)
        event_ns = self._decoder.event_ns(flat, None)
        if event_ns is None:
            names = {tick_names.normal(name) for name in flat[::2]}
            unread = sorted(names & set(tick_names.EVENT_TIMES))
            if unread:
                raise InvalidRecord(0, unread[0], fields.get(unread[0]), "is not a time")
            event_ns = clock.now_ns() // 1_000_000 * 1_000_000
            flat += [b"timestamp", b"%d" % (event_ns // 1_000_000)]
        sides = Sides.of(self.plan, symbol)
        entry = MergeEntry(event_ns, sides.old_key, identity_of(sides.old_key, flat), flat)
        return self._repeated(lambda endpoint: self._store(endpoint, sides, entry))

    def newest(self, symbol: str, *, new: bool = True) -> dict[str, str] | None:
        """Return the newest tick of both sides by its time, or what the old side holds (new=False); None for none."""
        sides = Sides.of(self.plan, symbol)

        def read(endpoint: Endpoint) -> tuple[list[bytes], tuple[bytes, list[bytes]] | None]:
            held, last = self._both_sides(endpoint, sides)
            return held, last

        held, last = self._repeated(read)
        return pick(self._decoder, held, last if new else None)[0]

    def consistent(self, symbol: str) -> bool:
        """Return whether the hash's tick is in the stream and nothing newer is; True where both have none."""
        sides = Sides.of(self.plan, symbol)

        def look(endpoint: Endpoint) -> bool:
            held, last = self._both_sides(endpoint, sides)
            if not held or last is None:
                return not held and last is None
            event_ns = self._decoder.event_ns(held, None)
            if event_ns is None:
                return False
            entry = MergeEntry(event_ns, sides.old_key, identity_of(sides.old_key, held), held)
            return parse_id(last[0])[0] <= entry.ms and not missing(endpoint, sides.stream, [entry])

        return self._repeated(look)

    def mode(self) -> Mode:
        """Return which sides are written now."""

        def look(endpoint: Endpoint) -> Mode:
            raw = endpoint.call("GET", self._names.state)
            return self._mode(self._state(raw))

        return self._repeated(look)

    def write_both(self, both: bool) -> Mode:
        """Choose, where no migration was started, between both sides and the new one; return what is written now.

        Raises PhaseRefused for one side alone while a migration needs both.
        """
        mode = self.mode()
        if not both and mode == "both":
            raw = self._repeated(lambda endpoint: endpoint.call("GET", self._names.state))
            if raw is not None:
                raise PhaseRefused(
                    f"both sides are written until finish, and this migration is in {decode(raw).phase}",
                    hint="onetape migrate cutover, then onetape migrate finish",
                    phase=str(decode(raw).phase),
                )
        self._both = both
        return self.mode()

    def close(self) -> None:
        """Close the connection. It comes back when it is needed."""
        with self._lock:
            if self._endpoint is not None:
                self._endpoint.close()
                self._endpoint = None

    def _repeated(self, act: Callable[[Endpoint], _Result]) -> _Result:
        """Do something that may be done twice, again on a new connection where one is lost."""
        with self._lock:
            for attempt in range(_RECONNECTS + 1):
                if self._endpoint is None or self._endpoint.closed:
                    self._endpoint = connect_again(self._url, db=self._names.db, timeout_s=self._timeout_s)
                try:
                    self._endpoint.select(self._names.db)
                    return act(self._endpoint)
                except EndpointError as error:
                    self._endpoint.close()  # with whatever it watched
                    if not is_lost(error) or attempt == _RECONNECTS:
                        raise
                    self.stats.retries += 1
            raise AssertionError("unreachable")

    def _state(self, raw: bytes | None) -> State | None:
        state = None if raw is None else decode(raw)
        if state is not None and state.plan_hash != self.plan.hash:
            raise StateMoved(
                f"the migration {self.plan.name!r} on this server goes by another plan",
                hint="give the plan that it was started with; nothing was stored",
            )
        return state

    def _mode(self, state: State | None) -> Mode:
        if state is None:
            return "both" if self._both else "new"
        if state.phase is Phase.FINISHED:
            return "new"
        return "both" if state.phase.both_written else "old"

    def _store(self, endpoint: Endpoint, sides: Sides, entry: MergeEntry) -> Mode:
        for _attempt in range(_ATTEMPTS):
            endpoint.select(self._names.db)
            seen = self._watch(endpoint, sides)
            mode = self._mode(seen.state)
            if mode != "old" and not seen.exists:
                brought = self._bring(endpoint, sides)
                if brought is None:
                    continue
                if not brought and mode == "both":
                    mode, self.stats.left = "old", self.stats.left + 1
            entries = [] if mode == "old" else self._to_add(endpoint, sides, seen, entry)
            late = [one for one in entries if one.ms < seen.last[0]]
            if late:
                endpoint.call("UNWATCH")
                endpoint.select(sides.new_db)
                merged = merge(endpoint, sides.stream, late)
                self.stats.late += sum(one.identity == entry.identity for one in late)
                if merged.changed:
                    self.stats.retries += 1
                continue  # they are known now
            held_ns = self._decoder.event_ns(seen.held, None) if seen.held else None
            hash_too = mode != "new" and (held_ns is None or held_ns <= entry.ts_event_ns)
            if self._write(endpoint, sides, seen, entries, entry if hash_too else None):
                self._count(mode, hash_too, entries, entry)
                if hash_too and mode == "both":
                    self._ours[sides.old_key] = entry.identity
                return mode
            self.stats.retries += 1
        raise EndpointError(
            f"the tick of {sides.old_key!r} could not be stored: others wrote it {_ATTEMPTS} times meanwhile",
            hint="store it again",
        )

    def _watch(self, endpoint: Endpoint, sides: Sides) -> _Seen:
        replies = endpoint.pipeline(
            [
                ("WATCH", self._names.state), ("GET", self._names.state),
                ("SELECT", sides.old_db), ("WATCH", sides.old_key), ("HGETALL", sides.old_key),
                ("PTTL", sides.old_key), ("TIME",),
                ("SELECT", sides.new_db), ("WATCH", sides.stream), ("TYPE", sides.stream),
                ("XINFO", "STREAM", sides.stream),
            ]
        )  # fmt: skip
        raw, held, ttl, now, kind, info = (replies[i] for i in (1, 4, 5, 6, 9, 10))
        if isinstance(held, ReplyError) and held.code == "WRONGTYPE":
            endpoint.select(sides.old_db)
            text = endpoint.call("GET", sides.old_key)
            endpoint.select(sides.new_db)
            held = [] if text is None else [b"data", text]
        exists = kind == b"stream"
        for reply in (raw, held, ttl, now, kind, *((info,) if exists else ())):
            if isinstance(reply, ReplyError):
                raise EndpointError(f"reading {sides.old_key!r}: {reply.message}", code=reply.code)
        if not exists and kind != b"none":
            raise EndpointError(
                f"{sides.stream!r} is a {kind.decode()}, not a stream", hint="nothing was stored", code="WRONGTYPE"
            )
        last = parse_id(info[info.index(b"last-generated-id") + 1]) if exists else (0, 0)
        expires_ms = ttl if ttl < 0 else ttl + int(now[0]) * 1000 + int(now[1]) // 1000
        return _Seen(self._state(raw), held, expires_ms, exists, last)

    def _bring(self, endpoint: Endpoint, sides: Sides) -> bool | None:
        """See that the old side's stream is where the new one will grow, or a backfill would find its place taken.

        Return True where there is none to bring, None after one was brought, False where it is too big for here.
        """
        for origin in self._origins.of(sides.stream):
            if origin.key is None:
                continue
            endpoint.select(origin.source_db)
            kind, used = endpoint.pipeline([("TYPE", origin.key), ("MEMORY", "USAGE", origin.key)])
            if kind != b"stream":
                continue
            if not isinstance(used, int) or used > _COPIED_BYTES_MAX:
                return False
            # Not over one that came meanwhile, and not in a phase that is over: the state is still watched.
            done = endpoint.pipeline([("MULTI",), ("COPY", origin.key, sides.stream, "DB", sides.new_db), ("EXEC",)])[
                -1
            ]
            for reply in done if isinstance(done, list) else [done]:
                if isinstance(reply, ReplyError):
                    raise EndpointError(f"copying {origin.key!r}: {reply.message}", code=reply.code)
            return None
        return True

    def _to_add(self, endpoint: Endpoint, sides: Sides, seen: _Seen, entry: MergeEntry) -> list[MergeEntry]:
        """Return what the stream lacks: this tick, and one that another writer left in the hash."""
        entries = [entry]
        if seen.held:
            identity = identity_of(sides.old_key, seen.held)
            held_ns = self._decoder.event_ns(seen.held, None)
            if held_ns is not None and identity not in (entry.identity, self._ours.get(sides.old_key)):
                entries.append(MergeEntry(held_ns, sides.old_key, identity, seen.held))
        if not seen.exists:
            return sorted(entries, key=MergeEntry.order)
        endpoint.select(sides.new_db)
        return sorted(missing(endpoint, sides.stream, entries), key=MergeEntry.order)

    def _write(
        self, endpoint: Endpoint, sides: Sides, seen: _Seen, entries: Sequence[MergeEntry], held: MergeEntry | None
    ) -> bool:
        """Write all of it in one transaction; False if a watched key changed meanwhile."""
        commands: list[tuple[Any, ...]] = [("MULTI",), ("SELECT", sides.new_db)]
        last = seen.last
        for one in entries:
            last = (one.ms, last[1] + 1 if one.ms == last[0] else 0)
            commands.append(("XADD", sides.stream, b"%d-%d" % last, *one.stored()))
        if held is not None:
            # Whole and anew: a field that this tick does not have must not stay behind from the one before.
            commands += [("SELECT", sides.old_db), ("DEL", sides.old_key), ("HSET", sides.old_key, *held.fields)]
            if seen.expires_ms >= 0:
                commands.append(("PEXPIREAT", sides.old_key, seen.expires_ms))
        commands += [("SELECT", self._names.db), ("EXEC",)]
        replies = endpoint.pipeline(commands)
        done = replies[-1]
        endpoint.select(self._names.db)
        if done is None:
            return False
        for reply in [*replies[:-1], *(done if isinstance(done, list) else [done])]:
            if isinstance(reply, ReplyError):
                raise EndpointError(f"storing {sides.old_key!r}: {reply.message}", code=reply.code)
        return True

    def _count(self, mode: Mode, hash_too: bool, entries: Sequence[MergeEntry], entry: MergeEntry) -> None:
        added = sum(one.identity == entry.identity for one in entries)
        self.stats.stored += 1
        self.stats.old_writes += hash_too
        self.stats.new_writes += added
        self.stats.rescued += len(entries) - added
        if mode != "old" and not added:
            self.stats.known += 1

    def _both_sides(self, endpoint: Endpoint, sides: Sides) -> tuple[list[bytes], tuple[bytes, list[bytes]] | None]:
        replies = endpoint.pipeline(
            [
                ("MULTI",), ("SELECT", sides.old_db), ("HGETALL", sides.old_key), ("SELECT", sides.new_db),
                ("XREVRANGE", sides.stream, "+", "-", "COUNT", 1), ("EXEC",), ("SELECT", sides.new_db),
            ]
        )  # fmt: skip
        done = replies[5]
        if not isinstance(done, list):
            raise EndpointError(f"reading {sides.old_key!r}: {done}")
        held, entries = done[1], done[3]
        if isinstance(held, ReplyError) and held.code == "WRONGTYPE":
            endpoint.select(sides.old_db)
            text = endpoint.call("GET", sides.old_key)
            endpoint.select(sides.new_db)
            held = [] if text is None else [b"data", text]
        for reply in (held, entries):
            if isinstance(reply, ReplyError):
                raise EndpointError(f"reading {sides.old_key!r}: {reply.message}", code=reply.code)
        return held, (entries[0][0], entries[0][1]) if entries else None


def pick(
    decoder: TickDecoder, held: Sequence[bytes], last: tuple[bytes, Sequence[bytes]] | None
) -> tuple[dict[str, str] | None, Literal["old", "new"]]:
    """Return the newer of a hash's tick and a stream's last entry, and which side it is from; None for neither."""
    if last is None:
        return as_tick(held), "old"
    own = last[1][:-2] if last[1][-2:-1] == [IDENTITY_FIELD] else last[1]
    new_ns = decoder.event_ns(own, parse_id(last[0])[0] * 1_000_000) or 0
    old_ns = decoder.event_ns(held, None) if held else None
    if held and (old_ns or 0) > new_ns:
        return as_tick(held), "old"
    return as_tick(own), "new"


def as_tick(flat: Sequence[bytes]) -> dict[str, str] | None:
    """Return fields as text (bytes that are no UTF-8 by surrogateescape), a lone JSON object opened; None for none."""
    if not flat:
        return None
    names = [name.decode("utf-8", "surrogateescape") for name in flat[::2]]
    values = [value.decode("utf-8", "surrogateescape") for value in flat[1::2]]
    if names == ["data"]:
        try:
            opened = msgspec.json.decode(flat[1])
        except msgspec.DecodeError:
            opened = None
        if isinstance(opened, dict):
            return {str(name): value if isinstance(value, str) else _json(value) for name, value in opened.items()}
    return dict(zip(names, values, strict=True))


def _flat(fields: Mapping[Any, Any]) -> list[bytes]:
    flat: list[bytes] = []
    for name, value in fields.items():
        if value is None:
            continue
        written = name if isinstance(name, bytes) else str(name).encode("utf-8", "surrogateescape")
        flat += [written, _value(name, value)]
    if not flat:
        raise InvalidRecord(0, "fields", dict(fields), "a tick has at least one field")
    if IDENTITY_FIELD in flat[::2]:
        raise InvalidRecord(0, IDENTITY_FIELD.decode(), fields, "is a name of onetape's own")
    return flat


def _value(name: Any, value: Any) -> bytes:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if isinstance(value, bool):
        return b"1" if value else b"0"
    if isinstance(value, int | float):
        return repr(value).encode() if type(value) in (int, float) else str(value).encode()
    if isinstance(value, list | tuple | dict):
        try:
            return msgspec.json.encode(value)
        except (TypeError, ValueError) as error:
            raise InvalidRecord(0, str(name), value, f"cannot be written as JSON: {error}") from error
    return str(value).encode("utf-8", "surrogateescape")  # numpy's numbers, Decimal, datetime


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


__all__ = ["LatestTicks", "Mode", "Sides", "TickStats", "as_tick", "pick"]
