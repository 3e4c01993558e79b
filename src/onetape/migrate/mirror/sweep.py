"""The sweep: every key of both sides looked at once, in small steps, so that hints are followed in between.

What leads is compared with what follows, inside the server where it may; then what follows is looked through for
keys whose leader is gone. Deletions that no hint told of are held back to the end of the sweep, and counted: a
database that lost most of its keys without a word was flushed, swapped or restarted empty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from onetape.errors import SourceVanished
from onetape.migrate.copying import compare
from onetape.migrate.copying.compare import Comparer
from onetape.migrate.keys.vanished import most_gone
from onetape.migrate.mirror.memory import Held, Memory, Place
from onetape.migrate.mirror.ways import Pair, Ways
from onetape.migrate.plans.plan import OURS
from onetape.migrate.wire.endpoint import Endpoint

#: Keys of a step.
PAGE_KEYS = 300
_GONE_MAX = 200_000


class Sweep:
    """One sweep. Iterate over steps(); each does a bounded piece of work.

    `settle`: makes pairs equal, given those whose leader is gone. `merge`: takes ticks of hashes, by database and rule.
    `pace`: told of keys before they are looked at, may wait. `heard_all`: whether every hint of what was written before
    the first call of it has been followed.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        ways: Ways,
        memory: Memory,
        *,
        earlier: Callable[[Sequence[Place]], dict[Place, Held]],
        settle: Callable[[Sequence[Pair], frozenset[Place]], None],
        merge: Callable[[int, dict[int, list[bytes]]], None],
        pace: Callable[[int], None],
        to_dbs: tuple[int, ...],
        allow_flush: bool,
        heard_all: Callable[[], bool] = lambda: True,
    ) -> None:
        self._endpoint = endpoint
        self._ways = ways
        self._memory = memory
        self._earlier = earlier
        self._settle = settle
        self._merge = merge
        self._pace = pace
        self._to_dbs = to_dbs
        self._allow_flush = allow_flush
        self._heard_all = heard_all
        self._comparer = Comparer(endpoint)
        self._gone: dict[Place, Pair] = {}
        self.done_keys = 0
        self.total_keys = 0

    def steps(self) -> Iterator[None]:
        """Do the sweep, a yield after each step. Raises SourceVanished before anything is deleted, EndpointError."""
        sizes = {db: self._size(db) for db in dict.fromkeys((*self._ways.from_dbs, *self._to_dbs))}
        self.total_keys = sum(sizes.values())
        for db in self._ways.from_dbs:
            for keys in self._pages(db):
                self._lead(db, keys)
                yield
        for db in self._to_dbs:
            for keys in self._pages(db):
                self._follow(db, keys)
                yield
        yield from self._delete()
        yield from self._look_at_kept()

    def _size(self, db: int) -> int:
        self._endpoint.select(db)
        return int(self._endpoint.call("DBSIZE"))

    def _pages(self, db: int) -> Iterator[list[bytes]]:
        cursor = b"0"
        while True:
            self._endpoint.select(db)
            cursor, keys = self._endpoint.call("SCAN", cursor, "COUNT", PAGE_KEYS)
            keys = [key for key in dict.fromkeys(keys) if not key.startswith(OURS)]
            self._pace(len(keys))
            if keys:
                yield keys
            self.done_keys += len(keys)
            if cursor == b"0":
                return

    def _lead(self, db: int, keys: list[bytes]) -> None:
        pairs, ticks = self._ways.of(self._endpoint, db, keys)
        by_target: dict[int, list[Pair]] = {}
        for pair in pairs:
            by_target.setdefault(pair.to_db, []).append(pair)
        todo: list[Pair] = []
        for to_db, some in by_target.items():
            if not self._endpoint.has_expire_time:  # then no script can compare expiries either
                todo += some
                continue
            known = self._memory.find([pair.place for pair in some])
            codes = self._comparer.codes(db, to_db, [(pair.from_key, pair.to_key) for pair in some])
            for at, pair in enumerate(some):
                code = codes[at : at + 1]
                held = known.get(pair.place)
                seen = held is not None and held.fresh and held.new_key == pair.new_key and held.next_digest is None
                if code != compare.NO_SOURCE and not (code == compare.EQUAL and seen):
                    todo.append(pair)
        if todo:
            self._settle(todo, frozenset())
        if ticks:
            self._merge(db, ticks)

    def _follow(self, db: int, keys: list[bytes]) -> None:
        pairs = self._ways.followers(self._endpoint, db, keys)
        by_source: dict[int, list[Pair]] = {}
        for pair in pairs:
            by_source.setdefault(pair.from_db, []).append(pair)
        led: set[bytes] = set()
        gone: list[Pair] = []
        for from_db, some in by_source.items():
            self._endpoint.select(from_db)
            there = self._endpoint.pipeline([("EXISTS", pair.from_key) for pair in some])
            led.update(pair.to_key for pair, exists in zip(some, there, strict=True) if exists == 1)
            gone += [pair for pair, exists in zip(some, there, strict=True) if exists == 0]
        gone = [pair for pair in gone if pair.to_key not in led and not self._ways.is_merged_into(pair.new_key)]
        if not gone:
            return
        known = self._memory.find([pair.place for pair in gone])
        known.update(self._earlier([pair.place for pair in gone if pair.place not in known]))
        for pair in gone:
            held = known.get(pair.place)
            if held is not None and held.new_key == pair.new_key and len(self._gone) < _GONE_MAX:
                self._gone[pair.place] = pair

    def _delete(self) -> Iterator[None]:
        if not self._gone:
            return
        while not self._heard_all():  # what a hint tells of is no surprise
            yield
        self._gone = {pair.place: pair for pair in self._still_gone()}
        by_db = Counter(pair.from_db if self._ways.back else pair.place[0] for pair in self._gone.values())
        for db, number in by_db.items():
            self._refuse_a_flush(db, number)
        pairs = list(self._gone.values())
        for at in range(0, len(pairs), PAGE_KEYS):
            some = pairs[at : at + PAGE_KEYS]
            self._pace(len(some))
            self._settle(some, frozenset(pair.place for pair in some))
            yield

    def _look_at_kept(self) -> Iterator[None]:
        """Look again at the pairs that differ and were left so: somebody may have made them equal."""
        after: Place = (-1, b"")
        while kept := self._memory.kept(after):
            pairs = [self._ways.pair(place, new_key, rule) for *place, new_key, rule, _why in kept]
            self._pace(len(pairs))
            self._settle(pairs, frozenset())
            after = kept[-1][:2]
            yield

    def _still_gone(self) -> Iterator[Pair]:
        pairs = list(self._gone.values())
        for at in range(0, len(pairs), PAGE_KEYS):
            some = pairs[at : at + PAGE_KEYS]
            commands = [
                one
                for pair in some
                for one in (
                    ("SELECT", pair.from_db), ("EXISTS", pair.from_key),
                    ("SELECT", pair.to_db), ("EXISTS", pair.to_key),
                )
            ]  # fmt: skip
            there = self._endpoint.pipeline(commands)[1::2]
            for pair, leads, follows in zip(some, there[::2], there[1::2], strict=True):
                if leads == 0 and follows == 1:
                    yield pair

    def _refuse_a_flush(self, db: int, number: int) -> None:
        known = self._memory.count(None if self._ways.back else db)
        left = self._size(db)
        fine = number <= most_gone(known) and left > 0
        if fine or self._allow_flush:
            return
        raise SourceVanished(
            f"database {db} lost {number:,} of {known:,} mirrored keys without a word of the server, and has {left:,}: "
            "it was flushed, swapped, or restarted without its data",
            hint="nothing of the other side was deleted; if it is meant to be so, mirror again with --allow-flush",
            db=db,
            keys=number,
            known=known,
        )
