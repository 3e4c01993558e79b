"""The sealing: a verify writes into the ledger what equal pairs hold, where they were copied without being read.

From then on a later run knows its own work, and an undo knows what is still what was written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onetape.migrate.copying import decide
from onetape.migrate.keys.dump import digest
from onetape.migrate.ledger.entry import Row, key_hash
from onetape.migrate.ledger.ledger import Ledger
from onetape.migrate.ledger.pack import Sealed
from onetape.migrate.ledger.packs import FOUND_EQUAL
from onetape.migrate.plans.plan import Plan
from onetape.migrate.verifying.verdict import Found
from onetape.migrate.wire.endpoint import Endpoint, ReplyError

#: Keys of one row of the ledger.
PACK_KEYS = 2000
#: Pairs that are read at once to take their digests.
_READ_KEYS = 20


class Sealer:
    """Writes down equal pairs. Use one for one verify; finish() ends it.

    `waiting`: pairs without a seal, equal by their content, for read_waiting() to digest.
    """

    def __init__(self, endpoint: Endpoint, plan: Plan, ledger: Ledger) -> None:
        self._endpoint = endpoint
        self._target_db = plan.target_db
        self._ledger = ledger
        self._rules = {id(rule): index for index, rule in enumerate(plan.rules)}
        self._db = -1
        self._found: list[Found] = []
        self._sealed: list[Sealed] = []
        self.waiting: list[Found] = []

    def put(self, source_db: int, found: Sequence[Found], sealed: Sequence[Sealed]) -> None:
        """Take on pairs of one source database that are equal, and what they hold. Raises LedgerUnusable."""
        if source_db != self._db:
            self._write()
            self._db = source_db
        self._found += found
        self._sealed += sealed
        if len(self._found) >= PACK_KEYS:
            self._write()

    def _write(self) -> None:
        found, sealed = self._found, self._sealed
        if found:
            rules = [self._rules[id(one.rule)] for one in found]
            self._ledger.record_equal(
                self._db, rules, [one.key for one in found], [one.target for one in found], sealed
            )
        self._found, self._sealed = [], []

    def read_waiting(self) -> None:
        """Read the pairs that have no seal, and write down the digests of those that are equal now.

        Others stay open: they changed since, and the next verify takes them. Raises EndpointError, LedgerUnusable.
        """
        waiting, self.waiting = self.waiting, []
        by_db: dict[int, list[Found]] = {}
        for one in waiting:
            by_db.setdefault(one.source_db, []).append(one)
        for db, some in by_db.items():
            for at in range(0, len(some), _READ_KEYS):
                self._ledger.record(self._digested(db, some[at : at + _READ_KEYS]))

    def _digested(self, db: int, found: Sequence[Found]) -> list[Row]:
        sides = []
        for of_db, keys in ((db, [one.key for one in found]), (self._target_db, [one.target for one in found])):
            self._endpoint.select(of_db)
            exact = self._endpoint.has_expire_time
            when = "PEXPIRETIME" if exact else "PTTL"
            commands = [command for key in keys for command in (("DUMP", key), (when, key))]
            now, *replies = self._endpoint.pipeline([("TIME",), *commands])
            now_ms = 0 if exact else int(now[0]) * 1000 + int(now[1]) // 1000
            sides.append([(replies[at], _absolute(replies[at + 1], now_ms)) for at in range(0, len(replies), 2)])
        slack_ms = 0 if self._endpoint.has_expire_time else decide.SLACK_BEFORE_7_MS
        rows: list[Row] = []
        for one, (source, source_ms), (target, target_ms) in zip(found, *sides, strict=True):
            if not (isinstance(source, bytes) and isinstance(target, bytes)) or source_ms is None or target_ms is None:
                continue
            content = digest(source)
            if content == digest(target) and abs(source_ms - target_ms) <= slack_ms:
                rule, hashed = self._rules[id(one.rule)], key_hash(one.source_db, one.key)
                held = (content, content, source_ms, decide.UNCHANGED, FOUND_EQUAL)
                rows.append((rule, one.source_db, one.key, one.target, *held, hashed))
        return rows

    def finish(self, *, complete: bool) -> None:
        """Write down what is left. `complete`: all keys were looked at, so only what differs or is big stays open."""
        self.read_waiting()
        self._write()
        if complete:
            self._ledger.set_state(digests_open="")


def _absolute(told: Any, now_ms: int) -> int | None:
    """Return an absolute expiry in ms, -1 for none, None for an error; `now_ms` is 0 where it is absolute already."""
    if isinstance(told, ReplyError):
        return None
    return now_ms + told if told >= 0 else -1


__all__ = ["Sealer"]
