"""The place: which file is at the path of a tape now, and whether it is still the one that is open."""

from __future__ import annotations

import os
from pathlib import Path

from onetape.errors import TapeMissing

#: Device and inode.
FileId = tuple[int, int]


class Place:
    """One path. Nothing is kept: each answer is the file system's."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def file(self) -> FileId:
        """Return which file is there. Raises OSError."""
        found = os.stat(self._path)  # noqa: PTH116  (at each append: a microsecond, of a Path two)
        return found.st_dev, found.st_ino

    def check(self, file: FileId | None) -> None:
        """Raise TapeMissing where `file`, which is open, is not at the path any more."""
        try:
            found = self.file()
        except OSError as error:
            raise TapeMissing(f"{self._path} is gone: {error.strerror}", hint="bring it back") from error
        if found != file:
            raise TapeMissing(f"{self._path} was replaced by another file", hint="it is opened by itself")

    def holds_another(self, file: FileId | None) -> bool:
        """Return whether another file is there now: an append that waited for its lock went into the old one.

        Where there is none it may be the same that comes back, with what was appended. A follower that was just reading
        the old file may give such a record from both.
        """
        try:
            return self.file() != file
        except OSError:
            return False

    def stamp(self) -> tuple[int, ...]:
        """Return what changes when somebody changes the file. Raises OSError."""
        found = self._path.stat()
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
