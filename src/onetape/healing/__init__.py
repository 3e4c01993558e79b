"""Healing: a source is asked for what a tape is missing, while live data flows.

Only gaps are asked for, in bounded pieces. What comes is stored in one transaction with the word that it is covered, so
a heal that was killed goes on where it was, and one that is repeated changes nothing. Old ticks go where they belong:
`latest` stays what it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from onetape.clock import Time, now_ns, to_ns, to_text
from onetape.errors import ConfigInvalid, InvalidRecord, OnetapeError
from onetape.healing.source import CsvSource, Source, TapeSource, Vouching, csv_files
from onetape.progress import Progress, ProgressMeter
from onetape.store.partition import Gap, Pair, without
from onetape.store.sessions import Sessions
from onetape.store.table import Batch
from onetape.tape import Tape
from onetape.tape.coverage import Closing, as_batches

#: Time of one question. Vendors limit how much they answer, and a try that fails is repeated for so much.
PIECE_S = 6 * 3600.0
#: Records of one transaction: about 20 MB. More of one piece are stored in parts, cut between two times.
PART_RECORDS = 131_072
#: Live data of the last minute may still be on its way: it is not a gap yet.
KEEP_OFF_S = 60.0
_BACK_OFF_S, _BACK_OFF_MAX_S = 0.5, 30.0
#: Pieces that fail one after the other before the source counts as down.
_FAILED_IN_A_ROW = 3


class Piece(NamedTuple):
    """One question to a source."""

    symbol: str
    start_ns: int
    end_ns: int


class Failure(msgspec.Struct, frozen=True):
    """A piece that was not healed: ask again later."""

    symbol: str
    start_ns: int
    end_ns: int
    why: str


class Asks(msgspec.Struct, frozen=True):
    """What a heal would ask: gaps that are there, pieces to ask for, gaps that were asked for in vain before."""

    gaps: tuple[Gap, ...]
    pieces: tuple[Piece, ...]
    asked_before: tuple[Gap, ...]


class Healed(msgspec.Struct, frozen=True, kw_only=True):
    """What a heal did. Counts are of pieces and records, times in ns.

    stored: records that are new on the tape; left_out: what the source gave outside of what it was asked for, or of a
    time at which the tape has a tick. covered_ns: time that is covered now; empty_ns: asked for, and the source had
    nothing. asked_before: gaps it had nothing of earlier. not_asked: pieces left when the source counted as down.
    """

    source: str
    gaps: int
    asked: int
    asked_before: int
    not_asked: int
    stored: int
    left_out: int
    covered_ns: int
    empty_ns: int
    failures: tuple[Failure, ...]
    seconds: float


def asks(
    tape: Tape,
    source: Source,
    symbols: Sequence[str] | None = None,
    start: Time | None = None,
    end: Time | None = None,
    *,
    session: str | Closing | Sessions | None = None,
    min_s: float = 0.0,
    again: bool = False,
    piece_s: float = PIECE_S,
) -> Asks:
    """Return what heal() would ask, and ask nothing."""
    if not piece_s >= 1:
        raise ConfigInvalid(f"piece_s = {piece_s!r}", hint="a piece is of at least one second")
    names = sorted(info.symbol for info in tape.symbols()) if symbols is None else list(dict.fromkeys(symbols))
    latest_ns = now_ns() - int(KEEP_OFF_S * 1e9)
    end_ns = None if end is None else min(to_ns(end, "end"), latest_ns)
    gaps: list[Gap] = []
    pieces: list[Piece] = []
    before: list[Gap] = []
    for name in names:
        for gap in tape.gaps(name, start, end_ns, session=session, min_s=min_s):
            last_ns = min(gap.end_ns, latest_ns)
            if gap.start_ns >= last_ns:
                continue
            gaps.append(gap)
            spans: Iterable[Pair] = [(gap.start_ns, last_ns)]
            if source.name in gap.asked and not again:
                spans = source.covers(name, gap.start_ns, last_ns) if isinstance(source, Vouching) else []
                spans = list(spans)
                before += [] if spans else [gap]
            pieces += [Piece(name, *pair) for span in spans for pair in _cut(span, int(piece_s * 1e9))]
    return Asks(tuple(gaps), tuple(pieces), tuple(before))


def _cut(span: Pair, piece_ns: int) -> Iterator[Pair]:
    """Yield a span in pieces that end where the clock says, so that they are the same whenever they are asked for."""
    start_ns, end_ns = span
    while start_ns < end_ns:
        cut_ns = min(end_ns, start_ns - start_ns % piece_ns + piece_ns)
        yield start_ns, cut_ns
        start_ns = cut_ns


def heal(
    tape: Tape,
    source: Source,
    symbols: Sequence[str] | None = None,
    start: Time | None = None,
    end: Time | None = None,
    *,
    session: str | Closing | Sessions | None = None,
    min_s: float = 0.0,
    again: bool = False,
    piece_s: float = PIECE_S,
    requests_per_s: float | None = None,
    tries: int = 5,
    on_progress: Callable[[Progress], object] | None = None,
    sleep: Callable[[float], object] = time.sleep,
) -> Healed:
    """Ask `source` for the gaps of the symbols (all, if left out) in start <= time < end, and store what it has.

    start, end: of each symbol what the tape knows, if left out; the last minute is never asked for. min_s: shorter
    gaps are left. again: ask also for what the source had nothing of before. A piece is at most `piece_s` of time;
    a failing one is tried `tries` times with growing pauses, then it is in Healed.failures, and the next is asked;
    three failing in a row, and the source counts as down. Any number of processes may heal and write meanwhile.

    Raises TapeError where the tape itself cannot be written; what was stored until then stays.
    """
    if tries < 1 or (requests_per_s is not None and not requests_per_s > 0):
        raise ConfigInvalid("tries and requests_per_s are positive")
    if isinstance(source, TapeSource) and source.tape.path == tape.path:
        raise ConfigInvalid(f"{tape.path} cannot heal itself", hint="give another tape")
    plan = asks(tape, source, symbols, start, end, session=session, min_s=min_s, again=again, piece_s=piece_s)
    meter = ProgressMeter("healing")
    run = _Run(tape, source, tries, 0.0 if requests_per_s is None else 1 / requests_per_s, sleep)
    in_a_row = asked = 0
    seconds = 0.0
    for piece in plan.pieces:
        in_a_row = 0 if run.heal(piece) else in_a_row + 1
        asked += 1
        progress = meter.update(asked, len(plan.pieces))
        seconds = progress.elapsed_s
        if on_progress is not None:
            on_progress(progress)
        if in_a_row >= _FAILED_IN_A_ROW:
            break
    return Healed(
        source=source.name,
        gaps=len(plan.gaps),
        asked=asked,
        asked_before=len(plan.asked_before),
        not_asked=len(plan.pieces) - asked,
        stored=run.stored,
        left_out=run.left_out,
        covered_ns=run.covered_ns,
        empty_ns=run.empty_ns,
        failures=tuple(run.failures),
        seconds=seconds,
    )


class _SourceFailed(Exception):
    """Something went wrong on the source's side."""


class _OutOfOrder(_SourceFailed):
    """A source went back behind what is stored already."""


class _Run:
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


__all__ = [
    "Asks",
    "CsvSource",
    "Failure",
    "Healed",
    "Piece",
    "Source",
    "TapeSource",
    "Vouching",
    "asks",
    "csv_files",
    "heal",
]
