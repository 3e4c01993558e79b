"""onetape: one durable tape of market data for a whole trading system.

tape = onetape.open("market_data.db")
tape.append(onetape.Tick("ESZ6", onetape.now_ns(), price=6012.25, size=2))
tape.latest("ESZ6")
"""

from onetape.clock import now_ns, to_ns
from onetape.errors import (
    ChunkCorrupt,
    ConfigInvalid,
    CursorConflict,
    EndpointError,
    ExportFailed,
    GapUnknown,
    ImportInvalid,
    InvalidRecord,
    LedgerBusy,
    LedgerUnusable,
    MigrationError,
    NameAmbiguous,
    NameTaken,
    OnetapeError,
    PlanCollision,
    PlanInvalid,
    PreflightRefused,
    SnapshotExists,
    SnapshotMissing,
    SubscriberTooSlow,
    TapeBusy,
    TapeClosed,
    TapeDamaged,
    TapeError,
    TapeFull,
    TapeInUse,
    TapeMissing,
    TapeReadOnly,
    TapeTooNew,
    TapeUnusable,
    TargetExists,
)
from onetape.facts import Quarantined, SymbolInfo, TapeStats
from onetape.live.follower import Follower
from onetape.live.subscription import Subscription, SubscriptionStats
from onetape.record import BUY, SELL, UNKNOWN, Bar, SeqRange, Tick
from onetape.store.aliases import Alias
from onetape.store.snapshots import Digest, Snapshot
from onetape.tape import Tape, open
from onetape.tape.snapshots import SnapshotProof
from onetape.writer import Writer

__version__ = "0.1.0"

__all__ = [
    "BUY",
    "SELL",
    "UNKNOWN",
    "Alias",
    "Bar",
    "ChunkCorrupt",
    "ConfigInvalid",
    "CursorConflict",
    "Digest",
    "EndpointError",
    "ExportFailed",
    "Follower",
    "GapUnknown",
    "ImportInvalid",
    "InvalidRecord",
    "LedgerBusy",
    "LedgerUnusable",
    "MigrationError",
    "NameAmbiguous",
    "NameTaken",
    "OnetapeError",
    "PlanCollision",
    "PlanInvalid",
    "PreflightRefused",
    "Quarantined",
    "SeqRange",
    "Snapshot",
    "SnapshotExists",
    "SnapshotMissing",
    "SnapshotProof",
    "SubscriberTooSlow",
    "Subscription",
    "SubscriptionStats",
    "SymbolInfo",
    "Tape",
    "TapeBusy",
    "TapeClosed",
    "TapeDamaged",
    "TapeError",
    "TapeFull",
    "TapeInUse",
    "TapeMissing",
    "TapeReadOnly",
    "TapeStats",
    "TapeTooNew",
    "TapeUnusable",
    "TargetExists",
    "Tick",
    "Writer",
    "__version__",
    "now_ns",
    "open",
    "to_ns",
]
