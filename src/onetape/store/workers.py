"""Workers: the threads that pack and unpack chunks, beside the one that asks. The codec lets Python go on meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")

#: More would only wait for each other: about half of the work holds Python's lock.
THREADS = min(2, os.cpu_count() or 1)
_pools: dict[int, ThreadPoolExecutor] = {}


def each(act: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
    """Return the results of `act` in the order of the items; it begins with all of them at once."""
    pool = _pools.get(os.getpid())
    if pool is None:  # a process that was forked has no threads but its own
        pool = ThreadPoolExecutor(THREADS, "onetape-chunks")
        _pools.clear()
        _pools[os.getpid()] = pool
    return pool.map(act, items)
