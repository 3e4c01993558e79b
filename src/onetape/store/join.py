"""The as-of join: for each row the newest row of another list that is not later, in canonical order."""

from __future__ import annotations

import numpy as np

from onetape.store.block import Array
from onetape.store.order import canonical_order

#: What stands for "none" among indices.
NONE = -1
_STEPS = 8


def newest_before(ts: Array, seq: Array | None, of_ts: Array, of_seq: Array | None) -> Array:
    """Return for each (ts, seq) the index of the newest (of_ts, of_seq) at or before it; NONE where there is none.

    Both lists are in canonical order. Without positions (they are of two tapes, so their positions say nothing of each
    other) a row of equal time is at or before; of several, the last.
    """
    found = np.searchsorted(of_ts, ts, side="right") - 1
    if seq is None or of_seq is None or not len(of_ts):
        return found
    # The newest of that time may have a later position: go back, row by row, as far as records of one time usually go.
    for _ in range(_STEPS):
        later = np.flatnonzero((found >= 0) & (of_ts[found] == ts) & (of_seq[found] > seq))
        if not len(later):
            return found
        found[later] -= 1
    return _by_sorting(ts, seq, of_ts, of_seq)


def _by_sorting(ts: Array, seq: Array, of_ts: Array, of_seq: Array) -> Array:
    """Return what newest_before() does, by putting both lists into one order."""
    order = canonical_order(np.concatenate((of_ts, ts)), np.concatenate((of_seq, seq)))
    count = len(of_ts)
    newest = np.maximum.accumulate(np.where(order < count, order, NONE))
    mine = order >= count
    found = np.empty(len(ts), dtype="<i8")
    found[order[mine] - count] = newest[mine]
    return found


def within(found: Array, ts: Array, of_ts: Array, age_max_ns: int | None) -> Array:
    """Return the indices `found`, with NONE in the place of those whose row is more than `age_max_ns` older."""
    if age_max_ns is None or not len(of_ts):
        return found
    return np.where((found >= 0) & (ts - of_ts[found] <= age_max_ns), found, NONE)
