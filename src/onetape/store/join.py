"""The as-of join: for each row the newest row of another list that is not later, in canonical order."""

from __future__ import annotations

import numpy as np

from onetape.store.block import Array
from onetape.store.order import canonical_order

#: What stands for "none" among indices.
NONE = -1


def newest_before(ts: Array, seq: Array | None, of_ts: Array, of_seq: Array | None) -> Array:
    """Return for each (ts, seq) the index of the newest (of_ts, of_seq) at or before it; NONE where there is none.

    Both lists are in canonical order. Without positions (they are of two tapes, so their positions say nothing of each
    other) a row of equal time is at or before; of several, the last.
    """
    if seq is None or of_seq is None:
        return np.searchsorted(of_ts, ts, side="right") - 1
    order = canonical_order(np.concatenate((of_ts, ts)), np.concatenate((of_seq, seq)))
    count = len(of_ts)
    newest = np.maximum.accumulate(np.where(order < count, order, NONE)) if len(order) else order
    found = np.empty(len(ts), dtype="<i8")
    mine = order >= count
    found[order[mine] - count] = newest[mine]
    return found


def newest_among(which: Array) -> Array:
    """Return for each row of one list the index of the newest row, itself included, that `which` marks; else NONE."""
    return np.maximum.accumulate(np.where(which, np.arange(len(which)), NONE)) if len(which) else np.arange(0)


def within(found: Array, ts: Array, of_ts: Array, age_max_ns: int | None) -> Array:
    """Return the indices `found`, with NONE in the place of those whose row is more than `age_max_ns` older."""
    if age_max_ns is None or not len(of_ts):
        return found
    return np.where((found >= 0) & (ts - of_ts[found] <= age_max_ns), found, NONE)
