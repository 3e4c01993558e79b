"""The errors of onetape: one tree, each with its facts and a hint for whoever has to act.

OnetapeError
├── ConfigInvalid            a setting or an argument that cannot be used
│   ├── QueryInvalid         an SQL query that cannot be answered; names line and column
│   ├── NameTaken            a name that means something else on the tape already
│   ├── NameAmbiguous        a name that means different symbols to different sources
│   ├── FillConflict         a fill with the id of another that was taken before
│   └── GapUnknown           a continuous future cannot be adjusted: two contracts have no common trade
├── InvalidRecord            a record the tape refuses; names index, field and value
├── ImportInvalid            a file to import that cannot be read as described
├── SourceRefused            the other side of a source says no, and not to come back
├── StateUnusable            the file of positions and risk cannot be opened, read or written
├── ExportFailed             a file that could not be written; nothing of it is left
├── TapeError                the file of the tape
│   ├── TapeMissing          opened for reading, but there is no file
│   ├── TapeUnusable         a directory, no permission, or not a tape
│   ├── TapeTooNew           written by a newer onetape
│   ├── TapeReadOnly         a write on a tape opened with mode="r"
│   ├── TapeBusy             another process held the write lock for too long
│   ├── TapeFull             the disk is full
│   ├── TapeDamaged          SQLite found the file corrupt
│   ├── ChunkCorrupt         a block of records fails its checksum
│   ├── CursorConflict       an import position moved under the importer
│   ├── HistoryGone          retention removed what was being read
│   ├── SnapshotExists       a snapshot's name is taken
│   ├── SnapshotMissing      no snapshot of that name
│   ├── TargetExists         a backup or a restore would overwrite a file
│   ├── TapeInUse            processes have the file open that is to be replaced; names them
│   ├── RecordMissing        a correction of a tick that is not on the tape, or was taken back before
│   └── TapeClosed           used after close()
├── QueryTooLarge            an SQL query needs, or answers with, more memory than it may
├── SubscriberTooSlow        a subscription with when_slow="disconnect" fell behind
└── MigrationError
    ├── PlanInvalid          a plan file that cannot be used
    ├── PlanCollision        two source keys would land on one target key
    ├── PreflightRefused     the server is not fit for a migration; names every reason
    ├── EndpointError        Redis: unreachable, refused, cut off, or an error reply
    ├── LedgerUnusable       the ledger is damaged, or belongs to another plan
    ├── LedgerBusy           another migrator is at work with this ledger
    ├── PhaseRefused         a command out of its turn, or a phase that there is not
    ├── GateRefused          the cutover is not safe yet; names every reason
    ├── StateMoved           somebody else changed the migration's state meanwhile
    ├── StateLost            the server forgot a state that the ledger knows
    ├── OperatorBusy         another operator is at work with this migration
    ├── MemoryShort          the server's memory would not do for the rest: stopped before anything was evicted
    ├── SourceVanished       a mirrored database lost most of its keys without a word
    ├── ProofAltered         a saved proof of a migration is not what was saved
    └── CommandUnmapped      a command that cannot be written to both sides
"""

from __future__ import annotations

from typing import Any


class OnetapeError(Exception):
    """Base of every error that onetape raises on purpose.

    `hint` says in one sentence what to do about it; `facts` carries the values as data.
    """

    def __init__(self, message: str, *, hint: str = "", **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.facts = facts

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigInvalid(OnetapeError):
    """A setting or an argument that cannot be used."""


class QueryInvalid(ConfigInvalid):
    """An SQL query that cannot be answered; `facts["line"]` and `facts["column"]` say where, counted from 1."""


class NameTaken(ConfigInvalid):
    """A name means something else on the tape already: a symbol, an alias, a continuous future."""


class NameAmbiguous(ConfigInvalid):
    """A name means different symbols in the records of different sources; names them."""


class FillConflict(ConfigInvalid):
    """A fill has the id of another that was taken before; `facts["fill_id"]` names it. Nothing was changed."""


class StateUnusable(OnetapeError):
    """The file of positions, risk and system state cannot be opened, read or written; nothing was half stored."""


class GapUnknown(ConfigInvalid):
    """A continuous future cannot be adjusted: the contracts of a roll were not traded in the same minute before it."""


class InvalidRecord(OnetapeError, ValueError):
    """A record the tape refuses. `index` is its place in the batch, `field` and `value` the culprit."""

    def __init__(self, index: int, field: str, value: object, why: str) -> None:
        shown = repr(value)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        super().__init__(
            f"record {index}: {field} = {shown}: {why}",
            hint="nothing of this batch was stored; correct it, or append with on_invalid='quarantine'",
            index=index,
            field=field,
            value=value,
        )
        self.index = index
        self.field = field
        self.value = value
        self.why = why


class ImportInvalid(OnetapeError, ValueError):
    """A file to import that cannot be read as described; names file, line and column."""


class SourceRefused(OnetapeError):
    """The other side of a source says no, and not to come back: a log-on, a file. Trying again would not help."""


class ExportFailed(OnetapeError):
    """A file to export to could not be written; what was there before is as it was."""


class TapeError(OnetapeError):
    """Something is wrong with the file of the tape."""


class TapeMissing(TapeError, FileNotFoundError):
    """Opened for reading, but there is no file."""


class TapeUnusable(TapeError):
    """The path is a directory, may not be opened, or is not a tape."""


class TapeTooNew(TapeError):
    """The tape was written by a newer onetape."""


class TapeReadOnly(TapeError):
    """A write on a tape that was opened with mode="r", or whose file may not be written."""


class TapeBusy(TapeError):
    """Another process held the write lock for longer than busy_timeout_ms. Nothing was stored."""


class TapeFull(TapeError):
    """The disk is full. Nothing of the batch was stored."""


class TapeDamaged(TapeError):
    """SQLite found the file corrupt."""


class ChunkCorrupt(TapeError):
    """A block of records fails its checksum; names the block."""


class CursorConflict(TapeError):
    """An import position is not where the importer left it: another importer was at work."""


class HistoryGone(TapeError):
    """Retention removed ticks while they were being read in pieces; what was yielded before is right."""


class SnapshotExists(TapeError):
    """A snapshot of that name is there already."""


class SnapshotMissing(TapeError, LookupError):
    """There is no snapshot of that name."""


class TargetExists(TapeError, FileExistsError):
    """A backup or a restore would overwrite a file; nothing was written."""


class TapeInUse(TapeError):
    """Processes have the file open that was to be replaced; `facts["pids"]` lists them. Nothing was written."""


class RecordMissing(TapeError):
    """A correction names a tick that is not on the tape, or that was taken back before."""


class TapeClosed(TapeError):
    """The tape was used after close()."""


class QueryTooLarge(OnetapeError):
    """An SQL query needs more memory than it may take, or its answer is larger than allowed."""


class SubscriberTooSlow(OnetapeError):
    """A subscription with when_slow="disconnect" fell more than queue_records behind."""


class MigrationError(OnetapeError):
    """Something is wrong with a migration."""


class PlanInvalid(MigrationError):
    """A plan file that cannot be used; names the file, the rule and the reason."""


class PlanCollision(MigrationError):
    """Two source keys would land on one target key; names both."""


class PreflightRefused(MigrationError):
    """The server is not fit for a migration; `facts["reasons"]` lists every reason."""


class EndpointError(MigrationError):
    """Redis is unreachable, refused the login, cut the connection or answered with an error."""


class LedgerUnusable(MigrationError):
    """The ledger is damaged, or belongs to another plan or server."""


class LedgerBusy(MigrationError):
    """Another migrator is at work with this ledger."""


class PhaseRefused(MigrationError):
    """A command that does not belong to the present phase of a migration, or a phase that there is not."""


class GateRefused(MigrationError):
    """The cutover is not safe yet: `facts["reasons"]` has every reason. Nothing was changed."""


class StateMoved(MigrationError):
    """Somebody else changed the migration's state since it was read. Nothing was changed by us."""


class StateLost(MigrationError):
    """The server holds no state, or an older one, of a live migration that the ledger knows. Nothing was changed."""


class OperatorBusy(MigrationError):
    """Another operator is at work with this migration: `facts` say who and since when. Nothing was changed."""


class MemoryShort(MigrationError):
    """The server's memory would not do for the rest: stopped before its limit. Run again with more: it goes on."""


class ProofAltered(MigrationError):
    """A saved proof of a migration is not what was saved: its content has another sha256, or its page says other."""


class CommandUnmapped(MigrationError):
    """A command of a dual-writing client that cannot be written to both sides. Nothing was sent."""


class SourceVanished(MigrationError):
    """A database lost most of its keys without a word (flushed, swapped, restarted empty), and is what others follow.

    A mirror, a repair or a way back ends with it. Nothing was deleted on the other side.
    """
