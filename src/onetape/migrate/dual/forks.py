"""The forks: which clients of this process are to begin anew in one that is forked from it."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forked(Protocol):
    """What is told of a fork, in the new process, before anything else is done there."""

    def forked(self) -> None:
        """Be another one from here on."""


_known: weakref.WeakSet[Forked] = weakref.WeakSet()


def add(one: Forked) -> None:
    """Tell it of every fork for as long as it lives."""
    _known.add(one)


def _tell() -> None:
    for one in list(_known):
        one.forked()


os.register_at_fork(after_in_child=_tell)

__all__ = ["Forked", "add"]
