"""Facts: what a tape says about itself, as plain data."""

from __future__ import annotations

from typing import Any

import msgspec

from onetape.live.subscription import SubscriptionStats


class SymbolInfo(msgspec.Struct, frozen=True):
    """What the tape holds of one symbol: records kept, and the times (ns) of the first and the last of them.

    Ticks that were taken back are counted too: they are on the tape still.
    """

    symbol: str
    ticks: int
    bars: int
    ts_first_ns: int | None
    ts_last_ns: int | None


class TapeStats(msgspec.Struct, frozen=True):
    """A look at the whole tape. Sizes in bytes; `unsealed` records wait in the journal for the next seal."""

    path: str
    format_version: int
    durability: str
    head: int
    seal: int
    unsealed: int
    ticks: int
    bars_given: int
    bars_kept: int
    symbols: int
    chunks: int
    quarantined: int
    file_bytes: int
    wal_bytes: int
    retention_days: float | None
    pruned_seq: int
    recent_symbols: int
    recent_records: int
    subscriptions: list[SubscriptionStats]
    seal_error: str | None


class Quarantined(msgspec.Struct, frozen=True):
    """A record that was refused: when, from which batch and place, the field, the reason, what it held (JSON)."""

    at_ns: int
    batch: str | None
    index: int
    field: str
    why: str
    record: dict[str, Any]
