"""Corrections: a tick taken back or revised. The tape keeps what was said, and says what stands."""

from __future__ import annotations

import apsw

from onetape.errors import ConfigInvalid, InvalidRecord
from onetape.offloop import in_thread
from onetape.record import TS_MAX_NS, SeqRange, Tick
from onetape.store import correct, layout, query, replay, table
from onetape.store.catalog import Catalog
from onetape.store.query import Names
from onetape.store.table import Batch
from onetape.tape.appends import Appends


class Corrections(Appends):
    """How ticks are corrected."""

    def cancel(self, tick: Tick) -> SeqRange:
        """Take a tick back; durable on return. `tick` is as it was read from this tape (symbol, time and seq count).

        Reading, bars, latest and recent leave it out from now on; reading as of an earlier position has it still.
        Followers get a Cancel, and its bar's revision. Cancelling again changes nothing and stores 0.
        Raises RecordMissing if the tape has no such tick, ConfigInvalid if it has no seq.
        """
        return self._take_back(tick, None)

    def revise(self, tick: Tick, instead: Tick) -> SeqRange:
        """Take a tick back and put another in its place, at once; durable on return.

        `instead` is a tick of the same symbol; it gets a position of its own, behind the cancel's. Otherwise as
        cancel(). A tick that was taken back before cannot be revised again: revise what stands instead (RecordMissing).
        """
        if not isinstance(instead, Tick):
            raise InvalidRecord(0, "record", instead, "a tick is revised by a Tick")
        batch = table.from_records([instead], layout.KIND_TICK, 0)
        for problem in batch.problems():
            raise problem.error()
        return self._take_back(tick, instead, batch)

    async def acancel(self, tick: Tick) -> SeqRange:
        """As cancel(), off the event loop."""
        return await in_thread(self.cancel, tick)

    async def arevise(self, tick: Tick, instead: Tick) -> SeqRange:
        """As revise(), off the event loop."""
        return await in_thread(self.revise, tick, instead)

    def tick_at(self, seq: int) -> Tick | None:
        """Return the tick at a position, whether it was taken back or not; None if another record or none is there."""
        if not 0 < seq <= TS_MAX_NS:
            return None
        with self._reading() as connection:
            if query.head(connection) < seq:
                return None
            step = replay.step(connection, seq - 1, all_left=True)
            names = Names(Catalog(), connection)
            found = [] if step is None else replay.records(step.first(), names)
        return next((record for record in found if isinstance(record, Tick) and record.seq == seq), None)

    def _take_back(self, tick: Tick, instead: Tick | None, batch: Batch | None = None) -> SeqRange:
        if not isinstance(tick, Tick) or tick.seq is None:
            raise ConfigInvalid(
                "a correction names a tick by its symbol, time and seq", hint="give it as it was read from this tape"
            )
        connection = self._writing()
        with self._write_lock:
            if instead is not None and instead.symbol != tick.symbol:
                same = [self._catalog.symbol_id(connection, name) for name in (tick.symbol, instead.symbol)]
                if None in same or same[0] != same[1]:
                    raise ConfigInvalid(
                        f"a tick of {tick.symbol} cannot be revised by one of {instead.symbol}",
                        hint="cancel the one and append the other",
                    )
            try:
                done = correct.take_back(connection, self._catalog, tick.symbol, tick.ts_event_ns, tick.seq, batch)
            except apsw.Error as error:
                raise self._failed(error, "append to") from error
            self._appended = max(self._appended, done.last)
            self._seal_when_due(done)
        if self._followed:
            self._poke()
        return done
