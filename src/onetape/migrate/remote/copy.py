"""The copy to another server: keys move in batches, over nothing or over what we wrote, and what lands is read back.

A batch takes three exchanges (see lane.py), several batches, each on a lane of its own, side by side. Intent is in the
ledger before the act, as on one server, and the same question decides what a target is: does it hold what the ledger
says we wrote? A server of another version, or with other settings, may keep a value in another encoding: then what it
holds is written into the ledger (REENCODED), and where the ledger does not know, the contents are compared.

A source that changed while its copy was on its way goes again, knowing that the target is ours. Unlike on one server a
key whose writer never rests may so end as "changed_while_copying" with an older value in place; the next run goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import groupby, repeat
from typing import Any

import msgspec

from onetape.errors import EndpointError
from onetape.migrate.copying import decide
from onetape.migrate.copying.decide import Decided
from onetape.migrate.copying.lane import Batch, Lane, Reading
from onetape.migrate.keys.dump import digest
from onetape.migrate.keys.payload import REFUSED_CONTENT, REFUSED_VERSION, told
from onetape.migrate.ledger.entry import REENCODED, Entry, Outcome, Row
from onetape.migrate.ledger.ledger import Ledger
from onetape.migrate.remote.bridge import Bridge
from onetape.migrate.remote.cluster import Cluster
from onetape.migrate.remote.decide import decide_remote, found_equal, is_equal, unsure, would
from onetape.migrate.remote.lane import CHANGED, Answer, ClusterReads, ClusterRestores, Item, Mark, RemoteLane
from onetape.migrate.wire.endpoint import ReplyError, is_lost

#: Keys of a batch, which is one ledger transaction and one transaction of the target.
BATCH_KEYS = 200
#: Batches on their way: while the client works at one, the source reads for some and the target restores others.
LANES = 4
#: Connections to the source that share a batch.
SOURCES = 2
#: See onetape.migrate.copying.copy.
ATTEMPTS_MAX = 10
LOSSES_MAX = 5
_FOOTER_BYTES = 10

OnDone = Callable[[Batch, "list[int | None]", "list[str | None]"], None]


class _Flight(msgspec.Struct):
    """A batch on a lane; `steps` is advanced when its next answer is wanted."""

    lane: RemoteLane
    batch: Batch
    steps: Iterator[None] | None = None
    decided: Decided | None = None
    ledger_batch: int | None = None


class RemoteCopier:
    """Copies batches to another server and reports each key exactly once; see onetape.migrate.copying.copy.Copier.

    `connect` makes a bridge whose target may be written; it is called again when a connection is lost, and raises
    EndpointError when it gives up. `target_db` is the database on the target's server.
    """

    def __init__(
        self,
        connect: Callable[[], Bridge],
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
        self._looker: Bridge | None = None
        self._flying: deque[_Flight] = deque()
        self._again: deque[Batch] = deque()
        self._losses = 0
        self._unsettled: list[tuple[int, list[Row | None]]] = []
        self._unreported: list[tuple[Batch, list[int | None], list[str | None]]] = []

    def _lanes(self) -> list[RemoteLane]:
        return [self._lane() for _ in range(LANES)]

    def _lane(self) -> RemoteLane:
        bridges = [self._connect() for _ in range(SOURCES)]
        for bridge in bridges[1:]:
            bridge.target.close()
        for bridge in bridges:  # a lane only reads there; looking through each packet would cost more than making it
            bridge.source.writable = True
        return RemoteLane([bridge.source for bridge in bridges], bridges[0].target, self._target_db)

    def put(self, batch: Batch) -> None:
        """Take on a batch of any size. Raises EndpointError if a server is lost for good, LedgerUnusable."""
        if self._careful:
            batch.careful = True
        self._again.extend(batch.cut(0, len(batch.keys), BATCH_KEYS))
        while self._again:
            self._guarded(self._launch)

    def flush(self) -> None:
        """Finish and record all that was taken on."""
        while self._again or self._flying:
            self._guarded(self._launch if self._again else self._advance)
        self._settle()

    def close(self) -> None:
        """Close the connections."""
        for lane in [*self._idle, *(flight.lane for flight in self._flying)]:
            lane.close()
        if self._looker is not None:
            self._looker.close()
            self._looker = None

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except EndpointError as error:
            if not is_lost(error):
                raise
            self._recover(error)

    def _launch(self) -> None:
        while not self._idle:
            self._advance()
        flight = _Flight(self._idle.pop(), self._again.popleft())
        flight.steps = self._fly(flight)
        self._flying.append(flight)
        next(flight.steps)

    def _advance(self) -> None:
        """Let the flight that waits longest go on to its next question."""
        flight = self._flying[0]
        assert flight.steps is not None
        if next(flight.steps, self) is self:
            self._flying.popleft()
            self._idle.append(flight.lane)
        else:
            self._flying.rotate(-1)

    def _fly(self, flight: _Flight) -> Iterator[None]:
        lane, batch = flight.lane, flight.batch
        lane.send_read(batch)
        yield
        reading = lane.receive_read()
        self._at("read")
        decided = self._decide(batch, reading, lane)
        if decided.rows:
            flight.ledger_batch = self._ledger.intend(decided.rows, self._unsettled)
            self._report()
            self._at("intended")
        flight.decided = decided
        changes: list[Row | None] = []
        if decided.acts:
            lane.send_restore(_items(batch, reading, decided, lane))
            yield
            answers = lane.receive_restore()
            self._at("acted")
            lane.send_check()
            yield
            changes = self._results(batch, reading, decided, answers, lane.receive_check())
        self._losses = 0
        self._done(flight, changes)

    def _done(self, flight: _Flight, changes: list[Row | None]) -> None:
        assert flight.decided is not None
        self._unreported.append((flight.batch, flight.decided.outcomes, flight.decided.errors))
        if flight.ledger_batch is not None:
            self._unsettled.append((flight.ledger_batch, changes))
        else:  # no ledger transaction of its own that could carry the ones before it
            self._settle()

    def _decide(self, batch: Batch, reading: Reading, lane: RemoteLane) -> Decided:
        if reading.refused is not None:
            return self._split(batch, reading.refused)
        if not batch.careful:
            return decide.decide_first(batch, reading)
        known = self._ledger.find(batch.db, batch.keys)
        decided = decide_remote(batch, reading, known, lane.has_expire_time)
        for place in unsure(decided):
            self._look(batch, reading, decided, place)
        return decided

    def _look(self, batch: Batch, reading: Reading, decided: Decided, place: int) -> None:
        """A target that is not known as ours may be equal all the same, in another encoding."""
        if self._looker is None or self._looker.closed:
            self._looker = self._connect()
        if is_equal(self._looker, (batch.db, batch.keys[place]), (self._target_db, batch.targets[place])):
            found_equal(batch, reading, decided, place)

    def _split(self, batch: Batch, refused: ReplyError) -> Decided:
        """A server would not even let us watch: find the key it minds, and go on with the others."""
        if len(batch.keys) == 1:
            return decide.final(batch, decide.FAILED, refused.message)
        half = len(batch.keys) // 2
        for places in (range(half), range(half, len(batch.keys))):
            part = batch.part(places, batch.attempts)
            part.careful = batch.careful
            self._again.append(part)
        nothing: list[Any] = [None] * len(batch.keys)
        return Decided([], [], nothing, nothing, nothing)

    def _results(
        self, batch: Batch, reading: Reading, decided: Decided, answers: list[Answer], unchanged: bool
    ) -> list[Row | None]:
        """Write the outcomes into `decided`; return the ledger rows that came otherwise than intended."""
        changes: list[Row | None] = [None] * len(decided.acts)
        if unchanged and len(answers) == len(batch.keys) and answers == reading.sources:  # nearly always
            decided.outcomes = [decide.COPIED] * len(answers)
            return changes
        again: list[int] = []
        mine: list[tuple[bytes, int] | None] = [None] * len(batch.keys)
        for at, ((place, _replace), answer) in enumerate(zip(decided.acts, answers, strict=True)):
            row = decided.rows[at]
            if isinstance(answer, bytes):
                changed = _as_held(row, reading.sources[place], answer)
                changes[at] = changed
                if unchanged:
                    decided.outcomes[place] = decide.COPIED
                else:
                    again.append(place)
                    mine[place] = ((changed or row)[5] or b"", row[6])
            elif isinstance(answer, Mark):
                again.append(place)
                changes[at] = _tried_again(row)
            elif answer is None:
                decided.outcomes[place], decided.errors[place] = decide.EXPIRED, _EXPIRED
                changes[at] = decide.unwritten(row, decide.EXPIRED, _EXPIRED)
            else:
                payload = reading.sources[place]
                why = answer.message if not isinstance(payload, bytes) else _why(answer, payload)
                decided.outcomes[place], decided.errors[place] = decide.FAILED, why
                changes[at] = decide.unwritten(row, decide.FAILED, why)
        if again:
            batch.mine = mine
            self._go_again(batch, decided, again, answers, changes)
        return changes

    def _go_again(
        self, batch: Batch, decided: Decided, places: list[int], answers: list[Answer], changes: list[Row | None]
    ) -> None:
        alone = len(places) == 1
        attempts = batch.attempts + 1 if alone else 0  # in company, others may have been the cause
        if alone and attempts >= ATTEMPTS_MAX:
            place = places[0]
            at = next(at for at, (act, _) in enumerate(decided.acts) if act == place)
            why = f"it changed {attempts} times in a row while it was copied"
            decided.outcomes[place], decided.errors[place] = decide.CHANGED_WHILE_COPYING, why
            row = changes[at] or decided.rows[at]
            written = row[5] if isinstance(answers[at], bytes) else None
            changes[at] = (*row[:5], written, row[6], decide.CHANGED_WHILE_COPYING, why, row[9])
            return
        # Those that were restored are found equal, or are the ones that changed: no need to halve.
        blocked = any(answer is CHANGED for answer in answers)
        half = (len(places) + 1) // 2 if blocked else len(places)
        for part in (places[:half], places[half:]):
            if part:
                self._again.append(batch.part(part, attempts))

    def _recover(self, error: EndpointError) -> None:
        """Connect again. Batches whose answers were lost go again, knowing what they may have written."""
        self._losses += 1
        if self._losses > LOSSES_MAX:
            raise error
        self.close()
        flights, self._flying = list(self._flying), deque()
        for flight in flights:
            if flight.steps is not None:
                flight.steps.close()  # type: ignore[attr-defined]
            batch, decided = flight.batch, flight.decided
            if decided is None:
                part = batch.part(range(len(batch.keys)), batch.attempts)
                part.careful = True
                self._again.append(part)
                continue
            places = [place for place, _ in decided.acts]
            mine: list[tuple[bytes, int] | None] = [None] * len(batch.keys)
            for place, row in zip(places, decided.rows, strict=False):
                mine[place] = (row[5] or b"", row[6])
            batch.mine = mine
            if places:
                self._again.append(batch.part(places, batch.attempts))
            self._done(flight, [_tried_again(row) for row in decided.rows[: len(places)]])
        self._idle = self._lanes()

    def settle_interrupted(self) -> int:
        """Settle what a killed run had intended: a target that holds what was read is a copy made. Returns how many."""
        settled = 0
        lane = self._idle[0]
        for batch, group in groupby(self._ledger.unsettled(), key=lambda pair: pair[0]):
            entries = [entry for _, entry in group]
            self._ledger.settle(batch, _judge(lane, self._target_db, entries))
            settled += len(entries)
        return settled

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


_EXPIRED = "it expired while it was copied"


def _items(batch: Batch, reading: Reading, decided: Decided, lane: RemoteLane) -> list[Item]:
    if isinstance(lane.restores, ClusterRestores):
        lane.restores.held = {
            batch.targets[place]: (reading.targets[place], reading.target_expiry[place])
            for place, replace in decided.acts
            if replace
        }
    targets, payloads, expiries = batch.targets, reading.sources, reading.source_expiry
    if len(decided.acts) == len(targets) and not any(over for _, over in decided.acts):  # nearly always
        return list(map(Item, targets, payloads, expiries, repeat(False)))  # type: ignore[arg-type]
    return [Item(targets[place], payloads[place], expiries[place], over) for place, over in decided.acts]  # type: ignore[arg-type]


def _as_held(row: Row, source: Any, held: bytes) -> Row | None:
    """Return the row with the digest of what the target holds, None where that is the source's."""
    if held == source or held[:-_FOOTER_BYTES] == source[:-_FOOTER_BYTES]:
        return None
    written = digest(held)
    return None if written == row[4] else (*row[:5], written, row[6], row[7], REENCODED, row[9])


def _why(refusal: ReplyError, payload: bytes) -> str:
    of_value = REFUSED_CONTENT in refusal.message or REFUSED_VERSION in refusal.message
    return told(refusal.message, payload) if of_value else refusal.message


def _judge(lane: RemoteLane, target_db: int, entries: list[Entry]) -> list[Row | None]:
    acts = [place for place, entry in enumerate(entries) if entry.outcome is Outcome.COPIED]
    changes: list[Row | None] = [None] * len(entries)
    if not acts:
        return changes
    targets = [entries[place].target for place in acts]
    reads = ClusterReads(lane.target) if isinstance(lane.target, Cluster) else Lane(lane.target, target_db)
    reads.send_read(Batch(target_db, targets, targets, [0] * len(acts)))
    reading = reads.receive_read()
    lane.target.call("UNWATCH")
    for place, held, expire_ms in zip(acts, reading.sources, reading.source_expiry, strict=True):
        entry = entries[place]
        if not (isinstance(held, bytes) and digest(held) == entry.written and expire_ms == entry.expire_ms):
            changes[place] = (
                entry.rule, entry.source_db, entry.key, entry.target, entry.read, None, entry.expire_ms,
                decide.INTENDED, "not done, the run was killed", 0,
            )  # fmt: skip
    return changes


def _tried_again(row: Row) -> Row:
    # Its next row tells the end; this one is to say that nothing was written, should the next never come.
    return decide.unwritten(row, decide.INTENDED, "not done, a side had changed; tried again")


__all__ = ["BATCH_KEYS", "LANES", "SOURCES", "RemoteCopier", "would"]
