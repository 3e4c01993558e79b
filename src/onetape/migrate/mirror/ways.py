"""The ways: which key follows which. From the old names to the new ones, and after the cutover the other way round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from onetape.errors import ConfigInvalid
from onetape.migrate.mirror.memory import Memory, Place
from onetape.migrate.plans.origin import Origins
from onetape.migrate.plans.plan import OURS, Plan
from onetape.migrate.wire.endpoint import Endpoint, ReplyError


class Pair(NamedTuple):
    """A key and the one that follows it. `rule`: the rule's index in the plan."""

    from_db: int
    from_key: bytes
    to_db: int
    to_key: bytes
    rule: int
    place: Place

    @property
    def new_key(self) -> bytes:
        """The new name, whichever side it is on."""
        return self.to_key if self.place == (self.from_db, self.from_key) else self.from_key


class Ways:
    """A plan, looked at in one direction. `back`: the old names follow the new ones.

    `from_dbs`: databases whose keys lead. Ticks in hashes lead in the first direction only: they are merged.
    """

    def __init__(self, plan: Plan, memory: Memory, *, back: bool) -> None:
        if any(rule.transform is not None for rule in plan.rules):
            raise ConfigInvalid(
                f"plan {plan.name}: a rule with a function for names cannot be turned round",
                hint="write the plan as TOML, with patterns",
            )
        self.back = back
        self._plan = plan
        self._memory = memory
        self._matchers = {db: plan.matcher(db) for db in plan.source_dbs()}
        self._origins = Origins(plan)
        self._places = {id(rule): index for index, rule in enumerate(plan.rules)}
        self.from_dbs = (plan.target_db,) if back else plan.source_dbs()
        #: What the names of streams begin with that ticks are merged into.
        self._merged = tuple(
            rule.target.partition("{")[0].encode() for rule in plan.rules if rule.kind == "hash_ticks" and not rule.skip
        )

    def is_merged_into(self, new_key: bytes) -> bool:
        """Return whether ticks of hashes may be merged into the new key."""
        return bool(self._merged) and new_key.startswith(self._merged)

    def of(self, endpoint: Endpoint, db: int, keys: Sequence[bytes]) -> tuple[list[Pair], dict[int, list[bytes]]]:
        """Return the pairs that these keys lead, and by rule those that hold ticks to merge.

        A key that is gone is found by what is remembered of it. The endpoint's database is `db` afterwards.
        """
        keys = [key for key in keys if not key.startswith(OURS)]
        return (self._of_new(endpoint, keys), {}) if self.back else self._of_old(endpoint, db, keys)

    def _of_old(self, endpoint: Endpoint, db: int, keys: Sequence[bytes]) -> tuple[list[Pair], dict[int, list[bytes]]]:
        matcher, target_db = self._matchers[db], self._plan.target_db
        pairs: list[Pair] = []
        ticks: dict[int, list[bytes]] = {}
        hits = [(key, matcher.match(key)) for key in keys]
        typed = [key for key, hit in hits if hit is not None and hit[1].types]
        endpoint.select(db)
        kinds = dict(zip(typed, endpoint.pipeline([("TYPE", key) for key in typed]), strict=True))
        gone = [key for key, kind in kinds.items() if kind == b"none"]
        known = self._memory.find([(db, key) for key in gone])
        for key, first in hits:
            kind, hit = kinds.get(key), first
            if kind is not None:
                if (held := known.get((db, key))) is not None and first is not None:
                    pairs.append(Pair(db, key, target_db, held.new_key, first[0], (db, key)))
                    continue
                hit = None if isinstance(kind, ReplyError) else matcher.match_type(key, kind.decode())
            if hit is None or hit[1].skip:
                continue
            index, rule, target = hit
            if rule.kind == "hash_ticks":
                ticks.setdefault(index, []).append(key)
            elif (db, key) != (target_db, target):
                pairs.append(Pair(db, key, target_db, target, index, (db, key)))
        return pairs, ticks

    def _of_new(self, endpoint: Endpoint, keys: Sequence[bytes]) -> list[Pair]:
        target_db = self._plan.target_db
        pairs = []
        for key in keys:
            origins = [one for one in self._origins.of(key) if one.key is not None]
            chosen = origins[:1]
            if len(origins) > 1:
                known = self._memory.find([(one.source_db, one.key or b"") for one in origins])
                chosen = [
                    one
                    for one in origins
                    if (held := known.get((one.source_db, one.key or b""))) is not None and held.new_key == key
                ]
            for one in chosen[:1]:
                assert one.key is not None
                place = (one.source_db, one.key)
                pairs.append(Pair(target_db, key, *place, self._places[id(one.rule)], place))
        endpoint.select(target_db)
        return pairs

    def pair(self, place: Sequence[Any], new_key: bytes, rule: int) -> Pair:
        """Return the pair of an old and a new name, in this direction."""
        old, new = (place[0], place[1]), (self._plan.target_db, new_key)
        return Pair(*new, *old, rule, old) if self.back else Pair(*old, *new, rule, old)

    def followers(self, endpoint: Endpoint, db: int, keys: Sequence[bytes]) -> list[Pair]:
        """Return the pairs in which these keys of database `db` may be those that follow, of all rules."""
        keys = [key for key in keys if not key.startswith(OURS)]
        if self.back:
            forward, _ticks = self._of_old(endpoint, db, keys)
            return [Pair(p.to_db, p.to_key, p.from_db, p.from_key, p.rule, p.place) for p in forward]
        pairs = []
        for key in keys:
            for one in self._origins.of(key):
                if one.key is not None:
                    place = (one.source_db, one.key)
                    pairs.append(Pair(*place, db, key, self._places[id(one.rule)], place))
        return pairs
