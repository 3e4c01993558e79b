"""The backfill: all keys of a plan, step by step, brought over and landed, however often it is run or killed.

Keys of a step are listed, copied in batches and counted; then what its rules put on the tape is landed:
streams and bars of the step first, and last its tick hashes, symbol by symbol, into the streams that are now
there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Literal, cast

import msgspec

from onetape.errors import EndpointError, MemoryShort
from onetape.migrate.backfill.collisions import check_collisions
from onetape.migrate.backfill.interrupted import settle_interrupted
from onetape.migrate.backfill.landings import Landings
from onetape.migrate.backfill.tally import Tally
from onetape.migrate.copying import bulk, decide, slice_decide
from onetape.migrate.copying.bulk import BulkCopier
from onetape.migrate.copying.copy import GROUP_KEYS, Copier
from onetape.migrate.copying.lane import Batch, Lane
from onetape.migrate.copying.slice_decide import SLICE_BYTES, Big
from onetape.migrate.copying.slices import PAUSE_MS_MAX, Slicer
from onetape.migrate.keys import content
from onetape.migrate.landing.hash_ticks import stream_of
from onetape.migrate.landing.landing import TickLander
from onetape.migrate.ledger.entry import Known, key_hash
from onetape.migrate.ledger.ledger import Ledger
from onetape.migrate.plans.plan import Plan
from onetape.migrate.remote.bridge import OTHER_SERVER, Bridge
from onetape.migrate.remote.copy import RemoteCopier, would
from onetape.migrate.survey.listing import Listing, Page, Unmatched, memory_usage
from onetape.migrate.survey.sizes import Sizes
from onetape.migrate.throttling.pacing import Pacing
from onetape.migrate.wire.endpoint import Endpoint, parse_info
from onetape.progress import Progress, ProgressMeter

#: Keys over it are read alone, so that memory holds one of them and not two hundred.
BIG_BYTES = 1024 * 1024
BATCH_BYTES = 8 * 1024 * 1024
#: A value over it is not read at all: a DUMP of it would stop the server for seconds and double its memory. A lower
#: limit holds for what is copied in slices too.
VALUE_BYTES_MAX = 512 * 1024 * 1024
#: Up to here a server's whole data may be read without asking how big each key is: memory is bounded by it.
DATASET_BYTES_SMALL = 192 * 1024 * 1024

#: Up to here the same holds for how long one COPY can be, where big keys are copied in slices.
DATASET_BYTES_UNSLICED = 4 * SLICE_BYTES
#: Big keys are copied when this many have been met, and at the end of a step.
_BIGS_AT_ONCE = 1000

_PROGRESS_EVERY_S = 0.2

OnProgress = Callable[[Progress], None]
Digests = Literal["copy", "verify"]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a backfill runs.

    `steps`: only these. `limit`: at most that many keys a step. `digests`: when they are taken, before each copy or by
    the verify that follows, which is for writers that write both sides (see bulk.py). `workers`: connections of a copy
    without digests. `pace`: asked before anything is sent. `slices`: keys over a size are copied in slices, so that the
    server never stands still for long; it costs asking for the size of every key. `pause_ms_max`: how long it may for a
    big key that is never quiet. `at`: told of each point passed, so that tests can end the process there.
    """

    steps: tuple[str, ...]
    limit: int | None = None
    value_bytes_max: int = VALUE_BYTES_MAX
    on_progress: OnProgress | None = None
    digests: Digests = "copy"
    workers: int = bulk.WORKERS
    pace: Pacing | None = None
    slices: bool = True
    pause_ms_max: float = PAUSE_MS_MAX
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
        self._options = options
        self._lister = None if connect is None else connect()
        watches = options.digests == "copy" or (ledger is not None and not ledger.is_first_run)
        self._listing = Listing(
            self._lister or reader, plan, options.steps, ahead=self._lister is not None, to_watch=watches
        )
        # To another server a key travels as its dump.
        self._slicing = options.slices and not isinstance(reader, Bridge)
        self._sized = _needs_sizes(reader, options.value_bytes_max, DATASET_BYTES_UNSLICED if self._slicing else None)
        self._sizes: Sizes | None = None
        self._slicer: Slicer | None = None
        self._bigs: list[Big] = []
        self._meter = ProgressMeter()
        self._told_s = 0.0
        self._step = ""
        self._copier: Copier | BulkCopier | RemoteCopier | None = None
        self.tally = Tally(plan)
        self._landings: Landings | None = None
        if lander is not None:
            remembered = None if connect is None else ledger
            self._landings = Landings(
                reader, plan, remembered, lander, self.tally, wait=self._wait, tell=self._tell, at=options.at
            )

    @property
    def unmatched(self) -> dict[int, Unmatched]:
        """Keys that no rule matches, by source database, of what was scanned."""
        return self._listing.unmatched

    @property
    def waited(self) -> dict[str, float]:
        """Seconds that the pace held it back, by the kind of reason."""
        return {} if self._options.pace is None else self._options.pace.waited()

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
                self._copier = self._new_copier(self._connect, self._ledger)
            self._prepare_slices()
            for step in self._options.steps:
                self._run_step(step)
            self._tell(force=True)
        except MemoryShort:
            if self._copier is not None:
                self._copier.flush()  # what was sent is over before the run ends
            raise
        finally:
            self._listing.close()
            for opened in (self._sizes, self._slicer):
                if opened is not None:
                    opened.close()
            if self._lister is not None:
                self._lister.close()
            if self._landings is not None:
                self._landings.close()
            if self._copier is not None:
                self._copier.close()

    def _new_copier(self, connect: Callable[[], Endpoint], ledger: Ledger) -> Copier | BulkCopier:
        target_db, at, careful = self._plan.target_db, self._options.at, not ledger.is_first_run
        if self._options.digests == "copy":
            return Copier(connect, ledger, target_db, self._on_done, careful=careful, at=at)
        rules = self._plan.rules
        merges = any(rule.kind == "hash_ticks" for rule in rules)  # into copies, which must be known by their digests
        closely = frozenset(i for i, rule in enumerate(rules) if rule.kind == "ticks" and merges)
        return BulkCopier(
            connect, ledger, target_db, self._on_done, careful=careful, closely=closely,
            workers=self._options.workers, at=at,
        )  # fmt: skip

    def _prepare_slices(self) -> None:
        pace = self._options.pace
        if pace is not None:
            pace.on_wait, pace.on_stop = self._tell, self._come_to_rest
        if self._connect is None or self._ledger is None or isinstance(self._reader, Bridge):
            return
        if self._sized:
            self._sizes = Sizes(self._connect())
        if self._slicing:
            self._slicer = Slicer(
                self._connect,
                self._ledger,
                self._plan.target_db,
                self._count,
                pace=pace,
                pause_ms_max=self._options.pause_ms_max,
                at=self._options.at,
            )

    def _come_to_rest(self) -> None:
        """Finish what is on its way, before nothing is sent for perhaps hours."""
        if self._copier is not None:
            self._copier.flush()

    def _run_step(self, step: str) -> None:
        self._step = step
        for page, sizes in self._with_sizes(self._pages(step)):
            for batch, size in self._batches(page, sizes):
                self._wait(len(batch.keys), size)
                self._copy(batch)
            if len(self._bigs) >= _BIGS_AT_ONCE:
                self._copy_bigs()
            self._tell()
        self._copy_bigs()
        if self._landings is not None:
            self._landings.land()
        self._tell(force=True)

    def _pages(self, step: str) -> Iterator[Page]:
        """Yield the pages of a step within the limit, without what is not copied."""
        left = self._options.limit
        if left == 0:
            return
        for page in self._listing.pages(step):
            if left is not None:
                page = _cut(page, left)
                left -= len(page.keys)
            page = self._without(page)
            if page.keys:
                yield page
            if left == 0:
                return

    def _with_sizes(self, pages: Iterator[Page]) -> Iterator[tuple[Page, list[int] | None]]:
        if not self._sized:
            return ((page, None) for page in pages)
        if self._sizes is not None:
            return iter(self._sizes.of(pages))
        return ((page, memory_usage(self._reader, page.db, page.keys)) for page in pages)

    def _wait(self, keys: int, size: int = 0) -> None:
        pace = self._options.pace
        if pace is not None:
            pace.left = max(0, self._total() - self.tally.done)
            pace.wait(keys, size)

    def _copy_bigs(self) -> None:
        """Copy what was put aside, after all that is on its way; at the end of a step there is nothing else left."""
        if self._copier is not None:
            self._copier.flush()
        while self._bigs:
            bigs, self._bigs = self._bigs, []
            for big in bigs:
                if self._slicer is not None:
                    self._wait(1, big.size)
                    self._slicer.put(big)
                else:
                    known = {} if self._ledger is None else self._ledger.find(big.db, [big.key])
                    done = slice_decide.would(self._reader, big, self._plan.target_db, known.get(big.key))
                    self._count(big.batch(), [done.outcome], [done.error])
                self._tell()

    def _batches(self, page: Page, sizes: list[int] | None) -> Iterator[tuple[Batch, int]]:
        """Cut a page into batches, bounded in keys and bytes, each with its bytes, 0 where they are not known."""
        pace = self._options.pace
        whole = GROUP_KEYS if self._options.digests == "copy" else bulk.BATCH_KEYS
        most = whole if pace is None or pace.batch_keys is None else min(whole, pace.batch_keys)
        if sizes is None or max(sizes) <= BATCH_BYTES // whole:
            for at in range(0, len(page.keys), most):
                end = at + most
                batch = Batch(page.db, page.keys[at:end], page.targets[at:end], page.rules[at:end])
                yield batch, 0 if sizes is None else sum(sizes[at:end])
            return
        kinds = self._big_kinds(page, sizes)
        batch, held = Batch(page.db, [], [], []), 0
        for place, size in enumerate(sizes):
            limit = self._options.value_bytes_max
            if kinds.get(place) in content.LENGTH and (size <= limit or limit == VALUE_BYTES_MAX):
                self._bigs.append(Big(page.rules[place], page.db, page.keys[place], page.targets[place], size))
                continue
            if size > limit:
                self._too_big(page, place, size)
                continue
            alone = size > BIG_BYTES
            if batch.keys and (alone or held + size > BATCH_BYTES or len(batch.keys) >= most):
                yield batch, held
                batch, held = Batch(page.db, [], [], []), 0
            batch.keys.append(page.keys[place])
            batch.targets.append(page.targets[place])
            batch.rules.append(page.rules[place])
            held += BATCH_BYTES if alone else size
        if batch.keys:
            yield batch, held

    def _big_kinds(self, page: Page, sizes: list[int]) -> dict[int, bytes]:
        """Return the types of the keys that may have to be copied in slices, by place."""
        places = [place for place, size in enumerate(sizes) if size > SLICE_BYTES] if self._slicing else []
        if not places:
            return {}
        self._reader.select(page.db)
        replies = self._reader.pipeline([("TYPE", page.keys[place]) for place in places])
        return {p: kind for p, kind in zip(places, replies, strict=True) if isinstance(kind, bytes)}

    def _without(self, page: Page) -> Page:
        """Take out what is skipped by a rule, and hash ticks, which are merged and not copied."""
        rules = self._plan.rules
        if not any(rules[rule].skip or rules[rule].kind == "hash_ticks" for rule in set(page.rules)):
            return page
        rest = Page(page.db, [], [], [])
        for key, target, index in zip(page.keys, page.targets, page.rules, strict=True):
            rule = rules[index]
            if not rule.skip and rule.kind != "hash_ticks":
                rest.keys.append(key)
                rest.targets.append(target)
                rest.rules.append(index)
            elif rule.skip or self._landings is None:
                self.tally.add([index], [decide.SKIPPED])
            else:
                self._landings.put(1, stream_of(rule, key) or target, page.db, index, key)
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
        if self._slicer is not None and decide.NEWER_TARGET_KEPT in outcomes:
            outcomes = self._without_sliced(batch, outcomes)
        self._count(batch, outcomes, errors)

    def _count(self, batch: Batch, outcomes: list[int | None], errors: list[str | None]) -> None:
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
        if self._landings is not None and any(rules[rule].kind != "copy" for rule in set(batch.rules)):
            lost = (None, decide.FAILED, decide.EXPIRED)
            for place, index in enumerate(batch.rules):
                outcome = outcomes[place]
                if rules[index].kind != "copy" and outcome is not None and outcome not in lost:
                    self._landings.put(0, batch.targets[place], batch.db, index, batch.keys[place], outcome)

    def _without_sliced(self, batch: Batch, outcomes: list[int | None]) -> list[int | None]:
        """Put aside what an earlier run copied in slices: a dump does not tell whether it is still what we wrote."""
        kept = [place for place, outcome in enumerate(outcomes) if outcome == decide.NEWER_TARGET_KEPT]
        keys = [batch.keys[place] for place in kept]
        if self._ledger is None:
            return outcomes
        known = self._ledger.find(batch.db, keys)
        again = [place for place in kept if _was_sliced(known.get(batch.keys[place]))]
        if not again:
            return outcomes
        places = [batch.keys[place] for place in again]
        for place, size in zip(again, memory_usage(self._reader, batch.db, places), strict=True):
            big = Big(batch.rules[place], batch.db, batch.keys[place], batch.targets[place], size, again=True)
            self._bigs.append(big)
        return [None if place in again else outcome for place, outcome in enumerate(outcomes)]

    def _tell(self, *, force: bool = False) -> None:
        now_s = time.monotonic()
        if self._options.on_progress is None or (not force and now_s - self._told_s < _PROGRESS_EVERY_S):
            return
        self._told_s = now_s
        self._meter.step = self._step
        progress = self._meter.update(self.tally.done, max(self._total(), self.tally.done))
        pace = self._options.pace
        if pace is not None and pace.reason is not None:
            progress = msgspec.structs.replace(progress, reason=pace.reason)
        self._options.on_progress(progress)

    def _total(self) -> int:
        total = self._listing.total - self._listing.unmatched_count
        if self._options.limit is not None:
            total = min(total, self._options.limit * len(self._options.steps))
        return total


def _was_sliced(known: Known | None) -> bool:
    return known is not None and slice_decide.is_content_digest(known.written)


def _needs_sizes(reader: Endpoint, value_bytes_max: int, unsliced_max: int | None) -> bool:
    """Return whether the size of each key must be asked for before it is read.

    It costs a tenth of the speed. All values of the server together are a bound on any one of them, and on any batch.
    """
    try:
        info = parse_info(reader.call("INFO", "memory"))
    except EndpointError as error:
        if error.facts.get("code") != "NOPERM":
            raise
        return True
    return int(info.get("used_memory_dataset", 2**62)) > min(
        DATASET_BYTES_SMALL, value_bytes_max, unsliced_max or DATASET_BYTES_SMALL
    )


def _cut(page: Page, limit: int) -> Page:
    if len(page.keys) <= limit:
        return page
    return Page(page.db, page.keys[:limit], page.targets[:limit], page.rules[:limit])
