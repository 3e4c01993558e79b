"""Settling: after a write, which pairs are equal by what both sides replied, and which are not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from onetape.migrate.dual.known import Known, Pair, pair
from onetape.migrate.dual.mapping import Part
from onetape.migrate.dual.weave import Woven, alike, renamed, sides
from onetape.migrate.phases.phase import Phase
from onetape.migrate.routes import Route


def settled(
    known: Known, parts: Sequence[Part], woven: Woven, replies: list[Any], generation: int, phase: Phase
) -> tuple[list[Any], list[Route], str]:
    """Return the parts' replies, the pairs that are not equal after it, and why; `known` learns which are equal."""
    mine = [replies[at] for at in woven.replies]
    wrong: dict[Pair, Route] = {}
    why = ""
    for check in woven.checks:
        reply = replies[check.at]
        if check.rule == "fine":
            failed_too = check.part >= 0 and isinstance(mine[check.part], Exception)
            bad = isinstance(reply, Exception) and not failed_too
        elif check.rule == "time":
            bad = ms(replies[check.part]) != ms(reply)
        elif check.rule == "errors":
            bad = isinstance(reply, Exception) != isinstance(mine[check.part], Exception)
        elif check.rule == "alike":
            part = parts[check.part]
            bad = not _alike(part, mine[check.part], reply, phase)
        else:
            own = mine[check.part]
            bad = not (own is None or isinstance(own, Exception) or _same_id(own, reply))
        if bad and check.rule == "time":
            wrong.update({pair(route): route for route in check.routes})
        elif bad:
            why = why or (str(reply) if isinstance(reply, Exception) else "the two sides replied differently")
            wrong.update({pair(route): route for route in check.routes})
    failed = {pair(r) for part, reply in zip(parts, mine, strict=True)
              if isinstance(reply, Exception) and part.form == "both" for r in part.written()}  # fmt: skip
    if failed and len(parts) > 1:
        relied = _relied(known, parts, mine, woven, failed)
        if relied:
            why = why or "a command failed that a later one of the same transaction went by"
            wrong.update(relied)
    equal: Iterable[Route] = woven.equal
    if wrong:
        equal = [route for route in equal if pair(route) not in wrong]
    if failed:
        equal = [route for route in equal if pair(route) not in failed or route in known]
    known.add(equal, generation)
    if wrong:
        known.drop(wrong.values())
    return mine, list(wrong.values()), why


def _relied(
    known: Known, parts: Sequence[Part], replies: list[Any], woven: Woven, failed: set[Pair]
) -> dict[Pair, Route]:
    """Return what was written on both sides because a command before it would have made them equal, and failed."""
    anew = {pair(route) for check in woven.checks if check.part < 0 for route in check.routes}
    doubtful = {place for place in failed - anew if place not in known.pairs}
    relied: dict[Pair, Route] = {}
    for part, reply in zip(parts, replies, strict=True):
        if part.form != "both" or part.reads or isinstance(reply, Exception):
            continue
        if part.way in ("set", "relative"):
            doubtful -= {pair(route) for route in part.written()}
        elif any(pair(key.route) in doubtful for key in part.keys):
            relied.update({pair(route): route for route in part.written() if pair(route) not in anew})
    return relied


def _alike(part: Part, own: Any, reply: Any, phase: Phase) -> bool:
    if part.command is not None and part.command.names:
        primary, other = sides(phase)
        own, reply = renamed(own, names(part, primary)), renamed(reply, names(part, other or primary))
    return alike(own, reply)


def names(part: Part, side: str) -> dict[Any, Any]:
    """Return the names of a part's keys on one side → as the caller wrote them, as bytes and as text."""
    names: dict[Any, Any] = {}
    for key in part.keys:
        name = key.route.old_key if side == "old" else key.route.new_key
        given = key.route.old_key if part.given == "old" else key.route.new_key
        names[name] = given
        try:
            names[name.decode()] = given.decode()
        except UnicodeDecodeError:
            pass
    return names


def ms(time_reply: Any) -> int:
    """Return a reply to TIME in ms since the epoch."""
    seconds, micros = time_reply
    return int(seconds) * 1000 + int(micros) // 1000


def _same_id(own: Any, reply: Any) -> bool:
    return not isinstance(reply, Exception) and text(own) == text(reply)


def text(reply: Any) -> str:
    """Return a reply as text."""
    return reply.decode() if isinstance(reply, bytes) else str(reply)
