"""The waker: tells a waiting reader that the tape may have grown. A hint, never the truth: the reader looks itself."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import threading
from pathlib import Path

_IN_MODIFY = 0x2
#: Longest wait without a look of one's own: what a lost hint costs.
_LOOK_S = 0.25
#: How often to look where the kernel gives no hints (not Linux, or no inotify watches left).
_POLL_S = 0.002


def _watch(path: Path) -> int | None:
    """Return an inotify descriptor that becomes readable when `path` is written to, or None."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    except (AttributeError, OSError):
        return None
    if fd < 0:
        return None
    if libc.inotify_add_watch(fd, os.fsencode(path), _IN_MODIFY) < 0:
        os.close(fd)
        return None
    return int(fd)


class Waker:
    """Waits for a hint: a write to the tape's log by any process, or poke() from this one."""

    def __init__(self, wal: Path) -> None:
        self._lock = threading.Lock()
        self._watch = _watch(wal)
        self._poke_r, self._poke_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._waiting = False
        self._closed = False
        self._fds = [self._poke_r] + ([self._watch] if self._watch is not None else [])

    @property
    def interval_s(self) -> float:
        """Return how long wait() waits for a hint at the most."""
        return _POLL_S if self._watch is None else _LOOK_S

    def poke(self) -> None:
        """Wake the waiter, now."""
        with self._lock:
            if not self._closed:
                with contextlib.suppress(BlockingIOError):  # full: it is awake already
                    os.write(self._poke_w, b"!")

    def wait(self, timeout_s: float) -> bool:
        """Wait for a hint up to `timeout_s`; return whether one came. One thread waits at a time."""
        with self._lock:
            if self._closed:
                return True
            self._waiting = True
        try:
            ready, _, _ = select.select(self._fds, [], [], max(0.0, timeout_s))
            for fd in ready:
                os.read(fd, 65536)
        finally:
            with self._lock:
                self._waiting = False
                if self._closed:
                    self._free()
        return bool(ready)

    def close(self) -> None:
        """Wake the waiter for good and free the descriptors."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._waiting:  # the waiter frees them: their numbers must not be given out while it uses them
                with contextlib.suppress(BlockingIOError):
                    os.write(self._poke_w, b"!")
            else:
                self._free()

    def _free(self) -> None:
        for fd in (*self._fds, self._poke_w):
            os.close(fd)

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):  # a follower that was dropped, not closed
            self.close()
