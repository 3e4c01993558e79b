"""Moments: when positions were appended, kept a span in a few bytes, so that a time in the past names a position.

A moment is (position, time): everything up to that position was on the tape by that time. In the journal there is one a
commit, exact to the millisecond; a span keeps one for every 10 ms in which something was appended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apsw
import numpy as np
from pcodec import ChunkConfig, standalone

from onetape.store import block
from onetape.store.block import Array

_KEPT_EVERY_MS = 10
_CONFIG = ChunkConfig(compression_level=8)
_MS_NS = 1_000_000


def encode(seqs: Array, times_ms: Array) -> tuple[int, bytes]:
    """Return (time of the last one, bytes) of moments in order of position."""
    if not len(seqs):
        return 0, b""
    times = np.maximum.accumulate(times_ms)  # a clock that was set back does not make the past later
    last = np.append(times[1:] // _KEPT_EVERY_MS != times[:-1] // _KEPT_EVERY_MS, True)
    kept = np.ascontiguousarray(np.concatenate((seqs[last], times[last])).astype("<i8"))
    return int(times[-1]), standalone.simple_compress(kept, _CONFIG)


def decode(payload: bytes) -> tuple[Array, Array]:
    """Return (positions, times in ms)."""
    if not payload:
        return np.zeros(0, dtype="<i8"), np.zeros(0, dtype="<i8")
    both: Array = standalone.simple_decompress(payload)
    half = len(both) // 2
    return both[:half], both[half:]


def join(parts: Sequence[tuple[int, int, bytes]]) -> tuple[int, bytes]:
    """Return the moments of adjacent spans (their last position, its time in ms, moments) as those of one.

    A span of a file of format 1 has no moments: all that is known of it is when it was sealed.
    """
    decoded = [
        decode(told) if told else (np.array([seal], dtype="<i8"), np.array([at_ms], dtype="<i8"))
        for seal, at_ms, told in parts
    ]
    return encode(np.concatenate([seqs for seqs, _ in decoded]), np.concatenate([times for _, times in decoded]))


def position_at(connection: apsw.Connection, ns: int) -> int:
    """Return the last position that was on the tape at a time (ns); 0 where there was none.

    Exact to a millisecond for what is in the journal still, to 10 ms for what is sealed.
    """
    at_ms = ns // _MS_NS
    rows: list[Any] = connection.execute(
        "SELECT seq_last, count, payload FROM journal WHERE seq_last > (SELECT seal FROM state) ORDER BY seq_last"
    ).fetchall()
    seqs, times = block.moments(rows)
    known = np.flatnonzero(np.maximum.accumulate(times) <= at_ms) if len(times) else times
    if len(known):
        return int(seqs[known[-1]])
    before = connection.execute("SELECT max(seal) FROM span WHERE at_ms <= ?", (at_ms,)).get
    found = int(before or 0)
    following = connection.execute("SELECT moments FROM span WHERE seal > ? ORDER BY seal LIMIT 1", (found,)).get
    if following is None:
        return found
    seqs, times = decode(bytes(following))
    count = int(np.searchsorted(times, at_ms, side="right"))
    return int(seqs[count - 1]) if count else found
