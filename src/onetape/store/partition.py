"""Partition: how what was said of a time, and what is on the tape of it, make one partition of that time. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

State = Literal["covered", "quiet", "missing", "closed", "pruned", "unknown"]
STATES: tuple[State, ...] = ("covered", "quiet", "missing", "closed", "pruned", "unknown")
_COVERED, _QUIET, _MISSING, _CLOSED, _PRUNED, _UNKNOWN = range(6)

#: What a source can say of a span: it was there; it was not; it was asked and had nothing; it filled it in later, which
#: covers it as well, but promises nothing of the time around.
SAID_COVERED, SAID_MISSING, SAID_EMPTY, SAID_FILLED = 1, 2, 3, 4

Pair = tuple[int, int]


class Span(msgspec.Struct, frozen=True):
    """What is known of a symbol for start_ns <= time < end_ns.

    covered: somebody was recording (`by` names who said so), or, where nobody says (`inferred`), ticks flow as they
    usually do. quiet: covered, but without a tick for longer than usual. missing: `by` says that it was not recorded,
    or nobody says that it was, though somebody did before. closed: the market was. pruned: retention removed it.
    unknown: nobody says, and there are no ticks. `asked` names sources that were asked for it and had nothing.
    """

    symbol: str
    start_ns: int
    end_ns: int
    state: State
    by: tuple[str, ...] = ()
    inferred: bool = False
    asked: tuple[str, ...] = ()


class Gap(msgspec.Struct, frozen=True):
    """A span to worry about: missing, or unknown (no ticks, for far longer than usual, and nobody says why)."""

    symbol: str
    start_ns: int
    end_ns: int
    state: State
    by: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()


class Said(NamedTuple):
    """One source's word on a span; of one source they never overlap."""

    source: str
    start_ns: int
    end_ns: int
    state: int


def merged(spans: Iterable[Pair]) -> list[Pair]:
    """Return the same time as ascending spans that neither overlap nor touch."""
    out: list[Pair] = []
    for start, end in sorted(spans):
        if start >= end:
            continue
        if out and start <= out[-1][1]:
            out[-1] = out[-1][0], max(out[-1][1], end)
        else:
            out.append((start, end))
    return out


def without(spans: Iterable[Pair], taken: Iterable[Pair]) -> list[Pair]:
    """Return the time of `spans` that is not in `taken`, ascending."""
    out: list[Pair] = []
    cuts = merged(taken)
    at = 0
    for start, end in merged(spans):
        while at < len(cuts) and cuts[at][1] <= start:
            at += 1
        here, left = at, start
        while here < len(cuts) and cuts[here][0] < end:
            if cuts[here][0] > left:
                out.append((left, cuts[here][0]))
            left = max(left, cuts[here][1])
            here += 1
        if left < end:
            out.append((left, end))
    return out


def within(spans: Iterable[Pair], start_ns: int, end_ns: int) -> list[Pair]:
    """Return the time of `spans` that lies in start_ns … end_ns, ascending."""
    return merged((max(low, start_ns), min(high, end_ns)) for low, high in spans)


def partition(
    symbol: str,
    start_ns: int,
    end_ns: int,
    said: Sequence[Said],
    *,
    silent: Sequence[Pair] = (),
    still: Sequence[Pair] = (),
    closed: Sequence[Pair] = (),
    pruned: Sequence[Pair] = (),
    declared: Pair | None = None,
) -> list[Span]:
    """Return start_ns … end_ns as ascending spans without overlap or hole.

    said: what sources said, of each source the last word. silent: where said time is without ticks for long; still:
    where time that nobody spoke of is without the ticks that are usual. declared: the first and the last time that
    anybody spoke of: after the first, what nobody covers is missing; before it nobody had begun.

    What any source covers is covered. Closed and pruned time counts as such only as far as it has no ticks.
    """
    if start_ns >= end_ns:
        return []
    said_pairs = [(span.start_ns, span.end_ns) for span in said]
    given = [*said_pairs, *silent, *still, *closed, *pruned, *([declared] if declared else [])]
    edges = np.array([start_ns, end_ns, *(time for pair in given for time in pair)], dtype="<i8")
    bounds = np.unique(np.clip(edges, start_ns, end_ns))
    names = list(dict.fromkeys(span.source for span in said))

    def inside(pairs: Iterable[Pair]) -> Any:
        return _inside(bounds, pairs)

    def masks(state: int) -> Any:
        kind = "<i8" if len(names) < 62 else object
        total = np.zeros(len(bounds) - 1, dtype=kind)
        for bit, name in enumerate(names):
            spans = [(s.start_ns, s.end_ns) for s in said if s.source == name and s.state == state]
            if spans:
                total = total | (inside(spans).astype(kind) * (1 << bit))
        return total

    covering, missing, asked = masks(SAID_COVERED) | masks(SAID_FILLED), masks(SAID_MISSING), masks(SAID_EMPTY)
    is_covered, is_missing = covering != 0, missing != 0
    empty = np.where(is_covered | is_missing, inside(silent), inside(still))
    begun = bounds[:-1] >= declared[0] if declared else np.zeros(len(bounds) - 1, dtype=bool)
    state = np.select(
        [
            inside(closed) & empty,
            inside(pruned) & empty,
            is_covered & ~empty,
            is_covered,
            is_missing,
            ~empty,
            begun,
        ],
        [_CLOSED, _PRUNED, _COVERED, _QUIET, _MISSING, _COVERED, _MISSING],
        _UNKNOWN,
    )
    by = np.where(is_covered, covering, missing)
    by = np.where((state == _CLOSED) | (state == _PRUNED), 0, by)
    asked = np.where((state == _MISSING) | (state == _UNKNOWN), asked, 0)
    inferred = (state == _COVERED) & ~is_covered
    changed = (state[1:] != state[:-1]) | (by[1:] != by[:-1]) | (asked[1:] != asked[:-1])
    changed |= inferred[1:] != inferred[:-1]
    firsts = [0, *(np.flatnonzero(changed) + 1).tolist()]
    lasts = [*firsts[1:], len(state)]
    told: dict[int, tuple[str, ...]] = {}

    def who(mask: int) -> tuple[str, ...]:
        if mask not in told:
            told[mask] = tuple(sorted(name for bit, name in enumerate(names) if mask >> bit & 1))
        return told[mask]

    return [
        Span(
            symbol,
            int(bounds[first]),
            int(bounds[last]),
            STATES[int(state[first])],
            who(int(by[first])),
            bool(inferred[first]),
            who(int(asked[first])),
        )
        for first, last in zip(firsts, lasts, strict=True)
    ]


def _inside(bounds: Any, pairs: Iterable[Pair]) -> Any:
    """Return, for each piece between two bounds, whether one of the pairs holds it. The pairs' ends are bounds."""
    depth = np.zeros(len(bounds), dtype="<i8")
    ends = [(max(start, int(bounds[0])), min(end, int(bounds[-1]))) for start, end in pairs]
    ends = [pair for pair in ends if pair[0] < pair[1]]
    if ends:
        low, high = np.array(ends, dtype="<i8").T
        np.add.at(depth, np.searchsorted(bounds, low), 1)
        np.subtract.at(depth, np.searchsorted(bounds, high), 1)
    return np.cumsum(depth)[:-1] > 0
