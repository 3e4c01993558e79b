"""The target of an export: written under a temporary name beside it, and there under its own name only when whole.

A temporary name is locked by whoever writes it; what a killed export left is removed by the next one to its target.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onetape.errors import ConfigInvalid, ExportFailed

#: What a folder of an export holds beside its data. A folder without it is never replaced.
MANIFEST = "_onetape.json"


@contextmanager
def writing(target: Path, *, folder: bool, replace: bool) -> Iterator[Path]:
    """Give a temporary file or folder to write, which becomes `target` at the end, or vanishes with an error.

    Raises ConfigInvalid for a target that is there (without `replace`) or may not be replaced, ExportFailed.
    """
    try:
        refuse(target, folder=folder, replace=replace)
        _sweep(target)
        temporary = target.with_name(f".{target.name}.partial-{secrets.token_hex(4)}")
        if folder:
            temporary.mkdir()
        lock = os.open(temporary, os.O_RDONLY if folder else os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
    except OSError as error:
        raise failed(error, target) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield temporary
        _sync(temporary)
        _put(temporary, target, folder=folder, replace=replace)
    except OSError as error:
        raise failed(error, target) from error
    finally:
        _remove(temporary)
        os.close(lock)


def failed(error: OSError, target: Path) -> ExportFailed:
    """Return what an error of the file system means for an export."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
        return ExportFailed(
            f"{target}: the disk is full; nothing of the export is left", hint="make room, or export to another disk"
        )
    return ExportFailed(f"{target}: cannot be written: {error}", hint="nothing of the export is left")


def refuse(target: Path, *, folder: bool, replace: bool) -> None:
    """Raise ConfigInvalid if something is there that must stay."""
    if not target.parent.is_dir():
        raise ConfigInvalid(f"{target}: there is no folder {str(target.parent)!r}", hint="make it first")
    if not os.path.lexists(target) or (folder and target.is_dir() and not any(target.iterdir())):
        return
    if not replace:
        raise ConfigInvalid(f"{target} is there already", hint="give another name, or --replace")
    if folder and not (target / MANIFEST).is_file():
        raise ConfigInvalid(f"{target} is no folder of an export", hint=f"only one with {MANIFEST} in it is replaced")
    if not folder and not target.is_file():
        raise ConfigInvalid(f"{target} is not a file", hint="give another name")


def _put(temporary: Path, target: Path, *, folder: bool, replace: bool) -> None:
    refuse(target, folder=folder, replace=replace)  # somebody may have been faster
    if not folder and not replace:
        try:
            os.link(temporary, target)  # unlike a rename, it fails where something is
        except FileExistsError as error:
            raise ConfigInvalid(f"{target} is there already", hint="give another name, or --replace") from error
        except OSError:  # a file system without links
            temporary.rename(target)
    elif folder and target.is_dir():
        old = target.with_name(f".{target.name}.replaced-{secrets.token_hex(4)}")
        target.rename(old)
        try:
            temporary.rename(target)
        except OSError:
            old.rename(target)
            raise
        shutil.rmtree(old)
    else:
        temporary.replace(target)
    _sync_one(target.parent)


def _sync(path: Path) -> None:
    """Bring a file, or a folder and all below it, to the disk."""
    if path.is_dir():
        for below, folders, files in os.walk(path):
            for name in (*folders, *files):
                _sync_one(Path(below, name))
    _sync_one(path)


def _sync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):  # some file systems cannot sync a folder
            raise
    finally:
        os.close(handle)


def _sweep(target: Path) -> None:
    """Remove what killed exports to this target left behind."""
    for left in target.parent.glob(f".{glob.escape(target.name)}.partial-*"):
        try:
            handle = os.open(left, os.O_RDONLY)
        except OSError:
            continue  # gone meanwhile, or another user's
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # somebody is writing it
        else:
            _remove(left)
        finally:
            os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
