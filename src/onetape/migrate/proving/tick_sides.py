"""Tick sides: the ticks and bars of the old keys and of the new keys, read page by page.

Old are the sources of the plan's rules for ticks and OHLC, as its listing finds them; new are the keys of the target
that those rules can have written. Only reads. Memory is a page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from onetape.errors import EndpointError
from onetape.migrate.fields.tick_fields import TickDecoder
from onetape.migrate.keys.content import slice_of
from onetape.migrate.landing.hash_ticks import HashTickReader, stream_of
from onetape.migrate.landing.merge import merged_identity, parse_id
from onetape.migrate.landing.ticks import symbol_of
from onetape.migrate.plans.origin import Origins
from onetape.migrate.plans.pattern import Pattern
from onetape.migrate.plans.plan import Plan, Rule
from onetape.migrate.proving.bar_values import BarPart, BarReader
from onetape.migrate.report import key_text
from onetape.migrate.survey.listing import Listing
from onetape.migrate.wire.endpoint import Endpoint, ReplyError

TICK_KINDS = ("ticks", "hash_ticks")
_PAGE = 5000
_HASHES = 1000
_ID_MS_MIN = 10**11  # an entry id below it (1973) was made up and tells no time


class Part(msgspec.Struct):
    """Some ticks of one side. `symbols` and all `columns` are of one length, one item a tick.

    `raw`: the entries they are from, and those that are no ticks, as flat lists of fields; of old keys alone.
    `others`: how many of the entries are no ticks. `key`: the key they are of, b"" for many. `foreign`: one of them
    names another symbol than its key. `identities`: of the entries that were merged, 8 bytes of the identity of each.
    """

    symbols: Sequence[str]
    columns: dict[str, Any]
    key: bytes = b""
    foreign: bool = False
    raw: Sequence[Sequence[bytes]] = ()
    others: int = 0
    identities: Sequence[int] = ()


class Unread(msgspec.Struct, frozen=True):
    """A key that cannot be read as its rule wants it. `lost`: so it could not be migrated either."""

    db: int
    key: bytes
    why: str
    lost: bool = False


Reading = Iterator[Part | BarPart | Unread]
Wanted = Callable[[str], bool]


class Redis:
    """Reads both sides of a plan in Redis; `target` is another server's endpoint, None: it is the same server.

    `wanted` of its readings: ticks of keys of these symbols only (None: all, and bars).
    """

    def __init__(self, endpoint: Endpoint, plan: Plan, target: Endpoint | None = None) -> None:
        self._endpoint, self._target = endpoint, target or endpoint
        self._plan = plan
        self._apart = target is not None
        self._decoder = TickDecoder(plan.timezone)
        self._hashes = HashTickReader(endpoint, plan.timezone)
        self._bars = BarReader(plan.timezone)
        self._origins = Origins(plan)
        self._in_place = plan.matcher(plan.target_db)

    def old(self, wanted: Wanted | None = None) -> Reading:
        """Yield the ticks and bars of the sources. Raises EndpointError."""
        self._may_ask()
        plan, kinds = self._plan, TICK_KINDS if wanted is not None else (*TICK_KINDS, "ohlc")
        steps = tuple(dict.fromkeys(rule.step for rule in plan.rules if rule.kind in kinds and not rule.skip))
        listing = Listing(self._endpoint, plan, steps)
        try:
            for step in steps:
                for page in listing.pages(step):
                    for index in dict.fromkeys(page.rules):
                        rule = plan.rules[index]
                        if rule.skip or rule.kind not in kinds:
                            continue
                        keys = [key for key, of in zip(page.keys, page.rules, strict=True) if of == index]
                        if wanted is not None:
                            keys = [key for key in keys if wanted(_symbol(key, rule))]
                        yield from self._of_rule(page.db, keys, rule)
        finally:
            listing.close()

    def _may_ask(self) -> None:
        """Raise EndpointError where the user may not run TYPE: the listing would then pass over every typed rule."""
        reply = self._endpoint.pipeline([("TYPE", b"onetape:")])[0]
        if isinstance(reply, ReplyError) and "command" in reply.message:
            raise _refused(b"a key's type", reply)

    def _of_rule(self, db: int, keys: list[bytes], rule: Rule) -> Reading:
        if rule.kind == "hash_ticks":
            for at in range(0, len(keys), _HASHES):
                yield from self._of_hashes(db, keys[at : at + _HASHES], rule)
            return
        for key in keys:
            if rule.kind == "ohlc":
                yield from self._of_bars(self._endpoint, db, key, key, rule)
                continue
            symbol, why = symbol_of(key, rule)
            in_place = not self._apart and db == self._plan.target_db and rule.target_of(key) == key
            # What was merged into a stream where it stands is no tick of the old keys twice.
            yield from self._of_stream(self._endpoint, db, key, symbol, why, raw=True, own_only=in_place)

    def _of_hashes(self, db: int, keys: Sequence[bytes], rule: Rule) -> Reading:
        found, decoded = self._hashes.read(keys, db, rule)
        for tick in found:
            if tick.why is not None and not tick.gone:
                yield Unread(db, tick.key, tick.why, True)
        there = [tick for tick in found if not tick.gone and tick.why is None]
        yield Part(
            symbols=decoded.columns.get("symbol", []),
            columns=_without_symbol(decoded.columns),
            foreign=any(
                found[row].symbol != symbol
                for row, symbol in zip(decoded.rows, decoded.columns.get("symbol", []), strict=True)
            ),
            raw=[tick.flat for tick in there],
            others=len(there) - len(decoded.rows),
        )

    def new(self, wanted: Wanted | None = None) -> Reading:
        """Yield the ticks and bars of the target. Raises EndpointError."""
        db = self._plan.target_db
        everything = Plan.of_glob("*", db, target_db=db)
        listing = Listing(self._target, everything)
        try:
            for page in listing.pages(everything.steps[0]):
                named = [(key, role) for key in page.keys if (role := self._role(key)) is not None]
                if not named:
                    continue
                self._target.select(db)
                kinds = self._target.pipeline([("TYPE", key) for key, _role in named])
                for (key, role), kind in zip(named, kinds, strict=True):
                    if isinstance(kind, ReplyError):
                        raise _refused(key, kind)
                    if role.rule.kind == "ohlc":
                        if wanted is None and role.source is not None:
                            yield from self._of_bars(self._target, db, key, role.source, role.rule)
                    elif kind == b"stream" and (wanted is None or wanted(role.symbol)):
                        yield from self._of_stream(self._target, db, key, role.symbol, role.why)
        finally:
            listing.close()

    def _role(self, key: bytes) -> _Role | None:
        """Return what a key of the target is, if a rule of ticks or of OHLC can have written it."""
        origins = [one for one in self._origins.of(key) if one.rule.kind in (*TICK_KINDS, "ohlc")]
        for origin in origins:
            if origin.key is not None:
                return _Role(origin.rule, *symbol_of(origin.key, origin.rule), origin.key)
        for origin in origins:
            pattern = Pattern(origin.rule.target)
            values = pattern.split(key)
            if values is not None and "symbol" in pattern.names:
                return _Role(origin.rule, *_decoded(values[pattern.names.index("symbol")]), None)
        here = self._in_place.match(key)
        if here is not None and here[1].kind in ("ticks", "ohlc") and here[2] == key and not here[1].skip:
            return _Role(here[1], *symbol_of(key, here[1]), key)
        return None

    def _of_bars(self, endpoint: Endpoint, db: int, key: bytes, source: bytes, rule: Rule) -> Reading:
        """Yield the bars of a key; `source` is the name that it has or had among the old ones."""
        if endpoint.db != db:
            endpoint.select(db)
        rest, why = symbol_of(source, rule)
        if why is None:
            try:
                yield self._bars.read(endpoint, key, source, rest)
                return
            except EndpointError as error:
                if error.facts.get("code") != "WRONGTYPE":
                    raise
                why = error.message
        yield Unread(db, key, why)

    def _of_stream(
        self,
        endpoint: Endpoint,
        db: int,
        key: bytes,
        symbol: str,
        why: str | None,
        raw: bool = False,
        own_only: bool = False,
    ) -> Reading:
        endpoint.select(db)
        info = endpoint.pipeline([("XINFO", "STREAM", key)])[0]
        if isinstance(info, ReplyError):
            if info.code == "WRONGTYPE":
                yield Unread(db, key, "is no stream")
            elif "no such key" not in info.message:  # to read nothing here would look like there is nothing
                raise _refused(key, info)
            return
        length, end = info[info.index(b"length") + 1], info[info.index(b"last-generated-id") + 1]
        start, count = b"-", min(_PAGE, slice_of(endpoint, key, length))
        while page := self._page(endpoint, db, key, start, end, count):
            start = b"(" + page[-1][0]
            own = [one for one in page if not own_only or merged_identity(one[1]) is None]
            if own:
                yield self._part(key, own, symbol, why, raw)

    def _page(self, endpoint: Endpoint, db: int, key: bytes, start: bytes, end: bytes, count: int) -> list[Any]:
        if endpoint.db != db:  # whoever takes the parts may read elsewhere meanwhile
            endpoint.select(db)
        reply = endpoint.pipeline([("XRANGE", key, start, end, "COUNT", count)])[0]
        if isinstance(reply, ReplyError):
            if reply.code != "WRONGTYPE":
                raise _refused(key, reply)
            return []  # it became another type, or went away
        return list(reply)

    def _part(self, key: bytes, page: list[Any], symbol: str, why: str | None, raw: bool) -> Part:
        fields = [one[1] for one in page]
        identities = [merged_identity(flat) for flat in fields]
        merged = [identity for identity in identities if identity is not None]
        plain = [flat if own is None else flat[:-2] for flat, own in zip(fields, identities, strict=True)]
        kept = plain if raw else ()
        told = [int.from_bytes(identity[:4] + identity[8:12], "little") for identity in merged]
        if why is not None:
            return Part([], {"ts_event_ns": []}, key, others=len(page), identities=told)
        decoded = self._decoder.decode(plain, [symbol] * len(page), [_id_ns(one[0]) for one in page]).valid()
        columns = decoded.columns
        symbols, others = columns.get("symbol", []), len(page) - len(decoded.rows)
        foreign = symbols.count(symbol) != len(symbols)
        return Part(symbols, _without_symbol(columns), key, foreign, kept, others, told)


class _Role(NamedTuple):
    """What a key of the target is: its rule, its symbol or why it has none, and its name among the old keys."""

    rule: Rule
    symbol: str
    why: str | None
    source: bytes | None


def _symbol(key: bytes, rule: Rule) -> str:
    if rule.kind != "hash_ticks":
        return symbol_of(key, rule)[0]
    pattern = Pattern(rule.target)  # by the stream: a time in the key may hold colons of its own
    values = pattern.split(stream_of(rule, key) or b"")
    if values is None or "symbol" not in pattern.names:
        return symbol_of(key, rule)[0]
    return _decoded(values[pattern.names.index("symbol")])[0]


def _decoded(symbol: bytes) -> tuple[str, str | None]:
    try:
        return symbol.decode(), None
    except UnicodeDecodeError:
        return "", f"symbol {key_text(symbol)} is not UTF-8, so the tape cannot name it"


def _without_symbol(columns: dict[str, Any]) -> dict[str, Any]:
    return {name: values for name, values in columns.items() if name != "symbol"} or {"ts_event_ns": []}


def _refused(key: bytes, reply: ReplyError) -> EndpointError:
    return EndpointError(
        f"{key_text(key)} cannot be read: {reply.message}",
        hint="whoever proves that nothing was lost must be able to read everything",
        code=reply.code,
    )


def _id_ns(entry_id: bytes) -> int | None:
    ms = parse_id(entry_id)[0]
    return ms * 1_000_000 if _ID_MS_MIN <= ms < 9 * 10**12 else None


__all__ = ["TICK_KINDS", "Part", "Reading", "Redis", "Unread", "Wanted"]
