"""A child of the benchmark: it does not outlive who started it, however that one ends."""

from __future__ import annotations

import ctypes
import signal

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def bind_to_parent() -> None:
    """Let the kernel end this process with its parent."""
    ctypes.CDLL(None, use_errno=True).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
