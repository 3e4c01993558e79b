"""onetape: one durable tape of market data for a whole trading system.

tape = onetape.open("market_data.db")
tape.append(onetape.Tick("ESZ6", onetape.now_ns(), price=6012.25, size=2))
tape.latest("ESZ6")
"""

from onetape.asof import join_as_of
from onetape.clock import now_ns, to_ns
from onetape.errors import (
    ChunkCorrupt,
    CommandUnmapped,
    ConfigInvalid,
    CursorConflict,
    EndpointError,
    ExportFailed,
    FillConflict,
    GapUnknown,
    GateRefused,
    HistoryGone,
    ImportInvalid,
    InvalidRecord,
    LedgerBusy,
    LedgerUnusable,
    MemoryShort,
    MigrationError,
    NameAmbiguous,
    NameTaken,
    OnetapeError,
    OperatorBusy,
    PhaseRefused,
    PlanCollision,
    PlanInvalid,
    PreflightRefused,
    ProofAltered,
    QueryInvalid,
    QueryTooLarge,
    RecordMissing,
    SnapshotExists,
    SnapshotMissing,
    SourceRefused,
    SourceVanished,
    StateLost,
    StateMoved,
    StateUnusable,
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
from onetape.live.bar_follower import BarFollower
from onetape.live.follower import Follower
from onetape.live.recent import SymbolMemory
from onetape.live.subscription import Subscription, SubscriptionStats
from onetape.record import BUY, SELL, UNKNOWN, Bar, Cancel, SeqRange, Tick
from onetape.store.aliases import Alias
from onetape.store.backup import BackupInfo, RestorePlan
from onetape.store.continuous import Contract, DaysBefore, OnDates, OpenInterestCrossover, VolumeCrossover
from onetape.store.findings import Checkup, Finding
from onetape.store.lifecycle import PrunePlan
from onetape.store.partition import Gap, Span
from onetape.store.repair import RepairPlan
from onetape.store.rolls import Roll
from onetape.store.sessions import Calendar, Session
from onetape.store.snapshots import Digest, Snapshot
from onetape.store.upgrade import UpgradePlan
from onetape.tape import Tape, open
from onetape.tape.care import doctor, repair, restore, upgrade
from onetape.tape.continuous import Continuous
from onetape.tape.filling import Filled
from onetape.tape.heartbeat import Heartbeat
from onetape.tape.names import AliasesAdded
from onetape.tape.sealing import Compacted
from onetape.tape.snapshots import SnapshotProof
from onetape.writer import AsyncWriter, Writer

__version__ = "0.1.0"

__all__ = [
    "BUY",
    "CommandUnmapped",
    "GateRefused",
    "OperatorBusy",
    "PhaseRefused",
    "SELL",
    "SourceVanished",
    "StateLost",
    "StateMoved",
    "StateUnusable",
    "UNKNOWN",
    "Alias",
    "AliasesAdded",
    "BackupInfo",
    "AsyncWriter",
    "Bar",
    "BarFollower",
    "Calendar",
    "Cancel",
    "Checkup",
    "ChunkCorrupt",
    "Compacted",
    "ConfigInvalid",
    "Continuous",
    "Contract",
    "CursorConflict",
    "DaysBefore",
    "Digest",
    "EndpointError",
    "ExportFailed",
    "FillConflict",
    "Filled",
    "Finding",
    "Follower",
    "Gap",
    "GapUnknown",
    "Heartbeat",
    "HistoryGone",
    "ImportInvalid",
    "InvalidRecord",
    "LedgerBusy",
    "LedgerUnusable",
    "MemoryShort",
    "MigrationError",
    "NameAmbiguous",
    "NameTaken",
    "OnDates",
    "OnetapeError",
    "OpenInterestCrossover",
    "PlanCollision",
    "PlanInvalid",
    "PreflightRefused",
    "ProofAltered",
    "PrunePlan",
    "Quarantined",
    "RecordMissing",
    "QueryInvalid",
    "QueryTooLarge",
    "RepairPlan",
    "RestorePlan",
    "Roll",
    "SeqRange",
    "Session",
    "Snapshot",
    "SnapshotExists",
    "SnapshotMissing",
    "SourceRefused",
    "SnapshotProof",
    "Span",
    "SubscriberTooSlow",
    "Subscription",
    "SubscriptionStats",
    "SymbolInfo",
    "SymbolMemory",
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
    "UpgradePlan",
    "VolumeCrossover",
    "Writer",
    "__version__",
    "doctor",
    "join_as_of",
    "now_ns",
    "open",
    "repair",
    "restore",
    "to_ns",
    "upgrade",
]
