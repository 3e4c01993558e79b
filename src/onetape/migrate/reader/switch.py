"""The switch: from the migration's state, which side answers a read. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from onetape.migrate.phases.phase import Phase
from onetape.migrate.phases.state import State

Side = Literal["old", "new"]


def side_of_read(state: State | None, chance: Callable[[], float]) -> Side:
    """Return the side that a read asks first.

    Old until the reads are switched (and where no migration was started); then new for `read_share` of the reads, by
    `chance()`, a number from 0 to less than 1; from the cutover on new.
    """
    if state is None or not state.phase.at_least(Phase.READS_SWITCHED):
        return "old"
    if state.phase.new_is_truth:
        return "new"
    return "new" if state.read_share >= 1 or chance() < state.read_share else "old"


def sides_of_read(state: State | None) -> frozenset[Side]:
    """Return the sides that side_of_read() can give."""
    if state is None or not state.phase.at_least(Phase.READS_SWITCHED):
        return frozenset(("old",))
    if state.phase.new_is_truth or state.read_share >= 1:
        return frozenset(("new",))
    return frozenset(("old",)) if state.read_share <= 0 else frozenset(("old", "new"))


def falls_back(state: State | None) -> bool:
    """Return whether a read that finds nothing on the new side asks the old one.

    Only while the old side is the truth. After the cutover a key that is missing on the new side was deleted there:
    what the old side still holds would be that key come back from the dead.
    """
    return state is None or not state.phase.new_is_truth


def can_compare(state: State | None) -> bool:
    """Return whether both sides ought to be equal, so that comparing them means something."""
    return state is not None and state.phase.both_written


__all__ = ["Side", "can_compare", "falls_back", "side_of_read", "sides_of_read"]
