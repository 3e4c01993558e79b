"""The bulk copy: keys are copied without being read, for verify to take their digests; where writers write both sides.

COPY without REPLACE is a compare-and-set by itself: it does nothing where a target exists, and what it writes is the
source of that instant. So a batch is one exchange on one connection:

    intend    one ledger transaction: a pack with the names, which settles the batches before it
    act       COPY, COPY ...

What the server refuses (the target exists, or the source is gone) is looked at closely, by the careful copy.

No digest tells afterwards whether a target still holds what was copied. While all writers write both sides that is no
loss: equal sides are equal, and sides that differ are a finding, whoever wrote last. Where writers write old names
only, a second run could not follow them: there the digests are taken before the copy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import chain, repeat
from typing import Any

import msgspec

from onetape.errors import EndpointError
from onetape.migrate.copying import decide
from onetape.migrate.copying.copy import LOSSES_MAX, Copier, OnDone
from onetape.migrate.copying.lane import Batch, bulk
from onetape.migrate.ledger.entry import OPEN, Row, key_hash
from onetape.migrate.ledger.ledger import Ledger
from onetape.migrate.wire.endpoint import Endpoint, ReplyError, is_lost

#: Keys of a batch. A server takes what one client has sent 16 KiB at a time, so larger batches are felt no more by
#: others; they save ledger transactions.
BATCH_KEYS = 500
#: Connections with a batch on its way each.
WORKERS = 2

_LENGTHS = [b"\r\n$%d\r\n" % size for size in range(1024)]
_COPY = [b"*5\r\n$4\r\nCOPY\r\n$%d\r\n" % size for size in range(1024)]


class _Flight(msgspec.Struct):
    """A batch whose copies were sent, and its place in the ledger."""

    endpoint: Endpoint
    batch: Batch
    pack: int


class BulkCopier:
    """Copies batches and reports each key exactly once, as a Copier does, which see for the arguments.

    `closely`: rules whose keys are read and digested before they are copied, because more than a copy is made of
    them. `workers`: connections at work. `batch_keys`: keys of a batch, to be changed at any time.
    """

    def __init__(
        self,
        connect: Callable[[], Endpoint],
        ledger: Ledger,
        target_db: int,
        on_done: OnDone,
        *,
        careful: bool = False,
        closely: frozenset[int] = frozenset(),
        workers: int = WORKERS,
        at: Callable[[str], None] = lambda point: None,
    ) -> None:
        self.batch_keys = BATCH_KEYS
        self._connect = connect
        self._ledger = ledger
        self._on_done = on_done
        self._closely = closely
        self._at = at
        self._careful = Copier(connect, ledger, target_db, self._done_carefully, careful=careful, at=at)
        self._workers = workers
        self._idle = [connect() for _ in range(workers)]
        self._flying: deque[_Flight] = deque()
        self._tail = b"\r\n$2\r\nDB\r\n" + bulk(b"%d" % target_db)
        self._losses = 0
        self._mostly_there = False
        self._unsettled: list[tuple[int, list[int]]] = []
        self._unreported: list[tuple[Batch, list[int | None], list[str | None]]] = []

    def put(self, batch: Batch) -> None:
        """Take on a batch of any size. Raises EndpointError if the server is lost for good, LedgerUnusable."""
        if batch.careful or self._mostly_there:
            self._careful.put(batch)
            return
        if not self._closely.isdisjoint(batch.rules):
            batch = self._without_closely(batch)
        for at in range(0, len(batch.keys), self.batch_keys):
            (one,) = batch.cut(at, min(at + self.batch_keys, len(batch.keys)), self.batch_keys)
            while not self._guarded(self._send, one):
                pass

    def flush(self) -> None:
        """Finish and record all that was taken on."""
        while self._flying:
            self._guarded(self._finish)
        self._settle()
        self._careful.flush()

    def close(self) -> None:
        """Close the connections."""
        for endpoint in (*self._idle, *(flight.endpoint for flight in self._flying)):
            endpoint.close()
        self._careful.close()

    def _without_closely(self, batch: Batch) -> Batch:
        places: tuple[list[int], list[int]] = ([], [])
        for place, rule in enumerate(batch.rules):
            places[rule in self._closely].append(place)
        closely = batch.part(places[True], 0)
        closely.careful = False  # nothing is known of their targets
        self._careful.put(closely)
        return batch.part(places[False], 0)

    def _guarded(self, act: Callable[..., None], *batch: Batch) -> bool:
        """Do it, and connect again if the server is lost; return whether the batch was taken on."""
        try:
            act(*batch)
        except EndpointError as error:
            if not is_lost(error):
                raise
            lost = self._recover(error)
            return any(one is flight.batch for one in batch for flight in lost)
        return True

    def _send(self, batch: Batch) -> None:
        if not self._idle:
            self._finish()
        endpoint = self._idle[-1]
        if endpoint.db != batch.db and not _selected(endpoint, batch.db):
            self._careful.put(batch)  # which tells of each key why
            return
        self._idle.pop()
        unsettled, self._unsettled = self._unsettled, []
        pack = self._ledger.intend_open(batch.db, batch.rules, batch.keys, batch.targets, unsettled)
        self._flying.append(_Flight(endpoint, batch, pack))
        self._report(settled=bool(unsettled))
        self._at("intended")
        endpoint.send(self._packed(batch.keys, batch.targets))

    def _packed(self, keys: list[bytes], targets: list[bytes]) -> bytes:
        """Return the commands; made of few operations a key, which is what the speed of a copy comes down to."""
        sizes, others = list(map(len, keys)), list(map(len, targets))
        if max(sizes) < len(_COPY) and max(others) < len(_LENGTHS):
            heads, middles = map(_COPY.__getitem__, sizes), map(_LENGTHS.__getitem__, others)
            return b"".join(chain.from_iterable(zip(heads, keys, middles, targets, repeat(self._tail))))
        copy = b"*5\r\n$4\r\nCOPY\r\n$%d\r\n%b\r\n$%d\r\n%b" + self._tail
        return b"".join([copy % pair for pair in zip(sizes, keys, others, targets, strict=True)])

    def _finish(self) -> None:
        """Fetch the answers of the oldest batch."""
        flight = self._flying[0]
        batch, number = flight.batch, len(flight.batch.keys)
        replies = flight.endpoint.receive(number)
        self._flying.popleft()
        self._idle.append(flight.endpoint)
        self._at("acted")
        self._losses = 0
        errors: list[str | None] = [None] * number
        if replies.count(1) == number:
            self._note(flight, [decide.COPIED] * number, errors, [])
            return
        outcomes: list[int | None] = [decide.COPIED] * number
        undone = [place for place, reply in enumerate(replies) if reply != 1]
        again, failed = [], []
        for place in undone:
            reply: Any = replies[place]
            if isinstance(reply, ReplyError):
                outcomes[place], errors[place] = decide.FAILED, reply.message
                failed.append(_failed(batch, place, reply.message))
            else:
                outcomes[place] = None
                again.append(place)
        self._note(flight, outcomes, errors, undone)
        self._settle()  # before the ledger has later rows of the same keys
        self._ledger.record(failed)
        self._mostly_there = 2 * len(again) > number
        if again:
            self._careful.put(batch.part(again, 0))

    def _note(self, flight: _Flight, outcomes: list[int | None], errors: list[str | None], undone: list[int]) -> None:
        self._unsettled.append((flight.pack, undone))
        self._unreported.append((flight.batch, outcomes, errors))

    def _recover(self, error: EndpointError) -> list[_Flight]:
        """Connect again. What was on its way may have been done or not: it is looked at closely, and returned."""
        self._losses += 1
        if self._losses > LOSSES_MAX:
            raise error
        lost = list(self._flying)
        for endpoint in (*self._idle, *(flight.endpoint for flight in lost)):
            endpoint.close()
        self._idle = [self._connect() for _ in range(self._workers)]
        self._flying.clear()
        for flight in lost:
            number = len(flight.batch.keys)
            # Its pack stays as it is, all copied: what comes after it in the ledger tells of each key what is true.
            self._note(flight, [None] * number, [None] * number, [])
        self._settle()
        for flight in lost:
            number = len(flight.batch.keys)
            again = flight.batch.part(range(number), 0)
            again.mine = [(OPEN, -1)] * number
            self._careful.put(again)
        return lost

    def _done_carefully(self, batch: Batch, outcomes: list[int | None], errors: list[str | None]) -> None:
        if self._mostly_there and 2 * outcomes.count(decide.COPIED) > len(outcomes):
            self._mostly_there = False
        self._on_done(batch, outcomes, errors)

    def _settle(self) -> None:
        if self._unsettled:
            self._ledger.settle_open(self._unsettled)
            self._unsettled = []
            self._report(settled=True)

    def _report(self, *, settled: bool) -> None:
        """Tell of all batches whose outcomes the ledger now has."""
        if settled:
            self._at("recorded")
            reports, self._unreported = self._unreported, []
            for batch, outcomes, errors in reports:
                self._on_done(batch, outcomes, errors)


def _selected(endpoint: Endpoint, db: int) -> bool:
    """Select a database and have it confirmed: COPY in another one would copy other keys."""
    try:
        endpoint.select(db)
    except EndpointError as error:
        if is_lost(error):
            raise
        return False
    return True


def _failed(batch: Batch, place: int, message: str) -> Row:
    key = batch.keys[place]
    return (batch.rules[place], batch.db, key, batch.targets[place], None, None, -1, decide.FAILED, message,
            key_hash(batch.db, key))  # fmt: skip


__all__ = ["BATCH_KEYS", "WORKERS", "BulkCopier"]
