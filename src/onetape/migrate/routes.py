"""The routes: for a key under its old or its new name, both names and both databases. For clients, one look-up a key.

routes.of(5, b"indicators:ESZ6:rsi")  ->  old 5 indicators:ESZ6:rsi, new 1 ind:ta:ESZ6:rsi
routes.of(1, b"ind:ta:ESZ6:rsi")      ->  the same, if no other old key could have become it
"""

from __future__ import annotations

from typing import NamedTuple

from onetape.errors import ConfigInvalid
from onetape.migrate.landing.hash_ticks import stream_of
from onetape.migrate.plans.origin import Origins
from onetape.migrate.plans.plan import Plan, Rule

#: Keys whose routes are remembered.
_REMEMBERED = 100_000


class Route(NamedTuple):
    """Both sides of one key.

    `merged`: the old key is one of many ticks that become entries of the stream `new_key`; a write to it cannot be
    made on the other side, the migrator merges it. `shared`: the new name could have come from several old ones, so
    that it cannot be turned round; `old_key` is then empty. `joined`: the new key is a stream that ticks of other old
    keys are merged into, so it holds more than `old_key` does and must never be made anew from it.
    """

    old_db: int
    old_key: bytes
    new_db: int
    new_key: bytes
    rule: Rule
    merged: bool = False
    shared: bool = False
    joined: bool = False


class Routes:
    """A plan as clients need it. Not for several threads at once without a lock: the worst is a look-up made twice."""

    def __init__(self, plan: Plan) -> None:
        if any(rule.transform is not None for rule in plan.rules):
            raise ConfigInvalid(
                f"plan {plan.name}: a rule with a function for names cannot be turned round",
                hint="write the plan as TOML, with patterns",
            )
        self.plan = plan
        self._matchers = {db: plan.matcher(db) for db in plan.source_dbs()}
        self._origins = Origins(plan)
        self._merges = any(rule.kind == "hash_ticks" for rule in plan.rules)
        self._known: dict[tuple[int, bytes, str | None], Route | None] = {}

    @property
    def dbs(self) -> frozenset[int]:
        """The databases in which a key can have a route."""
        return frozenset((*self._matchers, self.plan.target_db))

    def of(self, db: int, key: bytes, kind: str | None = None) -> Route | None:
        """Return the route of a key of database `db`, None for a key that the plan leaves where it is.

        `kind`: the Redis type that a command implies ("stream" for XADD), for rules that take some types only; None
        where it implies none: then the first rule whose pattern fits decides.
        """
        place = (db, key, kind)
        try:
            return self._known[place]
        except KeyError:
            pass
        found = self._of_old(db, key, kind)
        if found is None and db == self.plan.target_db:
            found = self._of_new(key)
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[place] = found
        return found

    def _of_old(self, db: int, key: bytes, kind: str | None) -> Route | None:
        matcher = self._matchers.get(db)
        if matcher is None:
            return None
        hit = matcher.match(key) if kind is None else matcher.match_type(key, kind)
        if hit is None or hit[1].skip:
            return None
        _, rule, target = hit
        new_db = self.plan.target_db
        if rule.kind == "hash_ticks":
            return Route(db, key, new_db, stream_of(rule, key) or target, rule, merged=True)
        if (db, key) == (new_db, target):
            return None
        joined = self._merges and any(origin.key is None for origin in self._origins.of(target))
        return Route(db, key, new_db, target, rule, joined=joined)

    def _of_new(self, key: bytes) -> Route | None:
        origins = self._origins.of(key)
        if not origins:
            return None
        first = origins[0]
        if len(origins) > 1 or first.key is None:
            return Route(first.source_db, b"", self.plan.target_db, key, first.rule, shared=True)
        return Route(first.source_db, first.key, self.plan.target_db, key, first.rule)


__all__ = ["Route", "Routes"]
