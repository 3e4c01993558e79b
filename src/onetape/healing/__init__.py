"""Healing: a source is asked for what a tape is missing, while live data flows.

Only gaps are asked for, in bounded pieces. What comes is stored in one transaction with the word that it is covered, so
a heal that was killed goes on where it was, and one that is repeated changes nothing. Old ticks go where they belong:
`latest` stays what it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec

from onetape.clock import Time
from onetape.errors import ConfigInvalid
from onetape.healing.answers import Answers, Failure
from onetape.healing.asking import PIECE_S, Asks, Piece, asks
from onetape.healing.source import CsvSource, Source, TapeSource, Vouching, csv_files
from onetape.progress import Progress, ProgressMeter
from onetape.store.sessions import Sessions
from onetape.tape import Tape
from onetape.tape.coverage import Closing

#: Pieces that fail one after the other before the source counts as down.
_FAILED_IN_A_ROW = 3


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


def heal(
    tape: Tape,
    source: Source,
    symbols: str | Sequence[str] | None = None,
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
    run = Answers(tape, source, tries, 0.0 if requests_per_s is None else 1 / requests_per_s, sleep)
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
