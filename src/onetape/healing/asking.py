"""Asking: which gaps a heal asks a source for, cut into bounded pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from onetape.clock import Time, now_ns, to_ns
from onetape.errors import ConfigInvalid
from onetape.healing.source import Source, Vouching
from onetape.store.partition import Gap, Pair
from onetape.store.sessions import Sessions
from onetape.tape import Tape
from onetape.tape.coverage import Closing

#: Time of one question. Vendors limit how much they answer, and a try that fails is repeated for so much.
PIECE_S = 6 * 3600.0
#: Live data of the last minute may still be on its way: it is not a gap yet.
KEEP_OFF_S = 60.0


class Piece(NamedTuple):
    """One question to a source."""

    symbol: str
    start_ns: int
    end_ns: int


class Asks(msgspec.Struct, frozen=True):
    """What a heal would ask: gaps that are there, pieces to ask for, gaps that were asked for in vain before."""

    gaps: tuple[Gap, ...]
    pieces: tuple[Piece, ...]
    asked_before: tuple[Gap, ...]


def asks(
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
) -> Asks:
    """Return what heal() would ask, and ask nothing."""
    if not piece_s >= 1:
        raise ConfigInvalid(f"piece_s = {piece_s!r}", hint="a piece is of at least one second")
    names = [symbols] if isinstance(symbols, str) else symbols
    latest_ns = now_ns() - int(KEEP_OFF_S * 1e9)
    end_ns = None if end is None else min(to_ns(end, "end"), latest_ns)
    found: list[Gap] = []
    for name in [None] if names is None else dict.fromkeys(names):
        found += tape.gaps(name, start, end_ns, session=session, min_s=min_s)
    gaps: list[Gap] = []
    pieces: list[Piece] = []
    before: list[Gap] = []
    for gap in found:
        last_ns = min(gap.end_ns, latest_ns)
        if gap.start_ns >= last_ns:
            continue
        gaps.append(gap)
        spans: list[Pair] = [(gap.start_ns, last_ns)]
        if source.name in gap.asked and not again:
            spans = [*source.covers(gap.symbol, gap.start_ns, last_ns)] if isinstance(source, Vouching) else []
            before += [] if spans else [gap]
        pieces += [Piece(gap.symbol, *pair) for span in spans for pair in _cut(span, int(piece_s * 1e9))]
    return Asks(tuple(gaps), tuple(pieces), tuple(before))


def _cut(span: Pair, piece_ns: int) -> Iterator[Pair]:
    """Yield a span in pieces that end where the clock says, so that they are the same whenever they are asked for."""
    start_ns, end_ns = span
    while start_ns < end_ns:
        cut_ns = min(end_ns, start_ns - start_ns % piece_ns + piece_ns)
        yield start_ns, cut_ns
        start_ns = cut_ns
