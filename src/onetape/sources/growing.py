"""The growing file: one that another program writes while it is read here; tells at once that it changed.

`GrowingSource` is the base of sources that read such files: what keeps one from being read is told and waited out.
"""

from __future__ import annotations

import os
import threading
import time
from abc import abstractmethod
from collections.abc import Generator, Iterator
from pathlib import Path
from types import TracebackType

from onetape.errors import ImportInvalid
from onetape.live.waker import Waker
from onetape.sources.source import ALIVE_S, Delivery, Source

#: How often to look where hints of the kernel have proved themselves, s: what a lost one costs.
_LOOK_S = 0.25
#: How often to look where they have not: file systems of a network or a virtual machine give none, s.
_POLL_S = 0.02
#: How often a file that is not there, or cannot be read, is tried again, s.
_RETRY_S = 0.1

_Seen = tuple[int, int, int, int] | None


class GrowingFile:
    """A file as it was opened; `replaced` tells that its path leads elsewhere now. Raises OSError on opening."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # (a pipe would be waited for)
        try:
            self._waker = Waker(path)  # after opening: what happens in between is seen by looking
        except OSError:
            os.close(self._fd)
            raise
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


class GrowingSource(Source):
    """A source of growing files. A subclass gives `_of()`, and reads a file by `yield from self._reading(path)`."""

    #: A file that does not grow says nothing of why: its silence covers nothing.
    live = False

    @abstractmethod
    def _of(self, file: GrowingFile) -> Iterator[Delivery]:
        """Yield what comes of one file, until it is another one. Raises ImportInvalid for one that is damaged."""

    def _trouble(self, why: str) -> None:
        self._tell(state="waiting", trouble=why)

    def _reading(self, path: Path) -> Generator[Delivery, None, bool]:
        """Open a file and yield what comes of it; return whether it could be read. If not, some time has passed."""
        try:
            file = GrowingFile(path)
        except OSError as error:
            self._trouble(f"{path}: {error.strerror}; it is waited for")
            self._wait(_RETRY_S)
            return False
        with file:
            try:
                yield from self._of(file)
            except ImportInvalid as error:
                self._trouble(f"{error.message}; it is read again when it changes")
                file.wait(ALIVE_S, self._stopped)
            except OSError as error:  # such as of a share of the network that went away
                self._trouble(f"{path}: {error.strerror}; it is read again")
                self._wait(_RETRY_S)
            else:
                return True
        return False
