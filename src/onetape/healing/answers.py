"""Answers: one piece after the other asked for, tried again where the source fails, and stored part by part."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np

from onetape.clock import to_text
from onetape.errors import ConfigInvalid, InvalidRecord, OnetapeError
from onetape.healing.asking import Piece
from onetape.healing.source import Source, Vouching
from onetape.store.partition import Pair, without
from onetape.store.table import Batch
from onetape.tape import Tape
from onetape.tape.filling import as_batches

#: Records of one transaction: about 20 MB. More of one piece are stored in parts, cut between two times.
PART_RECORDS = 131_072
_BACK_OFF_S, _BACK_OFF_MAX_S = 0.5, 30.0


class Failure(msgspec.Struct, frozen=True):
    """A piece that was not healed: ask again later."""

    symbol: str
    start_ns: int
    end_ns: int
    why: str


class _SourceFailed(Exception):
    """Something went wrong on the source's side."""


class _OutOfOrder(_SourceFailed):
    """A source went back behind what is stored already."""


class Answers:
    """One heal at work."""

    def __init__(
        self, tape: Tape, source: Source, tries: int, pause_s: float, sleep: Callable[[float], object]
    ) -> None:
        self._tape, self._source, self._tries, self._pause_s, self._sleep = tape, source, tries, pause_s, sleep
        self._asked_s = -pause_s
        self.stored = self.left_out = self.covered_ns = self.empty_ns = 0
        self.failures: list[Failure] = []

    def heal(self, piece: Piece) -> bool:
        """Ask for one piece and store what comes. Return False if it stays a failure of the source."""
        done_ns, why = piece.start_ns, ""
        for attempt in range(self._tries):
            if attempt:
                self._sleep(min(_BACK_OFF_S * 2 ** (attempt - 1), _BACK_OFF_MAX_S))
            try:
                for at_ns in self._parts(piece._replace(start_ns=done_ns)):
                    done_ns = at_ns
                return True
            except _OutOfOrder as error:
                self._tape.mark_missing(piece.symbol, piece.start_ns, done_ns, source=self._source.name)
                why = str(error)
                break
            except _SourceFailed as error:
                why = str(error)
            except (InvalidRecord, ConfigInvalid) as error:
                self.failures.append(Failure(piece.symbol, done_ns, piece.end_ns, error.message))
                return True
        self.failures.append(Failure(piece.symbol, done_ns, piece.end_ns, why))
        return False

    def _parts(self, piece: Piece) -> Iterator[int]:
        """Store a piece part by part; yield the time up to which it is done."""
        at_ns, held, count, any_given = piece.start_ns, list[Batch](), 0, False
        for batch in self._fetch(piece):
            ts = batch.columns["ts_event_ns"]
            if at_ns > piece.start_ns and ((ts >= piece.start_ns) & (ts < at_ns)).any():
                first = to_text(int(ts[(ts >= piece.start_ns) & (ts < at_ns)][0]))
                raise _OutOfOrder(f"{self._source.name} gave {first} after {to_text(at_ns)}: not in order of time")
            held.append(batch)
            count += len(batch)
            any_given = any_given or bool(((ts >= piece.start_ns) & (ts < piece.end_ns)).any())
            if count < PART_RECORDS:
                continue
            cut_ns = min(max(int(each.columns["ts_event_ns"].max()) for each in held), piece.end_ns)
            if cut_ns > at_ns:  # those of the last time itself may not all be here yet
                self._fill(piece.symbol, at_ns, cut_ns, _before(held, cut_ns), True)
                held = _from(held, cut_ns)
                count, at_ns = sum(map(len, held)), cut_ns
                yield at_ns
        self._fill(piece.symbol, at_ns, piece.end_ns, held, any_given)
        yield piece.end_ns

    def _fetch(self, piece: Piece) -> Iterator[Batch]:
        wait_s = self._asked_s + self._pause_s - time.monotonic()
        if wait_s > 0:
            self._sleep(wait_s)
        self._asked_s = time.monotonic()
        try:
            found = iter(self._source.fetch(*piece))
        except Exception as error:  # whatever a source raises is its failure, not ours
            raise _SourceFailed(_told(error)) from error
        while True:
            try:
                given = next(found)
            except StopIteration:
                return
            except Exception as error:
                raise _SourceFailed(_told(error)) from error
            yield from as_batches(given)

    def _fill(self, symbol: str, start_ns: int, end_ns: int, batches: list[Batch], any_given: bool) -> None:
        if start_ns >= end_ns:
            return
        span = (start_ns, end_ns)
        covers: list[Pair] = [span] if any_given else []
        if isinstance(self._source, Vouching):
            try:
                covers = list(self._source.covers(symbol, *span))
            except Exception as error:
                raise _SourceFailed(_told(error)) from error
        done = self._tape.fill(symbol, start_ns, end_ns, batches, source=self._source.name, covers=covers)
        empty = without([span], covers)
        self.stored += done.stored
        self.left_out += done.there + done.outside
        self.empty_ns += sum(last - first for first, last in empty)
        self.covered_ns += end_ns - start_ns - sum(last - first for first, last in empty)


def _told(error: Exception) -> str:
    return error.message if isinstance(error, OnetapeError) else f"{type(error).__name__}: {error}"


def _before(batches: list[Batch], cut_ns: int) -> list[Batch]:
    return _kept(batches, lambda ts: ts < cut_ns)


def _from(batches: list[Batch], cut_ns: int) -> list[Batch]:
    return _kept(batches, lambda ts: ts >= cut_ns)


def _kept(batches: list[Batch], which: Callable[[Any], Any]) -> list[Batch]:
    kept = []
    for batch in batches:
        mask = which(batch.columns["ts_event_ns"])
        if mask.any():
            kept.append(batch if np.all(mask) else batch.take(mask))
    return kept
