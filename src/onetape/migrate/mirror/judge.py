"""The judgement: from what both sides hold and what is remembered of them to what is done with a pair. Pure."""

from __future__ import annotations

import enum

from onetape.migrate.mirror.memory import Held, Side


class Act(enum.Enum):
    """What is done with a pair."""

    NOTHING = "nothing"  # neither side is there
    EQUAL = "equal"
    COPY = "copy"  # there is nothing to write over
    REPLACE = "replace"  # what is there is as we left it
    DELETE = "delete"  # the leader is gone, and the follower is as we left it
    LEAVE = "leave"  # the same, but nothing says that the leader was deleted: the sweep decides
    KEEP = "keep"  # somebody newer wrote the follower


def judge(source: Side, target: Side, known: Held | None, *, gone: bool, slack_ms: int = 0) -> Act:
    """Return what is done with a pair. `gone`: it was heard, or found, that the leader was deleted or expired.

    Never writes over, or deletes, what does not hold what both sides were last known to hold.
    """
    if source is None and target is None:
        return Act.NOTHING
    if target is None:
        return Act.COPY
    ours = known is not None and known.holds(*target, slack_ms)
    if source is None:
        if not ours:
            return Act.KEEP
        return Act.DELETE if gone else Act.LEAVE
    if source[0] == target[0] and abs(source[1] - target[1]) <= slack_ms:
        return Act.EQUAL
    return Act.REPLACE if ours else Act.KEEP
