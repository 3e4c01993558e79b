"""The exchange: what one client knows of a migration, and the steps of a write or a read, for sync and asyncio alike.

Steps are generators: they yield what is to be sent, or how long to wait, and are given the replies. A lane is one
connection in the plan's target database. Armed, it watches the state and its client knows it: a transaction that was
begun under a phase that is over is not carried out.

A write is one packet: MULTI, the weave, EXEC, and WATCH and GET of the state for the next one.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec
from redis.exceptions import ExecAbortError, RedisError, WatchError

from onetape.errors import OnetapeError, PhaseRefused, StateMoved
from onetape.migrate.dual.commands import word
from onetape.migrate.dual.known import Known, Pair, pair
from onetape.migrate.dual.look import big_ones, first_look, judge, second_look
from onetape.migrate.dual.mapping import Mapped, Mapper, Part
from onetape.migrate.dual.server_clock import ServerClock
from onetape.migrate.dual.settling import ms, names, settled, text
from onetape.migrate.dual.step import Send, Steps, Wire
from onetape.migrate.dual.weave import (
    Check,
    Facts,
    Look,
    Woven,
    field_of,
    renamed,
    side_read,
    sides,
    trims_about,
    weave,
)
from onetape.migrate.phases.phase import Phase
from onetape.migrate.phases.state import Names, State, decode, operator, without
from onetape.migrate.plans.plan import Plan
from onetape.migrate.routes import Route, Routes
from onetape.migrate.wire.endpoint import pack

_log = logging.getLogger(__name__)

#: How often a transaction is begun anew because the state, or a big key, changed under it.
ATTEMPTS = 30
#: How long a blocked command waits between two tries, s: the first and the longest wait.
_WAITS_S = (0.001, 0.05)
#: The longest single BLOCK of a read, ms: then it looks whether the phase is still the same.
_BLOCK_MS = 1000


class Counts(msgspec.Struct):
    """What a client did. `again`: transactions begun anew. `copies`: pairs made anew. `left`: big ones left alone."""

    writes: int = 0
    reads: int = 0
    divergences: int = 0
    passed: int = 0
    merged: int = 0
    again: int = 0
    copies: int = 0
    left: int = 0
    healed: int = 0
    lost: int = 0
    state_lost: int = 0


class Exchange:
    """What all lanes of a client share. Its steps may run on many lanes at once."""

    def __init__(self, plan: Plan, mapper: Mapper, routes: Routes, *, client: str, require_state: bool) -> None:
        self.plan, self.mapper, self.routes, self.client = plan, mapper, routes, client
        self.names = Names.of(plan)
        self.counts = Counts()
        self.known = Known()
        self.clock = ServerClock()
        self.state: State | None = None
        self.by = operator()
        self._raw: bytes | None = None
        self._require = require_state
        self._lock = threading.Lock()
        self.beat: Callable[[], bytes | None] = lambda: None
        self.owed: dict[Pair, tuple[Route, str]] = {}
        self._head, self._tail = pack("MULTI"), pack("EXEC")
        self._get = pack("GET", self.names.state)
        self._tail += pack("WATCH", self.names.state) + self._get
        self._select = {db: pack("SELECT", db) for db in (*routes.dbs, self.names.db)}
        self._home = self._select[self.names.db]

    # What is known of the state

    @property
    def phase(self) -> Phase:
        """The phase that this client goes by; PLANNED where there was no state."""
        if self.state is None:
            return Phase.PLANNED
        return self.state.phase if self._raw is not None else without(self.state).phase

    def forget(self) -> None:
        """Forget which pairs are equal."""
        self.known.forget(trusted=self.known.trusted)

    def forked(self, client: str) -> None:
        """Begin anew in a process that was forked, perhaps while another thread held the lock."""
        self._lock, self.client, self.by = threading.Lock(), client, operator()
        self.owed = {}
        self.forget()

    def note(self, lane: Wire, raw: bytes | None) -> None:
        """Take in the state as the server told it on a lane, which goes by it from here on.

        Each lane goes by what it was told itself: a reply that was read late must not put back the others.
        """
        if raw == lane.raw and lane.noted:
            return
        with self._lock:
            if raw is None:
                if self.state is not None and self._raw is not None:
                    self.counts.state_lost += 1
                    _log.warning(
                        "the state of the migration %r, %s, is gone from database %d; going on as in %s",
                        self.plan.name, self.state.phase, self.names.db, without(self.state).phase,
                    )  # fmt: skip
                state = self.state
            elif raw == self._raw:
                state = self.state
            else:
                armed, lane.armed = lane.armed, False
                state = decode(raw)
                if state.plan_hash != self.plan.hash:
                    raise StateMoved(
                        f"the migration {self.plan.name!r} on this server goes by another plan: "
                        f"{state.plan_hash[:12]}, not {self.plan.hash[:12]}",
                        hint="give this client the plan it was started with",
                    )
                lane.armed = armed
                if self.state is None or self._raw is None or state.version >= self.state.version:
                    self.state = state
            if raw != self._raw or lane.noted:
                self.known.forget(trusted=raw is not None)
            if raw is None or state is self.state:
                self._raw = raw
            lane.raw, lane.state, lane.noted = raw, state, True

    # Packets

    def arm(self, lane: Wire) -> Steps:
        """Make a lane watch the state, in the target database."""
        head = lane.pack("SELECT", self.names.db) + lane.pack("UNWATCH")
        tail = lane.pack("WATCH", self.names.state) + lane.pack("GET", self.names.state)
        hello, dbs = b"", sorted(self.routes.dbs)
        if not lane.greeted:  # a SELECT that fails inside a transaction would let its next command hit another database
            hello = lane.pack("HELLO") + lane.pack("TIME") + b"".join([lane.pack("SELECT", db) for db in dbs])
        replies = yield Send(hello + head + tail, 4 if lane.greeted else 6 + len(dbs))
        for reply in replies if lane.greeted else replies[2:]:
            if isinstance(reply, Exception):
                raise reply
        if not lane.greeted:
            lane.frozen, lane.greeted = _is_frozen(replies[0]), True
            # The connections of before may have ended with their server, which came back with what it had saved.
            self.forget()
            self.clock.note(replies[1])
        self.note(lane, replies[-1])
        if self._require and lane.state is None:
            raise PhaseRefused(
                "no live migration was started on this server",
                hint="onetape migrate start begins one, or leave out require_state",
                phase="planned",
            )
        lane.armed = True

    # Writing

    def write(self, lane: Wire, parts: Sequence[Part], *, watched: bool = False) -> Steps:
        """Do all parts in one transaction and return their replies, errors in place.

        `watched`: the caller watches keys on this lane too; then WatchError is raised where anything changed.
        Raises what the server says where it takes no part of the transaction; then nothing was done.
        """
        for attempt in range(ATTEMPTS):
            if not lane.armed:
                if watched:
                    raise WatchError("The phase of the migration changed.")
                yield from self.arm(lane)
            todo = parts
            if any(part.ask_type for part in parts):
                todo = yield from self._ask_types(lane, parts)
            looked = yield from self._look(lane, todo)
            now_ms = 0
            if not lane.frozen and any(part.way == "expire" for part in todo):
                now_ms = yield from self._ask_time(lane)
            phase, generation = _phase_of(lane), self.known.generation
            facts = Facts(
                phase, self.names.db, lane.frozen, lane.resp3, self.known, looked, now_ms,
                self.names.diverged, self.record,
            )  # fmt: skip
            woven = weave(todo, facts, lane.pack)
            replies, raw = yield from self._commit(lane, woven)
            if replies is None:
                if watched:
                    raise WatchError("Watched variable changed.")
                self.counts.again += 1
                if attempt:
                    yield random.uniform(0, 0.002 * attempt)
                continue
            self._count(todo, woven, looked)
            return (yield from self._finish(lane, todo, woven, replies, raw, generation, phase))
        raise StateMoved(
            f"the migration's state changed {ATTEMPTS} times while one command was sent", hint="nothing was written"
        )

    def _commit(self, lane: Wire, woven: Woven) -> Steps:
        """Send a transaction; return EXEC's reply, None where it was not carried out, and the state after it."""
        beat = self.beat()
        lane.armed = False
        packed = self._head + woven.packed + self._tail
        if beat is not None:
            packed += beat
        replies = yield Send(packed, 1 + woven.length, 1, 2 if beat is None else 3)
        return self._committed(lane, woven, replies)

    def _committed(self, lane: Wire, woven: Woven, replies: list[Any]) -> tuple[list[Any] | None, bytes | None]:
        done, watched, raw = replies[1 + woven.length : 4 + woven.length]
        if isinstance(watched, Exception) or isinstance(raw, Exception):
            if isinstance(done, list):  # what was written is written; the next command will be told
                return done, lane.raw
            raise raw if isinstance(raw, Exception) else watched
        lane.armed = True
        if isinstance(done, Exception):
            self.note(lane, raw)
            refused = next((reply for reply in replies[: 1 + woven.length] if isinstance(reply, Exception)), None)
            if refused is not None and isinstance(done, ExecAbortError):
                raise refused
            raise done
        if done is None:
            self.note(lane, raw)
        return done, raw

    def _finish(
        self, lane: Wire, parts: Sequence[Part], woven: Woven, replies: list[Any], raw: bytes | None,
        generation: int, phase: Phase,
    ) -> Steps:  # fmt: skip
        """Look at the replies of a transaction that was carried out, and repair what is not equal after it."""
        mine, wrong, why = settled(self.known, parts, woven, replies, generation, phase)
        # It was carried out. From here on no error may reach the caller, who would do it once more.
        try:
            self.note(lane, raw)
        except StateMoved as error:  # the lane is not armed any more: the next command will be told
            _log.warning("after a write: %s", error)
        if wrong:
            self.owed.update({pair(route): (route, why) for route in wrong})
            try:
                yield from self.pay(lane)
            except (RedisError, OnetapeError, OSError) as error:
                _log.warning("the other side of %d keys is not made equal yet: %s", len(self.owed), error)
        return mine

    def pay(self, lane: Wire) -> Steps:
        """Make equal what a write left unequal, and record it; what fails stays owed, and the heartbeat tries again."""
        for why in {why for _, why in list(self.owed.values())}:
            owed = {place: route for place, (route, of) in list(self.owed.items()) if of == why}
            yield from self.heal(lane, list(owed.values()), why)
            for place in owed:
                self.owed.pop(place, None)

    def _count(self, parts: Sequence[Part], woven: Woven, looked: Mapping[Pair, Look]) -> None:
        counts = self.counts
        counts.writes += 1 if len(parts) == 1 else sum(not part.reads for part in parts)
        counts.divergences += woven.recorded
        if len(parts) != 1 or parts[0].form != "both":
            counts.passed += sum(part.form == "pass" for part in parts)
            counts.merged += sum(part.form == "old" and not part.reads for part in parts)
        if looked:
            counts.copies += sum(look == "copy" for look in looked.values())
            counts.left += len(woven.doubtful)

    def heal(self, lane: Wire, routes: Sequence[Route], why: str) -> Steps:
        """Make the other side of these pairs anew, and record that they were not equal.

        Without a `why` they differ in milliseconds only: then those are recorded that are too big to be made anew.
        """
        if why:
            _log.warning("two sides of %d keys were not equal: %s", len(routes), why)
        for _ in range(ATTEMPTS):
            if not lane.armed:
                yield from self.arm(lane)
            primary, other = sides(_phase_of(lane))
            fit = [route for route in routes if not route.joined and other is not None]
            looked = (yield from self._look_at(lane, fit, primary)) if fit else {}
            commands: list[bytes] = []
            for route in fit:
                if looked.get(pair(route)) == "copy":
                    old, new = (route.old_db, route.old_key), (route.new_db, route.new_key)
                    (from_db, from_key), (to_db, to_key) = (old, new) if primary == "old" else (new, old)
                    commands += [
                        lane.pack("SELECT", to_db), lane.pack("UNLINK", to_key), lane.pack("SELECT", from_db),
                        lane.pack("COPY", from_key, to_key, "DB", to_db), lane.pack("SELECT", self.names.db),
                    ]  # fmt: skip
                    self.counts.healed += 1
            record = self.record(why or "entries were delivered at another millisecond on the other side")
            told = [route for route in routes if why or looked.get(pair(route)) != "copy"]
            commands += [lane.pack("HSET", self.names.diverged, field_of(route), record) for route in told]
            woven = Woven(b"".join(commands), len(commands), (), (), (), (), 0)
            replies, raw = yield from self._commit(lane, woven)
            if replies is not None:
                self.note(lane, raw)
                self.counts.divergences += len(told)
                return
        raise StateMoved(f"the migration's state changed {ATTEMPTS} times while keys were made equal")

    def record(self, why: str) -> bytes:
        """Return what is written into the hash of divergences."""
        return msgspec.json.encode({"at_ms": self.clock.now_ms(), "why": why, "by": f"{self.client} {self.by}"})

    # Asking before

    def _ask_types(self, lane: Wire, parts: Sequence[Part]) -> Steps:
        """Return the parts with rules chosen by the types of their keys, which are watched from here on."""
        asked = [part for part in parts if part.ask_type]
        packed = b""
        for part in asked:
            key = part.keys[0].route.old_key
            packed += lane.pack("SELECT", part.db) + lane.pack("WATCH", key) + lane.pack("TYPE", key)
        replies = yield Send(packed + lane.pack("SELECT", self.names.db), 3 * len(asked) + 1)
        types = {}
        for part, reply in zip(asked, replies[2::3], strict=True):
            if isinstance(reply, Exception):
                raise reply
            kind = text(reply)
            types[id(part)] = None if kind == "none" else kind
        found: list[Part] = []
        for part in parts:
            if not part.ask_type:
                found.append(part)
                continue
            typed = self.mapper.typed(part, types[id(part)])
            found.append(Part(part.command, part.args, part.db, "raw", part.way) if typed is None else typed)
        return found

    def _ask_time(self, lane: Wire) -> Steps:
        replies = yield Send(lane.pack("TIME"), 1)
        if isinstance(replies[0], Exception):
            raise replies[0]
        return ms(replies[0])

    def _look(self, lane: Wire, parts: Sequence[Part]) -> Steps:
        """Return what to do about the pairs that are not known."""
        primary, other = sides(_phase_of(lane))
        if other is None:
            return {}
        known = self.known
        routes: dict[Pair, Route] = {}
        told: set[Pair] = set()
        for part in parts:
            if part.reads or part.form not in ("both", "pass"):
                continue
            sets = part.way == "set" or (part.way == "relative" and lane.frozen)
            for key in part.keys:
                route = key.route
                place = (route.old_db, route.old_key)
                if part.form == "pass":
                    if route.old_key and not route.joined and not route.merged:
                        routes[place] = route
                elif sets:
                    told.add(place)
                elif route not in known and place not in told and key.writes and part.way != "relative":
                    routes[place] = route
        if not routes:
            return {}
        return (yield from self._look_at(lane, list(routes.values()), primary))

    def _look_at(self, lane: Wire, routes: Sequence[Route], primary: str) -> Steps:
        packed, count, places = first_look(lane.pack, routes, primary, self.names.db)
        replies = yield Send(packed, count)
        looked: dict[Pair, Look] = {pair(route): "copy" for route in routes}
        for route, kind in big_ones(routes, replies, places):
            packed, count = second_look(lane.pack, route, kind, primary, self.names.db)
            replies = yield Send(packed, count)
            look, differs = judge(kind, replies)
            looked[pair(route)] = look
            if differs:
                self.counts.divergences += 1
                yield Send(lane.pack("HSET", self.names.diverged, field_of(route), self.record(differs)), 1)
        return looked

    # Reading

    def read(self, lane: Wire, mapped: Mapped) -> Steps:
        """Return the replies of a command that only reads, from the side that counts in the phase they were read in."""
        for _ in range(ATTEMPTS):
            if not lane.armed:
                yield from self.arm(lane)
            parts: Sequence[Part] = mapped.parts
            if any(part.ask_type for part in parts):
                parts = yield from self._ask_types(lane, parts)
                if not lane.watching:
                    lane.armed = False  # what was watched for it is not to abort the next write
            raw_before, phase, state = lane.raw, _phase_of(lane), lane.state
            new_first = phase is Phase.READS_SWITCHED and state is not None and random.random() < state.read_share
            if new_first:
                replies, raw = yield from self._read_new(lane, parts)
            else:
                replies, raw = yield from self._read_side(lane, parts, phase)
            self.note(lane, raw)
            if raw == raw_before:
                self.counts.reads += 1
                return replies
        raise StateMoved("the migration's state changed again and again while one command was read")

    def _read_side(self, lane: Wire, parts: Sequence[Part], phase: Phase) -> Steps:
        facts = Facts(phase, self.names.db, lane.frozen, lane.resp3, self.known, {})
        woven = weave(parts, facts, lane.pack)
        # One packet, no transaction: what stands between is the server's affair, as in any pipeline.
        replies = yield Send(woven.packed + lane.pack("GET", self.names.state), 0, woven.length, 1)
        if isinstance(replies[-1], Exception):
            raise replies[-1]
        return [replies[at] for at in woven.replies], replies[-1]

    def _read_new(self, lane: Wire, parts: Sequence[Part]) -> Steps:
        """Read what has its new name under that, and the rest as before."""
        asked = [at for at, part in enumerate(parts) if part.form == "both"]
        packed = b""
        for at in asked:  # first: a key that comes in between is read on the old side, one that goes is gone on both
            packed += lane.pack("EXISTS", *{key.route.new_key for key in parts[at].keys})
        for at in asked:
            packed += lane.pack(*parts[at].on("new")[1])
        replies = yield Send(packed + self._get, len(asked), len(asked), 1)
        raw = replies.pop()
        for reply in (raw, *replies[: len(asked)]):
            if isinstance(reply, Exception):
                raise reply
        found: dict[int, Any] = {}
        for at, there, reply in zip(asked, replies, replies[len(asked) :], strict=False):
            if there == len({key.route.new_key for key in parts[at].keys}):
                found[at] = reply
        rest = [part for at, part in enumerate(parts) if at not in found]
        if rest:
            old, later = yield from self._read_side(lane, rest, _phase_of(lane))
            if later != raw:
                return [], later
            others = iter(old)
            found.update({at: next(others) for at in range(len(parts)) if at not in found})
        return [found[at] for at in range(len(parts))], raw

    # What a client asks for

    def ask(self, lane: Wire, mapped: Mapped, *, decode: bool = True) -> Steps:
        """Return the one reply of a command, as the server would have given it, an error as an exception.

        `decode`: as the client decodes replies, if it does.
        """
        lane.decodes = decode
        part = mapped.parts[0]
        if lane.armed and part.form == "both" and len(mapped.parts) == 1 and not part.ask_type:
            if part.reads:
                found, reply = yield from self._read_quickly(lane, part)
            else:
                found, reply = yield from self._write_quickly(lane, part)
            if found:
                if isinstance(reply, Exception):
                    raise reply
                assert part.command is not None
                return self.joined(mapped, [reply]) if part.command.names else reply
        if mapped.reads and part.form != "pass":
            replies = yield from self._follow(lane, mapped)
        else:
            wait = _timeout(part) if len(mapped.parts) == 1 else None
            replies = yield from self.write(lane, mapped.parts)
            if wait is not None:
                replies = yield from self._wait(lane, mapped, replies, wait)
        return self.joined(mapped, replies)

    def _write_quickly(self, lane: Wire, part: Part) -> Steps:
        """Do what write() does, for the usual case: one command, given to both sides. (False, None) for another."""
        state = lane.state
        phase = _phase_of(lane)
        if state is None or not phase.both_written:
            return False, None
        way, written, known, generation = part.way, part.written(), self.known, self.known.generation
        if way != "set" and not (way == "relative" and lane.frozen):
            frozen = way in ("timed", "expire", "claim") or (way == "xadd" and not trims_about(part.args))
            usual = way == "same" or (lane.frozen and frozen)
            if not usual or not all(key.route in known for key in part.keys):
                return False, None
        home = self.names.db
        old_db, old = part.on("old")
        new_db, new = part.on("new")
        if old_db == home or new_db != home or (part.command is not None and part.command.timeout is not None):
            return False, None
        if phase.new_is_truth:
            own, other = 0, 2
            packed = lane.pack(*new) + self._select[old_db] + lane.pack(*old) + self._home
        else:
            own, other = 1, 3
            packed = self._select[old_db] + lane.pack(*old) + self._home + lane.pack(*new)
        beat = self.beat()
        packed = self._head + packed + self._tail
        lane.armed = False
        if beat is None:
            replies = yield Send(packed, 5, 1, 2)
        else:
            replies = yield Send(packed + beat, 5, 1, 3)
        done, raw = replies[5], replies[7]
        if type(done) is list and raw == lane.raw and done[own] == done[other]:
            lane.armed = True
            self.counts.writes += 1
            if way in ("set", "relative"):
                known.add(written, generation)
            return True, done[own]
        rule: Literal["alike", "errors"] = "errors" if way in ("set", "relative") else "alike"
        woven = Woven(b"", 4, (own,), (Check(0, other, rule, tuple(written)),), tuple(written), (), 0)
        done, raw = self._committed(lane, woven, replies)
        if done is None:
            self.counts.again += 1
            return False, None
        self._count((part,), woven, {})
        return True, (yield from self._finish(lane, (part,), woven, done, raw, generation, phase))[0]

    def _read_quickly(self, lane: Wire, part: Part) -> Steps:
        """Do what read() does, for the usual case. (False, None) for another."""
        phase = _phase_of(lane)
        if phase is Phase.READS_SWITCHED or (part.command is not None and part.command.names):
            return False, None
        db, args = part.on(side_read(phase))
        if db == self.names.db:
            replies = yield Send(lane.pack(*args) + self._get, 0, 1, 1)
            reply = replies[0]
        else:
            replies = yield Send(self._select[db] + lane.pack(*args) + self._home + self._get, 1, 1, 2)
            reply = replies[1]
        if replies[-1] != lane.raw:
            if isinstance(replies[-1], Exception):
                raise replies[-1]
            self.note(lane, replies[-1])
            return False, None
        self.counts.reads += 1
        return True, reply

    def _follow(self, lane: Wire, mapped: Mapped) -> Steps:
        """Read; a read that blocks (XREAD) looks once a second whether the phase is still the same."""
        part = mapped.parts[0]
        at = block_at(part.args) if part.command is not None and part.command.name == "XREAD" else None
        if at is None or part.form != "both" or len(mapped.parts) > 1:
            return (yield from self.read(lane, mapped))
        args = list(part.args)
        try:
            left_ms = int(args[at])
        except (TypeError, ValueError):
            return (yield from self.read(lane, mapped))  # the server says what is wrong with it
        for key in part.keys:
            if word(args[key.at + len(part.keys)]) == "$":  # from now on: once for all looks
                newest = self.mapper.map(("XREVRANGE", part.args[key.at], "+", "-", "COUNT", 1))
                found = (yield from self.read(lane, newest)) if newest is not None else [None]
                if isinstance(found[0], Exception):
                    raise found[0]
                args[key.at + len(part.keys)] = found[0][0][0] if found[0] else "0-0"
        until = time.monotonic() + left_ms / 1000 if left_ms > 0 else None
        while True:
            args[at] = _BLOCK_MS if until is None else min(_BLOCK_MS, max(1, int((until - time.monotonic()) * 1000)))
            one = Part(part.command, tuple(args), part.db, part.form, part.way, part.given, part.keys)
            replies = yield from self.read(lane, Mapped((one,)))
            if replies[0] is not None or (until is not None and time.monotonic() >= until):
                return replies

    def _wait(self, lane: Wire, mapped: Mapped, replies: list[Any], timeout_s: float) -> Steps:
        """Try again until there is something to take, or the time is over. It costs a look at every 1 to 50 ms."""
        until = time.monotonic() + timeout_s if timeout_s > 0 else None
        pause, longest = _WAITS_S
        while replies[0] is None:
            left = longest if until is None else until - time.monotonic()
            if left <= 0:
                break
            yield min(pause, left)
            pause = min(2 * pause, longest)
            replies = yield from self.write(lane, mapped.parts)
        return replies

    def joined(self, mapped: Mapped, replies: list[Any]) -> Any:
        """Return one reply of those of the parts, with the names that the caller used. Raises an error reply."""
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        if mapped.join is not None:
            return mapped.join(replies)
        part, reply = mapped.parts[0], replies[0]
        if part.command is not None and part.command.names:
            for side in ("old", "new"):
                if side != part.given:
                    reply = renamed(reply, names(part, side))
        return reply


def _phase_of(lane: Wire) -> Phase:
    if lane.state is None:
        return Phase.PLANNED
    return lane.state.phase if lane.raw is not None else without(lane.state).phase


def _timeout(part: Part) -> float | None:
    """Return how long a command blocks, s (0: for ever), None for one that does not."""
    command = part.command
    if command is None:
        return None
    try:
        if command.timeout is not None:
            return float(part.args[command.timeout])
        if command.name == "XREADGROUP" and (at := block_at(part.args)) is not None:
            return float(part.args[at]) / 1000
    except (ValueError, IndexError, TypeError):
        return None
    return None


def block_at(args: Sequence[Any]) -> int | None:
    """Return where an XREAD or XREADGROUP says how long it blocks, None where it does not."""
    for at, arg in enumerate(args[:-1]):
        name = word(arg)
        if name == "STREAMS":
            return None
        if name == "BLOCK" and at:
            return at + 1
    return None


def _is_frozen(hello: Any) -> bool:
    """Return whether time stands still in a transaction of this server, by its reply to HELLO."""
    if isinstance(hello, list):
        hello = dict(zip(hello[::2], hello[1::2], strict=False))
    if not isinstance(hello, dict):
        return False
    facts = {text(name): value for name, value in hello.items()}
    version = tuple(int(one) for one in text(facts.get("version", "0")).split(".")[:2] if one.isdecimal())
    return text(facts.get("server", "")) == "valkey" or version >= (7, 2)
