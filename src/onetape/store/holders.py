"""Holders: which processes have a tape's file open, and which of them hold its log at an old moment.

From /proc, so on Linux alone; elsewhere nobody is found. The layout of the log's index is that of
https://www.sqlite.org/walformat.html, "The WAL-Index File Format".
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from onetape.store import layout, peek

#: Behind the two equal headers of the index: frames copied into the file, and the frame each reader reads up to.
_MARKS_AT = 96
_MARKS = struct.Struct("=IIIIII")
_READ_LOCKS_AT, _READERS = 123, 5


class Holder(NamedTuple):
    """A process and what it calls itself."""

    pid: int
    command: str


class Pin(NamedTuple):
    """A reader that keeps the log from being begun anew: it still reads the first `frame` of `frames` in it."""

    pid: int
    command: str
    frame: int
    frames: int


def holders(path: Path) -> list[Holder]:
    """Return the other processes that have the file, or its log, open. Those of other users may not be seen."""
    wanted = set(_identities(path))
    found = []
    for pid in _pids():
        if pid == os.getpid():
            continue
        try:
            with os.scandir(f"/proc/{pid}/fd") as entries:
                open_here = any(_identity(entry.path) in wanted for entry in entries)
        except OSError:
            continue  # it has ended, or is somebody else's
        if open_here:
            found.append(Holder(pid, _command(pid)))
    return found


def pins(path: Path) -> list[Pin]:
    """Return who reads the log at a moment before its end, the oldest first; this process included."""
    index = layout.index_path(path)
    try:
        head = peek.read(index, 0, _MARKS_AT + _MARKS.size)
        told = index.stat()
        locks = Path("/proc/locks").read_text()
    except OSError:
        return []
    if len(head) < _MARKS_AT + _MARKS.size:
        return []
    frames = struct.unpack_from("=I", head, 16)[0]
    marks = _MARKS.unpack_from(head, _MARKS_AT)[1:]
    inode = f"{os.major(told.st_dev):02x}:{os.minor(told.st_dev):02x}:{told.st_ino}"
    found = []
    for line in locks.splitlines():
        parts = line.split()
        if len(parts) < 8 or parts[-3] != inode or parts[-5] != "READ":
            continue
        first, last = int(parts[-2]), int(parts[-1]) if parts[-1] != "EOF" else _READ_LOCKS_AT + _READERS
        for slot in range(1, _READERS):  # slot 0 reads the file alone, and pins nothing
            if first <= _READ_LOCKS_AT + slot <= last and marks[slot] < frames:
                pid = int(parts[-4])
                found.append(Pin(pid, _command(pid), marks[slot], frames))
    return sorted(set(found), key=lambda pin: (pin.frame, pin.pid))


def backfilled(path: Path) -> tuple[int, int] | None:
    """Return (frames of the log already copied into the file, frames in the log), or None without an index."""
    try:
        head = peek.read(layout.index_path(path), 0, _MARKS_AT + _MARKS.size)
    except OSError:
        return None
    if len(head) < _MARKS_AT + _MARKS.size:
        return None
    return _MARKS.unpack_from(head, _MARKS_AT)[0], struct.unpack_from("=I", head, 16)[0]


def _identities(path: Path) -> Iterator[tuple[int, int]]:
    for each in (path, layout.wal_path(path), layout.index_path(path)):
        identity = _identity(str(each))
        if identity is not None:
            yield identity


def _identity(path: str) -> tuple[int, int] | None:
    try:
        told = Path(path).stat()
    except OSError:
        return None
    return told.st_dev, told.st_ino


def _pids() -> list[int]:
    try:
        return sorted(int(each.name) for each in Path("/proc").iterdir() if each.name.isdecimal())
    except OSError:
        return []


def _command(pid: int) -> str:
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return "?"
    return raw.replace(b"\0", b" ").decode("utf-8", "replace").strip()[:120] or "?"
