"""Upgrade: a tape of an older format brought to this one, and what that takes, told before anything is done."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from onetape.errors import TapeFull, TapeInUse, TapeMissing, TapeTooNew, TapeUnusable
from onetape.store import holders, layout, sqlite, wal

#: What each format brought: of the file in words, from the version on.
_CHANGES = {
    1: "chunks in spans with the times of appending, bars by the hour, snapshots, coverage, further names; chunks"
    " become smaller as they are compacted",
}


class UpgradePlan(msgspec.Struct, frozen=True):
    """What an upgrade does, or has done. `backup`: where the file as it was is kept; None if nothing is to do."""

    path: str
    version: int
    to_version: int
    changes: list[str]
    bytes_needed: int
    bytes_free: int
    backup: str | None
    done: bool


def upgrade(path: Path, *, execute: bool) -> UpgradePlan:
    """Say what upgrading a tape takes; with `execute`, do it: a backup beside it, then one transaction.

    Without `execute` the file is not even opened with SQLite, so nothing at all changes. Raises TapeMissing,
    TapeTooNew, TapeUnusable, TapeInUse (an older onetape would not know the new format), TapeFull.
    """
    if not path.is_file():
        raise TapeMissing(f"no tape at {path}", hint="check the path")
    if path.stat().st_size < 100 or not wal.is_tape(path):
        raise TapeUnusable(f"{path} is not a tape", hint="check the path; it was not touched")
    log = wal.read(path)
    version = wal.version(path, log)
    if version > layout.FORMAT_VERSION:
        raise TapeTooNew(
            f"{path} has format {version}, this onetape knows up to {layout.FORMAT_VERSION}",
            hint="install a newer onetape",
        )
    missing = [step for step in range(version, layout.FORMAT_VERSION) if step not in sqlite.UPGRADES]
    if missing:
        raise TapeUnusable(f"{path} has format {version}, which this onetape cannot upgrade")
    size = path.stat().st_size + (log.bytes if log is not None else 0)
    needed = 2 * size if version < layout.FORMAT_VERSION else 0  # the backup, and a log that may hold every page
    kept = layout.backup_path(path, version)
    plan = UpgradePlan(
        str(path),
        version,
        layout.FORMAT_VERSION,
        [_CHANGES.get(step, f"format {step + 1}") for step in range(version, layout.FORMAT_VERSION)],
        needed,
        shutil.disk_usage(path.parent).free,
        str(kept) if version < layout.FORMAT_VERSION else None,
        False,
    )
    if not execute or plan.backup is None:
        return plan
    using = holders.holders(path)
    if using:
        raise TapeInUse(
            f"{path} is open in {len(using)} processes",
            hint=f"stop {', '.join(str(holder.pid) for holder in using)} first: they know only the older format",
            pids=[holder.pid for holder in using],
        )
    if plan.bytes_free < needed:
        raise TapeFull(
            f"{path.parent} has {plan.bytes_free:,} bytes free, an upgrade takes up to {needed:,}",
            hint="free space; nothing was changed",
        )
    sqlite.connect(path, mode="rw").close()
    return msgspec.structs.replace(plan, done=True)
