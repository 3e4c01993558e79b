"""Twins: a key under its old and its new name, met by a sweep of both sides, and those that differ. Reads only.

A sweep meets each pair by its old name, while there is an old key, and else by its new one. Names that the plan leaves
where they are, rules that skip, and ticks that are merged are no twins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from onetape.errors import EndpointError
from onetape.migrate.copying import compare
from onetape.migrate.copying.compare import Comparer
from onetape.migrate.copying.decide import SLACK_BEFORE_7_MS
from onetape.migrate.keys import content
from onetape.migrate.landing.merge import merged_identity
from onetape.migrate.plans.origin import Origins
from onetape.migrate.plans.plan import OURS, Plan
from onetape.migrate.report import key_text
from onetape.migrate.verifying.pairs import stream_is_base
from onetape.migrate.verifying.scan import Scan
from onetape.migrate.wire.endpoint import Endpoint, ReplyError

Place = tuple[int, bytes]

_ENTRIES_AT_ONCE = 500


class Twin(NamedTuple):
    """Both names of one key. `rule`: the rule's index. `joined`: ticks of other keys are merged into the new one."""

    old_db: int
    old_key: bytes
    new_db: int
    new_key: bytes
    rule: int
    joined: bool = False

    @property
    def old(self) -> Place:
        """Return the old place."""
        return self.old_db, self.old_key

    @property
    def new(self) -> Place:
        """Return the new place."""
        return self.new_db, self.new_key

    def __str__(self) -> str:
        """Return it in words."""
        return f"db {self.old_db} {key_text(self.old_key)} -> {key_text(self.new_key)}"


class Unplaced(NamedTuple):
    """A new key without an old one, of which the plan does not tell which old name it would have."""

    new_key: bytes
    origins: tuple[Place, ...]


class Twins:
    """The twins of a plan, by one endpoint, which may be one that cannot write."""

    def __init__(self, endpoint: Endpoint, plan: Plan) -> None:
        self._endpoint = endpoint
        self._plan = plan
        self._origins = Origins(plan)
        self._places = {id(rule): index for index, rule in enumerate(plan.rules)}
        self._merges = any(rule.kind == "hash_ticks" and not rule.skip for rule in plan.rules)
        self._comparer = Comparer(endpoint)
        #: New keys of the last sweep that could not be given an old name.
        self.unplaced: list[Unplaced] = []
        self.met: Counter[int] = Counter()  # by old database

    def old_side(self) -> Iterator[list[Twin]]:
        """Yield the twins of all old keys, some hundred at a time."""
        plan, endpoint = self._plan, self._endpoint
        for db in plan.source_dbs():
            matcher = plan.matcher(db)
            scan = Scan(endpoint, db, plan.scan_glob(db))
            while not scan.done:
                hits = [(key, hit) for key in scan.first() if (hit := matcher.match(key)) is not None]
                typed = [key for key, hit in hits if hit[1].types]
                endpoint.select(db)
                kinds = dict(zip(typed, endpoint.pipeline([("TYPE", key) for key in typed]), strict=True))
                page = []
                for key, first in hits:
                    kind = kinds.get(key)
                    if isinstance(kind, ReplyError):
                        raise EndpointError(f"TYPE: {kind.message}", code=kind.code)
                    hit = first if kind is None else matcher.match_type(key, kind.decode())
                    if hit is None or hit[1].skip or hit[1].kind == "hash_ticks":
                        continue
                    index, _rule, target = hit
                    if (db, key) != (plan.target_db, target):
                        page.append(Twin(db, key, plan.target_db, target, index, self._is_joined(target)))
                self.met[db] += len(page)
                if page:
                    yield page

    def without_old(self) -> Iterator[list[Twin]]:
        """Yield the twins of new keys that have no old key. Those without one old name are put into `unplaced`."""
        self.unplaced = []
        plan, endpoint = self._plan, self._endpoint
        scan = Scan(endpoint, plan.target_db, None)
        in_place = plan.matcher(plan.target_db)
        while not scan.done:
            wanted: dict[bytes, list[Twin]] = {}
            for key in scan.first():
                if key.startswith(OURS) or in_place.match(key) is not None:
                    continue  # an old name in the same database: met from the other side
                origins = self._origins.of(key)
                joined = any(one.key is None for one in origins)
                twins = [
                    Twin(one.source_db, one.key, plan.target_db, key, self._places[id(one.rule)], joined)
                    for one in origins
                    if one.key is not None
                ]
                if twins:
                    wanted[key] = twins
            there = self.there(sorted({twin.old for twins in wanted.values() for twin in twins}))
            page = []
            for key, twins in wanted.items():
                if any(twin.old in there for twin in twins):
                    continue
                if twins[0].joined and self._is_merged_alone(key):
                    continue  # the ticks it was made of are where they were
                if len(twins) == 1:
                    page += twins
                else:
                    self.unplaced.append(Unplaced(key, tuple(twin.old for twin in twins)))
            self.met.update(twin.old_db for twin in page)
            if page:
                yield page

    def _is_merged_alone(self, stream: bytes) -> bool:
        """Return whether all entries of a stream of the target were merged into it."""
        self._endpoint.select(self._plan.target_db)
        if self._endpoint.call("TYPE", stream) != b"stream":
            return False
        start = b"-"
        while page := self._endpoint.call("XRANGE", stream, start, "+", "COUNT", _ENTRIES_AT_ONCE):
            if any(merged_identity(fields) is None for _id, fields in page):
                return False
            start = b"(" + page[-1][0]
        return True

    def unequal(self, twins: Sequence[Twin]) -> list[Twin]:
        """Return those whose sides differ in content or expiry, or of which one side is missing."""
        found: list[Twin] = []
        for db in dict.fromkeys(twin.old_db for twin in twins):
            some = [twin for twin in twins if twin.old_db == db]
            codes = self._comparer.codes(db, self._plan.target_db, [(twin.old_key, twin.new_key) for twin in some])
            for place, twin in enumerate(some):
                code = codes[place : place + 1]
                if code == compare.EQUAL or (code in (compare.DIFFERENT, compare.BIG) and self.equal(twin)):
                    continue
                if code == compare.NO_SOURCE and not self.there([twin.new]):
                    continue  # both are gone
                found.append(twin)
        return found

    def equal(self, twin: Twin) -> bool:
        """Return whether both sides are equal by content and expiry, but for ticks that were merged."""
        sides = content.read_together(self._endpoint, [twin.old, twin.new])
        if sides is None or sides[0] is None or sides[1] is None:
            return False
        slack_ms = 0 if self._endpoint.has_expire_time else SLACK_BEFORE_7_MS
        if sides[0].equals(sides[1], slack_ms):
            return True
        streams = sides[0].type == sides[1].type == "stream" and sides[0].expires_ms == sides[1].expires_ms
        return twin.joined and streams and stream_is_base(self._endpoint, twin.old, twin.new)

    def _is_joined(self, target: bytes) -> bool:
        return self._merges and any(one.key is None for one in self._origins.of(target))

    def there(self, places: Sequence[Place]) -> set[Place]:
        """Return those of these places at which there is a key."""
        found: set[Place] = set()
        for db in dict.fromkeys(db for db, _ in places):
            keys = [key for place, key in places if place == db]
            self._endpoint.select(db)
            for key, reply in zip(keys, self._endpoint.pipeline([("EXISTS", key) for key in keys]), strict=True):
                if reply == 1:
                    found.add((db, key))
        return found


__all__ = ["Place", "Twin", "Twins", "Unplaced"]
