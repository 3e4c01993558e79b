"""The steps of a read: what is asked, and what follows from the answers. No connection here, so that the same steps
serve the sync and the asyncio clients: each generator yields an Ask and is sent its replies.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

from redis.exceptions import ResponseError

from onetape.errors import CommandUnmapped, StateMoved
from onetape.migrate.phases.state import State
from onetape.migrate.reader import reads
from onetape.migrate.reader.core import Core, Job
from onetape.migrate.reader.routed import Args, Plain, Read, Sided, Split
from onetape.migrate.reader.switch import Side, can_compare, falls_back, side_of_read, sides_of_read
from onetape.migrate.report import key_text

#: How often a read begins again because the state moved while it was asked.
_ATTEMPTS = 5
#: A blocking XREAD waits in slices, so that it follows the switch while it waits, ms.
_SLICE_MS = 500

Command = tuple[int, Args, dict[str, Any]]  # database, arguments, redis-py's options


class Ask(NamedTuple):
    """Commands for one packet, answered in their order; error replies of the server come in place of the results."""

    commands: list[Command]
    transaction: bool = False


Steps = Generator[Ask, list[Any], list[Any]]


def answer(core: Core, items: Sequence[Read | Plain | Split], transaction: bool = False) -> Steps:
    """Return the reply of each item, or its error. All of them go to the same side, drawn once."""
    flat: list[Read | Plain] = []
    for item in items:
        flat += item.parts if isinstance(item, Split) else [item]
    transaction = transaction or len(flat) > len(items)
    view = core.view
    state_of: Command = (core.names.db, ("GET", core.names.state), {})
    if not view.seen:
        view.take((yield Ask([state_of]))[0])
    for _attempt in range(_ATTEMPTS):
        due = view.due()
        turn = side_of_read(view.state, core.chance)
        sides = [_side(core, item, turn) for item in flat]
        commands: list[Command] = [state_of] if due else []
        commands += [_command(item, side) for item, side in zip(flat, sides, strict=True)]
        replies = yield Ask(commands, transaction)
        if not due:
            break
        view.take(replies.pop(0))
        if all(_holds(view.state, item, side) for item, side in zip(flat, sides, strict=True)):
            break
    else:
        raise StateMoved("the migration's state changed again and again while a read went by it", hint="read again")
    yield from _finish(core, flat, sides, replies)
    return _joined(items, replies)


def quick(core: Core, read: Read) -> Side | None:
    """Return the side for a read that one plain command can answer now, None for one that takes answer()."""
    view = core.view
    if not view.seen or read.at is None or read.new is None or view.due():
        return None
    if read.name in reads.SCANS or read.name == "XREAD":
        return None
    return side_of_read(view.state, core.chance)


def settled(core: Core, read: Read, side: Side, reply: Any) -> bool:
    """Count what a quick read gave, and return whether that is the answer; else rest() finds it."""
    state = core.view.state
    if side == "old":
        core.tally.other("old_reads")
    elif falls_back(state) and _lacking(read, reply):
        return False
    else:
        core.tally.new()
    if state is not None and state.shadow_share and can_compare(state):
        _shadow(core, [read], [reply])
    return True


def rest(core: Core, read: Read, side: Side, reply: Any) -> Steps:
    """Return the answer of a quick read that settled nothing."""
    replies = [reply]
    yield from _finish(core, [read], [side], replies)
    return replies


def _finish(
    core: Core, flat: Sequence[Read | Plain], sides: list[Side], replies: list[Any]
) -> Generator[Ask, list[Any], None]:
    """Fall back where it must, count, have some compared, and give the names back that were asked for."""
    state = core.view.state
    if falls_back(state):
        yield from _fall_back(core, flat, sides, replies)
    else:
        _count(core, flat, sides)
    if state is not None and state.shadow_share and can_compare(state):
        _shadow(core, flat, replies)
    for place, (item, side) in enumerate(zip(flat, sides, strict=True)):
        if isinstance(item, Read):
            replies[place] = item.named(replies[place], side)
            _remember(core, item, side, replies[place])


def blocking(core: Core, read: Read) -> Steps:
    """Return the reply of an XREAD that blocks, as answer() does, following the switch while it waits."""
    if not core.view.seen:
        core.view.take((yield Ask([(core.names.db, ("GET", core.names.state), {})]))[0])
    wait_ms = block_ms(read)
    assert wait_ms is not None
    read = yield from _from_here(core, read)
    until = time.monotonic() + wait_ms / 1000
    while True:
        left = _SLICE_MS if wait_ms == 0 else max(1, min(_SLICE_MS, round((until - time.monotonic()) * 1000)))
        replies = yield from answer(core, [_with_block(read, left)])
        if replies[0] or (wait_ms and time.monotonic() >= until):
            return replies


def block_ms(read: Read) -> int | None:
    """Return how long a read waits for something new at the most, ms, 0 for ever; None for one that does not wait."""
    if read.name != "XREAD":
        return None
    args = (read.old or read.on("new")).args
    words = [reads.text_of(arg).upper() for arg in args]
    words = words[: words.index("STREAMS")]
    try:
        return int(reads.text_of(args[words.index("BLOCK") + 1]))
    except (ValueError, IndexError):
        return None


def _from_here(core: Core, read: Read) -> Generator[Ask, list[Any], Read]:
    """Return an XREAD whose `$` are the ids that they stand for now: each slice would begin anew otherwise."""
    sided = read.on(side_of_read(core.view.state, core.chance))
    number = len(sided.keys)
    marked = [i for i in range(number) if reads.text_of(sided.args[i - number]) == "$"]
    if not marked:
        return read
    replies = yield Ask([(sided.db, ("XINFO STREAM", sided.keys[i]), {}) for i in marked])
    ids: dict[int, Any] = {}
    for i, reply in zip(marked, replies, strict=True):
        ids[i] = reply["last-generated-id"] if isinstance(reply, dict) else "0-0"

    def fixed(one: Sided | None) -> Sided | None:
        if one is None:
            return None
        args = list(one.args)
        for i, last in ids.items():
            args[i - number] = last
        return one._replace(args=tuple(args))

    return Read(read.name, read.given, fixed(read.old), fixed(read.new), read.options)


def _with_block(read: Read, wait_ms: int | None) -> Read:
    """Return an XREAD with another time to wait; None: with none."""

    def changed(one: Sided | None) -> Sided | None:
        if one is None:
            return None
        at = next(i for i, arg in enumerate(one.args) if reads.text_of(arg).upper() == "BLOCK")
        new = () if wait_ms is None else ("BLOCK", wait_ms)
        return one._replace(args=(*one.args[:at], *new, *one.args[at + 2 :]))

    return Read(read.name, read.given, changed(read.old), changed(read.new), read.options)


def _side(core: Core, item: Read | Plain, turn: Side) -> Side:
    if isinstance(item, Plain):
        return turn
    if item.name in reads.SCANS:
        # A cursor means something on the side that gave it only.
        turn = core.pins.get((item.given[0], _cursor(item)), turn)
    if turn == "new" and item.new is None and item.old is not None and falls_back(core.view.state):
        return "old"
    return turn


def _holds(state: State | None, item: Read | Plain, side: Side) -> bool:
    """Return whether a side may still answer, by a state that came with the answer."""
    if isinstance(item, Plain) or item.name in reads.SCANS or side in sides_of_read(state):
        return True
    return side == "old" and item.new is None and falls_back(state)


def _remember(core: Core, item: Read, side: Side, reply: Any) -> None:
    if item.name in reads.SCANS and isinstance(reply, tuple | list) and reply and reads.text_of(reply[0]) != "0":
        core.pin((item.given[0], reads.text_of(reply[0])), side)


def _cursor(item: Read) -> str:
    args = (item.old or item.on("new")).args
    return reads.text_of(args[2]) if len(args) > 2 else "0"


def _command(item: Read | Plain, side: Side) -> Command:
    if isinstance(item, Plain):
        return item.db, item.args, dict(item.options)
    sided = item.on(side)
    return sided.db, sided.args, dict(item.options)


def _count(core: Core, flat: Sequence[Read | Plain], sides: Sequence[Side]) -> None:
    sided = [side for item, side in zip(flat, sides, strict=True) if isinstance(item, Read)]
    core.tally.settle(sided.count("new"), sided.count("old"))


def _fall_back(
    core: Core, flat: Sequence[Read | Plain], sides: list[Side], replies: list[Any]
) -> Generator[Ask, list[Any], None]:
    """Ask the old side for what the new one does not have; replies and sides are changed in place."""
    again: list[tuple[int, bool]] = []
    new_reads = old_reads = 0
    commands: list[Command] = []
    for place, (item, side, reply) in enumerate(zip(flat, sides, replies, strict=True)):
        if not isinstance(item, Read):
            continue
        if side == "old":
            old_reads += 1
            continue
        failed = isinstance(reply, ResponseError)
        sure = item.name in reads.SURE
        # Where its keys have no one place on the old side, nothing but the new one can answer.
        if item.old is None or not _lacking(item, reply):
            new_reads += 1
            continue
        if block_ms(item) is not None:
            item = _with_block(item, None)
        old, new = item.on("old"), item.on("new")
        if not failed and not sure:
            # A key that is there can answer so too: of another field, another range. EXISTS is asked before the
            # command: a key that comes in between is read, one that goes is gone on both sides.
            commands += [(new.db, ("EXISTS", *new.keys), {}), (new.db, new.args, dict(item.options))]
        commands.append((old.db, ("EXISTS", *old.keys), {}))
        commands.append((old.db, old.args, dict(item.options)))
        again.append((place, failed or sure))
    core.tally.settle(new_reads, old_reads)
    if not again:
        return
    found = iter((yield Ask(commands)))
    for place, known in again:
        item = flat[place]
        assert isinstance(item, Read)
        here = 0
        if not known:
            here, reply = next(found), next(found)
            if here == len(item.given) and not isinstance(reply, Exception):
                core.tally.new()
                replies[place] = reply
                next(found), next(found)
                continue
        there, reply = next(found), next(found)
        if isinstance(replies[place], Exception) and not isinstance(reply, Exception):
            core.tally.add("errors")
        sides[place], replies[place] = "old", reply
        if isinstance(there, Exception) or isinstance(here, Exception) or there > here:
            core.tally.fallback()
        else:
            core.tally.other("misses")


def _lacking(item: Read, reply: Any) -> bool:
    """Return whether the new side may lack the key, by its reply: of several keys one may without it showing."""
    if isinstance(reply, Exception):
        return True
    if item.name in reads.SURE:
        return reads.missing(item.name, reply)
    return len(item.given) > 1 or reads.bare(reply)


def _shadow(core: Core, flat: Sequence[Read | Plain], replies: Sequence[Any]) -> None:
    state = core.view.state
    assert state is not None
    for item, reply in zip(flat, replies, strict=True):
        if not isinstance(item, Read) or item.at is None or item.old is None or item.new is None:
            continue
        if item.name in reads.NOT_COMPARED or " " in item.name or core.chance() >= state.shadow_share:
            continue
        core.offer(Job(item.name, item.old, item.new), reply)


def _joined(items: Sequence[Read | Plain | Split], replies: Sequence[Any]) -> list[Any]:
    rest = iter(replies)
    return [
        item.whole([next(rest) for _part in item.parts]) if isinstance(item, Split) else next(rest) for item in items
    ]


def item_of(core: Core, db: int, args: Sequence[Any], options: dict[str, Any]) -> Read | Split | None:
    """Return the read that a command is, None for one that goes where the client is.

    Raises CommandUnmapped for a write of a key with two sides, unless such are to pass: then it is counted. What
    empties a database of the plan is always refused.
    """
    item = core.router.of(db, args, options)
    if item is None and reads.find(args) is None:
        if core.router.empties(db, args):
            raise CommandUnmapped(
                f"{reads.name_of(args)}: this client only reads, and keys of the plan are in that database",
                hint="use a plain client, then onetape migrate verify",
                command=reads.name_of(args),
            )
        route = core.router.touches(db, args)
        if route is not None and not route.merged and not route.shared:
            if core.on_write == "refuse":
                raise refused(reads.name_of(args), key_text(route.old_key))
            core.tally.add("passed")
    return item


def refused(name: str, key: str) -> CommandUnmapped:
    """Return the error for a command that a reader must not send to one side of a key that has two."""
    return CommandUnmapped(
        f"{name} {key}: this client only reads, and the key has an old and a new side",
        hint="write through DualRedis, which writes both; or make the reader with on_write='pass'",
        command=name,
    )


__all__ = [
    "Ask",
    "Command",
    "Steps",
    "answer",
    "block_ms",
    "blocking",
    "item_of",
    "quick",
    "refused",
    "rest",
    "settled",
]
