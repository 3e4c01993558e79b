"""Forcing: one side of a pair made what the other is, only while neither changed since it was read.

    read     WATCH the state and both sides; what both hold
    keep     the value that is about to go, in the history
    act      MULTI, COPY … REPLACE or UNLINK, EXEC

Nothing is decided here: who calls is asked what to do with what both sides hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from onetape.errors import EndpointError, StateMoved
from onetape.migrate.keys import content
from onetape.migrate.phases.history import History
from onetape.migrate.phases.phase import Phase
from onetape.migrate.phases.state import Names, decode
from onetape.migrate.verifying.side import BIG_BYTES, Side, read_sides
from onetape.migrate.verifying.twins import Place
from onetape.migrate.wire.endpoint import Argument, Endpoint, ReplyError, is_lost

#: Bigger values are not kept in the ledger: replacing one is refused unless it may be lost.
KEPT_BYTES_MAX = 64 * 1024 * 1024
TOO_BIG = "too much to keep: --discard lets it go"
_ATTEMPTS = 10


class Order(msgspec.Struct, frozen=True):
    """What is to be done with the follower: "copy" the leader to it, "remove" it, or "leave" it, and why.

    `ours`: what it holds now is a copy that the migration made, so that nobody would miss it.
    """

    act: str
    why: str = ""
    ours: bool = False


class Done(msgspec.Struct, frozen=True):
    """What became of a pair: "equal", "copied", "replaced", "removed", "left", "busy" or "failed", and why."""

    outcome: str
    why: str = ""


Decide = Callable[["Side | None", "Side | None"], Order]


class Fence:
    """The state that must not leave its phase while keys are forced. Settings may change meanwhile."""

    def __init__(self, names: Names, phase: Phase | None) -> None:
        self.names = names
        self._phase = phase
        self._raw: bytes | None = None

    def check(self, raw: bytes | None) -> None:
        """Raise StateMoved where the state says another phase than at first. `raw`: its bytes under WATCH."""
        if raw == self._raw:
            return
        now = None if raw is None else decode(raw).phase
        if now is not self._phase:
            raise StateMoved(
                f"the migration's phase changed meanwhile: it is {now or 'gone'}, not {self._phase}",
                hint="look at onetape migrate status, then again",
            )
        self._raw = raw


class Forcer:
    """Forces pairs by one connection that may write; `reader` is another one, for reading what is big.

    `discard`: values too big to be kept may be lost.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        reader: Endpoint,
        history: History,
        command: str,
        fence: Fence | None,
        *,
        discard: bool = False,
        at: Callable[[str], None] = lambda point: None,
    ) -> None:
        self._endpoint = endpoint
        self._reader = reader
        self._history = history
        self._command = command
        self._fence = fence
        self._discard = discard
        self._at = at

    def force(self, leader: Place, follower: Place, decide: Decide, before_act: Callable[[Side], None]) -> Done:
        """Do with the follower what `decide` says of both sides. `before_act` is told what it is about to become.

        Raises StateMoved, EndpointError where the connection is lost.
        """
        for _attempt in range(_ATTEMPTS):
            try:
                done = self._once(leader, follower, decide, before_act)
            except EndpointError as error:
                if is_lost(error):
                    raise
                self._endpoint.call("UNWATCH")
                if content.is_changed(error):
                    continue
                return Done("failed", error.message)
            if done is not None:
                return done
        return Done("busy", f"it changed {_ATTEMPTS} times in a row")

    def put_aside(self, place: Place, other: Place, why: str) -> None:
        """Keep what a place holds in the history, and leave it there."""
        self._endpoint.select(place[0])
        payload = self._endpoint.call("DUMP", place[1])
        if payload is not None:
            expire_ms = content.expiry(self._endpoint, place[1])
            self._history.keep([(self._command, *place, *other, payload, expire_ms, False, why)])

    def _once(self, leader: Place, follower: Place, decide: Decide, before_act: Callable[[Side], None]) -> Done | None:
        sizes = self._watch(leader, follower)
        first, other = self._side(leader, max(sizes)), self._side(follower, max(sizes))
        if first is other is None or (first is not None and other is not None and first.same(other)):
            return self._as_of_one_moment(Done("equal"))
        order = decide(first, other)
        if order.act == "leave" or (order.act == "remove" and other is None) or (order.act == "copy" and first is None):
            return self._as_of_one_moment(Done("left" if order.act == "leave" else "equal", order.why))
        if other is not None:
            kept = self._keep(leader, follower, other, order)
            if kept is not None:
                self._endpoint.call("UNWATCH")
                return kept
        if order.act == "copy" and first is not None:
            before_act(first)
        result = self._act(leader, follower, order.act, other)
        self._at("forced")
        if result is None:
            return None
        if isinstance(result, ReplyError):
            return Done("failed", result.message)
        if order.act == "remove":
            return Done("removed", order.why)
        if result[-1] != 1:
            return None  # the leader expired in that instant
        return Done("copied" if other is None else "replaced", order.why)

    def _as_of_one_moment(self, done: Done) -> Done | None:
        """Return it, or None where something changed while both sides were read."""
        return None if self._endpoint.pipeline([("MULTI",), ("EXEC",)])[1] is None else done

    def _watch(self, *places: Place) -> list[int]:
        commands: list[Sequence[Argument]] = [("UNWATCH",)]
        if self._fence is not None:
            names = self._fence.names
            commands += [("SELECT", names.db), ("WATCH", names.state), ("GET", names.state)]
        for db, key in places:
            commands += [("SELECT", db), ("WATCH", key), ("MEMORY", "USAGE", key, "SAMPLES", 1)]
        replies = self._endpoint.pipeline(commands)
        self._endpoint.db = -1
        for reply, command in zip(replies, commands, strict=True):
            if isinstance(reply, ReplyError) and command[0] != "MEMORY":
                raise EndpointError(f"{command[0]!s}: {reply.message}", code=reply.code)
        if self._fence is not None:
            self._fence.check(replies[3])
        return [size if isinstance(size, int) else 0 for size in (replies[-4], replies[-1])]

    def _side(self, place: Place, biggest: int) -> Side | None:
        # What is big is read by another connection, under our WATCH: so as of one moment, if EXEC succeeds.
        reader = self._reader if biggest > BIG_BYTES else self._endpoint
        (found,) = read_sides(reader, place[0], [place[1]], big=biggest > BIG_BYTES)
        return found

    def _keep(self, leader: Place, follower: Place, side: Side, order: Order) -> Done | None:
        payload = side.payload
        if payload is None and side.bytes_used <= KEPT_BYTES_MAX:
            self._endpoint.select(follower[0])
            payload = self._endpoint.call("DUMP", follower[1])
        if payload is None and not self._discard and not order.ours:
            size = side.bytes_used / 2**20
            return Done("left", f"what it holds takes {size:,.0f} MiB, {TOO_BIG}")
        row = (self._command, *follower, *leader, payload, side.expire_ms, order.ours, order.why)
        self._history.keep([row])
        self._at("kept")
        return None

    def _act(self, leader: Place, follower: Place, act: str, other: Side | None) -> Any:
        """Return EXEC's replies, None where something changed, or its error."""
        commands: list[Sequence[Argument]] = [("SELECT", follower[0]), ("MULTI",)]
        if other is not None:
            commands.append(("UNLINK", follower[1]))  # a REPLACE would free it there and then
        if act == "copy":
            commands += [("SELECT", leader[0]), ("COPY", leader[1], follower[1], "DB", follower[0])]
        replies = self._endpoint.pipeline([*commands, ("EXEC",)])
        self._endpoint.db = -1
        refused = next((reply for reply in replies[2:-1] if isinstance(reply, ReplyError)), None)
        result = replies[-1]
        if refused is not None:
            return refused
        if isinstance(result, list):
            return next((reply for reply in result if isinstance(reply, ReplyError)), result)
        return result


__all__ = ["Done", "Fence", "Forcer", "Order"]
