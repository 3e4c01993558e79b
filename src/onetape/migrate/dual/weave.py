"""The weave: one transaction from commands, the phase, and what is known to be equal. Pure.

It begins and ends in the plan's target database. For each key that is written the other side gets either the same
command under its other name, where both sides are known to be equal and the command goes by nothing else, or is made
anew: UNLINK, COPY. Commands whose effect is not told by their arguments have ways of their own:

- XADD with an id that the server gives, or with approximate trimming: it is done natively, and a script of a few
  lines adds what is now the last entry to the other side under the same id, and trims it to the same first entry.
  Where time stands still in a transaction (Redis 7.2, every Valkey) both sides give the same id, and no script is
  needed for that.
- SPOP: one script pops on one side and removes on the other what was popped.
- XREADGROUP, XCLAIM, XAUTOCLAIM note when an entry was delivered: where time does not stand still, TIME is asked
  before and after, and if it went on by a millisecond the pair is made anew.
- a time from now on (EXPIRE, SET EX): the same command where time stands still in a transaction; else COPY for
  strings, and for EXPIRE the moment, told by the server's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from onetape.errors import CommandUnmapped
from onetape.migrate.dual.commands import word, xadd_id_at
from onetape.migrate.dual.known import Known, Pair, pair
from onetape.migrate.dual.mapping import Part, Side
from onetape.migrate.phases.phase import Phase
from onetape.migrate.report import key_text
from onetape.migrate.routes import Route

#: What to do about a pair that is not known to be equal. `copy`: make it anew. `equal`: a big one, taken to be equal.
#: `left`: a big one that the other side does not have yet; the backfill brings it.
Look = Literal["copy", "equal", "left"]

Pack = Callable[..., bytes]

#: KEYS: the stream on the primary and the other side. ARGV: their databases; "1": trim; "1": add.
TAIL = """\
redis.call('SELECT',ARGV[1])
local l=redis.call('XREVRANGE',KEYS[1],'+','-','COUNT',1)[1]
local f=l and ARGV[3]=='1' and redis.call('XRANGE',KEYS[1],'-','+','COUNT',1)[1]
redis.call('SELECT',ARGV[2])
if not l then
if ARGV[4]=='0' then return redis.pcall('XTRIM',KEYS[2],'MAXLEN','=','0') end
return redis.error_reply('EMPTY')
end
local r=l[1]
if ARGV[4]=='1' then r=redis.pcall('XADD',KEYS[2],l[1],unpack(l[2])) end
if f and type(r)=='string' then redis.call('XTRIM',KEYS[2],'MINID','=',f[1]) end
return r"""

#: KEYS: the set on the primary and the other side. ARGV: their databases; the protocol; the count, or nothing.
POP = """\
if ARGV[3]=='3' then redis.setresp(3) end
redis.call('SELECT',ARGV[1])
local r
if ARGV[4] then r=redis.pcall('SPOP',KEYS[1],ARGV[4]) else r=redis.pcall('SPOP',KEYS[1]) end
if type(r)=='table' and r.err then return r end
local m={}
if type(r)=='string' then m[1]=r
elseif type(r)=='table' then
if r.set then for k in pairs(r.set) do m[#m+1]=k end else for i,k in ipairs(r) do m[i]=k end end
end
redis.call('SELECT',ARGV[2])
for i=1,#m,1000 do
local e=redis.pcall('SREM',KEYS[2],unpack(m,i,math.min(i+999,#m)))
if type(e)=='table' and e.err then
redis.call('UNLINK',KEYS[2])
redis.call('SELECT',ARGV[1])
redis.call('COPY',KEYS[1],KEYS[2],'DB',ARGV[2])
break
end
end
return r"""


class Facts(NamedTuple):
    """What a weave goes by: the phase, what the server can, and what is known of the pairs.

    `frozen`: time stands still in a transaction. `now_ms`: the server's time, 0 where it was not asked for.
    `looked`: what was found out about pairs that are not known.
    """

    phase: Phase
    target_db: int
    frozen: bool
    resp3: bool
    known: Known
    looked: Mapping[Pair, Look]
    now_ms: int = 0
    diverged: bytes = b""
    record: Callable[[str], bytes] | None = None


class Check(NamedTuple):
    """A reply of the other side: of which part, where, what is to hold for it, and of which routes.

    `alike`: it is the primary's. `errors`: it is an error where the primary's is one. `id`: it is the primary's id, if
    that gave one. `fine`: it is no error. `time`: it tells the millisecond that the reply at the place `part` tells.
    """

    part: int
    at: int
    rule: Literal["alike", "errors", "id", "fine", "time"]
    routes: tuple[Route, ...]


class Woven(NamedTuple):
    """A transaction: what to send between MULTI and EXEC, and where its replies are.

    `replies`: of each part, the place of its reply in that of EXEC. `equal`: pairs that are equal after it if all
    checks are passed. `doubtful`: pairs to forget, because they are left to somebody else.
    """

    packed: bytes
    length: int
    replies: tuple[int, ...]
    checks: tuple[Check, ...]
    equal: tuple[Route, ...]
    doubtful: tuple[Route, ...]
    recorded: int


def sides(phase: Phase) -> tuple[Side, Side | None]:
    """Return which side is written first and which with it, None where there is only one."""
    if phase is Phase.FINISHED:
        return "new", None
    if not phase.both_written:
        return "old", None
    return ("new", "old") if phase.new_is_truth else ("old", "new")


def side_read(phase: Phase) -> Side:
    """Return the side whose replies count."""
    return "new" if phase.new_is_truth else "old"


def weave(parts: Sequence[Part], facts: Facts, pack: Pack) -> Woven:
    """Return the transaction that does all parts in order, on both sides where the phase says so."""
    loom = _Loom(facts, pack)
    for index, part in enumerate(parts):
        loom.add(index, part)
    return loom.done()


class _Loom:
    def __init__(self, facts: Facts, pack: Pack) -> None:
        self._facts, self._pack = facts, pack
        self._primary, self._other = sides(facts.phase)
        self._chunks: list[bytes] = []
        self._one_sided = True
        self._db = facts.target_db
        self._replies: list[int] = []
        self._checks: list[Check] = []
        self._later: list[tuple[int, Part, bool]] = []
        self._equal: dict[Pair, Route] = {}
        self._anew: dict[Pair, Route] = {}
        self._left: dict[Pair, Route] = {}
        self._recorded = 0

    def add(self, index: int, part: Part) -> None:
        if part.form == "raw":
            self._replies.append(self._put(part.db, part.args))
        elif part.form == "old":
            if self._facts.phase is Phase.FINISHED and not part.reads:
                self._over(part)
            self._replies.append(self._put(*part.on("old")))
        elif part.form == "given":
            if self._facts.phase is Phase.FINISHED and part.given == "old":
                self._over(part)
            self._replies.append(self._put(part.db, part.args))
        elif part.reads:
            self._replies.append(self._put(*part.on(side_read(self._facts.phase))))
        elif part.form == "pass":
            self._pass(index, part)
        elif self._other is None:
            self._replies.append(self._put(*part.on(self._primary)))
        elif part.form == "joined":
            self._joined(index, part)
        else:
            self._both(index, part)

    def _both(self, index: int, part: Part) -> None:
        facts = self._facts
        way = part.way
        if way == "relative":
            way = "set" if self._sets(part) else "copy"
        elif way == "timed":
            way = "same" if facts.frozen else "copy"
        elif way == "xadd" and facts.frozen and not trims_about(part.args):
            way = "same"
        written = part.written()
        if way == "set":
            self._give(index, part, written)
            return
        if way == "copy" or not self._all_equal(part):
            self._replies.append(self._put(*part.on(self._primary)))
            self._make_anew(written)
        elif way == "xadd":
            self._replies.append(self._put(*part.on(self._primary)))
            self._tail(index, part, trims=bool(_trimming(part.args)), adds=True)
        elif way == "xtrim":
            self._replies.append(self._put(*part.on(self._primary)))
            self._tail(index, part, trims=True, adds=False)
        elif way == "spop":
            self._pop(index, part)
        elif way == "claim" and not facts.frozen:
            self._flush()
            begin = self._put(self._db, ("TIME",))
            self._give(index, part, written)
            self._flush()
            self._checks.append(Check(begin, self._put(self._db, ("TIME",)), "time", tuple(written)))
        elif way == "expire" and not facts.frozen:
            if not facts.now_ms:
                self._replies.append(self._put(*part.on(self._primary)))
                self._make_anew(written)
            else:
                self._give(index, _at_moment(part, facts.now_ms), written)
        else:
            self._give(index, part, written)

    def _give(self, index: int, part: Part, written: Sequence[Route]) -> None:
        """The same command to both sides; to the other one at the end, so that databases change less often."""
        assert self._other is not None
        self._replies.append(self._put(*part.on(self._primary)))
        self._later.append((index, part, self._sets(part)))
        for route in written:
            if pair(route) not in self._anew:
                self._equal[pair(route)] = route

    def _sets(self, part: Part) -> bool:
        return part.way == "set" or (part.way == "relative" and self._facts.frozen)

    def _all_equal(self, part: Part) -> bool:
        """Return whether the other side of all of its keys is, at this place of the transaction, what this one is."""
        for key in part.keys:
            place = pair(key.route)
            if place in self._anew or place in self._left:
                return False
            if place in self._equal or key.route in self._facts.known or self._facts.looked.get(place) == "equal":
                continue
            return False
        return True

    def _make_anew(self, routes: Sequence[Route]) -> None:
        for route in routes:
            place = pair(route)
            if self._facts.looked.get(place) == "left" and place not in self._equal:
                self._left[place] = route
                if self._facts.phase.at_least(Phase.BACKFILLED):
                    self._record(route, "too big to be copied by a write, and the other side does not have it")
            else:
                self._anew[place] = route

    def _tail(self, index: int, part: Part, *, trims: bool, adds: bool) -> None:
        self._flush()
        self._one_sided = False
        route = part.keys[0].route
        (from_db, from_key), (to_db, to_key) = self._ends(route)
        at = self._put(
            self._facts.target_db, ("EVAL", TAIL, 2, from_key, to_key, from_db, to_db, int(trims), int(adds))
        )
        self._checks.append(Check(index, at, "id" if adds else "fine", (route,)))
        self._equal[pair(route)] = route

    def _pop(self, index: int, part: Part) -> None:
        self._flush()
        self._one_sided = False
        route = part.keys[0].route
        (from_db, from_key), (to_db, to_key) = self._ends(route)
        count = part.args[2:3]
        protocol = 3 if self._facts.resp3 and count else 2
        command = ("EVAL", POP, 2, from_key, to_key, from_db, to_db, protocol, *count)
        self._replies.append(self._put(self._facts.target_db, command))
        self._equal[pair(route)] = route

    def _joined(self, index: int, part: Part) -> None:
        route = part.keys[0].route
        self._replies.append(self._put(*part.on(self._primary)))
        if part.command is not None and part.command.name == "XADD":
            self._flush()
            (from_db, from_key), (to_db, to_key) = self._ends(route)
            at = self._put(self._facts.target_db, ("EVAL", TAIL, 2, from_key, to_key, from_db, to_db, 0, 1))
            self._checks.append(Check(index, at, "id", (route,)))
        else:
            self._record(route, "a write of a kind that cannot be made on a stream that ticks are merged into")

    def _pass(self, index: int, part: Part) -> None:
        """Done as given, on one side; the other is made anew from it."""
        partial = part.command is not None and len(part.keys) < len(part.command.places(part.args))
        unknown = part.command is None  # its keys cannot be told from its values
        as_given = unknown or partial or not all(key.route.old_key for key in part.keys)
        if as_given and part.given != self._primary:
            why = "it is not known, so that its keys cannot be given" if unknown else "some of its keys have none of"
            raise CommandUnmapped(
                f"{word(part.args[0])}: {why} the names of the {self._primary} side, which counts now",
                hint=f"nothing was sent; the phase is {self._facts.phase}",
                command=word(part.args[0]),
            )
        if as_given:
            self._replies.append(self._put(part.db, part.args))
        else:
            self._replies.append(self._put(*part.on(self._primary)))
        if self._other is None:
            return
        self._flush()
        routes = [key.route for key in part.keys]
        fit = [r for r in routes if r.old_key and not r.joined and not r.merged]
        self._make_anew([r for r in fit if self._facts.looked.get(pair(r)) != "equal"])
        name = part.command.name if part.command is not None else word(part.args[0])
        for route in routes:
            self._record(route, f"{name} was passed on one side")

    def _over(self, part: Part) -> None:
        key = part.keys[0].route.old_key
        raise CommandUnmapped(
            f"{word(part.args[0])} of {key_text(key)}: the migration is finished, and the old names are gone",
            hint="use the new names",
            command=word(part.args[0]),
        )

    def _record(self, route: Route, why: str) -> None:
        if self._facts.record is None:
            return
        self._recorded += 1
        self._put(self._facts.target_db, ("HSET", self._facts.diverged, field_of(route), self._facts.record(why)))

    def _ends(self, route: Route) -> tuple[tuple[int, bytes], tuple[int, bytes]]:
        old, new = (route.old_db, route.old_key), (route.new_db, route.new_key)
        return (old, new) if self._primary == "old" else (new, old)

    def _flush(self) -> None:
        if not self._later:
            return
        assert self._other is not None
        later, self._later = self._later, []
        self._one_sided = False
        for index, part, sets in later:
            at = self._put(*part.on(self._other))
            self._checks.append(Check(index, at, "errors" if sets else "alike", tuple(part.written())))

    def _put(self, db: int, args: Sequence[Any]) -> int:
        if db != self._db:
            self._chunks.append(self._pack("SELECT", db))
            self._db = db
        self._chunks.append(self._pack(*args))
        return len(self._chunks) - 1

    def done(self) -> Woven:
        self._flush()
        anew = [self._ends(route) for route in self._anew.values()]
        ahead = 0
        if self._one_sided and self._primary == "old":  # nothing else touches the other side: begin with it
            self._chunks[:0] = [self._pack("UNLINK", key) for _, (_, key) in anew]
            ahead = len(anew)
            self._checks = [check._replace(at=check.at + ahead) for check in self._checks]
        else:
            for _, (db, key) in anew:
                self._put(db, ("UNLINK", key))
        for route, ((db, key), (to_db, to_key)) in zip(self._anew.values(), anew, strict=True):
            at = self._put(db, ("COPY", key, to_key, "DB", to_db, "REPLACE"))
            self._checks.append(Check(-1, at, "fine", (route,)))
        if self._db != self._facts.target_db:
            self._chunks.append(self._pack("SELECT", self._facts.target_db))
        return Woven(
            b"".join(self._chunks),
            len(self._chunks),
            tuple([at + ahead for at in self._replies]),
            tuple(self._checks),
            (*self._equal.values(), *self._anew.values()),
            tuple(self._left.values()),
            self._recorded,
        )


def field_of(route: Route) -> bytes:
    """Return the field of the hash of divergences that stands for a pair."""
    if not route.old_key:
        return b"%d:%b" % (route.new_db, route.new_key)
    return b"%d:%b" % (route.old_db, route.old_key)


def alike(one: Any, other: Any) -> bool:
    """Return whether two replies are the same, names of keys aside where they begin a pair."""
    if isinstance(one, Exception) or isinstance(other, Exception):
        return isinstance(one, Exception) and isinstance(other, Exception) and str(one) == str(other)
    return bool(one == other)


def renamed(reply: Any, names: Mapping[Any, Any]) -> Any:
    """Return a reply in which names of keys stand first (BLPOP, XREAD) with other names."""
    if isinstance(reply, dict):
        return {names.get(name, name): value for name, value in reply.items()}
    if isinstance(reply, list) and reply:
        if isinstance(reply[0], list):
            return [[names.get(one[0], one[0]), *one[1:]] for one in reply]
        return [names.get(reply[0], reply[0]), *reply[1:]]
    return reply


def trims_about(args: Sequence[Any]) -> bool:
    """Return whether an XADD trims approximately, which two equal streams may do differently."""
    return "~" in _trimming(args)


def _trimming(args: Sequence[Any]) -> set[str]:
    """Return the words of an XADD that say how it trims."""
    return {"MAXLEN", "MINID", "~"} & {word(arg) for arg in args[2 : xadd_id_at(args)]}


def _at_moment(part: Part, now_ms: int) -> Part:
    """Return an EXPIRE or PEXPIRE as a PEXPIREAT."""
    name = word(part.args[0])
    try:
        span = int(part.args[2]) * (1000 if name == "EXPIRE" else 1)
    except (TypeError, ValueError, IndexError):
        return part  # the server says what is wrong with it
    args = ("PEXPIREAT", part.args[1], now_ms + span, *part.args[3:])
    return Part(part.command, args, part.db, part.form, "same", part.given, part.keys)


__all__ = [
    "Check",
    "Facts",
    "Look",
    "Woven",
    "alike",
    "field_of",
    "renamed",
    "side_read",
    "sides",
    "trims_about",
    "weave",
]
