"""The spread: two charts' bars of the same times, their difference and their ratio."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from onetape.record import Bar
from onetape.services.charts.measures import zscore

#: Fewer bars in common say nothing of what is usual.
COMMON_MIN = 20


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """first - second * weight, and first / second, at the newest time that both have a bar of.

    The z-scores are against all times in common; None with fewer than 20 of them or where nothing varies. unmatched:
    bars, within the time that both cover, that one side alone has; nothing is filled in for the other. What is beyond a
    float's range is None.
    """

    spread_id: str
    first: str
    second: str
    at_ns: int | None = None
    difference: float | None = None
    ratio: float | None = None
    difference_z: float | None = None
    ratio_z: float | None = None
    common: int = 0
    unmatched: int = 0
    trouble: str | None = None


def spread(
    spread_id: str, names: tuple[str, str], first: Sequence[Bar], second: Sequence[Bar], weight: float = 1.0
) -> Spread:
    """Return the spread of two lists of bars of one interval."""
    one, two = ({bar.ts_start_ns: bar.close for bar in bars} for bars in (first, second))
    times = sorted(one.keys() & two.keys())
    if not times:
        return Spread(spread_id=spread_id, first=names[0], second=names[1], trouble="no bar of the same time")
    low, high = max(min(one), min(two)), min(max(one), max(two))
    unmatched = sum(low <= at <= high for at in one.keys() ^ two.keys())
    differences = [one[at] - two[at] * weight for at in times]
    ratios = [one[at] / two[at] for at in times if two[at]]
    enough = len(times) >= COMMON_MIN
    return Spread(
        spread_id=spread_id,
        first=names[0],
        second=names[1],
        at_ns=times[-1],
        difference=_finite(differences[-1]),
        ratio=_finite(one[times[-1]] / two[times[-1]]) if two[times[-1]] else None,
        difference_z=zscore(differences) if enough else None,
        ratio_z=zscore(ratios) if enough and len(ratios) == len(times) else None,
        common=len(times),
        unmatched=unmatched,
        trouble=None if enough else f"only {len(times)} bars in common, {COMMON_MIN} are needed",
    )


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
