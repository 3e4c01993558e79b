"""The census: who is connected to the old databases and is none of ours, and which old keys are still touched alone.

A connection counts as ours by its name, which begins with `onetape`, or which one of our clients has told. What it
finds is evidence, not proof: who connects, writes and leaves is seen by the sides that differ afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Collection

import msgspec

from onetape.errors import EndpointError
from onetape.migrate.copying import compare
from onetape.migrate.copying.compare import Comparer
from onetape.migrate.keys import content
from onetape.migrate.plans.plan import Plan
from onetape.migrate.report import key_text
from onetape.migrate.wire.endpoint import Endpoint, ReplyError

#: What our connections are called.
OURS = "onetape"
#: Commands that can write though the server does not call them writes: what is in them cannot be seen.
_MAY_WRITE = frozenset({"exec", "eval", "evalsha", "fcall", "multi"})
_SAMPLE_PAGE = 500
#: How long connections are looked at, and how often, to catch one that writes between its reads.
WATCHED_S = 2.0
_LOOK_EVERY_S = 0.005
#: Up to so many differences are looked at closely: unequal bytes can be equal content.
_CLOSE_LOOKS = 100
#: Seconds by which an old key must have been touched later than its new one before it is worth a word.
_APART_S = 2


class Stranger(msgspec.Struct, frozen=True):
    """A connection on an old database that is not ours. `writes`: its last command can have changed data.

    `idle_s`: how long ago that command was; `age_s`: how long it has been connected.
    """

    id: int
    address: str
    name: str
    user: str
    library: str
    db: int
    command: str
    idle_s: int
    age_s: int
    writes: bool

    def line(self) -> str:
        """Return it as one line."""
        who = " ".join(part for part in (self.name or "without a name", self.library and f"({self.library})") if part)
        user = f" as {self.user}" if self.user not in ("", "default") else ""
        return f"{self.address} {who}{user}: {self.command} in database {self.db}, {self.idle_s} s ago"


class Touched(msgspec.Struct, frozen=True):
    """What a sample of pairs tells: `pairs` looked at, `different` among them, and the first of those by name.

    `touched`: pairs whose old key was touched in the last `within_s` and its new one not; None where the server cannot
    tell idle times (an LFU policy).
    """

    pairs: int
    different: int
    first: tuple[str, ...]
    touched: int | None
    first_touched: tuple[str, ...]


def strangers(endpoint: Endpoint, plan: Plan, ours: Collection[str] = ()) -> list[Stranger]:
    """Return the connections on the plan's source databases that are not ours, the latest at work first.

    `ours`: further names of connections that are. Raises EndpointError, also where the user may not look.
    """
    listed = endpoint.call("CLIENT", "LIST").decode("utf-8", "backslashreplace")
    me = str(endpoint.call("CLIENT", "ID"))
    dbs = {str(db) for db in plan.source_dbs()}
    rows = [dict(part.partition("=")[::2] for part in line.split(" ")) for line in listed.splitlines() if line]
    found = [
        row
        for row in rows
        if row.get("db") in dbs
        and row.get("id") != me
        and not row.get("name", "").startswith(OURS)
        and row.get("name") not in ours
        and not set(row.get("flags", "")) & set("MSO")  # replication and MONITOR
    ]
    writing = _writing(endpoint, {row.get("cmd", "") for row in found})
    people = [
        Stranger(
            id=_number(row.get("id")), address=row.get("addr", ""), name=row.get("name", ""), user=row.get("user", ""),
            library=" ".join(filter(None, (row.get("lib-name"), row.get("lib-ver")))), db=_number(row.get("db")),
            command=row.get("cmd", ""), idle_s=_number(row.get("idle")), age_s=_number(row.get("age")),
            writes=row.get("cmd", "") in writing or row.get("multi", "-1") != "-1",
        )
        for row in found
    ]  # fmt: skip
    return sorted(people, key=lambda person: person.idle_s)


def watched(endpoint: Endpoint, plan: Plan, ours: Collection[str] = (), *, for_s: float = WATCHED_S) -> list[Stranger]:
    """As strangers(), looked at again and again for a while where one that is at work was seen to read only.

    A server tells only a connection's last command: one that writes and reads in turn is mostly seen reading.
    """
    until_s = time.monotonic() + for_s
    found: dict[int, Stranger] = {}
    while True:
        people = strangers(endpoint, plan, ours)
        for one in people:
            before = found.get(one.id)
            if before is None or one.writes or not before.writes:
                found[one.id] = one
        if time.monotonic() > until_s or all(one.writes or one.idle_s > for_s for one in people):
            return sorted(found.values(), key=lambda person: person.idle_s)
        time.sleep(_LOOK_EVERY_S)


def _writing(endpoint: Endpoint, commands: set[str]) -> set[str]:
    names = sorted(name for name in commands if name and name != "NULL")
    found = {name for name in names if name in _MAY_WRITE}
    for name, reply in zip(names, endpoint.pipeline([("COMMAND", "INFO", name) for name in names]), strict=True):
        if isinstance(reply, ReplyError) or not reply or not reply[0]:
            found.add(name)  # not allowed to ask, or unknown: nobody can say that it only reads
        elif b"write" in [bytes(flag) for flag in reply[0][2]]:
            found.add(name)
    return found


def touched(endpoint: Endpoint, plan: Plan, *, within_s: float, sample: int = 2000) -> Touched:
    """Compare a sample of pairs, and tell which old keys were touched alone of late. Only reads."""
    comparer = Comparer(endpoint)
    pairs = different = alone = 0
    first: list[str] = []
    first_alone: list[str] = []
    known = True
    for db in plan.source_dbs():
        for some in _pages(endpoint, plan, db, sample // max(1, len(plan.source_dbs()))):
            idle = _idle_s(endpoint, db, plan.target_db, some)  # before the comparison, which touches both
            codes = comparer.codes(db, plan.target_db, some)
            pairs += len(some)
            for place, pair in enumerate(some):
                if _differ(endpoint, plan, db, pair, codes[place : place + 1], close=different < _CLOSE_LOOKS):
                    different += 1
                    first.append(f"db {db} {key_text(pair[0])}")
            if idle is None:
                known = False
                continue
            late = [i for i, (old_s, new_s) in enumerate(idle) if old_s < within_s and old_s + _APART_S < new_s]
            alone += len(late)
            first_alone += [f"db {db} {key_text(some[i][0])}" for i in late]
    return Touched(pairs, different, tuple(first[:5]), alone if known else None, tuple(first_alone[:5]))


def _differ(endpoint: Endpoint, plan: Plan, db: int, pair: tuple[bytes, bytes], code: bytes, *, close: bool) -> bool:
    if code not in (compare.DIFFERENT, compare.NO_TARGET, compare.EXPIRY, compare.BIG):
        return False
    if not close:
        return code != compare.BIG
    sides = content.read_together(endpoint, [(db, pair[0]), (plan.target_db, pair[1])])
    return sides is None or (sides[0] is not None and sides[0] != sides[1])


def _pages(endpoint: Endpoint, plan: Plan, db: int, most: int) -> list[list[tuple[bytes, bytes]]]:
    matcher = plan.matcher(db)
    cursor, found, seen = b"0", [], 0
    while seen < most:
        endpoint.select(db)
        cursor, keys = endpoint.call("SCAN", cursor, "COUNT", _SAMPLE_PAGE)
        keys = list(dict.fromkeys(keys))
        kinds = endpoint.pipeline([("TYPE", key) for key in keys])
        some = []
        for key, kind in zip(keys, kinds, strict=True):
            hit = matcher.match_type(key, kind.decode()) if isinstance(kind, bytes) else None
            if hit is not None and not hit[1].skip and hit[1].kind == "copy" and (db, key) != (plan.target_db, hit[2]):
                some.append((key, hit[2]))
        if some:
            found.append(some)
        seen += len(some)
        if cursor == b"0":
            break
    return found


def _idle_s(
    endpoint: Endpoint, db: int, target_db: int, pairs: list[tuple[bytes, bytes]]
) -> list[tuple[int, int]] | None:
    sides = []
    for place, which in ((db, 0), (target_db, 1)):
        endpoint.select(place)
        sides.append(endpoint.pipeline([("OBJECT", "IDLETIME", pair[which]) for pair in pairs]))
    if any(isinstance(reply, ReplyError) and "no such key" not in reply.message for side in sides for reply in side):
        return None
    told = [[reply if isinstance(reply, int) else None for reply in side] for side in sides]
    return [(0, 0) if old is None or new is None else (old, new) for old, new in zip(*told, strict=True)]


def may_look(error: EndpointError) -> bool:
    """Return whether an error is not one of missing rights."""
    return error.facts.get("code") != "NOPERM"


def _number(text: str | None) -> int:
    return int(text) if text and text.lstrip("-").isdecimal() else 0


__all__ = ["Stranger", "Touched", "may_look", "strangers", "touched", "watched"]
