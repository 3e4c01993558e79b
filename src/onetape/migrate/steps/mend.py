"""The mend: all twins that differ made equal again, towards the side that is the truth; what it replaces is kept.

Towards the new side (before the cutover) a key that only the new side has is removed only if the ledger says that we
wrote it, or on demand; a value that somebody newer had put there before us is replaced only on demand. Towards the old
side (after the cutover, and on the way back) an old key without a new one is removed only if the ledger says that there
was a new one: then it was deleted there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import msgspec

from onetape.errors import SourceVanished
from onetape.migrate.copying import decide
from onetape.migrate.copying.decide import DIGEST_OPEN
from onetape.migrate.keys.vanished import most_gone
from onetape.migrate.ledger.entry import NO_TICKS, NOT_LANDED, Entry, Outcome, Row, key_hash
from onetape.migrate.ledger.ledger import Ledger
from onetape.migrate.plans.plan import Plan
from onetape.migrate.report import key_text
from onetape.migrate.steps.force import TOO_BIG, Done, Forcer, Order
from onetape.migrate.verifying.side import Side
from onetape.migrate.verifying.twins import Place, Twin, Twins
from onetape.migrate.wire.endpoint import Endpoint

#: Twins that differ, looked at in one go: memory is bounded by them.
_AT_ONCE = 20_000
#: Names of keys left as they are, in a result.
LISTED = 100

NOT_OURS = "has no old key, and the ledger does not say that it is a copy of ours: --replace-newer removes it"
WRITTEN_SINCE = "has no old key any more, and was written since it was copied"
NEWER = "somebody newer wrote it before both sides were written: --replace-newer puts the old value in its place"
JOINED_BACK = "ticks of other keys are merged into it, so that the old stream cannot be made from it"
JOINED = "ticks of other keys are merged into it: run a backfill, which adds to it"
NEVER_THERE = "the ledger knows no new key of it, so that nothing says whether it was deleted there"
UNPLACED = "has no old key, and could have had several old names"


class Mended(msgspec.Struct):
    """What a mend did: outcome → keys (see force.Done), and in words the first of what was left or failed.

    `lost`: of what was left, that which holds something that the other side does not; "lost" in `counts` is how many.
    `met`, and of those `gone`: removed because the other side has no such key; both by the database of the old key.
    """

    met: Counter[int] = msgspec.field(default_factory=Counter)
    gone: Counter[int] = msgspec.field(default_factory=Counter)
    counts: Counter[str] = msgspec.field(default_factory=Counter)
    left: list[str] = []
    failed: list[str] = []
    lost: list[str] = []

    @property
    def acted(self) -> int:
        """Return how many keys were written or removed."""
        return self.counts["copied"] + self.counts["replaced"] + self.counts["removed"]

    def add(self, what: str, done: Done, db: int | None = None) -> None:
        """Count one; `db`: of its old key."""
        self.counts[done.outcome] += 1
        if done.outcome == "removed" and db is not None:
            self.gone[db] += 1
        lines = {"left": self.left, "failed": self.failed, "busy": self.failed}.get(done.outcome)
        if lines is not None and len(lines) < LISTED:
            lines.append(f"{what}: {done.why}")
        if done.outcome == "left" and (done.why in (JOINED_BACK, UNPLACED) or done.why.endswith(TOO_BIG)):
            self.counts["lost"] += 1
            if len(self.lost) < LISTED:
                self.lost.append(f"{what}: {done.why}")

    def lines(self, side: str, *, would: bool = False) -> list[str]:
        """Return it in words; `side` is the one that was written: "new" or "old". `would`: of a dry run."""
        kept = "what they held is in the ledger"
        told = [
            ("copied", f"{side} keys that were missing are there", f"{side} keys are missing and would be copied"),
            ("replaced", f"{side} keys that differed are equal again; {kept}",
             f"{side} keys differ and would be replaced; the ledger would keep what they hold"),
            ("removed", f"{side} keys that are gone on the other side were removed",
             f"{side} keys are gone on the other side and would be removed"),
            ("left", "keys were left as they are", "keys would be left as they are"),
            ("failed", "keys could not be made equal", "keys could not be made equal"),
        ]  # fmt: skip
        counts = Counter(self.counts)
        counts["failed"] += counts["busy"]
        return [f"{counts[name]:,} {then if would else now}" for name, now, then in told if counts[name]]

    def to_dict(self) -> dict[str, object]:
        """Return it as plain data."""
        return {"met": self.met.total(), **dict(self.counts), "left_first": self.left, "failed_first": self.failed}


class Known(msgspec.Struct):
    """What the ledger knows of a pair: its newest entry, and the newest one that says what was written."""

    newest: Entry | None = None
    copied: Entry | None = None


class Mend:
    """One mend of one migration. `towards`: the side that is made what the other one is.

    `ledger` may write where `towards` is "new": intents and outcomes are recorded, so that undo knows what is ours.
    None where there is none; `forcer` None: a dry run. `found`: whether a new key was there before both sides were
    written: then it is somebody's own, and stays.
    """

    def __init__(
        self,
        plan: Plan,
        reader: Endpoint,
        forcer: Forcer | None,
        ledger: Ledger | None,
        towards: str,
        *,
        replace_newer: bool = False,
        found: Callable[[int, bytes], bool] = lambda db, key: False,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._plan = plan
        self._reader = reader
        self._forcer = forcer
        self._ledger = ledger
        self._towards = towards
        self._replace_newer = replace_newer
        self._found = found
        self._check = check

    def run(self) -> Mended:
        """Look at all twins once, and make equal what differs. Raises StateMoved, EndpointError."""
        twins, result = Twins(self._reader, self._plan), Mended()
        waiting: list[Twin] = []
        for page in differing(twins):
            self._check()
            waiting += page
            if len(waiting) >= _AT_ONCE:
                self._settle(waiting, result)
                waiting = []
        self._settle(waiting, result)
        for one in twins.unplaced:
            result.add(f"db {self._plan.target_db} {key_text(one.new_key)}", Done("left", UNPLACED))
        result.met = twins.met
        return result

    def _settle(self, some: list[Twin], result: Mended) -> None:
        known = self._known(some)
        for twin in some:
            self._check()
            result.add(str(twin), self.one(twin, known.get(twin.old, Known())), twin.old_db)

    def one(self, twin: Twin, known: Known) -> Done:
        """Make one pair equal."""
        back = self._towards == "old"
        leader, follower = (twin.new, twin.old) if back else (twin.old, twin.new)

        def ordered(first: Side | None, other: Side | None) -> Order:
            return order_back(twin, known, first) if back else self._order(twin, known, first, other)

        if self._forcer is None:
            return self._would(leader, follower, ordered)
        intended: list[int] = []

        def before(side: Side) -> None:
            if back or self._ledger is None:
                return
            for batch in intended:  # of an attempt that did nothing
                self._ledger.settle(batch, [self._row(twin, None, side, decide.INTENDED, "not done, tried again")])
            intended[:] = [self._ledger.intend([self._row(twin, side, side, decide.COPIED, "made equal by a repair")])]

        done = self._forcer.force(leader, follower, ordered, before)
        if intended and self._ledger is not None:
            written = done.outcome in ("copied", "replaced")
            gone = [self._row(twin, None, None, decide.INTENDED, "not done")]
            self._ledger.settle(intended[0], () if written else gone)
        return done

    def _row(self, twin: Twin, written: Side | None, read: Side | None, outcome: int, why: str) -> Row:
        return (
            twin.rule, twin.old_db, twin.old_key, twin.new_key, None if read is None else read.stands,
            None if written is None else written.stands, -1 if read is None else read.expire_ms, outcome, why,
            key_hash(twin.old_db, twin.old_key),
        )  # fmt: skip

    def _would(self, leader: Place, follower: Place, ordered: Callable[[Side | None, Side | None], Order]) -> Done:
        """Say what would be done, on a connection that cannot write: without the values, which only undo needs."""
        there = []
        for db, key in (leader, follower):
            self._reader.select(db)
            there.append(bool(self._reader.call("EXISTS", key)))
        sides = [Side(b"?", -1, None, 0) if one else None for one in there]
        order = ordered(sides[0], sides[1])
        if order.act == "copy":
            return Done("replaced" if there[1] else "copied", order.why)
        return Done({"remove": "removed", "leave": "left"}[order.act], order.why)

    def _order(self, twin: Twin, known: Known, old: Side | None, new: Side | None) -> Order:
        """Say what becomes of a new key that differs from its old one."""
        newest, copied = known.newest, known.copied
        ours = copied is not None and copied.target == twin.new_key
        if old is None:
            if not ours or copied is None or new is None:
                if self._replace_newer and not self._found(*twin.new):
                    return Order("remove", "has no old key, and was not there before both sides were written")
                return Order("leave", NOT_OURS)
            still = new.stands == b"?" or copied.is_open or new.is_what(copied.written, copied.expire_ms)
            if still or self._replace_newer:
                return Order("remove", "was a copy of ours, and the old key is gone", ours=still)
            return Order("leave", WRITTEN_SINCE)
        if new is None:
            return Order("copy", "was missing")
        if twin.joined:
            return Order("leave", JOINED)
        foreign = newest is not None and newest.outcome is Outcome.NEWER_TARGET_KEPT and newest.error != DIGEST_OPEN
        if foreign and not self._replace_newer:
            return Order("leave", NEWER)
        held = copied is not None and ours and new.is_what(copied.written, copied.expire_ms)
        return Order("copy", "differed from the old key", ours=held and not foreign)

    def _known(self, some: Iterable[Twin]) -> dict[Place, Known]:
        """Return what the ledger knows of these pairs, by their old places: one reading of it."""
        found = {twin.old: Known() for twin in some}
        if not found or self._ledger is None:
            return found
        for entry in self._ledger.entries():
            known = found.get((entry.source_db, entry.key))
            if known is None or entry.settled_ns is None or (entry.error or "").startswith((NO_TICKS, NOT_LANDED)):
                continue
            known.newest = entry
            if entry.written is not None:
                known.copied = entry
        return found


def refuse_a_flush(found: Mended, towards: str) -> None:
    """Raise SourceVanished where most keys of a database would be removed, as a look (a dry run) found it."""
    truth = {"new": "old", "old": "new"}[towards]
    for db, gone in sorted(found.gone.items()):
        if gone > most_gone(found.met[db]):
            raise SourceVanished(
                f"{gone:,} of {found.met[db]:,} keys of database {db} are gone under their {truth} names, which "
                f"are the truth now: flushed, swapped, or restarted empty? Their {towards} keys would be removed",
                hint=f"nothing was written; bring the {truth} keys back, or say --allow-flush if it is meant to be so",
                db=db,
                keys=gone,
                known=found.met[db],
            )


def differing(twins: Twins) -> Iterator[list[Twin]]:
    """Yield the twins that differ, and those that have no old key."""
    for page in twins.old_side():
        yield twins.unequal(page)
    yield from twins.without_old()


def order_back(twin: Twin, known: Known, new: Side | None) -> Order:
    """Say what becomes of an old key that differs from its new one, which is the truth."""
    if new is not None:
        return Order("leave", JOINED_BACK) if twin.joined else Order("copy", "the new name was the truth")
    if known.copied is not None and known.copied.target == twin.new_key:
        return Order("remove", "was deleted under its new name")
    return Order("leave", NEVER_THERE)


__all__ = ["Known", "Mend", "Mended", "differing", "order_back", "refuse_a_flush"]
