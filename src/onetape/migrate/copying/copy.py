"""The copy: keys move in batches, each only if neither side changed since it was read.

A batch goes through one connection in two exchanges (ARCHITECTURE.md says why this is safe), several batches,
each on its own, side by side as a group that shares its ledger transactions:

    read      WATCH the sources; DUMP and PEXPIRETIME of each. Careful batches: the same for the targets.
    intend    one ledger transaction: key, target, digest, expiry
    act       MULTI, COPY ..., EXEC
    record    the outcomes, in the ledger transaction of a later batch

A first copy has no REPLACE: where a target exists the server itself refuses, which says more than a WATCH on
it. Such keys, and all keys once the ledger knows of earlier runs, make careful batches: both sides are read
under WATCH, and a target is replaced only where it still holds what we wrote.

Servers up to Redis 7.2 compare every key with all that the same connection watches already, and a long
transaction is felt by others, so batches are small; each ledger transaction has its price, so groups are
larger. Groups take turns, so that neither side waits: while the client digests and records what one has read,
the server acts for the second and reads for the third.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from onetape.errors import EndpointError
from onetape.migrate.copying import decide
from onetape.migrate.copying.decide import Decided
from onetape.migrate.copying.lane import Batch, Lane, Reading
from onetape.migrate.ledger.entry import Row
from onetape.migrate.ledger.ledger import Ledger
from onetape.migrate.wire.endpoint import Endpoint, ReplyError, is_lost

#: Keys of a group, and of each of its batches. Measured: with 400 and 200 the backfill is no faster to speak of, and
#: a concurrent client's p99 is 5 to 6 ms; with 500 COPYs in one transaction it is more.
GROUP_KEYS = 200
BATCH_KEYS = 100
#: Groups on their way, and the connections each may take.
GROUPS = 3
LANES = GROUP_KEYS // BATCH_KEYS
#: A key that changed under us this often in a row has a busy writer: it is counted, and a later run gets it.
ATTEMPTS_MAX = 10
#: How often the same batch survives the loss of its connection before the run ends, to be resumed.
LOSSES_MAX = 5

#: What is told of a batch: its keys; for each the outcome's code, or None if it comes again; and the error.
OnDone = Callable[[Batch, "list[int | None]", "list[str | None]"], None]


class _Flight(msgspec.Struct):
    """A batch on a lane: reading until `decided` is there, then acting."""

    lane: Lane
    batch: Batch
    decided: Decided | None = None


class _Group(msgspec.Struct):
    """Batches side by side, on the first of these lanes. `ledger_batch`: where all their rows are, None if none."""

    lanes: list[Lane]
    flights: list[_Flight]
    ledger_batch: int | None = None


class Copier:
    """Copies batches through two connections and reports each key exactly once.

    `on_done` is called with every batch whose outcomes are in the ledger. `at` is called with the name of
    each point passed ("read", "intended", "acted", "recorded"): fault tests end the process there. `connect`
    makes a connection that may write; it is called again when one is lost, and raises EndpointError when it
    gives up.
    """

    def __init__(
        self,
        connect: Callable[[], Endpoint],
        ledger: Ledger,
        target_db: int,
        on_done: OnDone,
        *,
        careful: bool = False,
        at: Callable[[str], None] = lambda point: None,
    ) -> None:
        self._connect = connect
        self._ledger = ledger
        self._target_db = target_db
        self._on_done = on_done
        self._careful = careful
        self._at = at
        self._idle = self._lanes()
        self._reading: deque[_Group] = deque()
        self._acting: deque[_Group] = deque()
        self._losses = 0
        self._slack_ms = 0 if self._idle[0][0].endpoint.has_expire_time else decide.SLACK_BEFORE_7_MS
        self._again: deque[Batch] = deque()
        self._unsettled: list[tuple[int, list[Row | None]]] = []
        self._unreported: list[tuple[Batch, list[int | None], list[str | None]]] = []

    def _lanes(self) -> list[list[Lane]]:
        return [[Lane(self._connect(), self._target_db) for _ in range(LANES)] for _ in range(GROUPS)]

    def put(self, batch: Batch) -> None:
        """Take on a batch of any size, better GROUP_KEYS. Raises EndpointError if the server is lost for good,
        LedgerUnusable.
        """
        if self._careful:
            batch.careful = True
        for at in range(0, len(batch.keys), GROUP_KEYS):
            self._turn_with(batch.cut(at, min(at + GROUP_KEYS, len(batch.keys)), BATCH_KEYS))
        while self._again:
            self._turn_with(self._those_again())

    def flush(self) -> None:
        """Finish and record all that was taken on."""
        while self._again or self._reading or self._acting:
            self._turn_with(self._those_again())
        self._settle()

    def close(self) -> None:
        """Close the connections."""
        for lanes in (*self._idle, *(group.lanes for group in (*self._reading, *self._acting))):
            for lane in lanes:
                lane.endpoint.close()

    def _those_again(self) -> list[Batch]:
        return [self._again.popleft() for _ in range(min(LANES, len(self._again)))]

    def _turn_with(self, batches: list[Batch]) -> None:
        try:
            self._take_turn(batches)
        except EndpointError as error:
            if not is_lost(error):
                raise
            self._recover(batches, error)

    def _take_turn(self, batches: list[Batch]) -> None:
        """Move the oldest reading to its act, finish the oldest act, and give the batches to the lanes that are
        free.
        """
        # One reading is left for later: the act sent here has until the next turn to be done.
        while self._reading and (not batches or (not self._idle and len(self._reading) > 1)):
            self._act(self._reading[0])
            self._acting.append(self._reading.popleft())
        if self._acting and (not batches or not self._idle):
            self._finish(self._acting[0])
            self._idle.append(self._acting.popleft().lanes)
        if batches:
            lanes = self._idle.pop()
            # More lanes than batches: put() and _those_again() see to it.
            group = _Group(lanes, [_Flight(lane, batch) for lane, batch in zip(lanes, batches, strict=False)])
            self._reading.append(group)
            for flight in group.flights:
                flight.lane.send_read(flight.batch)

    def _act(self, group: _Group) -> None:
        readings = [flight.lane.receive_read() for flight in group.flights]
        self._at("read")
        rows: list[Row] = []
        decisions = []
        for flight, reading in zip(group.flights, readings, strict=True):
            decided = self._decide(flight.batch, reading)
            decisions.append(decided)
            rows += decided.rows
        if rows:
            group.ledger_batch = self._ledger.intend(rows, self._unsettled)
            self._report()
            self._at("intended")
        for flight, decided in zip(group.flights, decisions, strict=True):
            flight.decided = decided
        for flight, decided in zip(group.flights, decisions, strict=True):
            flight.lane.send_act(decided.acts)

    def _decide(self, batch: Batch, reading: Reading) -> Decided:
        if reading.refused is not None:
            return self._split(batch, reading.refused)
        if batch.careful:
            known = self._ledger.find(batch.db, batch.keys)
            return decide.decide_careful(batch, reading, known, self._target_db, self._slack_ms)
        return decide.decide_first(batch, reading)

    def _split(self, batch: Batch, refused: ReplyError) -> Decided:
        """The server would not even let us watch: find the key it minds, and go on with the others."""
        if len(batch.keys) == 1:
            return decide.final(batch, decide.FAILED, refused.message)
        half = len(batch.keys) // 2
        self._again.append(batch.part(range(half), batch.attempts))
        self._again.append(batch.part(range(half, len(batch.keys)), batch.attempts))
        nothing: list[Any] = [None] * len(batch.keys)
        return Decided([], [], nothing, nothing, nothing)

    def _finish(self, group: _Group) -> None:
        answers = [flight.lane.receive_act() for flight in group.flights]
        self._at("acted")
        self._losses = 0
        changes: list[Row | None] = []
        for flight, (queued, result) in zip(group.flights, answers, strict=True):
            batch, decided = flight.batch, flight.decided
            assert decided is not None
            changed: list[Row | None] = []
            if decided.acts and result is None:
                changed = self._refused(batch, decided)
            elif decided.acts:
                changed = self._results(batch, decided, queued, result)
            changes += [*changed, *[None] * (len(decided.rows) - len(changed))]
            self._unreported.append((batch, decided.outcomes, decided.errors))
        self._settle_later(group, changes)
        if group.ledger_batch is None:  # no ledger transaction of its own that could carry the ones before it
            self._settle()

    def _settle_later(self, group: _Group, changes: list[Row | None]) -> None:
        if group.ledger_batch is not None:
            self._unsettled.append((group.ledger_batch, changes))

    def _results(self, batch: Batch, decided: Decided, queued: list[Any], result: Any) -> list[Row | None]:
        """Write the outcomes of the acts into `decided`; return the ledger rows that came otherwise than
        intended.
        """
        if result.__class__ is list and result.count(1) == len(result):
            if len(result) == len(batch.keys):
                decided.outcomes = [decide.COPIED] * len(result)
            else:
                for place, _ in decided.acts:
                    decided.outcomes[place] = decide.COPIED
            return []
        # An aborted transaction did nothing: those that could not be queued are to blame, the others go
        # again.
        aborted = isinstance(result, ReplyError)
        guilty = any(isinstance(reply, ReplyError) for reply in queued)
        replies = queued if guilty else [result] * len(queued) if aborted else result
        changes: list[Row | None] = [None] * len(decided.acts)
        again: list[int] = []
        for at, ((place, _), reply) in enumerate(zip(decided.acts, replies, strict=True)):
            if isinstance(reply, ReplyError):
                decided.outcomes[place], decided.errors[place] = decide.FAILED, reply.message
                changes[at] = decide.unwritten(decided.rows[at], decide.FAILED, reply.message)
            elif reply == 1:
                decided.outcomes[place] = decide.COPIED
            else:
                again.append(place)
                changes[at] = _tried_again(decided.rows[at])
        if again:
            self._again.append(batch.part(again, batch.attempts))
        return changes

    def _refused(self, batch: Batch, decided: Decided) -> list[Row | None]:
        """Something changed between reading and EXEC, so nothing was done.

        Single out the culprits and go again.
        """
        places = [place for place, _ in decided.acts]
        before, batch.seen = batch.seen, decided.seen
        attempts = batch.attempts + 1 if len(places) == 1 else 0  # in company, others may have been the cause
        if len(places) == 1 and attempts >= ATTEMPTS_MAX:
            place, why = places[0], f"it changed {attempts} times in a row while it was copied"
            decided.outcomes[place], decided.errors[place] = decide.CHANGED_WHILE_COPYING, why
            return [decide.unwritten(decided.rows[0], decide.CHANGED_WHILE_COPYING, why)]
        moved = [] if before is None else [p for p in places if before[p] != decided.seen[p]]
        still = places if len(moved) == len(places) else [p for p in places if p not in set(moved)]
        if before is None or len(places) == 1 or 0 < len(moved) < len(places):
            self._again.append(batch.part(still, attempts))
            self._again.extend(batch.part([place], attempts) for place in moved if place not in still)
        else:
            half = (len(places) + 1) // 2
            self._again.append(batch.part(places[:half], attempts))
            self._again.append(batch.part(places[half:], attempts))
        return [_tried_again(row) for row in decided.rows[: len(places)]]

    def _recover(self, batches: list[Batch], error: EndpointError) -> None:
        """Connect again. Batches whose answers were lost go again, knowing what they may have written."""
        self._losses += 1
        if self._losses > LOSSES_MAX:
            raise error
        self.close()
        groups = [*self._acting, *self._reading]
        self._acting.clear()
        self._reading.clear()
        for group in groups:
            changes: list[Row | None] = []
            for flight in group.flights:
                if any(flight.batch is batch for batch in batches):
                    continue
                if flight.decided is not None:
                    changes += self._forget(flight.batch, flight.decided)
                else:
                    self._again.append(flight.batch.part(range(len(flight.batch.keys)), flight.batch.attempts))
            self._settle_later(group, changes)
        self._again.extend(batches)
        self._idle = self._lanes()

    def _forget(self, batch: Batch, decided: Decided) -> list[Row | None]:
        places = [place for place, _ in decided.acts]
        if places:
            mine: list[tuple[bytes, int] | None] = [None] * len(batch.keys)
            for place, row in zip(places, decided.rows, strict=False):
                mine[place] = (row[4] or b"", row[6])
            batch.mine = mine
            self._again.append(batch.part(places, batch.attempts))
        self._unreported.append((batch, decided.outcomes, decided.errors))
        tried = [_tried_again(row) for row in decided.rows[: len(places)]]
        return [*tried, *[None] * (len(decided.rows) - len(tried))]

    def _settle(self) -> None:
        for batch, changes in self._unsettled:
            self._ledger.settle(batch, changes)
        self._report()

    def _report(self) -> None:
        """Tell of all batches whose outcomes the ledger now has."""
        if self._unsettled:
            self._at("recorded")
        self._unsettled.clear()
        reports, self._unreported = self._unreported, []
        for batch, outcomes, errors in reports:
            self._on_done(batch, outcomes, errors)


def _tried_again(row: Row) -> Row:
    # Its next row tells the end; this one is to say that nothing was written, should the next never come.
    return decide.unwritten(row, decide.INTENDED, "not done, a side had changed; tried again")
