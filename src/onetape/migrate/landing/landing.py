"""Landing: what the backfill asks of whoever puts ticks and bars on the tape, and what it is told."""

from __future__ import annotations

from typing import Protocol

import msgspec

from onetape.migrate.ledger.entry import Outcome
from onetape.migrate.plans.plan import Rule


class LandResult(msgspec.Struct, frozen=True):
    """What became of one key: `ticks` records stored now, `known` records that were there already."""

    key: bytes
    ticks: int
    known: int
    outcome: Outcome
    error: str | None = None


class TickLander(Protocol):
    """Puts the ticks and bars of copied keys on the tape, each by its identity, so that again changes
    nothing.
    """

    def stream(self, key: bytes, source_db: int, rule: Rule) -> LandResult:
        """Land a stream's entries past its cursor; called after the key was copied or found unchanged."""

    def hash_ticks(self, keys: list[bytes], source_db: int, rule: Rule) -> list[LandResult]:
        """Merge tick hashes by event time into the stream the rule names, and land them; one result a key."""

    def ohlc(self, key: bytes, source_db: int, rule: Rule) -> LandResult:
        """Land an OHLC key's bars; called after the key was copied or found unchanged."""
