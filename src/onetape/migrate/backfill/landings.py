"""The landings of a step: what it copied and merges, kept on disk until its copies are made, then put on the tape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, islice
from typing import Any

import apsw

from onetape.migrate.backfill.tally import Tally
from onetape.migrate.copying import decide, slice_decide
from onetape.migrate.keys import content
from onetape.migrate.keys.dump import digest
from onetape.migrate.landing.landing import LandResult, TickLander
from onetape.migrate.ledger.entry import CODES, NO_TICKS, NOT_LANDED, Outcome, Row, key_hash
from onetape.migrate.ledger.ledger import Ledger
from onetape.migrate.plans.plan import Plan
from onetape.migrate.wire.endpoint import Endpoint

_LAND_AT_ONCE = 20_000
_NOTES_AT_ONCE = 1000


class Landings:
    """What a step leaves to be landed. `reader` cannot write; without a ledger (a dry run) nothing is remembered.

    `wait` is asked before anything is sent, `tell` called as it goes on, `at` told of each point passed.
    """

    def __init__(
        self,
        reader: Endpoint,
        plan: Plan,
        ledger: Ledger | None,
        lander: TickLander,
        tally: Tally,
        *,
        wait: Callable[[int], None],
        tell: Callable[[], None],
        at: Callable[[str], None],
    ) -> None:
        self._reader = reader
        self._plan = plan
        self._ledger = ledger
        self._lander = lander
        self._tally = tally
        self._wait = wait
        self._tell = tell
        self._at = at
        self._waiting = _Waiting()
        self._noted: list[Row] = []

    def put(self, merge: int, target: bytes, db: int, rule: int, key: bytes, outcome: int = 0) -> None:
        """Leave a key to be landed: 0, a stream or bars, or 1, merged into the stream `target`."""
        self._waiting.put(merge, target, db, rule, key, outcome)

    def close(self) -> None:
        """Forget what was left."""
        self._waiting.close()

    def land(self) -> None:
        """Put on the tape what this step copied, then merge its tick hashes into the streams."""
        for (kind, target), items in self._waiting.taken():
            if kind == 0:
                for db, index, key, outcome in items:
                    rule = self._plan.rules[index]
                    land = self._lander.stream if rule.kind == "ticks" else self._lander.ohlc
                    self._wait(0)
                    result = land(key, db, rule)
                    self._landed(result, index, db, target)
                    self._record_landed(result, index, db, target, outcome)
                    self._at("landed")
            else:
                self._merge(target, items)
            self._tell()
        self._write_landed()

    def _record_landed(self, result: LandResult, index: int, db: int, target: bytes, outcome: int) -> None:
        """Remember what of a copied key is not on the tape; what became of its copy stays as it is."""
        if result.error is None or result.outcome is Outcome.EXPIRED:
            return
        landed = result.outcome in (Outcome.COPIED, Outcome.UNCHANGED)
        why = (NO_TICKS if landed else NOT_LANDED) + result.error
        self._noted.append((index, db, result.key, target, None, None, -1, outcome, why, key_hash(db, result.key)))
        if len(self._noted) >= _NOTES_AT_ONCE:
            self._write_landed()

    def _write_landed(self) -> None:
        rows, self._noted = self._noted, []
        if self._ledger is not None:
            self._ledger.record(rows)

    def _merge(self, target: bytes, items: Iterable[tuple[int, int, bytes, int]]) -> None:
        """Merge one symbol's tick hashes, from whatever databases and rules, in groups of bounded size."""
        merged = False
        for (db, index), group in groupby(items, key=lambda item: item[:2]):
            rule = self._plan.rules[index]
            while keys := [key for _, _, key, _ in islice(group, _LAND_AT_ONCE)]:
                self._wait(0)
                results = self._lander.hash_ticks(keys, db, rule)
                self._at("merged")
                self._record_merged(results, index, db, target)
                for result in results:
                    code = CODES[result.outcome]
                    self._tally.add([index], [code])
                    self._landed(result, index, db, target)
                    merged = merged or result.outcome is Outcome.COPIED
                self._tell()
        if merged:
            self._note_merged(target)

    def _record_merged(self, results: list[LandResult], index: int, db: int, target: bytes) -> None:
        if self._ledger is None:
            return
        rows: list[Row] = [
            (index, db, r.key, target, None, None, -1, CODES[r.outcome], r.error, key_hash(db, r.key))
            for r in results
            if r.outcome is not Outcome.UNCHANGED
        ]
        self._ledger.record(rows)

    def _note_merged(self, target: bytes) -> None:
        """Where the stream merged into is itself a copy of ours, remember what it holds now, so it stays
        ours.
        """
        if self._ledger is None:
            return
        for index, rule in enumerate(self._plan.rules):
            if rule.kind != "ticks":
                continue
            key = target if rule.target_of(target) == target else None
            known = None if key is None else self._ledger.find_now(rule.source_db, key)
            if key is None or known is None or known.target != target:
                continue
            self._reader.select(self._plan.target_db)
            written = self._digest_like(known.read, target)
            if written is not None:
                row: Row = (
                    index, rule.source_db, key, target, known.read, written, known.expire_ms,
                    decide.COPIED, "tick hashes were merged into it", key_hash(rule.source_db, key),
                )  # fmt: skip
                self._ledger.record([row])

    def _digest_like(self, other: bytes | None, target: bytes) -> bytes | None:
        """Return the digest of a target, of its content if `other` is one of a content, else of its dump."""
        if slice_decide.is_content_digest(other):
            found = content.read_together(self._reader, [(self._plan.target_db, target)])
            self._reader.db = -1
            return None if found is None or found[0] is None else slice_decide.content_digest(found[0])
        payload = self._reader.call("DUMP", target)
        return digest(payload) if isinstance(payload, bytes) else None

    def _landed(self, result: LandResult, index: int, db: int, target: bytes) -> None:
        self._tally.ticks_landed += result.ticks
        self._tally.ticks_known += result.known
        if result.error is not None and result.outcome in (Outcome.FAILED, Outcome.CHANGED_WHILE_COPYING):
            self._tally.error(index, db, result.key, target, result.error)
        elif result.error is not None:
            self._tally.note(index, db, result.key, target, result.error)


class _Waiting:
    """What is to be landed at the end of a step, on disk, given back by kind and target."""

    def __init__(self) -> None:
        self._db = apsw.Connection("")  # SQLite's own temporary file
        self._db.execute("CREATE TABLE landing(merge, target BLOB, db, rule, key BLOB, outcome)")
        self._rows: list[tuple[int, bytes, int, int, bytes, int]] = []

    def put(self, merge: int, target: bytes, db: int, rule: int, key: bytes, outcome: int = 0) -> None:
        self._rows.append((merge, target, db, rule, key, outcome))
        if len(self._rows) >= 1000:
            self._write()

    def _write(self) -> None:
        rows, self._rows = self._rows, []
        with self._db:
            self._db.executemany("INSERT INTO landing VALUES(?,?,?,?,?,?)", rows)

    def taken(self) -> Iterator[tuple[tuple[int, bytes], Iterator[tuple[int, int, bytes, int]]]]:
        """Yield ((merge, target), (db, rule, key, outcome of the copy)...) in order; then forget them.

        Streams and bars come before merges.
        """
        self._write()
        rows: Iterable[Any] = self._db.execute(
            "SELECT merge, target, db, rule, key, outcome FROM landing ORDER BY merge, target, db, rule, key"
        )
        for (merge, target), group in groupby(rows, key=lambda row: row[:2]):
            yield (merge, target), ((db, rule, key, outcome) for _, _, db, rule, key, outcome in group)
        self._db.execute("DELETE FROM landing")

    def close(self) -> None:
        self._db.close()
