"""Filling: records of a source, and the word that their time is covered now, in one transaction."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import apsw
import msgspec
import numpy as np

from onetape.clock import Time, now_ns
from onetape.errors import ConfigInvalid, CursorConflict
from onetape.record import Tick
from onetape.store import coverage, layout, partition, query, silence, table
from onetape.store.journal import Identity
from onetape.store.partition import Pair
from onetape.store.table import Batch
from onetape.tape.appends import Appends
from onetape.tape.coverage import Coverage

#: Two that fill the same tape at once hold each other up for some milliseconds.
_FILL_TRIES = 50


class Filled(msgspec.Struct, frozen=True):
    """What became of records that a source gave for a span: stored; already there, or outside of the span."""

    stored: int
    there: int
    outside: int


class Filling(Coverage, Appends):
    """How what was missing is filled in."""

    def fill(
        self,
        symbol: str,
        start: Time,
        end: Time,
        data: Sequence[Tick] | Any,
        *,
        source: str,
        covers: Sequence[Pair] | None = None,
    ) -> Filled:
        """Store what `source` had of start <= time < end, and that it is covered by it now, in one transaction.

        data: Ticks, a table as for append_table(), or a list of tables. covers: what of the span the source vouches
        for (all of it, if left out); of the rest it is kept that the source was asked and had nothing.

        Records outside of the span are left out, and so are those of a time that another word covers meanwhile, or
        at which the tape has a tick: what is there was recorded, and content never tells a duplicate. So killing this
        at any moment, or repeating it, stores nothing twice. Raises InvalidRecord with nothing stored, TapeError.
        """
        start_ns, end_ns = self._said_span(symbol, start, end, source)
        if source is None:
            raise ConfigInvalid("a fill without a source", hint="name who had the records")
        whole = [(start_ns, end_ns)]
        covered = partition.within(whole if covers is None else covers, start_ns, end_ns)
        batches = [_of_symbol(found, symbol) for found in as_batches(data)]
        inside = [_take(found, _in_spans(_times(found), whole)) for found in batches]
        outside = sum(map(len, batches)) - sum(map(len, inside))
        for attempt in range(_FILL_TRIES):
            try:
                return self._fill(symbol, source, whole[0], covered, inside, outside)
            except CursorConflict:
                time.sleep(random.uniform(0.001, 0.005 * (attempt + 1)))
        raise CursorConflict(f"{self.path} is being filled by others all the time", hint="try again when they are done")

    def _fill(
        self, symbol: str, source: str, span: Pair, covered: list[Pair], batches: list[Batch], outside: int
    ) -> Filled:
        settled: list[Any] = []
        self._in_coverage(lambda connection: settled.append(coverage.settle(connection, self._catalog)))
        before, count = settled[0]
        with self._reading() as connection, query.snapshot(connection):
            taken = self._taken(connection, symbol, span)
        fresh = [_take(found, ~taken(_times(found))) for found in batches]
        stored = sum(map(len, fresh))
        empty = partition.without([span], covered)
        note = coverage.Note(count + 1, symbol, source, tuple(covered), tuple(empty), now_ns())
        there = sum(map(len, batches)) - stored
        if stored:
            cursor = (coverage.FILLED, before, msgspec.json.encode(note).decode())
            self._append([found for found in fresh if len(found)], Identity(cursor=cursor), stored, "raise")
            self._in_coverage(lambda connection: coverage.settle(connection, self._catalog))
        else:
            self._in_coverage(lambda connection: coverage.say_all(connection, self._catalog, note))
        return Filled(stored, there, outside)

    def _taken(self, connection: apsw.Connection, symbol: str, span: Pair) -> Callable[[Any], Any]:
        """Return a function that tells which times are taken: covered by somebody's word, or a tick's own."""
        words = coverage.said(connection, self._catalog, symbol, *span)
        told = partition.merged(
            (word.start_ns, word.end_ns)
            for word in words
            if word.state in (partition.SAID_COVERED, partition.SAID_FILLED)
        )
        symbol_id = self._catalog.symbol_id(connection, symbol)
        ticks = [] if symbol_id is None else [*silence.times(connection, symbol_id, *span)]
        known = np.concatenate(ticks) if ticks else np.zeros(0, dtype="<i8")
        return lambda times: _in_spans(times, told) | np.isin(times, known)


def as_batches(data: Any) -> list[Batch]:
    """Return Ticks, a table, or a list of tables or batches as batches. Raises InvalidRecord, ConfigInvalid."""
    if isinstance(data, Batch):
        return [data]
    if isinstance(data, list | tuple) and data and isinstance(data[0], Tick):
        return [table.from_records(run, kind, at) for kind, at, run in table.split_by_kind(data)]
    tables = data if isinstance(data, list | tuple) else [data]
    found = [each if isinstance(each, Batch) else table.from_table(each) for each in tables]
    return [each for each in found if len(each)]


def _of_symbol(found: Batch, symbol: str) -> Batch:
    if found.kind != layout.KIND_TICK:
        raise ConfigInvalid("a fill is of ticks", hint="append bars with append()")
    others = [found.symbols[i] for i in np.unique(found.columns["symbol"]).tolist() if found.symbols[i] != symbol]
    if others:
        raise ConfigInvalid(f"asked for {symbol!r}, the source gave {others[0]!r}", hint="a fill is of one symbol")
    return found


def _times(found: Batch) -> Any:
    return found.columns["ts_event_ns"]


def _take(found: Batch, mask: Any) -> Batch:
    return found if mask.all() else found.take(mask)


def _in_spans(times: Any, pairs: list[Pair]) -> Any:
    """Return which times lie in one of the spans, which are ascending and apart."""
    edges = np.array([edge for pair in pairs for edge in pair], dtype="<i8")
    return np.searchsorted(edges, times, side="right") % 2 == 1
