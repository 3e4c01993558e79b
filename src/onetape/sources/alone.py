"""Alone: the right to feed a tape under a name. One feed has it at a time, and the kernel takes it from a dead one."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from hashlib import blake2b
from pathlib import Path

from onetape.errors import CursorConflict

#: How often a right that could not be asked for (no folder yet, none that may be written) is asked for again, s.
_AGAIN_S = 1.0


class Alone:
    """The right of a name on a tape: one locked byte, of this handle, in a file beside the tape.

    A source without a cursor has nothing else that keeps two feeds of its name from storing everything twice. Where
    the file cannot be made (the tape is away, or of a file system without locks) the feed goes on, and asks again.
    """

    def __init__(self, tape: Path | None, name: str) -> None:
        self._file = None if tape is None else tape.with_name(tape.name + ".feeds")
        self._name = name
        self._byte = int.from_bytes(blake2b(name.encode(), digest_size=7).digest(), "big")
        self._fd: int | None = None
        self._asked: float | None = None

    def keep(self) -> None:
        """Have the right, or get it. Raises CursorConflict while another feed has it."""
        if self._fd is not None or self._file is None:
            return
        if self._asked is not None and time.monotonic() - self._asked < _AGAIN_S:
            return
        self._asked = time.monotonic()
        try:
            fd = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError:
            return
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, self._byte, 1, 0))
        except OSError as error:
            os.close(fd)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise CursorConflict(
                    f"source {self._name}: another feed of this name runs on this tape; nothing is stored twice",
                    hint="stop the other one, or give this source another name; this one takes its place once it ends",
                ) from error
            return
        self._fd = fd

    def end(self) -> None:
        """Give the right back."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)
