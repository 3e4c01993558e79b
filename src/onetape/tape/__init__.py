"""The tape: the one object users hold. It appends, reads, follows and tells, over one file shared by many processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from onetape.errors import ConfigInvalid
from onetape.store.sqlite import Durability
from onetape.tape.bars import Bars
from onetape.tape.care import Care
from onetape.tape.continuous import ContinuousFutures
from onetape.tape.corrections import Corrections
from onetape.tape.filling import Filling
from onetape.tape.history import History
from onetape.tape.moment import Moments
from onetape.tape.names import SymbolNames
from onetape.tape.queries import Queries
from onetape.tape.reads import Reads
from onetape.tape.snapshots import Snapshots
from onetape.tape.upkeep import check_retention

#: Newest ticks of about 6,000 symbols.
MEMORY_BYTES = 256 * 2**20


def open(  # (onetape.open is the documented name)
    path: str | os.PathLike[str] = "market_data.db",
    *,
    recent_per_symbol: int = 1000,
    durability: Durability = "process",
    mode: Literal["rw", "r"] = "rw",
    retention_days: float | None = 30,
    busy_timeout_ms: int = 10_000,
    bar_retention_days: float | None = None,
    memory_bytes: int | None = MEMORY_BYTES,
) -> Tape:
    """Open the tape at `path`, created if it is missing and `mode` is "rw".

    durability: "process": after an append returns, a killed process loses nothing; a power cut can lose the last
    moments but never corrupts. "power": a power cut loses nothing either (fsync at every commit).
    recent_per_symbol: newest ticks kept in memory for each symbol that is asked for.
    retention_days: ticks older than this, and on the tape for longer than this, are removed as the tape is written;
    bars stay. None keeps everything.
    bar_retention_days: the tape's own 1-minute bars older than this are removed too, once their ticks are; it is not
    less than retention_days. None keeps them for ever.
    memory_bytes: what the newest ticks of all symbols may take in memory; above it, symbols nobody asks for are let go
    and read again when they are. None is without limit.
    busy_timeout_ms: how long a write waits for other processes' writes before TapeBusy.

    Raises TapeMissing, TapeUnusable, TapeReadOnly, TapeTooNew, TapeDamaged, TapeBusy, ConfigInvalid.
    """
    if durability not in ("process", "power"):
        raise ConfigInvalid(f"durability = {durability!r}", hint="it is 'process' or 'power'")
    if mode not in ("rw", "r"):
        raise ConfigInvalid(f"mode = {mode!r}", hint="it is 'rw' or 'r'")
    check_retention(retention_days, bar_retention_days)
    if memory_bytes is not None and memory_bytes < 1:
        raise ConfigInvalid(f"memory_bytes = {memory_bytes}", hint="it is a number of bytes, or None: without limit")
    if recent_per_symbol < 1 or busy_timeout_ms < 0 or (retention_days is not None and retention_days <= 0):
        raise ConfigInvalid("recent_per_symbol and retention_days are positive, busy_timeout_ms is not negative")
    return Tape(
        Path(path),
        recent_per_symbol,
        durability,
        mode,
        retention_days,
        busy_timeout_ms,
        bar_retention_days,
        memory_bytes,
    )


class Tape(
    Filling, Corrections, Reads, History, Queries, Bars, Moments, SymbolNames, ContinuousFutures, Snapshots, Care
):
    """A durable tape of market data in one SQLite file. Open it with `onetape.open`; it may be used from any thread.

    A process that forks opens its own: SQLite's files cannot be shared across a fork.
    """
