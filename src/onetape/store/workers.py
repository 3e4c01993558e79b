"""The worker: one thread that packs and unpacks chunks beside the one that asks, while the codec lets Python go on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")

#: More than one would wait for each other: about half of the work holds Python's lock.
_THREADS = 1
_pools: dict[int, ThreadPoolExecutor] = {}


def _pool() -> ThreadPoolExecutor:
    pool = _pools.get(os.getpid())
    if pool is None:  # a process that was forked has no threads but its own
        pool = ThreadPoolExecutor(_THREADS, "onetape-chunks")
        _pools.clear()
        _pools[os.getpid()] = pool
    return pool


def each(act: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
    """Return the results of `act` in the order of the items; the worker begins with them at once."""
    every = list(items)
    try:
        return _pool().map(act, every)
    except RuntimeError:  # Python is ending and starts no threads any more: what is stored last is stored all the same
        return map(act, every)


def share(act: Callable[[int], None], count: int) -> None:
    """Do `act` for 0 to count - 1, the last ones in the worker, the first by the caller. Raises what it raised."""
    half = count // 2

    def rest() -> None:
        for at in range(half, count):
            act(at)

    try:
        pending = _pool().submit(rest)
    except RuntimeError:  # as above
        for at in range(count):
            act(at)
        return
    try:
        for at in range(half):
            act(at)
    finally:
        pending.result()
