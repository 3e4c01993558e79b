"""Care: what keeps a tape well while it is used, and what brings it back: backup, memory, doctor, restore, upgrade."""

from __future__ import annotations

import os
from pathlib import Path

import apsw

from onetape.live.recent import SymbolMemory
from onetape.store import backup as backups
from onetape.store import check
from onetape.store import repair as repairs
from onetape.store import upgrade as upgrades
from onetape.store.backup import BackupInfo, RestorePlan
from onetape.store.findings import Checkup
from onetape.store.repair import RepairPlan
from onetape.store.upgrade import UpgradePlan
from onetape.tape.handle import Handle

StrPath = str | os.PathLike[str]


class Care(Handle):
    """What a tape does for itself."""

    def backup(self, to: StrPath, on_progress: backups.Progress | None = None) -> BackupInfo:
        """Copy the tape to a new file `to` while it is written; return what the copy holds.

        The copy is of one moment, and proved before it gets its name: SQLite's integrity check, every record read,
        the same last position and content as here. It stalls no writer; the log grows while pages are copied.
        on_progress(bytes copied, bytes in all). Raises TargetExists, TapeFull, TapeDamaged, ChunkCorrupt; of a backup
        that failed nothing is left.
        """
        self._check_open()
        connection = self._connect("r")
        try:
            return backups.backup(connection, self.path, Path(to).absolute(), on_progress)
        except apsw.Error as error:
            raise self._failed(error, "back up") from error
        finally:
            connection.close(True)

    def memory(self) -> list[SymbolMemory]:
        """Return what each symbol's newest ticks take of this process's memory, by name; only of those asked for."""
        return [] if self._recent is None else self._recent.memory()

    def doctor(self, *, full: bool = False) -> Checkup:
        """As onetape.doctor() for this tape."""
        self._check_open()
        return check.examine(self.path, full=full)


def doctor(path: StrPath, *, full: bool = False, on_progress: check.Progress | None = None) -> Checkup:
    """Look at a tape, whole or damaged, and return all that is found, problems first. It changes nothing.

    Every chunk and journal row is read and compared with its checksum and its row, every position accounted for; bars
    of the last day of some symbols are computed again. full: SQLite's long check, and all bars. Writers may go on.
    on_progress(positions read, positions in all). Raises TapeMissing.
    """
    return check.examine(Path(os.path.realpath(path)), full=full, on_progress=on_progress)


def repair(path: StrPath, *, execute: bool = False) -> RepairPlan:
    """Set aside what is damaged of a tape, so that everything else can be read; without `execute` only say what.

    Nothing is deleted: a copy of the file is made beside it first, and what is set aside stays in the file, in table
    `damaged`. Raises TapeDamaged where SQLite's own pages are damaged, TapeInUse, TapeMissing, TapeBusy.
    """
    return repairs.repair(Path(os.path.realpath(path)), execute=execute)


def restore(backup: StrPath, to: StrPath, *, execute: bool = False, replace: bool = False) -> RestorePlan:
    """Put a backup where a tape is to be, proved before and after; without `execute` only say what would be done.

    replace: a tape that is there is renamed with its log, not removed; refused while any process has it open. Raises
    TargetExists, TapeInUse, TapeDamaged, ChunkCorrupt, TapeMissing, TapeUnusable, TapeTooNew, TapeFull.
    """
    return backups.restore(Path(backup), Path(os.path.realpath(to)), execute=execute, replace=replace)


def upgrade(path: StrPath, *, execute: bool = False) -> UpgradePlan:
    """Bring a tape of an older format to this one, with a backup beside it; without `execute` only say what it takes.

    Opening a tape for writing does the same. Raises TapeMissing, TapeTooNew, TapeUnusable, TapeInUse, TapeFull.
    """
    return upgrades.upgrade(Path(os.path.realpath(path)), execute=execute)
