"""The backfill: all keys of a plan, step by step, brought over and landed, however often it is run or killed.

Keys of a step are listed, copied in batches and counted; then what its rules put on the tape is landed:
streams and bars of the step first, and last its tick hashes, symbol by symbol, into the streams that are now
there.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, islice
from typing import Any, cast

import apsw
import msgspec

from onetape.errors import EndpointError, PlanCollision, PlanInvalid
from onetape.migrate import decide
from onetape.migrate.copy import GROUP_KEYS, Copier
from onetape.migrate.dump import digest
from onetape.migrate.endpoint import Endpoint, ReplyError, parse_info
from onetape.migrate.hash_ticks import stream_of
from onetape.migrate.landing import LandResult, TickLander
from onetape.migrate.lane import Batch, Lane
from onetape.migrate.ledger import CODES, NO_TICKS, NOT_LANDED, Entry, Ledger, Outcome, Row, key_hash
from onetape.migrate.listing import Listing, Page, Unmatched, memory_usage
from onetape.migrate.pattern import glob_pattern
from onetape.migrate.plan import Plan, Rule
from onetape.migrate.remote.bridge import OTHER_SERVER, Bridge
from onetape.migrate.remote.copy import RemoteCopier, would
from onetape.migrate.report import ERRORS_LISTED, KeyFailure
from onetape.progress import Progress, ProgressMeter

#: Keys over it are read alone, so that memory holds one of them and not two hundred.
BIG_BYTES = 1024 * 1024
BATCH_BYTES = 8 * 1024 * 1024
#: A value over it is not read at all: a DUMP of it would stop the server for seconds and double its memory.
VALUE_BYTES_MAX = 512 * 1024 * 1024
#: Up to here a server's whole data may be read without asking how big each key is: memory is bounded by it.
DATASET_BYTES_SMALL = 192 * 1024 * 1024

_PROGRESS_EVERY_S = 0.2
_LAND_AT_ONCE = 20_000
_NOTES_AT_ONCE = 1000
_OUTCOMES = tuple(Outcome)

OnProgress = Callable[[Progress], None]


class Tally:
    """Counts and errors of a run, bounded."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.by_rule: Counter[tuple[int, int]] = Counter()  # (rule, outcome's code) → keys
        self.errors: list[KeyFailure] = []
        self.error_count = 0
        self.notes: list[KeyFailure] = []
        self.note_count = 0
        self.ticks_landed = 0
        self.ticks_known = 0
        self.done = 0

    def add(self, rules: list[int], outcomes: list[int]) -> None:
        """Count keys with their outcomes."""
        self.by_rule.update(zip(rules, outcomes, strict=True))
        self.done += len(rules)

    def error(self, rule: int, source_db: int, key: bytes, target: bytes, why: str) -> None:
        """Count an error, and keep it while there is room."""
        self.error_count += 1
        if len(self.errors) < ERRORS_LISTED:
            self.errors.append(KeyFailure(self._plan.rules[rule].step, source_db, key, target, why))

    def note(self, rule: int, source_db: int, key: bytes, target: bytes, what: str) -> None:
        """Count a key that is over, but not all of which a tape can hold; and keep it while there is room."""
        self.note_count += 1
        if len(self.notes) < ERRORS_LISTED:
            self.notes.append(KeyFailure(self._plan.rules[rule].step, source_db, key, target, what))

    def steps(self) -> dict[str, dict[str, int]]:
        """Return step → outcome → keys, for every step of the plan."""
        steps: dict[str, dict[str, int]] = {step: {} for step in self._plan.steps}
        for (rule, code), number in sorted(self.by_rule.items()):
            counts, name = steps[self._plan.rules[rule].step], _OUTCOMES[code].value
            counts[name] = counts.get(name, 0) + number
        return steps


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a backfill runs.

    `steps`: only these. `limit`: at most that many keys a step. `at`: told of each point passed, so that tests can
    end the process there.
    """

    steps: tuple[str, ...]
    limit: int | None = None
    value_bytes_max: int = VALUE_BYTES_MAX
    on_progress: OnProgress | None = None
    at: Callable[[str], None] = lambda point: None


class Backfill:
    """One run. `reader` cannot write; `connect` makes connections that can, and is None in a dry run.

    To another server both are bridges, and the plan is as seen through them: see remote/bridge.py.

    After run(): `tally`, and `unmatched` with the keys that no rule matches.
    """

    def __init__(
        self,
        reader: Endpoint,
        connect: Callable[[], Endpoint] | None,
        plan: Plan,
        ledger: Ledger | None,
        lander: TickLander | None,
        options: Options,
    ) -> None:
        self._reader = reader
        self._connect = connect
        self._plan = plan
        self._ledger = ledger
        self._lander = lander
        self._options = options
        self._lister = None if connect is None else connect()
        self._listing = Listing(self._lister or reader, plan, options.steps, ahead=self._lister is not None)
        self._landings = _Landings()
        self._sized = _needs_sizes(reader, options.value_bytes_max)
        self._meter = ProgressMeter()
        self._told_s = 0.0
        self._step = ""
        self._copier: Copier | RemoteCopier | None = None
        self._noted: list[Row] = []
        self.tally = Tally(plan)

    @property
    def unmatched(self) -> dict[int, Unmatched]:
        """Keys that no rule matches, by source database, of what was scanned."""
        return self._listing.unmatched

    def run(self) -> None:
        """Do it. Raises PlanCollision before anything is written, EndpointError when the server is lost."""
        try:
            check_collisions(self._reader, self._plan)
            if self._connect is not None and self._ledger is not None and isinstance(self._reader, Bridge):
                self._copier = RemoteCopier(
                    cast("Callable[[], Bridge]", self._connect),
                    self._ledger,
                    self._plan.target_db % OTHER_SERVER,
                    self._on_done,
                    careful=not self._ledger.is_first_run,
                    at=self._options.at,
                )
                self._copier.settle_interrupted()
            elif self._connect is not None and self._ledger is not None:
                settle_interrupted(self._reader, self._plan, self._ledger)
                self._copier = Copier(
                    self._connect,
                    self._ledger,
                    self._plan.target_db,
                    self._on_done,
                    careful=not self._ledger.is_first_run,
                    at=self._options.at,
                )
            for step in self._options.steps:
                self._run_step(step)
            self._tell(force=True)
        finally:
            self._listing.close()
            if self._lister is not None:
                self._lister.close()
            self._landings.close()
            if self._copier is not None:
                self._copier.close()

    def _run_step(self, step: str) -> None:
        self._step = step
        left = self._options.limit
        for page in self._listing.pages(step) if left != 0 else ():
            if left is not None:
                page = _cut(page, left)
                left -= len(page.keys)
            for batch in self._batches(page):
                self._copy(batch)
            self._tell()
            if left == 0:
                break
        if self._copier is not None:
            self._copier.flush()
        self._land()
        self._tell(force=True)

    def _batches(self, page: Page) -> Iterator[Batch]:
        """Cut a page into batches, bounded in keys and bytes, without what is not copied."""
        page = self._without(page)
        if not page.keys:
            return
        if not self._sized:
            for at in range(0, len(page.keys), GROUP_KEYS):
                end = at + GROUP_KEYS
                yield Batch(page.db, page.keys[at:end], page.targets[at:end], page.rules[at:end])
            return
        sizes = memory_usage(self._reader, page.db, page.keys)
        if max(sizes) <= BATCH_BYTES // GROUP_KEYS:
            for at in range(0, len(page.keys), GROUP_KEYS):
                end = at + GROUP_KEYS
                yield Batch(page.db, page.keys[at:end], page.targets[at:end], page.rules[at:end])
            return
        batch, held = Batch(page.db, [], [], []), 0
        for place, size in enumerate(sizes):
            if size > self._options.value_bytes_max:
                self._too_big(page, place, size)
                continue
            alone = size > BIG_BYTES
            if batch.keys and (alone or held + size > BATCH_BYTES or len(batch.keys) == GROUP_KEYS):
                yield batch
                batch, held = Batch(page.db, [], [], []), 0
            batch.keys.append(page.keys[place])
            batch.targets.append(page.targets[place])
            batch.rules.append(page.rules[place])
            held += BATCH_BYTES if alone else size
        if batch.keys:
            yield batch

    def _without(self, page: Page) -> Page:
        """Take out what is skipped by a rule, and hash ticks, which are merged and not copied."""
        rules = self._plan.rules
        if not any(rules[rule].skip or rules[rule].kind == "hash_ticks" for rule in set(page.rules)):
            return page
        rest = Page(page.db, [], [], [])
        for key, target, index in zip(page.keys, page.targets, page.rules, strict=True):
            rule = rules[index]
            if rule.skip or (rule.kind == "hash_ticks" and self._lander is None):
                self.tally.add([index], [decide.SKIPPED])
            elif rule.kind == "hash_ticks":
                self._landings.put(1, stream_of(rule, key) or target, page.db, index, key)
            else:
                rest.keys.append(key)
                rest.targets.append(target)
                rest.rules.append(index)
        return rest

    def _too_big(self, page: Page, place: int, size: int) -> None:
        key, target, rule = page.keys[place], page.targets[place], page.rules[place]
        limit = self._options.value_bytes_max
        why = f"takes about {size:,} bytes, over the limit of {limit:,}: raise value_bytes_max to copy it"
        if self._ledger is not None and self._connect is not None:
            self._ledger.record(
                [
                    (rule, page.db, key, target, None, None, -1, decide.FAILED, why, key_hash(page.db, key)),
                ]
            )
        self.tally.add([rule], [decide.FAILED])
        self.tally.error(rule, page.db, key, target, why)

    def _copy(self, batch: Batch) -> None:
        if self._copier is not None:
            batch.careful = batch.db == self._plan.target_db  # a key may be its own target, which COPY refuses
            self._copier.put(batch)
            return
        outcomes, errors = self._would(batch)
        self._on_done(batch, outcomes, errors)

    def _would(self, batch: Batch) -> tuple[list[int | None], list[str | None]]:
        """Say what copying the batch would do, on a connection that cannot write."""
        if isinstance(self._reader, Bridge):
            known = {} if self._ledger is None else self._ledger.find(batch.db, batch.keys)
            decided = would(self._reader, batch, known, self._plan.target_db % OTHER_SERVER)
            for place, _ in decided.acts:
                decided.outcomes[place] = decide.COPIED
            return decided.outcomes, decided.errors
        lane = Lane(self._reader, self._plan.target_db)
        batch.careful = True
        lane.send_read(batch)
        reading = lane.receive_read()
        self._reader.call("UNWATCH")
        self._reader.db = -1  # the reading moved it: whoever needs a database selects it
        if reading.refused is not None:
            decided = decide.final(batch, decide.FAILED, reading.refused.message)
        else:
            known = {} if self._ledger is None else self._ledger.find(batch.db, batch.keys)
            decided = decide.decide_careful(batch, reading, known, self._plan.target_db)
        for place, _ in decided.acts:
            decided.outcomes[place] = decide.COPIED
        return decided.outcomes, decided.errors

    def _on_done(self, batch: Batch, outcomes: list[int | None], errors: list[str | None]) -> None:
        rules = self._plan.rules
        if None in outcomes:  # those come again in a later batch
            final = [place for place, outcome in enumerate(outcomes) if outcome is not None]
            self.tally.add([batch.rules[i] for i in final], [outcomes[i] or 0 for i in final])
        else:
            self.tally.add(batch.rules, outcomes)  # type: ignore[arg-type]
        if any(errors):
            for place, error in enumerate(errors):
                if error is not None and outcomes[place] in (decide.FAILED, decide.CHANGED_WHILE_COPYING):
                    self.tally.error(batch.rules[place], batch.db, batch.keys[place], batch.targets[place], error)
        if self._lander is not None and any(rules[rule].kind != "copy" for rule in set(batch.rules)):
            lost = (None, decide.FAILED, decide.EXPIRED)
            for place, index in enumerate(batch.rules):
                outcome = outcomes[place]
                if rules[index].kind != "copy" and outcome is not None and outcome not in lost:
                    self._landings.put(0, batch.targets[place], batch.db, index, batch.keys[place], outcome)

    def _land(self) -> None:
        """Put on the tape what this step copied, then merge its tick hashes into the streams."""
        if self._lander is None:
            return
        for (kind, target), items in self._landings.taken():
            if kind == 0:
                for db, index, key, outcome in items:
                    rule = self._plan.rules[index]
                    land = self._lander.stream if rule.kind == "ticks" else self._lander.ohlc
                    result = land(key, db, rule)
                    self._landed(result, index, db, target)
                    self._record_landed(result, index, db, target, outcome)
                    self._options.at("landed")
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
        if self._ledger is not None and self._connect is not None:
            self._ledger.record(rows)

    def _merge(self, target: bytes, items: Iterable[tuple[int, int, bytes, int]]) -> None:
        """Merge one symbol's tick hashes, from whatever databases and rules, in groups of bounded size."""
        assert self._lander is not None
        merged = False
        for (db, index), group in groupby(items, key=lambda item: item[:2]):
            rule = self._plan.rules[index]
            while keys := [key for _, _, key, _ in islice(group, _LAND_AT_ONCE)]:
                results = self._lander.hash_ticks(keys, db, rule)
                self._options.at("merged")
                self._record_merged(results, index, db, target)
                for result in results:
                    code = CODES[result.outcome]
                    self.tally.add([index], [code])
                    self._landed(result, index, db, target)
                    merged = merged or result.outcome is Outcome.COPIED
                self._tell()
        if merged:
            self._note_merged(target)

    def _record_merged(self, results: list[LandResult], index: int, db: int, target: bytes) -> None:
        if self._ledger is None or self._connect is None:
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
        if self._ledger is None or self._connect is None:
            return
        for index, rule in enumerate(self._plan.rules):
            if rule.kind != "ticks":
                continue
            key = target if rule.target_of(target) == target else None
            known = None if key is None else self._ledger.find_now(rule.source_db, key)
            if key is None or known is None or known.target != target:
                continue
            self._reader.select(self._plan.target_db)
            payload = self._reader.call("DUMP", target)
            if isinstance(payload, bytes):
                row: Row = (
                    index, rule.source_db, key, target, known.read, digest(payload), known.expire_ms,
                    decide.COPIED, "tick hashes were merged into it", key_hash(rule.source_db, key),
                )  # fmt: skip
                self._ledger.record([row])

    def _landed(self, result: LandResult, index: int, db: int, target: bytes) -> None:
        self.tally.ticks_landed += result.ticks
        self.tally.ticks_known += result.known
        if result.error is not None and result.outcome in (Outcome.FAILED, Outcome.CHANGED_WHILE_COPYING):
            self.tally.error(index, db, result.key, target, result.error)
        elif result.error is not None:
            self.tally.note(index, db, result.key, target, result.error)

    def _tell(self, *, force: bool = False) -> None:
        now_s = time.monotonic()
        if self._options.on_progress is None or (not force and now_s - self._told_s < _PROGRESS_EVERY_S):
            return
        self._told_s = now_s
        total = self._listing.total - self._listing.unmatched_count
        if self._options.limit is not None:
            total = min(total, self._options.limit * len(self._options.steps))
        self._meter.step = self._step
        self._options.on_progress(self._meter.update(self.tally.done, max(total, self.tally.done)))


class _Landings:
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


def check_collisions(reader: Endpoint, plan: Plan) -> None:
    """Raise PlanCollision, naming both keys, if two source keys would land on one target.

    Raises PlanInvalid if a key would land where a glob takes it up again, which no look at the rules tells.

    Only rules whose targets are not proved apart by their form are looked at (Plan.unproved), on disk.
    """
    doubtful = plan.unproved()
    if not doubtful:
        return
    globs = [rule.glob for rule in plan.rules if rule.glob and rule.source_db == plan.target_db and not rule.skip]
    onward = [(glob, glob_pattern(glob.encode())) for glob in globs]
    db = apsw.Connection("")
    try:
        db.execute("CREATE TABLE claim(target BLOB PRIMARY KEY, db INTEGER, key BLOB) WITHOUT ROWID")
        for source_db in dict.fromkeys(plan.rules[index].source_db for index in sorted(doubtful)):
            for key, target, rule in _claims(reader, plan, source_db, doubtful):
                if onward and (source_db, key) != (plan.target_db, target):
                    _refuse_onward(plan, key, target, onward)
                held = list(db.execute("SELECT db, key FROM claim WHERE target = ?", (target,)))
                if held and held[0] != (source_db, key):
                    _raise_collision(plan, target, held[0], (source_db, key), rule)
                if not held:
                    db.execute("INSERT INTO claim VALUES(?,?,?)", (target, source_db, key))
    finally:
        db.close()


def _refuse_onward(plan: Plan, key: bytes, target: bytes, onward: list[tuple[str, re.Pattern[bytes]]]) -> None:
    for glob, pattern in onward:
        if pattern.fullmatch(target):
            names = [name.decode("utf-8", "backslashreplace") for name in (key, target)]
            raise PlanInvalid(
                f"{names[0]!r} would become {names[1]!r} in db {plan.target_db}, which {glob!r} matches as well: "
                "each run would copy it on",
                hint="give names that the glob does not match, or another database; nothing was written",
            )


def _claims(
    reader: Endpoint, plan: Plan, source_db: int, doubtful: frozenset[int]
) -> Iterator[tuple[bytes, bytes, Rule]]:
    matcher = plan.matcher(source_db)
    globs = {plan.rules[i].prefix_glob for i in doubtful if plan.rules[i].source_db == source_db}
    glob = globs.pop() if len(globs) == 1 else b"*"
    reader.select(source_db)
    cursor = b"0"
    while True:
        cursor, keys = reader.call("SCAN", cursor, "MATCH", glob, "COUNT", 1000)
        hits = [(key, hit) for key in keys if (hit := matcher.match(key)) is not None]
        typed = [key for key, hit in hits if hit[1].types]
        kinds = dict(zip(typed, reader.pipeline([("TYPE", key) for key in typed]), strict=True))
        for key, first in hits:
            kind = kinds.get(key)
            hit = first if kind is None else matcher.match_type(key, _text(kind))
            if hit is not None and hit[0] in doubtful:
                yield key, hit[2], hit[1]
        if cursor == b"0":
            return


def _text(kind: Any) -> str:
    return "none" if isinstance(kind, ReplyError) else kind.decode()


def _raise_collision(plan: Plan, target: bytes, one: tuple[int, bytes], other: tuple[int, bytes], rule: Rule) -> None:
    names = [f"db {db} {key.decode('utf-8', 'backslashreplace')!r}" for db, key in (one, other)]
    shown = target.decode("utf-8", "backslashreplace")
    raise PlanCollision(
        f"{names[0]} and {names[1]} would both become {shown!r} in db {plan.target_db}",
        hint="give one of their rules another target, or skip it; nothing was written",
        keys=(one, other),
        target=target,
        rule=rule.pattern,
    )


def settle_interrupted(reader: Endpoint, plan: Plan, ledger: Ledger) -> int:
    """Settle what a killed run had intended: a target that holds what was read is a copy made. Returns how many.

    What was not carried out, or was changed by somebody since, is marked so and met again by the next
    listing.
    """
    settled = 0
    for batch, group in groupby(ledger.unsettled(), key=lambda pair: pair[0]):
        entries = [entry for _, entry in group]
        changes = _judge(reader, plan, entries)
        ledger.settle(batch, changes)
        settled += len(entries)
    return settled


def _judge(reader: Endpoint, plan: Plan, entries: list[Entry]) -> list[Row | None]:
    lane = Lane(reader, plan.target_db)
    acts = [place for place, entry in enumerate(entries) if entry.outcome is Outcome.COPIED]
    changes: list[Row | None] = [None] * len(entries)
    if not acts:
        return changes
    targets = [entries[place].target for place in acts]
    lane.send_read(Batch(plan.target_db, targets, targets, [0] * len(acts)))
    reading = lane.receive_read()
    reader.call("UNWATCH")
    reader.db = -1
    for place, held, expire_ms in zip(acts, reading.sources, reading.source_expiry, strict=True):
        entry = entries[place]
        if not (isinstance(held, bytes) and digest(held) == entry.written and expire_ms == entry.expire_ms):
            changes[place] = (
                entry.rule, entry.source_db, entry.key, entry.target, entry.read, None, entry.expire_ms,
                decide.INTENDED, "not done, the run was killed", 0,
            )  # fmt: skip
    return changes


def _needs_sizes(reader: Endpoint, value_bytes_max: int) -> bool:
    """Return whether the size of each key must be asked for before it is read.

    It costs a tenth of the speed. All values of the server together are a bound on any one of them, and on any batch.
    """
    try:
        info = parse_info(reader.call("INFO", "memory"))
    except EndpointError as error:
        if error.facts.get("code") != "NOPERM":
            raise
        return True
    return int(info.get("used_memory_dataset", 2**62)) > min(DATASET_BYTES_SMALL, value_bytes_max)


def _cut(page: Page, limit: int) -> Page:
    if len(page.keys) <= limit:
        return page
    return Page(page.db, page.keys[:limit], page.targets[:limit], page.rules[:limit])


def fault_point() -> Callable[[str], None]:
    """Return what `Options.at` is by default: nothing, or, for fault tests, a kill at
    ONETAPE_KILL_AT=point[:n].
    """
    wanted = os.environ.get("ONETAPE_KILL_AT", "")
    if not wanted:
        return lambda point: None
    name, _, number = wanted.partition(":")
    left = [int(number or 1)]

    def at(point: str) -> None:
        if point == name:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), 9)

    return at
