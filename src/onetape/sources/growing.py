"""The growing file: one that another program writes while it is read here; tells at once that it changed."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import TracebackType

from onetape.live.waker import Waker

#: How often to look where hints of the kernel have proved themselves, s: what a lost one costs.
_LOOK_S = 0.25
#: How often to look where they have not: file systems of a network or a virtual machine give none, s.
_POLL_S = 0.02

_Seen = tuple[int, int, int, int] | None


class GrowingFile:
    """A file as it was opened; `replaced` tells that its path leads elsewhere now. Raises OSError on opening."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._waker = Waker(path)  # after opening: what happens in between is seen by looking
        found = os.fstat(self._fd)
        self._own = (found.st_dev, found.st_ino)
        self._seen = self._look()
        self._hinted = False

    def __enter__(self) -> GrowingFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waker.close()
        os.close(self._fd)

    @property
    def size(self) -> int:
        """Bytes it has now."""
        return os.fstat(self._fd).st_size

    @property
    def written_ns(self) -> int:
        """When it was written last, ns, as its file system says."""
        return os.fstat(self._fd).st_mtime_ns

    @property
    def replaced(self) -> bool:
        """Whether another file, or none, is at its path."""
        try:
            found = self.path.stat()
        except OSError:
            return True
        return (found.st_dev, found.st_ino) != self._own

    def read(self, offset: int, count: int) -> bytes:
        """Return up to `count` bytes from `offset`; fewer only where the file ends."""
        parts = []
        while count > 0:
            part = os.pread(self._fd, count, offset)
            if not part:
                break
            parts.append(part)
            offset, count = offset + len(part), count - len(part)
        return b"".join(parts)

    def wait(self, seconds: float, stopped: threading.Event) -> bool:
        """Wait until it may have changed; return whether it may. False: the time is over, or `stopped` is set."""
        deadline = time.monotonic() + seconds
        while not stopped.is_set():
            found = self._look()
            if found != self._seen:
                self._seen, self._hinted = found, False
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if self._waker.wait(min(left, _LOOK_S if self._hinted else _POLL_S)):
                self._seen, self._hinted = self._look(), True
                return True
        return False

    def _look(self) -> _Seen:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
